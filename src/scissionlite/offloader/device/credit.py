"""Credit: how many requests may be unanswered at once, while there is a connection."""

from __future__ import annotations

import time

from scissionlite.errors import DeadlineExceededError, OffloadError
from scissionlite.offloader.device.futures import Condition
from scissionlite.offloader.device.socket_pair import unavailable
from scissionlite.offloader.wire.endpoints import Endpoints

_FIRST_PAUSE, _LAST_PAUSE = 2.0, 60.0  # seconds that an edge which was lost is to stay
_STEADY = 60.0  # seconds after which earlier losses are forgotten
_MOST_LOSSES = 10  # that are counted


class Credit:
    """The edge's credit under its lock: callers reserve it, the I/O thread grants it.

    Parameters
    ----------
    endpoints
        Of the daemon, for error messages.
    changed
        Notified whenever something changes here; several edges of one device share it.

    Attributes
    ----------
    preferred_from : float
        Monotonic time from which the edge may be preferred to one that was not lost. It grows with
        every loss, so that an edge that comes and goes does not take the requests with it.
    """

    def __init__(self, endpoints: Endpoints, changed: Condition | None = None) -> None:
        self._endpoints = endpoints
        self._changed = changed or Condition()
        # Under the condition's lock:
        self.preferred_from = 0.0
        self._losses = 0
        self._connected_at = 0.0
        self._connected = False
        self._limit = 0
        self._reserved = 0
        self._unanswered = 0
        self._trouble = "no answer in time"
        self._refusal: OffloadError | None = None
        self._closed: OffloadError | None = None

    @property
    def connected(self) -> bool:
        """Whether credit is granted."""
        return self._connected

    @property
    def trouble(self) -> str:
        """Why there is no connection, or why the last one ended."""
        return self._trouble

    @property
    def refusal(self) -> OffloadError | None:
        """The error that says why the daemon refuses this device, if it does."""
        return self._refusal

    @property
    def closed(self) -> OffloadError | None:
        """The error of a connection that was closed."""
        return self._closed

    def reserve(self, connect_by: float, expires: float) -> None:
        """Wait for the connection and for credit for one request; of callers' threads.

        Parameters
        ----------
        connect_by
            Monotonic time until which to wait for a connection.
        expires
            Monotonic time until which to wait for credit.

        Raises
        ------
        EdgeUnavailableError
            If there is no connection by then.
        BundleMismatchError
            If the daemon refuses this bundle.
        DeadlineExceededError
            If no earlier request was answered by then, so that there was no credit.
        OffloadError
            If the connection was closed.
        """
        with self._changed.lock:
            while not self.take():
                self._changed.wait(self.time_to_wait(connect_by, expires))

    def take(self) -> bool:
        """Reserve credit for one request if there is some at once."""
        with self._changed.lock:
            held = self._reserved + self._unanswered
            if self._closed is not None or not self._connected or held >= self._limit:
                return False
            self._reserved += 1
            return True

    def time_to_wait(self, connect_by: float, expires: float) -> float:
        """Return the seconds left to wait in; parameters and errors as :meth:`reserve`."""
        with self._changed.lock:
            if self._closed is not None:
                raise self._closed
            if self._refusal is not None:
                raise self._refusal
            left = (expires if self._connected else connect_by) - time.monotonic()
            if left <= 0 and self._connected:
                raise DeadlineExceededError(
                    f"all {self._limit} requests that {self._endpoints.tensors} allows at "
                    "once were unanswered until the deadline"
                )
            if left <= 0:
                raise unavailable(self._endpoints, self._trouble)
            return left

    def release(self) -> None:
        """Give back credit that was reserved for a request that is not sent."""
        with self._changed.lock:
            self._reserved -= 1
            self._changed.notify_all()

    def use(self) -> None:
        """Use credit that was reserved, for a request that is sent."""
        with self._changed.lock:
            self._reserved -= 1
            self._unanswered += 1

    def answered(self) -> None:
        """Give back the credit of a request that was answered, or has failed."""
        with self._changed.lock:
            self._unanswered -= 1
            self._changed.notify_all()

    def grant(self, limit: int, unanswered: int | None = None) -> None:
        """Allow so many unanswered requests: there is a connection.

        ``unanswered`` counts the requests anew: an exception may have come amid the count.
        """
        with self._changed.lock:
            if not self._connected:
                self._connected_at = time.monotonic()
                pause = min(_FIRST_PAUSE * 2.0 ** (self._losses - 1), _LAST_PAUSE)
                self.preferred_from = self._connected_at + (pause if self._losses else 0.0)
            self._connected = True
            self._limit = limit
            self._unanswered = self._unanswered if unanswered is None else unanswered
            self._refusal = None
            self._changed.notify_all()

    def withdraw(self, trouble: str, refusal: OffloadError | None = None) -> None:
        """Allow none: the connection is lost, or the daemon refuses this device."""
        with self._changed.lock:
            if self._connected:
                stayed = time.monotonic() - self._connected_at
                self._losses = 1 if stayed > _STEADY else min(self._losses + 1, _MOST_LOSSES)
            self._connected = False
            self._trouble = trouble
            self._refusal = refusal or self._refusal
            self._changed.notify_all()

    def explain(self, trouble: str) -> None:
        """Say why there is no connection, if there is none; of any thread."""
        with self._changed.lock:
            if not self._connected:
                self._trouble = trouble

    def close(self, error: OffloadError) -> None:
        """Allow none for good: whoever waits, now or later, gets the error."""
        with self._changed.lock:
            self._closed = error
            self._changed.notify_all()
