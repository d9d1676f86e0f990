"""The device's connection to an edge daemon: requests, credit, and how it comes back by itself.

There is a single way to recover from anything (a dropped connection, a silent edge, a restarted
one): close the sockets, open new ones, say Hello, and after the Welcome send every unanswered
request again. Inference is idempotent, and the edge ignores a request that it already holds.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import platform
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import zmq

from scissionlite.bundle import Bundle
from scissionlite.errors import (
    BundleMismatchError,
    DeadlineExceededError,
    EdgeExecutionError,
    EdgeUnavailableError,
    OffloadError,
    TensorMismatchError,
    WireError,
)
from scissionlite.offloader import control, wire
from scissionlite.offloader.contents import Outputs, request_batch, result_tensors
from scissionlite.offloader.link import FIRST_RETRY, LAST_RETRY, DeviceLink

logger = logging.getLogger(__name__)

_IDLE = 60.0  # the longest wait for anything; something wakes the thread up long before


@dataclass(frozen=True)
class Reply:
    """An answer of the edge: the outputs, and the edge's times in seconds."""

    outputs: Outputs
    queue: float
    decode: float
    run: float


@dataclass(eq=False)
class _Request:
    id: int
    tensors: tuple[wire.TensorHeader, ...]
    payloads: Sequence[wire.Buffer]
    expires: float
    sent: bool = False
    reply: Future[Reply] = field(default_factory=Future)


