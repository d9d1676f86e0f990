"""The two sockets that connect to an edge daemon, for a device and for an edge client."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import zmq

from scissionlite._core import MessageSocket
from scissionlite.errors import AuthorizationError, EdgeUnavailableError
from scissionlite.offloader.link_keys import DeviceKeys
from scissionlite.offloader.message_sockets import message_socket
from scissionlite.offloader.socket_inputs import SocketInputs
from scissionlite.offloader.wire import Buffer, control
from scissionlite.offloader.wire.endpoints import Endpoints, host_of, is_ipv6, is_name

FIRST_RETRY, LAST_RETRY = 0.05, 1.0
"""Seconds before the first and the last of growing pauses between attempts to connect."""

_FAMILY_PATIENCE = 0.25  # seconds until the other family of a name's addresses is tried
_LINGER_MS = 200  # for the Goodbye
_MONITOR_EVENT = struct.Struct("=HI")  # zmq_socket_monitor(3): the event and its value
_HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | _HANDSHAKE_FAILED
)


HANDSHAKE_TROUBLE = (
    "the other side ended the connection in its first handshake: its key may be another one than "
    "this device was given, only one of the two sides may have keys, or it is no edge daemon"
)
"""Why there may be no connection, where ZeroMQ does not say it: the other side just hung up."""


def unauthorized(endpoints: Endpoints, reason: str) -> AuthorizationError:
    """Make the error that says why keys keep this device from an edge daemon."""
    return AuthorizationError(f"the edge daemon at {endpoints.tensors} refuses: {reason}")


def unavailable(endpoints: Endpoints, trouble: str) -> EdgeUnavailableError:
    """Make the error that says where no edge daemon answers, why, and what to check."""
    return EdgeUnavailableError(
        f"no edge daemon answers at {endpoints.tensors} (control {endpoints.control}): {trouble}. "
        "Check that `scissionlite serve` runs there and that both ports are open"
    )


class LinkEvent(NamedTuple):
    """Something that happened to a connection.

    Attributes
    ----------
    socket : int
        zmq.PUSH or zmq.DEALER: which of the two.
    event : int
        A ``zmq.EVENT_...``.
    value : int
        What ZeroMQ adds to it.
    """

    socket: int
    event: int
    value: int

    @property
    def handshake_failed(self) -> bool:
        """Whether the peers did not agree on a connection."""
        return bool(self.event & _HANDSHAKE_FAILED)

    @property
    def unauthorized(self) -> str | None:
        """Why this device will not get a connection until keys are changed; None if it may."""
        if self.event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return "it does not know this device's key: `scissionlite keys authorize` there adds it"
        mismatch = zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH
        if self.event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and self.value == mismatch:
            return "one of the two sides has keys and the other has none: give both sides theirs"
        return None


class _Opened(NamedTuple):
    socket: zmq.Socket[bytes]
    messages: MessageSocket


class SocketPair:
    """PUSH to the tensor port and DEALER to the control port. Of one thread.

    Parameters
    ----------
    context
        Makes the sockets.
    endpoints
        Of the daemon; the sockets connect by themselves, and again if the link is lost.
    device_id
        Identity on the control socket.
    keys
        Of the device and the daemon; None sends in the clear.
    largest_frame
        A peer that sends a larger frame, in bytes, loses its connection.
    send_timeout
        Seconds to wait for room in a socket's queue.

    Attributes
    ----------
    inputs : SocketInputs
        What can be read: control messages and link events.

    Raises
    ------
    zmq.ZMQError
        If a socket cannot be made.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoints: Endpoints,
        device_id: bytes,
        keys: DeviceKeys | None,
        *,
        largest_frame: int,
        send_timeout: float = 0.0,
    ) -> None:
        self.inputs = SocketInputs()
        self._keys = keys
        self._endpoints = endpoints
        self._ipv6 = is_ipv6(host_of(endpoints.tensors)) or is_ipv6(host_of(endpoints.control))
        self._named = is_name(host_of(endpoints.tensors)) or is_name(host_of(endpoints.control))
        self._next_family_at = 0.0
        self._early: list[bytes] = []  # control messages sent before there was a connection
        # Closes what was opened, in reverse: a socket left open would keep the context from ending.
        self._opened = contextlib.ExitStack()
        self._monitors: list[MessageSocket] = []
        try:
            self._push = self._open(context, zmq.PUSH, largest_frame, send_timeout)
            self._dealer = self._open(context, zmq.DEALER, largest_frame, send_timeout)
            self._dealer.socket.identity = device_id
            self._monitors = [self._monitor(self._push.socket), self._monitor(self._dealer.socket)]
            for each in (self._dealer.messages, *self._monitors):
                self.inputs.add(each)
            self._connect()
        except zmq.ZMQError:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._dealer.socket.closed

    def push(self, frames: Sequence[Buffer]) -> bool:
        """Send a tensor message without copying its payloads; False if there is no room."""
        return self._push.messages.send(list(frames))

    def send(self, message: control.ToEdge) -> bool:
        """Send a control message; False if there is no room."""
        encoded = control.encode(message)
        if self._named:
            self._early.append(encoded)
        if not self._dealer.messages.send([encoded]):
            return False
        self.inputs.used(self._dealer.messages)
        return True

    def receive(self) -> tuple[control.ToDevice, list[memoryview]] | None:
        """Read a control message and the frames that follow it; None if there is none.

        Raises
        ------
        ControlSizeError, ControlMessageError
            If the frames received are not a message for a device.
        """
        frames = self.inputs.receive(self._dealer.messages)
        return control.decode_frames(frames) if frames else None

    def link_events(self) -> Iterator[LinkEvent]:
        """Read what happened to the connections."""
        for kind, monitor in zip((zmq.PUSH, zmq.DEALER), self._monitors, strict=True):
            while frames := self.inputs.receive(monitor):
                # Not zmq.utils.monitor's parser: its module imports asyncio.
                event = LinkEvent(kind, *_MONITOR_EVENT.unpack(frames[0]))
                if event.event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    self._named, self._early = False, []  # the family is found
                elif event.event == zmq.EVENT_CONNECT_RETRIED and self._named:
                    self._try_other_family()
                yield event

    def close(self, *, goodbye: bool = False) -> None:
        """Close the sockets, and drop what was not sent; may be called again.

        With ``goodbye``, Goodbye is the last message, and the control socket lingers for it.
        """
        if goodbye and not self.closed:
            dealer = self._dealer.socket
            dealer.linger, dealer.sndtimeo = _LINGER_MS, 0
            self.send(control.Goodbye())
        self._opened.close()

    def _connect(self) -> None:
        for each, endpoint in (
            (self._push.socket, self._endpoints.tensors),
            (self._dealer.socket, self._endpoints.control),
        ):
            each.ipv6 = self._ipv6
            each.connect(endpoint)

    def _try_other_family(self) -> None:
        """Connect anew with the other family of addresses: a name may have both, the edge one."""
        now = time.monotonic()
        if now < self._next_family_at:
            return
        self._next_family_at = now + _FAMILY_PATIENCE
        self._push.socket.disconnect(self._endpoints.tensors)
        self._dealer.socket.disconnect(self._endpoints.control)
        self._ipv6 = not self._ipv6
        self._connect()
        for message in self._early:  # they went with the old connection
            self._dealer.messages.send([message])
        self.inputs.used(self._dealer.messages)

    def _open(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        kind: int,
        largest_frame: int,
        send_timeout: float,
    ) -> _Opened:
        made = context.socket(kind)
        self._opened.callback(made.close)
        made.linger = 0
        made.sndhwm = made.rcvhwm = control.MAX_CREDIT
        made.sndtimeo = int(1000 * send_timeout)
        made.maxmsgsize = largest_frame
        made.reconnect_ivl = int(FIRST_RETRY * 1000)
        made.reconnect_ivl_max = int(LAST_RETRY * 1000)
        if self._keys is not None:
            self._keys.secure(made)
        messages = message_socket(made)
        self._opened.callback(messages.close)
        return _Opened(made, messages)

    def _monitor(self, each: zmq.Socket[bytes]) -> MessageSocket:
        monitor = each.get_monitor_socket(_EVENTS)
        self._opened.callback(monitor.close, 0)
        self._opened.callback(each.disable_monitor)
        messages = message_socket(monitor)
        self._opened.callback(messages.close)
        return messages
