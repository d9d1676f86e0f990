"""The HTTP server of an edge daemon: its page, Prometheus' metrics, liveness and readiness.

It only reads the daemon's record, in a thread of its own, and its peers are untrusted: requests are
GET or HEAD, of bounded size, within a time-out, of a bounded number of connections at a bounded
rate. There is one request in a connection. So nothing here can hold much memory, or much of the
processor, whatever arrives.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import re
import socket
import threading
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from scissionlite.offloader.edge.history import INTERVAL, History
from scissionlite.offloader.edge.metrics import Metrics
from scissionlite.offloader.edge.page_address import PageAddress
from scissionlite.offloader.edge.status import liveness_trouble, make_status, readiness_trouble
from scissionlite.offloader.wire.endpoints import is_local

if TYPE_CHECKING:
    from scissionlite.offloader.edge.prometheus import Exporter

logger = logging.getLogger(__name__)

_MAX_HEAD = 8192  # bytes of a request's line and headers
_MAX_CONNECTIONS = 32  # at once; the one open longest makes room
_SECONDS = 5.0  # for a connection, from its start to its end
_ACCEPT_PAUSE = 0.01  # seconds between two connections: at most 100 a second


class Response(NamedTuple):
    """The answer to a request."""

    status: HTTPStatus
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class PageServer:
    """Answer HTTP requests about a daemon, in a thread of its own, until :meth:`close`.

    Parameters
    ----------
    metrics
        The daemon's record.
    address
        Where to listen.
    name
        The daemon's name.
    encrypted
        Whether its links are encrypted.

    Attributes
    ----------
    url : str
        The page's address for a browser.

    Raises
    ------
    OffloadError
        If the address cannot be listened on.
    """

    def __init__(
        self, metrics: Metrics, address: PageAddress, *, name: str, encrypted: bool
    ) -> None:
        self._metrics = metrics
        self._address = address
        self._name = name
        self._encrypted = encrypted
        self._history = History(metrics)
        self._exporter = _exporter(metrics)
        self._page = _page()
        self._open: dict[asyncio.Task[None], None] = {}  # the one open longest first
        self._listeners = address.listen()
        host, port = self._listeners[0].getsockname()[:2]
        self.url = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="scissionlite-page", daemon=True)
        self._thread.start()
        if address.host and not is_local(f"tcp://{address.host}:0"):
            logger.warning("whoever reaches %s can read the page", self.url)

    def close(self) -> None:
        """Stop listening, and wait for the thread's end; may be called again."""
        self.stop()
        self._thread.join()

    def stop(self) -> None:
        """Close, without waiting: finalizers may call it."""
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        tasks = [self._loop.create_task(self._sample())]
        tasks += [self._loop.create_task(self._accept(each)) for each in self._listeners]
        try:
            self._loop.run_forever()
        finally:
            for task in (*tasks, *self._open):
                task.cancel()
            self._loop.run_until_complete(
                asyncio.gather(*tasks, *self._open, return_exceptions=True)
            )
            for listener in self._listeners:
                listener.close()
            self._loop.close()

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            self._history.sample()

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = await self._loop.sock_accept(listener)
            except OSError:  # no descriptor is free, or the peer has gone
                await asyncio.sleep(1.0)
                continue
            if len(self._open) >= _MAX_CONNECTIONS:
                next(iter(self._open)).cancel()
            task = self._loop.create_task(self._talk(connection))
            self._open[task] = None
            task.add_done_callback(self._open.pop)
            await asyncio.sleep(_ACCEPT_PAUSE)

    async def _talk(self, connection: socket.socket) -> None:
        """Answer the request of a connection, and close it."""
        try:
            reader, writer = await asyncio.open_connection(sock=connection, limit=_MAX_HEAD)
        except OSError:
            connection.close()
            return
        try:
            # So that what is written has left the process before the connection is closed.
            writer.transport.set_write_buffer_limits(high=0)
            await asyncio.wait_for(self._answer(reader, writer), _SECONDS)
            writer.close()
        except (OSError, asyncio.TimeoutError):
            pass
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method = "GET"
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            method = head.partition(" ")[0]
            response = self._respond(head)
        except asyncio.IncompleteReadError as error:
            if not error.partial:
                return
            response = _text(HTTPStatus.BAD_REQUEST, "the request ends too early")
        except asyncio.LimitOverrunError:
            response = _text(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"at most {_MAX_HEAD} bytes"
            )
        except Exception:
            logger.exception("a request of the page failed")
            response = _text(HTTPStatus.INTERNAL_SERVER_ERROR, "it failed; the log says why")
        writer.write(_encode(response, with_body=method != "HEAD"))
        await writer.drain()
        # What the peer still sends is not read: give it the time to read the answer.
        writer.write_eof()
        with contextlib.suppress(OSError):
            await asyncio.wait_for(reader.read(_MAX_HEAD), 0.05)

    def _respond(self, head: str) -> Response:
        lines = head.split("\r\n")
        match = re.fullmatch(r"([A-Z]{1,16}) (/[!-~]*) HTTP/1\.([01])", lines[0])
        if match is None:
            return _text(HTTPStatus.BAD_REQUEST, "not a request of HTTP/1.1")
        method, target, minor = match.groups()
        headers: dict[str, list[str]] = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers.setdefault(name.lower(), []).append(value.strip())
        hosts = headers.get("host", [])
        if len(hosts) > 1 or (not hosts and minor == "1"):
            return _text(HTTPStatus.BAD_REQUEST, "one Host header is needed")
        if hosts and not self._address.allows(hosts[0]):
            reason = "ask by an IP address, by localhost, or by the host that --page names"
            return _text(HTTPStatus.MISDIRECTED_REQUEST, reason)
        if method not in ("GET", "HEAD"):
            allow = (("Allow", "GET, HEAD"),)
            return _text(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD", allow)
        return self._read(target, ",".join(headers.get("accept", [])))

    def _read(self, target: str, accept: str) -> Response:
        path, _, query = target.partition("?")
        if path == "/":
            return self._page
        if path == "/status.json":
            since = re.fullmatch(r"since=(\d{1,12}(?:\.\d{1,9})?)", query)
            status = make_status(
                self._metrics,
                self._history,
                name=self._name,
                encrypted=self._encrypted,
                since=float(since[1]) if since else 0.0,
            )
            return Response(HTTPStatus.OK, "application/json", msgspec.json.encode(status))
        if path == "/metrics":
            if self._exporter is None:
                reason = "metrics need prometheus-client: pip install 'scissionlite[monitor]'"
                return _text(HTTPStatus.NOT_IMPLEMENTED, reason)
            return Response(HTTPStatus.OK, *self._exporter.write(accept))
        if path == "/healthz":
            return _health(liveness_trouble(self._metrics))
        if path == "/readyz":
            return _health(readiness_trouble(self._metrics))
        known = "/, /status.json, /metrics, /healthz, /readyz"
        return _text(HTTPStatus.NOT_FOUND, f"there are {known}")


def _exporter(metrics: Metrics) -> Exporter | None:
    try:
        from scissionlite.offloader.edge.prometheus import Exporter
    except ImportError:
        return None
    return Exporter(metrics)


def _health(trouble: str) -> Response:
    if trouble:
        return _text(HTTPStatus.SERVICE_UNAVAILABLE, trouble)
    return _text(HTTPStatus.OK, "ok")


def _text(status: HTTPStatus, text: str, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    return Response(status, "text/plain; charset=utf-8", f"{text}\n".encode(), headers)


def _page() -> Response:
    """The page, which runs its own script and style only, and asks this server only."""
    html = Path(__file__).with_name("page.html").read_bytes()
    policy = ["default-src 'none'", "connect-src 'self'", "img-src data:", "base-uri 'none'"]
    policy += ["form-action 'none'", "frame-ancestors 'none'"]
    for tag in (b"script", b"style"):
        (inside,) = re.findall(b"<%s>(.*?)</%s>" % (tag, tag), html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside).digest()).decode()
        policy.append(f"{tag.decode()}-src 'sha256-{digest}'")
    headers = (("Content-Security-Policy", "; ".join(policy)),)
    return Response(HTTPStatus.OK, "text/html; charset=utf-8", html, headers)


def _encode(response: Response, *, with_body: bool) -> bytes:
    lines = [
        f"HTTP/1.1 {response.status.value} {response.status.phrase}",
        f"Content-Type: {response.content_type}",
        f"Content-Length: {len(response.body)}",
        "Connection: close",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Cross-Origin-Resource-Policy: same-origin",
        "Referrer-Policy: no-referrer",
        *(f"{name}: {value}" for name, value in response.headers),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + (response.body if with_body else b"")
