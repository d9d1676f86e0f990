"""Tensor messages: how packed tensors look on the wire. docs/wire-format.md is normative.

A message is a header frame and one payload frame a tensor. :func:`pack` writes the header and
passes the payloads on as they are; :func:`unpack` checks everything before it returns anything,
and its payloads are views of the frames received. Python's integers do not overflow; every
product is still compared with its cap before it is used for a size.
"""

from __future__ import annotations

import enum
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

from scissionlite.errors import (
    BadMagicError,
    DeadlineFieldError,
    DeviceIdError,
    DigestMismatchError,
    DimensionError,
    DimensionLimitError,
    EncodingError,
    EntropyFlagError,
    FrameCountError,
    GroupCountError,
    HeaderSizeError,
    MessageKindError,
    PayloadLengthError,
    PoolError,
    QuantizationFieldError,
    RankError,
    ReservedFieldError,
    TensorCountError,
    TensorSizeError,
    TrailingBytesError,
    TruncatedMessageError,
    UnsupportedVersionError,
)
from scissionlite.graph.tensors import MAX_TENSORS as MAX_TENSORS

MAGIC = b"SLTL"
VERSION = 3

MAX_DEADLINE_MS = 3_600_000
MAX_NDIM = 8
MAX_DIM = 1 << 24
MAX_POOL = 16
MAX_TENSOR_BYTES = 1 << 28
"""Cap on all tensors of a message together, both as packed and as float32."""

_PREFIX = struct.Struct("<4sHH16sQI16sH")
_TENSOR = struct.Struct("<BBBB")
_SIZES = struct.Struct("<IQ")
_DIGEST = struct.Struct("<Q")
_ENTROPY_CODED = 1  # bit 0 of the flags

MAX_HEADER_BYTES = 1 << 20
DEVICE_ID_BYTES = 16
BUNDLE_ID_BYTES = 16

Buffer = bytes | bytearray | memoryview


class MessageKind(enum.IntEnum):
    """Which way a message travels."""

    REQUEST = 1
    RESULT = 2
    PROBE = 3


class Encoding(enum.IntEnum):
    """How a payload's bytes make a tensor."""

    FLOAT32 = 1
    INT8 = 2
    JPEG = 3
    FLOAT16 = 4
    INT4 = 5
    PNG = 6
    UINT8 = 7


_BITS = {
    Encoding.FLOAT32: 32,
    Encoding.FLOAT16: 16,
    Encoding.INT8: 8,
    Encoding.INT4: 4,
    Encoding.UINT8: 8,
}
_IMAGES = frozenset({Encoding.JPEG, Encoding.PNG, Encoding.UINT8})
_ZERO_POINTS = {Encoding.INT8: (-128, 127), Encoding.INT4: (-8, 7)}


@dataclass(frozen=True)
class TensorHeader:
    """What a header says of one tensor.

    Attributes
    ----------
    encoding : Encoding
        How the payload's bytes make the tensor.
    shape : tuple of int
        The original shape, before pooling.
    nbytes : int
        Length of the payload frame, in bytes.
    pool : int
        Side of the pooling window over the last two dimensions; 1 is none.
    scales, zero_points : tuple of float, tuple of int
        ``value = scale * (q - zero_point)`` for INT8 and INT4: one of each for the tensor, or one
        a channel; empty otherwise.
    entropy_coded : bool
        Whether the payload is one zstd frame of what the other fields say.
    """

    encoding: Encoding
    shape: tuple[int, ...]
    nbytes: int
    pool: int = 1
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    entropy_coded: bool = False


@dataclass(frozen=True)
class Header:
    """A tensor message without its payloads.

    Attributes
    ----------
    kind : MessageKind
        Request or probe (device to edge), or result (edge to device).
    device_id : bytes
        16 bytes, the first not zero: also the device's identity on the control socket.
    request_id : int
        Chosen by the device, unique among its requests.
    deadline_ms : int
        Milliseconds that were left when the message was sent; 0 in a result.
    bundle_id : bytes
        First 16 bytes of the bundle's SHA-256.
    tensors : tuple of TensorHeader
        One a payload frame.
    """

    kind: MessageKind
    device_id: bytes
    request_id: int
    deadline_ms: int
    bundle_id: bytes
    tensors: tuple[TensorHeader, ...]


