"""Whether what the device sends to the tensor port arrives: the half of a link that never answers.

The control port may live while the tensor port swallows every byte, or passes only small segments
(a path-MTU hole). One connection keeps the order of its bytes. So an answer to anything that was
sent there, a request or a probe, proves that all before it arrived, too. A probe is answered at
once, by the edge's I/O thread. This tells a lost request from one that waits in the edge's queue:

* A new connection is good once a probe was answered.
* A request that is unanswered for a moment is followed by a small probe.
* While nothing is sent, some of the heartbeats are small probes.
* When a probe is not answered in time, or a request was not proven to arrive in half of its time,
  although the edge answers a heartbeat that was sent later, the path is lost: both sockets are
  opened anew. The new connection is good only when probes up to the size of what was lost were
  answered. The sizes grow, and each has a time that follows from the time of the one before, so
  that a slow link is not called dead.
* Where requests do not show the rate of the link, larger probes do (:mod:`.rate_probes`).
"""

from __future__ import annotations

import math

import msgspec

from scissionlite.offloader.device.link_meter import LinkMeter
from scissionlite.offloader.wire.control import MAX_PROBE_BYTES

FIRST_PROBE_ID = 1 << 63
"""Ids from here on are those of probes; requests count from 0."""

_FIRST_BYTES = 4096  # several segments of every usual size, and little for the slowest link
_GROWTH = 8
_SMALL_BYTES = 32
_FIRST_PATIENCE = 5.0  # seconds: nothing is known about the link yet
_LEAST_PATIENCE = 1.0  # seconds that a living link may pause
_MARGIN = 4  # a link may become this many times slower at once
_ASK_AFTER = 0.25  # seconds without an answer, or a quarter of the request's time
_LEAST_TIME = 0.25  # seconds for a request to arrive in, if it has as many
_HEARTBEATS = 4  # heartbeats without any proof, until one goes by the tensor port
_MOST_LOSSES = 5  # that still double the pause: 8 s at most


class _Sent(msgspec.Struct, frozen=True):
    """Something that was sent, until it is proven to have arrived; monotonic times.

    At ``ask_at`` a probe is to follow it, and at ``lost_at`` it counts as lost.
    """

    nbytes: int
    at: float
    ask_at: float
    lost_at: float


class _Probe(msgspec.Struct, frozen=True):
    """The next probe: not before a monotonic time, its bytes, and the seconds that it has."""

    at: float
    nbytes: int
    patience: float


