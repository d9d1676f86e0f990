"""The one way in which another thread wakes an I/O loop, on the device and at the edge."""

from __future__ import annotations

import os
import select
import threading


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

    def wait(self, poller: select.poll, milliseconds: int) -> list[int]:
        """Wait for a poller's descriptors or for a wake-up, at most so long; of the loop's thread.

        Returns
        -------
        list of int
            Descriptors of the poller that became readable.
        """
        poller.register(self._fd, select.POLLIN)
        readable = [descriptor for descriptor, _ in poller.poll(milliseconds)]
        if self._fd in readable:
            os.eventfd_read(self._fd)
            readable.remove(self._fd)
        return readable

    def close(self) -> None:
        """Free the counter; may be called again."""
        with self._lock:
            closed, self._fd = self._fd, -1
            if closed >= 0:
                os.close(closed)
