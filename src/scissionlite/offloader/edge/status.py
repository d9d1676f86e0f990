"""The state of an edge daemon in one document: what its page shows, and whether it is well."""

from __future__ import annotations

import time

import msgspec

from scissionlite import __version__
from scissionlite.offloader.edge.history import INTERVAL, History, RecentFigures, Sample
from scissionlite.offloader.edge.metrics import OUTCOMES, BundleMetrics, Metrics

_SILENCE = 10.0
"""Seconds without a step of the loop after which it counts as stuck; it makes one a second."""

_LONGEST_RUN = 60.0
"""Seconds after which a run of a slice counts as one that does not end."""


class DeviceStatus(msgspec.Struct, frozen=True):
    """A connected device; ``silent`` is the time in seconds since its last sign of life.

    ``name`` is what the device says of itself: untrusted text. The rest is a
    :class:`.metrics.DeviceUsage`.
    """

    name: str
    address: str
    since: float
    silent: float
    requests: int
    served: int
    refused: int
    received_bytes: int
    sent_bytes: int
    round_trip: float
    link_rtt: float
    bandwidth: float


class BundleStatus(msgspec.Struct, frozen=True):
    """A bundle that is served, its counts since the start, and the figures of its last minute."""

    id: str
    model: str
    kind: str
    transfer: str
    requests: dict[str, int]
    received_bytes: int
    sent_bytes: int
    mean_batch: float
    recent: RecentFigures


class Status(msgspec.Struct, frozen=True):
    """The state of a daemon.

    Attributes
    ----------
    name, version
        Of the daemon and of ScissionLite.
    time, uptime
        Seconds since 1970, and since the start.
    trouble
        Why the daemon is not ready; empty if it is.
    endpoint, control_endpoint
        Where it listens; empty if it does not.
    encrypted
        Whether its links are encrypted, and authenticated by keys.
    queue, queue_limit, devices_limit
        Requests that wait, that may wait, and devices that may be connected.
    connections, connections_limit
        As in :class:`.metrics.Metrics`.
    requests
        Of all bundles since the start, by outcome.
    rejected, refused
        As in :class:`.metrics.Metrics`.
    interval
        Seconds between two samples.
    history
        The samples after a moment that was asked for; at most 10 minutes.
    """

    # More than 12 attributes: a document, which has all that the page shows.
    name: str
    version: str
    time: float
    uptime: float
    trouble: str
    endpoint: str
    control_endpoint: str
    encrypted: bool
    queue: int
    queue_limit: int
    devices_limit: int
    connections: int
    connections_limit: int
    requests: dict[str, int]
    rejected: dict[str, int]
    refused: dict[str, int]
    devices: list[DeviceStatus]
    bundles: list[BundleStatus]
    interval: float
    history: list[Sample]


def liveness_trouble(metrics: Metrics) -> str:
    """Say why a daemon does not live; empty if it does: its loop made a step just now."""
    silent = time.monotonic() - metrics.stepped
    return "" if silent < _SILENCE else f"no message was looked for since {silent:.0f} s"


def readiness_trouble(metrics: Metrics) -> str:
    """Say why a daemon cannot serve devices; empty if it can."""
    if metrics.stopping:
        return "it is stopping"
    if metrics.endpoints is None:
        return "it does not listen"
    if not metrics.bundles:
        return "no bundle is loaded"
    for record in list(metrics.bundles):
        if trouble := record.trouble():
            return trouble
    if (busy := time.monotonic() - metrics.schedule.all_busy_since) > _LONGEST_RUN:
        return f"no worker has ended a run of a slice for {busy:.0f} s"
    return liveness_trouble(metrics)


def make_status(
    metrics: Metrics, history: History, *, name: str, encrypted: bool, since: float = 0.0
) -> Status:
    """Make the document of this moment, with the samples after ``since``.

    Any thread may, if ``history`` is its own.
    """
    endpoints, schedule, now = metrics.endpoints, metrics.schedule, time.monotonic()
    devices = [
        DeviceStatus(name=name, silent=max(0.0, now - heard), **msgspec.structs.asdict(usage))
        for name, heard, usage in schedule.records()
    ]
    return Status(
        name=name,
        version=__version__,
        time=time.time(),
        uptime=metrics.uptime,
        trouble=readiness_trouble(metrics),
        endpoint="" if endpoints is None else endpoints.tensors,
        control_endpoint="" if endpoints is None else endpoints.control,
        encrypted=encrypted,
        queue=schedule.waiting,
        queue_limit=schedule.capacity,
        devices_limit=schedule.most_devices,
        connections=metrics.connections,
        connections_limit=metrics.connections_limit,
        requests={outcome: metrics.requests(outcome) for outcome in OUTCOMES},
        rejected=dict(metrics.rejected),
        refused=dict(metrics.refused),
        devices=devices,
        bundles=[_bundle_status(each, history) for each in list(metrics.bundles)],
        interval=INTERVAL,
        history=history.since(since),
    )


def _bundle_status(record: BundleMetrics, history: History) -> BundleStatus:
    manifest = record.bundle.manifest
    runs = sum(record.batch_size.counts)
    return BundleStatus(
        id=record.bundle.id,
        model=manifest.model,
        kind=manifest.kind,
        transfer=manifest.image_format or (manifest.transfer.label if manifest.transfer else ""),
        requests={str(outcome): count for outcome, count in record.requests.items()},
        received_bytes=record.received_bytes,
        sent_bytes=record.sent_bytes,
        mean_batch=record.batch_size.sum / runs if runs else 0.0,
        recent=history.recent(record),
    )
