"""The Transfer Layer as torch modules, for training with pooling and quantization in the loop.

Forward, they compute the values of the runtime codec (:mod:`.codec`) bit for bit, for finite
inputs: docs/numerics.md is the contract of both. Backward, rounding passes the gradient straight
through (Bengio, Leonard, Courville, arXiv 1308.3432) and a saturated value has gradient zero.
Layout and entropy coding change no value, so they are not here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from scissionlite.errors import CodecError
from scissionlite.transfer_layer.image_encoder import ImageDecoder
from scissionlite.transfer_layer.learned import Decoder
from scissionlite.transfer_layer.quantization import Quantization
from scissionlite.transfer_layer.spec import CODE_RANGES, TransferSpec


class Scales(nn.Module):
    """Scales and zero points of a Transfer Layer, for both of its halves.

    Parameters
    ----------
    quantization
        The values to start from.
    learned
        Whether training may change the scales (Esser et al., "Learned Step Size Quantization",
        arXiv 1902.08153). The parameter is the logarithm of the scale, so that it stays positive.
    """

    scale: torch.Tensor
    inverse: torch.Tensor
    zero_point: torch.Tensor

    def __init__(self, quantization: Quantization, *, learned: bool = False) -> None:
        super().__init__()
        scale, zero_point = _planes_of(quantization)
        _constant(self, "zero_point", zero_point)
        self.log_scale = nn.Parameter(torch.log(torch.tensor(scale))) if learned else None
        if not learned:
            _constant(self, "scale", scale)
            _constant(self, "inverse", np.float32(1) / scale)

    def steps(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the size of a step, and its reciprocal."""
        if self.log_scale is None:
            return self.scale, self.inverse
        return torch.exp(self.log_scale), torch.exp(-self.log_scale)

    @property
    def quantization(self) -> Quantization:
        """The present values."""
        with torch.no_grad():
            scale = self.steps()[0].cpu()
        zero_point = self.zero_point.cpu()
        if not scale.ndim:
            return Quantization(float(scale), int(zero_point))
        scales, zeros = scale.flatten().tolist(), zero_point.flatten().tolist()
        return Quantization(tuple(scales), tuple(map(int, zeros)))


