"""The edge daemon: one thread for all sockets (:mod:`.edge_loop`), one for inference."""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

import zmq

from scissionlite.bundle import Bundle
from scissionlite.errors import OffloadError
from scissionlite.offloader.control import MAX_CREDIT, StatsReply, Welcome, control_endpoint
from scissionlite.offloader.edge_loop import WAKE, Done, EdgeLoop
from scissionlite.offloader.edge_services import PROFILE_SECONDS
from scissionlite.offloader.inference import EdgeSide, Stopwatch
from scissionlite.offloader.schedule import Job

logger = logging.getLogger(__name__)


class EdgeServer:
    """Serves a bundle's edge slice to any number of devices; a context manager.

    Parameters
    ----------
    bundle
        The bundle, or the path of its folder; of kind "split" or "image". Without one, the
        daemon answers probes and requests for profiles, and refuses devices.
    bind
        Tensor endpoint to listen on: ``tcp://address:port`` or ``ipc://path``. Port ``*`` or 0
        is any free one; :attr:`endpoint` then tells which.
    control
        Control endpoint; by default the port after that of ``bind``, or any free one.
    threads
        Threads of a slice's run; None is the runtime's default.
    runtime
        Which of the runtimes that the bundle was prepared for runs the slice here; by default the
        first of them that can.
    credit
        Requests that a device may have unanswered at once.
    queue
        Requests of all devices together that may wait for their turn; more are turned away.
    name
        What devices see; by default the host's name.
    heartbeat
        Interval in seconds at which devices send heartbeats. Either side takes the other for
        dead after three without a sign of life.
    profile_models
        Globs of the model names, such as ``torchvision:*``, that visitors may have profiled here;
        none unless given. What a name imports is run, so allow only names that you trust.
    profile_seconds
        The longest time that a profile may take.

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
        credit: int = 8,
        queue: int = 64,
        name: str | None = None,
        heartbeat: float = 1.0,
        profile_models: Sequence[str] = (),
        profile_seconds: float = PROFILE_SECONDS,
    ) -> None:
        if not 1 <= credit <= MAX_CREDIT or queue < 1 or not 0 < heartbeat <= 3600:
            raise ValueError(
                f"credit must be 1 to {MAX_CREDIT}, queue at least 1, heartbeat above 0 and at "
                f"most 3600 seconds; got {credit}, {queue}, {heartbeat}"
            )
        opened = Bundle.load(bundle) if isinstance(bundle, str | Path) else bundle
        self._binds = (bind, control_endpoint(bind) if control is None else control)
        self._side = None if opened is None else EdgeSide(opened, threads, runtime)
        welcome = Welcome(
            secrets.randbits(63), credit, (name or socket.gethostname())[:256], heartbeat
        )
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._done: SimpleQueue[Done] = SimpleQueue()
        self._loop = EdgeLoop(
            opened, welcome, queue, self._jobs, self._done, profile_models, profile_seconds
        )
        self._endpoints = ("", "")
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
        return self._endpoints[0]

    @property
    def control_endpoint(self) -> str:
        """The control endpoint listened on; empty before :meth:`start`."""
        return self._endpoints[1]

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
        try:
            self._loop.open(context, self._binds)
        except OffloadError:
            context.term()
            raise
        self._endpoints = self._loop.endpoints
        self._threads = [
            threading.Thread(
                target=self._serve, args=(context,), name="scissionlite-edge", daemon=True
            ),
            threading.Thread(
                target=self._work, args=(context,), name="scissionlite-edge-worker", daemon=True
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
        """Count what happened since the start."""
        return self._loop.stats()

    def _serve(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
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
        context.term()

    def _work(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Answer one job after the other; the second thread."""
        wake = context.socket(zmq.PAIR)
        wake.linger = 0
        wake.connect(WAKE)
        while (job := self._jobs.get()) is not None:
            self._done.put(self._answer(job))
            _signal(wake)
        _signal(wake)
        wake.close()

    def _answer(self, job: Job) -> Done:
        waited = time.monotonic() - job.arrived
        watch, outputs, reason = Stopwatch(), None, ""
        assert self._side is not None  # or there were no job
        try:
            outputs = self._side(job.tensors, job.payloads, watch)
        except Exception as error:  # whatever a runtime may raise: the next request may be fine
            logger.warning("a request failed: %r", error)
            reason = f"{type(error).__name__}: {error}"[:1000]
        seconds = watch.seconds
        return Done(
            job, outputs, reason, waited, seconds.get("decode", 0.0), seconds.get("run", 0.0)
        )


def _signal(wake: zmq.Socket[bytes]) -> None:
    # Nobody listens any more, or there is a signal already: nothing to do.
    with contextlib.suppress(zmq.Again):
        wake.send(b"", zmq.NOBLOCK)
