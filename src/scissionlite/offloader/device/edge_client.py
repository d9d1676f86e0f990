"""A client that asks an edge daemon for probes, profiles and its bundles, not for inference."""

from __future__ import annotations

import math
import platform
import time
import warnings
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import TypeVar

import zmq

from scissionlite.errors import (
    EdgeExecutionError,
    EdgeUnavailableError,
    OffloadError,
    WireError,
)
from scissionlite.offloader import wire
from scissionlite.offloader.device.diagnosis import connection_trouble
from scissionlite.offloader.device.socket_pair import (
    HANDSHAKE_TROUBLE,
    SocketPair,
    unauthorized,
    unavailable,
)
from scissionlite.offloader.limits import Timeouts
from scissionlite.offloader.link_keys import DeviceKeys
from scissionlite.offloader.wire import control
from scissionlite.offloader.wire.endpoints import Endpoints

_HEARTBEAT = 1.0  # seconds between two Pings while an answer is long in coming
_SLACK_BYTES = 1 << 16  # over the largest answer

Answer = TypeVar("Answer", control.ProbeReply, control.ProfileReply, control.BundlesReply)


class EdgeClient:
    """A connection to an edge daemon that needs no bundle; a context manager. Of one thread.

    Parameters
    ----------
    connect
        Tensor endpoint of the daemon.
    control_endpoint
        Its control endpoint; None is the next port.
    timeouts
        How long to wait.
    keys
        Of this client and the daemon; None sends in the clear.

    Attributes
    ----------
    id : bytes
        Identity on the control socket, and device id in the messages that are pushed.
    edge : str
        The daemon's name.

    Raises
    ------
    ValueError
        If an endpoint is not one to connect to.
    EdgeUnavailableError
        On entering: nothing answers there.
    AuthorizationError
        On entering, or in any call: the daemon does not take this client's key.
    OffloadError
        On entering: the daemon is too old for edge clients.
    """

    def __init__(
        self,
        connect: str,
        control_endpoint: str | None = None,
        timeouts: Timeouts | None = None,
        keys: DeviceKeys | None = None,
    ) -> None:
        self._keys = keys
        self._trouble = ""
        self._endpoints = Endpoints.to_connect(connect, control_endpoint)
        self._timeout = (timeouts or Timeouts()).answer
        self.id = wire.new_device_id()
        self.edge = ""

    def __enter__(self) -> EdgeClient:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self._sockets = SocketPair(
                self._context,
                self._endpoints,
                self.id,
                self._keys,
                largest_frame=control.MAX_PROFILE_BYTES + _SLACK_BYTES,
                send_timeout=self._timeout,
            )
        except zmq.ZMQError as error:
            self._context.term()
            raise EdgeUnavailableError(
                f"cannot connect to {self._endpoints.tensors}: {error}"
            ) from error
        try:
            self._greet()
        except BaseException:
            _close(self._sockets, self._context)
            raise
        self._finalizer = weakref.finalize(
            self, _drop, self._sockets, self._context, self._endpoints.tensors
        )
        self._finalizer.atexit = False
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._finalizer.detach()
        _close(self._sockets, self._context, goodbye=True)

    def send(self, message: control.ToEdge) -> None:
        """Send a control message."""
        if not self._sockets.send(message):
            raise self._unavailable("the connection takes no more messages")

    def push(self, frames: Sequence[wire.Buffer]) -> None:
        """Send a tensor message without copying its payload."""
        if not self._sockets.push(frames):
            raise self._unavailable("the tensor port takes no more messages")

    def wait_for(
        self, kind: type[Answer], request: int, *, seconds: float = math.inf
    ) -> tuple[Answer, list[memoryview]]:
        """Wait for the answer to a request, and send heartbeats meanwhile.

        Parameters
        ----------
        kind
            The class of the answer.
        request
            The request's id.
        seconds
            The longest wait, even if the daemon answers heartbeats.

        Returns
        -------
        ProbeReply, ProfileReply or BundlesReply, list of memoryview
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
                        f"the edge daemon at {self._endpoints.tensors} answers {message.code}: "
                        f"{message.message}"
                    )
                if isinstance(message, control.Goodbye):
                    raise self._unavailable("it was shut down")
            if now >= give_up:
                raise self._unavailable(f"no {kind.__name__} within {seconds:g} s")
            if now >= silent:
                raise self._unavailable(f"it was silent for {self._timeout:g} s")
            if now >= ping:
                self.send(control.Ping(pings))
                pings += 1
                ping = now + _HEARTBEAT

    def _greet(self) -> None:
        # Every daemon answers Stats: one that answers it first does not know ClientHello.
        self.send(control.ClientHello(platform.node()[:256]))
        self.send(control.Stats())
        until = time.monotonic() + self._timeout
        while (received := self._receive(until)) is not None:
            message, _ = received
            if isinstance(message, control.ClientWelcome):
                self.edge = message.name
                return
            if isinstance(message, control.StatsReply):
                raise OffloadError(
                    f"the edge daemon at {self._endpoints.tensors} answers neither probes nor "
                    "requests for profiles: it is older than this build, update it"
                )
        endpoints = (self._endpoints.tensors, self._endpoints.control)
        troubles = dict.fromkeys(filter(None, map(connection_trouble, endpoints)))
        raise self._unavailable("; ".join([f"no answer within {self._timeout:g} s", *troubles]))

    def _receive(self, until: float) -> tuple[control.ToDevice, list[memoryview]] | None:
        """Wait for a control message until a monotonic time; None if there was none."""
        while True:
            self._check_handshakes()
            try:
                received = self._sockets.receive()
            except WireError as error:
                raise OffloadError(
                    f"the program at {self._endpoints.control} is no edge daemon of this version: "
                    f"{error}"
                ) from error
            if received is None:
                if (left := until - time.monotonic()) <= 0:
                    return None
                self._sockets.inputs.wait(None, math.ceil(1000 * left))
                continue
            if isinstance(received[0], control.Refused) and received[0].code == "unauthorized":
                raise unauthorized(self._endpoints, received[0].reason)
            return received

    def _check_handshakes(self) -> None:
        for each in self._sockets.link_events():
            if each.unauthorized:
                raise unauthorized(self._endpoints, each.unauthorized)
            if each.handshake_failed:
                self._trouble = HANDSHAKE_TROUBLE
            elif each.event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._trouble = ""

    def _unavailable(self, trouble: str) -> EdgeUnavailableError:
        text = f"{trouble} ({self._trouble})" if self._trouble else trouble
        return unavailable(self._endpoints, text)


def _close(
    sockets: SocketPair, context: zmq.Context[zmq.Socket[bytes]], *, goodbye: bool = False
) -> None:
    sockets.close(goodbye=goodbye)
    context.term()


def _drop(sockets: SocketPair, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
    """Close the sockets of a client that is freed without being left, and warn."""
    _close(sockets, context)
    warnings.warn(
        f"an EdgeClient of {endpoint} was not closed: use `with EdgeClient(...) as client:`",
        ResourceWarning,
        stacklevel=2,
    )
