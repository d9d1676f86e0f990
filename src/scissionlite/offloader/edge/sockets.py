"""The edge daemon's two sockets: PULL on the tensor port and ROUTER on the control port."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import zmq

from scissionlite.errors import OffloadError
from scissionlite.offloader import wire
from scissionlite.offloader.edge.access import Access
from scissionlite.offloader.waker import Waker
from scissionlite.offloader.wire import control
from scissionlite.offloader.wire.endpoints import Endpoints

_LINGER_MS = 500  # for the Goodbyes and the last results
_SLACK_BYTES = 1 << 16  # over the largest valid frame, so that a near miss is named, not cut off


class Received(NamedTuple):
    """A message: who sent it (:meth:`.access.Access.peer`), and its frames, which are not copied.

    Without frames, there was no message.
    """

    peer: str
    frames: list[memoryview]


class EdgeSockets:
    """Sockets that listen for devices and edge clients. Of one thread.

    Parameters
    ----------
    context
        Makes the sockets.
    endpoints
        Where to listen.
    credit
        Requests that a device may have unanswered.
    largest_payload
        Most bytes of a request's payload.
    access
        Who may connect.

    Raises
    ------
    OffloadError
        If an endpoint cannot be listened on.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoints: Endpoints,
        *,
        credit: int,
        largest_payload: int,
        access: Access,
    ) -> None:
        self._access = access
        self._pull = context.socket(zmq.PULL)
        self._router = context.socket(zmq.ROUTER)
        largest = max(largest_payload, wire.MAX_HEADER_BYTES, control.MAX_PROBE_BYTES)
        self._pull.rcvhwm = 2 * credit
        self._pull.maxmsgsize = _SLACK_BYTES + largest
        self._router.sndhwm = self._router.rcvhwm = control.MAX_CREDIT
        self._router.maxmsgsize = _SLACK_BYTES + control.MAX_CONTROL_BYTES
        # Sending to a device that is gone is an error. Nobody takes the place of a device that is
        # there (no handover): one that comes back has a new identity.
        self._router.router_mandatory = 1
        self._poller = zmq.Poller()
        access.open(context, self._poller)
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
                each.bind(endpoint)
                self._poller.register(each, zmq.POLLIN)
        except zmq.ZMQError as error:
            self.close()
            raise OffloadError(f"cannot listen on {endpoint}: {error}") from error

    @property
    def endpoints(self) -> Endpoints:
        """The endpoints, with the ports that wildcards became."""
        return Endpoints(_bound(self._pull), _bound(self._router))

    def wait(self, waker: Waker, milliseconds: int) -> None:
        """Wait for a message or for a wake-up."""
        waker.wait(self._poller, milliseconds)

    def receive_tensors(self) -> Received:
        """Read a tensor message."""
        return self._receive(self._pull)

    def receive_control(self) -> Received:
        """Read the sender's identity and a control message's frames."""
        return self._receive(self._router)

    def send(
        self, device_id: bytes, message: control.ToDevice, tensors: Sequence[wire.Buffer] = ()
    ) -> None:
        """Send a control message and the frames that follow it; tensors are not copied.

        A device that is gone, or does not read, gets nothing: it asks again if it needs to.
        """
        with contextlib.suppress(zmq.ZMQError):
            self._router.send_multipart(
                [device_id, control.encode(message), *tensors], zmq.NOBLOCK, copy=False
            )

    def close(self) -> None:
        """Close the sockets."""
        self._pull.close()
        self._router.close()
        self._access.close()

    def _receive(self, each: zmq.Socket[bytes]) -> Received:
        try:
            frames = each.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return Received("", [])
        return Received(self._access.peer(frames[-1]), [frame.buffer for frame in frames])


def _bound(each: zmq.Socket[bytes]) -> str:
    endpoint = each.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return endpoint.rstrip(b"\0").decode()
