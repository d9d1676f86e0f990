"""One life of the device's link to an edge daemon, from Hello to the end: its sockets and clock."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator

import zmq

from scissionlite.errors import WireError
from scissionlite.offloader import wire
from scissionlite.offloader.device.socket_pair import HANDSHAKE_TROUBLE, SocketPair
from scissionlite.offloader.link_keys import DeviceKeys
from scissionlite.offloader.wire import control
from scissionlite.offloader.wire.endpoints import Endpoints

logger = logging.getLogger(__name__)

_HELLO_TIMEOUT = 5.0  # four round trips (TCP, ZeroMQ, Hello) over the worst of links


class EdgeLink:
    """Sockets that have sent Hello, and when to send a heartbeat or to give up. Of one thread.

    Parameters
    ----------
    context
        Makes the sockets.
    endpoints
        Of the daemon.
    device_id
        Identity on the control socket.
    hello
        Sent at once.
    keys
        Of the device and the daemon; None sends in the clear.

    Attributes
    ----------
    welcome : control.Welcome or None
        The edge's Welcome, once received.
    refusal : str or None
        Why keys keep this device from the edge, once that is known.
    failed : str or None
        The endpoint to which an attempt to connect failed last.
    poller : zmq.Poller
        Waits for anything to read here.

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
        hello: control.Hello,
        keys: DeviceKeys | None,
    ) -> None:
        self.refusal: str | None = None
        self.welcome: control.Welcome | None = None
        self.poller = zmq.Poller()
        self.failed: str | None = None
        self._endpoints = endpoints
        self._push_ready = False
        self._give_up_at = time.monotonic() + _HELLO_TIMEOUT
        self._next_ping = math.inf
        self._pings = 0
        self._sockets = SocketPair(
            context, endpoints, device_id, keys, largest_frame=wire.MAX_TENSOR_BYTES
        )
        self._sockets.register(self.poller)
        self._sockets.send(hello)

    @property
    def ready(self) -> bool:
        """Whether requests can be sent: Welcome received, and the tensor port reached."""
        return self.welcome is not None and self._push_ready

    @property
    def next_event(self) -> float:
        """Monotonic time at which :meth:`check_clock` is to be called next."""
        return min(self._give_up_at, self._next_ping)

    def send(self, frames: list[wire.Buffer]) -> bool:
        """Send a request without copying its payload; False if the socket has no room."""
        return self._sockets.push(frames)

    def messages(self) -> Iterator[tuple[control.ToDevice, list[memoryview]]]:
        """Read the edge's control messages, each with the frames that follow it."""
        while not self._sockets.closed:
            try:
                received = self._sockets.receive()
            except WireError as error:
                logger.warning("the edge daemon sent no control message: %s", error)
                continue
            if received is None:
                return
            if isinstance(received[0], control.Welcome):
                self.welcome = received[0]
                self._next_ping = time.monotonic() + self.welcome.heartbeat
            if self.ready:
                self._give_up_at = math.inf
            yield received

    def lost(self) -> str | None:
        """Read the events of the connections; return what is wrong if one was dropped."""
        for each in self._sockets.link_events():
            if each.handshake_failed:
                self.refusal = each.unauthorized
                return self.refusal or HANDSHAKE_TROUBLE
            if each.event == zmq.EVENT_DISCONNECTED:
                return "the connection was dropped"
            if each.event == zmq.EVENT_CONNECT_RETRIED:
                push = each.socket == zmq.PUSH
                self.failed = self._endpoints.tensors if push else self._endpoints.control
            elif each.socket == zmq.PUSH:
                self._push_ready = True
                self._give_up_at = math.inf if self.ready else self._give_up_at
        return None

    def check_clock(self) -> str | None:
        """Send a heartbeat when it is time; return what is wrong when it is time to give up."""
        now = time.monotonic()
        if now >= self._give_up_at:
            if self.ready:
                return "the edge daemon is silent"
            if self.welcome is not None:
                return "the tensor port cannot be reached, only the control port"
            if self._push_ready:
                return "nothing answers at the control port"
            return "no connection"
        if self.welcome is not None and now >= self._next_ping:
            self._sockets.send(control.Ping(self._pings))
            self._pings += 1
            self._next_ping = now + self.welcome.heartbeat
            # Counts from the first unanswered Ping on; anything that the edge sends answers it.
            patience = control.MISSED_HEARTBEATS * self.welcome.heartbeat
            self._give_up_at = min(self._give_up_at, now + patience)
        return None

    def close(self, *, goodbye: bool = False) -> None:
        """Close the sockets, after a Goodbye if asked; drop what was not sent."""
        self._sockets.close(goodbye=goodbye)
