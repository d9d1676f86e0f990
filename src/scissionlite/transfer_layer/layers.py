"""The Transfer Layer as torch modules, for training with pooling and quantization in the loop.

Forward, they compute bit for bit what the runtime codec (:mod:`.codec`) does to finite values:
docs/numerics.md is the contract of both. Backward, rounding passes the gradient straight through
(Bengio, Leonard, Courville, arXiv 1308.3432) and saturated values stop it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from scissionlite.transfer_layer.codec import Quantization
from scissionlite.transfer_layer.spec import TransferSpec


class DeviceTL(nn.Module):
    """The device's half: max-pool, and for int8 quantize (arXiv 2105.02019, "DeviceTL").

    Input float32 ``(N, C, H, W)``; output float32 ``(N, C, ceil(H/2), ceil(W/2))`` for 2x2
    pooling, holding the integer codes -128 to 127 where the spec says int8.
    """

    def __init__(self, spec: TransferSpec, quantization: Quantization | None) -> None:
        super().__init__()
        self.spec = spec
        self.quantization = quantization

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pool and quantize."""
        if self.spec.pool > 1:
            x = F.max_pool2d(x, self.spec.pool, ceil_mode=True)
        if self.quantization is None:
            return x
        zero_point = self.quantization.zero_point
        inverse = float(np.float32(1.0) / np.float32(self.quantization.scale))
        codes = torch.clamp(x * inverse, -128 - zero_point, 127 - zero_point)
        rounded: torch.Tensor = _RoundStraightThrough.apply(codes)  # type: ignore[no-untyped-call]  # torch has no annotation
        return rounded + zero_point


class EdgeTL(nn.Module):
    """The edge's half: dequantize and upsample to the original size (paper: "EdgeTL")."""

    def __init__(self, spec: TransferSpec, quantization: Quantization | None) -> None:
        super().__init__()
        self.spec = spec
        self.quantization = quantization

    def forward(self, x: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
        """Restore ``x`` to height and width ``size``."""
        if self.quantization is not None:
            x = (x - self.quantization.zero_point) * float(np.float32(self.quantization.scale))
        if self.spec.pool > 1:
            x = F.interpolate(x, scale_factor=self.spec.pool, mode="nearest")
            x = x[..., : size[0], : size[1]]
        return x


class TransferLayer(nn.Module):
    """DeviceTL followed by EdgeTL: what stands at the cut while the network is retrained.

    Parameters
    ----------
    spec
        What the layer does.
    quantization
        Scale and zero point; needed for int8, None otherwise.
    """

    def __init__(self, spec: TransferSpec, quantization: Quantization | None = None) -> None:
        super().__init__()
        self.device = DeviceTL(spec, quantization)
        self.edge = EdgeTL(spec, quantization)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Send ``x`` through the layer; same shape and dtype come out."""
        restored: torch.Tensor = self.edge(self.device(x), tuple(x.shape[2:]))
        return restored


class _RoundStraightThrough(torch.autograd.Function):
    """Round half to even forward, identity backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *grad: torch.Tensor) -> torch.Tensor:
        return grad[0]
