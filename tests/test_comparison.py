"""What the demo says of ways that took turns: no ratio that a drift of the machine could turn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

import scissionlite as sl
from scissionlite.demo.comparison import Row, ratio_interval, verdict

LINK = sl.Link(0.02, 20e6)


def row(name: str, latencies: Sequence[float]) -> Row:
    return Row(
        link=LINK,
        configuration=name,
        slicing_point=None,
        predicted=0.05,
        median=float(np.median(latencies)),
        p95=float(np.percentile(latencies, 95)),
        sent_bytes=1000,
        float32_bytes=None,
        accuracy=0.9,
        images=len(latencies),
        latencies=tuple(latencies),
    )


def test_a_drift_that_meets_both_does_not_change_the_ratio() -> None:
    """The machine becomes three times slower; the ratio of neighbours stays 0.8."""
    drift = np.linspace(1, 3, 40)
    noise = np.random.default_rng(0).normal(1, 0.02, 40)
    ours, other = 0.05 * drift, 0.04 * drift * noise
    ratio = ratio_interval(other.tolist(), ours.tolist())
    assert 0.79 < ratio.low < 0.8 < ratio.high < 0.81
    sentence = verdict([row("JPEG", other.tolist()), row("ours", ours.tolist())])[1]
    assert sentence.startswith("ours: 1.2")
    assert "times slower than JPEG" in sentence


def test_a_difference_within_the_spread_is_not_called_one() -> None:
    rng = np.random.default_rng(1)
    ours, other = (rng.lognormal(-3, 0.3, 40).tolist() for _ in range(2))
    lines = verdict([row("JPEG", other), row("ours", ours)])
    assert "within the spread" in lines[1]
    assert "no slower within the spread" in lines[0]


def test_the_interval_holds_the_median_in_95_of_100_cases() -> None:
    rng = np.random.default_rng(2)
    ones = [1.0] * 15
    intervals = [ratio_interval(rng.lognormal(0, 0.5, 15).tolist(), ones) for _ in range(600)]
    share = sum(each.low <= 1 <= each.high for each in intervals) / 600
    assert 0.95 <= share < 0.99
    few = ratio_interval([1.0, 2.0, 4.0], [1.0, 1.0, 1.0])
    assert (few.low, few.median, few.high) == (1.0, 2.0, 4.0)
    assert not math.isnan(ratio_interval([1.0], [2.0]).median)
