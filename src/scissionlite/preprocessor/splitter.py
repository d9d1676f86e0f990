"""Splitter: writes the two slices, checked against the network that they came from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from scissionlite.bundle import Accuracy, Role, SliceFile
from scissionlite.errors import PrepareError
from scissionlite.graph.analysis import flat
from scissionlite.images import ImageFormat, image_decode, image_encode
from scissionlite.preprocessor.data import Data, Photographs, samples_of
from scissionlite.preprocessor.inserter import SlicedNetwork
from scissionlite.preprocessor.tasks import Task
from scissionlite.runtimes.export import load_exported
from scissionlite.transfer_layer import decode, encode

Inference = Callable[..., tuple[npt.NDArray[np.float32], ...]]


class Joined:
    """The exported slices with the real codec between them, in this process, without sockets.

    Attributes
    ----------
    sent_bytes : int
        Bytes of payload that have crossed.
    """

    def __init__(
        self,
        network: SlicedNetwork,
        slices: dict[Role, tuple[SliceFile, ...]],
        runtime: str,
        folder: Path,
    ) -> None:
        self._device = load_exported(slices, "device", runtime, folder)
        self._edge = load_exported(slices, "edge", runtime, folder)
        self._ends = [(layer.spec.packing, layer.quantization) for layer in network.layers]
        self.sent_bytes = 0

    def __call__(self, *inputs: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], ...]:
        """Answer as device and edge will."""
        crossing = zip(self._device(*inputs), self._ends, strict=True)
        packed = [encode(x, *end) for x, end in crossing]
        self.sent_bytes += sum(each.nbytes for each in packed)
        return self._edge(*(decode(each, layout="nchw") for each in packed))


class SentImages:
    """The uncut network behind the photographs of a data set, each sent as an image.

    Attributes
    ----------
    sent_bytes : int
        Bytes of images that have been sent.
    """

    def __init__(
        self,
        inference: Inference,
        data: Photographs,
        image_format: ImageFormat,
        quality: int | None,
    ) -> None:
        self._inference, self._data = inference, data
        self._format, self._quality = image_format, quality
        self._index = 0
        self.sent_bytes = 0

    def __call__(self, *inputs: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], ...]:
        """Answer for the next photograph; what is given is the same, not sent."""
        preprocessing = self._data.preprocessing
        sent = image_encode(self._data.frame(self._index), self._format, self._quality)
        self._index += 1
        self.sent_bytes += len(sent)
        frame = image_decode(sent, self._format, preprocessing.frame_shape)
        return self._inference(preprocessing.tensor(frame))


def verify(
    network: nn.Module, exported: Inference, example: tuple[torch.Tensor, ...], runtime: str
) -> None:
    """Check that slices exported for a runtime answer what the trained network answers.

    Raises
    ------
    PrepareError
        If they do not: a runtime that computes something else must not be deployed.
    """
    with torch.inference_mode():
        expected = flat(network(*example))
    answers = exported(*(x.numpy() for x in example))
    # Convolutions sum in another order once batch norms are folded into them; where that moves a
    # value over a rounding border of int8, a code differs by one, hence the tolerance.
    for answer, wanted in zip(answers, expected, strict=True):
        tolerance = 0.05 * float(wanted.abs().max()) + 1e-3
        worst = float(np.abs(answer - wanted.numpy()).max())
        if not worst <= tolerance:
            raise PrepareError(
                f"the {runtime} slices do not answer what the network answers (off by {worst:.3g} "
                f"where {tolerance:.3g} is tolerated): this runtime cannot run this network "
                "faithfully, prepare it without"
            )


def measure(inference: Inference, data: Data, task: Task, *, before: float) -> Accuracy:
    """Score exported slices, one sample at a time.

    Raises
    ------
    PrepareError
        If there are no samples.
    """
    counts, samples = None, 0
    sent_before = getattr(inference, "sent_bytes", 0)
    for inputs, target in samples_of(data):
        answers = [torch.from_numpy(x) for x in inference(*(part.numpy() for part in inputs))]
        step = task.tally(answers[0] if len(answers) == 1 else tuple(answers), target)
        counts = step if counts is None else counts + step
        samples += 1
    if counts is None:
        raise PrepareError("the validation data set is empty")
    sent = (getattr(inference, "sent_bytes", 0) - sent_before) / samples
    return Accuracy(before, task.score(counts), samples, task.metric, round(sent, 1))
