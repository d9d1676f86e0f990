"""The connections behind the daemon's two sockets: how many, how much each holds, and their end.

libzmq holds frames of a message until its last one has arrived, and answers until they are read,
and has no limit on the bytes of either. It names the descriptor of each connection, though. So the
kernel can be asked how many bytes a connection has received and got rid of (TCP_INFO), and a
connection that holds too much is shut down. ``ipc://`` connections have no such counts: whoever may
write to their file is trusted not to do this (docs/security.md). Nor has TCP on Linux before 4.1
and under qemu's user-mode emulation, which returns the first four bytes only; that is logged.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import struct
import termios
import time
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
import zmq

from scissionlite.offloader.edge.bounds import Bounds
from scissionlite.offloader.edge.log_limit import LogLimit

logger = logging.getLogger(__name__)

_PAGE = os.sysconf("SC_PAGESIZE")
_EVENT = struct.Struct("=HI")  # zmq_socket_monitor(3): the event and its value
# Not EVENT_ACCEPT_FAILED: without descriptors there is one after the other, and each must be read.
_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
_MOST_EVENTS = 256  # of a socket, read at a time
_TCP_INFO_BYTES = struct.Struct("<QQ")  # tcpi_bytes_acked and tcpi_bytes_received (linux/tcp.h)
_TCP_INFO_OFFSET = 120
_TCP_INFO_SIZE = _TCP_INFO_OFFSET + _TCP_INFO_BYTES.size
_TCP_INFO_RTT = struct.Struct("=I")  # tcpi_rtt, in microseconds
_TCP_INFO_RTT_OFFSET = 68
_FRAME_BYTES = 2  # the least that a frame adds to its bytes
_CALM, _HURRY = 0.05, 0.005  # seconds between two looks at the connections
_MOST_QUIET = 100  # connections without traffic looked at at a time
_AMPLIFIED = 32  # an empty frame has 2 bytes on the wire and 64 in libzmq
_BAN, _LONGEST_BAN = 5.0, 60.0  # seconds without a new connection for an address, once and again
_FORGET = 600.0  # seconds after which the next ban is a first one
_MOST_BANNED = 1024


Trouble = Literal["ended", "banned", "connections"]
"""Why a connection was ended, or refused: its own doing, its address's, or no room."""


class Connection(msgspec.Struct, eq=False):
    """A connection, by its descriptor; the numbers are bytes since it was made."""

    fd: int
    inode: int
    port: int  # which of the sockets
    address: str
    handle: socket.socket | None  # to ask for TCP_INFO, if it counts; not the descriptor's owner
    delivered: int = 0  # at least so many were delivered as messages
    read: int = 0  # libzmq had read at the last look
    given: int = 0  # were given to libzmq to send, about
    taken: int = 0  # the peer's machine had received at the last look
    moved: bool = False  # a message was delivered since the last look
    suspect: bool = False  # held too much at the last look
    end_at: float = 0.0  # is to be ended then

    def round_trip(self) -> float:
        """Ask the kernel for the round trip that it measures, in seconds; 0 is not known."""
        if self.handle is None:
            return 0.0
        with contextlib.suppress(OSError):
            info = _tcp_info(self.handle)
            (microseconds,) = _TCP_INFO_RTT.unpack_from(info, _TCP_INFO_RTT_OFFSET)
            return float(microseconds) / 1e6
        return 0.0

    @property
    def held(self) -> int:
        """Bytes received that are no message yet, or one that was not read, at the last look."""
        return max(0, self.read - self.delivered)

    @property
    def owed(self) -> int:
        """Bytes that were sent and not taken, at the last look."""
        return max(0, self.given - self.taken)


