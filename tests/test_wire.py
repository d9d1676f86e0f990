"""The wire format: reading restores the message, and each violation has its own error."""

from __future__ import annotations

import contextlib
import math
import struct

import msgspec
import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from specs import SEEDS, SHAPES, feature_map, quantization_for, specs

from scissionlite import errors
from scissionlite.offloader import wire
from scissionlite.offloader.wire import Encoding, Header, MessageKind, TensorHeader, control
from scissionlite.offloader.wire.endpoints import check_endpoint, control_endpoint
from scissionlite.offloader.wire.probe import check_probe, probe_header
from scissionlite.transfer_layer import Packed, TransferSpec, decode, encode

DEVICE = bytes(range(1, 17))
INT8 = TensorHeader(Encoding.INT8, (1, 2, 5, 7), 2 * 3 * 4, 2, (0.25,), (-3,))
INT4 = TensorHeader(Encoding.INT4, (1, 3, 5, 7), 6, 4, (0.25, 1.5, 2.0), (-8, 0, 7))
FLOAT16 = TensorHeader(Encoding.FLOAT16, (1, 2, 5, 7), 2 * 2 * 3 * 4, 2)
MANY = (2**17, 1, 1)  # more channels than a header has room for
CODED = replace(INT8, nbytes=23, entropy_coded=True)
FLOAT32 = TensorHeader(Encoding.FLOAT32, (3, 2), 24)
JPEG = TensorHeader(Encoding.JPEG, (4, 4, 3), 9)
PNG = TensorHeader(Encoding.PNG, (4, 5, 1), 33)
UINT8 = TensorHeader(Encoding.UINT8, (4, 5, 3), 60)


def request(*tensors: TensorHeader) -> Header:
    return Header(MessageKind.REQUEST, DEVICE, 2**64 - 1, 1500, bytes(16), tensors or (INT8,))


def payloads(header: Header) -> list[bytes]:
    return [bytes(i % 251 for i in range(tensor.nbytes)) for tensor in header.tensors]


def packed(*tensors: TensorHeader) -> list[bytes]:
    header = request(*tensors)
    return [bytes(frame) for frame in wire.pack(header, payloads(header))]


def sealed(body: bytes, frames: list[bytes]) -> list[bytes]:
    """Give frames their right digest, so that only another field can be wrong."""
    digest = xxhash.xxh3_64(body + b"".join(frames)).intdigest()
    return [body + struct.pack("<Q", digest), *frames]


def altered(offset: int, form: str, value: object, tensor: TensorHeader = INT8) -> list[bytes]:
    """Make a message that is valid except for one field of its header."""
    header, *frames = packed(tensor)
    body = bytearray(header[:-8])
    struct.pack_into(form, body, offset, value)
    return sealed(bytes(body), frames)


# Where the fields of a header with one tensor of four dimensions are (docs/wire-format.md).
KIND, DEVICE_ID, DEADLINE, COUNT = 6, 8, 32, 52
ENCODING, POOL, NDIM, FLAGS, DIMS = 54, 55, 56, 57, 58
GROUPS, NBYTES, SCALE, ZERO_POINT = DIMS + 16, DIMS + 20, DIMS + 28, DIMS + 32


@pytest.mark.parametrize(
    "tensors",
    [
        (INT8,),
        (INT4,),
        (FLOAT16,),
        (CODED,),
        (FLOAT32,),
        (JPEG,),
        (PNG, UINT8),
        (INT8, FLOAT32, JPEG, INT4, CODED),
        (FLOAT32,) * wire.MAX_TENSORS,
    ],
    ids=["int8", "int4", "float16", "coded", "float32", "jpeg", "images", "five", "most"],
)
def test_what_is_packed_is_unpacked(tensors: tuple[TensorHeader, ...]) -> None:
    header = request(*tensors)
    sent = payloads(header)
    read, views = wire.unpack(wire.pack(header, sent), MessageKind.REQUEST)
    assert read == header
    assert [bytes(view) for view in views] == sent


