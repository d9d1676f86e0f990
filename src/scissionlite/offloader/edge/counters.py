"""Counts of an edge daemon: requests answered, and messages rejected by class of error."""

from __future__ import annotations

import logging
import time

from scissionlite.errors import ScissionLiteError
from scissionlite.offloader.wire.control import StatsReply

logger = logging.getLogger(__name__)

_LOG_INTERVAL = 10.0  # seconds between two lines on the same class of error


class Counters:
    """Counts since the start; the attributes are those of :class:`.control.StatsReply`.

    Of the I/O thread; :meth:`stats` of any thread.
    """

    def __init__(self) -> None:
        self.served = 0
        self.failed = 0
        self.expired = 0
        self.busy = 0
        self._rejected: dict[str, int] = {}
        self._logged: dict[str, float] = {}
        self._started = time.monotonic()

    def reject(self, error: ScissionLiteError) -> None:
        """Count a rejected message, and log it unless one of its class was logged just now."""
        kind, now = type(error).__name__, time.monotonic()
        self._rejected[kind] = self._rejected.get(kind, 0) + 1
        if now - self._logged.get(kind, -_LOG_INTERVAL) >= _LOG_INTERVAL:
            self._logged[kind] = now
            logger.warning("%s (%d so far): %s", kind, self._rejected[kind], error)

    def stats(self, devices: int) -> StatsReply:
        """Return the counts so far, and the number of devices connected."""
        return StatsReply(
            served=self.served,
            failed=self.failed,
            expired=self.expired,
            busy=self.busy,
            rejected=dict(self._rejected),
            devices=devices,
            uptime=time.monotonic() - self._started,
        )
