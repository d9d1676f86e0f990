"""The device's connection to an edge daemon: its thread, its lifetime, and what callers use."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

from scissionlite.bundle import Bundle
from scissionlite.errors import OffloadError
from scissionlite.offloader import wire
from scissionlite.offloader.device.credit import Credit
from scissionlite.offloader.device.loop import DeviceLoop
from scissionlite.offloader.device.messages import Reply, Request
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
    give_up_early
        When the connection is lost, fail the unanswered requests at once (there is a fallback)
        instead of keeping them until their deadlines.
    """

    def __init__(
        self, endpoints: Endpoints, bundle: Bundle, name: str, *, give_up_early: bool = False
    ) -> None:
        self._credit = Credit(endpoints)
        self._waker = Waker()
        self._outbox: deque[Request] = deque()
        self._loop = DeviceLoop(
            endpoints,
            bundle,
            name,
            self._credit,
            self._waker,
            self._outbox,
            give_up_early=give_up_early,
        )
        self._request_ids = itertools.count()
        self._lock = threading.Lock()
        # Under the lock:
        self._thread: threading.Thread | None = None
        self._closed: OffloadError | None = None

    def reserve(self, connect_by: float, expires: float) -> None:
        """Wait for the connection and for credit for one request.

        Parameters and errors as :meth:`.credit.Credit.reserve`.

        Raises
        ------
        OffloadError
            If it is called in the connection's own thread, which would wait for itself.
        """
        self._start()
        if threading.current_thread() is self._thread:
            raise OffloadError("a future's callback must not wait for the device: use a thread")
        self._credit.reserve(connect_by, expires)

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
        with self._lock:
            request = Request(next(self._request_ids), tensors, payloads, expires)
            request.reply.set_running_or_notify_cancel()
            closed = self._closed
            if closed is None:
                self._outbox.append(request)
                self._waker.wake()
        if closed is not None:
            self._credit.release()
            request.reply.set_exception(closed)
        return request.reply

    def close(self) -> None:
        """Say Goodbye, fail the unanswered requests, and stop; may be called again."""
        with self._lock:
            if self._closed is None:
                self._closed = OffloadError("the device was closed")
                self._credit.close(self._closed)
                if self._thread is None:
                    self._release_resources()
                else:
                    self._waker.wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and self._closed is None:
                # A daemon thread: a device that is never closed must not keep Python from exiting.
                self._thread = threading.Thread(
                    target=self._run, name="scissionlite-device", daemon=True
                )
                self._thread.start()

    def _run(self) -> None:
        """Do all I/O until the connection is closed; the connection's thread."""
        failure = OffloadError("the device was closed")
        try:
            while self._closed is None:
                self._loop.step()
        except Exception as unexpected:
            logger.exception("the connection to the edge daemon failed")
            failure = OffloadError(f"the connection to the edge daemon failed: {unexpected!r}")
        with self._lock:
            closed = self._closed = self._closed or failure
            # From here on send() adds nothing to the outbox, and nobody wakes the loop.
            self._release_resources()
        self._credit.close(closed)
        self._loop.fail_unanswered(closed)

    def _release_resources(self) -> None:
        self._loop.close()
        self._waker.close()
