"""Entropy coding: lossless compression of packed payloads. No torch here.

:func:`code` and :func:`decode` are the entropy stage of a Transfer Layer: zstd, or with tables the
compiled core's coder "ans". Bytes to decode may come from another machine and are not trusted: the
size of the result is known beforehand, and no more than that is allocated.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from scissionlite.errors import CodecError, EntropyCodeError, EntropyTablesError
from scissionlite.transfer_layer.entropy_tables import EntropyTables
from scissionlite.transfer_layer.spec import TransferSpec

if TYPE_CHECKING:
    # Imported by the functions that need it: a device without an entropy stage does not.
    import zstandard

Bytes = npt.NDArray[np.uint8]

MAX_WINDOW = 8 << 20
"""Largest window of a zstd frame, in bytes, that RFC 8878 requires of every decoder."""


class Scheme(NamedTuple):
    """A coder: ``compress(payload, level)`` and ``decompress(coded, nbytes)``."""

    compress: Callable[[Bytes, int], bytes]
    decompress: Callable[[Bytes, int], bytes]


class _Contexts(threading.local):
    """The zstd contexts of one thread. A context keeps its tables; threads must not share it."""

    def __init__(self) -> None:
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}

    @cached_property
    def decompressor(self) -> zstandard.ZstdDecompressor:
        import zstandard

        return zstandard.ZstdDecompressor()


_contexts = _Contexts()


def _zstd_compress(payload: Bytes, level: int) -> bytes:
    compressor = _contexts.compressors.get(level)
    if compressor is None:
        import zstandard

        # The frame holds the content size. It has no checksum, because the message has a digest.
        compressor = zstandard.ZstdCompressor(level=level)
        _contexts.compressors[level] = compressor
    return compressor.compress(payload.data)


def _zstd_decompress(coded: Bytes, nbytes: int) -> bytes:
    import zstandard

    try:
        frame = zstandard.get_frame_parameters(coded.data)
        if frame.content_size != nbytes:
            raise EntropyCodeError(
                f"the zstd frame does not announce exactly {nbytes} bytes of content"
            )
        if frame.window_size > max(MAX_WINDOW, nbytes):  # for a single segment they are the same
            raise EntropyCodeError(f"the zstd frame has a window of {frame.window_size} bytes")
        return _contexts.decompressor.decompress(
            coded.data, max_output_size=nbytes, read_across_frames=False, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise EntropyCodeError(f"payload is not one zstd frame: {error}") from error


SCHEMES: dict[str, Scheme] = {"zstd": Scheme(_zstd_compress, _zstd_decompress)}
"""Every coder without tables, by its name in ``TransferSpec.entropy``."""


def compress(payload: Bytes, scheme: str, level: int) -> bytes | None:
    """Compress a payload.

    Parameters
    ----------
    payload : ndarray of uint8, shape (n,)
        Packed elements.
    scheme : str
        A name in ``SCHEMES``.
    level : int
        Level of the coder: higher is slower and smaller.

    Returns
    -------
    bytes or None
        Fewer bytes than `payload` has, or None if it does not shrink.
    """
    coded = SCHEMES[scheme].compress(payload, level)
    return coded if len(coded) < payload.nbytes else None


def decompress(coded: Bytes, scheme: str, nbytes: int) -> Bytes:
    """Decompress a result of :func:`compress`, from this machine or another one.

    Parameters
    ----------
    coded : ndarray of uint8, shape (n,)
        Untrusted bytes.
    scheme : str
        A name in ``SCHEMES``.
    nbytes : int
        Exact length of the result.

    Returns
    -------
    ndarray of uint8, shape (nbytes,)
        Read-only, aligned to 4 bytes.

    Raises
    ------
    EntropyCodeError
        The bytes are not a valid code, or not the code of a payload of this length.
    """
    return np.frombuffer(SCHEMES[scheme].decompress(coded, nbytes), np.uint8)


_INTERLEAVED = 2048
"""Codes from which on "ans" has four states (docs/numerics.md, "Steps")."""


def ans_overhead(codes: int) -> int:
    """Return the mean bytes of a payload of "ans" beyond the information of its codes.

    These are the tables' id, and of each state 16 bits that carry nothing and 8 that are left over
    on average.
    """
    return 2 + 3 * (1 if codes < _INTERLEAVED else 4)


_SLACK = 64
"""Bytes that the core's coder needs beyond the result."""

