"""The device's connection to an edge daemon: who does its I/O, its lifetime, and what callers use.

One thread at a time, the leader, waits for messages and handles them; this is the pattern
Leader/Followers (Schmidt et al., Pattern-Oriented Software Architecture 2, 2000). A caller that
waits for its own answer leads, if no other caller does, so that the answer reaches it without a
switch of threads. Else the connection's own thread leads. It pauses after a caller has led, since
the next request is probably near.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import threading
import time
from collections.abc import Sequence
from queue import Empty, SimpleQueue

import zmq

from scissionlite.bundle import Bundle
from scissionlite.errors import OffloadError
from scissionlite.offloader import wire
from scissionlite.offloader.device.alternatives import Alternatives
from scissionlite.offloader.device.credit import Credit
from scissionlite.offloader.device.link_meter import LinkMeter
from scissionlite.offloader.device.loop import DeviceLoop
from scissionlite.offloader.device.messages import Request
from scissionlite.offloader.link_keys import DeviceKeys
from scissionlite.offloader.wire.endpoints import Endpoints

logger = logging.getLogger(__name__)

_PAUSE = 0.05  # seconds without a caller that leads, after which the connection's thread does


class EdgeConnection:
    """A connection to an edge daemon, made at first use.

    Parameters
    ----------
    endpoints
        Of the daemon.
    bundle
        Whose requests are sent; the daemon must serve the same.
    name
        The device's name in the daemon's log.
    keys
        Of the device and the daemon; None sends in the clear.
    credit
        Of this connection.
    alternatives
        Who else answers requests when the connection is lost.

    Attributes
    ----------
    meter : LinkMeter
        Measures the link.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        bundle: Bundle,
        name: str,
        keys: DeviceKeys | None,
        credit: Credit,
        alternatives: Alternatives,
    ) -> None:
        self.meter = LinkMeter()
        self._credit = credit
        self._make_loop = functools.partial(
            DeviceLoop,
            endpoints,
            bundle,
            name,
            self._credit,
            keys,
            self.meter,
            alternatives=alternatives,
        )
        self._request_ids = itertools.count()
        self._stopped = False
        self._leading = threading.Lock()  # held by the leader
        self._caller: object | None = None  # the caller that leads, or is about to
        self._paused = False  # the connection's thread, which one more in the queue resumes
        self._resume: SimpleQueue[None] = SimpleQueue()
        self._lock = threading.Lock()  # of those who start, and of callers who want to lead
        self._loop: DeviceLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def started(self) -> bool:
        """Whether it has a thread and sockets."""
        return self._thread is not None

    def start(self) -> None:
        """Make the connection, if that was not begun yet.

        Raises
        ------
        OffloadError
            If this machine has no descriptor or thread left for the connection.
        """
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is not None or self._credit.closed is not None:
                return
            loop = None
            try:
                loop = self._make_loop()
                # A daemon thread: a device that is never closed must not keep Python from exiting.
                thread = threading.Thread(
                    target=self._run, args=(loop,), name="scissionlite-device", daemon=True
                )
                thread.start()
            except (OSError, zmq.ZMQError, RuntimeError) as error:
                failure = OffloadError(f"no connection can be made: {error}")
                if loop is not None:
                    loop.close(failure)
                raise failure from error
            self._loop, self._thread = loop, thread

    def release(self) -> None:
        """Give back the credit that :meth:`reserve` took, for a request that is not sent."""
        self._credit.release()

    def send(
        self,
        tensors: tuple[wire.TensorHeader, ...],
        payloads: Sequence[wire.Buffer],
        expires: float,
    ) -> Request:
        """Send a request for which credit was reserved; the payloads are not copied.

        Returns
        -------
        Request
            Ends by ``expires`` (monotonic) at the latest, with an OffloadError if not answered.
            Who waits for it is told in the thread that leads.
        """
        assert self._loop is not None  # or there were no credit to reserve
        request = Request(next(self._request_ids), tensors, payloads, expires)
        self._loop.add(request)
        self._end_pause()
        return request

    def take_over(self, request: Request) -> bool:
        """Send a request that another edge was given and lost, if there is credit at once."""
        if self._loop is None or not self._credit.take():
            return False
        request.id, request.sent, request.send_at = next(self._request_ids), False, 0.0
        self._loop.add(request)
        self._end_pause()
        return True

    def lead(self, request: Request, until: float) -> None:
        """Do the connection's I/O until a request has ended, or until a monotonic time.

        Returns at once if another caller does it, and when the link is lost: the connection's
        thread then makes another one. A signal's handler may raise an exception at any place here.
        """
        loop, me = self._loop, object()
        if loop is None:
            return
        try:
            with self._lock:
                if self._caller is None:
                    self._caller = me
            if self._caller is not me:
                return
            if self._leading.locked():
                loop.wake()  # the connection's thread sees that a caller waits, and leaves
            with self._leading:
                while loop.connected and not (
                    self._stopped or request.outcome is not None or time.monotonic() >= until
                ):
                    loop.serve(until)
        finally:
            if self._caller is me:
                self._caller = None
            if loop.busy or not loop.connected:
                self._end_pause()

    def close(self) -> None:
        """Say Goodbye, fail the unanswered requests, and stop; may be called again."""
        if self._credit.closed is None:
            self._credit.close(OffloadError("the device was closed"))
        self.stop()
        self._end_pause()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def stop(self) -> None:
        """Close, without waiting; takes no lock of callers, so finalizers may call it."""
        self._stopped = True
        if self._loop is not None:
            self._loop.wake()

    def _run(self, loop: DeviceLoop) -> None:
        """Lead whenever no caller does, until the connection is closed; the connection's thread."""
        failure = OffloadError("the device was closed")
        while not self._stopped:
            with self._leading:
                try:
                    while not self._stopped and self._caller is None:
                        loop.step()
                except Exception as error:
                    logger.exception("the connection to the edge daemon failed")
                    failure = OffloadError(f"the connection to the edge daemon failed: {error!r}")
                    break
            self._pause()
        self._stopped = True
        with self._leading:  # no caller leads any more
            if self._credit.closed is None:
                self._credit.close(failure)
            loop.close(self._credit.closed or failure)

    def _pause(self) -> None:
        """Wait while callers lead, and for a while after the last of them."""
        self._paused = True
        while not self._stopped:
            with contextlib.suppress(Empty):
                self._resume.get(timeout=_PAUSE)
            if self._caller is None:
                break
        self._paused = False

    def _end_pause(self) -> None:
        # Not an Event: it may stay locked, if a signal's handler raises an exception.
        if self._paused:
            self._resume.put(None)
