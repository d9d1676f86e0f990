"""The last minutes of an edge daemon, for its page: a ring of samples, bounded whatever happens."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence

import msgspec

from scissionlite.offloader.edge.metrics import (
    OUTCOMES,
    SECONDS,
    STAGES,
    BundleMetrics,
    Histogram,
    Metrics,
)

INTERVAL = 2.0
"""Seconds between two samples."""

_SAMPLES = 300  # 10 minutes
_RECENT = 30  # samples back to which the figures of a bundle reach: the last minute


class LatencyFigures(msgspec.Struct, frozen=True):
    """Mean, median and 95th percentile in seconds; the percentiles are interpolated in a bucket."""

    mean: float
    p50: float
    p95: float


class Sample(msgspec.Struct, frozen=True):
    """One interval, all bundles together.

    Attributes
    ----------
    time
        Its end, in seconds since 1970.
    requests
        Requests a second, by outcome.
    rejected
        Messages rejected and devices refused, a second.
    received, sent
        Bytes a second.
    queue, devices
        Requests waiting and devices connected at its end.
    stages
        Mean seconds of each stage; None if nothing was served.
    latency
        Of the served requests; None if there were none.
    """

    time: float
    requests: dict[str, float]
    rejected: float
    received: float
    sent: float
    queue: int
    devices: int
    stages: dict[str, float] | None
    latency: LatencyFigures | None


class RecentFigures(msgspec.Struct, frozen=True):
    """Latencies of a bundle's requests in the last minute, by stage and in all ("latency")."""

    per_second: float
    latency: dict[str, LatencyFigures]


class _Totals(msgspec.Struct, frozen=True):
    """Counts since the start, at one moment: of a histogram's buckets, and of their sum."""

    counts: dict[str, list[int]]
    sums: dict[str, float]


_NOTHING = _Totals({}, {})


class History:
    """Samples of a daemon's record. Of one thread, any.

    Parameters
    ----------
    metrics
        The record.

    Attributes
    ----------
    samples
        Of the last 10 minutes, the latest at the end.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.samples: deque[Sample] = deque(maxlen=_SAMPLES)
        self._recent: deque[tuple[float, dict[BundleMetrics, _Totals]]] = deque(maxlen=_RECENT + 1)
        self._last = self._sums()
        self._recent.append((time.monotonic(), self._by_bundle()))

    def sample(self) -> None:
        """Take a sample of the time since the last one."""
        before, now = self._last, self._sums()
        self._last = now
        more = {name: count - before[name] for name, count in now.items()}
        then, old = self._recent[-1]
        self._recent.append((time.monotonic(), self._by_bundle()))
        seconds = max(1e-3, self._recent[-1][0] - then)
        new = self._recent[-1][1]
        passed = _added(_difference(new[each], old.get(each, _NOTHING)) for each in new)
        schedule = self._metrics.schedule
        served = sum(passed.counts.get("latency", ()))
        self.samples.append(
            Sample(
                time=round(time.time(), 3),
                requests={name: more[name] / seconds for name in OUTCOMES},
                rejected=more["rejected"] / seconds,
                received=more["received"] / seconds,
                sent=more["sent"] / seconds,
                queue=schedule.waiting,
                devices=len(schedule.devices),
                stages={name: passed.sums[name] / served for name in STAGES} if served else None,
                latency=_figures(passed, "latency") if served else None,
            )
        )

    def since(self, moment: float) -> list[Sample]:
        """Return the samples after a moment, in seconds since 1970."""
        return [each for each in self.samples if each.time > moment]

    def recent(self, bundle: BundleMetrics) -> RecentFigures:
        """Return the figures of a bundle's last minute, as of the last sample."""
        (then, old), (now, new) = self._recent[0], self._recent[-1]
        if now == then or bundle not in new:
            return RecentFigures(0.0, {})
        passed = _difference(new[bundle], old.get(bundle, _NOTHING))
        served = sum(passed.counts["latency"])
        figures = {each: _figures(passed, each) for each in passed.counts} if served else {}
        return RecentFigures(served / (now - then), figures)

    def _sums(self) -> dict[str, int]:
        return {
            **{str(outcome): self._metrics.requests(outcome) for outcome in OUTCOMES},
            "rejected": sum(list(self._metrics.rejected.values()))
            + sum(list(self._metrics.refused.values())),
            "received": self._metrics.total.received_bytes,
            "sent": self._metrics.total.sent_bytes,
        }

    def _by_bundle(self) -> dict[BundleMetrics, _Totals]:
        totals = {}
        for each in list(self._metrics.bundles):
            histograms: dict[str, Histogram] = {"latency": each.latency}
            histograms.update((str(stage), made) for stage, made in each.stages.items())
            totals[each] = _Totals(
                {name: list(histogram.counts) for name, histogram in histograms.items()},
                {name: histogram.sum for name, histogram in histograms.items()},
            )
        return totals


def quantile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float:
    """Estimate a quantile from a histogram's counts, as PromQL's ``histogram_quantile`` does."""
    rank, below = share * sum(counts), 0
    for index, count in enumerate(counts):
        if count and below + count >= rank:
            if index == len(bounds):
                return bounds[-1]
            low = bounds[index - 1] if index else 0.0
            return low + (bounds[index] - low) * (rank - below) / count
        below += count
    return 0.0


def _figures(totals: _Totals, name: str) -> LatencyFigures:
    counts = totals.counts[name]
    return LatencyFigures(
        totals.sums[name] / max(1, sum(counts)),
        quantile(SECONDS, counts, 0.5),
        quantile(SECONDS, counts, 0.95),
    )


def _added(all_totals: Iterable[_Totals]) -> _Totals:
    counts: dict[str, list[int]] = {}
    sums: dict[str, float] = {}
    for each in all_totals:
        for name, added in each.counts.items():
            known = counts.get(name, [0] * len(added))
            counts[name] = [a + b for a, b in zip(known, added, strict=True)]
            sums[name] = sums.get(name, 0.0) + each.sums[name]
    return _Totals(counts, sums)


def _difference(new: _Totals, old: _Totals) -> _Totals:
    counts = {
        name: [a - b for a, b in zip(now, old.counts.get(name, [0] * len(now)), strict=True)]
        for name, now in new.counts.items()
    }
    sums = {name: now - old.sums.get(name, 0.0) for name, now in new.sums.items()}
    return _Totals(counts, sums)
