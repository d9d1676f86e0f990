"""The sockets of a visitor: who asks an edge daemon for a probe or a profile, not for inference."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TypeVar

import zmq

from scissionlite.errors import (
    ControlMessageError,
    EdgeExecutionError,
    EdgeUnavailableError,
    OffloadError,
    WireError,
)
from scissionlite.offloader import control, wire

_HEARTBEAT = 1.0  # seconds between two Pings while an answer is long in coming
_LINGER_MS = 200  # for the Goodbye
_SLACK_BYTES = 1 << 16

Reply = TypeVar("Reply", control.ProbeReply, control.ProfileReply)


class Visitor:
    """PUSH and DEALER to an edge daemon; a context manager that says Visit. Of one thread.

    Parameters
    ----------
    connect
        Tensor endpoint of the daemon.
    control_endpoint
        Its control endpoint; None is the next port.
    timeout
        Seconds of silence after which the daemon is taken for dead.

    Attributes
    ----------
    id : bytes
        Identity on the control socket, and device id in what is pushed.
    edge : str
        What the daemon calls itself.

    Raises
    ------
    ValueError
        If an endpoint is not one to connect to.
    EdgeUnavailableError
        On entering: nobody answers there.
    OffloadError
        On entering: the daemon is too old to know visitors.
    """

    def __init__(self, connect: str, control_endpoint: str | None, timeout: float) -> None:
        self._connect = control.check_endpoint(connect)
        self._control = control.check_endpoint(
            control.control_endpoint(connect) if control_endpoint is None else control_endpoint
        )
        self._timeout = timeout
        # ZeroMQ keeps identities that begin with a zero byte for itself.
        self.id = b"\x01" + os.urandom(wire.DEVICE_ID_BYTES - 1)
        self.edge = ""
        self._opened = contextlib.ExitStack()

    def __enter__(self) -> Visitor:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._opened.callback(context.term)
        try:
            self._push = self._open(context, zmq.PUSH)
            self._dealer = self._open(context, zmq.DEALER)
            self._dealer.identity = self.id
            self._push.connect(self._connect)
            self._dealer.connect(self._control)
            self._greet()
        except zmq.ZMQError as error:
            self._opened.close()
            raise EdgeUnavailableError(f"cannot connect to {self._connect}: {error}") from error
        except BaseException:
            self._opened.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._dealer.linger = _LINGER_MS
        with contextlib.suppress(zmq.ZMQError):
            self._dealer.send(control.encode(control.Goodbye()), zmq.NOBLOCK)
        self._opened.close()

    def tell(self, message: control.ToEdge) -> None:
        """Send a control message."""
        try:
            self._dealer.send(control.encode(message))
        except zmq.Again:
            raise self._unavailable("the connection takes no more messages") from None

    def push(self, frames: Sequence[wire.Buffer]) -> None:
        """Send a tensor message without copying its payload."""
        try:
            self._push.send_multipart(frames, copy=False)
        except zmq.Again:
            raise self._unavailable("the tensor port takes no more messages") from None

    def wait_for(
        self, kind: type[Reply], request: int, *, seconds: float = math.inf
    ) -> tuple[Reply, list[memoryview]]:
        """Wait for the answer to a request, and ask for signs of life meanwhile.

        Parameters
        ----------
        kind
            What the answer is to be.
        request
            The request's id.
        seconds
            The longest wait, however alive the daemon is.

        Returns
        -------
        ProbeReply or ProfileReply, list of memoryview
            The answer and the frames that follow it.

        Raises
        ------
        EdgeUnavailableError
            If the daemon falls silent or shuts down, or the time is over.
        EdgeExecutionError
            If the daemon tried and failed.
        OffloadError
            If it refuses.
        """
        now = time.monotonic()
        give_up, silent, ping = now + seconds, now + self._timeout, now + _HEARTBEAT
        pings = 0
        while True:
            received = self._receive(min(give_up, silent, ping))
            now = time.monotonic()
            if received is not None:
                silent = now + self._timeout
                message, frames = received
                if isinstance(message, kind) and message.request == request:
                    return message, frames
                if isinstance(message, control.Failed) and message.request == request:
                    failed = EdgeExecutionError if message.code == "execution" else OffloadError
                    raise failed(
                        f"the edge daemon at {self._connect} answers {message.code}: "
                        f"{message.message}"
                    )
                if isinstance(message, control.Goodbye):
                    raise self._unavailable("it was shut down")
            if now >= give_up:
                raise self._unavailable(f"no {kind.__name__} within {seconds:g} s")
            if now >= silent:
                raise self._unavailable(f"it was silent for {self._timeout:g} s")
            if now >= ping:
                self.tell(control.Ping(pings))
                pings += 1
                ping = now + _HEARTBEAT

    def _open(self, context: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
        made = context.socket(kind)
        self._opened.callback(made.close)
        made.linger = 0
        made.sndhwm = made.rcvhwm = control.MAX_CREDIT
        made.sndtimeo = int(1000 * self._timeout)
        made.maxmsgsize = control.MAX_PROFILE_BYTES + _SLACK_BYTES
        return made

    def _greet(self) -> None:
        # Every daemon answers Stats: one that answers it first does not know Visit.
        self.tell(control.Visit(platform.node()[:256]))
        self.tell(control.Stats())
        until = time.monotonic() + self._timeout
        while (received := self._receive(until)) is not None:
            message, _ = received
            if isinstance(message, control.VisitReady):
                self.edge = message.name
                return
            if isinstance(message, control.StatsReply):
                raise OffloadError(
                    f"the edge daemon at {self._connect} answers neither probes nor requests for "
                    "profiles: it is older than this build, update it"
                )
        raise self._unavailable(f"no answer within {self._timeout:g} s")

    def _receive(self, until: float) -> tuple[control.ToDevice, list[memoryview]] | None:
        """Wait for a control message until a monotonic time; None if there was none."""
        left = max(until - time.monotonic(), 0.0)
        if not self._dealer.poll(math.ceil(1000 * left)):
            return None
        frames = [frame.buffer for frame in self._dealer.recv_multipart(copy=False)]
        try:
            message = control.decode_at_device(frames[0])
            if len(frames) - 1 > isinstance(message, control.ProbeReply | control.ProfileReply):
                raise ControlMessageError(
                    f"{type(message).__name__} with {len(frames) - 1} further frames"
                )
        except WireError as error:
            raise OffloadError(
                f"what answers at {self._control} is no edge daemon of this version: {error}"
            ) from error
        return message, frames[1:]

    def _unavailable(self, trouble: str) -> EdgeUnavailableError:
        return EdgeUnavailableError(
            f"no edge daemon answers at {self._connect} (control {self._control}): {trouble}. "
            "Check that `scissionlite serve` runs there and that both ports are open"
        )
