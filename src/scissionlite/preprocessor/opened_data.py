"""Data opened for one network, with everything checked that is quick to check before the work.

Images are checked by their headers; damaged pixels show when they are read for the first time.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from scissionlite.errors import ImageError, PrepareError
from scissionlite.graph.analysis import flat
from scissionlite.graph.graph import Graph
from scissionlite.image_files import INTEGER_MODES, check_image, used_bits
from scissionlite.images import Preprocessing
from scissionlite.preprocessor.classes import checked_names, same_form, shown
from scissionlite.preprocessor.data import Data, ImageFolder, Photographs, loader_of
from scissionlite.preprocessor.masks import MaskFolder
from scissionlite.preprocessor.tasks import CLASSIFICATION, SEGMENTATION, Task
from scissionlite.progress import progress_bar

logger = logging.getLogger(__name__)

_Value = TypeVar("_Value")

_REMEDY = (
    "name all classes in the order of the network's outputs with classes= (for a command a file, "
    "one name in each line)"
)

_SHOWN_FILES = 3
"""Most broken images that a message names."""

_BITS_SAMPLES = 8
"""Most images of 16 bits with which it is looked for how many bits they use."""

_ORDER_CLASSES, _ORDER_SAMPLES, _ORDER_BATCH = 16, 64, 16
"""Most classes and samples with which the order of the network's outputs is checked."""

_ORDER_LEAST = 4
"""Fewest samples of a class."""

_ORDER_AGREEMENT = 0.8
"""Share of a class's samples that a trained network answers alike."""


@dataclass(frozen=True)
class OpenedData:
    """Training data with or without labels, validation data, and the names of the classes.

    The names are in the order of the network's outputs, and so are the labels of both data sets.
    """

    train: Data | None
    labelled: bool
    validate: Data | None
    classes: tuple[str, ...]


def open_data(
    graph: Graph,
    *,
    train: str | Path | Data | None,
    unlabelled: str | Path | Data | None,
    validate: str | Path | Data | None,
    classes: Sequence[str] | None,
    preprocessing: Preprocessing | None,
    task: Task,
    progress: bool,
) -> OpenedData:
    """Open the data for a network, and check their classes and images.

    The parameters are those of :func:`.pipeline.prepare`. Datasets and loaders stay as they are,
    and only the names of their classes are checked.

    Raises
    ------
    PrepareError
        If there is a folder and no preprocessing, an image cannot be read, or the classes of the
        two data sets and the network's outputs do not go together.
    """
    if train is not None and unlabelled is not None:
        raise PrepareError("give train= or unlabelled=: with distillation=1 labels play no part")
    names = () if classes is None else checked_names(classes, "classes=")
    training: Data | None = None
    if train is not None:
        training = _open(train, preprocessing, task, names)
        if not names:
            _check_none_is_empty(training)
    elif unlabelled is not None:
        training = _open(unlabelled, preprocessing, task, labelled=False)
    names = names or _names_of(training)
    validation = None if validate is None else _open(validate, preprocessing, task, names)
    names = names or _names_of(validation)
    for data in (training, validation):
        _check_names(data, names)
    if names and task.of_classes:
        _check_count(graph, names)
    sources = ((validation, validate), (training, unlabelled if train is None else train))
    folders = [
        data for data, source in sources if isinstance(data, Photographs) and data is not source
    ]
    for folder in folders:
        check_images(folder, progress=progress)
    labelled = next((folder for folder in folders if isinstance(folder, ImageFolder)), None)
    if labelled is not None and task.name == CLASSIFICATION.name:
        check_order(graph.module, labelled)
    return OpenedData(training, train is not None, validation, names)


def check_images(data: Photographs, *, progress: bool = False) -> None:
    """Check that every photograph's header can be read, and log what users may not expect.

    Raises
    ------
    PrepareError
        If some cannot; the message names them.
    """
    broken: list[ImageError] = []
    gray_16bit: list[Path] = []
    with progress_bar(progress) as bar:
        task = bar.add_task(f"checking {data.folder}", total=len(data), status="")
        for file, _ in data.files:
            try:
                if check_image(file) in INTEGER_MODES:
                    gray_16bit.append(file)
            except ImageError as error:
                broken.append(error)
            bar.advance(task)
    if broken:
        texts = "; ".join(map(str, broken[:_SHOWN_FILES]))
        if len(broken) > _SHOWN_FILES:
            texts += f"; and {len(broken) - _SHOWN_FILES} more of {len(data)} images"
        raise PrepareError(f"{texts}: mend or remove what is broken") from broken[0]
    if data.hidden:
        logger.warning("%s: %d hidden images or folders are left out", data.folder, data.hidden)
    used = max(map(used_bits, _evenly(gray_16bit, _BITS_SAMPLES)), default=16)
    if used <= data.preprocessing.bits - 2:  # no picture is brighter than a quarter
        logger.warning(
            "%s: %d-bit images in which %d bits are used; if the camera has no more, they are read "
            "too dark: say so with --bits %d or Preprocessing(bits=%d)",
            *(data.folder, data.preprocessing.bits, used, max(used, 8), max(used, 8)),
        )