def test_the_bytes_are_those_of_the_format_page() -> None:
    header, payload = packed(replace(INT4, nbytes=5, entropy_coded=True))
    expected = struct.pack(
        "<4sHH16sQI16sH BBBB4I IQ 3f3i",
        *(b"SLTL", 3, 1, DEVICE, 2**64 - 1, 1500, bytes(16), 1),
        *(5, 4, 4, 1, 1, 3, 5, 7),
        *(3, 5),
        *(0.25, 1.5, 2.0, -8, 0, 7),
    )
    assert header == expected + struct.pack("<Q", xxhash.xxh3_64_intdigest(expected + payload))


@given(spec=specs(), shape=SHAPES, seed=SEEDS)
def test_any_transfer_layer_crosses(spec: TransferSpec, shape: tuple[int, ...], seed: int) -> None:
    features = feature_map(shape, seed)
    packed_map = encode(features, spec, quantization_for(spec, shape[1]))
    payload = np.frombuffer(packed_map.payload, np.uint8)
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    if packed_map.quantization is not None:
        scales, zero_points = packed_map.quantization.groups
    tensor = TensorHeader(
        Encoding[spec.dtype.upper()],
        shape,
        payload.nbytes,
        spec.pool,
        scales,
        zero_points,
        packed_map.entropy_coded,
    )
    frames = [bytes(frame) for frame in wire.pack(request(tensor), [payload.data])]
    header, (view,) = wire.unpack(frames, MessageKind.REQUEST)
    (read,) = header.tensors
    assert read == tensor
    received = Packed(view, spec, read.shape, packed_map.quantization, read.entropy_coded)
    assert decode(received).tobytes() == decode(packed_map).tobytes()


def test_a_probe_is_taken_only_by_who_takes_probes() -> None:
    header = probe_header(DEVICE, 7, 100)
    frames = wire.pack(header, [bytes(100)])
    read, (payload,) = wire.unpack(frames, MessageKind.REQUEST, MessageKind.PROBE)
    assert (read, payload.nbytes, check_probe(read)) == (header, 100, 100)
    for kind in (MessageKind.REQUEST, MessageKind.RESULT):
        with pytest.raises(errors.MessageKindError, match=f"a PROBE where a {kind.name} was"):
            wire.unpack(frames, kind)
    with pytest.raises(errors.MessageKindError, match="a RESULT where a REQUEST or PROBE was"):
        wire.unpack(altered(KIND, "<H", 2), MessageKind.REQUEST, MessageKind.PROBE)
    with pytest.raises(errors.ProbeSizeError):
        check_probe(probe_header(DEVICE, 7, control.MAX_PROBE_BYTES + 1))
    with pytest.raises(errors.TensorMismatchError):
        check_probe(request())


def test_payloads_are_not_copied() -> None:
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    frames = wire.pack(request(FLOAT32), [array.data])
    _, views = wire.unpack(frames, MessageKind.REQUEST)
    assert np.shares_memory(np.frombuffer(views[0], np.float32), array)


