"""The header of a tensor message as bytes, up to its digest.

Only what is needed to read on is checked here: sizes and counts, before they are used. All other
values are checked in :mod:`.rules`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from scissionlite.errors import (
    BadMagicError,
    EncodingError,
    HeaderSizeError,
    MessageKindError,
    RankError,
    ReservedFieldError,
    TensorCountError,
    TruncatedMessageError,
    UnsupportedVersionError,
)
from scissionlite.offloader.wire.headers import (
    MAX_HEADER_BYTES,
    MAX_NDIM,
    MAX_TENSORS,
    Buffer,
    Encoding,
    Header,
    MessageKind,
    TensorHeader,
    is_device_id,
)

MAGIC = b"SLTL"
VERSION = 3

_PREFIX = struct.Struct("<4sHH16sQI16sH")
_REQUEST, _REQUEST_OFFSET = struct.Struct("<QI"), 24  # in the prefix: request id and deadline
_TENSOR = struct.Struct("<BBBB")
_SIZES = struct.Struct("<IQ")
_ENTROPY_CODED = 1  # bit 0 of the flags
_KINDS = {int(kind): kind for kind in MessageKind}
_ENCODINGS = {int(encoding): encoding for encoding in Encoding}

DIGEST = struct.Struct("<Q")
"""The digest at the end of a header frame."""

_NO_REQUEST, _NO_DIGEST = bytes(_REQUEST.size), bytes(DIGEST.size)


def write_prefix(header: Header) -> bytes:
    """Write the fields before the tensors' entries; they must keep the rules."""
    return _PREFIX.pack(
        MAGIC,
        VERSION,
        header.kind,
        header.device_id,
        header.request_id,
        header.deadline_ms,
        header.bundle_id,
        len(header.tensors),
    )


def write_entries(tensors: Sequence[TensorHeader]) -> bytes:
    """Write the tensors' entries; they must keep the rules."""
    parts = []
    for tensor in tensors:
        flags = _ENTROPY_CODED if tensor.entropy_coded else 0
        parts.append(_TENSOR.pack(tensor.encoding, tensor.pool, len(tensor.shape), flags))
        parts.append(struct.pack(f"<{len(tensor.shape)}I", *tensor.shape))
        groups = len(tensor.scales)
        parts.append(_SIZES.pack(groups, tensor.nbytes))
        parts.append(struct.pack(f"<{groups}f{groups}i", *tensor.scales, *tensor.zero_points))
    return b"".join(parts)


def header_length(tensors: Sequence[TensorHeader]) -> int:
    """Return the bytes of a header frame, its digest included."""
    entry = _TENSOR.size + _SIZES.size
    entries = (entry + 4 * len(tensor.shape) + 8 * len(tensor.scales) for tensor in tensors)
    return _PREFIX.size + sum(entries) + DIGEST.size


def read_header(raw: memoryview) -> tuple[Header, int]:
    """Read the fields of a header frame; also return the offset at which they end.

    Raises
    ------
    WireError
        If the bytes cannot be read as fields.
    """
    check_header_size(len(raw))
    if raw[: len(MAGIC)] != MAGIC[: len(raw)]:
        raise BadMagicError(f"not a tensor message: starts with {bytes(raw[:4]).hex()}")
    if len(raw) < _PREFIX.size:
        raise TruncatedMessageError(f"header of {len(raw)} bytes, at least {_PREFIX.size} needed")
    _, version, kind, device_id, request_id, deadline_ms, bundle_id, count = _PREFIX.unpack_from(
        raw
    )
    if version != VERSION:
        raise UnsupportedVersionError(f"wire format {version}, this build speaks {VERSION}")
    if kind not in _KINDS:
        raise MessageKindError(f"unknown kind of message: {kind}")
    if not 1 <= count <= MAX_TENSORS:
        raise TensorCountError(f"{count} tensors, 1 to {MAX_TENSORS} allowed")
    tensors, offset = _read_tensors(raw, _PREFIX.size, count)
    header = Header(_KINDS[kind], device_id, request_id, deadline_ms, bundle_id, tensors)
    return header, offset


def without_request(raw: memoryview) -> bytes:
    """Return a header frame with zeros in place of request id, deadline and digest.

    What is left is the same in every request of a device.
    """
    rest = raw[_REQUEST_OFFSET + _REQUEST.size : -DIGEST.size]
    return b"".join((raw[:_REQUEST_OFFSET], _NO_REQUEST, rest, _NO_DIGEST))


def read_request(raw: memoryview) -> tuple[int, int]:
    """Read request id and deadline of a header frame that is long enough for them."""
    request_id, deadline_ms = _REQUEST.unpack_from(raw, _REQUEST_OFFSET)
    return request_id, deadline_ms


def sender(header_frame: Buffer) -> tuple[bytes, int] | None:
    """Read device id and request id of a message that was rejected; None if it has none.

    Only for the answer that says so: nothing is checked but magic, version and device id.
    """
    if len(header_frame) < _PREFIX.size:
        return None
    magic, version, _, device_id, request_id, *_ = _PREFIX.unpack_from(header_frame)
    if magic != MAGIC or version != VERSION or not is_device_id(device_id):
        return None
    return device_id, request_id


def check_header_size(nbytes: int) -> None:
    """Raise HeaderSizeError if a header frame is over the cap."""
    if nbytes > MAX_HEADER_BYTES:
        raise HeaderSizeError(f"header of {nbytes} bytes, at most {MAX_HEADER_BYTES} allowed")


def _read_tensors(raw: memoryview, offset: int, count: int) -> tuple[tuple[TensorHeader, ...], int]:
    tensors = []
    for _ in range(count):
        tensor, offset = _read_tensor(raw, offset)
        tensors.append(tensor)
    return tuple(tensors), offset


def _read_tensor(raw: memoryview, offset: int) -> tuple[TensorHeader, int]:
    if len(raw) < offset + _TENSOR.size:
        raise TruncatedMessageError("header ends before a tensor's entry")
    encoding, pool, ndim, flags = _TENSOR.unpack_from(raw, offset)
    if flags & ~_ENTROPY_CODED:
        raise ReservedFieldError(f"flags are {flags:#04x}: a reserved bit is set")
    if encoding not in _ENCODINGS:
        raise EncodingError(f"unknown encoding: {encoding}")
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
        _ENCODINGS[encoding], shape, nbytes, pool, scales, zero_points, entropy_coded
    )
    return tensor, offset + 8 * groups
