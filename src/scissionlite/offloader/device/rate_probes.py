"""Probes that measure the rate of the link on purpose, while requests do not show it."""

from __future__ import annotations

import math

_SECONDS = 0.02  # that a probe is to take on the link, which tells the rate
_LEAST_BYTES, _MOST_BYTES = 4096, 1 << 18
_GROWTH = 8
_LEAST_PAUSE, _USUAL_PAUSE, _MOST_PAUSE = 0.25, 1.0, 2.0  # seconds between two
_FRESH = 3.0  # seconds for which the size that the last one proved is right
_AGREES = 1.5  # a rate within this factor of the estimate is no news
_SHARE = 0.1  # most of the link's time that they take, unless it is too slow for that


class RateProbes:
    """When to send a probe of the rate, and of how many bytes: as many as take a telling time.

    A link that became faster is found by growing probes, one that became slower by smaller ones.
    They come quickly until the estimate of the rate agrees with them.

    Attributes
    ----------
    wanted_until : float
        Monotonic time until which they are to be sent; any thread may set it.
    nbytes : int
        Bytes of the one that was sent last, or of the next one once it was answered.
    sent_id : int
        Id of the last one.
    """

    def __init__(self) -> None:
        self.wanted_until = 0.0
        self.nbytes = _LEAST_BYTES
        self.sent_id = 0
        self._next_at = self._answered_at = 0.0

    @property
    def at(self) -> float:
        """Monotonic time of the next one; infinite while none is wanted."""
        return self._next_at if self._next_at < self.wanted_until else math.inf

    def sent(self, probe_id: int, rate: float, now: float) -> None:
        """Count one of ``nbytes`` as sent; ``rate`` is the estimate in bit/s."""
        self.sent_id, self._next_at = probe_id, now + _LEAST_PAUSE
        if now - self._answered_at > _FRESH:
            # The link may have become slow since: a large one would keep it busy for seconds.
            self.nbytes = int(min(max(_SECONDS * rate / 8, _LEAST_BYTES), self.nbytes))

    def answered(self, seconds: float, rtt: float, rate: float, now: float) -> None:
        """Take the time of the last one, and choose the next.

        ``rtt`` and ``rate`` (bit/s) are the estimates with this one.
        """
        service = max(seconds - rtt, 1e-4)
        news = not 1 / _AGREES < 8 * self.nbytes / service / rate < _AGREES
        pause = max(_LEAST_PAUSE if news else _USUAL_PAUSE, min(seconds / _SHARE, _MOST_PAUSE))
        self._next_at, self._answered_at = now + pause, now
        telling = self.nbytes * _SECONDS / service
        self.nbytes = int(min(max(telling, _LEAST_BYTES), _GROWTH * self.nbytes, _MOST_BYTES))
