"""Rate: the bytes that a network's Transfer Layers send, as a term of the loss.

Training minimises ``distortion + weight * bits``, bits being the mean of a code (Balle, Laparra,
Simoncelli, arXiv 1611.01704, equation 10). Rounding passes gradients straight through, as in the
rest of the loss, so the bits are those of the very codes that will be sent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import nn

from scissionlite.transfer_layer.code_density import CodeDensity, rows_of
from scissionlite.transfer_layer.entropy import ans_overhead

if TYPE_CHECKING:
    from scissionlite.preprocessor.batches import Batch
    from scissionlite.preprocessor.inserter import SlicedNetwork
    from scissionlite.transfer_layer.layers import TransferLayer

FASTER_SCALES, FASTER_DENSITIES = 5, 30
"""Learning rates of scales and of densities over that of the weights.

Both are logarithms or of the size of 1. Densities have to follow the values closely, or the
estimate is too high. Scales that learn as fast disturb the rest (docs/accuracy.md, "Bytes in the
loss")."""

_FIRST_WEIGHT = 0.03
"""Where the weight starts when there is a target."""

_INTEGRAL, _PROPORTIONAL = 0.5, 8.0
"""How far the weight's logarithm moves for bytes e times too many: from this step on, and in this
step alone. Without the second the bytes swing around the target."""

_LARGEST_FACTOR = 256.0
"""How many times larger steps are tried to start at the target."""

_MAX_BATCHES = 64
"""Most batches that the final estimate is made from."""


class Rate(nn.Module):
    """The rate term of a network's loss.

    Parameters
    ----------
    layers
        The network's Transfer Layers.
    codes
        Their codes for some inputs, from which the densities start.
    weight
        Weight of the mean bits of a code.
    target
        Bytes of an input to reach, all its tensors together, or None. With a target, every
        training step moves the weight towards it.
    """

    log_weight: torch.Tensor

    def __init__(
        self,
        layers: Sequence[TransferLayer],
        codes: Sequence[torch.Tensor],
        weight: float,
        target: int | None,
    ) -> None:
        super().__init__()
        self._target = target
        self._numbers = [i for i, layer in enumerate(layers) if layer.device.scales is not None]
        densities = []
        for i in self._numbers:
            scales = layers[i].device.scales
            assert scales is not None  # by the line above
            densities.append(CodeDensity(layers[i].spec.dtype, codes[i], scales))
        self.densities = nn.ModuleList(densities)
        # In the state dict, so that an interrupted training goes on with it.
        start = weight or _FIRST_WEIGHT
        self.register_buffer("log_weight", torch.tensor(math.log(start), device=codes[0].device))

    @property
    def weight(self) -> float:
        """The present weight."""
        return math.exp(float(self.log_weight))

    def forward(
        self, layers: Sequence[TransferLayer], codes: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """The term of a batch: the weight times the mean bits of a code."""
        bits = self._bits(layers, codes)
        log_weight = self.log_weight.clone()
        if self._target is not None and self.training:
            with torch.no_grad():
                excess = torch.log(self._bytes(bits, codes) / self._target).clamp(-1, 1)
                log_weight += _PROPORTIONAL * excess
                self.log_weight += _INTEGRAL * excess
        return log_weight.exp() * bits / sum(codes[i].numel() for i in self._numbers)

    def estimated_bytes(self, network: SlicedNetwork, batches: Iterable[Batch]) -> float:
        """Estimate the mean bytes of an input, entropy-coded with tables of its own network."""
        found = []
        with torch.no_grad():
            for batch in islice(batches, _MAX_BATCHES):
                codes = network.send(batch.features or network.features(*batch.inputs))
                found.append(float(self._bytes(self._bits(network.layers, codes), codes)))
        return sum(found) / len(found)

    def _bits(self, layers: Sequence[TransferLayer], codes: Sequence[torch.Tensor]) -> torch.Tensor:
        found = []
        for density, i in zip(self.densities, self._numbers, strict=True):
            found.append(density(codes[i].float(), layers[i].device.scales).sum())
        return torch.stack(found).sum()

    def _bytes(self, bits: torch.Tensor, codes: Sequence[torch.Tensor]) -> torch.Tensor:
        """The mean bytes of an input."""
        inputs = len(codes[self._numbers[0]])
        overhead = sum(ans_overhead(codes[i][0].numel()) for i in self._numbers)
        return bits / 8 / inputs + overhead


def start_at(network: SlicedNetwork, features: Sequence[torch.Tensor], target: int) -> None:
    """Make the steps of learned scales as large as the target needs before any training.

    The larger steps are, the fewer bits the codes have. So the factor, one for all scales, is found
    by bisection. Steps never become smaller than calibration has made them.

    Parameters
    ----------
    network
        The network; its scales are changed.
    features
        Features at the slicing point for some inputs.
    target
        Bytes of an input.
    """
    parameters = [
        layer.device.scales.log_scale
        for layer in network.layers
        if layer.device.scales is not None and layer.device.scales.log_scale is not None
    ]
    first = [p.detach().clone() for p in parameters]
    low, high = 0.0, math.log(_LARGEST_FACTOR)

    def expected_bytes(log_factor: float) -> float:
        for p, start in zip(parameters, first, strict=True):
            p.copy_(start + log_factor)
        sent = zip(network.layers, network.send(features), strict=True)
        return sum(_table_bytes(codes) for layer, codes in sent if layer.device.scales is not None)

    with torch.no_grad():
        if not parameters or expected_bytes(low) <= target:
            return
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (middle, high) if expected_bytes(middle) > target else (low, middle)
        expected_bytes(high)


def _table_bytes(codes: torch.Tensor) -> float:
    """The mean bytes of an input's codes with the tables that fit them best."""
    bits = 0.0
    for row in rows_of(codes):
        counts = row.unique(return_counts=True)[1]
        bits -= float((counts * (counts / counts.sum()).log2()).sum())
    return bits / 8 / len(codes) + ans_overhead(codes[0].numel())
