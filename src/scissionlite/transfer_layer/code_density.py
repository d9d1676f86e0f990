"""How many bits the codes of a Transfer Layer take: a density per channel that learns in training.

The entropy coder "ans" has a static table for each channel. Its bytes are, but for rounding, the
cross entropy of the codes with these tables. Tables have no gradient, so training has a smooth
model in their place: a mixture of logistic distributions per channel, over the values that the
codes stand for (PixelCNN++: Salimans et al., arXiv 1701.05517, section 2.1). The probability of a
code is the mixture's mass in the code's step. So it has a gradient with respect to the values, and
to the size of a step as well.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from scissionlite.transfer_layer.entropy_tables import MAX_CHANNELS
from scissionlite.transfer_layer.layers import Scales
from scissionlite.transfer_layer.spec import CODE_RANGES

COMPONENTS = 3
"""Logistic distributions of a channel's mixture: one body, and a spike or two tails."""

_ESCAPE = 2.0**-10
"""Share of the mass that all codes have alike: a value far off costs bits, but not without end."""

_LOGISTIC = math.sqrt(3) / math.pi
"""Scale of the logistic distribution with standard deviation 1."""


class CodeDensity(nn.Module):
    """Estimates the bits of a Transfer Layer's codes.

    Parameters
    ----------
    dtype
        "int8" or "int4".
    codes
        Codes of some inputs, as :class:`.layers.DeviceTL` makes them, batch first. The mixtures
        start from their means and standard deviations. With at least four dimensions each channel
        has a mixture, otherwise there is one for all, as :func:`.fit_tables` has it.
    scales
        Scales and zero points of these codes.
    """

    spread: torch.Tensor

    def __init__(self, dtype: str, codes: torch.Tensor, scales: Scales) -> None:
        super().__init__()
        self._low, self._high = CODE_RANGES[dtype]
        with torch.no_grad():
            step = scales.steps()[0]
            rows = rows_of((codes - scales.zero_point) * step)
            # A channel of one value still needs a width: half a step, of which most is one code.
            spread = rows.std(1, correction=0).clamp_min(0.5 * float(step.min()))
            centre = rows.mean(1) / spread
        self.register_buffer("spread", spread)
        offsets = torch.linspace(-1, 1, COMPONENTS, device=codes.device)
        self.mean = nn.Parameter(centre[:, None] + offsets)
        self.log_width = nn.Parameter(torch.full_like(self.mean, math.log(0.7 * _LOGISTIC)))
        self.logit = nn.Parameter(torch.zeros_like(self.mean))

    def forward(self, codes: torch.Tensor, scales: Scales) -> torch.Tensor:
        """Estimate the bits of each channel's codes: shape (channels,), with gradients.

        Parameters
        ----------
        codes
            As the codes that it was made from; their rounding passes gradients straight through.
        scales
            The present scales and zero points.
        """
        step = scales.steps()[0]
        below = rows_of((codes - scales.zero_point - 0.5) * step)
        above = rows_of((codes - scales.zero_point + 0.5) * step)
        rows = rows_of(codes.detach())
        # Whatever lies beyond the last code becomes the last code.
        mass = torch.where(rows >= self._high, 1.0, self._cumulated(above)) - torch.where(
            rows <= self._low, 0.0, self._cumulated(below)
        )
        symbols = self._high - self._low + 1
        bits: torch.Tensor = -torch.log2((1 - _ESCAPE) * mass + _ESCAPE / symbols).sum(1)
        return bits

    def _cumulated(self, values: torch.Tensor) -> torch.Tensor:
        """The mixture's mass below values of shape (channels, values)."""
        mean, width = self.mean[..., None], torch.exp(-self.log_width)[..., None]
        shares = F.softmax(self.logit, 1)[..., None]
        z = (values / self.spread[:, None])[:, None] - mean
        return (shares * torch.sigmoid(z * width)).sum(1)


def rows_of(values: torch.Tensor) -> torch.Tensor:
    """Return values of some inputs, batch first, as one row for each table of the coder.

    With at least four dimensions a channel is a row; otherwise all values are one
    (:func:`.fit_tables`).
    """
    per_channel = values.ndim >= 4 and values.shape[-3] <= MAX_CHANNELS
    return (values.transpose(0, -3) if per_channel else values[None]).flatten(1)
