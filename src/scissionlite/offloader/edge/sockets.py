"""The edge daemon's two sockets: PULL on the tensor port and ROUTER on the control port."""

from __future__ import annotations

import errno
import math
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import zmq

from scissionlite.errors import OffloadError, ScissionLiteError, UnauthorizedKeyError
from scissionlite.manifest import Manifest
from scissionlite.offloader import wire
from scissionlite.offloader.edge.access import Access
from scissionlite.offloader.edge.bounds import Bounds
from scissionlite.offloader.edge.connections import Connection, Connections, Trouble
from scissionlite.offloader.edge.floods import Floods
from scissionlite.offloader.message_sockets import message_socket, property_of
from scissionlite.offloader.socket_inputs import SocketInputs
from scissionlite.offloader.waker import Waker
from scissionlite.offloader.wire import control
from scissionlite.offloader.wire.endpoints import Endpoints, host_of, is_ipv6, is_name

_LINGER_MS = 500  # for the Goodbyes and the last results
_PULL, _ROUTER = 0, 1  # the order of the two
_MOST_FRAMES = (2 + wire.MAX_TENSORS, 3)  # one more than a valid message has, for each socket
_SLACK_BYTES = 1 << 16  # over the largest control message, so that a near miss is named
_MANY_REJECTED = 16  # messages at a time after which the daemon rests before it reads more
_REST = 0.001  # seconds
_FAREWELL = 1.0  # seconds in which a peer can read why its connection is ended


class Received(NamedTuple):
    """A message: who sent it (:attr:`.access.Access.sender`), and its frames, not copied.

    Without frames, there was no message. Frames over those of any valid message are left out.
    """

    peer: str
    frames: list[memoryview]
    connection: Connection | None = None


_NOTHING = Received("", [])


