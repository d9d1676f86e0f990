"""Predicted accuracy drops: how far the answers move before any training.

The uncut network answers some photographs. Then an untrained Transfer Layer, calibrated on the same
photographs, stands at the slicing point, and the edge slice answers again. No labels are needed:
the uncut network is the reference, as it is in training. ``bench/drops.py`` compares this figure,
and others, with the drops that were measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from msgspec import structs

from scissionlite.errors import CodecError
from scissionlite.graph.analysis import flat, multiplications
from scissionlite.graph.graph import Graph, SlicingPoint
from scissionlite.images import ImageFormat, image_decode, image_encode
from scissionlite.runtimes import Slice
from scissionlite.scissiontl.codecs import CODECS, LEARNED
from scissionlite.scissiontl.inputs import Frames
from scissionlite.scissiontl.leakage import MIN_IMAGES
from scissionlite.scissiontl.profile import Profile
from scissionlite.transfer_layer import TransferSpec
from scissionlite.transfer_layer.calibration import calibrated_layer
from scissionlite.transfer_layer.layers import TransferLayer
from scissionlite.transfer_layer.spec import ENCODER_SHARE

MOST_IMAGES = 16
"""Most photographs with which drops are predicted: a pass for each Transfer Layer takes long."""

_BATCH = 16

Inputs = tuple[torch.Tensor, ...]


class DropMeter:
    """The uncut network's answers to some inputs, and the distance of others from them.

    Parameters
    ----------
    graph
        The captured network.
    inputs
        Inputs of the network, each of the example's batch.
    """

    def __init__(self, graph: Graph, inputs: Sequence[Inputs]) -> None:
        self._graph = graph
        self._batches = _joined(inputs) if graph.dynamic_batch else list(inputs)
        with torch.inference_mode():
            self._answers = [flat(graph.module(*batch)) for batch in self._batches]

    def of(self, network: Callable[..., Any], inputs: Sequence[Inputs]) -> float:
        """The drop of another network, or of the network with changed inputs.

        Parameters
        ----------
        network
            Takes the tensors of one input, and answers with tensors.
        inputs
            As many as the meter's, and in their order.
        """
        with torch.inference_mode():
            answers = [flat(network(*each)) for each in inputs]
            singles = ([part.split(len(inputs[0][0])) for part in own] for own in self._answers)
            references = [list(each) for parts in singles for each in zip(*parts, strict=True)]
        pairs = zip(answers, references, strict=True)
        return drop_of(sum(answer_distance(*pair) for pair in pairs) / len(inputs))

    def at(self, point: SlicingPoint, specs: Iterable[TransferSpec]) -> dict[TransferSpec, float]:
        """The drops with untrained Transfer Layers at a slicing point.

        Those that lose the same share one measurement. A learned one that would cost the device too
        much is left out.
        """
        device_slice, edge_slice = self._graph.split(point)
        with torch.inference_mode():
            seen = [flat(device_slice(*batch)) for batch in self._batches]
        # Out of inference mode, as calibration needs them.
        features = [torch.cat([each[i] for each in seen]).clone() for i in range(len(seen[0]))]
        measured: dict[TransferSpec, float | None] = {}
        found = {}
        for spec in specs:
            if not any(spec.valid_for(tensor.shape) for tensor in point.crossing):
                continue
            plain = losses_of(spec)
            if plain not in measured:
                measured[plain] = self._distance(plain, point, device_slice, edge_slice, features)
            if (distance := measured[plain]) is not None:
                found[spec] = distance
        return found

    def _distance(
        self,
        spec: TransferSpec,
        point: SlicingPoint,
        device_slice: torch.nn.Module,
        edge_slice: torch.nn.Module,
        features: Sequence[torch.Tensor],
    ) -> float | None:
        if spec.lossless:
            return 0.0
        specs = [spec.adapted_to(tensor.shape) for tensor in point.crossing]
        learned = sum(each.learned for each in specs)
        budget = 0.0
        if learned:
            budget = ENCODER_SHARE * multiplications(device_slice, self._graph.example) / learned
        try:
            layers = [
                calibrated_layer(own, tuple(tensor.shape), seen, most_multiplications=budget)
                for own, tensor, seen in zip(specs, point.crossing, features, strict=True)
            ]
        except CodecError:
            return None
        sizes = [len(batch[0]) for batch in self._batches]
        with torch.inference_mode():
            batches = zip(*(each.split(sizes) for each in features), strict=True)
            restored = (
                [layer(x) for layer, x in zip(layers, batch, strict=True)] for batch in batches
            )
            return self._mean(flat(edge_slice(*batch)) for batch in restored)

    def _mean(self, answers: Iterable[Sequence[torch.Tensor]]) -> float:
        total = 0.0
        inputs = 0
        for batch, own, reference in zip(self._batches, answers, self._answers, strict=True):
            total += len(batch[0]) * answer_distance(own, reference)
            inputs += len(batch[0])
        return drop_of(total / inputs)


def losses_of(spec: TransferSpec) -> TransferSpec:
    """The plainest Transfer Layer that loses the same: entropy coding and layout lose nothing.

    Rounding to float16 moves no answer that pooling in float32 does not move.
    """
    dtype = "float32" if spec.dtype == "float16" else spec.dtype
    return structs.replace(spec, entropy=None, entropy_level=1, layout="nchw", dtype=dtype)


def answer_distance(answer: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> float:
    """How far an answer is from the uncut network's: 0 where they are equal, without a bound.

    Where the first output can be classes, ``(N, classes)`` or ``(N, classes, height, width)``, it
    is the Kullback-Leibler divergence of their probabilities, the mean over samples or pixels.
    Otherwise it is the squared error of each output over the variance of the reference, the mean
    over outputs.
    """
    first, expected = answer[0], reference[0]
    if first.ndim in (2, 4) and first.shape[1] > 1:
        own, other = first.log_softmax(1), expected.log_softmax(1)
        return float(F.kl_div(own, other, reduction="none", log_target=True).sum(1).mean())
    errors = [
        F.mse_loss(own, other) / other.var(correction=0).clamp_min(1e-12)
        for own, other in zip(answer, reference, strict=True)
    ]
    return float(torch.stack(errors).mean())


def drop_of(distance: float) -> float:
    """The predicted drop, 0 to 1, of a mean distance: its order, and about its size.

    For classes its square root bounds the total variation distance of the probabilities
    (Bretagnolle and Huber, 1979), and so the change of the expected share of right answers.
    """
    return -math.expm1(-max(distance, 0.0))


def _joined(inputs: Sequence[Inputs]) -> list[Inputs]:
    """Batches of several inputs."""
    groups = (inputs[start : start + _BATCH] for start in range(0, len(inputs), _BATCH))
    return [tuple(map(torch.cat, zip(*group, strict=True))) for group in groups]


class Drops(msgspec.Struct, frozen=True):
    """The predicted accuracy drops of a network's codecs, of its image formats, and of int8.

    Attributes
    ----------
    transfers
        By the index of the block and the codec.
    images
        By the image format and its quality.
    encoders
        By the shallow encoder.
    network_int8
        Of the uncut network in int8; None where it was not measured.
    """

    transfers: dict[tuple[int, TransferSpec], float] = {}
    images: dict[tuple[ImageFormat, int | None], float] = {}
    encoders: dict[TransferSpec, float] = {}
    network_int8: float | None = None

    def added_to(self, profile: Profile) -> Profile:
        """A profile with these drops."""
        replace = structs.replace
        return replace(
            profile,
            transfers=tuple(
                replace(t, drop=self.transfers.get((t.block, t.spec))) for t in profile.transfers
            ),
            images=tuple(
                replace(i, drop=self.images.get((i.format, i.quality))) for i in profile.images
            ),
            encoders=tuple(replace(e, drop=self.encoders.get(e.spec)) for e in profile.encoders),
            network_drop_int8=self.network_int8,
        )


def measured_drops(
    graph: Graph,
    frames: Frames,
    points: Iterable[SlicingPoint],
    jpeg_qualities: Iterable[int],
    int8: Slice | None,
    encoders: Mapping[TransferSpec, TransferLayer],
) -> Drops:
    """Measure the drops with some frames; none with fewer than those for leakage.

    Parameters
    ----------
    graph
        The captured network.
    frames
        The photographs.
    points
        The slicing points at which codecs are measured.
    jpeg_qualities
        Qualities of the JPEGs.
    int8
        The uncut network in int8, if there is one.
    encoders
        The shallow encoders; those that share a layer lose the same.
    """
    if len(frames.frames) < MIN_IMAGES:
        return Drops()
    inputs = frames.inputs(frames.frames)
    meter = DropMeter(graph, inputs)
    transfers: dict[tuple[int, TransferSpec], float] = {}
    for point in points:
        found = meter.at(point, (*CODECS, *LEARNED))
        transfers |= {(point.index, spec): drop for spec, drop in found.items()}
    images: dict[tuple[ImageFormat, int | None], float] = {("uint8", None): 0.0, ("png", None): 0.0}
    for quality in jpeg_qualities:
        sent = [_as_jpeg(frame, quality) for frame in frames.frames]
        images["jpeg", quality] = meter.of(graph.module, frames.inputs(sent))
    network = None if int8 is None else meter.of(partial(_answer, int8), inputs)
    behind = {
        layer: meter.of(torch.nn.Sequential(layer, graph.module), inputs)
        for layer in dict.fromkeys(encoders.values())
    }
    at_input = {spec: behind[layer] for spec, layer in encoders.items()}
    return Drops(transfers, images, at_input, network)


def _as_jpeg(frame: npt.NDArray[np.uint8], quality: int) -> npt.NDArray[np.uint8]:
    """A frame as the edge decodes it."""
    return image_decode(image_encode(frame, "jpeg", quality), "jpeg", frame.shape)


def _answer(network: Slice, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """Call a slice with tensors."""
    answers = flat(network(*(each.numpy() for each in inputs)))
    return [torch.from_numpy(each) for each in answers]
