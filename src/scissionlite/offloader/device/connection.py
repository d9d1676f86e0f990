"""The device's connection to an edge daemon: its thread, its lifetime, and what callers use."""

from __future__ import annotations

import functools
import itertools
import logging
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

import zmq

from scissionlite.bundle import Bundle
from scissionlite.errors import OffloadError
from scissionlite.offloader import wire
from scissionlite.offloader.device.alternatives import Alternatives
from scissionlite.offloader.device.credit import Credit
from scissionlite.offloader.device.link_meter import LinkMeter
from scissionlite.offloader.device.loop import DeviceLoop
from scissionlite.offloader.device.messages import Reply, Request
from scissionlite.offloader.link_keys import DeviceKeys
from scissionlite.offloader.waker import Waker
from scissionlite.offloader.wire.endpoints import Endpoints

logger = logging.getLogger(__name__)


class EdgeConnection:
    """A connection to an edge daemon, made at first use; its one thread owns all sockets.

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
    endpoint : str
        The daemon's tensor endpoint.
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
        self.endpoint = endpoints.tensors
        self.meter = LinkMeter()
        self._credit = credit
        self._outbox: deque[Request] = deque()
        self._make_loop = functools.partial(
            DeviceLoop,
            endpoints,
            bundle,
            name,
            self._credit,
            self._outbox,
            keys,
            self.meter,
            alternatives=alternatives,
        )
        self._request_ids = itertools.count()
        self._stopped = False
        self._lock = threading.Lock()
        # Under the lock:
        self._waker: Waker | None = None
        self._thread: threading.Thread | None = None
        self._closed: OffloadError | None = None

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
        with self._lock:
            if self._thread is not None or self._closed is not None:
                return
            waker = None
            try:
                waker = Waker()
                loop = self._make_loop(waker)
                # A daemon thread: a device that is never closed must not keep Python from exiting.
                thread = threading.Thread(
                    target=self._run, args=(loop, waker), name="scissionlite-device", daemon=True
                )
                thread.start()
            except (OSError, zmq.ZMQError, RuntimeError) as error:
                if waker is not None:
                    waker.close()
                raise OffloadError(f"no connection can be made: {error}") from error
            self._waker, self._thread = waker, thread

    def release(self) -> None:
        """Give back the credit that :meth:`reserve` took, for a request that is not sent."""
        self._credit.release()

    def send(
        self,
        tensors: tuple[wire.TensorHeader, ...],
        payloads: Sequence[wire.Buffer],
        expires: float,
    ) -> Future[Reply]:
        """Send a request for which credit was reserved; the payloads are not copied.

        Returns
        -------
        concurrent.futures.Future of Reply
            Ends by ``expires`` (monotonic) at the latest, with an OffloadError if not answered.
            Its callbacks run in the connection's thread.
        """
        request = Request(next(self._request_ids), tensors, payloads, expires)
        request.reply.set_running_or_notify_cancel()
        self._add(request)
        return request.reply

    def take_over(self, request: Request) -> bool:
        """Send a request that another edge was given and lost, if there is credit at once."""
        if not self._credit.take():
            return False
        request.id, request.sent, request.send_at = next(self._request_ids), False, 0.0
        self._add(request)
        return True

    def close(self) -> None:
        """Say Goodbye, fail the unanswered requests, and stop; may be called again."""
        with self._lock:
            if self._closed is None:
                self._closed = OffloadError("the device was closed")
                self._credit.close(self._closed)
        self.stop()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def stop(self) -> None:
        """Close, without waiting; takes no lock of callers, so finalizers may call it."""
        self._stopped = True
        if self._waker is not None:
            self._waker.wake()

    def _add(self, request: Request) -> None:
        with self._lock:
            closed = self._closed
            if closed is None:
                assert self._waker is not None  # or there were no credit to reserve
                self._outbox.append(request)
                self._waker.wake()
        if closed is not None:
            self._credit.release()
            request.reply.set_exception(closed)

    def _run(self, loop: DeviceLoop, waker: Waker) -> None:
        """Do all I/O until the connection is closed; the connection's thread."""
        failure = OffloadError("the device was closed")
        try:
            while not self._stopped:
                loop.step()
        except Exception as unexpected:
            logger.exception("the connection to the edge daemon failed")
            failure = OffloadError(f"the connection to the edge daemon failed: {unexpected!r}")
        with self._lock:
            # From here on send() adds nothing to the outbox.
            closed = self._closed = self._closed or failure
        loop.close()
        waker.close()
        self._credit.close(closed)
        loop.fail_unanswered(closed)
