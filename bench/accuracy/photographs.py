"""Data of the experiments: steel photographs, mosaics of them, and photographs of ImageNet.

All are torch Datasets of pairs (float32 input without batch dimension, label). Those that are
scored also have ``frame(index)``, the uint8 picture before normalization, which JPEG compresses.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import Dataset

import scissionlite as sl
from scissionlite.image_files import find_images
from scissionlite.preprocessor.data import ImageFolder, Sample

DATA = Path(__file__).resolve().parents[3] / "shared/data"
"""Where ``make`` and the documents expect the data, unless ``--data`` names another folder."""

SIZE = 128
STEEL = sl.Preprocessing(size=(SIZE, SIZE))
WHOLE_STEEL = sl.Preprocessing(size=(200, 200))
"""The steel photographs at their own size."""

IMAGENET = sl.Preprocessing(size=(224, 224), resize=256)

Frame = npt.NDArray[np.uint8]


class Pictures(Protocol):
    """A data set of the experiments."""

    @property
    def preprocessing(self) -> sl.Preprocessing:
        """How a frame becomes an input."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def frame(self, index: int) -> Frame:
        """The picture before normalization: uint8, ``(height, width, channels)``."""
        ...


class Frames(Dataset[Sample]):
    """Frames to calibrate with; their labels are not used."""

    def __init__(self, frames: Sequence[Frame], preprocessing: sl.Preprocessing) -> None:
        self._inputs = [torch.from_numpy(preprocessing.tensor(frame)[0]) for frame in frames]

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, index: int) -> Sample:
        return self._inputs[index], 0


def steel(data: Path, part: str, preprocessing: sl.Preprocessing = STEEL) -> ImageFolder:
    """Open the steel photographs, "train" or "test", as `prepare` reads them."""
    return ImageFolder(data / "neu-surface-defects" / part, preprocessing)


class Augmented(Dataset[Sample]):
    """Steel photographs for training from random weights: flips, cut-outs, brightness, contrast.

    `prepare` only mirrors, which is enough for a network that is trained already. The random
    numbers come from torch's global generator, so ``torch.manual_seed`` fixes them.

    Parameters
    ----------
    folder
        The photographs.
    size
        Height and width of the samples, in pixels.
    """

    SMALLEST = 0.6  # side of the smallest cut-out, as a share of the photograph's

    def __init__(self, folder: ImageFolder, size: int) -> None:
        self._labels = [label for _, label in folder.files]
        self._images = [Image.open(file).convert("RGB") for file, _ in folder.files]
        self._preprocessing = sl.Preprocessing(size=(size, size))

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        image = self._images[index]
        side, left, top, flips, contrast, brightness = torch.rand(6).tolist()
        share = self.SMALLEST + (1 - self.SMALLEST) * side
        width, height = (share * length for length in image.size)
        left, top = left * (image.width - width), top * (image.height - height)
        size = self._preprocessing.size
        cut = image.resize(size, Image.Resampling.BILINEAR, (left, top, left + width, top + height))
        # One of the square's eight symmetries: a defect of rolled steel has no top or bottom.
        pixels = np.rot90(np.asarray(cut), int(flips * 8) % 4)
        if flips >= 0.5:
            pixels = pixels[:, ::-1]
        changed = (pixels - 128.0) * (0.7 + 0.6 * contrast) + 128 + 60 * (brightness - 0.5)
        frame = changed.clip(0, 255).astype(np.uint8)
        return torch.from_numpy(self._preprocessing.tensor(frame)[0]), self._labels[index]


