"""Inserter: puts the Transfer Layer into the network at a slicing point (arXiv 2105.02019)."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable

import torch
from torch import nn
from torch.utils.data import DataLoader

from scissionlite.errors import PrepareError
from scissionlite.graph import Graph, SlicingPoint
from scissionlite.preprocessor.data import Sample
from scissionlite.transfer_layer import Quantization, TransferSpec
from scissionlite.transfer_layer.layers import TransferLayer


class SlicedNetwork(nn.Module):
    """Device slice, Transfer Layer and edge slice, as one network that can be retrained.

    Attributes
    ----------
    device_slice, edge_slice : torch.nn.Module
        The two slices; copies, so the captured network keeps its weights.
    transfer_layer : TransferLayer
        What stands between them.
    train_device_slice : bool
        Whether the device slice learns too. Frozen, it also keeps its batch statistics, so that
        several slicing points can share one device network.
    """

    def __init__(
        self,
        device_slice: nn.Module,
        transfer_layer: TransferLayer,
        edge_slice: nn.Module,
        *,
        train_device_slice: bool = False,
    ) -> None:
        super().__init__()
        self.device_slice = device_slice
        self.transfer_layer = transfer_layer
        self.edge_slice = edge_slice
        self.train_device_slice = train_device_slice
        self.device_slice.requires_grad_(train_device_slice)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Answer as the two machines together will."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.train_device_slice):
            crossing = self.device_slice(x)
        answer: torch.Tensor = self.edge_slice(self.transfer_layer(crossing))
        return answer

    def train(self, mode: bool = True) -> SlicedNetwork:
        """Switch to training mode, except for a device slice that is frozen."""
        super().train(mode)
        if not self.train_device_slice:
            self.device_slice.eval()
        return self


def insert(
    graph: Graph,
    point: SlicingPoint | str | int,
    spec: TransferSpec,
    *,
    calibration: DataLoader[Sample] | None = None,
    calibration_batches: int = 8,
    train_device_slice: bool = False,
) -> SlicedNetwork:
    """Insert a Transfer Layer.

    Parameters
    ----------
    graph
        The captured network.
    point
        Where to cut.
    spec
        What the Transfer Layer does.
    calibration
        Batches of inputs and labels from which the range of what crosses is found; needed for
        int8 and int4. The labels are not looked at.
    calibration_batches
        How many batches of it to use.
    train_device_slice
        Whether the device slice will learn too.

    Raises
    ------
    PrepareError
        If the spec is not valid for what crosses at this point, or int8 or int4 has no
        calibration data.
    """
    cut = graph.point(point)
    if not spec.valid_for(cut.shape):
        raise PrepareError(
            f"{spec.label} cannot stand {cut}: the crossing tensor has shape {cut.shape}, and "
            "pooling needs (batch, channels, height, width) with height and width of 2 or more, "
            "scales for each channel and nhwc three dimensions"
        )
    # One copy for both, so that a weight used on either side of the cut stays one weight.
    device_slice, edge_slice = copy.deepcopy(graph.split(cut))
    quantization = None
    if spec.quantized:
        if calibration is None:
            raise PrepareError(
                f"{spec.label} needs training data to calibrate its scale: give train="
            )
        batches = (x for x, _ in itertools.islice(calibration, calibration_batches))
        quantization = calibrate(device_slice, spec, batches)
    return SlicedNetwork(
        device_slice,
        TransferLayer(spec, quantization),
        edge_slice,
        train_device_slice=train_device_slice,
    )


def calibrate(
    device_slice: nn.Module, spec: TransferSpec, batches: Iterable[torch.Tensor]
) -> Quantization:
    """Scales and zero points that cover everything that crosses for some batches of inputs."""
    pool = TransferLayer(TransferSpec(pool=spec.pool, pool_kind=spec.pool_kind, dtype="float32"))
    lows, highs = [], []
    with torch.inference_mode():
        for x in batches:
            pooled = pool.device(device_slice(x))
            # All but the channels, or all.
            groups = pooled.transpose(0, -3) if spec.granularity == "channel" else pooled[None]
            lows.append(groups.flatten(1).amin(1))
            highs.append(groups.flatten(1).amax(1))
    if not lows or not torch.isfinite(torch.stack(lows + highs)).all():
        raise PrepareError(
            "the device slice answers NaN, infinities or nothing on the calibration data: check "
            "that the network was trained and that the data set is not empty"
        )
    low, high = torch.stack(lows).amin(0).numpy(), torch.stack(highs).amax(0).numpy()
    if spec.granularity == "tensor":
        return Quantization.from_range(low.item(), high.item(), spec.dtype, spec.scheme)
    return Quantization.from_range(low, high, spec.dtype, spec.scheme)
