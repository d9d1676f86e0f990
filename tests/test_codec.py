"""The codec: round trips, agreement with torch and the oracle, and an error for every violation."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hypothesis.strategies as st
import msgspec
import numpy as np
import numpy.typing as npt
import oracle
import pytest
from hypothesis import given
from kernel_targets import listed_isas
from specs import CHOICES, SEEDS, channels_last, feature_map, quantization_for, specs
from specs import SHAPES as MAPS

from scissionlite import _core
from scissionlite.errors import CodecError
from scissionlite.transfer_layer import Packed, Quantization, TransferSpec, decode, encode

Float32 = npt.NDArray[np.float32]

SPLIT, PAPER, INT8 = TransferSpec.float32_split(), TransferSpec.paper(), TransferSpec()
RICH = TransferSpec(4, "average", "int4", "channel", "nhwc", "zstd", "symmetric", "bilinear")
SPECS = [pytest.param(spec, id=spec.label) for spec in (SPLIT, PAPER, INT8, RICH)]
SHAPES = st.lists(st.integers(1, 9), min_size=3, max_size=5).map(tuple)
KINDS = {"float32": "f32", "float16": "f16", "int8": "i8", "int4": "i4"}


def pooled_up(x: Float32) -> Float32:
    """Compute the result of a Transfer Layer without quantization, by padding and reshaping."""
    height, width = x.shape[-2:]
    pad = [(0, 0)] * (x.ndim - 2) + [(0, height % 2), (0, width % 2)]
    padded = np.pad(x, pad, constant_values=-np.inf)
    blocks = padded.reshape(*x.shape[:-2], padded.shape[-2] // 2, 2, padded.shape[-1] // 2, 2)
    largest = blocks.max(axis=(-3, -1), keepdims=True)
    return np.broadcast_to(largest, blocks.shape).reshape(padded.shape)[..., :height, :width]


# --- round trips


@given(shape=SHAPES, seed=st.integers(0, 2**32 - 1))
def test_float32_round_trips_are_exact(shape: tuple[int, ...], seed: int) -> None:
    x = feature_map(shape, seed)
    assert np.array_equal(decode(encode(x, SPLIT)), x)
    assert np.array_equal(decode(encode(x, PAPER)), pooled_up(x))


@given(shape=SHAPES, seed=st.integers(0, 2**32 - 1), shift=st.floats(-50, 50))
def test_int8_error_is_at_most_half_a_step(shape: tuple[int, ...], seed: int, shift: float) -> None:
    x = feature_map(shape, seed) + np.float32(shift)
    packed = encode(x, INT8)
    assert packed.quantization is not None
    assert isinstance(packed.quantization.scale, float)
    error = np.abs(decode(packed).astype(np.float64) - pooled_up(x)).max()
    # Four roundings in float32, each relative to at most 255 steps.
    assert error <= packed.quantization.scale * (0.5 + 255 * 4 * 2.0**-24)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (2, 3, 7, 5), (3, 1, 1), (1, 2, 1, 9)])
def test_packed_says_what_it_holds(spec: TransferSpec, shape: tuple[int, ...]) -> None:
    packed = encode(feature_map(shape), spec)
    assert packed.entropy_coded == (packed.nbytes < spec.packed_nbytes(shape))
    assert packed.entropy_coded or packed.nbytes == spec.packed_nbytes(shape)
    assert packed.shape == shape
    assert packed.spec == spec
    assert (packed.quantization is not None) == spec.quantized
    result = decode(packed)
    assert result.shape == shape
    assert result.dtype == np.float32


@pytest.mark.parametrize("spec", SPECS)
def test_out_arrays_are_used(spec: TransferSpec) -> None:
    x = feature_map((2, 3, 7, 9))
    payload = np.empty(spec.packed_nbytes(x.shape), np.uint8)
    packed = encode(x, spec, out=payload)
    assert np.shares_memory(packed.payload, payload)
    result = np.empty_like(x)
    assert decode(packed, out=result) is result
    assert np.array_equal(result, decode(encode(x, spec)))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_any_buffer_decodes(spec: TransferSpec, wrap: Callable[[Any], Any]) -> None:
    # All values are equal, so that an entropy coder can shrink the payload.
    packed = encode(np.ones((1, 8, 32, 33), np.float32), spec)
    assert packed.entropy_coded == (spec.entropy is not None)
    wrapped = msgspec.structs.replace(packed, payload=wrap(packed.payload))
    assert wrapped.nbytes == packed.nbytes
    assert np.array_equal(decode(wrapped), decode(packed))


@pytest.mark.parametrize("spec", SPECS)
def test_unaligned_payload_decodes(spec: TransferSpec) -> None:
    packed = encode(np.ones((1, 8, 32, 33), np.float32), spec)
    message = np.frombuffer(b"\0" + bytes(packed.payload), np.uint8)
    unaligned = msgspec.structs.replace(packed, payload=message[1:])
    assert np.array_equal(decode(unaligned), decode(packed))


@pytest.mark.parametrize("spec", SPECS)
def test_non_contiguous_input_is_the_same(spec: TransferSpec) -> None:
    x = feature_map((6, 4, 5, 7)).transpose(1, 0, 3, 2)
    assert np.array_equal(decode(encode(x, spec)), decode(encode(x.copy(), spec)))


def test_float32_split_copies_nothing() -> None:
    x = feature_map((1, 2, 5, 6))
    packed = encode(x, SPLIT)
    assert isinstance(packed.payload, np.ndarray)
    assert np.shares_memory(packed.payload, x)
    assert not np.shares_memory(decode(packed), x)


def test_float32_split_takes_any_shape() -> None:
    for shape in [(7,), (2, 1000), (1,) * 8]:
        assert np.array_equal(decode(encode(feature_map(shape), SPLIT)), feature_map(shape))


# --- agreement with the oracle, for every spec


def call_of(spec: TransferSpec, shape: tuple[int, ...], quantization: Any) -> oracle.Call:
    images, channels, height, width = shape
    scales: dict[str, Any] = {}
    if quantization is not None:
        scales = {
            "scales": np.array(quantization.scale, np.float32, ndmin=1),
            "zero_points": np.array(quantization.zero_point, np.int32, ndmin=1),
        }
    return oracle.Call(
        images,
        channels,
        height,
        width,
        window=spec.pool,
        pooling=spec.pool_kind,
        upsampling=spec.upsample,
        layout=spec.layout,
        per_channel=spec.granularity == "channel",
        **scales,
    )


@given(
    spec=specs(),
    shape=MAPS,
    seed=SEEDS,
    in_dtype=st.sampled_from(["float32", "float16"]),
    in_layout=st.sampled_from(["nchw", "nhwc"]),
    measured=st.booleans(),
)
def test_encode_is_the_oracles(
    spec: TransferSpec,
    shape: tuple[int, ...],
    seed: int,
    in_dtype: str,
    in_layout: str,
    measured: bool,
) -> None:
    x = feature_map(shape, seed).astype(in_dtype)
    in_map = channels_last(x) if in_layout == "nhwc" else x
    quantization = None if measured else quantization_for(spec, shape[1])
    packed = encode(in_map, spec, quantization)
    if spec.quantized and measured:
        _, lows, highs = oracle.pool_range(x, call_of(spec, shape, None))
        if spec.granularity == "tensor":
            lows, highs = lows.item(), highs.item()  # type: ignore[assignment]
        quantization = Quantization.from_range(lows, highs, spec.dtype, spec.scheme, spec.levels)
    assert packed.quantization == quantization
    expected = oracle.encode(x, KINDS[spec.dtype], call_of(spec, shape, quantization)).tobytes()
    if packed.entropy_coded:
        plain = msgspec.structs.replace(packed, payload=expected, entropy_coded=False)
        assert packed.nbytes < len(expected)
        assert np.array_equal(decode(packed), decode(plain))
    else:
        assert bytes(packed.payload) == expected


@given(
    spec=specs(),
    shape=MAPS,
    seed=SEEDS,
    out_dtype=st.sampled_from(["float32", "float16"]),
    out_layout=st.sampled_from([None, "nchw", "nhwc"]),
    into=st.booleans(),
)
def test_decode_is_the_oracles(
    spec: TransferSpec,
    shape: tuple[int, ...],
    seed: int,
    out_dtype: Any,
    out_layout: str | None,
    into: bool,
) -> None:
    packed = encode(feature_map(shape, seed), spec, quantization_for(spec, shape[1]))
    raw = encode(
        feature_map(shape, seed), msgspec.structs.replace(spec, entropy=None), packed.quantization
    )
    call = call_of(spec, shape, packed.quantization)
    payload = np.frombuffer(bytes(raw.payload), np.uint8)
    expected = oracle.decode(payload, KINDS[spec.dtype], KINDS[out_dtype], call)
    if into:
        out = np.empty(shape, out_dtype)
        out = channels_last(out) if out_layout == "nhwc" else out
        result = decode(packed, out)
        assert result is out
    else:
        result = decode(packed, dtype=out_dtype, layout=out_layout)
        assert result.dtype == out_dtype
        layout = out_layout or spec.layout
        dense = result if layout == "nchw" else np.moveaxis(result, 1, -1)
        assert dense.flags.c_contiguous
    # Zeros of both signs count as different.
    assert np.ascontiguousarray(result).tobytes() == np.ascontiguousarray(expected).tobytes()


def test_every_pair_of_choices_encodes_and_decodes() -> None:
    x = feature_map((2, 3, 9, 6))
    for (name, values), (other, others) in itertools.combinations(CHOICES.items(), 2):
        for value, another in itertools.product(values, others):
            spec = TransferSpec(**{name: value, other: another})
            restored = decode(encode(x, spec))
            assert restored.shape == x.shape
            assert np.isfinite(restored).all()


def test_threads_do_not_share_their_scratch() -> None:
    maps = [feature_map((1, 4, 40 + size, 40), size) for size in range(8)]
    alone = [bytes(encode(x, INT8).payload) for x in maps]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            together = pool.map(lambda x: bytes(encode(x, INT8).payload), maps)
            assert list(together) == alone


# --- agreement with torch, on finite data


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (2, 5, 7, 13), (1, 1, 1, 1), (1, 4, 14, 14)])
def test_equals_torch(shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    x = feature_map(shape)
    pooled = functional.max_pool2d(torch.from_numpy(x), 2, ceil_mode=True)
    quantization = Quantization.from_range(float(pooled.min()), float(pooled.max()))
    inv_scale = torch.tensor(1.0) / torch.tensor(quantization.scale, dtype=torch.float32)
    steps = torch.round(pooled * inv_scale) + quantization.zero_point
    q = steps.clamp(-128, 127).to(torch.int8)

    packed = encode(x, INT8)
    assert packed.quantization == quantization
    assert bytes(packed.payload) == q.numpy().tobytes()

    def upsampled(values: Any) -> Any:
        full = functional.interpolate(values, scale_factor=2, mode="nearest")
        return full[..., : shape[-2], : shape[-1]].numpy()

    dequantized = (q.to(torch.float32) - quantization.zero_point) * quantization.scale
    assert np.array_equal(decode(packed), upsampled(dequantized))
    assert np.array_equal(decode(encode(x, PAPER)), upsampled(pooled))


# --- scales from the range


def test_range_ignores_what_is_not_finite() -> None:
    x = np.array([[[1, np.inf, 5, np.nan], [1, 1, 1, 1]]], np.float32)
    packed = encode(x, INT8)
    assert packed.quantization == Quantization.from_range(5, 5)
    assert bytes(packed.payload) == b"\x7f\x7f"
    everywhere_nan = encode(np.full((1, 2, 2), np.nan, np.float32), INT8)
    assert everywhere_nan.quantization == Quantization(1.0, -128)


# --- an error for every violation


X = feature_map((1, 2, 5, 6))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X.astype(np.float64), INT8), "float64"),
        ((X.astype(">f4"), SPLIT), "float32 or float16, not >f4"),
        ((X.astype(np.float64), PAPER), "float32 or float16, not float64"),
        ((X.tolist(), INT8), "list"),
        ((X[:0], INT8), "empty"),
        ((X[:0], SPLIT), "empty"),
        ((np.zeros((), np.float32), SPLIT), "0 dimensions"),
        ((X.reshape((1,) * 5 + X.shape), INT8), "9 dimensions"),
        ((X[0, 0], INT8), "needs"),
        ((X, PAPER, Quantization(1.0, 0)), "not quantized"),
        ((X, INT8, None, np.empty(17, np.uint8)), "exactly 18 bytes"),
        ((X, INT8, None, np.empty(18, np.int8)), "uint8"),
        ((X, INT8, None, np.empty(36, np.uint8)[::2]), "contiguous"),
        ((X, INT8, None, np.frombuffer(bytes(18), np.uint8)), "writable"),
        ((X, PAPER, None, np.empty(73, np.uint8)[1:]), "multiple of 4"),
        ((X, INT8, None, X.reshape(-1).view(np.uint8)[:18]), "overlap"),
    ],
)
def test_encode_refuses(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(CodecError, match=message):
        encode(*arguments)


UNIT = Quantization(1.0, 0)
PAYLOAD = bytes(18)
READ_ONLY = np.zeros_like(X)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (Packed(PAYLOAD[:-1], INT8, X.shape, UNIT), "17 bytes.*exactly 18"),
        (Packed(PAYLOAD + b"\0", INT8, X.shape, UNIT), "19 bytes.*exactly 18"),
        (Packed(b"", INT8, X.shape, UNIT), "0 bytes"),
        (Packed(PAYLOAD, INT8, X.shape, None), "quantization=None"),
        (Packed(bytes(72), PAPER, X.shape, UNIT), "quantization="),
        (Packed(PAYLOAD, INT8, X.shape, (1.0, 0)), "quantization="),  # type: ignore[arg-type]
        (Packed(PAYLOAD, INT8, (), UNIT), "0 dimensions"),
        (Packed(PAYLOAD, INT8, (1,) * 9, UNIT), "9 dimensions"),
        (Packed(PAYLOAD, INT8, (1, 0, 5, 6), UNIT), "empty"),
        (Packed(PAYLOAD, INT8, (1, -2, -5, 6), UNIT), "negative"),
        (Packed(PAYLOAD, INT8, (1, 2.0, 5, 6), UNIT), "not an integer"),  # type: ignore[arg-type]
        (Packed(PAYLOAD, INT8, (2**40, 2**40, 2**40), UNIT), "more than"),
        (Packed(PAYLOAD, INT8, (2**63, 2, 2), UNIT), "more than"),
        (Packed(np.zeros((18, 2), np.uint8)[:, 0], INT8, X.shape, UNIT), "contiguous"),
        (Packed(None, INT8, X.shape, UNIT), "buffer"),  # type: ignore[arg-type]
        (Packed(PAYLOAD, None, X.shape, UNIT), "spec"),  # type: ignore[arg-type]
        (Packed(PAYLOAD, INT8, 18, UNIT), "shape"),  # type: ignore[arg-type]
    ],
)
def test_decode_refuses_hostile_packed(packed: Packed, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        decode(packed)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.zeros_like(X[0]), "shape"),
        (np.zeros(X.shape), "float32"),
        (READ_ONLY, "writable"),
        (X.transpose(0, 1, 3, 2).copy().transpose(0, 1, 3, 2), "contiguous"),
    ],
)
def test_decode_refuses_out(out: Any, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        decode(encode(X, INT8), out=out)


def test_decode_refuses_to_overwrite_its_payload() -> None:
    x = X.copy()
    with pytest.raises(CodecError, match="overlap"):
        decode(encode(x, SPLIT), out=x)


# --- the instruction set


def imported_with(isa: str) -> subprocess.CompletedProcess[str]:
    program = "import scissionlite.transfer_layer, scissionlite._core as c; print(c.isa())"
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "SCISSIONLITE_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("isa", ["", *_core.available_isas()])
def test_isa_can_be_forced(isa: str) -> None:
    process = imported_with(isa)
    assert process.stdout.strip() == (isa or _core.available_isas()[0]), process.stderr


UNSUPPORTED = sorted(set(listed_isas()) - set(_core.available_isas()))


@pytest.mark.parametrize("isa", ["sse9", "AVX2", "scalar ", *UNSUPPORTED])
def test_isa_that_cannot_be_is_a_clear_error(isa: str) -> None:
    process = imported_with(isa)
    assert process.returncode != 0
    last = process.stderr.strip().splitlines()[-1]
    assert last.startswith(f"scissionlite.errors.IsaError: SCISSIONLITE_ISA='{isa}': ")
    assert f"usable here: {', '.join(_core.available_isas())}" in last


def test_codec_needs_no_torch() -> None:
    program = "import sys, scissionlite.transfer_layer; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
