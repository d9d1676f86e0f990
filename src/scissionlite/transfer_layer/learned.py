"""The learned Transfer Layer: a light bottleneck of convolutions, trained with the network.

On the device a depthwise convolution with the stride of the window turns each channel into a few
coefficients, and a 1x1 convolution reduces them to fewer channels. On the edge the transposes of
both restore the feature map, and a small residual block refines it. The reduced map is quantized
and packed like the payload of every other Transfer Layer.

Training starts from the best linear bottleneck of this form. The depthwise filters are the lowest
frequencies of the discrete cosine transform, as in JPEG (Ahmed, Natarajan, Rao, IEEE Transactions
on Computers, 1974). The 1x1 convolutions are the principal components of those coefficients on
calibration data. The bottleneck stands where BottleNet has it (Eshratifar, Esmaili, Pedram, arXiv
1902.01000); this project's Trainer trains it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from scissionlite.errors import CodecError
from scissionlite.transfer_layer.spec import TransferSpec

MAX_COEFFICIENTS = 4
"""Most coefficients per channel of the depthwise convolution: for a 2x2 window, all of them."""


class Encoder(nn.Module):
    """The device's half: depthwise convolution with a stride, then 1x1 to fewer channels.

    Input float32 ``(N, C, H, W)``; output ``(N, ceil(C / reduction), ceil(H / pool),
    ceil(W / pool))``. Where the border does not fill a window, its last elements are repeated.

    Parameters
    ----------
    spec
        A learned Transfer Layer.
    shape
        Shape of the feature map, (N, C, H, W).
    coefficients
        How many the depthwise convolution makes of each channel.
    """

    def __init__(self, spec: TransferSpec, shape: Sequence[int], coefficients: int) -> None:
        super().__init__()
        window, channels = spec.pool, shape[-3]
        kept = -(-channels // spec.reduction)
        # Repeats the border where it does not fill a window. Decided here, because a traced module
        # has no branches.
        height, width = shape[-2:]
        missing = (0, -width % window, 0, -height % window)
        self.fill = nn.ReplicationPad2d(missing) if any(missing) else nn.Identity()
        self.depthwise = nn.Conv2d(
            channels, channels * coefficients, window, stride=window, groups=channels, bias=False
        )
        self.pointwise = nn.Conv2d(channels * coefficients, kept, 1)

    def coefficients(self, x: torch.Tensor) -> torch.Tensor:
        """Return the coefficients of a feature map: the output of the depthwise convolution."""
        coefficients: torch.Tensor = self.depthwise(self.fill(x))
        return coefficients

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reduce a feature map."""
        reduced: torch.Tensor = self.pointwise(self.coefficients(x))
        return reduced


