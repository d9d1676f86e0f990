"""An emulated link: a TCP relay whose forwarded ports share one link of some rate and delay.

Each direction has the full bandwidth and half the round-trip time. The connections take turns to
put bytes on the link at its rate; the bytes arrive half a round trip later. Bytes for which the
link has no room are not read, so the sender meets back pressure as on a real link. The first bytes
of a connection wait one more round trip, as for TCP's handshake. Nothing is faster than the link.
Scheduling on the host adds a little: well below 1 ms per direction on an idle machine. Losses are
not emulated, and neither is TCP's slow start on the real link. A link that looks alive and does not
pass its bytes is (:mod:`.link_faults`).

Run it as its own process with ``python -m scissionlite.demo.link_emulator --help``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import selectors
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any

from scissionlite.demo.link_faults import ConnectionFault, PathFault

PAPER_RTT = 0.0274
"""Round-trip time of the paper's link, in seconds."""

PAPER_BANDWIDTH = 58.8e6
"""Bandwidth of the paper's link, in bit/s."""

_SLACK = 0.005  # seconds of the link's time that may be filled ahead, to bridge late wake-ups
_MAX_CHUNK = 16384


class LinkEmulator:
    """Relay TCP ports over one emulated link; a context manager that runs in a thread.

    Parameters
    ----------
    forwards
        One ``(listen_port, host, port)`` a forwarded port; 0 listens on any free port.
    rtt
        Round-trip time in seconds.
    bandwidth
        Of each direction, in bit/s; all connections share it.
    listen_host
        IPv4 address to listen on.

    Attributes
    ----------
    ports : list of int
        The ports listened on, in the order of ``forwards``; set by :meth:`start`.

    Raises
    ------
    ValueError
        If rtt is negative or bandwidth is not positive.
    """

    def __init__(
        self,
        forwards: Sequence[tuple[int, str, int]],
        rtt: float = PAPER_RTT,
        bandwidth: float = PAPER_BANDWIDTH,
        listen_host: str = "127.0.0.1",
    ) -> None:
        if not rtt >= 0 or not bandwidth > 0:
            raise ValueError(f"rtt must be >= 0 and bandwidth > 0, got {rtt} and {bandwidth}")
        self.ports: list[int] = [port for port, _, _ in forwards]
        self._targets = [(host, port) for _, host, port in forwards]
        self._listen_host = listen_host
        self._rtt = rtt
        self._up = _Direction(rtt / 2, bandwidth)
        self._down = _Direction(rtt / 2, bandwidth)
        self._faults = [(PathFault(), PathFault()) for _ in forwards]  # up and down
        self._listeners: list[socket.socket] = []
        self._connections: set[asyncio.Task[None]] = set()
        # select() wakes up within microseconds; epoll rounds every sleep up to milliseconds.
        self._loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        self._thread: threading.Thread | None = None

    def __enter__(self) -> LinkEmulator:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Listen, and relay in a thread of its own.

        Raises
        ------
        OSError
            If a port cannot be listened on.
        """
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="link-emulator", daemon=True
        )
        self._thread.start()
        try:
            self._call(self._listen())
        except OSError:
            self.close()
            raise

    @property
    def bandwidth(self) -> float:
        """Of each direction, in bit/s; may be set at any time."""
        return 8 / self._up.seconds_per_byte

    @bandwidth.setter
    def bandwidth(self, value: float) -> None:
        for direction in (self._up, self._down):
            self._loop.call_soon_threadsafe(direction.set_bandwidth, value)

    def cut(self) -> None:
        """Cut the link: drop every connection and refuse new ones until :meth:`restore`."""
        self._call(self._drop())

    def restore(self) -> None:
        """Mend the link: listen again on the same ports."""
        self._call(self._listen())

    def set_bandwidth(self, bandwidth: float) -> None:
        """Have another bandwidth from now on, in bit/s."""
        self._call_soon(self._up.set_bandwidth, bandwidth)
        self._call_soon(self._down.set_bandwidth, bandwidth)

    def swallow(self, index: int, *, down: bool = False) -> None:
        """Take the bytes that are sent to a forwarded port, and drop them.

        Parameters
        ----------
        index
            Which of ``forwards``.
        down
            Its answers instead.
        """
        self._call_soon(self._faults[index][down].swallow)

    def pass_small(self, index: int, largest: int, *, down: bool = False) -> None:
        """Pass only writes of at most ``largest`` bytes; a larger one stalls its connection."""
        self._call_soon(self._faults[index][down].pass_small, largest)

    def mend(self) -> None:
        """End the faults of :meth:`swallow` and :meth:`pass_small`."""
        for fault in (each for both in self._faults for each in both):
            self._call_soon(fault.mend)

    def close(self) -> None:
        """Drop every connection and stop; may be called again."""
        if self._loop.is_closed():
            return
        if self._thread is not None:
            self._call(self._drop())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    def serve_forever(self) -> None:
        """Relay in this thread until SIGTERM or SIGINT; print the ports as one JSON line."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._loop.stop)
        try:
            self._loop.run_until_complete(self._listen())
            print(json.dumps({"ports": self.ports}), flush=True)
            self._loop.run_forever()
            self._loop.run_until_complete(self._drop())
        finally:
            self._loop.close()

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=30)

    def _call_soon(self, function: Callable[..., None], *arguments: float) -> None:
        async def call() -> None:
            function(*arguments)

        self._call(call())

    async def _listen(self) -> None:
        # Not asyncio's server: closed at the wrong moment, it leaks what it has just accepted.
        for index, port in enumerate(self.ports if not self._listeners else []):
            listener = socket.create_server((self._listen_host, port))
            self._listeners.append(listener)
            listener.setblocking(False)
            self.ports[index] = listener.getsockname()[1]
            self._loop.add_reader(listener, self._accept, index, listener)

    async def _drop(self) -> None:
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        self._listeners.clear()
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        # A transport whose making was cancelled closes itself in the loop's next turns.
        for _ in range(3):
            await asyncio.sleep(0)

    def _accept(self, index: int, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # gone again
            connection, _ = listener.accept()
            connection.setblocking(False)
            # asyncio does so only for sockets that it makes; otherwise answers wait for late ACKs.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = self._loop.create_task(self._relay(index, connection))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)
            # For a task that is cancelled before it begins; otherwise it is closed already.
            task.add_done_callback(lambda _: connection.close())

    async def _relay(self, index: int, connection: socket.socket) -> None:
        writers: list[asyncio.StreamWriter] = []
        # A reset on one side, or a cut, drops both sides.
        with contextlib.suppress(OSError, asyncio.CancelledError):
            try:
                reader, writer = await asyncio.open_connection(sock=connection, limit=_MAX_CHUNK)
                writers.append(writer)
                await asyncio.sleep(self._rtt)
                far_reader, far_writer = await asyncio.open_connection(
                    *self._targets[index], limit=_MAX_CHUNK
                )
                writers.append(far_writer)
                up, down = (fault.filter() for fault in self._faults[index])
                await _both(
                    _Pump(self._up, reader, far_writer, up).run(),
                    _Pump(self._down, far_reader, writer, down).run(),
                )
            finally:
                for each in writers:
                    each.transport.abort()
                for each in writers:
                    with contextlib.suppress(OSError):
                        await each.wait_closed()


async def _both(first: Coroutine[Any, Any, None], second: Coroutine[Any, Any, None]) -> None:
    """Run two coroutines to the end; when one fails, cancel the other and raise."""
    tasks = [asyncio.ensure_future(first), asyncio.ensure_future(second)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Direction:
    """One direction of the link: the clock that all its connections share."""

    def __init__(self, delay: float, bandwidth: float) -> None:
        self.delay = delay
        self._free_at = 0.0
        self.set_bandwidth(bandwidth)

    def set_bandwidth(self, bandwidth: float) -> None:
        """Put bytes on the link at another rate from now on."""
        self.seconds_per_byte = 8 / bandwidth
        # Chunks of about a millisecond, so that connections take turns as packets would.
        self.chunk = int(min(_MAX_CHUNK, max(256, 0.001 / self.seconds_per_byte)))
        # Bytes that may be under way: twice what the link holds, and some for late readers.
        self.window = int(2 * self.delay / self.seconds_per_byte) + 4 * _MAX_CHUNK

    async def serialise(self, nbytes: int) -> float:
        """Put some bytes on the link, and compute when their last bit arrives.

        Returns when the link is nearly free again, so that a reader cannot run ahead of it.
        """
        now = asyncio.get_running_loop().time()
        self._free_at = max(now, self._free_at) + nbytes * self.seconds_per_byte
        due = self._free_at + self.delay
        if self._free_at - _SLACK > now:
            await asyncio.sleep(self._free_at - _SLACK - now)
        return due


class _Pump:
    """Moves the bytes of one connection in one direction."""

    def __init__(
        self,
        link: _Direction,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        fault: ConnectionFault,
    ) -> None:
        self._link = link
        self._fault = fault
        self._reader = reader
        self._writer = writer
        self._under_way: deque[tuple[float, bytes]] = deque()
        self._bytes_under_way = 0
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Relay until the sender's end of file is passed on."""
        await _both(self._send(), self._deliver())

    async def _send(self) -> None:
        while True:
            data = await self._reader.read(self._fault.read_size(self._link.chunk))
            if not await self._fault.passes(data):
                continue
            due = await self._link.serialise(len(data))
            self._under_way.append((due, data))
            self._bytes_under_way += len(data)
            self._changed.set()
            if not data:
                return
            while self._bytes_under_way > self._link.window:
                self._changed.clear()
                await self._changed.wait()

    async def _deliver(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self._under_way:
                self._changed.clear()
                await self._changed.wait()
            due, data = self._under_way.popleft()
            # A timer may fire a clock tick early; the link is never faster than it says.
            while (early := due - loop.time()) > 0:
                await asyncio.sleep(early)
            if not data:
                self._writer.write_eof()
                return
            self._writer.write(data)
            await self._writer.drain()
            self._bytes_under_way -= len(data)
            self._changed.set()


def _forward(text: str) -> tuple[int, str, int]:
    try:
        listen, rest = text.split(":", 1)
        host, port = rest.rsplit(":", 1)
        return int(listen), host, int(port)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not LISTEN_PORT:HOST:PORT: {text!r}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the emulator as a program."""
    parser = argparse.ArgumentParser(
        prog="python -m scissionlite.demo.link_emulator",
        description="Relay TCP ports over one emulated link.",
    )
    parser.add_argument(
        "--forward",
        action="append",
        required=True,
        type=_forward,
        metavar="LISTEN_PORT:HOST:PORT",
        help="a port to relay; once per port, port 0 is any free one",
    )
    parser.add_argument("--rtt", type=float, default=PAPER_RTT, help="seconds")
    parser.add_argument("--bandwidth", type=float, default=PAPER_BANDWIDTH, help="bit/s")
    parser.add_argument("--listen", default="127.0.0.1", metavar="HOST", help="address")
    options = parser.parse_args(arguments)
    try:
        emulator = LinkEmulator(options.forward, options.rtt, options.bandwidth, options.listen)
    except ValueError as error:
        parser.error(str(error))
    try:
        emulator.serve_forever()
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
