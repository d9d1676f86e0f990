"""Data for training: photographs, read exactly as the device reads them, or any torch Dataset."""

from __future__ import annotations

import copy
import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    WeightedRandomSampler,
)

from scissionlite.errors import PrepareError
from scissionlite.graph.analysis import flat
from scissionlite.image_files import IMAGE_SUFFIXES, find_images
from scissionlite.images import Preprocessing
from scissionlite.preprocessor.classes import class_folders, same_form, shown, unknown_names

Sample: TypeAlias = tuple[torch.Tensor | tuple[torch.Tensor, ...], Any]
"""The network's input, or a tuple of several, without batch dimension; and the label or target."""

Data: TypeAlias = Dataset[Any] | DataLoader[Any]
"""Training or validation data: samples, or batches of them."""


@runtime_checkable
class Mirrorable(Protocol):
    """A torch Dataset whose samples never change, except that they may be mirrored at random.

    :class:`Photographs` has this form. A Dataset of your own that has it is treated the same: in
    training its samples are mirrored at random, and features are cached (:mod:`.feature_cache`).
    """

    @property
    def augment(self) -> bool:
        """Whether samples, and targets that are pictures, are mirrored at random."""
        ...

    def side(self, mirrored: bool | None) -> Dataset[Sample]:
        """The same samples: all mirrored (True), none (False), or each at random (None)."""
        ...

    def __len__(self) -> int: ...


UNLABELLED = -1
"""The label of a photograph without a label."""

_CACHE_BYTES = 1 << 30
"""Most bytes of decoded frames that are kept in memory."""


