"""When a device tries again to connect to an edge daemon that it does not reach."""

from __future__ import annotations

import time
from collections.abc import Callable

from scissionlite.offloader.device.diagnosis import Diagnosis
from scissionlite.offloader.device.socket_pair import FIRST_RETRY, LAST_RETRY


class Backoff:
    """Growing pauses between attempts to connect, and why attempts fail.

    Parameters
    ----------
    explain
        Called with the reason, in any thread.

    Attributes
    ----------
    next_at : float
        Monotonic time of the next attempt.
    diagnosis : Diagnosis
        Of the attempts since the last connection.
    """

    def __init__(self, explain: Callable[[str], None]) -> None:
        self.next_at = 0.0
        self.diagnosis = Diagnosis(explain)
        self._pause = FIRST_RETRY

    def failed(self) -> None:
        """Pause before the next attempt, and longer before the one after it."""
        self.next_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LAST_RETRY)

    def refused(self) -> None:
        """Pause as long as possible: the daemon may be restarted with another bundle."""
        self.next_at = time.monotonic() + LAST_RETRY

    def succeeded(self) -> None:
        """Begin with the shortest pause again."""
        self._pause = FIRST_RETRY
        self.diagnosis.reason = None
