"""Measure the link to a running edge daemon through the sockets that tensors use.

Probes of three sizes take turns: one byte, a quarter of the largest size, and the largest size,
which takes the link a noticeable time. So a change of the link affects all sizes.

The round trip is the time of the smallest probes. A rate is the slope of time against size. The
time that does not depend on size (the round trip, waking up threads, ZeroMQ) cancels. The time per
byte is left. It includes the digest, and the copies into and out of the kernel, as for a request.
The connection is warm: the cost of TCP's slow start, which the first request after a pause pays on
a long and fast link, is not included.

Intervals of 95%: of the round trip's median and p95 by order statistics, which assume no
distribution (Hahn and Meeker, *Statistical Intervals*, 1991, section 5.2); of a rate by the
percentile bootstrap within each size (Efron and Tibshirani, *An Introduction to the Bootstrap*,
1993, chapter 13), from a fixed seed.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from scissionlite.errors import OffloadError
from scissionlite.offloader import wire
from scissionlite.offloader.device.edge_client import EdgeClient
from scissionlite.offloader.limits import Timeouts
from scissionlite.offloader.link_keys import DeviceKeys
from scissionlite.offloader.wire.control import MAX_PROBE_BYTES, ProbeDownload, ProbeReply
from scissionlite.offloader.wire.probe import probe_header
from scissionlite.scissiontl.link import Link

CONFIDENCE = 0.95
FASTEST = 1e12
"""Highest rate in bit/s that is reported: above it the slope is lost in the noise."""

_SPACING = 0.005  # least seconds between two probes: others use the daemon, too
_FIRST_BYTES = 1 << 12
_ROUNDS = 40  # the largest probe takes 1/40 of the time, beyond the round trip
_ROUND_TRIPS = 12  # the round trips of a round take 1/12 of the time
_MOST_ROUND_TRIPS = 8
_LEAST_ROUNDS = 3
_RESAMPLES = 2000

Times = npt.NDArray[np.float64]


class Estimate(msgspec.Struct, frozen=True):
    """A measured value with its confidence interval.

    Attributes
    ----------
    value, low, high
        In the unit of the estimated quantity; ``low <= value <= high``.
    confidence
        Probability with which such an interval holds the true value. Below 0.95 where there are
        too few samples for it: a p95 needs 72, a median 6.
    """

    value: float
    low: float
    high: float
    confidence: float


class LinkMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """The result of :func:`probe`.

    Attributes
    ----------
    endpoint, edge
        The daemon's tensor endpoint and its name.
    rtt, rtt_p95
        Median and 95th percentile of the round trip, in seconds.
    upload, download
        Rates in bit/s, to the edge and from it.
    round_trips, transfers
        Number of probes of the smallest size, and of the others.
    largest
        Bytes of the largest probe.
    seconds
        Time that the measurement took, connecting included.
    """

    endpoint: str
    edge: str
    rtt: Estimate
    rtt_p95: Estimate
    upload: Estimate
    download: Estimate
    round_trips: int
    transfers: int
    largest: int
    seconds: float

    @property
    def link(self) -> Link:
        """The link as ScissionTL plans with it."""
        return Link(self.rtt.value, self.upload.value, self.download.value)


def probe(
    connect: str,
    control: str | None = None,
    *,
    seconds: float = 5.0,
    timeouts: Timeouts | None = None,
    keys: DeviceKeys | None = None,
) -> LinkMeasurement:
    """Measure the link to a running edge daemon.

    Parameters
    ----------
    connect
        Tensor endpoint of the daemon: ``tcp://host:port`` or ``ipc://path``.
    control
        Its control endpoint; by default the next port.
    seconds
        How long to measure, after connecting. A slow link is measured for longer, until there
        are three rounds of probes.
    timeouts
        How long to wait for one answer.
    keys
        Of this machine and the daemon, for a daemon that has keys.

    Raises
    ------
    ValueError
        If an endpoint is not one to connect to, or ``seconds`` is not above zero.
    EdgeUnavailableError
        If no daemon answers there, or it stops answering.
    AuthorizationError
        If the daemon does not take this key, or only one of the two sides has keys.
    OffloadError
        If the daemon is too old for probes.
    """
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds must be above 0, got {seconds}")
    timeouts = timeouts or Timeouts()
    start = time.monotonic()
    with EdgeClient(connect, control, timeouts, keys) as client:
        prober = _Prober(client, timeouts.answer)
        prober.upload(1)  # the tensor port's connection is made meanwhile
        base = min(prober.upload(1) for _ in range(3))
        largest = _largest(prober, base, seconds / _ROUNDS)
        round_trips = max(1, min(_MOST_ROUND_TRIPS, int(seconds / (_ROUND_TRIPS * base))))
        sizes = (max(1, largest // 4), largest)
        trips: list[float] = []
        up: list[list[float]] = [[], []]
        down: list[list[float]] = [[], []]
        small_down: list[float] = []
        end = time.monotonic() + seconds
        while len(small_down) < _LEAST_ROUNDS or time.monotonic() < end:
            trips += [prober.upload(1) for _ in range(round_trips)]
            small_down.append(prober.download(1))
            for index, nbytes in enumerate(sizes):
                up[index].append(prober.upload(nbytes))
                down[index].append(prober.download(nbytes))
    ordered = np.sort(np.array(trips))
    return LinkMeasurement(
        endpoint=connect,
        edge=client.edge,
        rtt=quantile(ordered, 0.5),
        rtt_p95=quantile(ordered, 0.95),
        upload=rate((1, *sizes), [trips, *up]),
        download=rate((1, *sizes), [small_down, *down]),
        round_trips=len(trips),
        transfers=sum(map(len, (*up, *down))),
        largest=largest,
        seconds=time.monotonic() - start,
    )


def quantile(ordered: Times, q: float) -> Estimate:
    """Estimate a quantile, with an interval between two of the samples.

    Parameters
    ----------
    ordered : ndarray of float64, shape (n,)
        Samples, the smallest first; at least one.
    q
        Between 0 and 1.

    Notes
    -----
    How many of *n* samples lie below the quantile is binomial, so the interval from the *l*-th to
    the *u*-th smallest holds it with the probability that at least *l* and fewer than *u* do.
    Each end is the nearest that leaves at most 2.5% outside, or else the outermost sample.
    """
    n = len(ordered)
    below = np.cumsum(_binomial(n, q))  # below[k]: probability that at most k are
    tail = (1 - CONFIDENCE) / 2
    low = int(np.searchsorted(below, tail, side="right"))  # P(fewer than low) <= tail
    low = min(max(low, 1), n)
    high = int(np.searchsorted(below, 1 - tail)) + 1  # P(high or more) <= tail
    high = min(max(high, low), n)
    value = float(np.quantile(ordered, q))
    return Estimate(
        value,
        min(value, float(ordered[low - 1])),
        max(value, float(ordered[high - 1])),
        max(0.0, float(below[high - 1] - below[low - 1])),
    )


def rate(sizes: Sequence[int], times: Sequence[Sequence[float]]) -> Estimate:
    """Estimate a rate in bit/s from the times of probes of several sizes.

    Parameters
    ----------
    sizes
        In bytes.
    times
        For each size, the time of each of its probes in seconds.

    Returns
    -------
    Estimate
        From the least-squares line through the medians of the sizes; at most :data:`FASTEST`.
    """
    offsets = np.array(sizes, np.float64) - np.mean(sizes)
    weights = offsets / np.sum(offsets**2)  # the slope is the medians' sum with these
    generator = np.random.default_rng(0)
    slope = 0.0
    slopes = np.zeros(_RESAMPLES)
    for weight, samples in zip(weights, times, strict=True):
        values = np.array(samples)
        slope += weight * float(np.median(values))
        for part in np.array_split(slopes, _RESAMPLES // 100):  # views: a block at a time
            drawn = generator.integers(0, len(values), (len(part), len(values)))
            part += weight * np.median(values[drawn], axis=1)
    tail = (1 - CONFIDENCE) / 2
    fast, slow = np.quantile(slopes, (tail, 1 - tail))
    value = _bits(slope)
    return Estimate(value, min(value, _bits(slow)), max(value, _bits(fast)), CONFIDENCE)


class _Prober:
    """Send one probe after the other."""

    def __init__(self, client: EdgeClient, timeout: float) -> None:
        self._client = client
        self._timeout = timeout
        self._noise = os.urandom(MAX_PROBE_BYTES)  # no link can compress it
        self._requests = 0
        self._last = -math.inf

    def upload(self, nbytes: int) -> float:
        """Send a probe; return the seconds until its small answer arrives."""
        request = self._next()
        header = probe_header(self._client.id, request, nbytes)
        frames = wire.pack(header, [memoryview(self._noise)[:nbytes]])
        start = time.monotonic()
        self._client.push(frames)
        return self._wait(request, nbytes, 0) - start

    def download(self, nbytes: int) -> float:
        """Request bytes; return the seconds until they arrive."""
        request = self._next()
        start = time.monotonic()
        self._client.send(ProbeDownload(request, nbytes))
        return self._wait(request, nbytes, nbytes) - start

    def _wait(self, request: int, nbytes: int, following: int) -> float:
        reply, frames = self._client.wait_for(ProbeReply, request, seconds=self._timeout)
        arrived = time.monotonic()
        if (reply.nbytes, sum(map(len, frames))) != (nbytes, following):
            raise OffloadError(f"the edge daemon answers a probe of {nbytes} bytes with {reply}")
        return arrived

    def _next(self) -> int:
        time.sleep(max(0.0, self._last + _SPACING - time.monotonic()))
        self._last = time.monotonic()
        self._requests += 1
        return self._requests


def _largest(prober: _Prober, base: float, seconds: float) -> int:
    """Find a size that takes the link about this long, beyond the round trip."""
    nbytes = _FIRST_BYTES
    while True:
        took = max(prober.upload(nbytes) - base, 1e-9)
        fitting = int(nbytes * seconds / took)
        if fitting <= nbytes or nbytes == MAX_PROBE_BYTES:
            return max(64, min(fitting, MAX_PROBE_BYTES))
        # The next is four times as large at most: one hiccup more or less then does no harm.
        nbytes = min(fitting, 4 * nbytes, MAX_PROBE_BYTES)


def _binomial(n: int, p: float) -> Times:
    """Probabilities of 0 to ``n`` successes in ``n`` trials."""
    logs = [
        math.lgamma(n + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n - k + 1)
        + k * math.log(p)
        + (n - k) * math.log1p(-p)
        for k in range(n + 1)
    ]
    return np.exp(np.array(logs, np.float64))


def _bits(seconds_a_byte: float) -> float:
    return 8 / max(float(seconds_a_byte), 8 / FASTEST)
