"""The device's I/O loop: its link, the requests that wait for an answer, and how it recovers.

There is a single way to recover from anything (a dropped connection, a silent edge, a restarted
one): close the sockets, open new ones, say Hello, and after the Welcome send every unanswered
request again. Inference is idempotent, and the edge ignores a request that it already holds.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections import deque
from collections.abc import Callable

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
from scissionlite.offloader.device.credit import Credit
from scissionlite.offloader.device.diagnosis import Diagnosis
from scissionlite.offloader.device.link import EdgeLink
from scissionlite.offloader.device.link_meter import LinkMeter
from scissionlite.offloader.device.messages import DeviceMessages, Request
from scissionlite.offloader.device.socket_pair import (
    FIRST_RETRY,
    LAST_RETRY,
    unauthorized,
    unavailable,
)
from scissionlite.offloader.device.tensor_path import TensorPath
from scissionlite.offloader.link_keys import DeviceKeys
from scissionlite.offloader.waker import Waker
from scissionlite.offloader.wire import control
from scissionlite.offloader.wire.endpoints import Endpoints

logger = logging.getLogger(__name__)

_LOOK_AGAIN = 0.02  # seconds until a request that has no edge is offered to the others again
_IDLE = 60.0  # the longest wait for anything; something wakes the thread up long before


class Backoff:
    """Growing pauses between attempts to connect, and why attempts fail.

    Parameters
    ----------
    explain
        Called with the reason, in any thread.

    Attributes
    ----------
    next_at : float
        Monotonic time of the next attempt.
    diagnosis : Diagnosis
        Of the attempts since the last connection.
    """

    def __init__(self, explain: Callable[[str], None]) -> None:
        self.next_at = 0.0
        self.diagnosis = Diagnosis(explain)
        self._pause = FIRST_RETRY

    def failed(self) -> None:
        """Pause before the next attempt, and longer before the one after it."""
        self.next_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LAST_RETRY)

    def refused(self) -> None:
        """Pause as long as possible: the daemon may be restarted with another bundle."""
        self.next_at = time.monotonic() + LAST_RETRY

    def succeeded(self) -> None:
        """Begin with the shortest pause again."""
        self._pause = FIRST_RETRY
        self.diagnosis.reason = None


class DeviceLoop:
    """The work of the device's I/O thread, step by step.

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
    outbox
        New requests, appended by other threads; each has reserved credit.
    keys
        Of the device and the daemon; None sends in the clear.
    meter
        Measures the link.
    waker
        Wakes the loop up.
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
        outbox: deque[Request],
        keys: DeviceKeys | None,
        meter: LinkMeter,
        waker: Waker,
        *,
        alternatives: Alternatives,
    ) -> None:
        self._endpoints = endpoints
        self._messages = DeviceMessages(bundle, name, endpoints)
        self._credit = credit
        self._waker = waker
        self._outbox = outbox
        self._alternatives = alternatives
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        path = TensorPath(meter, pause=alternatives.fallback)
        self._make_link = functools.partial(
            EdgeLink, self._context, endpoints, keys=keys, path=path
        )
        self._pending: dict[int, Request] = {}
        self._link: EdgeLink | None = None
        self._backoff = Backoff(credit.explain)
        self._session: int | None = None

    def step(self) -> None:
        """Wait for something to do, and do it."""
        if self._link is None and time.monotonic() >= self._backoff.next_at:
            self._open()
        self._wait()
        if self._link is not None:
            for message, frames in self._link.messages():
                self._handle(message, frames)
        if self._link is not None and (trouble := self._link.lost()):
            if self._link.refusal is None:
                self._lose(trouble)
            else:
                self._refuse(unauthorized(self._endpoints, trouble), trouble)
        if self._link is not None and self._link.failed is not None:
            self._backoff.diagnosis.ask(self._link.failed)
            self._link.failed = None
        if self._link is not None and self._link.ready and not self._credit.connected:
            self._greet(self._link)
        self._take_new_requests()
        self._check_clock()
        self._send_unsent()

    def close(self) -> None:
        """Say Goodbye if there is a link, and close it; no step follows."""
        if self._link is not None:
            self._link.close(goodbye=True)
            self._link = None
        self._context.term()

    def fail_unanswered(self, error: OffloadError) -> None:
        """Fail every request that has no answer, the new ones too."""
        self._take_new_requests()
        for request in list(self._pending.values()):
            self._fail(request, error)

    def _open(self) -> None:
        try:
            self._link = self._make_link(self._messages.new_device_id(), self._messages.hello)
        except zmq.ZMQError as error:
            self._lose(str(error))

    def _wait(self) -> None:
        times = [request.expires for request in self._pending.values()]
        if self._credit.connected:
            times += [request.send_at for request in self._pending.values() if not request.sent]
        times.append(self._backoff.next_at if self._link is None else self._link.next_event)
        if self._pending and not self._credit.connected and self._alternatives.several:
            times.append(time.monotonic() + _LOOK_AGAIN)
        left = min(max(min(times) - time.monotonic(), 0.0), _IDLE)
        poller = zmq.Poller() if self._link is None else self._link.poller
        self._waker.wait(poller, math.ceil(1000 * left))

    def _handle(self, message: control.ToDevice, frames: list[memoryview]) -> None:
        if isinstance(message, control.Refused):
            self._refuse(self._refusal(message), message.reason)
        elif isinstance(message, control.Grant):
            if self._credit.connected:
                self._credit.grant(message.credit)
        elif isinstance(message, control.Goodbye):
            self._lose("the edge daemon was shut down")
        elif isinstance(message, control.Failed) and message.code == "unknown-device":
            self._lose("the edge daemon was restarted")
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
                self._fail(request, EdgeExecutionError(f"the edge's answer is broken: {error}"))
            else:
                self._drop(request)
                request.reply.set_result(reply)

    def _handle_failure(self, request: Request, message: control.Failed) -> None:
        text = (
            f"the edge daemon at {self._endpoints.tensors} answers {message.code}: "
            f"{message.message}"
        )
        if message.code == "busy":
            request.postpone()
        elif message.code == "expired":
            self._fail(request, DeadlineExceededError(text))
        elif message.code == "bundle-mismatch":
            self._fail(request, BundleMismatchError(text))
        else:
            self._fail(request, EdgeExecutionError(text))

    def _greet(self, link: EdgeLink) -> None:
        assert link.welcome is not None
        if self._session not in (None, link.welcome.session):
            logger.info("the edge daemon at %s was restarted", self._endpoints.tensors)
        self._session = link.welcome.session
        self._backoff.succeeded()
        for request in self._pending.values():
            request.sent = False
        self._credit.grant(link.welcome.credit)

    def _refusal(self, message: control.Refused) -> OffloadError:
        if message.code == "unauthorized":
            return unauthorized(self._endpoints, message.reason)
        mismatch = message.code == "bundle-mismatch"
        kind = BundleMismatchError if mismatch else EdgeUnavailableError
        return kind(f"the edge daemon at {self._endpoints.tensors} refuses: {message.reason}")

    def _refuse(self, refusal: OffloadError, reason: str) -> None:
        self._lose(reason, refusal)
        self._backoff.refused()
        for request in list(self._pending.values()):
            if not self._hand_over(request):
                self._fail(request, refusal)

    def _take_new_requests(self) -> None:
        while self._outbox:
            request = self._outbox.popleft()
            self._pending[request.id] = request

    def _send_unsent(self) -> None:
        for request in list(self._pending.values()):
            if self._link is None or not self._credit.connected:
                if not self._hand_over(request) and self._alternatives.fallback:
                    self._fail(request, unavailable(self._endpoints, self._credit.trouble))
                continue
            left = request.expires - time.monotonic()
            if request.sent or left <= 0 or time.monotonic() < request.send_at:
                continue
            try:
                frames = self._messages.pack_request(request, left)
                request.sent = self._link.send(request.id, frames, left)
            except WireError as error:
                self._fail(request, OffloadError(f"the request cannot be sent: {error}"))
                continue
            if not request.sent:
                self._lose("the connection takes no more requests")

    def _hand_over(self, request: Request) -> bool:
        """Give a request of a lost connection to another edge; False if none takes it now."""
        del self._pending[request.id]
        if self._alternatives.take_over(request):
            self._credit.release()
            return True
        self._pending[request.id] = request
        return False

    def _check_clock(self) -> None:
        now = time.monotonic()
        for request in list(self._pending.values()):
            if now >= request.expires:
                self._fail(request, self._overdue(request))
        if self._link is not None and (trouble := self._link.check_clock()):
            self._lose(trouble if self._link.ready else self._backoff.diagnosis.reason or trouble)

    def _overdue(self, request: Request) -> DeadlineExceededError:
        where = self._endpoints.tensors
        if self._credit.connected and request.refusals and not request.sent:
            return EdgeBusyError(
                f"the edge daemon at {where} was busy until the deadline: it turned the request "
                f"away {request.refusals} times. Send fewer requests at once, or raise its --queue"
            )
        state = "the edge daemon is there" if self._credit.connected else self._credit.trouble
        return DeadlineExceededError(f"no answer from {where} within the deadline ({state})")

    def _lose(self, trouble: str, refusal: OffloadError | None = None) -> None:
        """Close the sockets; new ones are opened after a pause that grows."""
        if self._credit.connected:
            logger.warning("%s: %s; connecting again", self._endpoints.tensors, trouble)
        if self._link is not None:
            # The edge may still hear it: it then drops the requests, which come again.
            self._link.close(goodbye=True)
            self._link = None
        self._backoff.failed()
        self._credit.withdraw(trouble, refusal)

    def _fail(self, request: Request, error: OffloadError) -> None:
        self._drop(request)
        request.reply.set_exception(error)

    def _drop(self, request: Request) -> None:
        del self._pending[request.id]
        self._credit.release()