def pack(header: Header, payloads: Sequence[Buffer]) -> list[Buffer]:
    """Make the frames of a message.

    Parameters
    ----------
    header
        What to write; :func:`unpack` of the frames returns an equal one (scales as float32).
    payloads
        One contiguous buffer a tensor; passed on, never copied.

    Returns
    -------
    list of bytes-like
        The header frame and the payloads.

    Raises
    ------
    WireError
        If the format does not allow it: nothing invalid is ever sent.
    """
    _check_prefix(header)
    _check_tensors(header.tensors, payloads)
    parts = [
        _PREFIX.pack(
            MAGIC,
            VERSION,
            header.kind,
            header.device_id,
            header.request_id,
            header.deadline_ms,
            header.bundle_id,
            len(header.tensors),
        )
    ]
    for tensor in header.tensors:
        flags = _ENTROPY_CODED if tensor.entropy_coded else 0
        parts.append(_TENSOR.pack(tensor.encoding, tensor.pool, len(tensor.shape), flags))
        parts.append(struct.pack(f"<{len(tensor.shape)}I", *tensor.shape))
        groups = len(tensor.scales)
        parts.append(_SIZES.pack(groups, tensor.nbytes))
        parts.append(struct.pack(f"<{groups}f{groups}i", *tensor.scales, *tensor.zero_points))
    body = b"".join(parts)
    _check_header_size(len(body) + _DIGEST.size)
    return [body + _DIGEST.pack(_digest(body, payloads)), *payloads]


def unpack(frames: Sequence[Buffer], *kinds: MessageKind) -> tuple[Header, list[memoryview]]:
    """Check a message and take it apart.

    Parameters
    ----------
    frames
        The frames received, the header first.
    kinds
        What the receiver takes: an edge requests and probes, a device results.

    Returns
    -------
    Header
        What the header says.
    list of memoryview
        The payloads: views of ``frames``, not copies.

    Raises
    ------
    WireError
        The subclass names what is wrong with the message.
    """
    if not frames:
        raise FrameCountError("a message without frames")
    raw = memoryview(frames[0])
    header, end = _read_header(raw)
    if header.kind not in kinds:
        expected = " or ".join(kind.name for kind in kinds)
        raise MessageKindError(f"a {header.kind.name} where a {expected} was expected")
    if len(raw) < end + _DIGEST.size:
        raise TruncatedMessageError(f"header of {len(raw)} bytes ends before its digest")
    if len(raw) > end + _DIGEST.size:
        raise TrailingBytesError(f"{len(raw) - end - _DIGEST.size} bytes after the digest")
    payloads = [memoryview(frame) for frame in frames[1:]]
    _check_tensors(header.tensors, payloads)
    (announced,) = _DIGEST.unpack_from(raw, end)
    if announced != _digest(raw[:end], payloads):
        raise DigestMismatchError("header and payload do not match their digest")
    return header, payloads


def sender(header_frame: Buffer) -> tuple[bytes, int] | None:
    """Device id and request id of a message that may be broken, or None if not even that.

    Only good for telling the sender that its message was rejected: nothing was checked but
    magic and version.
    """
    if len(header_frame) < _PREFIX.size:
        return None
    magic, version, _, device_id, request_id, *_ = _PREFIX.unpack_from(header_frame)
    if magic != MAGIC or version != VERSION or device_id[0] == 0:
        return None
    return device_id, request_id


def bundle_prefix(bundle_id: str) -> bytes:
    """Shorten a bundle's hexadecimal id to the 16 bytes that a header carries."""
    return bytes.fromhex(bundle_id)[:BUNDLE_ID_BYTES]