@pytest.mark.parametrize(
    ("error", "frames"),
    [
        (errors.FrameCountError, []),
        (errors.FrameCountError, packed()[:1]),
        (errors.FrameCountError, [*packed(), b""]),
        (errors.TruncatedMessageError, [b""]),
        (errors.TruncatedMessageError, [packed()[0][:53]]),
        (errors.TruncatedMessageError, [packed()[0][:56], b""]),
        (errors.TruncatedMessageError, [packed()[0][:80], b""]),
        (errors.TruncatedMessageError, [packed()[0][:90], b""]),
        (errors.TruncatedMessageError, altered(GROUPS, "<I", 3)),
        (errors.TruncatedMessageError, altered(GROUPS, "<I", 2**32 - 1)),
        (errors.TruncatedMessageError, [packed()[0][:-1], b""]),
        (errors.TruncatedMessageError, altered(NDIM, "<B", 8)),
        (errors.TrailingBytesError, [packed()[0] + b"\0", packed()[1]]),
        (errors.TrailingBytesError, altered(GROUPS, "<I", 0)),
        (errors.HeaderSizeError, [bytes(wire.MAX_HEADER_BYTES + 1)]),
        (errors.BadMagicError, altered(0, "<4s", b"SLTM")),
        (errors.BadMagicError, [b"GET / HTTP/1.1\r\n"]),
        (errors.UnsupportedVersionError, altered(4, "<H", 1)),
        (errors.MessageKindError, altered(KIND, "<H", 0)),
        (errors.MessageKindError, altered(KIND, "<H", 2)),
        (errors.MessageKindError, altered(KIND, "<H", 0x8001)),
        (errors.DeviceIdError, altered(DEVICE_ID, "<B", 0)),
        (errors.DeadlineFieldError, altered(DEADLINE, "<I", wire.MAX_DEADLINE_MS + 1)),
        (errors.TensorCountError, altered(COUNT, "<H", 0)),
        (errors.TensorCountError, altered(COUNT, "<H", wire.MAX_TENSORS + 1)),
        (errors.EncodingError, altered(ENCODING, "<B", 0)),
        (errors.EncodingError, altered(ENCODING, "<B", 8)),
        (errors.PoolError, altered(POOL, "<B", 0)),
        (errors.PoolError, altered(POOL, "<B", wire.MAX_POOL + 1)),
        (errors.PoolError, altered(POOL, "<B", 2, JPEG)),
        (errors.PoolError, altered(POOL, "<B", 2, UINT8)),
        (errors.DimensionError, altered(DIMS + 8, "<I", 4, PNG)),
        (errors.PayloadLengthError, altered(DIMS + 8, "<I", 1, UINT8)),
        (errors.PoolError, altered(POOL, "<B", 2, FLOAT32)),
        (errors.RankError, altered(NDIM, "<B", 0)),
        (errors.RankError, altered(NDIM, "<B", wire.MAX_NDIM + 1)),
        (errors.ReservedFieldError, altered(FLAGS, "<B", 2)),
        (errors.ReservedFieldError, altered(FLAGS, "<B", 0x81)),
        (errors.EntropyFlagError, altered(FLAGS, "<B", 1, JPEG)),
        (errors.DimensionError, altered(DIMS, "<I", 0)),
        (errors.DimensionError, altered(DIMS + 8, "<I", 2, JPEG)),
        (errors.DimensionLimitError, altered(DIMS, "<I", wire.MAX_DIM + 1)),
        (errors.DimensionLimitError, altered(DIMS, "<I", 2**32 - 1)),
        (errors.QuantizationFieldError, altered(SCALE, "<f", 0.0)),
        (errors.QuantizationFieldError, altered(SCALE, "<f", -1.0)),
        (errors.QuantizationFieldError, altered(SCALE, "<f", math.inf)),
        (errors.QuantizationFieldError, altered(SCALE, "<f", math.nan)),
        (errors.QuantizationFieldError, altered(ZERO_POINT, "<i", 128)),
        (errors.QuantizationFieldError, altered(ZERO_POINT, "<i", -129)),
        (errors.QuantizationFieldError, altered(SCALE + 8, "<f", -math.inf, INT4)),
        (errors.QuantizationFieldError, altered(SCALE + 4, "<f", math.nan, INT4)),
        (errors.QuantizationFieldError, altered(SCALE + 12, "<i", -9, INT4)),
        (errors.QuantizationFieldError, altered(SCALE + 20, "<i", 8, INT4)),
        (errors.GroupCountError, altered(ENCODING, "<B", Encoding.FLOAT32)),
        (errors.GroupCountError, altered(ENCODING, "<B", Encoding.INT8, FLOAT16)),
        (errors.GroupCountError, altered(DIMS + 4, "<I", 2, INT4)),
        (errors.PayloadLengthError, altered(FLAGS, "<B", 1)),
        (errors.PayloadLengthError, altered(FLAGS, "<B", 0, CODED)),
        (errors.PayloadLengthError, altered(NBYTES, "<Q", 23)),
        (errors.TensorSizeError, altered(NBYTES, "<Q", 2**64 - 1)),
        (errors.PayloadLengthError, altered(DIMS, "<I", 2)),
        (errors.PayloadLengthError, sealed(packed()[0][:-8], [packed()[1][:-1]])),
        (errors.PayloadLengthError, sealed(packed()[0][:-8], [packed()[1] + b"\0"])),
        (errors.PayloadLengthError, sealed(altered(NBYTES - 4, "<Q", 0, JPEG)[0][:-8], [b""])),
        (errors.TensorSizeError, altered(NBYTES - 4, "<Q", 2**63, JPEG)),
        (errors.DigestMismatchError, [packed()[0], bytes(24)]),
        (errors.PayloadLengthError, sealed(altered(NBYTES, "<Q", 0, CODED)[0][:-8], [b""])),
        (errors.DigestMismatchError, [packed()[0][:-1] + b"\xff", packed()[1]]),
    ],
)
def test_each_violation_has_its_own_error(
    error: type[errors.WireError], frames: list[bytes]
) -> None:
    with pytest.raises(errors.WireError) as caught:
        wire.unpack(frames, MessageKind.REQUEST)
    assert type(caught.value) is error


