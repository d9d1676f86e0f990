"""Tensor messages: a header frame, then one payload frame per tensor.

:func:`pack` writes the header and passes the payloads on as they are. :func:`unpack` checks
everything before it returns anything; its payloads are views of the frames received.
"""

from __future__ import annotations

from collections.abc import Sequence

import xxhash

from scissionlite.errors import (
    DigestMismatchError,
    FrameCountError,
    MessageKindError,
    TrailingBytesError,
    TruncatedMessageError,
)
from scissionlite.offloader.wire.header_bytes import (
    DIGEST,
    check_header_size,
    read_header,
    write_header,
)
from scissionlite.offloader.wire.headers import Buffer, Header, MessageKind
from scissionlite.offloader.wire.rules import check_prefix, check_tensors


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
    check_tensors(header.tensors, payloads)
    body = write_header(header)
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
    header, end = read_header(raw)
    check_prefix(header)
    if header.kind not in kinds:
        expected = " or ".join(kind.name for kind in kinds)
        raise MessageKindError(f"a {header.kind.name} where a {expected} was expected")
    if len(raw) < end + DIGEST.size:
        raise TruncatedMessageError(f"header of {len(raw)} bytes ends before its digest")
    if len(raw) > end + DIGEST.size:
        raise TrailingBytesError(f"{len(raw) - end - DIGEST.size} bytes after the digest")
    payloads = [memoryview(frame) for frame in frames[1:]]
    check_tensors(header.tensors, payloads)
    (announced,) = DIGEST.unpack_from(raw, end)
    if announced != _digest(raw[:end], payloads):
        raise DigestMismatchError("header and payload do not match their digest")
    return header, payloads


def _digest(header: Buffer, payloads: Sequence[Buffer]) -> int:
    digest = xxhash.xxh3_64(header)
    for payload in payloads:
        digest.update(payload)
    return digest.intdigest()
