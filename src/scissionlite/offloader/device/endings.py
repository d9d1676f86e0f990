"""Requests that have ended, until their callers have been told."""

from __future__ import annotations

import contextlib
import threading
from collections import deque

from scissionlite.errors import OffloadError
from scissionlite.offloader.device.messages import Reply, Request


class Endings:
    """The ends of requests, in order.

    A signal's handler may raise an exception anywhere here. So an end is taken out only when all of
    it is done, and done again otherwise: who is told twice, of the same outcome, goes on where it
    was.
    """

    def __init__(self) -> None:
        self._ended: deque[tuple[Request, Reply | OffloadError]] = deque()
        self._lock = threading.RLock()
        self._settling = False  # under the lock

    def append(self, request: Request, outcome: Reply | OffloadError) -> None:
        """Add the end of a request."""
        self._ended.append((request, outcome))

    def settle(self) -> None:
        """Tell all callers; of any thread without the lock of a loop, since callbacks run here."""
        with self._lock:
            if self._settling:
                return  # called by one of the callbacks; the call around it goes on
            self._settling = True
            try:
                while self._ended:
                    ended = self._ended[0]
                    request, outcome = ended
                    request.end(outcome)
                    with contextlib.suppress(ValueError):
                        self._ended.remove(ended)
            finally:
                self._settling = False
