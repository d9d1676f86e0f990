"""Entropy coding: lossless compression of packed payloads. No torch here.

``SCHEMES`` names every coder. Bytes to decompress may come from another machine and are not
trusted: the size of the result is known beforehand, and no more than that is allocated.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from scissionlite.errors import CodecError

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
            raise CodecError(f"the zstd frame does not announce exactly {nbytes} bytes of content")
        if frame.window_size > max(MAX_WINDOW, nbytes):  # for a single segment they are the same
            raise CodecError(f"the zstd frame has a window of {frame.window_size} bytes")
        return _contexts.decompressor.decompress(
            coded.data, max_output_size=nbytes, read_across_frames=False, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise CodecError(f"payload is not one zstd frame: {error}") from error


SCHEMES: dict[str, Scheme] = {"zstd": Scheme(_zstd_compress, _zstd_decompress)}
"""Every coder, by its name in ``TransferSpec.entropy``."""


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
    CodecError
        The bytes are not a valid code, or not the code of a payload of this length.
    """
    return np.frombuffer(SCHEMES[scheme].decompress(coded, nbytes), np.uint8)
