"""The one way in which another thread wakes an I/O loop, on the device and at the edge."""

from __future__ import annotations

import os

import zmq


class Waker:
    """A counter of the kernel (Linux, eventfd) on which one thread waits and others add.

    A wake-up is never lost: it ends the wait under way, or else the next one. Several wake-ups
    before a wait are one. Nobody may call :meth:`wake` after :meth:`close`.
    """

    def __init__(self) -> None:
        self._fd = os.eventfd(0)

    def wake(self) -> None:
        """End the wait under way, or the next one; any thread may call it."""
        os.eventfd_write(self._fd, 1)

    def wait(self, poller: zmq.Poller, milliseconds: int) -> None:
        """Wait for a poller's sockets or for a wake-up, at most so long; of the loop's thread."""
        poller.register(self._fd, zmq.POLLIN)
        if self._fd in dict(poller.poll(milliseconds)):
            os.eventfd_read(self._fd)

    def close(self) -> None:
        """Free the counter; may be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    __del__ = close  # one that was never used, such as an unconnected device's
