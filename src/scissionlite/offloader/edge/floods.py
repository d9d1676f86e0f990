"""Connections that flood the daemon with wrong messages are muted for a moment.

Each wrong message is read, checked and answered by the one thread that leads, which costs tens of
microseconds; a peer may send thousands a second. So a connection that sends too many within a
second is muted until the second is over. The kernel drops what comes over it, as if the network had
lost it: neither libzmq's thread nor the leader has work with it, and its peer must send it again.
The core throws the messages away that had arrived before, at a microsecond each, and counts them.
Without TCP, the kernel drops nothing, and the core throws all away.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from scissionlite._core import MessageSocket
from scissionlite.errors import MutedConnectionError, ScissionLiteError
from scissionlite.offloader.edge.connections import Connection, Connections

MOST_WRONG = 256  # messages of a connection in a second that are read; more than any credit
_SECOND = 1.0


class Floods:
    """Counts the wrong messages of each connection. Of one thread at a time.

    Parameters
    ----------
    messages
        The sockets' messages, in the order of :attr:`.Connection.port`.
    connections
        Where they come from.
    on_reject
        Called with an error and the number of messages that were not read because of it.
    """

    def __init__(
        self,
        messages: Sequence[MessageSocket],
        connections: Connections,
        on_reject: Callable[[ScissionLiteError, int], None],
    ) -> None:
        self._messages = messages
        self._connections = connections
        self._on_reject = on_reject
        self._wrong: dict[Connection, int] = {}  # messages in this second
        self._muted = False
        self._end = 0.0  # of this second

    @property
    def seconds_to_end(self) -> float:
        """Seconds until :meth:`step` is due."""
        return max(0.0, self._end - time.monotonic()) if self._muted else _SECOND

    def count(self, connection: Connection) -> None:
        """Take note of a wrong message, and mute its connection if there were too many."""
        self.step()
        number = self._wrong[connection] = self._wrong.get(connection, 0) + 1
        if number == MOST_WRONG:
            self._messages[connection.port].mute(connection.fd)
            self._muted = True

    def step(self) -> None:
        """Begin a new second if it is time: who was muted is read again."""
        now = time.monotonic()
        if now < self._end:
            return
        self.report()
        if self._muted:
            for each in self._messages:
                each.unmute()
        self._muted = False
        self._wrong.clear()
        self._end = now + _SECOND

    def report(self) -> None:
        """Count what was thrown away."""
        if not self._muted:
            return
        for each in self._messages:
            for descriptor, messages, frames, nbytes in each.thrown():
                address = ""
                if (connection := self._connections.find(descriptor)) is not None:
                    self._connections.deliver(connection, frames, nbytes)
                    address = connection.address
                error = MutedConnectionError(
                    f"{address or 'a peer'} sent {MOST_WRONG} wrong messages within a second: the "
                    f"next {messages} were not read"
                )
                self._on_reject(error, messages)