class DeviceTL(nn.Module):
    """The device's half: pool, and quantize or round (arXiv 2105.02019, "DeviceTL").

    The input is float32 ``(N, C, H, W)`` or ``(C, H, W)``; without pooling any shape will do. The
    output is float32, with height and width divided by the pooling window and rounded up. It holds
    integer codes for int8 and int4, and values rounded to float16 for float16.
    """

    def __init__(self, spec: TransferSpec, scales: Scales | None) -> None:
        super().__init__()
        self.spec = spec
        self.scales = scales

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pool, and quantize or round."""
        x = pooled(x, self.spec)
        if self.scales is not None:
            low, high = CODE_RANGES[self.spec.dtype]
            zero_point = self.scales.zero_point
            codes = torch.clamp(
                x * self.scales.steps()[1], min=low - zero_point, max=high - zero_point
            )
            return _round_straight_through(codes) + zero_point
        return _to_float16_straight_through(x) if self.spec.dtype == "float16" else x


class EdgeTL(nn.Module):
    """The edge's half: dequantize and upsample to the original size (paper: "EdgeTL")."""

    def __init__(self, spec: TransferSpec, scales: Scales | None) -> None:
        super().__init__()
        self.spec = spec
        self.scales = scales

    def forward(self, x: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
        """Dequantize ``x`` and restore its height and width ``size``."""
        if self.scales is not None:
            x = (x - self.scales.zero_point) * self.scales.steps()[0]
        if self.spec.pool == 1:
            return x
        if self.spec.upsample == "bilinear":
            x = _interpolate(_interpolate(x, self.spec.pool, -1), self.spec.pool, -2)
        else:
            x = _repeat(x, self.spec.pool)
        return x[..., : size[0], : size[1]]


class TransferLayer(nn.Module):
    """DeviceTL followed by EdgeTL: the layer at the slicing point while the network is retrained.

    Parameters
    ----------
    spec
        The Transfer Layer.
    quantization
        Scales and zero points for int8 and int4; None otherwise.
    learn_scales
        Whether training may change the scales, until :meth:`settle`.
    halves
        Encoder and decoder of a learned Transfer Layer (:func:`.learned.bottleneck`,
        :func:`.image_encoder.image_coder`); None otherwise.

    Raises
    ------
    CodecError
        The quantization is missing, superfluous, or not of the spec's granularity; or the halves
        are missing or superfluous.
    """

    def __init__(
        self,
        spec: TransferSpec,
        quantization: Quantization | None = None,
        *,
        learn_scales: bool = False,
        halves: tuple[nn.Module, Decoder | ImageDecoder] | None = None,
    ) -> None:
        super().__init__()
        _check(spec, quantization)
        if spec.learned != (halves is not None):
            raise CodecError(f"{spec.label}: halves={halves!r} do not go with it")
        self.spec = spec
        self.encoder: nn.Module = nn.Identity() if halves is None else halves[0]
        self.decoder: nn.Module = nn.Identity() if halves is None else halves[1]
        self._set(None if quantization is None else Scales(quantization, learned=learn_scales))

    def _set(self, scales: Scales | None) -> None:
        self.device = DeviceTL(self.spec.packing, scales)
        self.edge = EdgeTL(self.spec.packing, scales)

    @property
    def quantization(self) -> Quantization | None:
        """The present scales and zero points; None if the spec has none."""
        return None if self.device.scales is None else self.device.scales.quantization

    def settle(self) -> None:
        """Fix learned scales at the float32 values that the codec uses."""
        if self.quantization is not None:
            self._set(Scales(self.quantization))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Send ``x`` through the layer; the result has its shape and dtype."""
        return self.receive(self.send(x), x)

    def send(self, x: torch.Tensor) -> torch.Tensor:
        """Make what crosses of a feature map: codes, for int8 and int4."""
        codes: torch.Tensor = self.device(self.encoder(x))
        return codes

    def receive(self, sent: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Restore a feature map of the shape of ``x`` from what :meth:`send` has made of it."""
        # A learned layer's own edge half does not pool; its decoder knows the size.
        restored: torch.Tensor = self.decoder(self.edge(sent, tuple(x.shape[-2:])))
        return restored


def _check(spec: TransferSpec, quantization: Quantization | None) -> None:
    if spec.quantized != (quantization is not None) or (
        quantization is not None
        and (quantization.channels is not None) != (spec.granularity == "channel")
    ):
        raise CodecError(f"quantization={quantization!r} does not go with {spec.label}")


def _planes_of(quantization: Quantization) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return scale and zero point in float32, to broadcast over (..., channels, height, width)."""
    shape = () if quantization.channels is None else (quantization.channels, 1, 1)
    scale, zero_point = quantization.scale, quantization.zero_point
    return (
        np.asarray(scale, np.float32).reshape(shape),
        np.asarray(zero_point, np.float32).reshape(shape),
    )


def _constant(module: nn.Module, name: str, value: np.ndarray[Any, Any]) -> None:
    """Register a value that moves with the module but is not one of its weights."""
    module.register_buffer(name, torch.tensor(value), persistent=False)


def pooled(x: torch.Tensor, spec: TransferSpec) -> torch.Tensor:
    """Pool a feature map with the window and kind of a spec."""
    if spec.pool == 1:
        return x
    return (_max if spec.pool_kind == "max" else _average)(x, spec.pool)


def _max(x: torch.Tensor, window: int) -> torch.Tensor:
    # Transposed, so that of equal values the first in column-major order is kept: zeros have signs.
    turned = F.max_pool2d(x.transpose(-1, -2), window, ceil_mode=True)
    return turned.transpose(-1, -2)


def _average(x: torch.Tensor, window: int) -> torch.Tensor:
    height, width = x.shape[-2:]
    # Adding -0.0 changes nothing, not even the sign of a zero.
    x = F.pad(x, (0, -width % window, 0, -height % window), value=-0.0)
    columns = x[..., 0::window, :]
    for row in range(1, window):
        columns = columns + x[..., row::window, :]
    total = columns[..., 0::window] + columns[..., 1::window]
    if window == 4:
        total = total + (columns[..., 2::window] + columns[..., 3::window])
    rows = _window_sizes(height, window, x)
    return total / (rows[:, None] * _window_sizes(width, window, x))


def _window_sizes(size: int, window: int, like: torch.Tensor) -> torch.Tensor:
    """Count the elements of each window along one dimension; at the border there are fewer."""
    first = torch.arange(0, size, window, device=like.device)
    return torch.clamp(size - first, max=window).to(like.dtype)


def _repeat(x: torch.Tensor, factor: int) -> torch.Tensor:
    *images, height, width = x.shape
    spread = x[..., :, None, :, None].expand(*images, height, factor, width, factor)
    return spread.reshape(*images, height * factor, width * factor)


def _interpolate(x: torch.Tensor, factor: int, dim: int) -> torch.Tensor:
    """Interpolate along one dimension (docs/numerics.md), for each remainder of x by p in turn."""
    size = x.shape[dim]
    before = torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 0, size - 1)], dim)
    after = torch.cat([x.narrow(dim, 1, size - 1), x.narrow(dim, size - 1, 1)], dim)
    phases = []
    for remainder in range(factor):
        a, b = (before, x) if remainder < factor // 2 else (x, after)
        weight = (2 * ((remainder - factor // 2) % factor) + 1) / (2 * factor)
        phases.append(a * (1 - weight) + b * weight)
    # The phases alternate: they are stacked in a new dimension and merged with this one.
    return torch.stack(phases, dim).reshape(*x.shape[:dim], size * factor, *(x.shape[dim:][1:]))


class _RoundStraightThrough(torch.autograd.Function):
    """Round half to even forward, identity backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *grad: torch.Tensor) -> torch.Tensor:
        return grad[0]


class _ToFloat16StraightThrough(torch.autograd.Function):
    """Round to float16 forward; backward identity, and zero where that overflowed."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        rounded = x.to(torch.float16).to(x.dtype)
        ctx.save_for_backward(torch.isfinite(rounded))
        return rounded

    @staticmethod
    def backward(ctx: Any, *grad: torch.Tensor) -> torch.Tensor:
        (finite,) = ctx.saved_tensors
        return torch.where(finite, grad[0], 0.0)


def _round_straight_through(x: torch.Tensor) -> torch.Tensor:
    rounded: torch.Tensor = _RoundStraightThrough.apply(x)  # type: ignore[no-untyped-call]  # torch has no annotation
    return rounded


def _to_float16_straight_through(x: torch.Tensor) -> torch.Tensor:
    rounded: torch.Tensor = _ToFloat16StraightThrough.apply(x)  # type: ignore[no-untyped-call]  # torch has no annotation
    return rounded