class Decoder(nn.Module):
    """The edge's half: the encoder's transposes, and a residual block that starts at zero.

    Input ``(N, ceil(C / reduction), h, w)``; output ``(N, C, H, W)``.

    Parameters
    ----------
    spec
        A learned Transfer Layer.
    shape
        Shape of the feature map, (N, C, H, W).
    coefficients
        As the encoder's.
    """

    def __init__(self, spec: TransferSpec, shape: Sequence[int], coefficients: int) -> None:
        super().__init__()
        channels, self.height, self.width = shape[-3:]
        kept = -(-channels // spec.reduction)
        self.pointwise = nn.Conv2d(kept, channels * coefficients, 1)
        self.depthwise = nn.ConvTranspose2d(
            channels * coefficients,
            channels,
            spec.pool,
            stride=spec.pool,
            groups=channels,
            bias=False,
        )
        self.refine = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
            nn.Conv2d(channels, 2 * channels, 1),
            nn.ReLU(),
            nn.Conv2d(2 * channels, channels, 1),
        )
        last = self.refine[-1]
        assert isinstance(last, nn.Conv2d)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]  # it has one

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Restore a feature map."""
        restored = self.depthwise(self.pointwise(x))[..., : self.height, : self.width]
        refined: torch.Tensor = restored + self.refine(restored)
        return refined


def bottleneck(
    spec: TransferSpec, shape: Sequence[int], *, most_multiplications: float = math.inf
) -> tuple[Encoder, Decoder]:
    """Make both halves for feature maps of a shape, with as many coefficients as the cost allows.

    Parameters
    ----------
    spec
        A learned Transfer Layer, valid for the shape.
    shape
        (N, C, H, W).
    most_multiplications
        Most multiplications of the device's half for one feature map.

    Raises
    ------
    CodecError
        Even the cheapest bottleneck costs more.
    """
    channels = shape[-3]
    for coefficients in range(min(spec.pool**2, MAX_COEFFICIENTS), 0, -1):
        if encoder_multiplications(spec, shape, coefficients) <= most_multiplications:
            encoder = Encoder(spec, shape, coefficients)
            decoder = Decoder(spec, shape, coefficients)
            basis = cosine_basis(spec.pool, coefficients)
            with torch.no_grad():
                for layer in (encoder.depthwise, decoder.depthwise):
                    layer.weight.copy_(basis.repeat(channels, 1, 1)[:, None])
            return encoder, decoder
    raise CodecError(
        f"{spec.label}: its device side needs {encoder_multiplications(spec, shape, 1):.3g} "
        f"multiplications, and {most_multiplications:.3g} are allowed: choose a later "
        "slicing point, where the device slice does more work of its own, reduce more channels, or "
        "allow a larger share"
    )


def encoder_multiplications(spec: TransferSpec, shape: Sequence[int], coefficients: int) -> int:
    """Return the number of multiplications of an :class:`Encoder` for one feature map."""
    _, kept, height, width = spec.packed_shape(shape)
    channels = shape[-3]
    each = channels * coefficients * spec.pool**2 + channels * coefficients * kept
    return each * height * width


def initialise(encoder: Encoder, decoder: Decoder, batches: Iterable[torch.Tensor]) -> None:
    """Set the 1x1 convolutions to the principal components of some feature maps.

    Parameters
    ----------
    encoder, decoder
        Both halves, from :func:`bottleneck`; changed in place.
    batches
        Feature maps, ``(N, C, H, W)`` each.

    Raises
    ------
    CodecError
        There are no feature maps, or they are not finite.
    """
    size = encoder.pointwise.in_channels
    total, products, count = torch.zeros(size).double(), torch.zeros(size, size).double(), 0
    with torch.no_grad():
        for features in batches:
            values = encoder.coefficients(features).transpose(0, 1).flatten(1).double()
            total += values.sum(1)
            products += values @ values.T
            count += values.shape[1]
        mean = total / max(1, count)
        covariance = products / max(1, count) - torch.outer(mean, mean)
        if not count or not torch.isfinite(covariance).all():
            raise CodecError("no finite feature maps to find the principal components of")
        _, vectors = torch.linalg.eigh(covariance)  # ascending
        kept = vectors[:, -encoder.pointwise.out_channels :].flip(1)
        encoder.pointwise.weight.copy_(kept.T[:, :, None, None])
        encoder.pointwise.bias.copy_(-(kept.T @ mean))  # type: ignore[union-attr]  # it has one
        decoder.pointwise.weight.copy_(kept[:, :, None, None])
        decoder.pointwise.bias.copy_(mean)  # type: ignore[union-attr]  # it has one


def cosine_basis(window: int, count: int) -> torch.Tensor:
    """Return the lowest ``count`` functions of the orthonormal 2-D DCT-II, shape (count, p, p)."""
    n = torch.arange(window, dtype=torch.float64)
    rows = torch.cos(math.pi * (2 * n[None, :] + 1) * n[:, None] / (2 * window))
    rows *= math.sqrt(2 / window)
    rows[0] /= math.sqrt(2)
    frequencies = sorted(
        ((i, j) for i in range(window) for j in range(window)), key=lambda f: (f[0] + f[1], f)
    )
    return torch.stack([torch.outer(rows[i], rows[j]) for i, j in frequencies[:count]]).float()