class EdgeSockets:
    """Sockets that listen for devices and edge clients. Of one thread at a time.

    Parameters
    ----------
    endpoints
        Where to listen.
    bounds
        What connections may hold.
    access
        Who may connect.
    on_end
        Called with the reason when a connection is ended or refused.
    on_reject
        Called with an error and the number of messages that were not read because of it.

    Raises
    ------
    OffloadError
        If an endpoint cannot be listened on.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        *,
        bounds: Bounds,
        access: Access,
        on_end: Callable[[Trouble], None],
        on_reject: Callable[[ScissionLiteError, int], None],
    ) -> None:
        self._access = access
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._pull = self._context.socket(zmq.PULL)
        self._router = self._context.socket(zmq.ROUTER)
        self._pull.rcvhwm = bounds.messages
        self._pull.maxmsgsize = bounds.frame
        self._router.sndhwm = self._router.rcvhwm = control.MAX_CREDIT
        self._router.maxmsgsize = control.MAX_CONTROL_BYTES + _SLACK_BYTES
        sockets = [self._pull, self._router]
        self._messages = [
            message_socket(each, most, access.sender)
            for each, most in zip(sockets, _MOST_FRAMES, strict=True)
        ]
        self._drained = [False, False]
        self._connections = Connections(sockets, bounds, on_end)
        self._floods = Floods(self._messages, self._connections, on_reject)
        self._rejected = 0  # messages since the last wait
        self._routes: dict[bytes, Connection] = {}  # of control messages, by their identities
        # Sending to a device that is gone is an error. Nobody takes the place of a device that is
        # there (no handover): one that comes back has a new identity.
        self._router.router_mandatory = 1
        self._inputs = SocketInputs()
        self._inputs.add(access.open(self._context))
        self._bound: list[str] = []
        endpoint = ""
        try:
            for each, endpoint, linger in (
                (self._pull, endpoints.tensors, 0),
                (self._router, endpoints.control, _LINGER_MS),
            ):
                each.linger = linger
                each.sndtimeo = each.rcvtimeo = 0
                # Connections of devices that lost their power are found out by TCP.
                each.tcp_keepalive = 1
                each.tcp_keepalive_idle = 30
                each.tcp_keepalive_intvl = 10
                each.tcp_keepalive_cnt = 3
                access.secure(each)
                self._bound.append(bind(each, endpoint))
            for messages in self._messages:
                self._inputs.add(messages)
        except zmq.ZMQError as error:
            self.close()
            raise OffloadError(f"cannot listen on {endpoint}: {_explain(error)}") from error

    def make_room_for(self, manifest: Manifest) -> None:
        """Let connections hold the requests and results of one more bundle.

        Raises
        ------
        OffloadError
            If its requests are too large.
        """
        self._connections.bounds = self._connections.bounds.including(manifest)

    @property
    def endpoints(self) -> Endpoints:
        """The endpoints, with the ports that wildcards became."""
        return Endpoints(*self._bound)

    def wait(self, lock: threading.Lock, waker: Waker, milliseconds: int) -> None:
        """Wait for a message or for a wake-up, or until the connections are to be looked at.

        Holds the lock only to look at what is known: other threads may use the sockets meanwhile.
        """
        if self._rejected >= _MANY_REJECTED:
            # Who floods the daemon must not keep the threads that work from running.
            time.sleep(_REST)
        with lock:
            self._rejected = 0
            self._floods.step()
            if any(each.busy for each in self._messages):
                return
            due = min(self._connections.seconds_to_look, self._floods.seconds_to_end)
            seconds = min(milliseconds / 1000, due)
        self._inputs.wait(waker, math.ceil(1000 * seconds))

    @property
    def has_control(self) -> bool:
        """Whether a control message may wait: to be asked where a result was sent."""
        return self._inputs.may_read(self._messages[_ROUTER])

    def answer_handshakes(self) -> bool:
        """Answer handshakes; return whether the authorised keys have changed."""
        return self._access.step(self._inputs, self._connections.is_banned)

    def look_at_connections(self) -> int:
        """End the connections that hold too much; return how many there are."""
        self._floods.report()  # it was delivered, too
        if self._connections.look(self._drained):
            self._drained = [False, False]
        return len(self._connections)

    def receive_tensors(self) -> Received:
        """Read a tensor message."""
        return self._receive(_PULL)

    def receive_control(self) -> Received:
        """Read the sender's identity and a control message's frames."""
        received = self._receive(_ROUTER)
        if received.connection is not None:
            if len(self._routes) > 2 * control.MAX_CREDIT:
                self._routes = {i: c for i, c in self._routes.items() if c.handle is not None}
            self._routes[bytes(received.frames[0])] = received.connection
        return received

    def send(
        self, device_id: bytes, message: control.ToDevice, tensors: Sequence[wire.Buffer] = ()
    ) -> None:
        """Send a control message and the frames that follow it; tensors are not copied.

        A device that is gone, or does not read, gets nothing: it asks again if it needs to.
        """
        frames: list[wire.Buffer] = [device_id, control.encode(message), *tensors]
        connection = self._routes.get(device_id)
        if connection is not None and not self._connections.may_send(
            connection, sum(map(len, frames))
        ):
            return
        try:
            sent = self._messages[_ROUTER].send(frames)
        except zmq.ZMQError:
            self._routes.pop(device_id, None)  # it is gone
            return
        self._inputs.used(self._messages[_ROUTER])
        if not sent and connection is not None:
            self._connections.end(connection, "reads nothing of what it asks for")

    def count_control(self, connection: Connection | None) -> None:
        """Take note of a control message or a probe that was read."""
        if connection is not None:
            self._floods.count_control(connection)

    def reject(self, connection: Connection | None, error: ScissionLiteError | None = None) -> None:
        """Take note of a message that was rejected or refused; end the connection if its key is."""
        self._rejected += 1
        if connection is not None:
            self._floods.count_wrong(connection)
        if connection is not None and isinstance(error, UnauthorizedKeyError):
            # Once its peer can have read why.
            self._connections.end_soon(connection, _FAREWELL)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._pull.closed

    def close(self) -> None:
        """Close the sockets, when the last messages are sent."""
        self._floods.report()
        self._connections.close()
        for each in self._messages:
            each.close()
        self._pull.close()
        self._router.close()
        self._access.close()
        self._context.term()

    def _receive(self, port: int) -> Received:
        messages = self._messages[port]
        discards = messages.busy  # others may wait behind what it throws away
        if not discards and not self._inputs.may_read(messages):
            self._drained[port] = True
            return _NOTHING
        frames, descriptor, peer = messages.receive()
        if not frames:
            self._drained[port] = not (discards or messages.busy)
            if messages.busy and not discards:
                self._rejected += _MANY_REJECTED  # a muted connection sends more and more
            if self._drained[port]:
                self._inputs.empty(messages)
            return _NOTHING
        connection = self._connections.find(descriptor) if descriptor >= 0 else None
        if connection is not None:
            on_wire = frames[port:]  # an identity is not
            self._connections.deliver(connection, len(on_wire), sum(map(len, on_wire)))
        if messages.busy:
            address = property_of(frames[-1], "Peer-Address")  # it may have ended itself
            self._connections.end_of(connection, address, "sends messages of too many frames")
        return Received(peer, frames, connection)


def bind(each: zmq.Socket[bytes], endpoint: str) -> str:
    """Listen on an endpoint, on every address of a name; return the first, with its port.

    Raises
    ------
    zmq.ZMQError
        If one of them cannot be listened on.
    """
    first, *others = _addresses(endpoint)
    each.ipv6 = is_ipv6(host_of(first))
    each.bind(first)
    bound = _bound(each)
    port = bound.rpartition(":")[2]
    for other in others:
        each.ipv6 = is_ipv6(host_of(other))
        each.bind(f"{other.rpartition(':')[0]}:{port}")
    return bound


def _addresses(endpoint: str) -> list[str]:
    """Look the host of an endpoint up: libzmq binds to addresses and interfaces only."""
    host, port = host_of(endpoint), endpoint.rpartition(":")[2]
    if not is_name(host) or host in (name for _, name in socket.if_nameindex()):
        return [endpoint]
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return [endpoint]  # libzmq says what is wrong
    hosts = sorted({str(address[0]) for *_, address in found}, key=is_ipv6)
    return [f"tcp://[{each}]:{port}" if is_ipv6(each) else f"tcp://{each}:{port}" for each in hosts]


def _explain(error: zmq.ZMQError) -> str:
    if error.errno in (errno.ENODEV, errno.EADDRNOTAVAIL):
        return "this machine has no such address, name or network interface"
    if error.errno == errno.EAFNOSUPPORT:
        return "this machine has no IPv6"
    return str(error)


def _bound(each: zmq.Socket[bytes]) -> str:
    endpoint = each.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return endpoint.rstrip(b"\0").decode()
