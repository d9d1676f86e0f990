"""Importance: what errors in the coefficients of an image matter to a network, without labels.

An error moves the network's outputs by its gradient. The mean square of the gradient of a random
projection of the outputs is, for each coefficient, the mean square that a small error of size 1
adds to them (Hutchinson's estimator of a trace, Communications in Statistics 19, 1990). Quantized
coefficients have larger errors, for which this exaggerates, so the square root of it is taken
(docs/accuracy.md, "Shallow encoders against JPEG").
"""

from __future__ import annotations

import torch
from torch import nn

from scissionlite.graph.analysis import flat
from scissionlite.transfer_layer.image_encoder import coefficients

IMPORTANCE_INPUTS = 64
"""Most inputs that gradients are computed for."""

_BATCH = 8
_PROJECTIONS = 2


def importance(network: nn.Module, images: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """Estimate what errors in coefficients matter.

    Parameters
    ----------
    network
        The uncut network, in evaluation mode.
    images
        Its inputs, float32 ``(N, C, H, W)``.
    filters
        An orthonormal transform of windows, ``(K, C, p, p)``.

    Returns
    -------
    torch.Tensor
        Shape (K,), relative to one another; all alike where the network has no gradient.
    """
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(len(filters))
    for part in images.split(_BATCH):
        for gradient in _gradients(network, part, generator):
            total += coefficients(gradient, filters).square().sum((0, 2, 3))
    return total.sqrt() if total.any() else torch.ones_like(total)


def _gradients(
    network: nn.Module, images: torch.Tensor, generator: torch.Generator
) -> list[torch.Tensor]:
    """Gradients of random projections of the network's outputs with respect to its inputs."""
    found: list[torch.Tensor] = []
    with torch.enable_grad():
        images = images.clone().requires_grad_(True)
        outputs = [each for each in flat(network(images)) if each.requires_grad]
        for number in range(_PROJECTIONS) if outputs else ():
            projected = torch.stack([_projection(each, generator) for each in outputs]).sum()
            found += torch.autograd.grad(projected, images, retain_graph=number + 1 < _PROJECTIONS)
    return found


def _projection(output: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random signs times the values of an output, which all outputs have at the same spread."""
    signs = torch.randint(0, 2, output.shape, generator=generator) * 2 - 1
    return (signs * output).sum() / output.detach().std().clamp_min(1e-6)
