"""One life of the device's link to an edge daemon, from Hello to the end: its sockets and clock."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

import zmq
from msgspec import structs

from scissionlite.errors import OffloadError, WireError
from scissionlite.offloader import wire
from scissionlite.offloader.device.socket_pair import HANDSHAKE_TROUBLE, SocketPair, unauthorized
from scissionlite.offloader.device.tensor_path import TensorPath
from scissionlite.offloader.link_keys import DeviceKeys
from scissionlite.offloader.wire import control
from scissionlite.offloader.wire.endpoints import Endpoints
from scissionlite.offloader.wire.probe import probe_header

logger = logging.getLogger(__name__)

_HELLO_TIMEOUT = 5.0  # four round trips (TCP, ZeroMQ, Hello) over the worst of links
_FIRST_HEARTBEAT = 0.05  # seconds, doubled until it is the edge's interval


class LinkLostError(Exception):
    """The link is to be closed, and another one to be made.

    Parameters
    ----------
    trouble
        What is wrong.
    refusal
        The error for requests, where the daemon refuses this device.
    """

    def __init__(self, trouble: str, refusal: OffloadError | None = None) -> None:
        super().__init__(trouble)
        self.trouble = trouble
        self.refusal = refusal


class _Ping(NamedTuple):
    """A heartbeat: its number, when it was sent, and how many samples the edge was told of."""

    sequence: int
    sent: float
    told: int


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
    path
        Whether the tensor port is reached, over all links to this edge.

    Attributes
    ----------
    welcome : control.Welcome or None
        The edge's Welcome, once received.
    broken : LinkLostError or None
        Why the link is to be closed, once that is known.
    failed : str or None
        The endpoint to which an attempt to connect failed last.
    inputs : SocketInputs
        What can be read here.

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
        path: TensorPath,
    ) -> None:
        self.welcome: control.Welcome | None = None
        self.broken: LinkLostError | None = None
        self.failed: str | None = None
        self._endpoints = endpoints
        self._device_id = device_id
        self._path = path
        self._push_ready = False
        self._give_up_at = time.monotonic() + _HELLO_TIMEOUT
        self._next_ping = math.inf
        self._ping = _Ping(0, math.inf, 0)
        self._sockets = SocketPair(
            context, endpoints, device_id, keys, largest_frame=wire.MAX_TENSOR_BYTES
        )
        self.inputs = self._sockets.inputs
        self._sockets.send(hello)
        path.open(time.monotonic())

    @property
    def ready(self) -> bool:
        """Whether requests can be sent: Welcome received, and the tensor port's path proven."""
        return self._connected and self._path.proven

    @property
    def next_event(self) -> float:
        """Monotonic time at which :meth:`check_clock` is to be called next."""
        path_event = self._path.next_event if self._connected else math.inf
        return min(self._give_up_at, self._next_ping, path_event)

    def send(self, request_id: int, frames: list[wire.Buffer], left: float) -> bool:
        """Send a request that has so many seconds left; False if the socket has no room.

        Its payload is not copied.
        """
        if not self._sockets.push(frames):
            return False
        nbytes = sum(map(len, frames))
        self._path.request_sent(request_id, nbytes, time.monotonic(), left)
        return True

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
            now = time.monotonic()
            if isinstance(received[0], control.Welcome):
                self.welcome = received[0]
                self._next_ping = now
            elif isinstance(received[0], control.Grant) and self.welcome is not None:
                self.welcome = structs.replace(self.welcome, credit=received[0].credit)
            if self._connected:
                self._give_up_at = math.inf
            self._measure(*received, now)
            yield received

    def read_events(self) -> None:
        """Read what happened to the connections.

        Raises
        ------
        LinkLostError
            If one was dropped, or refused.
        """
        for each in self._sockets.link_events():
            if each.handshake_failed:
                if (reason := each.unauthorized) is not None:
                    raise LinkLostError(reason, unauthorized(self._endpoints, reason))
                raise LinkLostError(HANDSHAKE_TROUBLE)
            if each.event == zmq.EVENT_DISCONNECTED:
                raise LinkLostError("the connection was dropped")
            if each.event == zmq.EVENT_CONNECT_RETRIED:
                push = each.socket == zmq.PUSH
                self.failed = self._endpoints.tensors if push else self._endpoints.control
            elif each.socket == zmq.PUSH:
                self._push_ready = True
                self._give_up_at = math.inf if self._connected else self._give_up_at

    def check_clock(self) -> str | None:
        """Send a heartbeat when it is time; return what is wrong when it is time to give up."""
        now = time.monotonic()
        if now >= self._give_up_at:
            if self._connected:
                return "the edge daemon is silent"
            if self.welcome is not None:
                return "the tensor port cannot be reached, only the control port"
            if self._push_ready:
                return "nothing answers at the control port"
            return "no connection"
        if self.welcome is None:
            return None
        if now >= self._next_ping:
            self._send_ping(self.welcome.heartbeat, now)
        if not self._push_ready:
            return None
        if (probe := self._path.probe_due(now, self.welcome.heartbeat)) is not None:
            self._send_ping(self.welcome.heartbeat, now)  # is the edge awake?
            self._send_probe(*probe)
        return self._path.lost(now)

    def close(self, *, goodbye: bool = False) -> None:
        """Close the sockets, after a Goodbye if asked; drop what was not sent."""
        self._path.close(time.monotonic())
        self._sockets.close(goodbye=goodbye)

    @property
    def _connected(self) -> bool:
        return self.welcome is not None and self._push_ready

    def _send_ping(self, heartbeat: float, now: float) -> None:
        told, news = self._ping.told, self._path.meter.estimate()
        if news is not None and news.samples == told:
            news = None
        sequence = self._ping.sequence + 1
        self._ping = _Ping(sequence, now, told if news is None else news.samples)
        self._sockets.send(control.Ping(sequence))
        if news is not None:  # behind the Ping, which it must not delay
            self._sockets.send(control.LinkReport(news.rtt, news.bandwidth))
        # The first ones come quickly: they measure the round trip.
        self._next_ping = now + min(heartbeat, _FIRST_HEARTBEAT * 2.0 ** min(sequence, 20))
        # Counts from the first unanswered Ping on; anything that the edge sends answers it.
        self._give_up_at = min(self._give_up_at, now + control.MISSED_HEARTBEATS * heartbeat)

    def _send_probe(self, probe_id: int, nbytes: int) -> None:
        header = probe_header(self._device_id, probe_id, nbytes)
        # No room is no answer: the path counts the probe as lost.
        self._sockets.push(wire.pack(header, [os.urandom(nbytes)]))

    def _measure(self, message: control.ToDevice, frames: list[memoryview], now: float) -> None:
        """Take what an answer says about the path, and about the link."""
        if isinstance(message, control.Pong) and message.sequence == self._ping.sequence:
            self._path.edge_is_awake(self._ping.sent)
            idle = self._path.idle_since(self._ping.sent)
            self._path.meter.round_trip(now - self._ping.sent, idle=idle)
        elif isinstance(message, control.Result):
            edge_seconds = message.queue + message.decode + message.run
            self._path.answered(message.request, sum(map(len, frames)), now, edge_seconds)
        elif isinstance(message, control.ProbeReply):
            self._path.answered(message.request, 0, now, 0.0)
        elif isinstance(message, control.Failed) and message.code != "unknown-device":
            self._path.answered(message.request, 0, now, math.inf)
