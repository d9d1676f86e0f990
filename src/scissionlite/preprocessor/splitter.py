"""Splitter: checks and scores the exported slices against the network that they came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

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
from scissionlite.runtimes import Slice
from scissionlite.runtimes.export import load_exported
from scissionlite.transfer_layer import decode, encode


class Inference(Slice, Protocol):
    """Device and edge in this process, without sockets: inputs in, outputs of the network out."""

    @property
    def sent_bytes(self) -> int:
        """Bytes that have been sent from device to edge so far."""
        ...


class LocalInference:
    """The uncut network on the device: nothing is sent.

    Parameters
    ----------
    network
        The exported uncut network.
    """

    sent_bytes = 0

    def __init__(self, network: Slice) -> None:
        self._network = network

    def __call__(self, *inputs: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], ...]:
        """Answer as the device will alone."""
        return self._network(*inputs)


class SplitInference:
    """The exported slices with the real codec between them; payloads are sent.

    Parameters
    ----------
    network
        The network that the slices were exported from: its specs and scales.
    slices, runtime, folder
        As :func:`.load_exported` takes them.
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
        self._codecs = [(layer.spec.packing, layer.quantization) for layer in network.layers]
        self.sent_bytes = 0

    def __call__(self, *inputs: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], ...]:
        """Answer as device and edge will."""
        crossing = zip(self._device(*inputs), self._codecs, strict=True)
        packed = [encode(x, spec, quantization) for x, (spec, quantization) in crossing]
        self.sent_bytes += sum(each.nbytes for each in packed)
        return self._edge(*(decode(each, layout="nchw") for each in packed))


class ImageInference:
    """The uncut network on the edge; the photographs of a data set are sent as images.

    Parameters
    ----------
    network
        The exported uncut network.
    data
        The photographs. Each call answers for the next one.
    image_format, quality
        How they are sent; the quality is JPEG's.
    """

    def __init__(
        self,
        network: Slice,
        data: Photographs,
        image_format: ImageFormat,
        quality: int | None,
    ) -> None:
        self._network, self._data = network, data
        self._format, self._quality = image_format, quality
        self._index = 0
        self.sent_bytes = 0

    def __call__(self, *inputs: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], ...]:
        """Answer for the next photograph; ``inputs`` are the same one before it is sent."""
        preprocessing = self._data.preprocessing
        sent = image_encode(self._data.frame(self._index), self._format, self._quality)
        self._index += 1
        self.sent_bytes += len(sent)
        frame = image_decode(sent, self._format, preprocessing.frame_shape)
        return self._network(preprocessing.tensor(frame))


def verify(
    network: nn.Module, exported: Slice, example: tuple[torch.Tensor, ...], runtime: str
) -> None:
    """Check that slices exported for a runtime answer the same as the trained network.

    Parameters
    ----------
    network
        The trained network.
    exported
        The slices.
    example
        Inputs to compare on.
    runtime
        The runtime's name, for the message.

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
    for answer, correct in zip(answers, expected, strict=True):
        tolerance = 0.05 * float(correct.abs().max()) + 1e-3
        worst = float(np.abs(answer - correct.numpy()).max())
        if not worst <= tolerance:
            raise PrepareError(
                f"the {runtime} slices do not answer what the network answers (off by {worst:.3g} "
                f"where {tolerance:.3g} is tolerated): this runtime cannot run this network "
                "faithfully, prepare it without"
            )


def measure(inference: Inference, data: Data, task: Task, *, before: float) -> Accuracy:
    """Score an inference, one sample at a time.

    Parameters
    ----------
    inference
        The deployed network.
    data
        Validation data.
    task
        The metric.
    before
        The uncut network's score, for the record.

    Raises
    ------
    PrepareError
        If there are no samples.
    """
    counts, samples = None, 0
    sent_before = inference.sent_bytes
    for inputs, target in samples_of(data):
        answers = [torch.from_numpy(x) for x in inference(*(part.numpy() for part in inputs))]
        step = task.tally(answers[0] if len(answers) == 1 else tuple(answers), target)
        counts = step if counts is None else counts + step
        samples += 1
    if counts is None:
        raise PrepareError("the validation data set is empty")
    sent = (inference.sent_bytes - sent_before) / samples
    return Accuracy(before, task.score(counts), samples, task.metric, round(sent, 1))
