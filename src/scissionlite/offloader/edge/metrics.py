"""The one record of what an edge daemon does: counts, bytes and latencies since its start.

The loop tells it; ``stats`` messages, the page (:mod:`.status`), Prometheus
(:mod:`.prometheus`) and the log read it. prometheus-client's own counters take a lock for each
number; these take none, because the loop has one already. Reading an int or a copy of a list is
safe in any thread.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import msgspec

from scissionlite.errors import ScissionLiteError
from scissionlite.offloader.wire.control import RefusalCode, StatsReply

if TYPE_CHECKING:
    from scissionlite.bundle import Bundle
    from scissionlite.offloader.edge.connections import Trouble
    from scissionlite.offloader.edge.schedule import Done, Schedule
    from scissionlite.offloader.wire.endpoints import Endpoints

logger = logging.getLogger(__name__)

_LOG_INTERVAL = 10.0  # seconds between two lines on the same class of error

Outcome = Literal["served", "failed", "expired", "busy"]
"""How a request ended; docs/daemon.md says when each is counted."""

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

Stage = Literal["queue", "decode", "run", "next", "send"]
"""Waiting for its turn; decoding the payload; the slice's run; with three tiers, packing for the
next edge and waiting for its answer; packing and sending the result."""

STAGES: tuple[Stage, ...] = get_args(Stage)

SECONDS = tuple(
    round(step * 10.0**power, 7) for power in range(-4, 1) for step in (1, 1.5, 2.2, 3.3, 4.7, 6.8)
)
"""Upper bounds of the latencies' buckets: 0.1 ms to 6.8 s, six in a decade (the series E6)."""

BATCHES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
"""Upper bounds of the batch sizes' buckets."""


