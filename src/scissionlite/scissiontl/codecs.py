"""Times packing at a slicing point: the Transfer Layers and image formats to plan with."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec import structs

from scissionlite.images import ImageFormat, Preprocessing, image_decode, image_encode
from scissionlite.scissiontl.profile import ImageProfile, TransferProfile
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

LEARNED = (
    TransferSpec(pool_kind="learned", pool=2, reduction=2),
    TransferSpec(pool_kind="learned", pool=2, reduction=4),
)
"""The learned Transfer Layers to plan with: 32 and 64 times fewer bytes than float32. They have no
entropy stage: the bytes that it saves depend on the trained weights, and their times do not."""

BUDGET = 0.05
"""Seconds for timing one small action; its median is steady by then."""

Maps = Sequence[npt.NDArray[np.float32]]
"""One tensor that crosses, for several inputs."""


def time_codecs(block: int, crossing: Sequence[Maps], repetitions: int) -> list[TransferProfile]:
    """Time every Transfer Layer that is valid after a block.

    Parameters
    ----------
    block
        Index of the block.
    crossing
        Each tensor that crosses, for several inputs. The first input is timed; bytes are the mean
        over all.
    repetitions
        Most measurements of a timing.
    """
    shapes = [maps[0].shape for maps in crossing]
    results = []
    for spec in CODECS:
        if not any(spec.valid_for(shape) for shape in shapes):
            continue
        pairs = zip(crossing, shapes, strict=True)
        parts = [time_packing(spec.adapted_to(s), maps, repetitions) for maps, s in pairs]
        encoding, decoding, nbytes = (sum(figures) for figures in zip(*parts, strict=True))
        results.append(TransferProfile(block, spec, encoding, decoding, round(nbytes)))
    return results


class Packing(NamedTuple):
    """Cost of packing one tensor: seconds to encode and to decode, and mean bytes."""

    encode: float
    decode: float
    nbytes: float


def time_packing(spec: TransferSpec, maps: Maps, repetitions: int) -> Packing:
    """Time the codec with the first of some feature maps, and take the mean bytes of all."""
    quantization = None
    if spec.quantized:  # in a deployed bundle the scale is calibrated beforehand: not timed
        low, high = min(float(m.min()) for m in maps), max(float(m.max()) for m in maps)
        quantization = Quantization.from_range(low, high, spec.dtype, spec.scheme, spec.levels)
    tables = _tables(spec, maps, quantization)
    action = partial(encode, maps[0], spec, quantization, tables=tables[0])
    encoding = median_time(action, repetitions)
    packed = action()
    # As the edge decodes: a new array in NCHW.
    decoding = median_time(partial(_decode, packed), repetitions)
    sizes = [packed.nbytes]
    if spec.entropy is not None:
        pairs = zip(maps[1:], tables[1:], strict=True)
        sizes += [encode(m, spec, quantization, tables=own).nbytes for m, own in pairs]
    return Packing(encoding, decoding, sum(sizes) / len(sizes))


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


def time_images(
    frames: Sequence[npt.NDArray[np.uint8]],
    preprocessing: Preprocessing,
    qualities: Sequence[int],
    source: str,
    repetitions: int,
) -> tuple[list[ImageProfile], float]:
    """Time every way to send the input as an image, and preprocessing (seconds)."""
    formats: list[tuple[ImageFormat, int | None]] = [("uint8", None), ("png", None)]
    formats += [("jpeg", quality) for quality in qualities]
    results = []
    for image_format, quality in formats:
        sent = [image_encode(frame, image_format, quality) for frame in frames]
        cases = list(zip(frames, sent, strict=True))[:8]
        results.append(
            ImageProfile(
                format=image_format,
                quality=quality,
                encode=_mean_of_medians(
                    [partial(image_encode, f, image_format, quality) for f, _ in cases], repetitions
                ),
                decode=_mean_of_medians(
                    [partial(image_decode, s, image_format, frames[0].shape) for _, s in cases],
                    repetitions,
                ),
                nbytes=round(sum(map(len, sent)) / len(sent)),
                source=source,
            )
        )
    return results, median_time(partial(preprocessing.tensor, frames[0]), repetitions)


def median_time(action: Callable[[], object], repetitions: int) -> float:
    """Median seconds of a small action: ``repetitions`` times, or until the budget is spent."""
    action()
    times: list[float] = []
    while len(times) < repetitions and (len(times) < 3 or sum(times) < BUDGET):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return median(times)


def natural_noise(height: int, width: int, channels: int, seed: int) -> npt.NDArray[np.uint8]:
    """A frame whose amplitude spectrum falls as 1/f, as photographs' do (Field, 1987)."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    frequency[0, 0] = 1.0
    spectrum = np.fft.fft2(rng.standard_normal((height, width))) / frequency
    image = np.fft.ifft2(spectrum).real
    image = np.clip(128 + 50 * (image - image.mean()) / image.std(), 0, 255).astype(np.uint8)
    return np.repeat(image[:, :, None], channels, axis=2)


def _decode(packed: Packed) -> npt.NDArray[np.float32]:
    return decode(packed, layout="nchw")


def _mean_of_medians(actions: Sequence[partial[Any]], repetitions: int) -> float:
    return sum(median_time(action, repetitions) for action in actions) / len(actions)
