"""The daemon's two threads: one for all sockets (:mod:`.loop`), one for inference."""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from queue import SimpleQueue

import zmq

from scissionlite.offloader.edge.loop import EdgeLoop
from scissionlite.offloader.edge.schedule import Done, Job
from scissionlite.offloader.edge.side import EdgeSide
from scissionlite.offloader.stopwatch import Stopwatch
from scissionlite.offloader.waker import Waker
from scissionlite.offloader.wire.endpoints import Endpoints

logger = logging.getLogger(__name__)


class EdgeThreads:
    """The threads of a started daemon, and their end.

    They do not know the EdgeServer, so that one that is dropped can be freed.

    Parameters
    ----------
    loop
        The I/O thread's steps.
    side
        The worker's computation; None if there is no bundle.
    jobs, done
        To the worker and from it.
    binds
        Where to listen.
    stop_seconds
        Longest time for the answers to what was accepted, when it is stopped.

    Attributes
    ----------
    endpoints : Endpoints
        Where it listens, with the ports that wildcards became.
    failure : Exception or None
        What broke the I/O thread.

    Raises
    ------
    OffloadError
        If an endpoint cannot be listened on.
    """

    def __init__(
        self,
        loop: EdgeLoop,
        side: EdgeSide | None,
        jobs: SimpleQueue[Job | None],
        done: SimpleQueue[Done],
        binds: Endpoints,
        stop_seconds: float,
    ) -> None:
        self._loop = loop
        self._stop_seconds = stop_seconds
        self._side = side
        self._jobs = jobs
        self._done = done
        self._stop = False
        self._process = os.getpid()
        self.failure: Exception | None = None
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._waker = Waker()
        try:
            self.endpoints = loop.open(context, binds, self._waker)
        except BaseException:
            self._waker.close()
            context.term()
            raise
        self._worker = threading.Thread(
            target=self._work, name="scissionlite-edge-worker", daemon=True
        )
        self._io = threading.Thread(
            target=self._serve, args=(context,), name="scissionlite-edge", daemon=True
        )
        self._worker.start()
        self._io.start()

    @property
    def here(self) -> bool:
        """Whether the threads are in this process, not in the one that forked it."""
        return os.getpid() == self._process

    @property
    def working(self) -> bool:
        """Whether the worker runs."""
        return self._worker.is_alive()

    def wait(self, seconds: float) -> bool:
        """Wait for the threads' end, at most so long; return whether they ended."""
        self._io.join(seconds)
        return not self._io.is_alive()

    def close(self) -> None:
        """Answer what was accepted, say Goodbye to the devices and stop; may be called again."""
        self.stop()
        self._io.join()

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

    def _serve(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Do all I/O; the first thread."""
        stopped = 0.0
        try:
            while not self._stop:
                self._loop.step()
            self._loop.stop_accepting()
            stopped = time.monotonic() + self._stop_seconds
            while not self._loop.idle and time.monotonic() < stopped:
                self._loop.step()
        except Exception as error:
            logger.exception("the edge daemon broke down")
            self.failure = error
        self._jobs.put(None)
        # A slice that runs cannot be interrupted; the thread ends with it, or with the process.
        self._worker.join(max(0.0, stopped - time.monotonic()))
        self._loop.say_goodbye()
        self._loop.close()
        self._waker.close()
        context.term()

    def _work(self) -> None:
        """Answer one job after the other; the second thread."""
        while (job := self._jobs.get()) is not None:
            self._done.put(self._answer(job))
            self._waker.wake()
        self._waker.wake()

    def _answer(self, job: Job) -> Done:
        waited = time.monotonic() - job.arrived
        watch, outputs, reason = Stopwatch(), None, ""
        assert self._side is not None  # or there were no job
        try:
            outputs = self._side.answer(job.tensors, job.payloads, watch)
        except Exception as error:  # whatever a runtime may raise: the next request may be fine
            logger.warning("a request failed: %r", error, extra={"error": type(error).__name__})
            reason = f"{type(error).__name__}: {error}"[:1000]
        seconds = watch.seconds
        return Done(
            job, outputs, reason, waited, seconds.get("decode", 0.0), seconds.get("run", 0.0)
        )