class TensorPath:
    """The proofs that the tensor port is reached, over all connections to one edge. Of one thread.

    Parameters
    ----------
    meter
        Measures the link by the same messages.
    others
        Whether somebody else answers what is lost: another edge, or the fallback. Nobody waits
        then until the edge is known to be awake, and a path that loses every request although
        probes arrive is tried again after longer and longer pauses.

    Attributes
    ----------
    meter : LinkMeter
        The same.
    proven : bool
        Whether the connection is good.
    """

    def __init__(self, meter: LinkMeter, *, others: bool) -> None:
        self.proven = False
        self.meter = meter
        self._others = others
        self._sent: dict[int, _Sent] = {}  # in order; what is proven is taken out
        self._probe_id = FIRST_PROBE_ID  # of the last probe
        self._next: _Probe | None = None
        self._proven_at = 0.0
        self._must_pass = _FIRST_BYTES  # bytes of the largest probe that proves a connection
        self._unanswered = False  # whether no request was answered since one was sent
        self._losses = 0  # connections in a row that answered no request
        self._not_before = 0.0
        self._awake_at = 0.0  # when the last heartbeat that was answered had been sent

    @property
    def idle(self) -> bool:
        """Whether all that was sent has arrived."""
        return not self._sent

    def idle_since(self, at: float) -> bool:
        """Whether it was idle at a monotonic time, and nothing was sent since."""
        return self.idle and self._proven_at <= at

    @property
    def next_event(self) -> float:
        """Monotonic time at which :meth:`probe_due` or :meth:`lost` may say something new."""
        lost_at = min((s.lost_at for s in self._sent.values() if self._counts(s)), default=math.inf)
        if self._probe_id in self._sent:
            return lost_at
        if self._next is not None:
            return min(lost_at, self._next.at)
        return min(lost_at, self._ask_at, self._rate_at)

    def open(self, now: float) -> None:
        """Begin with a new connection, which is not proven."""
        self._sent.clear()
        self.proven = self._unanswered = False
        self._next = _Probe(max(now, self._not_before), _FIRST_BYTES, _FIRST_PATIENCE)

    def close(self, now: float) -> None:
        """End with a connection; what it lost must pass the next one."""
        if self._unanswered:
            self._losses += 1
        if self._others and self._losses > 1:
            self._not_before = now + 2.0 ** (min(self._losses, _MOST_LOSSES) - 2)
        if self._sent:
            largest = max(sent.nbytes for sent in self._sent.values())
            self._must_pass = max(self._must_pass, min(largest, MAX_PROBE_BYTES))
            self.meter.forget_rate()
        self._sent.clear()
        self._next, self.proven = None, False

    def request_sent(self, request_id: int, nbytes: int, now: float, left: float) -> None:
        """Count a request as sent: so many bytes, that may be answered for so many seconds."""
        self._unanswered = True
        time_to_arrive = _MARGIN * self._expected(nbytes)
        self._sent[request_id] = _Sent(
            nbytes,
            now,
            ask_at=now + min(max(_ASK_AFTER, time_to_arrive), left / 4),
            lost_at=now + max(time_to_arrive, min(left, max(left / 2, _LEAST_TIME))),
        )

    def probe_due(self, now: float, heartbeat: float) -> tuple[int, int] | None:
        """Return id and bytes of a probe if one is to be sent now; it counts as sent."""
        if self._probe_id in self._sent:
            return None  # one at a time
        if self._next is not None:
            at, nbytes, patience = self._next.at, self._next.nbytes, self._next.patience
        elif now >= self._rate_at:
            self.meter.probes.sent(self._probe_id + 1, self.meter.rate, now)
            at, nbytes, patience = now, self.meter.probes.nbytes, _FIRST_PATIENCE
        else:
            at = self._proven_at + _HEARTBEATS * heartbeat if self.idle else self._ask_at
            nbytes = _SMALL_BYTES
            patience = max(_LEAST_PATIENCE, _MARGIN * self._expected(nbytes))
        if now < at:
            return None
        self._probe_id += 1
        self._sent[self._probe_id] = _Sent(nbytes, now, ask_at=math.inf, lost_at=now + patience)
        return self._probe_id, nbytes

    def answered(self, answered_id: int, nbytes: int, now: float, edge_seconds: float) -> None:
        """Take an answer to a request or a probe: it and all that was sent before it arrived.

        Parameters
        ----------
        answered_id
            Of the request or the probe.
        nbytes
            Bytes of the answer.
        now
            Monotonic time.
        edge_seconds
            Time that the edge says it had the request; infinite where it does not say it.
        """
        if answered_id < FIRST_PROBE_ID:
            self._unanswered, self._losses, self._not_before = False, 0, 0.0
            self._must_pass = _FIRST_BYTES
        if (sent := self._sent.get(answered_id)) is None:
            return  # of an earlier connection, or proven to have arrived by a later probe
        alone = next(reversed(self._sent)) == answered_id == next(iter(self._sent))
        # What was sent before it has crossed the link, too, and its own answer comes too late to
        # show when: without it, a request that a probe follows would never be measured.
        since, crossed = sent.at, sent.nbytes
        while (earlier_id := next(iter(self._sent))) != answered_id:
            earlier = self._sent.pop(earlier_id)
            since, crossed = min(since, earlier.at), crossed + earlier.nbytes
        del self._sent[answered_id]
        self._proven_at = now
        if edge_seconds < math.inf:
            self.meter.transfer(crossed + nbytes, since, now - edge_seconds)
        if answered_id == self._probe_id and alone and sent.nbytes <= _SMALL_BYTES:
            self.meter.round_trip(now - sent.at, idle=True)
        if answered_id == self.meter.probes.sent_id:
            self.meter.probes.answered(now - sent.at, self.meter.rtt, self.meter.rate, now)
        if answered_id == self._probe_id and self._next is not None:
            self._proved(sent.nbytes, now, now - sent.at)

    def lost(self, now: float) -> str | None:
        """Return what is wrong if something that was sent counts as lost."""
        for sent in self._sent.values():
            if now >= sent.lost_at and self._counts(sent):
                seconds = now - sent.at
                return f"{sent.nbytes} bytes to the tensor port did not arrive in {seconds:.1f} s"
        return None

    def edge_is_awake(self, at: float) -> None:
        """Take the answer to a heartbeat that was sent at a monotonic time."""
        self._awake_at = at

    def _counts(self, sent: _Sent) -> bool:
        """Whether it is lost when its time is over: an edge that sleeps answers nothing at all."""
        return self._others or self._awake_at >= sent.at

    @property
    def _ask_at(self) -> float:
        return min((sent.ask_at for sent in self._sent.values()), default=math.inf)

    @property
    def _rate_at(self) -> float:
        """Monotonic time of the next probe of the rate; infinite while none is wanted."""
        return self.meter.probes.at if self.proven and self.idle else math.inf

    def _expected(self, nbytes: int) -> float:
        """Seconds until what is sent now, behind all that is under way, is proven to arrive."""
        expected = self.meter.expected(nbytes + sum(sent.nbytes for sent in self._sent.values()))
        return _FIRST_PATIENCE / _MARGIN if expected is None else expected

    def _proved(self, nbytes: int, now: float, seconds: float) -> None:
        """Go on with the next larger probe of a new connection, or end with this one."""
        if nbytes >= self._must_pass:
            self._next, self.proven = None, True
            return
        larger = min(_GROWTH * nbytes, self._must_pass)
        patience = max(_LEAST_PATIENCE, _MARGIN * seconds * larger / nbytes)
        self._next = _Probe(now, larger, patience)
