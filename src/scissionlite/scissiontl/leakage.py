"""Leakage: a privacy figure, the distance correlation of the input and the tensors that cross.

Distance correlation (Szekely, Rizzo, Bakirov, "Measuring and testing dependence by correlation of
distances", Annals of Statistics 35(6), 2007) is defined for random vectors of any dimensions. It is
0 only where they are independent, and 1 where one is the other, scaled, shifted and rotated. In
high dimension its plain estimate tends to 1 for few samples. So the estimate here has no such bias:
it is computed from U-centred distances (Szekely, Rizzo, "The distance correlation t-test of
independence in high dimension", Journal of Multivariate Analysis 117, 2013, and "Partial distance
correlation with methods for dissimilarities", Annals of Statistics 42(6), 2014). Vepakomma and
others use it for split inference (NoPeek, arXiv 2008.09161). The figure orders slicing points. It
does not say what a person or a network could reconstruct.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from scissionlite.graph.analysis import flat
from scissionlite.graph.graph import Graph

MIN_IMAGES = 16
"""Fewest images with which leakage is measured: with fewer its estimate says little."""

MIN_SAMPLES = 4
"""Fewest samples for which the unbiased estimate is defined."""

Distances = npt.NDArray[np.float64]


def distance_correlation(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> float:
    """Distance correlation of samples, without the bias of small samples in high dimension.

    Parameters
    ----------
    x, y : ndarray, shape (n, ...)
        n paired samples of anything, at least 4.

    Returns
    -------
    float
        0 to 1: the root of the bias-corrected squared correlation, 0 where that is negative, as it
        is for about half of all independent samples.

    Raises
    ------
    ValueError
        If there are too few samples, or not the same number of both.
    """
    return correlation_of_distances(pairwise_distances(x), pairwise_distances(y))


def pairwise_distances(x: npt.NDArray[Any]) -> Distances:
    """Euclidean distances between samples: shape (n, ...) to (n, n)."""
    flat = np.asarray(x).reshape(len(x), -1)
    # Around their mean, so that the products do not cancel.
    flat = flat - flat.mean(axis=0, keepdims=True)
    products = (flat @ flat.T).astype(np.float64)
    squares = np.diag(products)
    squared = squares[:, None] + squares[None, :] - 2 * products
    np.fill_diagonal(squared, 0.0)
    distances: Distances = np.sqrt(np.maximum(squared, 0.0))
    return distances


def correlation_of_distances(a: Distances, b: Distances) -> float:
    """:func:`distance_correlation` from the distances between the samples of either."""
    n = len(a)
    if n < MIN_SAMPLES or b.shape != a.shape:
        raise ValueError(
            f"distance correlation needs at least {MIN_SAMPLES} samples, as many of either; got "
            f"{n} and {len(b)}"
        )
    centred_a, centred_b = _u_centred(a), _u_centred(b)
    covariance = float((centred_a * centred_b).sum())
    scale = math.sqrt(float((centred_a**2).sum()) * float((centred_b**2).sum()))
    return math.sqrt(min(max(covariance / scale, 0.0), 1.0)) if scale else 0.0


def _u_centred(distances: Distances) -> Distances:
    n = len(distances)
    rows = distances.sum(axis=1)
    centred: Distances = (
        distances
        - rows[:, None] / (n - 2)
        - rows[None, :] / (n - 2)
        + rows.sum() / ((n - 1) * (n - 2))
    )
    np.fill_diagonal(centred, 0.0)
    return centred


def leakages(graph: Graph, inputs: Sequence[tuple[torch.Tensor, ...]]) -> list[float | None]:
    """Distance correlation of the input and what crosses, at every slicing point.

    None everywhere if there are too few inputs.
    """
    count = len(graph.slicing_points)
    if len(inputs) < MIN_IMAGES:
        return [None] * count
    input_distances = pairwise_distances(np.stack([x[0].numpy() for x in inputs]))
    entering = list(inputs)
    found: list[float | None] = []
    with torch.inference_mode():
        # Block by block, so that only the tensors of one slicing point are kept.
        for block in graph.block_modules()[:count]:
            entering = [tuple(flat(block(*tensors))) for tensors in entering]
            squares = np.zeros_like(input_distances)
            for tensor in zip(*entering, strict=True):
                squares += pairwise_distances(np.stack([x.numpy() for x in tensor])) ** 2
            found.append(correlation_of_distances(input_distances, np.sqrt(squares)))
    return found
