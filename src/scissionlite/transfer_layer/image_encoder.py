"""The shallow encoder: a learned Transfer Layer that stands at the image, before the network.

The device runs none of the network. One strided convolution turns each window of the image into
coefficients, which are quantized and entropy-coded; on the edge the transposed convolution gives
the network its image back, and a small residual block refines it.

Training starts from transform coding, as JPEG does it (Wallace, "The JPEG still picture compression
standard", Communications of the ACM 34, 1991): the filters are a discrete cosine transform of each
window, over the principal components of the colours. Each coefficient has a step of its own, after
what an error in it matters to the network. The coefficients that would have hardly a code besides
zero are left out.

"tiny" is the convolution alone. "small" and "base" send more coefficients, and have a residual
block of a depthwise and a pointwise convolution behind it, which starts at zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from scissionlite.errors import CodecError
from scissionlite.transfer_layer.learned import cosine_basis
from scissionlite.transfer_layer.quantization import Quantization
from scissionlite.transfer_layer.spec import CODE_RANGES, TransferSpec

_WIDER = 2
"""Channels of the decoder's residual block over those that are sent."""

Importance = Callable[[torch.Tensor], torch.Tensor]
"""Gives, for filters (K, C, p, p), what an error in the coefficient of each matters, (K,)."""


class ImageEncoder(nn.Module):
    """The device's half: from images to coefficients.

    Input float32 ``(N, C, H, W)``; output ``(N, K, ceil(H / pool), ceil(W / pool))``. Where the
    border does not fill a window, its last elements are repeated.

    Parameters
    ----------
    spec
        A shallow encoder.
    shape
        Shape of the image, (N, C, H, W).
    """

    def __init__(self, spec: TransferSpec, shape: Sequence[int]) -> None:
        super().__init__()
        channels, height, width = shape[-3:]
        kept, window = spec.packed_channels(channels), spec.pool
        missing = (0, -width % window, 0, -height % window)
        self.fill = nn.ReplicationPad2d(missing) if any(missing) else nn.Identity()
        self.transform = nn.Conv2d(channels, kept, window, stride=window)
        self.residual = None if spec.encoder == "tiny" else _residual(kept, kept)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the coefficients of images."""
        coefficients: torch.Tensor = self.transform(self.fill(x))
        if self.residual is not None:
            coefficients = coefficients + self.residual(coefficients)
        return coefficients


class ImageDecoder(nn.Module):
    """The edge's half: from coefficients to images.

    Input ``(N, K, h, w)``; output ``(N, C, H, W)``. The residual block refines the coefficients
    of a window by those of its neighbours, as deblocking filters do.

    Parameters
    ----------
    spec, shape
        As the encoder's.
    """

    def __init__(self, spec: TransferSpec, shape: Sequence[int]) -> None:
        super().__init__()
        channels, self.height, self.width = shape[-3:]
        kept = spec.packed_channels(channels)
        self.residual = _residual(kept, _WIDER * kept)
        self.transform = nn.ConvTranspose2d(kept, channels, spec.pool, stride=spec.pool)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Restore images."""
        restored: torch.Tensor = self.transform(x + self.residual(x))
        return restored[..., : self.height, : self.width]

    def fit(self, images: torch.Tensor, sent: torch.Tensor) -> None:
        """Set the transposed convolution to the best linear one for what an encoder has sent.

        Parameters
        ----------
        images
            float32 ``(N, C, H, W)``.
        sent
            What arrives of them, ``(N, K, h, w)``.
        """
        channels, window = images.shape[1], self.transform.stride[0]
        missing = (0, -self.width % window, 0, -self.height % window)
        whole = nn.functional.pad(images, missing, mode="replicate")
        windows = nn.functional.unfold(whole, window, stride=window).transpose(1, 2).flatten(0, 1)
        arrived = sent.flatten(2).transpose(1, 2).flatten(0, 1).double()
        centre, pixels = arrived.mean(0), windows.mean(0).double()
        arrived, windows = arrived - centre, windows.double() - pixels
        products = arrived.T @ arrived
        # As little as nothing notices, so that a coefficient that never changes has no weight.
        products += 1e-6 * products.diagonal().mean() * torch.eye(len(products)).double()
        solved = torch.linalg.solve(products, arrived.T @ windows)
        # The transposed convolution has a bias for each colour, not for each pixel of a window. So
        # the residual block's last bias moves the coefficients to where the pixels have their mean.
        colours = pixels.unflatten(0, (channels, -1)).mean(1)
        pattern = pixels - colours.repeat_interleave(window**2)
        moved = torch.linalg.lstsq(solved.T, pattern[:, None]).solution[:, 0] - centre
        self.residual[-1].bias.copy_(moved)  # type: ignore[operator]  # a convolution
        self.transform.weight.copy_(solved.unflatten(1, (channels, window, window)))
        self.transform.bias.copy_(colours)  # type: ignore[union-attr]  # it has one


