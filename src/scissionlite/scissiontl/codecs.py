"""What may cross at a slicing point, and what packing it costs: Transfer Layers and images."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from scissionlite.images import ImageFormat, Preprocessing, image_decode, image_encode
from scissionlite.scissiontl.profile import ImageProfile, TransferProfile
from scissionlite.transfer_layer import Packed, Quantization, TransferSpec, decode, encode

LEVELS = 32
"""With the entropy stage int8 is planned with so few levels, too: finer than int4, with fewer bytes
than all of its codes."""

CODECS = (
    *(
        TransferSpec(pool=pool, dtype=dtype, entropy=entropy)
        for pool, dtype, entropy in itertools.product(
            (1, 2, 4), ("float32", "float16", "int8", "int4"), (None, "zstd")
        )
    ),
    *(TransferSpec(pool=pool, entropy="zstd", levels=LEVELS) for pool in (1, 2, 4)),
)
"""Every Transfer Layer that is planned with: pooling x dtype x entropy stage, and int8 with fewer
levels. Scission's float32 split and the paper's TL are among them; what else a TransferSpec has
(average pooling, scales for each channel, ...) changes accuracy, and next to nothing of what is
planned by."""

LEARNED = (
    TransferSpec(pool_kind="learned", pool=2, reduction=2),
    TransferSpec(pool_kind="learned", pool=2, reduction=4),
)
"""The learned Transfer Layers that are planned with: 32 and 64 times fewer bytes than float32.
Their times do not depend on what they learn; what an entropy stage would save does, so they have
none."""

BUDGET = 0.05
"""Seconds that are spent on timing one small action, its median being steady by then."""

Maps = Sequence[npt.NDArray[np.float32]]
"""What crosses for some inputs: the same tensor of each."""


def time_codecs(block: int, crossing: Sequence[Maps], repetitions: int) -> list[TransferProfile]:
    """Time every Transfer Layer that makes sense behind a block.

    Parameters
    ----------
    block
        Index of the block.
    crossing
        For each tensor that crosses, what it is for some inputs: the first is timed, bytes are the
        mean over all.
    repetitions
        Of a timing, at most.
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
    """What packing one tensor takes: seconds to encode and to decode, and mean bytes."""

    encode: float
    decode: float
    nbytes: float


def time_packing(spec: TransferSpec, maps: Maps, repetitions: int) -> Packing:
    """Time the codec on the first of some feature maps, and take the mean bytes of all."""
    quantization = None
    if spec.quantized:  # deployed, the scale is calibrated beforehand: not measured
        low, high = min(float(m.min()) for m in maps), max(float(m.max()) for m in maps)
        quantization = Quantization.from_range(low, high, spec.dtype, spec.scheme, spec.levels)
    encoding = median_time(partial(encode, maps[0], spec, quantization), repetitions)
    packed = encode(maps[0], spec, quantization)
    # As the edge decodes: a new array in NCHW.
    decoding = median_time(partial(_decode, packed), repetitions)
    sizes = [packed.nbytes]
    if spec.entropy is not None:
        sizes += [encode(each, spec, quantization).nbytes for each in maps[1:]]
    return Packing(encoding, decoding, sum(sizes) / len(sizes))


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
    """Median seconds of a small action: so many times, or for as long as the budget lasts."""
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
