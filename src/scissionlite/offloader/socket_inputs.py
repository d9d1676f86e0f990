"""ZeroMQ sockets that an I/O loop reads and writes, with as few system calls as possible.

To ask a socket for its state (ZMQ_EVENTS), or to try to read one that is empty, is a system call.
So a loop remembers which sockets may have messages, and asks no other.
"""

from __future__ import annotations

import select
from collections.abc import Sequence

import zmq
from zmq.backend import Socket as BackendSocket

from scissionlite.offloader.waker import Waker
from scissionlite.offloader.wire.headers import Buffer

# As plain integers: pyzmq's flags are enumerations, whose arithmetic takes microseconds.
_EVENTS, _POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)
_NOBLOCK, _SNDMORE = int(zmq.NOBLOCK), int(zmq.SNDMORE)
_COPIED = zmq.COPY_THRESHOLD


class SocketInputs:
    """Sockets to read, and which of them may have messages.

    Of one thread at a time, but for :meth:`wait`: meanwhile other threads may use the sockets under
    the lock of the loop, and call :meth:`used` then.
    """

    def __init__(self) -> None:
        self._poller = select.poll()
        self._sockets: dict[int, zmq.Socket[bytes]] = {}
        self._ready: set[zmq.Socket[bytes]] = set()

    def add(self, each: zmq.Socket[bytes]) -> None:
        """Read this socket, too."""
        self._sockets[each.FD] = each
        self._ready.add(each)
        self._poller.register(each.FD, select.POLLIN)

    def may_read(self, each: zmq.Socket[bytes]) -> bool:
        """Whether a socket may have a message."""
        return each in self._ready

    def empty(self, each: zmq.Socket[bytes]) -> None:
        """Take note that a socket was read until there was nothing."""
        self._ready.discard(each)

    def receive(self, each: zmq.Socket[bytes]) -> list[zmq.Frame]:
        """Read a message's frames without copying; none if there is no message."""
        if each not in self._ready:
            return []
        try:
            return each.recv_multipart(_NOBLOCK, copy=False)
        except zmq.Again:
            self._ready.discard(each)
            return []

    def used(self, each: zmq.Socket[bytes]) -> None:
        """Look at a socket that was written to: it may have a message.

        The descriptor of a socket tells only that its state has changed (ZMQ_FD), and any use may
        take notice of the change. So nobody might be told of a message otherwise.
        """
        events = BackendSocket.get(each, _EVENTS)
        assert isinstance(events, int)
        if events & _POLLIN:
            self._ready.add(each)

    def wait(self, waker: Waker | None, milliseconds: int) -> None:
        """Wait for a message or for a wake-up, at most so long; not if a socket may have one."""
        if self._ready:
            return
        if waker is None:
            changed = [descriptor for descriptor, _ in self._poller.poll(milliseconds)]
        else:
            changed = waker.wait(self._poller, milliseconds)
        self._ready.update(self._sockets[descriptor] for descriptor in changed)


def send_frames(each: zmq.Socket[bytes], frames: Sequence[Buffer]) -> None:
    """Send a message; frames that are not small are not copied.

    Raises
    ------
    zmq.Again
        If there is no room within the socket's time.
    zmq.ZMQError
        If it cannot be sent.
    """
    last = len(frames) - 1
    for i, frame in enumerate(frames):
        copy = memoryview(frame).nbytes < _COPIED
        each.send(frame, _SNDMORE if i < last else 0, copy=copy)
