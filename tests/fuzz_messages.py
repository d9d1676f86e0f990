"""Fuzz the readers of bytes from a link: tensor and control messages, and hostile payloads.

It is guided by coverage, with atheris (``make fuzz``; libFuzzer's options). Hostile input must end
in the documented exception; any other end is a finding. Accepted input must encode to exactly the
bytes that it was read from. A finding becomes a test in tests/test_wire.py or tests/test_codec.py.
"""

from __future__ import annotations

import inspect
import struct
import sys
from typing import Any

import atheris
import msgspec
import numpy as np
import xxhash
import zstandard

from scissionlite.errors import CodecError, WireError
from scissionlite.offloader import wire
from scissionlite.offloader.wire import control
from scissionlite.transfer_layer import (
    EntropyTables,
    Packed,
    Quantization,
    TransferSpec,
    decode,
    encode,
    fit_tables,
)

# Bytes of payload: larger ones find no more, and are slower.
MOST_BYTES = 1 << 14

# In the order of TransferSpec's fields.
CHOICES: list[tuple[Any, ...]] = [
    (1, 2, 4),
    ("max", "average"),
    ("int8", "int4", "float16", "float32"),
    ("tensor", "channel"),
    ("nchw", "nhwc"),
    (None, "zstd", "ans"),
    ("affine", "symmetric"),
    ("nearest", "bilinear"),
]


def fuzz_tensor_message(data: atheris.FuzzedDataProvider) -> None:
    body = data.ConsumeBytes(data.ConsumeIntInRange(0, 300))
    if data.ConsumeBool():
        # Past the checks of magic and version, which would stop nearly everything.
        body = struct.pack("<4sH", wire.MAGIC, wire.VERSION) + body[6:]
    payloads = [
        data.ConsumeBytes(data.ConsumeIntInRange(0, 600))
        for _ in range(data.ConsumeIntInRange(0, 3))
    ]
    digest = xxhash.xxh3_64(body + b"".join(payloads)).intdigest()
    frames = [body + struct.pack("<Q", digest), *payloads]
    kind = data.PickValueInList(list(wire.MessageKind))
    try:
        header, views = wire.unpack(frames, kind)
    except WireError:
        return
    assert [bytes(frame) for frame in wire.pack(header, views)] == frames


def fuzz_control_message(data: atheris.FuzzedDataProvider) -> None:
    frame = data.ConsumeBytes(data.remaining_bytes())
    for parse in (control.decode_at_edge, control.decode_at_device):
        try:
            message: Any = parse(frame)
        except WireError:
            continue
        assert parse(control.encode(message)) == message


def fuzz_packed(data: atheris.FuzzedDataProvider) -> None:
    try:
        spec = TransferSpec(*(data.PickValueInList(list(values)) for values in CHOICES))
    except CodecError:  # floats have no "ans"
        return
    shape = tuple(data.ConsumeIntInRange(1, 24) for _ in range(data.ConsumeIntInRange(1, 5)))
    try:
        quantization = make_quantization(data, spec, shape)
        tables = make_tables(data, spec, shape)
        if seldom(data):
            shape = (data.ConsumeInt(8), *shape[1:])
        nbytes = spec.packed_nbytes(shape)
    except CodecError:
        return
    if nbytes > MOST_BYTES:
        return
    entropy_coded = spec.entropy is not None and data.ConsumeBool()
    payload = make_payload(data, nbytes, entropy_coded, tables)
    packed = Packed(payload, spec, shape, quantization, entropy_coded or seldom(data), tables)
    try:
        array = decode(packed)
    except CodecError:
        return
    assert array.shape == shape
    assert array.tobytes() == decode(packed).tobytes()
    again = encode(array, spec, quantization, tables=tables)
    assert decode(again).shape == shape


