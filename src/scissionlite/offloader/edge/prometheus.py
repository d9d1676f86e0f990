"""The daemon's record in Prometheus' format, by prometheus-client (the extra ``monitor``).

prometheus-client writes the text format and OpenMetrics, whichever the scraper asks for, and has
the metrics of the process (memory, CPU, descriptors). The record is :mod:`.metrics`; its numbers
are read when they are scraped.
"""

from __future__ import annotations

import itertools
import platform
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from scissionlite import __version__, _core
from scissionlite.offloader.edge.metrics import BundleMetrics, Histogram, Metrics
from scissionlite.offloader.edge.status import readiness_trouble

_BUNDLE = ("bundle", "model")


class _Record(Collector):
    """The record as Prometheus' families of metrics; docs/daemon.md has their table."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        metrics, schedule = self._metrics, self._metrics.schedule
        build = {"version": __version__, "python": platform.python_version(), "isa": _core.isa()}
        yield InfoMetricFamily("scissionlite_build", "Version of the daemon.", build)
        for name, text, value in (
            ("uptime_seconds", "Seconds since the start.", metrics.uptime),
            ("ready", "1 if the daemon can serve devices.", int(not readiness_trouble(metrics))),
            ("devices", "Devices connected.", len(schedule.devices)),
            ("devices_limit", "Devices that may be connected.", schedule.most_devices),
            ("queue_length", "Requests that wait for their turn.", schedule.waiting),
            ("queue_limit", "Requests that may wait for their turn.", schedule.capacity),
            ("bundles", "Bundles served.", len(metrics.bundles)),
            ("connections", "Connections to both ports.", metrics.connections),
            ("connections_limit", "Connections that there may be.", metrics.connections_limit),
        ):
            yield GaugeMetricFamily(f"scissionlite_{name}", text, value)
        for name, text, label, counts in (
            ("rejected", "Messages that break a rule, by error.", "reason", metrics.rejected),
            ("refused", "Devices that were not let in.", "code", metrics.refused),
        ):
            family = CounterMetricFamily(f"scissionlite_{name}", text, labels=(label,))
            for key, count in list(counts.items()):
                family.add_metric((key,), count)
            yield family
        yield from self._of_links()
        yield from self._of_bundles()

    def _of_links(self) -> Iterator[Metric]:
        """The links as the devices measure them, by peer: what a device calls itself is no label.

        Devices can call themselves anything, and each new name would be one more time series.
        """
        slowest: dict[str, tuple[float, float]] = {}
        for _, _, usage in self._metrics.schedule.records():
            if usage.bandwidth:
                rtt, bandwidth = slowest.get(usage.address, (usage.link_rtt, usage.bandwidth))
                slowest[usage.address] = max(rtt, usage.link_rtt), min(bandwidth, usage.bandwidth)
        for which, name, text in (
            (0, "round_trip_seconds", "Round trip of a peer's slowest link, as it measures it."),
            (1, "bits_per_second", "Bandwidth of a peer's slowest link, as it measures it."),
        ):
            family = GaugeMetricFamily(f"scissionlite_link_{name}", text, labels=("peer",))
            for peer, link in slowest.items():
                family.add_metric((peer,), link[which])
            yield family

    def _of_bundles(self) -> Iterator[Metric]:
        records = [(_labels(each), each) for each in list(self._metrics.bundles)]
        requests = CounterMetricFamily(
            "scissionlite_requests", "Requests by outcome.", labels=(*_BUNDLE, "outcome")
        )
        received = CounterMetricFamily(
            "scissionlite_received_bytes", "Bytes of requests.", labels=_BUNDLE
        )
        sent = CounterMetricFamily("scissionlite_sent_bytes", "Bytes of results.", labels=_BUNDLE)
        batch = HistogramMetricFamily(
            "scissionlite_batch_size", "Samples in a run of the slice.", labels=_BUNDLE
        )
        latency = HistogramMetricFamily(
            "scissionlite_request_seconds",
            "From a request's arrival to its result's sending.",
            labels=_BUNDLE,
        )
        stages = HistogramMetricFamily(
            "scissionlite_stage_seconds",
            "Stages of the served requests.",
            labels=(*_BUNDLE, "stage"),
        )
        for labels, record in records:
            for outcome, count in record.requests.items():
                requests.add_metric((*labels, outcome), count)
            received.add_metric(labels, record.received_bytes)
            sent.add_metric(labels, record.sent_bytes)
            _add(batch, labels, record.batch_size)
            _add(latency, labels, record.latency)
            for stage, histogram in record.stages.items():
                _add(stages, (*labels, stage), histogram)
        yield from (requests, received, sent, batch, latency, stages)


def _labels(record: BundleMetrics) -> tuple[str, str]:
    return record.bundle.id[:12], record.bundle.manifest.model


def _add(family: HistogramMetricFamily, labels: tuple[str, ...], histogram: Histogram) -> None:
    counts = itertools.accumulate(list(histogram.counts))
    bounds = [*(f"{bound:g}" for bound in histogram.bounds), "+Inf"]
    family.add_metric(labels, list(zip(bounds, counts, strict=True)), histogram.sum)


class Exporter:
    """Writes a daemon's record for Prometheus.

    Parameters
    ----------
    metrics
        The record.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Record(metrics))
        ProcessCollector(registry=self._registry)

    def write(self, accept: str) -> tuple[str, bytes]:
        """Return the content type and the text in the format that an Accept header asks for."""
        encoder, content_type = choose_encoder(accept)
        return content_type, encoder(self._registry)
