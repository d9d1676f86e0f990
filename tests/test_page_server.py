"""The daemon's HTTP server: what it answers, and that nobody can hurt the daemon through it.

Time-outs here only guard against hangs; no outcome depends on how fast the machine is.
"""

from __future__ import annotations

import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import numpy as np
import pytest
from peers import LOCAL, LONG, Frames, device_of, in_one_process

from scissionlite.bundle import Bundle
from scissionlite.errors import OffloadError
from scissionlite.offloader import EdgeServer
from scissionlite.offloader.edge import page_server
from scissionlite.offloader.edge import status as edge_status
from scissionlite.offloader.edge.page_address import PageAddress
from scissionlite.offloader.edge.side import EdgeSide


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as each:
            each.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")


@pytest.fixture(scope="module")
def edge(tiny_bundle: Bundle) -> Iterator[EdgeServer]:
    with EdgeServer(tiny_bundle, LOCAL, page=":*") as started:
        yield started


@pytest.fixture
def leaves_no_thread() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def port_of(edge: EdgeServer) -> int:
    return int(edge.page.rstrip("/").rpartition(":")[2])


def connect(edge: EdgeServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port_of(edge)), timeout=LONG)


def read_all(connection: socket.socket) -> bytes:
    answer = b""
    try:
        while received := connection.recv(65536):
            answer += received
    except ConnectionResetError:
        pass
    return answer


def ask(edge: EdgeServer, request: bytes) -> tuple[int, bytes, bytes]:
    """Send bytes; return the answer's status, headers and body; status 0 if there was none."""
    with connect(edge) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, head, body


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=LONG) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


