"""Inserter: puts the Transfer Layer into the network at a slicing point (arXiv 2105.02019)."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.utils.data import DataLoader

from scissionlite.errors import PrepareError
from scissionlite.graph import Graph, SlicingPoint
from scissionlite.preprocessor.data import Sample, as_inputs
from scissionlite.transfer_layer import Quantization, TransferSpec
from scissionlite.transfer_layer.layers import TransferLayer
from scissionlite.values import flat


class SlicedNetwork(nn.Module):
    """Device slice, Transfer Layers and edge slice, as one network that can be retrained.

    Attributes
    ----------
    device_slice, edge_slice : torch.nn.Module
        The two slices; copies, so the captured network keeps its weights.
    transfer_layers : torch.nn.ModuleList of TransferLayer
        What stands between them: one for each tensor that crosses.
    train_device_slice : bool
        Whether the device slice learns too. Frozen, it also keeps its batch statistics, so that
        several slicing points can share one device network.
    """

    def __init__(
        self,
        device_slice: nn.Module,
        transfer_layers: Sequence[TransferLayer],
        edge_slice: nn.Module,
        *,
        train_device_slice: bool = False,
    ) -> None:
        super().__init__()
        self.device_slice = device_slice
        self.transfer_layers = nn.ModuleList(transfer_layers)
        self.edge_slice = edge_slice
        self.train_device_slice = train_device_slice
        self.device_slice.requires_grad_(train_device_slice)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Answer as the two machines together will: one tensor, or a tuple of several."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.train_device_slice):
            crossing = self.device_slice(*inputs)
        answer: torch.Tensor | tuple[torch.Tensor, ...] = self.edge_slice(*self.transfer(crossing))
        return answer

    @property
    def layers(self) -> list[TransferLayer]:
        """The Transfer Layers in order."""
        return list(self.transfer_layers)  # type: ignore[arg-type]  # ModuleList knows Modules only

    def transfer(self, crossing: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Send what crosses through the Transfer Layers."""
        pairs = zip(self.transfer_layers, flat(crossing), strict=True)
        return [layer(tensor) for layer, tensor in pairs]

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
        What the Transfer Layer does. Each tensor that crosses has it as far as it makes sense for
        its shape (:meth:`scissionlite.TransferSpec.adapted_to`).
    calibration
        Batches of inputs and labels from which the ranges of what crosses are found; needed for
        int8 and int4. The labels are not looked at.
    calibration_batches
        How many batches of it to use.
    train_device_slice
        Whether the device slice will learn too.

    Raises
    ------
    PrepareError
        If the spec is not valid for anything that crosses at this point, or int8 or int4 has no
        calibration data.
    """
    cut = graph.point(point)
    shapes = [tensor.shape for tensor in cut.crossing]
    if not any(map(spec.valid_for, shapes)):
        raise PrepareError(
            f"{spec.label} cannot stand {cut}: what crosses has shape "
            f"{', '.join(map(str, shapes))}, and pooling needs (batch, channels, height, width) "
            "with height and width of 2 or more, scales for each channel and nhwc three dimensions"
        )
    # One copy for both, so that a weight used on either side of the cut stays one weight.
    device_slice, edge_slice = copy.deepcopy(graph.split(cut))
    specs = [spec.adapted_to(shape) for shape in shapes]
    quantizations: list[Quantization | None] = [None] * len(specs)
    if spec.quantized:
        if calibration is None:
            raise PrepareError(
                f"{spec.label} needs training data to calibrate its scale: give train="
            )
        batches = (as_inputs(x) for x, _ in itertools.islice(calibration, calibration_batches))
        quantizations[:] = calibrate(device_slice, specs, batches)
    return SlicedNetwork(
        device_slice,
        [TransferLayer(*pair) for pair in zip(specs, quantizations, strict=True)],
        edge_slice,
        train_device_slice=train_device_slice,
    )


def calibrate(
    device_slice: nn.Module,
    specs: Sequence[TransferSpec],
    batches: Iterable[tuple[torch.Tensor, ...]],
) -> list[Quantization]:
    """Scales and zero points that cover everything that crosses for some batches of inputs.

    Returns
    -------
    list of Quantization
        One for each tensor that crosses.

    Raises
    ------
    PrepareError
        If there are no batches, or what crosses is not finite.
    """
    pools = [
        TransferLayer(TransferSpec(pool=spec.pool, pool_kind=spec.pool_kind, dtype="float32"))
        for spec in specs
    ]
    lows: list[list[torch.Tensor]] = [[] for _ in specs]
    highs: list[list[torch.Tensor]] = [[] for _ in specs]
    with torch.inference_mode():
        for inputs in batches:
            for i, features in enumerate(flat(device_slice(*inputs))):
                pooled = pools[i].device(features)
                # All but the channels, or all.
                each_channel = specs[i].granularity == "channel"
                groups = pooled.transpose(0, -3) if each_channel else pooled[None]
                lows[i].append(groups.flatten(1).amin(1))
                highs[i].append(groups.flatten(1).amax(1))
    found = []
    for spec, low, high in zip(specs, lows, highs, strict=True):
        if not low or not torch.isfinite(torch.stack(low + high)).all():
            raise PrepareError(
                "the device slice answers NaN, infinities or nothing on the calibration data: "
                "check that the network was trained and that the data set is not empty"
            )
        bounds = torch.stack(low).amin(0).numpy(), torch.stack(high).amax(0).numpy()
        if spec.granularity == "tensor":
            bounds = bounds[0].item(), bounds[1].item()
        found.append(Quantization.from_range(*bounds, spec.dtype, spec.scheme))
    return found