class Histogram:
    """Counts of values, by buckets.

    Parameters
    ----------
    bounds
        Largest value of each bucket, in ascending order; one more bucket takes what is larger.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class DeviceUsage(msgspec.Struct, eq=False):
    """The requests and bytes of one connected device.

    Attributes
    ----------
    address
        Name of its key, or its address where there are no keys.
    since
        When it said Hello, in seconds since 1970.
    requests
        Requests that reached the queue, or found it full; also those that it sent again.
    served
        Of them, those answered with a result.
    refused
        Of them, those answered otherwise; and messages that break a rule.
    received_bytes, sent_bytes
        Of its requests and of their results, headers included.
    round_trip
        Of its link, in seconds, as the kernel measured it up to the last heartbeat; 0 is not known.
    link_rtt, bandwidth
        Its link as it has measured it itself (:attr:`.Device.link`), in seconds and bit/s. A
        bandwidth of 0 is not known: it has sent nothing yet, or is older than the message ``link``.
    """

    address: str = ""
    since: float = msgspec.field(default_factory=time.time)
    requests: int = 0
    served: int = 0
    refused: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    round_trip: float = 0.0
    link_rtt: float = 0.0
    bandwidth: float = 0.0


class Traffic(msgspec.Struct, eq=False):
    """Requests by outcome, and the bytes of requests and of results."""

    requests: dict[Outcome, int] = msgspec.field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    received_bytes: int = 0
    sent_bytes: int = 0


class BundleMetrics:
    """The record of one bundle's requests.

    Parameters
    ----------
    bundle
        The bundle.
    total
        The traffic of all bundles, which grows with this one's.
    trouble
        Says why requests of the bundle cannot be answered now; empty if they can.

    Attributes
    ----------
    bundle, trouble
        As given.
    since
        When it was added, in seconds since 1970.
    requests
        By outcome.
    received_bytes, sent_bytes
        Of requests that reached the queue, and of results; headers included.
    batch_size
        Samples in each run of the slice.
    stages, latency
        Seconds of the served requests: by stage, and from arrival to the result's sending, which
        is the sum of the stages.
    """

    def __init__(
        self, bundle: Bundle, total: Traffic, trouble: Callable[[], str] = lambda: ""
    ) -> None:
        self.bundle = bundle
        self.trouble = trouble
        self.since = time.time()
        self._total = total
        self.requests: dict[Outcome, int] = dict.fromkeys(OUTCOMES, 0)
        self.received_bytes = 0
        self.sent_bytes = 0
        self.batch_size = Histogram(BATCHES)
        self.stages: dict[Stage, Histogram] = {stage: Histogram(SECONDS) for stage in STAGES}
        self.latency = Histogram(SECONDS)

    def receive(self, usage: DeviceUsage | None, nbytes: int) -> None:
        """Record that a request has arrived."""
        self.received_bytes += nbytes
        self._total.received_bytes += nbytes
        if usage is not None:
            usage.requests += 1
            usage.received_bytes += nbytes

    def end(self, usage: DeviceUsage | None, outcome: Outcome, nbytes: int = 0) -> None:
        """Record how a request ended; before the device can know."""
        self.requests[outcome] += 1
        self.sent_bytes += nbytes
        self._total.requests[outcome] += 1
        self._total.sent_bytes += nbytes
        if usage is None:  # the device has left
            return
        usage.sent_bytes += nbytes
        if outcome == "served":
            usage.served += 1
        else:
            usage.refused += 1

    def time(self, done: Done) -> None:
        """Record the stages of a request whose result was sent just now."""
        whole = time.monotonic() - done.job.arrived
        stages = self.stages
        stages["queue"].add(done.queue)
        stages["decode"].add(done.decode)
        stages["run"].add(done.run)
        spent = done.queue + done.decode + done.run
        if (hop := done.hop) is not None:
            beyond = hop.encode + hop.transfer + hop.queue + hop.decode + hop.run
            stages["next"].add(beyond)
            spent += beyond
        stages["send"].add(max(0.0, whole - spent))
        self.latency.add(whole)


class Metrics:
    """The record of a daemon. Written under the loop's lock; any thread may read.

    Parameters
    ----------
    schedule
        Has the devices and the queue.

    Attributes
    ----------
    bundles
        The bundles served, in the order in which they were added.
    total
        Of all bundles, also of those that are served no longer.
    rejected
        Messages that break the wire format or the protocol, by class of error.
    refused
        Devices that were not let in, by code; "unknown-device" are requests without a Hello.
    stepped
        Monotonic time of the loop's last step.
    endpoints
        Where the daemon listens; None before and after.
    connections, connections_limit
        Connections of devices, edge clients and strangers, and how many there may be.
    stopping
        Whether the daemon is about to end.
    started
        Monotonic time of the start.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.bundles: list[BundleMetrics] = []
        self.total = Traffic()
        self.rejected: dict[str, int] = {}
        self.refused: dict[str, int] = {}
        self.started = self.stepped = time.monotonic()
        self.endpoints: Endpoints | None = None
        self.connections = self.connections_limit = 0
        self.stopping = False
        self._logged: dict[str, float] = {}

    def add_bundle(self, bundle: Bundle, trouble: Callable[[], str] = lambda: "") -> BundleMetrics:
        """Begin the record of a bundle; ``trouble`` as that of the record."""
        added = BundleMetrics(bundle, self.total, trouble)
        self.bundles.append(added)
        return added

    def remove_bundle(self, record: BundleMetrics) -> None:
        """End the record of a bundle."""
        self.bundles.remove(record)

    def reject(self, error: ScissionLiteError, usage: DeviceUsage | None = None) -> None:
        """Count a rejected message, and log it unless one of its class was logged just now."""
        self.reject_many(error, 1)
        if usage is not None:
            usage.refused += 1

    def reject_many(self, error: ScissionLiteError, messages: int) -> None:
        """Count messages rejected for one reason, and log it as :meth:`reject` does."""
        kind, now = type(error).__name__, time.monotonic()
        self.rejected[kind] = self.rejected.get(kind, 0) + messages
        if now - self._logged.get(kind, -_LOG_INTERVAL) >= _LOG_INTERVAL:
            self._logged[kind] = now
            count = self.rejected[kind]
            logger.warning(
                "%s (%d so far): %s", kind, count, error, extra={"error": kind, "count": count}
            )

    def refuse(self, code: RefusalCode | Trouble | Literal["unknown-device"]) -> None:
        """Count a device that was not let in, or a connection that was ended or refused."""
        self.refused[code] = self.refused.get(code, 0) + 1

    @property
    def uptime(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def requests(self, outcome: Outcome) -> int:
        """Count the requests of all bundles that ended so."""
        return self.total.requests[outcome]

    def stats(self) -> StatsReply:
        """Return the counts so far."""
        return StatsReply(
            **{outcome: self.requests(outcome) for outcome in OUTCOMES},
            rejected=dict(self.rejected),
            devices=len(self.schedule.devices),
            uptime=self.uptime,
        )
