"""The edge daemon: one thread for all sockets (:mod:`.loop`), one for inference."""

from __future__ import annotations

import logging
import platform
import secrets
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

import zmq

from scissionlite.bundle import Bundle
from scissionlite.errors import OffloadError
from scissionlite.offloader.edge.loop import EdgeLoop
from scissionlite.offloader.edge.schedule import Done, Job
from scissionlite.offloader.edge.side import EdgeSide
from scissionlite.offloader.limits import EdgeLimits
from scissionlite.offloader.stopwatch import Stopwatch
from scissionlite.offloader.waker import Waker
from scissionlite.offloader.wire.control import StatsReply, Welcome
from scissionlite.offloader.wire.endpoints import Endpoints

logger = logging.getLogger(__name__)


class EdgeServer:
    """Serve a bundle's edge slice to any number of devices; a context manager.

    Parameters
    ----------
    bundle
        The bundle, or the path of its folder; of kind "split" or "image". Without one, the
        daemon answers probes and requests for profiles, and refuses devices.
    bind
        Tensor endpoint to listen on: ``tcp://address:port`` or ``ipc://path``. Port ``*`` or 0
        is any free one; :attr:`endpoint` then has its number.
    control
        Control endpoint; by default the port after that of ``bind``, or any free one.
    threads
        Threads of a slice's run; None is the runtime's default.
    runtime
        The runtime that runs the slice here, one of those that the bundle was prepared for; by
        default the first of them that can.
    limits
        Credit, queue, heartbeat and the time of profiles; by default those of
        :class:`.limits.EdgeLimits`.
    name
        The daemon's name for devices; by default the host's.
    profile_models
        Globs of the model names, such as ``torchvision:*``, that may be profiled here; by default
        none. The code that a name imports is run, so allow only names that you trust.

    Raises
    ------
    ValueError
        If an argument is out of range.
    OffloadError
        If the bundle has no work for an edge.
    BundleError
        If the bundle or a slice needed here is missing or altered.
    RuntimeUnavailableError
        If none of the runtimes that the bundle was prepared for can run here.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path | None = None,
        bind: str = "tcp://0.0.0.0:5555",
        *,
        control: str | None = None,
        threads: int | None = None,
        runtime: str | None = None,
        limits: EdgeLimits | None = None,
        name: str | None = None,
        profile_models: Sequence[str] = (),
    ) -> None:
        limits = limits or EdgeLimits()
        opened = Bundle.load(bundle) if isinstance(bundle, str | Path) else bundle
        self._binds = Endpoints.to_bind(bind, control)
        self._side = None if opened is None else EdgeSide(opened, threads, runtime)
        welcome = Welcome(
            secrets.randbits(63),
            limits.credit,
            (name or platform.node())[:256],
            limits.heartbeat,
        )
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._done: SimpleQueue[Done] = SimpleQueue()
        self._loop = EdgeLoop(opened, welcome, limits, profile_models, self._jobs, self._done)
        self._endpoints = Endpoints("", "")
        self._threads: list[threading.Thread] = []
        self._stop = False
        self._failure: Exception | None = None

    def __enter__(self) -> EdgeServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def endpoint(self) -> str:
        """The tensor endpoint listened on; empty before :meth:`start`."""
        return self._endpoints.tensors

    @property
    def control_endpoint(self) -> str:
        """The control endpoint listened on; empty before :meth:`start`."""
        return self._endpoints.control

    def start(self) -> None:
        """Listen, and serve in threads of its own.

        Raises
        ------
        OffloadError
            If an endpoint cannot be listened on, or the server was started before.
        """
        if self._threads or self._stop:
            raise OffloadError("an EdgeServer is started once; make another one")
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        waker = Waker()
        try:
            self._endpoints = self._loop.open(context, self._binds, waker)
        except OffloadError:
            waker.close()
            context.term()
            raise
        self._threads = [
            threading.Thread(
                target=self._serve, args=(context, waker), name="scissionlite-edge", daemon=True
            ),
            threading.Thread(
                target=self._work, args=(waker,), name="scissionlite-edge-worker", daemon=True
            ),
        ]
        for thread in self._threads:
            thread.start()

    def serve_forever(self) -> None:
        """Serve until :meth:`stop` is called; starts the server if need be, and closes it.

        Raises
        ------
        OffloadError
            As :meth:`start`; or if the server broke down.
        """
        if not self._threads:
            self.start()
        try:
            while not self._stop and self._threads[0].is_alive():
                self._threads[0].join(0.2)
        finally:
            self.close()
        if self._failure is not None:
            raise OffloadError(f"the edge daemon broke down: {self._failure!r}") from self._failure

    def stop(self) -> None:
        """Ask :meth:`serve_forever` to return; nothing else, so signal handlers may call it."""
        self._stop = True

    def close(self) -> None:
        """Finish the request at work, say Goodbye to the devices and stop; may be called again."""
        self._stop = True
        self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def stats(self) -> StatsReply:
        """Return the counts of requests since the start."""
        return self._loop.stats()

    def _serve(self, context: zmq.Context[zmq.Socket[bytes]], waker: Waker) -> None:
        """Do all I/O; the first thread."""
        try:
            while not self._stop:
                self._loop.step()
        except Exception as error:
            logger.exception("the edge daemon broke down")
            self._failure = error
        self._jobs.put(None)
        self._threads[1].join()
        self._loop.say_goodbye()
        self._loop.close()
        waker.close()
        context.term()

    def _work(self, waker: Waker) -> None:
        """Answer one job after the other; the second thread."""
        while (job := self._jobs.get()) is not None:
            self._done.put(self._answer(job))
            waker.wake()
        waker.wake()

    def _answer(self, job: Job) -> Done:
        waited = time.monotonic() - job.arrived
        watch, outputs, reason = Stopwatch(), None, ""
        assert self._side is not None  # or there were no job
        try:
            outputs = self._side.answer(job.tensors, job.payloads, watch)
        except Exception as error:  # whatever a runtime may raise: the next request may be fine
            logger.warning("a request failed: %r", error)
            reason = f"{type(error).__name__}: {error}"[:1000]
        seconds = watch.seconds
        return Done(
            job, outputs, reason, waited, seconds.get("decode", 0.0), seconds.get("run", 0.0)
        )
