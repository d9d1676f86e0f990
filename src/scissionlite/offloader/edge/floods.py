"""Connections that flood the daemon with messages are muted for a moment.

Each message is read, checked and answered by the one thread that leads, which costs tens of
microseconds; a peer may send thousands a second. So a connection that sends too many wrong ones
within a second, or too many requests over its credit, or too many control messages and probes,
which may be right, is muted until the second is over. The kernel drops what comes over it, as if
the network had lost it: neither libzmq's thread nor the leader has work with it, and its peer must
send it again. The core throws the messages away that had arrived before, at a microsecond each, and
counts them. Without TCP, the kernel drops nothing, and the core throws all away.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from scissionlite._core import MessageSocket
from scissionlite.errors import MutedConnectionError, ScissionLiteError
from scissionlite.offloader.edge.connections import Connection, Connections

MOST_WRONG = 256  # messages of a connection in a second that are read; more than any credit
# Valid control messages and probes that are read. An honest device sends at most 220: with the
# shortest heartbeat, 0.01 s, a Ping and a LinkReport each time, and more Pings with its probes;
# `scissionlite probe` waits 0.005 s between two.
MOST_CONTROL = 1024
_SECOND = 1.0


class Floods:
    """Counts the messages of each connection. Of one thread at a time.

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
        # Messages in this second:
        self._wrong: dict[Connection, int] = {}
        self._control: dict[Connection, int] = {}
        self._muted = False
        self._end = 0.0  # of this second

    @property
    def seconds_to_end(self) -> float:
        """Seconds until :meth:`step` is due."""
        return max(0.0, self._end - time.monotonic()) if self._muted else _SECOND

    def count_wrong(self, connection: Connection) -> None:
        """Take note of a wrong or refused message; mute its connection if there were too many."""
        self._count(self._wrong, connection, MOST_WRONG)

    def count_control(self, connection: Connection) -> None:
        """Take note of a valid control message or probe; mute as :meth:`count_wrong` does."""
        self._count(self._control, connection, MOST_CONTROL)

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
        self._control.clear()
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
                    f"{address or 'a peer'} sent {MOST_WRONG} wrong or refused messages, or "
                    f"{MOST_CONTROL} control messages, within a second: the next {messages} were "
                    "not read"
                )
                self._on_reject(error, messages)

    def _count(self, counts: dict[Connection, int], connection: Connection, most: int) -> None:
        self.step()
        number = counts[connection] = counts.get(connection, 0) + 1
        if number == most:
            self._messages[connection.port].mute(connection.fd)
            self._muted = True
