"""Times packing at a slicing point: the Transfer Layers and image formats to plan with."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec import structs

from scissionlite.images import ImageFormat, image_decode, image_encode
from scissionlite.scissiontl.profile import ImageProfile, TransferProfile
from scissionlite.scissiontl.turns import Samples, pause
from scissionlite.transfer_layer import (
    EntropyTables,
    Packed,
    Quantization,
    TransferSpec,
    decode,
    encode,
    fit_tables,
)
from scissionlite.transfer_layer.spec import CODE_RANGES

ENTROPY = (None, "zstd", "ans")
"""The entropy stages; floats have no "ans"."""

LEVELS = 32
"""Levels of an int8 codec with an entropy stage: finer than int4, and fewer bytes than with all 256
codes."""

CODECS = (
    *(
        TransferSpec(pool=pool, dtype=dtype, entropy=entropy)
        for pool, dtype, entropy in itertools.product(
            (1, 2, 4), ("float32", "float16", "int8", "int4"), ENTROPY
        )
        if entropy != "ans" or dtype in CODE_RANGES
    ),
    *(
        TransferSpec(pool=pool, entropy=entropy, levels=LEVELS)
        for pool, entropy in itertools.product((1, 2, 4), ENTROPY[1:])
    ),
)
"""The Transfer Layers to plan with: pooling x dtype x entropy stage, and int8 with fewer levels.
Scission's float32 split and the paper's TL are among them. The other fields of a TransferSpec
(average pooling, scales per channel, ...) change accuracy, but hardly time or bytes."""

REFERENCE = TransferSpec()
"""The codec that is timed behind a device slice and before an edge slice, too. Computing a slice
drives code and data of the codec out of the caches, which costs all codecs about the same."""

LEARNED = (
    TransferSpec(pool_kind="learned", pool=2, reduction=2),
    TransferSpec(pool_kind="learned", pool=2, reduction=4),
)
"""The learned Transfer Layers to plan with: 32 and 64 times fewer bytes than float32. They have no
entropy stage: the bytes that it saves depend on the trained weights, and their times do not."""

SHARE = 0.0025
"""Seconds of a round that one codec may take: a slower one takes its turn in fewer rounds."""

RAREST = 4
"""A codec takes its turn at least in every fourth round."""

Maps = Sequence[npt.NDArray[np.float32]]
"""One tensor that crosses, for several inputs."""


class Cost(NamedTuple):
    """Cost of packing: median seconds to encode and to decode, and mean bytes."""

    encode: float
    decode: float
    nbytes: float


class Packing:
    """One tensor that crosses, packed by the codec of a Transfer Layer.

    Parameters
    ----------
    spec
        The Transfer Layer.
    maps
        The tensor, for several inputs. The turns go round them; bytes are the mean over all.
    quantization
        Scale and zero point, of an integer codec; by default those of the maps' whole range.
    """

    def __init__(
        self, spec: TransferSpec, maps: Maps, quantization: Quantization | None = None
    ) -> None:
        self._spec = spec
        self._maps = maps
        self._quantization = quantization
        # In a deployed bundle the scale is calibrated beforehand: it is not timed.
        if spec.quantized and quantization is None:
            low, high = min(float(m.min()) for m in maps), max(float(m.max()) for m in maps)
            self._quantization = Quantization.from_range(
                low, high, spec.dtype, spec.scheme, spec.levels
            )
        self._tables = _tables(spec, maps, self._quantization)
        sizes = [self._encode(0).nbytes]
        if spec.entropy is not None:
            sizes += [self._encode(i).nbytes for i in range(1, len(maps))]
        self.nbytes = sum(sizes) / len(sizes)
        self.forget()

    def forget(self) -> None:
        """Forget all samples."""
        self._encoding, self._decoding = Samples(), Samples()

    def turn(self, number: int) -> None:
        """Time encoding and decoding."""
        self.decode(self.encode(number))

    def encode(self, number: int) -> Packed:
        """Time encoding."""
        return self._encoding.time(partial(self._encode, number % len(self._maps)))

    def decode(self, packed: Packed) -> None:
        """Time decoding as the edge does: into a new array in NCHW."""
        self._decoding.time(partial(decode, packed, layout="nchw"))

    @property
    def profile(self) -> Cost:
        """The medians."""
        return Cost(self._encoding.median, self._decoding.median, self.nbytes)

    def _encode(self, which: int) -> Packed:
        tables = self._tables[which]
        return encode(self._maps[which], self._spec, self._quantization, tables=tables)


class Codec:
    """The codec of a Transfer Layer after a block, with all tensors that cross there.

    Parameters
    ----------
    block
        Index of the block.
    spec
        The Transfer Layer; it is adapted to each tensor.
    crossing
        Each tensor that crosses, for several inputs.
    """

    def __init__(self, block: int, spec: TransferSpec, crossing: Sequence[Maps]) -> None:
        self._block = block
        self._spec = spec
        self._parts = [Packing(spec.adapted_to(maps[0].shape), maps) for maps in crossing]
        self.forget()

    def forget(self) -> None:
        """Forget all samples."""
        self._turns = 0
        self._rests = 0  # rounds until its next turn
        for part in self._parts:
            part.forget()

    def turn(self, number: int) -> None:
        """Time every tensor; one that takes long rests for some rounds after that."""
        if self._rests:
            self._rests -= 1
            return
        started = time.perf_counter()
        for part in self._parts:
            part.turn(self._turns)
        self._turns += 1
        seconds = time.perf_counter() - started
        self._rests = min(max(round(seconds / SHARE), 1), RAREST) - 1

    @property
    def profile(self) -> TransferProfile:
        """The sums over all tensors."""
        sums = (sum(figures) for figures in zip(*(p.profile for p in self._parts), strict=True))
        encoding, decoding, nbytes = sums
        return TransferProfile(self._block, self._spec, encoding, decoding, round(nbytes))


def codecs_after(block: int, crossing: Sequence[Maps]) -> list[Codec]:
    """The codecs that are valid after a block; parameters as :class:`Codec`."""
    shapes = [maps[0].shape for maps in crossing]
    return [
        Codec(block, spec, crossing)
        for spec in CODECS
        if any(spec.valid_for(shape) for shape in shapes)
    ]


def _tables(
    spec: TransferSpec, maps: Maps, quantization: Quantization | None
) -> Sequence[EntropyTables | None]:
    """Entropy tables for each map, made from others; where there is one map only, from itself.

    Those of a bundle are made from more inputs, and send some percent fewer bytes.
    """
    if spec.entropy != "ans":
        return [None] * len(maps)
    plain = structs.replace(spec, entropy=None)
    packed = [encode(each, plain, quantization) for each in maps]
    if len(maps) == 1:
        return [fit_tables(packed)]
    halves = [fit_tables(packed[1::2]), fit_tables(packed[::2])]
    return [halves[i % 2] for i in range(len(maps))]


class ImageFormatTurns:
    """The network's input sent as an image of one format.

    Parameters
    ----------
    frames
        The turns go round them.
    image_format, quality
        The format; JPEG has a quality.
    source
        Where the frames come from, for the profile.
    """

    def __init__(
        self,
        frames: Sequence[npt.NDArray[np.uint8]],
        image_format: ImageFormat,
        quality: int | None,
        source: str,
    ) -> None:
        self._frames = frames
        self._format = image_format
        self._quality = quality
        self._source = source
        self._nbytes = round(sum(len(self._encode(f)) for f in frames) / len(frames))
        self.forget()

    def forget(self) -> None:
        """Forget all samples."""
        self._encoding, self._decoding = Samples(), Samples()

    def turn(self, number: int) -> None:
        """Time encoding and decoding, each after a pause."""
        frame = self._frames[number % len(self._frames)]
        pause()
        sent = self._encoding.time(partial(self._encode, frame))
        pause()
        self._decoding.time(partial(image_decode, sent, self._format, frame.shape))

    @property
    def profile(self) -> ImageProfile:
        """The medians."""
        return ImageProfile(
            format=self._format,
            quality=self._quality,
            encode=self._encoding.median,
            decode=self._decoding.median,
            nbytes=self._nbytes,
            source=self._source,
        )

    def _encode(self, frame: npt.NDArray[np.uint8]) -> bytes:
        return image_encode(frame, self._format, self._quality)


def image_formats(
    frames: Sequence[npt.NDArray[np.uint8]], qualities: Sequence[int], source: str
) -> list[ImageFormatTurns]:
    """Every way to send the input as an image; none without frames."""
    if not len(frames):
        return []
    formats: list[tuple[ImageFormat, int | None]] = [("uint8", None), ("png", None)]
    formats += [("jpeg", quality) for quality in qualities]
    return [ImageFormatTurns(frames, *each, source) for each in formats]
