"""One life of the device's connection to an edge daemon: its two sockets and their clock."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Sequence

import zmq
from zmq.utils.monitor import recv_monitor_message

from scissionlite.errors import ControlMessageError, WireError
from scissionlite.offloader import control, wire

logger = logging.getLogger(__name__)

FIRST_RETRY, LAST_RETRY = 0.05, 1.0
"""Seconds before the first and the last of growing pauses between attempts to connect."""

_HELLO_TIMEOUT = 5.0  # four round trips (TCP, ZeroMQ, Hello) over the worst of links
_LINGER_MS = 200  # for the Goodbye


class DeviceLink:
    """PUSH for requests and DEALER for the rest, from Hello to the end. Of one thread.

    Parameters
    ----------
    context
        Makes the sockets.
    device_id
        Identity on the control socket.
    tensors, control_endpoint
        Where the daemon is.
    hello
        Sent at once.

    Attributes
    ----------
    welcome : control.Welcome or None
        The edge's Welcome, once received.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        device_id: bytes,
        tensors: str,
        control_endpoint: str,
        hello: control.Hello,
    ) -> None:
        self.welcome: control.Welcome | None = None
        self._push_ready = False
        self._give_up_at = time.monotonic() + _HELLO_TIMEOUT
        self._next_ping = math.inf
        self._pings = 0
        # Closes what was opened, in reverse: a socket left open would keep the context from ending.
        self._opened = contextlib.ExitStack()
        self._poller = zmq.Poller()
        try:
            self._push, push_monitor = self._open(context, zmq.PUSH)
            self._dealer, dealer_monitor = self._open(context, zmq.DEALER)
            self._monitors = (push_monitor, dealer_monitor)
            for each in (self._dealer, *self._monitors):
                self._poller.register(each, zmq.POLLIN)
            self._dealer.identity = device_id
            self._push.connect(tensors)
            self._dealer.connect(control_endpoint)
            self._dealer.send(control.encode(hello))
        except zmq.ZMQError:
            self.close()
            raise

    def _open(
        self, context: zmq.Context[zmq.Socket[bytes]], kind: int
    ) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
        """Make a socket, and the one that tells what becomes of its connection."""
        made = context.socket(kind)
        self._opened.callback(made.close)
        made.linger = 0
        made.sndhwm = made.rcvhwm = control.MAX_CREDIT
        made.sndtimeo = made.rcvtimeo = 0
        made.maxmsgsize = wire.MAX_TENSOR_BYTES
        made.reconnect_ivl = int(FIRST_RETRY * 1000)
        made.reconnect_ivl_max = int(LAST_RETRY * 1000)
        events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        monitor = made.get_monitor_socket(events)
        self._opened.callback(monitor.close, 0)
        self._opened.callback(made.disable_monitor)
        return made, monitor

    @property
    def ready(self) -> bool:
        """Whether requests can be sent: Welcome received, and the tensor port reached."""
        return self.welcome is not None and self._push_ready

    @property
    def next_event(self) -> float:
        """Monotonic time at which :meth:`check_clock` is to be called next."""
        return min(self._give_up_at, self._next_ping)

    def wait(self, wake: int, milliseconds: int) -> None:
        """Wait for anything to read here or at the file descriptor ``wake``."""
        self._poller.register(wake, zmq.POLLIN)
        self._poller.poll(milliseconds)

    def send(self, frames: Sequence[wire.Buffer]) -> bool:
        """Send a request without copying its payload; False if the socket takes no more."""
        try:
            self._push.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        return True

    def messages(self) -> Iterator[tuple[control.ToDevice, list[memoryview]]]:
        """Read what the edge sent: control messages, each with the frames that follow it."""
        while not self._dealer.closed:
            try:
                frames = self._dealer.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            buffers = [frame.buffer for frame in frames]
            try:
                message = control.decode_at_device(buffers[0])
                if len(buffers) > 1 and not isinstance(message, control.Result):
                    raise ControlMessageError(f"{type(message).__name__} with further frames")
            except WireError as error:
                logger.warning("the edge daemon sent no control message: %s", error)
                continue
            if isinstance(message, control.Welcome):
                self.welcome = message
                self._next_ping = time.monotonic() + message.heartbeat
            if self.ready:
                self._give_up_at = math.inf
            yield message, buffers[1:]

    def lost(self) -> bool:
        """Read what became of the connections; True if one was dropped."""
        for monitor in self._monitors:
            with contextlib.suppress(zmq.Again):
                while True:
                    event = recv_monitor_message(monitor, zmq.NOBLOCK)
                    if event["event"] == zmq.EVENT_DISCONNECTED:
                        return True
                    if monitor is self._monitors[0]:
                        self._push_ready = True
                        self._give_up_at = math.inf if self.ready else self._give_up_at
        return False

    def check_clock(self) -> str | None:
        """Send a heartbeat when it is time; say what is wrong when it is time to give up."""
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
            with contextlib.suppress(zmq.Again):
                self._dealer.send(control.encode(control.Ping(self._pings)))
            self._pings += 1
            self._next_ping = now + self.welcome.heartbeat
            # Counts from the first unanswered Ping on; anything that the edge sends answers it.
            patience = control.MISSED_HEARTBEATS * self.welcome.heartbeat
            self._give_up_at = min(self._give_up_at, now + patience)
        return None

    def say_goodbye(self) -> None:
        """Send the last message; :meth:`close` then lingers for it."""
        self._dealer.linger = _LINGER_MS
        with contextlib.suppress(zmq.Again):
            self._dealer.send(control.encode(control.Goodbye()))

    def close(self) -> None:
        """Close the sockets; what was not sent is dropped."""
        self._opened.close()