def _residual(channels: int, hidden: int) -> nn.Sequential:
    """A light block whose output is zero before training."""
    last = nn.Conv2d(hidden, channels, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]  # it has one
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        nn.Conv2d(channels, hidden, 1),
        nn.ReLU(),
        last,
    )


def image_coder(
    spec: TransferSpec, images: torch.Tensor, importance: Importance
) -> tuple[ImageEncoder, ImageDecoder, Quantization]:
    """Make both halves as the transform coder that suits some images best, and its steps.

    Parameters
    ----------
    spec
        A shallow encoder.
    images
        Images as the network takes them, float32 ``(N, C, H, W)``.
    importance
        What errors in coefficients matter to the network.

    Raises
    ------
    CodecError
        There are no images, or they are not finite.
    """
    if not len(images) or not torch.isfinite(images).all():
        raise CodecError("no finite images to find the principal components of")
    encoder, decoder = ImageEncoder(spec, images.shape), ImageDecoder(spec, images.shape)
    with torch.no_grad():
        colours = images.transpose(0, 1).flatten(1).double()
        mean = colours.mean(1).float()
        components = torch.linalg.eigh(torch.cov(colours).reshape(len(mean), -1))[1].flip(1).T
        windows = cosine_basis(spec.pool, spec.pool**2)
        filters = (components.float()[:, None, :, None, None] * windows[:, None]).flatten(0, 1)
        weights = importance(filters)
        # No weight is so small that its coefficients have no steps.
        weights = weights.clamp_min(1e-6 * float(weights.max()))
        gains = (_variances(encoder.fill(images), filters) * weights).sqrt()
        chosen = gains.argsort(descending=True)[: encoder.transform.out_channels]
        filters, weights = filters[chosen], weights[chosen]
        encoder.transform.weight.copy_(filters)
        encoder.transform.bias.copy_(-(filters.sum((2, 3)) @ mean))  # type: ignore[union-attr]  # it has one
        decoder.transform.weight.copy_(filters)
        decoder.transform.bias.copy_(mean)  # type: ignore[union-attr]  # it has one
        largest = torch.stack([encoder(part).abs().amax((0, 2, 3)) for part in images.split(16)])
    return encoder, decoder, _quantization(spec, largest.amax(0), weights)


def _quantization(spec: TransferSpec, largest: torch.Tensor, weights: torch.Tensor) -> Quantization:
    """Steps by which quantization costs each coefficient alike; `levels` for the widest one.

    A step is as large as the range of its coefficient demands, at least.
    """
    reach = CODE_RANGES[spec.dtype][1]
    relative = weights.rsqrt()
    steps = relative * float((largest / relative).max()) / max(1, (spec.codes - 1) / 2)
    steps = torch.maximum(steps, largest / reach).clamp_min(1e-6)
    return Quantization(tuple(steps.tolist()), (0,) * len(steps))


def _variances(images: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """Variance of the coefficient of each filter."""
    total, squares, count = (
        torch.zeros(len(filters)).double(),
        torch.zeros(len(filters)).double(),
        0,
    )
    for part in images.split(16):
        found = coefficients(part, filters).transpose(0, 1).flatten(1).double()
        total += found.sum(1)
        squares += found.square().sum(1)
        count += found.shape[1]
    return (squares / count - (total / count).square()).float()


def coefficients(images: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """The coefficients of whole windows, ``(N, K, h, w)``, with filters ``(K, C, p, p)``."""
    return nn.functional.conv2d(images, filters, stride=filters.shape[-1])