def check_order(network: nn.Module, data: ImageFolder) -> None:
    """Check that a trained network's outputs are in the order of the data's classes.

    The network answers some samples of up to 16 classes. If it gives nearly all samples of a class
    the same answer, and each class another one, it is trained. If these answers are then other
    classes, the order is another one. One class that is taken for another is not enough: they have
    to be exchanged, or most of them wrong.

    Raises
    ------
    PrepareError
        If the order is another one.
    """
    answers = _answers_by_class(network, data)
    usual = {label: Counter(each).most_common(1)[0] for label, each in answers.items()}
    given = {answer for answer, _ in usual.values()}
    moved = {label: answer for label, (answer, _) in usual.items() if answer != label}
    total = sum(map(len, answers.values()))
    alike = sum(count for _, count in usual.values())
    trained = len(given) == len(usual) and alike >= _ORDER_AGREEMENT * total
    if trained and moved and (given == set(usual) or len(moved) > len(usual) / 2):
        label, answer = next(iter(moved.items()))
        raise PrepareError(
            f"the network's outputs are in another order than the classes of {data.folder}: for "
            f"images of {data.classes[label]!r}, class {label}, its answer is class {answer}; "
            f"{_REMEDY}"
        )


def _answers_by_class(network: nn.Module, data: ImageFolder) -> dict[int, list[int]]:
    """A network's answers to a few samples of some classes."""
    indices: dict[int, list[int]] = {}
    for index, (_, label) in enumerate(data.files):
        indices.setdefault(label, []).append(index)
    # Fewer samples say too little: the network may be wrong about all of them.
    enough = [label for label, own in indices.items() if len(own) >= _ORDER_LEAST]
    classes = _evenly(enough, _ORDER_CLASSES)
    if len(classes) < 2:
        return {}
    count = max(_ORDER_LEAST, _ORDER_SAMPLES // len(classes))
    chosen = [index for label in classes for index in _evenly(indices[label], count)]
    answers: dict[int, list[int]] = {}
    network.eval()
    with torch.inference_mode():
        for x, labels in loader_of(Subset(data, chosen), _ORDER_BATCH):
            for label, answer in zip(labels, flat(network(x))[0].argmax(1), strict=True):
                answers.setdefault(int(label), []).append(int(answer))
    return answers


def _evenly(values: Sequence[_Value], count: int) -> list[_Value]:
    """At most ``count`` of the values, spread over all."""
    step = max(1, -(-len(values) // count))
    return list(values[::step])


def _open(
    data: str | Path | Data,
    preprocessing: Preprocessing | None,
    task: Task,
    classes: Sequence[str] = (),
    *,
    labelled: bool = True,
) -> Data:
    """Open a folder of images; return a dataset or loader as it is."""
    if not isinstance(data, (str, Path)):
        return data
    if preprocessing is None:
        raise PrepareError(
            f"to read the images in {data}, give preprocessing=Preprocessing(size=(height, width))"
        )
    if labelled and task.name == SEGMENTATION.name:
        return MaskFolder(data, preprocessing)
    if labelled:
        return ImageFolder(data, preprocessing, classes=classes)
    return Photographs(data, preprocessing)


def _names_of(data: Data | None) -> tuple[str, ...]:
    """The names of a dataset's classes, if it has them."""
    whole: object = data
    while isinstance(whole, (Subset, DataLoader)):
        whole = whole.dataset
    return tuple(same_form(str(name)) for name in getattr(whole, "classes", None) or ())


def _check_names(data: Data | None, names: tuple[str, ...]) -> None:
    """Check that a dataset which names its classes has them in the same order."""
    own = _names_of(data)
    if own and own != names:
        raise PrepareError(
            f"training and validation data have different classes: {shown(names)} expected, "
            f"against {shown(own)} found"
        )


def _check_none_is_empty(data: Data) -> None:
    """Check that each class folder of training data has images: it may not be meant as a class."""
    if isinstance(data, ImageFolder) and data.empty_classes:
        raise PrepareError(
            f"{data.folder} has class folders without images: {shown(data.empty_classes)}; remove "
            f"them, or {_REMEDY}"
        )


def _check_count(graph: Graph, names: tuple[str, ...]) -> None:
    """Check that the network has an output for each class."""
    shape = graph.outputs[0].shape
    if len(shape) > 1 and shape[1] != len(names):
        raise PrepareError(
            f"{graph.name} has {shape[1]} outputs, and there are {len(names)} classes "
            f"({shown(names)}): {_REMEDY}"
        )
