"""Splitter: checks and scores the exported slices against the network that they came from."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from scissionlite.errors import PrepareError, without_reports
from scissionlite.graph.analysis import flat, varied_inputs
from scissionlite.graph.graph import Graph
from scissionlite.graph.tensors import TensorInfo
from scissionlite.images import ImageFormat, image_decode, image_encode
from scissionlite.manifest import Accuracy, NextHop, Role, SliceFile, Variant
from scissionlite.preprocessor.data import Data, Photographs, samples_of
from scissionlite.preprocessor.inserter import SlicedNetwork
from scissionlite.preprocessor.metrics import constant_answer, recalls
from scissionlite.preprocessor.tasks import Scored, Task
from scissionlite.runtimes import Slice
from scissionlite.runtimes.export import load_exported
from scissionlite.transfer_layer import decode, encode

LARGE_DROP = 0.05
"""Fall of a score between 0 and 1 that is warned about, as any fall to the share of the most
frequent class."""


class AccuracyWarning(UserWarning):
    """A bundle is much less accurate than the network that it was prepared from."""


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
    variant
        The manifest's description of the split.
    slices, runtime, folder
        As :func:`.load_exported` takes them.
    next_hop
        The manifest's description of the second hop, with three tiers.
    """

    def __init__(
        self,
        variant: Variant,
        slices: dict[Role, tuple[SliceFile, ...]],
        runtime: str,
        folder: Path,
        *,
        next_hop: NextHop | None = None,
    ) -> None:
        self._device = [load_exported(slices, role, runtime, folder) for role in variant.device]
        self.edge: Slice
        if next_hop is None:
            self.edge = load_exported(slices, variant.edge, runtime, folder)
        else:
            self.edge = SplitInference(_beyond(variant, next_hop), slices, runtime, folder)
        self._crossing = variant.crossing
        self.sent_bytes = 0

    def __call__(self, *inputs: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], ...]:
        """Answer as device and edge will.

        Raises
        ------
        PrepareError
            As for :meth:`arrived`.
        """
        return self.edge(*self.arrived(*inputs))

    def arrived(self, *inputs: npt.NDArray[Any]) -> list[npt.NDArray[np.float32]]:
        """Run the device's part, and decode what it sends: the edge slice's inputs.

        Raises
        ------
        PrepareError
            If what crosses is not what the manifest describes: the daemon would refuse it.
        """
        packed = []
        features: tuple[npt.NDArray[Any], ...] = inputs
        for part in self._device:
            features = part(*features)
        for x, tensor in zip(features, self._crossing, strict=True):
            _check_tensor("crosses", x, tensor, len(inputs[0]))
            packed.append(encode(x, tensor.transfer, tensor.quantization, tables=tensor.tables))
            assert packed[-1].nbytes <= tensor.transfer.packed_nbytes(x.shape)
        self.sent_bytes += sum(each.nbytes for each in packed)
        return [decode(each, layout="nchw") for each in packed]

    def differ_by_rounding(
        self, arrived: Sequence[npt.NDArray[Any]], correct: Sequence[npt.NDArray[Any]]
    ) -> bool:
        """Whether no code is more than one from the correct one: a value on a rounding border.

        A learned Transfer Layer mixes codes, so that this cannot be told; then False.
        """
        for x, y, tensor in zip(arrived, correct, self._crossing, strict=True):
            if tensor.quantization is None or tensor.transfer.learned:
                return False
            step = max(tensor.quantization.groups[0])
            if not _worst(x, y) <= 1.001 * step:
                return False
        return True


def _beyond(variant: Variant, hop: NextHop) -> Variant:
    """The second hop of three tiers as a split of its own: the edge is the device there."""
    return Variant(
        name=hop.transfer.name,
        slicing_point=hop.slicing_point,
        crossing=hop.crossing,
        transfer=hop.transfer,
        device=(variant.edge,),
        edge="cloud",
    )


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