class EdgeConnection:
    """A connection to an edge daemon, made at first use, whose one thread owns all sockets.

    Parameters
    ----------
    tensors, control_endpoint
        Endpoints of the daemon.
    bundle
        Whose requests are sent; the daemon must serve the same.
    name
        What the daemon calls this device in its log.
    give_up_early
        When the connection is lost, fail the unanswered requests at once (there is a fallback)
        instead of keeping them until their deadlines.

    Raises
    ------
    ValueError
        If an endpoint is not one to connect to.
    """

    def __init__(
        self,
        tensors: str,
        control_endpoint: str,
        bundle: Bundle,
        name: str,
        *,
        give_up_early: bool = False,
    ) -> None:
        self._tensors = control.check_endpoint(tensors)
        self._control = control.check_endpoint(control_endpoint)
        self._bundle = bundle
        self._give_up_early = give_up_early
        runtimes = [f"{role}={','.join(bundle.runtimes(role))}" for role in bundle.manifest.slices]
        self._hello = control.Hello(
            control.PROTOCOL_VERSION,
            bundle.id,
            name,
            {"machine": platform.machine(), "slices": " ".join(runtimes)[:256]},
        )
        # ZeroMQ keeps identities that begin with a zero byte for itself.
        self._device_id = b"\x01" + os.urandom(wire.DEVICE_ID_BYTES - 1)
        self._bundle_prefix = wire.bundle_prefix(bundle.id)
        self._changed = threading.Condition()
        # Under the lock of _changed:
        self._thread: threading.Thread | None = None
        self._connected = False
        self._credit = 0
        self._in_flight = 0
        self._refusal: OffloadError | None = None
        self._closed: OffloadError | None = None
        self._trouble = "no answer yet"
        self._next_id = 0
        self._outbox: deque[_Request] = deque()
        # Of the I/O thread alone:
        self._pending: dict[int, _Request] = {}
        self._link: DeviceLink | None = None
        self._open_at = 0.0
        self._retry = FIRST_RETRY
        self._session: int | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_out.setblocking(False)
        self._wake_in.setblocking(False)

    def reserve(self, connect_by: float, expires: float) -> None:
        """Wait for the connection and for credit for one request.

        Parameters
        ----------
        connect_by
            Monotonic time until which to wait for a connection.
        expires
            Monotonic time until which to wait for credit.

        Raises
        ------
        EdgeUnavailableError
            If there is no connection by then.
        BundleMismatchError
            If the daemon refuses this bundle.
        DeadlineExceededError
            If no earlier request was answered by then, so that there was no credit.
        OffloadError
            If it is closed, or called in its own thread, which would wait for itself.
        """
        self._start()
        if threading.current_thread() is self._thread:
            raise OffloadError("a future's callback must not wait for the device: use a thread")
        with self._changed:
            while True:
                if self._closed is not None:
                    raise self._closed
                if self._refusal is not None:
                    raise self._refusal
                if self._connected and self._in_flight < self._credit:
                    self._in_flight += 1
                    return
                left = (expires if self._connected else connect_by) - time.monotonic()
                if left <= 0 and self._connected:
                    raise DeadlineExceededError(
                        f"all {self._credit} requests that {self._tensors} allows at once were "
                        "unanswered until the deadline"
                    )
                if left <= 0:
                    raise self._unavailable()
                self._changed.wait(left)

    def release(self) -> None:
        """Give back what :meth:`reserve` took, for a request that is not sent after all."""
        with self._changed:
            self._in_flight -= 1
            self._changed.notify_all()

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
        with self._changed:
            request = _Request(self._next_id, tensors, payloads, expires)
            request.reply.set_running_or_notify_cancel()
            self._next_id += 1
            closed = self._closed
            if closed is None:
                self._outbox.append(request)
                self._wake()
            else:
                self._in_flight -= 1
        if closed is not None:
            request.reply.set_exception(closed)
        return request.reply

    def close(self) -> None:
        """Say Goodbye, fail what is unanswered, and stop; may be called again."""
        with self._changed:
            if self._closed is None:
                self._closed = OffloadError("the device was closed")
                self._changed.notify_all()
                if self._thread is None:
                    self._release_resources()
                else:
                    self._wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _start(self) -> None:
        with self._changed:
            if self._thread is None and self._closed is None:
                # A daemon thread: a device that is never closed must not keep Python from exiting.
                self._thread = threading.Thread(
                    target=self._run, name="scissionlite-device", daemon=True
                )
                self._thread.start()

    def _wake(self) -> None:
        # A full buffer is as good: the thread is to wake up anyway.
        with contextlib.suppress(BlockingIOError):
            self._wake_out.send(b"\0")

    def _unavailable(self) -> EdgeUnavailableError:
        return EdgeUnavailableError(
            f"no edge daemon answers at {self._tensors} (control {self._control}): "
            f"{self._trouble}. Check that `scissionlite serve` runs there and that both ports "
            "are open"
        )

    def _release_resources(self) -> None:
        self._wake_out.close()
        self._wake_in.close()
        self._context.term()

    # Everything below runs in the I/O thread.

    def _run(self) -> None:
        error = None
        try:
            while self._closed is None:
                self._step()
        except Exception as unexpected:
            logger.exception("the connection to the edge daemon failed")
            error = OffloadError(f"the connection to the edge daemon failed: {unexpected!r}")
        if self._link is not None:
            self._link.say_goodbye()
            self._link.close()
        with self._changed:
            error = self._closed = self._closed or error or OffloadError("closed")
            self._pending.update((request.id, request) for request in self._outbox)
            self._release_resources()
        for request in list(self._pending.values()):
            self._fail(request, error)

    def _step(self) -> None:
        if self._link is None and time.monotonic() >= self._open_at:
            self._open()
        self._wait()
        if self._link is not None:
            for message, frames in self._link.messages():
                self._handle(message, frames)
        if self._link is not None and self._link.lost():
            self._lose("the connection was dropped")
        if self._link is not None and self._link.ready and not self._connected:
            self._greet(self._link)
        while self._outbox:
            request = self._outbox.popleft()
            self._pending[request.id] = request
        self._check_clock()
        self._send_unsent()

    def _open(self) -> None:
        try:
            self._link = DeviceLink(
                self._context, self._device_id, self._tensors, self._control, self._hello
            )
        except zmq.ZMQError as error:
            self._lose(str(error))

    def _wait(self) -> None:
        times = [request.expires for request in self._pending.values()]
        times.append(self._open_at if self._link is None else self._link.next_event)
        left = min(max(min(times) - time.monotonic(), 0.0), _IDLE)
        if self._link is not None:
            self._link.wait(self._wake_in.fileno(), math.ceil(1000 * left))
        else:
            poller = zmq.Poller()
            poller.register(self._wake_in, zmq.POLLIN)
            poller.poll(math.ceil(1000 * left))
        with contextlib.suppress(BlockingIOError):
            self._wake_in.recv(4096)

    def _handle(self, message: control.ToDevice, frames: list[memoryview]) -> None:
        if isinstance(message, control.Refused):
            self._refuse(message)
        elif isinstance(message, control.Goodbye):
            self._lose("the edge daemon was shut down")
        elif isinstance(message, control.Result | control.Failed):
            request = self._pending.get(message.request)
            if request is None:
                return  # too late, or the second answer to what was sent twice
            if isinstance(message, control.Failed):
                self._failed(request, message)
                return
            try:
                reply = self._read_result(request, message, frames)
            except WireError as error:
                self._fail(request, EdgeExecutionError(f"the edge's answer is broken: {error}"))
            else:
                self._forget(request)
                request.reply.set_result(reply)

    def _greet(self, link: DeviceLink) -> None:
        assert link.welcome is not None
        if self._session not in (None, link.welcome.session):
            logger.info("the edge daemon at %s was restarted", self._tensors)
        self._session = link.welcome.session
        self._retry = FIRST_RETRY
        for request in self._pending.values():
            request.sent = False
        with self._changed:
            self._connected = True
            self._credit = link.welcome.credit
            self._refusal = None
            self._changed.notify_all()

    def _refuse(self, message: control.Refused) -> None:
        mismatch = message.code == "bundle-mismatch"
        kind = BundleMismatchError if mismatch else EdgeUnavailableError
        refusal = kind(f"the edge daemon at {self._tensors} refuses: {message.reason}")
        self._lose(message.reason)
        self._open_at = time.monotonic() + LAST_RETRY  # it may be restarted with another bundle
        with self._changed:
            self._refusal = refusal
            self._changed.notify_all()
        for request in list(self._pending.values()):
            self._fail(request, refusal)

    def _read_result(
        self, request: _Request, message: control.Result, frames: list[memoryview]
    ) -> Reply:
        header, payloads = wire.unpack(frames, wire.MessageKind.RESULT)
        manifest = self._bundle.manifest
        tensors = result_tensors(manifest, request_batch(manifest, request.tensors))
        expected = wire.Header(
            wire.MessageKind.RESULT,
            self._device_id,
            message.request,
            0,
            self._bundle_prefix,
            tensors,
        )
        if header != expected:
            raise TensorMismatchError(f"got {header}, expected {expected}")
        # Copies: a payload may lie anywhere in memory, and callers expect to own their answer.
        outputs = tuple(
            np.frombuffer(payload, dtype=np.float32).copy().reshape(tensor.shape)
            for payload, tensor in zip(payloads, tensors, strict=True)
        )
        return Reply(outputs, message.queue, message.decode, message.run)

    def _failed(self, request: _Request, message: control.Failed) -> None:
        text = f"the edge daemon at {self._tensors} answers {message.code}: {message.message}"
        if message.code == "unknown-device":
            self._lose("the edge daemon was restarted")
        elif message.code == "expired":
            self._fail(request, DeadlineExceededError(text))
        elif message.code == "bundle-mismatch":
            self._fail(request, BundleMismatchError(text))
        else:
            self._fail(request, EdgeExecutionError(text))

    def _send_unsent(self) -> None:
        for request in list(self._pending.values()):
            if self._link is None or not self._connected:
                if self._give_up_early:
                    self._fail(request, self._unavailable())
                continue
            left = request.expires - time.monotonic()
            if request.sent or left <= 0:
                continue
            header = wire.Header(
                wire.MessageKind.REQUEST,
                self._device_id,
                request.id,
                math.ceil(left * 1000),
                self._bundle_prefix,
                request.tensors,
            )
            try:
                request.sent = self._link.send(wire.pack(header, request.payloads))
            except WireError as error:
                self._fail(request, OffloadError(f"the request cannot be sent: {error}"))
                continue
            if not request.sent:
                self._lose("the connection takes no more requests")

    def _check_clock(self) -> None:
        now = time.monotonic()
        for request in list(self._pending.values()):
            if now >= request.expires:
                state = "the edge daemon is there" if self._connected else self._trouble
                self._fail(
                    request,
                    DeadlineExceededError(
                        f"no answer from {self._tensors} within the deadline ({state})"
                    ),
                )
        if self._link is not None and (trouble := self._link.check_clock()):
            self._lose(trouble)

    def _lose(self, trouble: str) -> None:
        """Close the sockets; new ones are opened after a pause that grows."""
        if self._connected:
            logger.warning("%s: %s; connecting again", self._tensors, trouble)
        if self._link is not None:
            self._link.close()
            self._link = None
        self._open_at = time.monotonic() + self._retry
        self._retry = min(2 * self._retry, LAST_RETRY)
        with self._changed:
            self._connected = False
            self._trouble = trouble
            self._changed.notify_all()

    def _fail(self, request: _Request, error: OffloadError) -> None:
        self._forget(request)
        request.reply.set_exception(error)

    def _forget(self, request: _Request) -> None:
        del self._pending[request.id]
        self.release()
