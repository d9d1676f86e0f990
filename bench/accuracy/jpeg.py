"""The other side of the comparison: the uncut network on JPEGs, by quality and by size.

There are two coders. "as sent" is the JPEG of a bundle of kind "image": Pillow's defaults, in
colour, 4:2:0. "smallest" is the JPEG of a sender who counts bytes: gray photographs as gray, with
Huffman tables made for the picture, baseline or progressive, whichever is smaller. Both decode to
the same pixels, so they share one score. On small gray photographs the second saves 600 bytes.

At the fewest bytes, a smaller picture beats a lower quality for some networks. So pictures are also
shrunk before they are coded, and enlarged again afterwards. No network is retrained on JPEGs.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from bench.accuracy.networks import NETWORKS, load
from bench.accuracy.photographs import Frame, Pictures
from bench.accuracy.records import JPEGS, RUNS, Jpeg, Run, append, read, seeds_together
from scissionlite.images import image_decode, image_encode
from scissionlite.preprocessor.data import Sample
from scissionlite.preprocessor.scoring import evaluate

Coder: TypeAlias = Callable[[Frame, int], bytes]
"""Codes a frame at a quality as a JPEG."""

SCALES = (1.0, 0.75, 0.5)
"""Heights of the coded picture, as shares of the height of the whole one."""

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


class Shrunk:
    """Pictures as they are coded: at a share of their height and width.

    Parameters
    ----------
    pictures
        The test data.
    scale
        The share; 1 leaves them as they are.
    """

    def __init__(self, pictures: Pictures, scale: float) -> None:
        self._whole = pictures.preprocessing.size
        self.size = round(scale * self._whole[0]), round(scale * self._whole[1])
        self.frames = [
            resized(pictures.frame(index), self.size, Image.Resampling.LANCZOS)
            for index in range(len(pictures))
        ]

    def sent(self, index: int, quality: int) -> Frame:
        """A picture after JPEG, in its own size again."""
        data = as_sent(self.frames[index], quality)
        decoded = image_decode(data, "jpeg", (*self.size, 3))
        return resized(decoded, self._whole, Image.Resampling.BICUBIC)

    def mean_bytes(self, quality: int, coder: Coder = smallest) -> float:
        """Mean size of a JPEG, in bytes."""
        return float(np.mean([len(coder(frame, quality)) for frame in self.frames]))

    def quality_of(self, nbytes: float, coder: Coder = smallest) -> int:
        """Find the lowest quality, 1 to 95, whose JPEGs have a mean of `nbytes` or more.

        Sizes grow with the quality, so this bisects. It returns 95 if no quality has so many bytes.
        """
        low, high = 1, 95
        while low < high:
            middle = (low + high) // 2
            if self.mean_bytes(middle, coder) < nbytes:
                low = middle + 1
            else:
                high = middle
        return low


def resized(frame: Frame, size: tuple[int, int], by: Image.Resampling) -> Frame:
    """Resize a frame to a height and width; return the same frame if it has that size."""
    if frame.shape[:2] == size:
        return frame
    return np.asarray(Image.fromarray(frame).resize(size[::-1], by))


class Sent(Dataset[Sample]):
    """Test data after JPEG: coded, decoded, normalized."""

    def __init__(self, pictures: Pictures, shrunk: Shrunk, quality: int) -> None:
        self._pictures = pictures
        self._shrunk = shrunk
        self._quality = quality

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Sample:
        frame = self._shrunk.sent(index, self._quality)
        x = torch.from_numpy(self._pictures.preprocessing.tensor(frame)[0])
        return x, self._pictures[index][1]


def curve(
    name: str,
    data: Path,
    out: Path,
    sizes: Sequence[float] = (),
    scales: Sequence[float] = SCALES,
    qualities: Sequence[int] = (),
) -> Iterator[Jpeg]:
    """Measure JPEGs at all scales: at ``QUALITIES``, at each of `sizes`, and at each run's size.

    With `qualities`, only at those. Sizes are matched with the smaller JPEGs, which is the harder
    comparison. A JPEG that ``out/jpeg.jsonl`` already has is not measured again.

    Yields
    ------
    Jpeg
        Each record as it is written.
    """
    pictures = NETWORKS[name].test(data)
    network = load(name, out)
    runs = [run for run in read(out / RUNS, Run) if run.network == name]
    ours = [float(np.mean([run.sent_bytes for run in own])) for own in seeds_together(runs)]
    done = {(j.scale, j.quality) for j in read(out / JPEGS, Jpeg) if j.network == name}
    for scale in scales:
        shrunk = Shrunk(pictures, scale)
        matched = {shrunk.quality_of(nbytes) for nbytes in (*sizes, *ours)} | {*QUALITIES}
        for quality in sorted(qualities or matched, reverse=True):
            if (scale, quality) in done:
                continue
            sent = Sent(pictures, shrunk, quality)
            record = Jpeg(
                network=name,
                scale=scale,
                quality=quality,
                as_sent=shrunk.mean_bytes(quality, as_sent),
                smallest=shrunk.mean_bytes(quality),
                score=evaluate(network, sent, task=NETWORKS[name].task),
            )
            append(out / JPEGS, record)
            yield record


def best(jpegs: Sequence[Jpeg], nbytes: float) -> Jpeg | None:
    """Find the JPEG with the best score that has no fewer than `nbytes`.

    Each scale's smallest such JPEG is compared. None if all measured JPEGs are smaller.
    """
    closest = []
    for scale in {jpeg.scale for jpeg in jpegs}:
        large = [j for j in jpegs if j.scale == scale and j.smallest >= nbytes]
        closest += sorted(large, key=lambda jpeg: jpeg.smallest)[:1]
    return max(closest, key=lambda jpeg: (jpeg.score, -jpeg.smallest), default=None)
