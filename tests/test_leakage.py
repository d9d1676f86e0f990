"""Distance correlation: against its formula, and its promised properties."""

from __future__ import annotations

import itertools
import math

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given

from scissionlite.scissiontl.leakage import distance_correlation

Samples = npt.NDArray[np.float64]


def by_the_formula(x: Samples, y: Samples) -> float:
    """Szekely and Rizzo's U-centred estimate, written down term by term."""
    n = len(x)

    def centred(z: Samples) -> list[list[float]]:
        d = [[math.dist(z[i].ravel(), z[j].ravel()) for j in range(n)] for i in range(n)]
        total = sum(map(sum, d))
        return [
            [
                0.0
                if i == j
                else d[i][j]
                - sum(d[i]) / (n - 2)
                - sum(d[k][j] for k in range(n)) / (n - 2)
                + total / ((n - 1) * (n - 2))
                for j in range(n)
            ]
            for i in range(n)
        ]

    a, b = centred(x), centred(y)
    pairs = list(itertools.product(range(n), repeat=2))
    product = sum(a[i][j] * b[i][j] for i, j in pairs)
    scale = math.sqrt(sum(a[i][j] ** 2 for i, j in pairs) * sum(b[i][j] ** 2 for i, j in pairs))
    return math.sqrt(max(product / scale, 0.0)) if scale else 0.0


@given(
    n=st.integers(4, 9),
    shapes=st.tuples(
        *[st.lists(st.integers(1, 4), min_size=1, max_size=3)] * 2,
    ),
    seed=st.integers(0, 2**32 - 1),
    dependence=st.floats(0, 3),
)
def test_it_is_the_formulas(
    n: int, shapes: tuple[list[int], list[int]], seed: int, dependence: float
) -> None:
    rng = np.random.default_rng(seed)
    x, y = (rng.normal(size=(n, *shape)) for shape in shapes)
    y = y + dependence * x.reshape(n, -1)[:, :1].reshape(n, *[1] * (y.ndim - 1))
    assert distance_correlation(x, y) == pytest.approx(by_the_formula(x, y), abs=1e-6)


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.01, 100), shift=st.floats(-100, 100))
def test_scaled_shifted_and_rotated_it_is_the_same(seed: int, scale: float, shift: float) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(12, 5)), rng.normal(size=(12, 3))
    y[:, 0] += x[:, 0]
    rotation, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    moved = scale * x @ rotation + shift
    assert distance_correlation(moved, y) == pytest.approx(distance_correlation(x, y), abs=1e-4)
    assert distance_correlation(x, moved) == pytest.approx(1.0, abs=1e-4)


def test_independent_samples_in_high_dimension_are_near_zero() -> None:
    rng = np.random.default_rng(0)
    squares = [
        distance_correlation(rng.normal(size=(40, 2000)), rng.normal(size=(40, 3000))) ** 2
        for _ in range(20)
    ]
    assert np.mean(squares) < 0.05  # the plain estimate is above 0.9


def test_a_constant_says_nothing() -> None:
    assert distance_correlation(np.ones((6, 2)), np.arange(12.0).reshape(6, 2)) == 0.0


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4 samples, as many of either; got 3"):
        distance_correlation(np.ones((3, 2)), np.ones((3, 2)))
    with pytest.raises(ValueError, match="got 5 and 6"):
        distance_correlation(np.ones((5, 2)), np.ones((6, 2)))