def test_sizes_that_would_overflow_are_over_the_cap() -> None:
    # 2**24 to the power of 8 wraps around to 0 in 64 bits.
    dims = (wire.MAX_DIM,) * 8
    tensor = struct.pack("<BBBB8IIQ", 1, 1, 8, 0, *dims, 0, 0)
    body = packed()[0][:54] + tensor
    with pytest.raises(errors.TensorSizeError):
        wire.unpack(sealed(body, [b""]), MessageKind.REQUEST)
    big = TensorHeader(Encoding.FLOAT32, (2**13, 2**13), 2**28)
    small = TensorHeader(Encoding.INT8, (2**13, 2**13, 2), 2**27, 1, (1.0,), (0,))
    with pytest.raises(errors.TensorSizeError):
        wire.unpack(  # each tensor is below the cap, both together are not
            sealed(
                packed()[0][:52]
                + struct.pack("<H", 2)
                + struct.pack("<BBBB2IIQ", 1, 1, 2, 0, *big.shape, 0, big.nbytes)
                + struct.pack("<BBBB3IIQfi", 2, 1, 3, 0, *small.shape, 1, small.nbytes, 1.0, 0),
                [b"", b""],
            ),
            MessageKind.REQUEST,
        )


@pytest.mark.parametrize(
    ("error", "header"),
    [
        (errors.DeviceIdError, replace(request(), device_id=b"short")),
        (errors.DeviceIdError, replace(request(), device_id=bytes(16))),
        (errors.DeadlineFieldError, replace(request(), deadline_ms=2**32)),
        (errors.TensorCountError, replace(request(), tensors=())),
        (errors.RankError, request(replace(FLOAT32, shape=()))),
        (errors.PayloadLengthError, request(replace(FLOAT32, shape=(3, 3)))),
        (errors.PoolError, request(replace(INT8, pool=300))),
        (errors.GroupCountError, request(replace(INT8, scales=()))),
        (errors.GroupCountError, request(replace(INT8, zero_points=(0, 0)))),
        (errors.GroupCountError, request(replace(FLOAT32, scales=(1.0,), zero_points=(0,)))),
        (errors.EntropyFlagError, request(replace(JPEG, entropy_coded=True))),
        (
            errors.HeaderSizeError,
            request(
                TensorHeader(Encoding.INT8, (2**17, 1, 1), 2**17, 1, (1.0,) * 2**17, (0,) * 2**17)
            ),
        ),
    ],
)
def test_nothing_invalid_is_packed(error: type[errors.WireError], header: Header) -> None:
    with pytest.raises(error):
        wire.pack(header, payloads(header))


def test_the_sender_of_a_broken_message_is_known_if_its_header_begins_well() -> None:
    header = packed()[0]
    assert wire.sender(header) == (DEVICE, 2**64 - 1)
    assert wire.sender(header[:54]) == (DEVICE, 2**64 - 1)
    assert wire.sender(header[:53]) is None
    assert wire.sender(b"HTTP" + header[4:]) is None
    assert wire.sender(header[:4] + b"\1" + header[5:]) is None
    assert wire.sender(header[:8] + bytes(16) + header[24:]) is None


