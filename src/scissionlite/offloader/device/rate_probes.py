"""Probes that measure the rate of the link on purpose, while requests do not show it."""

from __future__ import annotations

import math

_SECONDS = 0.02  # that a probe is to take on the link, which tells the rate
_LEAST_BYTES, _MOST_BYTES = 4096, 1 << 18
_GROWTH = 8
_LEAST_PAUSE, _MOST_PAUSE = 0.25, 2.0  # seconds between two
_SHARE = 0.1  # most of the link's time that they take, unless it is too slow for that


class RateProbes:
    """When to send a probe of the rate, and of how many bytes: as many as take a telling time.

    A link that became faster is found by growing probes, one that became slower by smaller ones.

    Attributes
    ----------
    wanted_until : float
        Monotonic time until which they are to be sent; any thread may set it.
    nbytes : int
        Bytes of the next one.
    sent_id : int
        Id of the last one.
    """

    def __init__(self) -> None:
        self.wanted_until = 0.0
        self.nbytes = _LEAST_BYTES
        self.sent_id = 0
        self._next_at = 0.0

    @property
    def at(self) -> float:
        """Monotonic time of the next one; infinite while none is wanted."""
        return self._next_at if self._next_at < self.wanted_until else math.inf

    def sent(self, probe_id: int, now: float) -> None:
        """Count one as sent."""
        self.sent_id, self._next_at = probe_id, now + _LEAST_PAUSE

    def answered(self, seconds: float, rtt: float, now: float) -> None:
        """Take the time of the last one, and choose the next."""
        telling = self.nbytes * _SECONDS / max(seconds - rtt, 1e-4)
        self.nbytes = int(min(max(telling, _LEAST_BYTES), _GROWTH * self.nbytes, _MOST_BYTES))
        self._next_at = max(self._next_at, now + min(seconds / _SHARE, _MOST_PAUSE))