def make_quantization(
    data: atheris.FuzzedDataProvider, spec: TransferSpec, shape: tuple[int, ...]
) -> Quantization | None:
    """Make a quantization, mostly one that is valid for the spec."""
    wanted, channels = spec.quantized, 0
    if spec.granularity == "channel" and len(shape) >= 3:
        channels = shape[-3]
    if seldom(data):
        wanted, channels = data.ConsumeBool(), data.ConsumeIntInRange(0, 40)
    if not wanted:
        return None
    scale = abs(data.ConsumeFloat()) if seldom(data) else data.ConsumeIntInRange(1, 999) / 64
    limit = 8 if spec.dtype == "int4" else 128
    zero_point = data.ConsumeIntInRange(-limit, limit - 1)
    if channels == 0:
        return Quantization(scale, zero_point)
    return Quantization((scale,) + (0.5,) * (channels - 1), (zero_point,) * channels)


def make_tables(
    data: atheris.FuzzedDataProvider, spec: TransferSpec, shape: tuple[int, ...]
) -> EntropyTables | None:
    """Make entropy tables for the coder that needs them: of random bytes, or of a random map."""
    if spec.entropy != "ans":
        return None
    if seldom(data):
        return EntropyTables(bytes([8, 1, 0, 0]) + data.ConsumeBytes(80), 0.0)
    plain = msgspec.structs.replace(spec, entropy=None, pool=1, pool_kind="max")
    channels = shape[-3] if len(shape) >= 3 else 1
    codes = np.frombuffer(data.ConsumeBytes(64) or b"x", np.int8)
    values = np.resize(codes, (1, channels, 5, 5)).astype(np.float32)
    if data.ConsumeBool():  # so that the tables depend on neighbours
        values = np.repeat(np.repeat(values, 6, 2), 6, 3)
    one = Quantization(1.0, 0)
    if plain.granularity == "channel":
        one = Quantization((1.0,) * channels, (0,) * channels)
    return fit_tables([encode(values, plain, one)])


def make_payload(
    data: atheris.FuzzedDataProvider,
    nbytes: int,
    entropy_coded: bool,
    tables: EntropyTables | None,
) -> bytes | bytearray:
    """Make a payload, mostly of the right length and well compressed, and sometimes damage it."""
    payload = bytearray(data.ConsumeBytes(data.ConsumeIntInRange(0, 600)))
    if not seldom(data):
        payload += bytes(max(0, nbytes - len(payload)))
        del payload[nbytes:]
        if tables is not None and entropy_coded:
            count = nbytes * (2 if tables.dtype == "int4" else 1)
            if not seldom(data) and count % tables.channels == 0:
                room = np.empty(3 * count + 100, np.uint8)
                codes = np.frombuffer(bytes(payload), np.uint8)
                plane = count // tables.channels
                start = tables.coder.encode(codes, room, count, plane, False, plane)
                payload = bytearray(room[start:].tobytes())
            else:
                payload[:2] = tables.id.to_bytes(2, "little")
        elif entropy_coded:
            payload = bytearray(zstandard.compress(bytes(payload)))
    if seldom(data):
        damage(data, payload)
    return payload


def damage(data: atheris.FuzzedDataProvider, message: bytearray) -> None:
    for _ in range(data.ConsumeIntInRange(1, 4)):
        if message:
            message[data.ConsumeIntInRange(0, len(message) - 1)] = data.ConsumeIntInRange(0, 255)


def seldom(data: atheris.FuzzedDataProvider) -> bool:
    return bool(data.ConsumeIntInRange(0, 7) == 7)


def test_one_input(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    targets = (fuzz_packed, fuzz_tensor_message, fuzz_control_message)
    targets[provider.ConsumeIntInRange(0, len(targets) - 1)](provider)


def instrument() -> None:
    """Make the package visible to the fuzzer: its import hook fails on an editable install."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != "scissionlite":
            continue
        ours = [each for each in vars(module).values() if getattr(each, "__module__", "") == name]
        for owner in [module, *filter(inspect.isclass, ours)]:
            for function in filter(inspect.isfunction, list(vars(owner).values())):
                if function.__module__ == name:
                    atheris.instrument_func(function)


if __name__ == "__main__":
    instrument()
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