@given(st.lists(st.binary(max_size=400), max_size=4))
def test_random_frames_are_wire_errors(frames: list[bytes]) -> None:
    with pytest.raises(errors.WireError):
        wire.unpack(frames, MessageKind.REQUEST)


@given(st.binary(max_size=300), st.lists(st.binary(max_size=40), max_size=3))
def test_random_headers_after_a_good_beginning_are_wire_errors(
    rest: bytes, frames: list[bytes]
) -> None:
    body = packed()[0][:54] + rest
    try:
        header, _ = wire.unpack(sealed(body, frames), MessageKind.REQUEST)
    except errors.WireError:
        return
    assert len(header.tensors) == len(frames)


@given(st.integers(min_value=0), st.sampled_from([(INT8,), (FLOAT32, JPEG), (INT4, CODED)]))
def test_a_flipped_bit_is_a_wire_error(position: int, tensors: tuple[TensorHeader, ...]) -> None:
    frames = [bytearray(frame) for frame in packed(*tensors)]
    position %= 8 * sum(map(len, frames))
    for frame in frames:
        if position < 8 * len(frame):
            frame[position // 8] ^= 1 << position % 8
            break
        position -= 8 * len(frame)
    with pytest.raises(errors.WireError):
        wire.unpack(frames, MessageKind.REQUEST)


TO_EDGE: list[control.ToEdge] = [
    control.Hello(2, "ab" * 32, "camera 3", {"machine": "aarch64"}),
    control.Ping(7),
    control.Goodbye(),
    control.Stats(),
    control.ClientHello("camera 3"),
    control.ProbeDownload(8, control.MAX_PROBE_BYTES),
    control.ProfileRequest(9, "torchvision:resnet50", 224, None, "onnx", 4, 20, 4),
]
TO_DEVICE: list[control.ToDevice] = [
    control.Welcome(2**63, 8, "edge", 1.0),
    control.Refused("bundle-mismatch", "another"),
    control.Pong(7),
    control.Result(2**64 - 1, 0.1, 0.2, 0.3),
    control.Failed(3, "busy", "later"),
    control.Goodbye(),
    control.StatsReply(1, 2, 3, 4, {"BadMagicError": 1}, 2, 0.5),
    control.ClientWelcome("edge"),
    control.ProbeReply(8, 0),
    control.ProfileReply(9, control.MAX_PROFILE_BYTES),
]


def test_control_messages_are_read_as_they_were_sent() -> None:
    for to_edge in TO_EDGE:
        assert control.decode_at_edge(control.encode(to_edge)) == to_edge
    for to_device in TO_DEVICE:
        assert control.decode_at_device(memoryview(control.encode(to_device))) == to_device


def pack(**fields: object) -> bytes:
    return msgspec.msgpack.encode(fields)


PROFILE = msgspec.to_builtins(TO_EDGE[-1])


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"\x80",
        b"\x91" * 5000,
        control.encode(control.Ping(1)) + b"\0",
        pack(type="ping"),
        pack(type="ping", sequence="1"),
        pack(type="ping", sequence=1.0),
        pack(type="ping", sequence=-1),
        pack(type="ping", sequence=1, more=1),
        pack(type="shutdown"),
        pack(type="pong", sequence=1),
        pack(type="hello", protocol=1, bundle="AB" * 32, name="n", runtime={}),
        pack(type="hello", protocol=1, bundle="ab" * 32, name="n" * 257, runtime={}),
        pack(type="hello", protocol=1, bundle="ab" * 32, name="n", runtime={"a": 1}),
        pack(type="visit", name="n" * 257),
        pack(type="probe-download", request=1, nbytes=control.MAX_PROBE_BYTES + 1),
        *(
            pack(**{**PROFILE, field: value})
            for field, value in (
                ("model", ""),
                ("model", "a b"),
                ("model", "a\0b"),
                ("model", "a\n"),
                ("model", "a" * 257),
                ("size", 7),
                ("size", 4097),
                ("num_classes", 1),
                ("runtime", "shell"),
                ("threads", 0),
                ("repetitions", 0),
                ("repetitions", 1001),
                ("max_tensors", 17),
            )
        ),
        b"\x82\xa4type\xa4ping\xa8sequence\xa2\xff\xfe",
        b"\x82\xa4type\xa5hello\xa4name\xa2\xff\xfe",
    ],
)
def test_what_is_no_control_message_is_one_error(frame: bytes) -> None:
    with pytest.raises(errors.ControlMessageError):
        control.decode_at_edge(frame)


