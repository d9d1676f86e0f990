"""The one way in which another thread wakes an I/O loop, on the device and at the edge."""

from __future__ import annotations

import os
import threading

import zmq


class Waker:
    """A counter of the kernel (Linux, eventfd) on which one thread waits and others add.

    A wake-up is never lost: it ends the wait under way, or else the next one. Several wake-ups
    before a wait are one. After :meth:`close`, :meth:`wake` does nothing.
    """

    def __init__(self) -> None:
        self._fd = os.eventfd(0)
        # A finalizer may wake the loop, in any thread: also in one that holds this lock.
        self._lock = threading.RLock()

    def wake(self) -> None:
        """End the wait under way, or the next one; any thread may call it."""
        with self._lock:
            if self._fd >= 0:
                os.eventfd_write(self._fd, 1)

    def wait(self, poller: zmq.Poller, milliseconds: int) -> None:
        """Wait for a poller's sockets or for a wake-up, at most so long; of the loop's thread."""
        poller.register(self._fd, zmq.POLLIN)
        if self._fd in dict(poller.poll(milliseconds)):
            os.eventfd_read(self._fd)

    def close(self) -> None:
        """Free the counter; may be called again."""
        with self._lock:
            closed, self._fd = self._fd, -1
            if closed >= 0:
                os.close(closed)
