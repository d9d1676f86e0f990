"""The emulated link is never faster than it says, loses nothing, and closes cleanly.

Only lower bounds are asserted: the host decides how much slower it is.
"""

from __future__ import annotations

import contextlib
import math
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from processes import Process

from scissionlite.demo.link_emulator import PAPER_BANDWIDTH, PAPER_RTT, LinkEmulator

pytestmark = pytest.mark.usefixtures("no_threads_left")


@pytest.fixture
def echo_port() -> Iterator[int]:
    """A server that echoes its input, and closes when its client does."""
    server = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def echo(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):  # when the link is cut
            while data := connection.recv(65536):
                connection.sendall(data)

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=echo, args=(connection,)))
            threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    for thread in (accepting, *threads):
        thread.join(timeout=30)
        assert not thread.is_alive()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def receive(connection: socket.socket, nbytes: int = -1) -> bytes:
    """Receive a number of bytes, or all bytes to the end."""
    parts: list[bytes] = []
    while nbytes and (data := connection.recv(min(nbytes, 65536) if nbytes > 0 else 65536)):
        parts.append(data)
        nbytes -= len(data) if nbytes > 0 else 0
    return b"".join(parts)


def test_the_papers_network_is_the_default() -> None:
    assert (PAPER_RTT, PAPER_BANDWIDTH) == (0.0274, 58.8e6)


def test_a_round_trip_is_never_faster_than_the_links(echo_port: int) -> None:
    with (
        LinkEmulator([(0, "127.0.0.1", echo_port)], rtt=0.02) as link,
        connect(link.ports[0]) as connection,
    ):
        for _ in range(5):
            start = time.monotonic()
            connection.sendall(b"x")
            assert receive(connection, 1) == b"x"
            assert time.monotonic() - start >= 0.02


def test_bytes_are_never_faster_than_the_bandwidth_and_arrive_in_order(echo_port: int) -> None:
    data = random.Random(3).randbytes(300_000)
    bandwidth = 16e6
    with (
        LinkEmulator([(0, "127.0.0.1", echo_port)], rtt=0.01, bandwidth=bandwidth) as link,
        connect(link.ports[0]) as connection,
    ):
        start = time.monotonic()
        sender = threading.Thread(target=connection.sendall, args=(data,))
        sender.start()
        assert receive(connection, len(data)) == data
        assert time.monotonic() - start >= len(data) * 8 / bandwidth + 0.01
        sender.join()


def test_the_bandwidth_may_change(echo_port: int) -> None:
    data = bytes(50_000)
    with (
        LinkEmulator([(0, "127.0.0.1", echo_port)], rtt=0.0, bandwidth=1e9) as link,
        connect(link.ports[0]) as connection,
    ):
        for bandwidth in (1e9, 2e6, 1e9):
            link.set_bandwidth(bandwidth)
            start = time.monotonic()
            connection.sendall(data)
            assert receive(connection, len(data)) == data
            assert time.monotonic() - start >= len(data) * 8 / bandwidth


def test_connections_of_all_ports_share_the_bandwidth(echo_port: int) -> None:
    bandwidth, nbytes = 16e6, 100_000
    forwards = [(0, "127.0.0.1", echo_port)] * 2
    with LinkEmulator(forwards, rtt=0, bandwidth=bandwidth) as link:
        start = time.monotonic()
        connections = [connect(port) for port in link.ports]

        def exchange(connection: socket.socket) -> None:
            with connection:
                connection.sendall(bytes(nbytes))
                received.append(len(receive(connection, nbytes)))

        received: list[int] = []
        threads = [threading.Thread(target=exchange, args=(each,)) for each in connections]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert received == [nbytes] * 2
        assert time.monotonic() - start >= 2 * nbytes * 8 / bandwidth


def test_a_sender_that_is_not_read_feels_back_pressure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with (
            LinkEmulator([(0, "127.0.0.1", port)], rtt=0, bandwidth=1e10) as link,
            connect(link.ports[0]) as connection,
        ):
            connection.setblocking(False)
            accepted, _ = server.accept()
            with accepted:
                sent = 0
                refused_since = time.monotonic()
                while time.monotonic() - refused_since < 0.5:
                    try:
                        sent += connection.send(bytes(65536))
                        refused_since = time.monotonic()
                    except BlockingIOError:
                        time.sleep(0.01)
                    assert sent < 1 << 28, "the relay reads without bound"


