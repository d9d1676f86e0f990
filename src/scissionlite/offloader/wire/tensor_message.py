"""Tensor messages: a header frame, then one payload frame per tensor.

:func:`pack` writes the header and passes the payloads on as they are. :func:`unpack` checks
everything before it returns anything; its payloads are views of the frames received.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import xxhash

from scissionlite.errors import (
    DigestMismatchError,
    FrameCountError,
    MessageKindError,
    TrailingBytesError,
    TruncatedMessageError,
    WireError,
)
from scissionlite.offloader.wire.header_bytes import (
    DIGEST,
    check_header_size,
    read_header,
    read_request,
    without_request,
    write_entries,
    write_prefix,
)
from scissionlite.offloader.wire.headers import (
    MAX_DEADLINE_MS,
    Buffer,
    Header,
    MessageKind,
    TensorHeader,
)
from scissionlite.offloader.wire.rules import (
    check_entries,
    check_length,
    check_prefix,
    check_tensors,
)

_KEPT, _KEPT_BYTES = 256, 4096
"""Headers received that are remembered, and the longest of them: a stranger's too."""

_KEPT_OWN = 64


def pack(header: Header, payloads: Sequence[Buffer]) -> list[Buffer]:
    """Make the frames of a message.

    Parameters
    ----------
    header
        The fields; :func:`unpack` of the frames returns an equal header (scales as float32).
    payloads
        One contiguous buffer per tensor; passed on, never copied.

    Returns
    -------
    list of bytes-like
        The header frame and the payloads.

    Raises
    ------
    WireError
        If the format does not allow it: nothing invalid is ever sent.
    """
    check_prefix(header)
    entries = _checked_entries(header.tensors)
    if _lengths(payloads) != [tensor.nbytes for tensor in header.tensors]:
        check_tensors(header.tensors, payloads)
    body = write_prefix(header) + entries
    check_header_size(len(body) + DIGEST.size)
    return [body + DIGEST.pack(_digest(body, payloads)), *payloads]


def unpack(frames: Sequence[Buffer], *kinds: MessageKind) -> tuple[Header, list[memoryview]]:
    """Check a message and take it apart.

    Parameters
    ----------
    frames
        The frames received, the header first.
    kinds
        The kinds that the receiver accepts: an edge requests and probes, a device results.

    Returns
    -------
    Header
        The fields of the header.
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
    payloads = [memoryview(frame) for frame in frames[1:]]
    header = _read_again(raw, payloads, kinds) or _read(raw, payloads, kinds)
    end = len(raw) - DIGEST.size
    (announced,) = DIGEST.unpack_from(raw, end)
    if announced != _digest(raw[:end], payloads):
        raise DigestMismatchError("header and payload do not match their digest")
    return header, payloads


def _read(raw: memoryview, payloads: Sequence[memoryview], kinds: Sequence[MessageKind]) -> Header:
    """Read a header frame, and check all but its digest."""
    header, end = read_header(raw)
    check_prefix(header)
    if header.kind not in kinds:
        expected = " or ".join(kind.name for kind in kinds)
        raise MessageKindError(f"a {header.kind.name} where a {expected} was expected")
    if len(raw) < end + DIGEST.size:
        raise TruncatedMessageError(f"header of {len(raw)} bytes ends before its digest")
    if len(raw) > end + DIGEST.size:
        raise TrailingBytesError(f"{len(raw) - end - DIGEST.size} bytes after the digest")
    check_tensors(header.tensors, payloads)
    return header


def _read_again(
    raw: memoryview, payloads: Sequence[memoryview], kinds: Sequence[MessageKind]
) -> Header | None:
    """As :func:`_read`, with what is known of the last headers; None if it must find out more."""
    if len(raw) > _KEPT_BYTES or (known := _known_header(without_request(raw))) is None:
        return None
    request_id, deadline_ms = read_request(raw)
    if (
        deadline_ms > MAX_DEADLINE_MS
        or known.kind not in kinds
        or _lengths(payloads) != [tensor.nbytes for tensor in known.tensors]
    ):
        return None
    return Header(
        known.kind, known.device_id, request_id, deadline_ms, known.bundle_id, known.tensors
    )


@lru_cache(maxsize=_KEPT)
def _known_header(frame: bytes) -> Header | None:
    """Read a header frame as :func:`_read` does, but for its payloads; None if it is wrong."""
    try:
        header, end = read_header(memoryview(frame))
        check_prefix(header)
        _check_alone(header.tensors)
    except WireError:
        return None
    return header if len(frame) == end + DIGEST.size else None


@lru_cache(maxsize=_KEPT_OWN)
def _checked_entries(tensors: tuple[TensorHeader, ...]) -> bytes:
    """Check the tensors' entries, and write them."""
    _check_alone(tensors)
    return write_entries(tensors)


def _check_alone(tensors: tuple[TensorHeader, ...]) -> None:
    """Check the tensors' entries for payloads of the lengths that they say."""
    check_entries(tensors)
    for tensor in tensors:
        check_length(tensor)


def _lengths(payloads: Sequence[Buffer]) -> list[int]:
    return [memoryview(payload).nbytes for payload in payloads]


def _digest(header: Buffer, payloads: Sequence[Buffer]) -> int:
    digest = xxhash.xxh3_64(header)
    for payload in payloads:
        digest.update(payload)
    return digest.intdigest()
