"""The other side of the comparison: the uncut network on JPEGs, by quality and by size.

Two coders. "as sent" is what a bundle of kind "image" sends: Pillow's defaults, in colour, 4:2:0.
"smallest" is what somebody who counts bytes would send: gray photographs as gray, Huffman tables
made for the picture, baseline or progressive, whichever is smaller. Both decode to the same
pixels, so they share one score; on small gray photographs the second saves 600 bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from bench.accuracy.networks import NETWORKS, load
from bench.accuracy.photographs import Frame, Pictures
from bench.accuracy.records import JPEGS, RUNS, Jpeg, Run, append, read, seeds_together
from scissionlite.images import image_decode, image_encode
from scissionlite.preprocessor.data import Sample
from scissionlite.preprocessor.trainer import evaluate

Coder: TypeAlias = Callable[[Frame, int], bytes]
"""From a frame and a quality to a JPEG."""

QUALITIES = (95, 85, 75, 60, 50, 40, 30, 20, 15, 10, 5, 2)


def as_sent(frame: Frame, quality: int) -> bytes:
    """A frame as the Offloader sends it."""
    return image_encode(frame, "jpeg", quality)


def smallest(frame: Frame, quality: int) -> bytes:
    """A frame in as few bytes as a baseline or progressive JPEG of this quality needs."""
    image = Image.fromarray(frame)
    if np.array_equal(frame, frame[:, :, :1].repeat(3, 2)):
        image = image.convert("L")
    coded = []
    for progressive in (False, True):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True, progressive=progressive)
        coded.append(buffer.getvalue())
    return min(coded, key=len)


class Sent(Dataset[Sample]):
    """Test data after JPEG: coded, decoded, normalized."""

    def __init__(self, pictures: Pictures, quality: int) -> None:
        self._pictures = pictures
        self._quality = quality

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Sample:
        preprocessing = self._pictures.preprocessing
        data = as_sent(self._pictures.frame(index), self._quality)
        frame = image_decode(data, "jpeg", preprocessing.frame_shape)
        return torch.from_numpy(preprocessing.tensor(frame)[0]), self._pictures[index][1]


def mean_bytes(pictures: Pictures, quality: int, coder: Coder = smallest) -> float:
    """Mean size of a JPEG, in bytes."""
    sizes = [len(coder(pictures.frame(index), quality)) for index in range(len(pictures))]
    return float(np.mean(sizes))


def quality_of(pictures: Pictures, nbytes: float, coder: Coder = smallest) -> int:
    """The lowest quality, 1 to 95, whose JPEGs have `nbytes` or more on the mean; 95 if none has.

    By bisection: sizes grow with the quality.
    """
    low, high = 1, 95
    while low < high:
        middle = (low + high) // 2
        if mean_bytes(pictures, middle, coder) < nbytes:
            low = middle + 1
        else:
            high = middle
    return low


def measure(name: str, network: nn.Module, pictures: Pictures, quality: int) -> Jpeg:
    """Score the uncut network on JPEGs of one quality."""
    score = evaluate(network, Sent(pictures, quality), task=NETWORKS[name].task)
    sent = mean_bytes(pictures, quality, as_sent)
    return Jpeg(name, quality, sent, mean_bytes(pictures, quality, smallest), score)


def curve(name: str, data: Path, out: Path, sizes: Sequence[float] = ()) -> Iterator[Jpeg]:
    """JPEGs at all of ``QUALITIES``, and as small as each of `sizes` and each finished run's.

    Those are matched with the smaller JPEGs, which is the harder comparison. What stands in
    ``out/jpeg.jsonl`` already is not measured again.

    Yields
    ------
    Jpeg
        Each record as it is written.
    """
    pictures = NETWORKS[name].test(data)
    network = load(name, out)
    runs = [run for run in read(out / RUNS, Run) if run.network == name]
    ours = [float(np.mean([run.sent_bytes for run in own])) for own in seeds_together(runs)]
    known = {jpeg.quality for jpeg in read(out / JPEGS, Jpeg) if jpeg.network == name}
    matched = {quality_of(pictures, nbytes) for nbytes in (*sizes, *ours)}
    for quality in sorted(matched.union(QUALITIES) - known, reverse=True):
        record = measure(name, network, pictures, quality)
        append(out / JPEGS, record)
        yield record
