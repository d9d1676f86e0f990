"""ZeroMQ sockets that an I/O loop reads and writes, with as few system calls as possible.

To ask a socket for its state (ZMQ_EVENTS), or to try to read one that is empty, is a system call.
So a loop remembers which sockets may have messages, and asks no other.
"""

from __future__ import annotations

import select

import zmq

from scissionlite._core import MessageSocket
from scissionlite.offloader.waker import Waker

_POLLIN = int(zmq.POLLIN)  # pyzmq's flags are enumerations, whose arithmetic takes microseconds


class SocketInputs:
    """Sockets to read, and which of them may have messages.

    Of one thread at a time, but for :meth:`wait`: meanwhile other threads may use the sockets under
    the lock of the loop, and call :meth:`used` then.
    """

    def __init__(self) -> None:
        self._poller = select.poll()
        self._sockets: dict[int, MessageSocket] = {}
        self._ready: set[MessageSocket] = set()

    def add(self, each: MessageSocket) -> None:
        """Read this socket, too."""
        descriptor = each.descriptor
        self._sockets[descriptor] = each
        self._ready.add(each)
        self._poller.register(descriptor, select.POLLIN)

    def may_read(self, each: MessageSocket) -> bool:
        """Whether a socket may have a message."""
        return each in self._ready

    def empty(self, each: MessageSocket) -> None:
        """Take note that a socket was read until there was nothing."""
        self._ready.discard(each)

    def receive(self, each: MessageSocket) -> list[memoryview]:
        """Read a message's frames without copying; none if there is no message."""
        if each not in self._ready:
            return []
        discards = each.busy  # others may wait behind what it throws away
        frames, _, _ = each.receive()
        if not frames and not discards:
            self._ready.discard(each)
        return frames

    def used(self, each: MessageSocket) -> None:
        """Look at a socket that was written to: it may have a message.

        The descriptor of a socket tells only that its state has changed (ZMQ_FD), and any use may
        take notice of the change. So nobody might be told of a message otherwise.
        """
        if each.events & _POLLIN:
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