class Mosaics(Dataset[Sample]):
    """Four steel photographs of different defects that meet at random wavy borders.

    The label is an int64 tensor ``(height, width)``: for each pixel, its photograph's defect.
    Each photograph is seen at 0.75 of the mosaic's size, anchored at the mosaic's corner, so that
    more than its background shows. The borders are two sine waves, one from top to bottom and one
    from left to right, with random place, slope, height, length and phase.

    Parameters
    ----------
    folder
        The photographs. Training mosaics have none of the test photographs.
    count
        Number of mosaics.
    seed
        Mosaic `index` depends only on the seed and the index.
    augment
        Whether to mirror mosaics at random, left to right (with torch's global generator), as
        `prepare` does.

    Attributes
    ----------
    classes : tuple of str
        Names of the defects; a label is an index into them.
    """

    SHOWN = 96

    def __init__(
        self, folder: ImageFolder, count: int, *, seed: int = 0, augment: bool = False
    ) -> None:
        self.classes = folder.classes
        self.preprocessing = STEEL
        self._count = count
        self._seed = seed
        self._mirrored: bool | None = None if augment else False
        tile = sl.Preprocessing(size=(self.SHOWN, self.SHOWN))
        tiles: list[list[Frame]] = [[] for _ in folder.classes]
        for file, label in folder.files:
            tiles[label].append(tile.frame(file))
        self._tiles = [np.stack(own) for own in tiles]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        frame, label = self.mosaic(index)
        if bool(torch.rand(()) < 0.5) if self._mirrored is None else self._mirrored:
            frame, label = frame[:, ::-1], label[:, ::-1]
        x = torch.from_numpy(self.preprocessing.tensor(frame)[0])
        return x, torch.from_numpy(np.ascontiguousarray(label))

    @property
    def augment(self) -> bool:
        """Whether mosaics are mirrored at random."""
        return self._mirrored is None

    def side(self, mirrored: bool | None) -> Mosaics:
        """The same mosaics: all mirrored, none mirrored, or (None) mirrored at random."""
        view = copy.copy(self)
        view._mirrored = mirrored
        return view

    def frame(self, index: int) -> Frame:
        """The mosaic before normalization."""
        return self.mosaic(index)[0]

    def mosaic(self, index: int) -> tuple[Frame, npt.NDArray[np.int64]]:
        """Draw a mosaic: the picture, and each pixel's class.

        Raises
        ------
        IndexError
            If there is no such mosaic.
        """
        if not 0 <= index < self._count:
            raise IndexError(index)
        random = np.random.default_rng((self._seed, index))
        chosen = random.choice(len(self._tiles), 4, replace=False)
        right = self._border(random) <= np.arange(SIZE)[None, :]
        below = (self._border(random) <= np.arange(SIZE)[None, :]).T
        frame = np.empty((SIZE, SIZE, 3), np.uint8)
        label = np.empty((SIZE, SIZE), np.int64)
        margin = SIZE - self.SHOWN
        for corner, defect in enumerate(chosen):
            tile = self._tiles[defect][random.integers(len(self._tiles[defect]))]
            bottom, rightmost = divmod(corner, 2)
            y, x = bottom * margin, rightmost * margin
            canvas = np.zeros_like(frame)
            canvas[y : y + self.SHOWN, x : x + self.SHOWN] = tile
            inside = (below == bool(bottom)) & (right == bool(rightmost))
            frame[inside] = canvas[inside]
            label[inside] = defect
        return frame, label

    def _border(self, random: np.random.Generator) -> npt.NDArray[np.float64]:
        """Draw a border: for each row a column, between SIZE - SHOWN and SHOWN."""
        along = np.linspace(-1.0, 1.0, SIZE)
        place = random.uniform(-12, 12)
        slope = random.uniform(-10, 10)
        height, waves = random.uniform(2, 9), random.uniform(1.0, 3.0)
        phase = random.uniform(0, 2 * np.pi)
        # At most 12 + 10 + 9 pixels from the middle, which every photograph covers.
        border = SIZE / 2 + place + slope * along + height * np.sin(np.pi * waves * along + phase)
        column: npt.NDArray[np.float64] = border[:, None]
        return column


class ImageNetPhotographs(Dataset[Sample]):
    """Photographs named ``IIII_anything.JPEG``, with ``IIII`` their class of ImageNet-1k.

    Parameters
    ----------
    folder
        The folder of the photographs.
    indices
        Indices of the photographs to take, in the order of their names; by default all.
    augment
        Whether to take random cut-outs, mirrored at random (with torch's global generator). They
        make many views from a few photographs.
    """

    SMALLEST = 0.5  # side of the smallest cut-out, as a share of the shorter side

    def __init__(
        self, folder: Path, indices: Sequence[int] | None = None, *, augment: bool = False
    ) -> None:
        files = find_images(folder).files
        self.files = files if indices is None else [files[i] for i in indices]
        self.preprocessing = IMAGENET
        self._augment = augment
        self._images = [Image.open(file).convert("RGB") for file in self.files]
        self._frames = [self.preprocessing.frame(image) for image in self._images]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        frame = self._view(self._images[index]) if self._augment else self._frames[index]
        x = torch.from_numpy(self.preprocessing.tensor(frame)[0])
        return x, int(self.files[index].name[:4])

    def frame(self, index: int) -> Frame:
        """The middle of the photograph, before normalization."""
        return self._frames[index]

    def _view(self, image: Image.Image) -> Frame:
        share, left, top, mirrored = torch.rand(4).tolist()
        side = min(image.size) * (self.SMALLEST + (1 - self.SMALLEST) * share)
        left, top = left * (image.width - side), top * (image.height - side)
        box = (left, top, left + side, top + side)
        view = image.resize(self.preprocessing.size, Image.Resampling.BILINEAR, box)
        frame = np.asarray(view, dtype=np.uint8)
        return frame[:, ::-1] if mirrored < 0.5 else frame