_REFUSALS = {
    "truncated": "ends before its last code",
    "trailing": "goes on after its last code",
    "altered": "is altered: it does not end where it began",
}


def code(
    payload: Bytes, spec: TransferSpec, shape: tuple[int, ...], tables: EntropyTables | None
) -> Bytes | None:
    """Code a payload as its spec says.

    Parameters
    ----------
    payload : ndarray of uint8, shape (n,)
        Packed elements.
    spec : TransferSpec
        One with an entropy coder.
    shape : tuple of int
        The shape that crosses the link, (..., channels, height, width).
    tables : EntropyTables or None
        For "ans".

    Returns
    -------
    ndarray of uint8 or None
        Fewer bytes than `payload` has, or None if it does not shrink.

    Raises
    ------
    EntropyTablesError
        The tables are missing or superfluous, or do not match spec and shape.
    """
    check_tables(spec, shape, tables)
    if tables is None:
        assert spec.entropy is not None  # the caller has checked it
        coded = compress(payload, spec.entropy, spec.entropy_level)
        return None if coded is None else np.frombuffer(coded, np.uint8)
    room = np.empty(payload.nbytes + _SLACK, np.uint8)
    start = tables.coder.encode(payload, room, *_laid_out(spec, shape))
    # Nothing is written where it does not fit into the room.
    return room[start:] if 0 < room.nbytes - start < payload.nbytes else None


def decode(
    coded: Bytes,
    spec: TransferSpec,
    shape: tuple[int, ...],
    nbytes: int,
    tables: EntropyTables | None,
) -> Bytes:
    """Decode a result of :func:`code`, from this machine or another one.

    Parameters
    ----------
    coded : ndarray of uint8, shape (n,)
        Untrusted bytes.
    spec, shape, tables
        As for :func:`code`.
    nbytes : int
        Exact length of the result.

    Returns
    -------
    ndarray of uint8, shape (nbytes,)

    Raises
    ------
    CodecError
        The spec has no entropy coder.
    EntropyCodeError
        The bytes are not a valid code, or not the code of a payload of this length.
    EntropyTablesError
        As for :func:`code`; or the bytes were coded with other tables.
    """
    if spec.entropy is None:
        raise CodecError(f"the payload is entropy-coded, but {spec.label} is not")
    check_tables(spec, shape, tables)
    if tables is None:
        return decompress(coded, spec.entropy, nbytes)
    payload = np.empty(nbytes, np.uint8)
    status = tables.coder.decode(coded, payload, *_laid_out(spec, shape))
    if status == "other-tables":
        raise EntropyTablesError(
            f"the payload was coded with other tables than number {tables.id}: device and edge "
            "need the same bundle"
        )
    if status != "done":
        raise EntropyCodeError(f"the entropy code {_REFUSALS[status]}")
    return payload


def _laid_out(spec: TransferSpec, shape: tuple[int, ...]) -> tuple[int, int, bool, int]:
    """The codes of a shape as the core takes them: count, plane, channels last, width."""
    return prod(shape), prod(shape[-2:]), spec.layout == "nhwc", shape[-1] if shape else 1


def check_tables(spec: TransferSpec, shape: tuple[int, ...], tables: EntropyTables | None) -> None:
    """Check that maps of a shape can be coded with these tables.

    Raises
    ------
    EntropyTablesError
        They are missing or superfluous, or do not match spec and shape.
    """
    if (spec.entropy == "ans") != isinstance(tables, EntropyTables):
        needs = "needs tables: fit_tables makes them" if spec.entropy == "ans" else "takes none"
        raise EntropyTablesError(f"tables={tables!r}; {spec.label} {needs}")
    if tables is None:
        return
    channels = shape[-3] if len(shape) >= 3 else 1
    if tables.dtype != spec.dtype or tables.channels not in (1, channels):
        raise EntropyTablesError(
            f"the tables are for {tables.dtype} and {tables.channels} channels; {spec.label} of "
            f"shape {shape} needs {spec.dtype} and {channels}"
        )
