"""Data for training: photographs in folders, read exactly as the device will read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, Subset

from scissionlite.errors import PrepareError
from scissionlite.images import IMAGE_SUFFIXES, Preprocessing, image_files

Sample: TypeAlias = tuple[torch.Tensor | tuple[torch.Tensor, ...], Any]
"""The network's input, or a tuple of several, without batch dimension; and the label."""


def as_inputs(x: torch.Tensor | Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """A sample's or a batch's inputs, one or several, as the network's arguments."""
    return (x,) if isinstance(x, torch.Tensor) else tuple(x)


_CACHE_BYTES = 1 << 30


class ImageFolder(Dataset[Sample]):
    """A folder in ImageFolder layout: ``FOLDER/CLASS/anything.jpg``.

    Unlike torchvision's, it decodes and resizes with the bundle's own :class:`Preprocessing`, so
    training sees the very pixels that the device will see, and needs no torchvision.

    Parameters
    ----------
    folder
        The folder; classes are its subfolders in sorted order.
    preprocessing
        How an image becomes the network's input.
    augment
        Whether to mirror images at random, left to right (with torch's global generator).

    Attributes
    ----------
    classes : tuple of str
        Class names; a label is an index into them.
    files : list of (pathlib.Path, int)
        Every image with its label, sorted.

    Raises
    ------
    PrepareError
        If there is no such folder, or no images in its subfolders.
    """

    def __init__(
        self, folder: str | Path, preprocessing: Preprocessing, *, augment: bool = False
    ) -> None:
        root = Path(folder)
        if not root.is_dir():
            raise PrepareError(f"{root} is not a folder")
        self.preprocessing = preprocessing
        self.augment = augment
        self.classes = tuple(sorted(entry.name for entry in root.iterdir() if entry.is_dir()))
        self.files = [
            (file, label)
            for label, name in enumerate(self.classes)
            for file in image_files(root / name)
        ]
        if not self.files:
            raise PrepareError(
                f"{root} holds no images in subfolders: expected {root}/CLASS/image.jpg "
                f"(ImageFolder layout), with one of {', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        frame_bytes = int(np.prod(preprocessing.frame_shape))
        self._cache: dict[int, npt.NDArray[np.uint8]] | None = (
            {} if frame_bytes * len(self.files) <= _CACHE_BYTES else None
        )

    def __len__(self) -> int:
        return len(self.files)

    def frame(self, index: int) -> npt.NDArray[np.uint8]:
        """An image as the camera's scaler delivers it: uint8, ``(height, width, channels)``."""
        if self._cache is None:
            return self.preprocessing.frame(self.files[index][0])
        if index not in self._cache:
            self._cache[index] = self.preprocessing.frame(self.files[index][0])
        return self._cache[index]

    def __getitem__(self, index: int) -> Sample:
        frame = self.frame(index)
        if self.augment and bool(torch.rand(()) < 0.5):
            frame = frame[:, ::-1]
        return torch.from_numpy(self.preprocessing.tensor(frame)[0]), self.files[index][1]


def sample_frames(
    folder: str | Path, preprocessing: Preprocessing, *, count: int
) -> list[npt.NDArray[np.uint8]]:
    """Up to ``count`` frames, evenly spread over all images below a folder of any layout.

    Raises
    ------
    PrepareError
        If there are no images.
    """
    files = image_files(folder)
    if not files:
        raise PrepareError(f"{folder} holds no images")
    step = max(1, len(files) // count)
    return [preprocessing.frame(file) for file in files[::step][:count]]


def open_data(
    data: str | Path | Dataset[Sample], preprocessing: Preprocessing | None, *, augment: bool
) -> Dataset[Sample]:
    """A dataset as it is, or a folder of images as an :class:`ImageFolder`.

    Raises
    ------
    PrepareError
        If a folder is given without the preprocessing that would read its images.
    """
    if not isinstance(data, (str, Path)):
        return data
    if preprocessing is None:
        raise PrepareError(
            f"to read the images in {data}, give preprocessing=Preprocessing(size=(height, width))"
        )
    return ImageFolder(data, preprocessing, augment=augment)


def class_names(*datasets: Dataset[Sample] | None) -> tuple[str, ...]:
    """The classes that the datasets name, which must agree.

    Raises
    ------
    PrepareError
        If two datasets name different classes: their labels would not mean the same.
    """
    named: list[Sequence[str]] = []
    for data in datasets:
        whole: object = data
        while isinstance(whole, Subset):
            whole = whole.dataset
        if classes := getattr(whole, "classes", None):
            named.append(classes)
    if any(tuple(classes) != tuple(named[0]) for classes in named):
        raise PrepareError(
            "training and validation data have different classes: "
            + " against ".join(", ".join(classes) for classes in named)
        )
    return tuple(named[0]) if named else ()
