"""The link, measured all the while by what the device sends over it anyway.

The round trip is that of small messages, which wait for nothing: heartbeats and small probes while
no request is under way. Noise only adds to it, so it follows a fall at once and a rise slowly.

The rate comes from requests and large probes. An answer says how long the edge had the request;
without that time, it came back at ``arrived``. The link was free for the request once it was sent
and the one before it had arrived. So its bytes took

    service = arrived - max(sent + round trip, arrived of the one before)

seconds, which holds whether requests wait for each other or not. The logarithm of bytes over
service is averaged with weights that fall exponentially, so that a link which becomes ten times
faster is found as soon as one that becomes ten times slower. A transfer counts the less, the less
of its time was spent on its bytes: the rest is the noise of the round trip.
"""

from __future__ import annotations

import math
import time

import msgspec

from scissionlite.offloader.device.rate_probes import RateProbes

_RISE = 0.1  # weight of a longer round trip; a shorter one is taken at once
_USUAL, _CONFIRMED = 0.25, 0.5  # weights of a rate, and of one that confirms a change
_CHANGE = math.log(1.5)  # two rates in a row beyond this factor, to the same side, are a change
_LARGEST_STEP = math.log(8)  # one transfer alone may have met a stall
_HEARTBEAT_BYTES = 46  # of a Ping and its Pong, which a slow link carries, too
_SMALL = 1024  # bytes: fewer say nothing about the rate
_NOISE = 0.001  # seconds of a transfer that wake-ups take, or the clock does not tell


class LinkEstimate(msgspec.Struct, frozen=True):
    """The link to an edge daemon, as the device's own messages show it.

    ``sl.Link(rtt=estimate.rtt, bandwidth=estimate.bandwidth)`` is the link to plan with.

    Attributes
    ----------
    rtt : float
        Round-trip time in seconds, of no bytes.
    bandwidth : float
        Rate in bit/s at which requests and their answers cross the link.
    samples : int
        Transfers measured.
    age : float
        Seconds since the last of them.
    """

    rtt: float
    bandwidth: float
    samples: int
    age: float


class LinkMeter:
    """Measures a link. Of the I/O thread, except :meth:`estimate`, which any thread may call.

    Attributes
    ----------
    probes : RateProbes
        Measure the rate while requests do not.
    """

    def __init__(self) -> None:
        self.probes = RateProbes()
        self._rtt: float | None = None
        self._log_rate: float | None = None
        self._last_deviation = 0.0
        self._samples = 0
        self._measured_at = 0.0
        self._arrived = 0.0  # of the last transfer

    def estimate(self) -> LinkEstimate | None:
        """Return the estimate; None before the first transfer was measured."""
        rtt, log_rate = self._rtt, self._log_rate
        if rtt is None or log_rate is None:
            return None
        rate, age = math.exp(log_rate), time.monotonic() - self._measured_at
        return LinkEstimate(max(rtt - 8 * _HEARTBEAT_BYTES / rate, 0.0), rate, self._samples, age)

    @property
    def rtt(self) -> float:
        """Round-trip time in seconds; 0 before it was measured."""
        return self._rtt or 0.0

    @property
    def rate(self) -> float:
        """Rate in bit/s; infinite before it was measured."""
        return math.inf if self._log_rate is None else math.exp(self._log_rate)

    def expected(self, nbytes: int) -> float | None:
        """Seconds until the answer to so many bytes is back; None if nothing was measured yet."""
        if self._log_rate is None:
            return None
        return (self._rtt or 0.0) + 8 * nbytes / math.exp(self._log_rate)

    def forget_rate(self) -> None:
        """Begin anew with the next transfer: the link is not the one that was measured."""
        self._log_rate = None

    def round_trip(self, seconds: float, *, idle: bool) -> None:
        """Take a small message's round trip; while the link was not idle, only if it is shorter."""
        if self._rtt is None:
            self._rtt = seconds
        elif idle or seconds < self._rtt:
            self._rtt += (1.0 if seconds < self._rtt else _RISE) * (seconds - self._rtt)

    def transfer(self, nbytes: int, sent: float, arrived: float) -> None:
        """Take a transfer that was sent and came back at these monotonic times.

        The edge's own time is subtracted from ``arrived``; ``nbytes`` are those of both ways.
        """
        rtt = self._rtt or 0.0
        service = arrived - max(sent + rtt, self._arrived)
        self._arrived = max(self._arrived, arrived)
        if nbytes < _SMALL:
            return
        log_rate = math.log(8 * nbytes / max(service, _NOISE / 10))
        self._samples += 1
        self._measured_at = time.monotonic()
        if self._log_rate is None:
            self._log_rate, self._last_deviation = log_rate, 0.0
            return
        deviation = log_rate - self._log_rate
        confirmed = min(abs(deviation), abs(self._last_deviation)) > _CHANGE
        confirmed &= (deviation > 0) == (self._last_deviation > 0)
        self._last_deviation = deviation
        weight = _USUAL
        if confirmed:
            weight = _CONFIRMED
        else:
            deviation = math.copysign(min(abs(deviation), _LARGEST_STEP), deviation)
        significance = max(service, 0.0) / (max(service, 0.0) + rtt / 4 + _NOISE)
        self._log_rate += weight * significance * deviation