def test_control_messages_out_of_range_are_refused_by_the_device() -> None:
    for frame in (
        pack(type="welcome", session=1, credit=0, name="e", heartbeat=1.0),
        pack(type="welcome", session=1, credit=control.MAX_CREDIT + 1, name="e", heartbeat=1.0),
        pack(type="welcome", session=1, credit=8, name="e", heartbeat=0.0),
        pack(type="welcome", session=1, credit=8, name="e", heartbeat=math.nan),
        pack(type="result", request=1, queue=math.nan, decode=0.0, run=0.0),
        pack(type="failed", request=1, code="whatever", message=""),
        pack(type="probe-reply", request=1, nbytes=control.MAX_PROBE_BYTES + 1),
        pack(type="profile-reply", request=1, nbytes=control.MAX_PROFILE_BYTES + 1),
        pack(type="profile-reply", request=1, nbytes=0),
    ):
        with pytest.raises(errors.ControlMessageError):
            control.decode_at_device(frame)


def test_frames_follow_results_and_the_answers_to_clients_only() -> None:
    further = [memoryview(b"tensor"), memoryview(b"message")]
    for message in TO_DEVICE:
        frames = [memoryview(control.encode(message)), *further]
        assert control.decode_frames(frames[:1]) == (message, [])
        if isinstance(message, control.Result | control.ProbeReply | control.ProfileReply):
            assert control.decode_frames(frames) == (message, further)
        else:
            with pytest.raises(errors.ControlMessageError, match="with 2 further frames"):
                control.decode_frames(frames)


def test_control_messages_have_a_cap() -> None:
    with pytest.raises(errors.ControlSizeError):
        control.decode_at_edge(bytes(control.MAX_CONTROL_BYTES + 1))
    with pytest.raises(errors.ControlSizeError):
        control.decode_at_device(bytes(control.MAX_CONTROL_BYTES + 1))


@given(st.binary(max_size=200))
def test_random_control_frames_are_wire_errors(frame: bytes) -> None:
    with pytest.raises(errors.WireError):
        control.decode_at_edge(frame)


@given(st.sampled_from(TO_EDGE), st.integers(min_value=0))
def test_control_frames_with_a_flipped_bit_never_raise_anything_else(
    message: control.ToEdge, position: int
) -> None:
    frame = bytearray(control.encode(message))
    position %= 8 * len(frame)
    frame[position // 8] ^= 1 << position % 8
    with contextlib.suppress(errors.WireError):
        control.decode_at_edge(bytes(frame))


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ("tcp://edge:5555", "tcp://edge:5556"),
        ("tcp://*:5555", "tcp://*:5556"),
        ("tcp://[::1]:80", "tcp://[::1]:81"),
        ("tcp://127.0.0.1:*", "tcp://127.0.0.1:*"),
        ("tcp://127.0.0.1:0", "tcp://127.0.0.1:*"),
        ("ipc:///run/edge", "ipc:///run/edge.control"),
    ],
)
def test_the_control_endpoint_is_the_next_one(tensors: str, expected: str) -> None:
    assert control_endpoint(tensors) == expected


@pytest.mark.parametrize("tensors", ["edge:5555", "tcp://edge", "tcp://edge:65535", "ipc://", ""])
def test_what_is_no_endpoint_is_a_value_error(tensors: str) -> None:
    with pytest.raises(ValueError, match="not an endpoint"):
        control_endpoint(tensors)


@pytest.mark.parametrize("endpoint", ["edge:5555", "tcp://edge:0", "tcp://edge:65536", "tcp://e:*"])
def test_what_cannot_be_connected_to_is_a_value_error(endpoint: str) -> None:
    with pytest.raises(ValueError, match="not an endpoint"):
        check_endpoint(endpoint)