LOCALHOST = b"Host: localhost\r\n\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (b"GET / HTTP/1.1\r\n" + LOCALHOST, 200),
        (b"GET /healthz?x=1 HTTP/1.1\r\n" + LOCALHOST, 200),
        (b"GET /healthz HTTP/1.0\r\n\r\n", 200),  # a simple health check
        (b"HEAD / HTTP/1.1\r\n" + LOCALHOST, 200),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\n" + LOCALHOST + b"abc", 405),
        (b"PUT /metrics HTTP/1.1\r\n" + LOCALHOST, 405),
        (b"DELETE / HTTP/1.1\r\n" + LOCALHOST, 405),
        (b"GET /../../etc/passwd HTTP/1.1\r\n" + LOCALHOST, 404),
        (b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\n" + LOCALHOST, 404),
        (b"GET //etc/passwd HTTP/1.1\r\n" + LOCALHOST, 404),
        (b"GET /page.html HTTP/1.1\r\n" + LOCALHOST, 404),
        (b"GET http://localhost/ HTTP/1.1\r\n" + LOCALHOST, 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + LOCALHOST, 400),
        (b"GET / HTTP/2.0\r\n" + LOCALHOST, 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\n" + LOCALHOST, 431),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + LOCALHOST, 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS
        (bytes(range(256)) * 40, 431),
        (b"\r\n\r\n", 400),
        (b"", 0),
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1.evil.example:80\r\n\r\n", 421),
        (b"GET / HTTP/1.1\r\nHost: 192.168.1.7\r\n\r\n", 421),
        (b"GET / HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n", 421),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1:9000\r\n\r\n", 200),  # through a tunnel
        (b"GET / HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: LOCALHOST:8080\r\n\r\n", 200),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_every_request_is_answered_or_refused(
    edge: EdgeServer, request_bytes: bytes, expected: int
) -> None:
    status, head, body = ask(edge, request_bytes)
    assert status == expected
    if request_bytes.startswith(b"HEAD"):
        assert body == b""
        assert re.search(rb"Content-Length: [1-9]\d+\r\n", head)
    if expected == 405:
        assert b"Allow: GET, HEAD" in head
    if expected:
        assert b"X-Content-Type-Options: nosniff" in head
    assert ask(edge, b"GET /readyz HTTP/1.1\r\n" + LOCALHOST)[0] == 200


def test_one_byte_at_a_time_holds_no_place_for_long(
    edge: EdgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_server, "_SECONDS", 0.5)
    with connect(edge) as connection:
        for byte in b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 1000:
            try:
                connection.sendall(bytes([byte]))
            except OSError:  # the other side has ended the connection
                return
            time.sleep(0.02)
    raise AssertionError("the connection was never ended")


def test_many_idle_connections_keep_neither_the_page_nor_the_daemon(
    edge: EdgeServer, tiny_bundle: Bundle, frames: Frames
) -> None:
    expected = in_one_process(tiny_bundle, frames[0])
    with ExitStack() as opened, device_of(edge, tiny_bundle) as device:
        idle = [opened.enter_context(connect(edge)) for _ in range(100)]
        for each in idle[::2]:
            with suppress(OSError):  # it had to make room already
                each.sendall(b"GET / HT")
        assert get(edge.page + "healthz") == (200, "ok\n")
        for _ in range(5):
            np.testing.assert_array_equal(device.infer(frames[0]), expected)
        assert len(edge._page._open) <= 32  # type: ignore[union-attr]
        # Those that had to make room were ended.
        assert read_all(idle[0]) == b""


def test_one_who_does_not_read_is_dropped(
    edge: EdgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_server, "_SECONDS", 0.3)
    large = page_server.Response(edge._page._page.status, "text/plain", bytes(32 << 20))  # type: ignore[union-attr]
    monkeypatch.setattr(edge._page, "_page", large)
    with connect(edge) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n" + LOCALHOST)
        until = time.monotonic() + LONG
        while edge._page._open:  # type: ignore[union-attr]
            assert time.monotonic() < until
            time.sleep(0.02)
    assert get(edge.page + "healthz")[0] == 200


def test_a_request_that_fails_inside_is_told_and_logged(
    edge: EdgeServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(edge._page, "_read", broken)
    assert get(edge.page)[0] == 500
    assert "planted" in caplog.text
    monkeypatch.undo()
    assert get(edge.page)[0] == 200


@needs_ipv6
def test_loopback_is_both_of_ipv4_and_ipv6(edge: EdgeServer) -> None:
    for host in ("127.0.0.1", "[::1]", "localhost"):
        assert get(f"http://{host}:{port_of(edge)}/readyz") == (200, "ok\n")


@needs_ipv6
@pytest.mark.parametrize("page", ["[::1]:*", "[::]:*", "0.0.0.0:*", "127.0.0.1:*", "localhost:0"])
def test_explicit_hosts(tiny_bundle: Bundle, page: str, caplog: pytest.LogCaptureFixture) -> None:
    with EdgeServer(tiny_bundle, LOCAL, page=page) as edge:
        network = page.startswith(("[::]", "0.0.0.0"))
        assert ("can read the page" in caplog.text) == network
        host = "[::1]" if page == "[::1]:*" else "127.0.0.1"
        assert get(f"http://{host}:{port_of(edge)}/healthz") == (200, "ok\n")


def test_a_network_s_page_is_asked_for_by_address_or_its_own_name() -> None:
    local, wide = PageAddress.parse(":8080"), PageAddress.parse("edge-box.plant:8080")
    assert [local.allows(host) for host in ("10.0.0.7", "edge-box.plant", "localhost.")] == [
        False,
        False,
        True,
    ]
    for host in ("10.0.0.7:8080", "[fe80::1]", "edge-box.plant", "EDGE-BOX.plant:80", "localhost"):
        assert wide.allows(host)
    for host in ("edge-box.plant.evil.example", "evil.example", "", "a b", "x:y:z"):
        assert not wide.allows(host)


@pytest.mark.parametrize(
    "text", ["8080", "", ":", ":99999", "http://x:80", "a b:80", "::1:80", "[x]:80", ":80/", "x:"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an address such as :8080"):
        EdgeServer(page=text)


@pytest.mark.usefixtures("leaves_no_thread")
def test_a_port_that_is_taken_is_an_error_and_nothing_is_left(tiny_bundle: Bundle) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        edge = EdgeServer(tiny_bundle, LOCAL, page=f":{port}")
        with pytest.raises(OffloadError, match=f"cannot listen on 127.0.0.1:{port} for the page"):
            edge.start()
    again = EdgeServer(tiny_bundle, f"tcp://127.0.0.1:{port}", page=":*")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(OffloadError, match="cannot listen on tcp"):
            again.start()


@pytest.mark.usefixtures("leaves_no_thread")
def test_a_daemon_without_a_bundle_lives_and_is_not_ready() -> None:
    with EdgeServer(bind=LOCAL, page=":*") as without:
        assert get(without.page + "healthz") == (200, "ok\n")
        assert get(without.page + "readyz") == (503, "no bundle is loaded\n")


def test_readiness_and_liveness_say_what_is_wrong(
    edge: EdgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert get(edge.page + "readyz") == (200, "ok\n")
    gate = threading.Event()
    monkeypatch.setattr(edge_status, "_SILENCE", 1.5)
    monkeypatch.setattr(edge._loop, "step", lambda until: gate.wait() and None)  # it is stuck
    until = time.monotonic() + LONG
    try:
        while get(edge.page + "healthz")[0] == 200:
            assert time.monotonic() < until
            time.sleep(0.1)
        for path in ("healthz", "readyz"):
            code, text = get(edge.page + path)
            assert code == 503
            assert text.startswith("no message was looked for since ")
        assert not edge.alive
    finally:
        monkeypatch.undo()
        gate.set()
    while get(edge.page + "healthz")[0] != 200:
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.usefixtures("leaves_no_thread")
def test_a_daemon_whose_slice_does_not_end_is_not_ready(
    tiny_bundle: Bundle, frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, finish = threading.Event(), EdgeSide.finish
    monkeypatch.setattr(edge_status, "_LONGEST_RUN", 0.5)
    monkeypatch.setattr(EdgeSide, "finish", lambda *these: gate.wait() and finish(*these))
    with (
        EdgeServer(tiny_bundle, LOCAL, page=":*", workers=2) as edge,
        device_of(edge, tiny_bundle) as device,
    ):
        try:
            futures = [device.submit(frames[0])]
            time.sleep(1.0)
            assert get(edge.page + "readyz") == (200, "ok\n")  # the other worker is free
            futures.append(device.submit(frames[0]))
            until = time.monotonic() + LONG
            while (answer := get(edge.page + "readyz"))[0] == 200:
                assert time.monotonic() < until
                time.sleep(0.05)
            assert answer[0] == 503
            assert answer[1].startswith("no worker has ended a run of a slice for ")
            assert get(edge.page + "healthz")[0] == 200
        finally:
            gate.set()
        for future in futures:
            future.result(LONG)
        assert get(edge.page + "readyz") == (200, "ok\n")


@pytest.mark.usefixtures("leaves_no_thread")
def test_a_daemon_that_stops_is_not_ready(tiny_bundle: Bundle) -> None:
    with EdgeServer(tiny_bundle, LOCAL, page=":*") as edge:
        edge.stop()
        assert get(edge.page + "readyz") == (503, "it is stopping\n")
        assert get(edge.page + "healthz")[0] == 200
    with pytest.raises(OSError, match="refused"):
        get(edge.page)


def test_without_prometheus_client_the_page_says_what_to_install(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "scissionlite.offloader.edge.prometheus", raising=False)
    with EdgeServer(tiny_bundle, LOCAL, page=":*") as edge:
        code, text = get(edge.page + "metrics")
        assert code == 501
        assert "pip install 'scissionlite[monitor]'" in text
        assert get(edge.page)[0] == 200