def promised_inputs(
    graph: Graph, real: Sequence[tuple[torch.Tensor, ...]], max_batch: int
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Inputs of batch sizes that a bundle promises to take: the least, the most, one between.

    Parameters
    ----------
    graph
        The captured network; a bundle takes the batch of its example, too.
    real
        Real inputs if there are data, else the example; they are used for their own batch size.
    max_batch
        The manifest's.
    """
    batches = {len(graph.example[0])}
    if max_batch > 1:
        batches |= {1, (1 + max_batch) // 2, max_batch}
    for batch in sorted(batches):
        if batch == len(real[0][0]):
            yield from real
        else:
            yield tuple(varied_inputs(graph.example, (1.0,), batch))


def verify(
    network: nn.Module,
    exported: Slice,
    example: tuple[torch.Tensor, ...],
    runtime: str,
    outputs: Sequence[TensorInfo] | None = None,
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
    outputs
        The manifest's description of the outputs, to be checked as well.

    Raises
    ------
    PrepareError
        If they do not: a runtime that computes something else must not be deployed.
    """
    batch = len(example[0])
    with torch.inference_mode():
        expected = flat(network(*example))
    try:
        answers = exported(*(x.numpy() for x in example))
    except PrepareError:
        raise
    except Exception as error:  # each runtime has errors of its own
        raise PrepareError(
            f"the {runtime} slices do not run on a batch of {batch}: {_reason(error)}"
        ) from error
    for answer, tensor in zip(answers, outputs or (), strict=outputs is not None):
        _check_tensor("is answered", answer, tensor, batch)
    worst, tolerance = _furthest(answers, [x.numpy() for x in expected])
    if not worst <= tolerance and (rounded := _to_what_arrived(network, exported, example)):
        worst, tolerance = _furthest(answers, rounded)
    if not worst <= tolerance:
        raise PrepareError(
            f"the {runtime} slices do not answer what the network answers (off by {worst:.3g} "
            f"where {tolerance:.3g} is tolerated): this runtime cannot run this network "
            "faithfully, prepare it without"
        )


def _furthest(
    answers: Sequence[npt.NDArray[np.float32]], correct: Sequence[npt.NDArray[np.float32]]
) -> tuple[float, float]:
    """The largest difference of the answer that is furthest off, and what is tolerated there.

    Convolutions sum in another order once batch norms are folded into them; where that moves a
    value over a rounding border of int8, a code differs by one, hence the tolerance.
    """
    pairs = []
    for answer, each in zip(answers, correct, strict=True):
        finite = np.abs(each[np.isfinite(each)])
        pairs.append((_worst(answer, each), 0.05 * float(finite.max(initial=0.0)) + 1e-3))
    return max(pairs, key=lambda pair: pair[0] / pair[1])


def _to_what_arrived(
    network: nn.Module, exported: Slice, example: tuple[torch.Tensor, ...]
) -> list[npt.NDArray[np.float32]]:
    """Run the network behind the codes that the slices send, which may differ by rounding.

    With few codes, or a small feature map, one of them may change the answer by more than is
    tolerated. Empty if that is not it.
    """
    if not isinstance(exported, SplitInference) or not isinstance(network, SlicedNetwork):
        return []
    arrived = exported.arrived(*(x.numpy() for x in example))
    with torch.inference_mode():
        own = [x.numpy() for x in network.transfer(network.features(*example))]
        if not exported.differ_by_rounding(arrived, own):
            return []
        received = tuple(map(torch.from_numpy, arrived))
        # Where three tiers send on, the codes of the second hop may differ by rounding, too.
        further = _to_what_arrived(network.edge_slice, exported.edge, received)
        return further or [x.numpy() for x in flat(network.edge_slice(*received))]


def _worst(answer: npt.NDArray[np.float32], correct: npt.NDArray[np.float32]) -> float:
    """The largest difference; infinities and NaN, which random inputs may give, must be equal."""
    with np.errstate(invalid="ignore"):
        off = np.abs(answer - correct)
    off[(answer == correct) | (np.isnan(answer) & np.isnan(correct))] = 0
    return float(off.max(initial=0))


def _check_tensor(verb: str, array: npt.NDArray[Any], tensor: TensorInfo, batch: int) -> None:
    """Raise PrepareError unless an array is what the manifest says of a batch of this size."""
    # An output without a batch dimension keeps its shape.
    shape = tensor.shape if array.shape == tensor.shape else tensor.of_batch(batch)
    if array.shape != shape or array.dtype.name != tensor.dtype:
        raise PrepareError(
            f"{array.dtype.name} of shape {array.shape} {verb} for a batch of {batch}, and the "
            f"manifest says {tensor.dtype} of shape {shape} for {tensor.name}"
        )


def _reason(error: Exception) -> str:
    """The line of a runtime's error that says what is wrong."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # TorchScript's first line says nothing, and its traceback is of generated code.
    return without_reports(lines[-1] if "TorchScript interpreter" in lines[0] else lines[0])


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

    Warns
    -----
    AccuracyWarning
        If a score between 0 and 1 falls by more than ``LARGE_DROP``; or if one of classes falls to
        what always answering the most frequent class has, or less.

    Raises
    ------
    PrepareError
        If there are no samples.
    """
    scored, samples = Scored(task), 0
    sent_before = inference.sent_bytes
    for inputs, target in samples_of(data):
        answers = [torch.from_numpy(x) for x in inference(*(part.numpy() for part in inputs))]
        scored.add(answers[0] if len(answers) == 1 else tuple(answers), target)
        samples += 1
    score = scored.score()
    sent = (inference.sent_bytes - sent_before) / samples
    counts = scored.counts()
    shares = () if counts is None else recalls(counts)
    accuracy = Accuracy(before, score, samples, task.metric, round(sent, 1), shares)
    constant = 0.0 if counts is None else task.score(constant_answer(counts))
    if text := _drop_text(accuracy, constant):
        warnings.warn(text, AccuracyWarning, stacklevel=2)
    return accuracy


def _drop_text(accuracy: Accuracy, constant_score: float) -> str:
    """Describe a drop of the score that is worth a warning; empty if there is none."""
    before, after = accuracy.before, accuracy.after
    # The scale of a metric of one's own is not known.
    shares = 0 <= after <= before <= 1
    constant = after < before and after <= constant_score
    if not shares or not (constant or before - after > LARGE_DROP):
        return ""
    text = f"the {accuracy.metric} fell from {before:.1%} to {after:.1%}"
    if constant:
        text += f", and always answering the most frequent class has {constant_score:.1%}"
    return (
        f"{text}: train for more epochs or on more data, or choose a milder Transfer Layer "
        "(a smaller pool, a learned one, another slicing point)"
    )