class Connections:
    """Knows the connections of the daemon's sockets, and ends those that hold too much.

    Parameters
    ----------
    sockets
        The sockets, before they listen.
    bounds
        What connections may hold.
    on_end
        Called with the reason when a connection is ended or refused.

    Attributes
    ----------
    bounds : Bounds
        As given; may be widened.
    """

    def __init__(
        self,
        sockets: list[zmq.Socket[bytes]],
        bounds: Bounds,
        on_end: Callable[[Trouble], None],
    ) -> None:
        self._sockets = sockets
        self.bounds = bounds
        self._on_end = on_end
        self._monitors = [each.get_monitor_socket(_EVENTS) for each in sockets]
        self._open: dict[int, Connection] = {}
        self._banned: dict[str, tuple[float, float]] = {}  # until when, and for how long
        self._next_look = 0.0
        self._usual_memory = 0
        self._turn = 0
        self._statm = os.open("/proc/self/statm", os.O_RDONLY)  # later there may be no descriptor
        self._log = LogLimit(logger)

    def __len__(self) -> int:
        """Count the connections."""
        return len(self._open)

    @property
    def seconds_to_look(self) -> float:
        """Seconds until :meth:`look` is due."""
        return max(0.0, self._next_look - time.monotonic())

    def find(self, fd: int) -> Connection | None:
        """Find a connection by the descriptor that libzmq names."""
        if fd not in self._open:
            self._read_events()
        return self._open.get(fd)

    def deliver(self, connection: Connection, frames: int, nbytes: int) -> None:
        """Take note of the frames and bytes of messages that were delivered."""
        connection.delivered += nbytes + _FRAME_BYTES * frames
        connection.moved = True

    def may_send(self, connection: Connection, nbytes: int) -> bool:
        """Take note of bytes to send; False, and its end, if it takes nothing of them."""
        if connection.handle is None:
            return True
        if connection.owed + nbytes > self.bounds.answers:
            self._measure(connection)
            if connection.owed + nbytes > self.bounds.answers:
                self.end(connection, f"has not read {connection.owed} bytes of its answers")
                return False
        connection.given += nbytes
        return True

    def look(self, drained: Sequence[bool]) -> bool:
        """End the connections that hold too much, if a look is due.

        Parameters
        ----------
        drained
            Of each socket: whether every message that had arrived was read since the last look.

        Returns
        -------
        bool
            Whether it was due.
        """
        now = time.monotonic()
        if now < self._next_look:
            return False
        self._read_events()
        hurry = False
        for each in self._due():
            before = each.read
            self._measure(each)
            if each.moved:
                if drained[each.port]:  # so what was delivered ends behind what had been read then
                    each.delivered = max(each.delivered, before)
                each.moved = each.suspect = False
            if each.end_at and now >= each.end_at:
                self.end(each, "is not authorised any more")
            elif each.held > self.bounds.backlog or (
                each.suspect and drained[each.port] and each.held > self.bounds.message
            ):
                self.end(each, f"sends a message without an end: {each.held} bytes so far")
            else:
                each.suspect = each.held > self.bounds.message
                hurry |= each.suspect or each.held > self.bounds.message // 2
        hurry |= self._end_the_largest()
        self._next_look = time.monotonic() + (_HURRY if hurry else _CALM)
        return True

    def end(self, connection: Connection, reason: str) -> None:
        """Shut a connection down, and refuse others from its address for a moment."""
        if self._open.pop(connection.fd, None) is None:
            return
        _shut_down(connection)
        _let_go(connection)
        self._punish(connection.address, reason)

    def end_of(self, connection: Connection | None, address: str, reason: str) -> None:
        """End a connection that may have ended by itself, after what it did."""
        if connection is not None:
            self.end(connection, reason)
        else:
            self._punish(address, reason)

    def _punish(self, address: str, reason: str) -> None:
        if address:
            self._ban(address)
        self._on_end("ended")
        self._log.warning("ended", address, "%s %s: connection ended", address or "a peer", reason)

    def is_banned(self, address: str) -> bool:
        """Whether an address gets no connection for now, because another of its was ended."""
        return self._banned.get(address, (0.0, 0.0))[0] > time.monotonic()

    def end_soon(self, connection: Connection, seconds: float) -> None:
        """End a connection in a while, so that its peer can read why."""
        connection.end_at = connection.end_at or time.monotonic() + seconds

    def close(self) -> None:
        """Forget the connections; libzmq ends them with the sockets."""
        for each, monitor in zip(self._sockets, self._monitors, strict=True):
            each.disable_monitor()
            monitor.close(0)
        for connection in self._open.values():
            _let_go(connection)
        self._open.clear()
        os.close(self._statm)

    def _resident_bytes(self) -> int:
        return int(os.pread(self._statm, 100, 0).split()[1]) * _PAGE

    def _due(self) -> list[Connection]:
        """Choose those to look at: whoever was active, and some of the others in turns."""
        several = list(self._open.values())
        if len(several) > _MOST_QUIET:
            self._turn = (self._turn + _MOST_QUIET) % len(several)
            quiet = (several * 2)[self._turn : self._turn + _MOST_QUIET]
            active = [each for each in several if each.moved or each.held or each.end_at]
            several = list({each.fd: each for each in (*quiet, *active)}.values())
        return several

    def _read_events(self) -> None:
        for port, monitor in enumerate(self._monitors):
            with contextlib.suppress(zmq.Again):
                for _ in range(_MOST_EVENTS):
                    event, value = _EVENT.unpack(monitor.recv_multipart(zmq.NOBLOCK)[0])
                    if event == zmq.EVENT_ACCEPTED:
                        self._add(value, port)
                    elif (gone := self._open.pop(value, None)) is not None:
                        _let_go(gone)

    def _add(self, fd: int, port: int) -> None:
        if (stale := self._open.pop(fd, None)) is not None:
            _let_go(stale)
        try:
            connection = _connection(fd, port)
        except OSError:  # it has gone already
            return
        if connection.address and connection.handle is None:
            self._log.warning(
                "counts",
                "",
                "this system does not count the bytes of connections (TCP_INFO), so what a "
                "connection holds has no bound: let only trusted devices reach the daemon",
            )
        reason: Trouble = "banned"
        if self.is_banned(connection.address):
            self._log.warning(
                reason,
                connection.address,
                "a connection from %s is refused for a moment, because "
                "another one from there was ended",
                connection.address,
            )
        elif len(self._open) >= self.bounds.connections:
            reason = "connections"
            self._log.warning(
                reason,
                "",
                "a connection from %s is refused: there are %d, as many as the daemon "
                "takes (--devices, or its limit of descriptors)",
                connection.address or "a peer",
                len(self._open),
            )
        else:
            self._open[fd] = connection
            return
        _shut_down(connection)
        _let_go(connection)
        self._on_end(reason)

    def _ban(self, address: str) -> None:
        """Refuse an address for a while, twice as long as the last time."""
        now = time.monotonic()
        if len(self._banned) >= _MOST_BANNED:
            self._banned = {each: ban for each, ban in self._banned.items() if ban[0] > now}
        end, seconds = self._banned.get(address, (0.0, 0.0))
        seconds = min(2 * seconds, _LONGEST_BAN) if now < end + _FORGET and seconds else _BAN
        if len(self._banned) < _MOST_BANNED:
            self._banned[address] = now + seconds, seconds

    def _measure(self, connection: Connection) -> None:
        """Ask the kernel for a connection's bytes."""
        if connection.handle is None:
            return
        with contextlib.suppress(OSError):
            info = _tcp_info(connection.handle)
            connection.taken, received = _TCP_INFO_BYTES.unpack_from(info, _TCP_INFO_OFFSET)
            if received - connection.delivered > self.bounds.message // 2:
                unread = fcntl.ioctl(connection.fd, termios.FIONREAD, b"\0" * 4)
                received -= int.from_bytes(unread, "little")
            connection.read = max(connection.read, received)

    def _end_the_largest(self) -> bool:
        """End the connection that holds most if all together hold too much; True if near that."""
        held = sum(each.held for each in self._open.values())
        owed = sum(each.owed for each in self._open.values())
        if owed > self.bounds.memory:
            largest = max(self._open.values(), key=lambda each: each.owed)
            self.end(largest, f"has not read {largest.owed} bytes of its answers")
        memory = self._resident_bytes()
        if _AMPLIFIED * held <= self.bounds.memory // 4:
            self._usual_memory = memory
            return False
        if memory - self._usual_memory > self.bounds.memory:
            largest = max(self._open.values(), key=lambda each: each.held)
            self.end(largest, f"holds {largest.held} bytes of a message that has not ended")
        return True