class Photographs(Dataset[Sample]):
    """All photographs in a folder and in the folders below it, without labels.

    They are decoded and resized with the bundle's own :class:`Preprocessing`. So training sees the
    same pixels as the device will, and needs no torchvision.

    Parameters
    ----------
    folder
        The folder.
    preprocessing
        How an image becomes the network's input.
    augment
        Whether to mirror images at random, left to right (with torch's global generator).

    Attributes
    ----------
    files : list of (pathlib.Path, int)
        Every image with its label, sorted; here the label is ``UNLABELLED``.
    hidden : int
        How many images and folders were left out, because they are hidden
        (:func:`.image_files.is_hidden`).

    Raises
    ------
    PrepareError
        If there is no such folder, or there are no images in it.
    ImageError
        If a folder in it cannot be read. Samples raise it for an image that cannot be read.
    """

    expected = "expected images in it, or in folders below it"

    def __init__(
        self, folder: str | Path, preprocessing: Preprocessing, *, augment: bool = False
    ) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise PrepareError(f"{self.folder} is not a folder")
        self.preprocessing = preprocessing
        self.mirrored: bool | None = None if augment else False
        self.hidden = 0
        self.files = self._find()
        if not self.files:
            raise PrepareError(
                f"{self.folder} holds no images: {self.expected.format(root=self.folder)}, with "
                f"one of {', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        frame_bytes = int(np.prod(preprocessing.frame_shape))
        self._cache: dict[int, npt.NDArray[np.uint8]] | None = (
            {} if frame_bytes * len(self.files) <= _CACHE_BYTES else None
        )

    def _find(self) -> list[tuple[Path, int]]:
        return self._labelled(self.folder, UNLABELLED)

    def _labelled(self, folder: Path, label: int) -> list[tuple[Path, int]]:
        found = find_images(folder)
        self.hidden += found.hidden
        return [(file, label) for file in found.files]

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
        mirrored = bool(torch.rand(()) < 0.5) if self.mirrored is None else self.mirrored
        frame = self.frame(index)
        if mirrored:
            frame = frame[:, ::-1]
        x = torch.from_numpy(self.preprocessing.tensor(frame)[0])
        return x, self._target(index, mirrored=mirrored)

    def _target(self, index: int, *, mirrored: bool) -> Any:
        return self.files[index][1]

    @property
    def augment(self) -> bool:
        """Whether images are mirrored at random."""
        return self.mirrored is None

    def side(self, mirrored: bool | None) -> Photographs:
        """The same photographs: all mirrored (True), none (False), or each at random (None)."""
        view = copy.copy(self)
        view.mirrored = mirrored
        return view


class ImageFolder(Photographs):
    """Photographs with labels, in ImageFolder layout: ``FOLDER/CLASS/anything.jpg``.

    Parameters and errors are those of :class:`Photographs`, and:

    Parameters
    ----------
    classes
        Names of the classes, in the order of the network's outputs. The folder may lack some of
        them, and has no others. By default they are the names of its subfolders, sorted as
        torchvision's ImageFolder sorts them: as text, so that "10" stands before "2". Hidden
        folders are no classes. Names that differ only in their Unicode form are the same.

    Attributes
    ----------
    classes : tuple of str
        Class names; a label is an index into them.
    """

    expected = "expected {root}/CLASS/image.jpg (ImageFolder layout)"

    def __init__(
        self,
        folder: str | Path,
        preprocessing: Preprocessing,
        *,
        augment: bool = False,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.classes = tuple(map(same_form, classes or ()))
        super().__init__(folder, preprocessing, augment=augment)

    def _find(self) -> list[tuple[Path, int]]:
        folders = class_folders(self.folder)
        self.hidden += folders.hidden
        if not self.classes:
            self.classes = tuple(folders.places)
        elif unknown := unknown_names(folders.places, self.classes):
            raise PrepareError(
                f"{self.folder} has different classes: {shown(self.classes)} expected, against "
                f"{shown(folders.places)} found; unknown: {unknown}"
            )
        return [
            labelled
            for label, name in enumerate(self.classes)
            for place in folders.places.get(name, ())
            for labelled in self._labelled(place, label)
        ]

    @property
    def empty_classes(self) -> tuple[str, ...]:
        """The classes of which there is no image."""
        present = {label for _, label in self.files}
        return tuple(name for label, name in enumerate(self.classes) if label not in present)


def sample_frames(
    folder: str | Path, preprocessing: Preprocessing, *, count: int = 48
) -> list[npt.NDArray[np.uint8]]:
    """Read up to ``count`` frames, evenly spread over all images in a folder and below it.

    Returns
    -------
    list of numpy.ndarray
        uint8, ``(height, width, channels)``.

    Raises
    ------
    PrepareError
        If there are no images.
    ImageError
        If one of them cannot be read.
    """
    files = find_images(folder).files
    if not files:
        raise PrepareError(f"{folder} holds no images")
    step = max(1, len(files) // count)
    return [preprocessing.frame(file) for file in files[::step][:count]]


def augmented(data: Data) -> Data:
    """Have samples mirrored at random; data that are not Mirrorable stay as they are."""
    return data.side(None) if isinstance(data, Mirrorable) else data


def split_off(data: Data, share: float, seed: int) -> tuple[Data, Data]:
    """Split a dataset at random in two.

    Returns
    -------
    tuple of two datasets
        The larger part; and a ``share`` of the samples, which are never mirrored.

    Raises
    ------
    PrepareError
        If it is a DataLoader, which cannot be split, or too small.
    """
    if isinstance(data, DataLoader):
        raise PrepareError(
            "a DataLoader cannot be split: to stop early give its dataset, or patience=None"
        )
    size = len(cast(Sized, data))
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
    count = round(share * size)
    if not 0 < count < size:
        raise PrepareError(f"{size} samples cannot be split: {share:g} of them would be {count}")
    plain = data.side(False) if isinstance(data, Mirrorable) else data
    return Subset(data, order[count:]), Subset(plain, order[:count])


def class_weights(data: Data) -> torch.Tensor:
    """Weigh the samples of a dataset so that all classes have the same sum.

    Returns
    -------
    torch.Tensor
        float64 ``(samples,)``.

    Raises
    ------
    PrepareError
        If it is a DataLoader, which has an order of its own, or its targets are no classes.
    """
    if isinstance(data, DataLoader):
        raise PrepareError(
            "a DataLoader has its own order: to draw classes equally often give its dataset, or "
            "give the loader a sampler that does"
        )
    message = "only samples with the label of a class can be drawn equally often"
    try:
        labels = torch.tensor(list(map(operator.index, _labels(data))))
    except TypeError as error:
        raise PrepareError(message) from error
    if int(labels.min()) < 0:
        raise PrepareError(message)
    return 1 / torch.bincount(labels)[labels].double()


def _labels(data: Dataset[Any]) -> list[Any]:
    """The targets of all samples, without decoding images where that can be."""
    if isinstance(data, Subset):
        labels = _labels(data.dataset)
        return [labels[index] for index in data.indices]
    if isinstance(data, ImageFolder):
        return [label for _, label in data.files]
    return [data[index][1] for index in range(len(cast(Sized, data)))]


def loader_of(
    data: Data,
    batch_size: int,
    *,
    generator: torch.Generator | None = None,
    weights: torch.Tensor | None = None,
) -> DataLoader[Any]:
    """Make a loader of a dataset, shuffled if there is a generator; return a loader as it is.

    With ``weights`` of the samples (and a generator) they are drawn with replacement.

    Raises
    ------
    PrepareError
        If a dataset has no length, or cannot be shuffled.
    """
    if isinstance(data, DataLoader):
        return data
    if isinstance(data, IterableDataset) or not isinstance(data, Sized):
        raise PrepareError(
            f"{type(data).__name__} has no length or no order: give a Dataset with __len__ and "
            "__getitem__, or a DataLoader"
        )
    size = len(data)
    sampler = None
    if weights is not None:
        sampler = WeightedRandomSampler(weights.tolist(), size, generator=generator)
    return DataLoader(
        data,
        batch_size,
        shuffle=sampler is None and generator is not None and size > 0,
        sampler=sampler,
        # A last batch of one would have no batch statistics.
        drop_last=generator is not None and size > batch_size,
        generator=generator,
    )


def samples_of(data: Data) -> Iterator[tuple[tuple[torch.Tensor, ...], Any]]:
    """Iterate over samples, each as a batch of one: its inputs, and its target."""
    for x, target in loader_of(data, 1):
        inputs = flat(x)
        for i in range(len(inputs[0])):
            yield tuple(part[i : i + 1] for part in inputs), target[i : i + 1]


def spread_inputs(data: Data, count: int) -> list[tuple[torch.Tensor, ...]]:
    """Take the inputs of up to ``count`` samples: from all over a dataset, or a loader's first."""
    if not isinstance(data, DataLoader):
        size = len(loader_of(data, 1))  # which refuses data without a length
        data = Subset(data, range(0, size, max(1, size // count)))
    return [inputs for inputs, _ in itertools.islice(samples_of(data), count)]


def input_batches(loader: DataLoader[Sample]) -> Iterable[tuple[torch.Tensor, ...]]:
    """Iterate over a loader's batches without the labels: the inputs of each, batch first."""
    return (tuple(flat(x)) for x, _ in loader)
