"""The device's I/O loop: its link, the requests that wait for an answer, and how it recovers.

Any thread may add a request, which is sent at once, in that thread. One thread at a time, the
leader (:mod:`.connection`), waits for messages and handles them. Both change the loop under its
lock, which is free while the leader waits. Links are made and closed by the connection's own thread
alone: a caller may be interrupted anywhere, by an exception that a signal's handler raises.

There is a single way to recover from anything (a dropped connection, a silent edge, a restarted
one, an exception amid the I/O): close the sockets, open new ones, say Hello, and after the Welcome
send every unanswered request again. Inference is idempotent, and the edge ignores a request that it
already holds.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
import time

import zmq

from scissionlite.bundle import Bundle
from scissionlite.errors import (
    BundleMismatchError,
    DeadlineExceededError,
    EdgeBusyError,
    EdgeExecutionError,
    EdgeUnavailableError,
    OffloadError,
    WireError,
)
from scissionlite.offloader.device.alternatives import Alternatives
from scissionlite.offloader.device.backoff import Backoff
from scissionlite.offloader.device.credit import Credit
from scissionlite.offloader.device.endings import Endings
from scissionlite.offloader.device.link import EdgeLink, LinkLostError
from scissionlite.offloader.device.link_meter import LinkMeter
from scissionlite.offloader.device.messages import DeviceMessages, Reply, Request
from scissionlite.offloader.device.socket_pair import unauthorized, unavailable
from scissionlite.offloader.device.tensor_path import TensorPath
from scissionlite.offloader.link_keys import DeviceKeys
from scissionlite.offloader.socket_inputs import SocketInputs
from scissionlite.offloader.waker import Waker
from scissionlite.offloader.wire import control
from scissionlite.offloader.wire.endpoints import Endpoints

logger = logging.getLogger(__name__)

_LOOK_AGAIN = 0.02  # seconds until a request that has no edge is offered to the others again
_IDLE = 60.0  # the longest wait for anything; something wakes the thread up long before


class DeviceLoop:
    """The device's link to an edge daemon, and the requests that have no answer yet.

    Parameters
    ----------
    endpoints
        Of the daemon.
    bundle
        Whose requests are sent; the daemon must serve the same.
    name
        The device's name in the daemon's log.
    credit
        Granted and withdrawn here.
    keys
        Of the device and the daemon; None sends in the clear.
    meter
        Measures the link.
    alternatives
        Who else answers requests when the connection is lost. Those that nobody takes are kept
        until their deadlines.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        bundle: Bundle,
        name: str,
        credit: Credit,
        keys: DeviceKeys | None,
        meter: LinkMeter,
        *,
        alternatives: Alternatives,
    ) -> None:
        self._messages = DeviceMessages(bundle, name, endpoints)
        self._credit = credit
        self._waker = Waker()
        self._alternatives = alternatives
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        path = TensorPath(meter, others=alternatives.fallback or alternatives.several)
        self._make_link = functools.partial(
            EdgeLink, self._context, endpoints, keys=keys, path=path
        )
        self._endings = Endings()
        self._lock = threading.Lock()
        # Under the lock:
        self._pending: dict[int, Request] = {}
        self._link: EdgeLink | None = None
        self._backoff = Backoff(credit.explain)
        self._awake_at = 0.0  # when the leader looks at the clock next

    @property
    def busy(self) -> bool:
        """Whether a request has no answer yet."""
        return bool(self._pending)

    @property
    def connected(self) -> bool:
        """Whether the link is there, and nothing is wrong with it."""
        link = self._link
        return link is not None and link.broken is None and self._credit.connected

    def wake(self) -> None:
        """Have the leader look around; of any thread, and of finalizers."""
        self._waker.wake()

    def add(self, request: Request) -> None:
        """Send a request for which credit was reserved; of any thread."""
        with self._lock:
            try:
                self._credit.use()
                self._pending[request.id] = request
                if self._credit.closed is not None:
                    self._end(request, self._credit.closed)
                elif self._link is not None and self.connected:
                    self._send(self._link, request)
                    if self._next_event() < self._awake_at:
                        self._waker.wake()
                else:
                    self._waker.wake()
            except BaseException as error:
                if not self._recovers(error):
                    raise
        self._endings.settle()

    def step(self) -> None:
        """Mend the link, wait for something to do, and do it; of the connection's own thread."""
        with self._lock:
            if self._link is not None and self._link.broken is not None:
                self._close_link(self._link.broken)
            if self._link is None and time.monotonic() >= self._backoff.next_at:
                self._open()
        self._hand_over()
        self.serve(math.inf)

    def serve(self, until: float) -> None:
        """Wait for messages, at most until a monotonic time, and handle them; of the leader."""
        with self._lock:
            self._awake_at = min(self._next_event(), until)
            inputs = SocketInputs() if self._link is None else self._link.inputs
        left = min(max(self._awake_at - time.monotonic(), 0.0), _IDLE)
        inputs.wait(self._waker, math.ceil(1000 * left))
        with self._lock:
            try:
                if not self._read_result() or time.monotonic() >= self._awake_at:
                    self._look_around()
            except BaseException as error:
                if not self._recovers(error):
                    raise
        self._endings.settle()

    def close(self, error: OffloadError) -> None:
        """Say Goodbye if there is a link, close it, and fail every request that has no answer.

        No :meth:`step` follows. A request that is added later fails, too.
        """
        with self._lock:
            if self._link is not None:
                self._link.close(goodbye=True)
                self._link = None
            for request in list(self._pending.values()):
                self._end(request, error)
        self._context.term()
        self._waker.close()
        self._endings.settle()

    def _recovers(self, error: BaseException) -> bool:
        """Leave a lost link to the connection's own thread; False: the error is to be raised."""
        lost = isinstance(error, LinkLostError)
        if self._link is not None:
            interrupted = LinkLostError("interrupted by an exception")
            self._link.broken = error if isinstance(error, LinkLostError) else interrupted
        self._waker.wake()
        return lost

    def _hand_over(self) -> None:
        """Give the requests of a lost link to the other edges, or to the fallback.

        Without the lock: another edge's loop has a lock of its own.
        """
        if self._credit.connected:
            return
        for number, request in list(self._pending.items()):
            if self._alternatives.take_over(request):
                with self._lock:
                    del self._pending[number]
                    self._credit.answered()
            elif self._alternatives.fallback or self._credit.refusal is not None:
                with self._lock:
                    trouble = unavailable(self._messages.endpoints, self._credit.trouble)
                    self._end(request, self._credit.refusal or trouble)
        self._endings.settle()

    def _open(self) -> None:
        try:
            self._link = self._make_link(self._messages.new_device_id(), self._messages.hello)
        except zmq.ZMQError as error:
            self._close_link(LinkLostError(str(error)))

    def _next_event(self) -> float:
        if self._link is not None and self._link.broken is not None:
            return 0.0
        times = [self._backoff.next_at if self._link is None else self._link.next_event]
        for request in self._pending.values():
            times.append(request.expires)
            if self._credit.connected and not request.sent:
                times.append(request.send_at)
        if self._pending and not self._credit.connected and self._alternatives.several:
            times.append(time.monotonic() + _LOOK_AGAIN)
        return min(times)

    def _read_result(self) -> bool:
        """Handle messages up to the first result; a LinkLostError ends it.

        Returns
        -------
        bool
            Whether one has come. It is told at once: all else waits for the next step.
        """
        if self._link is None:
            return False
        for message, frames in self._link.messages():
            self._handle(message, frames)
            if isinstance(message, control.Result):
                return True
        return False

    def _look_around(self) -> None:
        """Handle what has happened to the link, and what is due; a LinkLostError ends it."""
        if self._link is not None:
            self._look_at(self._link)
        self._check_deadlines()

    def _look_at(self, link: EdgeLink) -> None:
        link.read_events()
        if link.failed is not None:
            self._backoff.diagnosis.ask(link.failed)
            link.failed = None
        if link.ready and not self._credit.connected:
            self._greet(link)
        if trouble := link.check_clock():
            reason = None if link.ready else self._backoff.diagnosis.reason
            raise LinkLostError(reason or trouble)
        if self._credit.connected:
            now = time.monotonic()
            for request in list(self._pending.values()):
                if not request.sent and now >= request.send_at:
                    self._send(link, request)

    def _handle(self, message: control.ToDevice, frames: list[memoryview]) -> None:
        if isinstance(message, control.Refused):
            raise LinkLostError(message.reason, self._refusal(message))
        if isinstance(message, control.Goodbye):
            raise LinkLostError("the edge daemon was shut down")
        if isinstance(message, control.Failed) and message.code == "unknown-device":
            raise LinkLostError("the edge daemon was restarted")
        if isinstance(message, control.Grant):
            if self._credit.connected:
                self._credit.grant(message.credit)
        elif isinstance(message, control.Result | control.Failed):
            request = self._pending.get(message.request)
            if request is None:
                return  # too late, or the second answer to a request that was sent twice
            if isinstance(message, control.Failed):
                self._handle_failure(request, message)
                return
            try:
                reply = self._messages.read_reply(request, message, frames)
            except WireError as error:
                self._end(request, EdgeExecutionError(f"the edge's answer is broken: {error}"))
            else:
                self._end(request, reply)

    def _handle_failure(self, request: Request, message: control.Failed) -> None:
        text = (
            f"the edge daemon at {self._messages.endpoints.tensors} answers {message.code}: "
            f"{message.message}"
        )
        if message.code == "busy":
            request.postpone()
        elif message.code == "expired":
            self._end(request, DeadlineExceededError(text))
        elif message.code == "bundle-mismatch":
            self._end(request, BundleMismatchError(text))
        else:
            self._end(request, EdgeExecutionError(text))

    def _greet(self, link: EdgeLink) -> None:
        assert link.welcome is not None
        self._backoff.succeeded()
        for request in self._pending.values():
            request.sent = False
        self._credit.grant(link.welcome.credit, unanswered=len(self._pending))

    def _refusal(self, message: control.Refused) -> OffloadError:
        if message.code == "unauthorized":
            return unauthorized(self._messages.endpoints, message.reason)
        mismatch = message.code == "bundle-mismatch"
        kind = BundleMismatchError if mismatch else EdgeUnavailableError
        return kind(
            f"the edge daemon at {self._messages.endpoints.tensors} refuses: {message.reason}"
        )

    def _send(self, link: EdgeLink, request: Request) -> None:
        """Send a request, or fail it if that cannot be done; a LinkLostError: there is no room."""
        left = request.expires - time.monotonic()
        if left <= 0:
            return  # the leader finds that its time is over
        try:
            frames = self._messages.pack_request(request, left)
            request.sent = link.send(request.id, frames, left)
        except WireError as error:
            self._end(request, OffloadError(f"the request cannot be sent: {error}"))
            return
        if not request.sent:
            raise LinkLostError("the connection takes no more requests")

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        for request in list(self._pending.values()):
            if now >= request.expires:
                self._end(request, self._overdue(request))

    def _overdue(self, request: Request) -> DeadlineExceededError:
        where = self._messages.endpoints.tensors
        if self._credit.connected and request.refusals and not request.sent:
            return EdgeBusyError(
                f"the edge daemon at {where} was busy until the deadline: it turned the request "
                f"away {request.refusals} times. Send fewer requests at once, or raise its --queue"
            )
        state = "the edge daemon is there" if self._credit.connected else self._credit.trouble
        return DeadlineExceededError(f"no answer from {where} within the deadline ({state})")

    def _close_link(self, lost: LinkLostError) -> None:
        """Close the sockets; new ones are opened after a pause that grows."""
        if self._credit.connected:
            logger.warning(
                "%s: %s; connecting again", self._messages.endpoints.tensors, lost.trouble
            )
        if self._link is not None:
            # The edge may still hear it: it then drops the requests, which come again.
            self._link.close(goodbye=True)
        self._link = None
        self._backoff.failed()
        if lost.refusal is not None:
            self._backoff.refused()
        self._credit.withdraw(lost.trouble, lost.refusal)

    def _end(self, request: Request, outcome: Reply | OffloadError) -> None:
        self._endings.append(request, outcome)
        del self._pending[request.id]
        self._credit.answered()