def _read_header(raw: memoryview) -> tuple[Header, int]:
    """Read the fields up to the digest; also return where they end."""
    _check_header_size(len(raw))
    if raw[: len(MAGIC)] != MAGIC[: len(raw)]:
        raise BadMagicError(f"not a tensor message: starts with {bytes(raw[:4]).hex()}")
    if len(raw) < _PREFIX.size:
        raise TruncatedMessageError(f"header of {len(raw)} bytes, at least {_PREFIX.size} needed")
    _, version, kind, device_id, request_id, deadline_ms, bundle_id, count = _PREFIX.unpack_from(
        raw
    )
    if version != VERSION:
        raise UnsupportedVersionError(f"wire format {version}, this build speaks {VERSION}")
    if kind not in set(MessageKind):
        raise MessageKindError(f"unknown kind of message: {kind}")
    if not 1 <= count <= MAX_TENSORS:
        raise TensorCountError(f"{count} tensors, 1 to {MAX_TENSORS} allowed")
    tensors = []
    offset = _PREFIX.size
    for _ in range(count):
        tensor, offset = _read_tensor(raw, offset)
        tensors.append(tensor)
    header = Header(
        MessageKind(kind), device_id, request_id, deadline_ms, bundle_id, tuple(tensors)
    )
    _check_prefix(header)
    return header, offset


def _read_tensor(raw: memoryview, offset: int) -> tuple[TensorHeader, int]:
    if len(raw) < offset + _TENSOR.size:
        raise TruncatedMessageError("header ends before a tensor's entry")
    encoding, pool, ndim, flags = _TENSOR.unpack_from(raw, offset)
    if flags & ~_ENTROPY_CODED:
        raise ReservedFieldError(f"flags are {flags:#04x}: a reserved bit is set")
    if encoding not in set(Encoding):
        raise EncodingError(f"unknown encoding: {encoding}")
    # Before ndim is used for a length; the rest of a tensor's values is in _check_tensor.
    if not 1 <= ndim <= MAX_NDIM:
        raise RankError(f"{ndim} dimensions, 1 to {MAX_NDIM} allowed")
    offset += _TENSOR.size
    if len(raw) < offset + 4 * ndim + _SIZES.size:
        raise TruncatedMessageError("header ends inside a tensor's entry")
    shape = struct.unpack_from(f"<{ndim}I", raw, offset)
    offset += 4 * ndim
    groups, nbytes = _SIZES.unpack_from(raw, offset)
    offset += _SIZES.size
    # No header is long enough for many groups, so this also bounds what is read.
    if len(raw) < offset + 8 * groups:
        raise TruncatedMessageError(f"header ends inside a tensor's {groups} scales")
    scales = struct.unpack_from(f"<{groups}f", raw, offset)
    zero_points = struct.unpack_from(f"<{groups}i", raw, offset + 4 * groups)
    entropy_coded = bool(flags & _ENTROPY_CODED)
    tensor = TensorHeader(
        Encoding(encoding), shape, nbytes, pool, scales, zero_points, entropy_coded
    )
    return tensor, offset + 8 * groups


def _check_header_size(nbytes: int) -> None:
    if nbytes > MAX_HEADER_BYTES:
        raise HeaderSizeError(f"header of {nbytes} bytes, at most {MAX_HEADER_BYTES} allowed")


def _check_prefix(header: Header) -> None:
    if len(header.device_id) != DEVICE_ID_BYTES or header.device_id[0] == 0:
        # ZeroMQ keeps identities that begin with a zero byte for itself.
        raise DeviceIdError(f"not a device id: {header.device_id.hex()}")
    if header.deadline_ms > MAX_DEADLINE_MS:
        raise DeadlineFieldError(
            f"deadline of {header.deadline_ms} ms, at most {MAX_DEADLINE_MS} allowed"
        )


def _check_tensors(tensors: Sequence[TensorHeader], payloads: Sequence[Buffer]) -> None:
    if not 1 <= len(tensors) <= MAX_TENSORS:
        raise TensorCountError(f"{len(tensors)} tensors, 1 to {MAX_TENSORS} allowed")
    if len(payloads) != len(tensors):
        raise FrameCountError(f"{len(payloads)} payload frames for {len(tensors)} tensors")
    packed = unpacked = 0
    for tensor in tensors:
        _check_tensor(tensor)
        packed += tensor.nbytes
        unpacked += 4 * math.prod(tensor.shape)
        if max(packed, unpacked) > MAX_TENSOR_BYTES:
            raise TensorSizeError(f"tensors of more than {MAX_TENSOR_BYTES} bytes")
    for tensor, payload in zip(tensors, payloads, strict=True):
        _check_length(tensor, memoryview(payload).nbytes)