def test_one_side_may_end_while_the_other_goes_on(echo_port: int) -> None:
    with (
        LinkEmulator([(0, "127.0.0.1", echo_port)], rtt=0.01) as link,
        connect(link.ports[0]) as connection,
    ):
        connection.sendall(b"the last words")
        connection.shutdown(socket.SHUT_WR)
        assert receive(connection) == b"the last words"


def test_a_cut_link_drops_and_refuses_until_it_is_mended(echo_port: int) -> None:
    with LinkEmulator([(0, "127.0.0.1", echo_port)], rtt=0) as link:
        port = link.ports[0]
        with connect(port) as connection:
            connection.sendall(b"x")
            assert receive(connection, 1) == b"x"
            link.cut()
            with contextlib.suppress(ConnectionResetError):
                assert receive(connection) == b""
        with pytest.raises(ConnectionError):
            connect(port)
        link.restore()
        assert link.ports == [port]
        with connect(port) as connection:
            connection.sendall(b"y")
            assert receive(connection, 1) == b"y"


def test_a_target_that_is_away_ends_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with (
        LinkEmulator([(0, "127.0.0.1", port)], rtt=0) as link,
        connect(link.ports[0]) as connection,
        contextlib.suppress(ConnectionResetError),
    ):
        assert receive(connection) == b""


def test_it_closes_with_connections_open_and_twice(echo_port: int) -> None:
    link = LinkEmulator([(0, "127.0.0.1", echo_port)], rtt=0.01)
    link.start()
    with connect(link.ports[0]) as connection:
        connection.sendall(bytes(100))
        link.close()
        link.close()


def test_one_that_was_never_started_closes() -> None:
    LinkEmulator([(0, "127.0.0.1", 1)]).close()


def test_a_port_in_use_is_an_error(echo_port: int) -> None:
    with pytest.raises(OSError, match="in use"):
        LinkEmulator([(echo_port, "127.0.0.1", 1)]).start()


@pytest.mark.parametrize(
    ("rtt", "bandwidth"), [(-1.0, 1e6), (math.nan, 1e6), (0.0, 0.0), (0.0, math.nan)]
)
def test_a_link_out_of_range_is_a_value_error(rtt: float, bandwidth: float) -> None:
    with pytest.raises(ValueError, match="rtt must be"):
        LinkEmulator([], rtt=rtt, bandwidth=bandwidth)


def test_it_runs_as_a_program(echo_port: int, start_process: Callable[..., Process]) -> None:
    arguments = ["--forward", f"0:127.0.0.1:{echo_port}", "--rtt", "0.01", "--bandwidth", "1e7"]
    process = start_process("scissionlite.demo.link_emulator", *arguments)
    (port,) = process.read_json()["ports"]
    with connect(port) as connection:
        start = time.monotonic()
        connection.sendall(b"x")
        assert receive(connection, 1) == b"x"
        assert time.monotonic() - start >= 0.01
    assert process.terminate() == 0


def test_swallowed_bytes_never_come_and_new_connections_live_when_it_is_mended(
    echo_port: int,
) -> None:
    with LinkEmulator([(0, "127.0.0.1", echo_port)], rtt=0) as link:
        with connect(link.ports[0]) as connection, connect(link.ports[0]) as other:
            for each in (connection, other):
                each.sendall(b"a")
                assert receive(each, 1) == b"a"
            link.swallow(0)
            connection.sendall(b"b")
            connection.settimeout(0.1)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            link.mend()
            other.sendall(b"c")  # it lost nothing
            assert receive(other, 1) == b"c"
            connection.sendall(b"d")
            with pytest.raises(TimeoutError):
                connection.recv(1)
        with connect(link.ports[0]) as fresh:
            fresh.sendall(b"e")
            assert receive(fresh, 1) == b"e"


@pytest.mark.parametrize("down", [False, True])
def test_a_large_write_stalls_its_connection_until_the_path_is_mended(
    echo_port: int, down: bool
) -> None:
    with LinkEmulator([(0, "127.0.0.1", echo_port)], rtt=0) as link:
        link.pass_small(0, 1000, down=down)
        with connect(link.ports[0]) as connection:
            connection.sendall(bytes(1000))
            assert receive(connection, 1000) == bytes(1000)
            connection.sendall(bytes(5000))
            time.sleep(0.1)
            connection.sendall(b"x")
            connection.settimeout(0.1)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            link.mend()
            connection.settimeout(30)
            assert receive(connection, 5001) == bytes(5000) + b"x"