def _connection(fd: int, port: int) -> Connection:
    """Describe the connection of a descriptor that libzmq owns."""
    inode = os.fstat(fd).st_ino
    handle = socket.socket(fileno=fd)
    address = ""
    try:
        if handle.family in (socket.AF_INET, socket.AF_INET6):
            address = str(handle.getpeername()[0])
            if len(_tcp_info(handle)) == _TCP_INFO_SIZE:
                return Connection(fd, inode, port, address, handle)
    except OSError:
        handle.detach()
        raise
    handle.detach()
    return Connection(fd, inode, port, address, None)


def _tcp_info(handle: socket.socket) -> bytes:
    """Ask for TCP_INFO; has fewer bytes than asked for where the system has fewer fields."""
    return handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)


def _let_go(connection: Connection) -> None:
    """Give up the handle without closing libzmq's descriptor."""
    if connection.handle is not None:
        connection.handle.detach()
        connection.handle = None


def _shut_down(connection: Connection) -> None:
    """Shut down a connection, unless its descriptor is another one's by now.

    It takes no descriptor of its own, because there may be none left.
    """
    with contextlib.suppress(OSError):
        if os.fstat(connection.fd).st_ino == connection.inode:
            handle = socket.socket(fileno=connection.fd)
            try:
                handle.shutdown(socket.SHUT_RDWR)
            finally:
                handle.detach()