def _check_tensor(tensor: TensorHeader) -> None:
    shape = tensor.shape
    if not 1 <= len(shape) <= MAX_NDIM:
        raise RankError(f"{len(shape)} dimensions, 1 to {MAX_NDIM} allowed")
    if min(shape) < 1:
        raise DimensionError(f"a dimension of shape {shape} is zero")
    if max(shape) > MAX_DIM:
        raise DimensionLimitError(f"a dimension of shape {shape} is over {MAX_DIM}")
    if not 1 <= tensor.pool <= MAX_POOL:
        raise PoolError(f"pool {tensor.pool}, 1 to {MAX_POOL} allowed")
    if tensor.pool > 1 and (tensor.encoding in _IMAGES or len(shape) < 3):
        raise PoolError(f"a {tensor.encoding.name} tensor of shape {shape} cannot be pooled")
    if tensor.encoding in _IMAGES:
        name = tensor.encoding.name
        if len(shape) != 3 or shape[2] not in (1, 3):
            raise DimensionError(
                f"an image ({name}) of shape {shape}: not height, width, 1 or 3 channels"
            )
        if tensor.entropy_coded:
            raise EntropyFlagError(f"an image ({name}) marked as entropy-coded")
    _check_quantization(tensor)


def _check_quantization(tensor: TensorHeader) -> None:
    groups = len(tensor.scales)
    allowed = {0}
    if tensor.encoding in _ZERO_POINTS:
        allowed = {1} if len(tensor.shape) < 3 else {1, tensor.shape[-3]}
    if groups not in allowed or len(tensor.zero_points) != groups:
        raise GroupCountError(
            f"{groups} scales and {len(tensor.zero_points)} zero points for a "
            f"{tensor.encoding.name} tensor of shape {tensor.shape}"
        )
    if groups == 0:
        return
    # There may be thousands: min(), max() and map() run through them without the interpreter.
    if not all(map(math.isfinite, tensor.scales)) or min(tensor.scales) <= 0:
        raise QuantizationFieldError("a scale is not finite or not above zero")
    low, high = _ZERO_POINTS[tensor.encoding]
    if min(tensor.zero_points) < low or max(tensor.zero_points) > high:
        raise QuantizationFieldError(
            f"a zero point of a {tensor.encoding.name} tensor is not within [{low}, {high}]"
        )


def _check_length(tensor: TensorHeader, length: int) -> None:
    if length != tensor.nbytes:
        raise PayloadLengthError(f"payload of {length} bytes, announced as {tensor.nbytes}")
    if tensor.encoding not in _BITS:
        if length < 1:
            raise PayloadLengthError(f"an empty {tensor.encoding.name}")
        return
    exact = payload_bytes(tensor.encoding, tensor.shape, tensor.pool)
    # What an entropy coder does not shrink is sent as it is.
    if not (1 <= length < exact if tensor.entropy_coded else length == exact):
        raise PayloadLengthError(
            f"payload of {length} bytes for a {tensor.encoding.name} tensor of shape "
            f"{tensor.shape}, pool {tensor.pool}: {exact} expected"
            + (", or rather fewer, as it is entropy-coded" if tensor.entropy_coded else "")
        )


def payload_bytes(encoding: Encoding, shape: tuple[int, ...], pool: int) -> int:
    """Exact bytes of a payload that is not compressed; partial windows are whole."""
    pooled = shape if pool == 1 else (*shape[:-2], -(-shape[-2] // pool), -(-shape[-1] // pool))
    return -(-math.prod(pooled) * _BITS[encoding] // 8)


def _digest(header: Buffer, payloads: Sequence[Buffer]) -> int:
    digest = xxhash.xxh3_64(header)
    for payload in payloads:
        digest.update(payload)
    return digest.intdigest()
