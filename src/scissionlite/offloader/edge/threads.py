"""The daemon's threads, which take turns at the sockets (:mod:`.loop`) and at inference.

One thread, the leader, waits for messages and handles them. When there are jobs for it, it makes
another thread the leader and works on them itself, in one run; then it sends the results and works
on the next ones, or waits to lead again. So a request needs no switch of threads on its way. This
is the pattern Leader/Followers (Schmidt et al., Pattern-Oriented Software Architecture 2, 2000).
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import warnings

from scissionlite.offloader.edge.loop import EdgeLoop
from scissionlite.offloader.edge.schedule import Job
from scissionlite.offloader.waker import Waker
from scissionlite.offloader.wire.endpoints import Endpoints

logger = logging.getLogger(__name__)

_LAST_JOIN = 0.5  # seconds for the threads to end that are not amid a slice's run


class EdgeThreads:
    """The threads of a started daemon, and their end.

    They do not know the EdgeServer, so that one that is dropped can be freed.

    Parameters
    ----------
    loop
        The leader's steps.
    workers
        Runs of the slice at once; there is one more thread.
    binds
        Where to listen.
    stop_seconds
        Longest time for the answers to what was accepted, when it is stopped.

    Attributes
    ----------
    endpoints : Endpoints
        Where it listens, with the ports that wildcards became.
    failure : Exception or None
        What broke the daemon down.

    Raises
    ------
    OffloadError
        If an endpoint cannot be listened on.
    """

    def __init__(
        self,
        loop: EdgeLoop,
        workers: int,
        binds: Endpoints,
        stop_seconds: float,
    ) -> None:
        self._loop = loop
        self._stop_seconds = stop_seconds
        self._stop = False
        self._stop_at = math.inf
        self._closed = threading.Event()
        self._leading = threading.Lock()
        self._process = os.getpid()
        self.failure: Exception | None = None
        self._waker = Waker()
        try:
            self.endpoints = loop.open(binds, self._waker)
        except BaseException:
            self._waker.close()
            raise
        self._threads = [
            threading.Thread(target=self._work, name=f"scissionlite-edge-{i}", daemon=True)
            for i in range(workers + 1)
        ]
        for each in self._threads:
            each.start()

    @property
    def here(self) -> bool:
        """Whether the threads are in this process, not in the one that forked it."""
        return os.getpid() == self._process

    @property
    def working(self) -> bool:
        """Whether a thread still runs; after the end, one that is amid a slice's run."""
        return any(each.is_alive() for each in self._threads)

    def wait(self, seconds: float) -> bool:
        """Wait for the end, at most so long; return whether it has come."""
        return self._closed.wait(seconds)

    def close(self) -> None:
        """Answer what was accepted, say Goodbye to the devices and stop; may be called again."""
        self.stop()
        self._closed.wait()
        # A slice that runs cannot be interrupted; its thread ends with it, or with the process.
        until = time.monotonic() + _LAST_JOIN
        for each in self._threads:
            each.join(max(until - time.monotonic(), 0.0))

    def reload(self) -> None:
        """Have the loop read again what may change while it runs; signal handlers may call it."""
        self._loop.reload()
        self._waker.wake()

    def stop(self) -> None:
        """Close, without waiting; takes no lock, so finalizers may call it."""
        self._stop = True
        self._waker.wake()

    def drop(self) -> None:
        """End the threads of a server that is freed without being closed, and warn."""
        if self._stop or not self.here:
            return
        self.stop()
        warnings.warn(
            f"an EdgeServer on {self.endpoints.tensors} was not closed: use "
            "`with sl.EdgeServer(...) as edge:`, or call edge.close()",
            ResourceWarning,
            stacklevel=2,
        )

    def _work(self) -> None:
        """Take turns at leading and at working, until the end; each thread."""
        while jobs := self._lead():
            while jobs:
                # No name for the computation: it would live on while this thread waits.
                self._loop.finish(jobs[0].served.side.finish(jobs))
                jobs = self._loop.next_jobs()
            if self._stop:
                self._waker.wake()  # the leader looks whether all is answered

    def _lead(self) -> list[Job]:
        """Handle messages until there are jobs for this thread; none at the end."""
        with self._leading:
            while not self._closed.is_set():
                try:
                    if not self._is_over() and (jobs := self._loop.step(self._stop_at)):
                        return jobs
                except Exception as error:
                    logger.exception("the edge daemon broke down")
                    self.failure = error
                    self._stop, self._stop_at = True, 0.0
                if self._is_over():
                    self._loop.close()
                    self._waker.close()
                    self._closed.set()
        return []

    def _is_over(self) -> bool:
        """Whether it was stopped, and what was accepted is answered or has no more time."""
        if not self._stop:
            return False
        if self._stop_at == math.inf:
            self._loop.stop_accepting()
            self._stop_at = time.monotonic() + self._stop_seconds
        return self._loop.idle or time.monotonic() >= self._stop_at
