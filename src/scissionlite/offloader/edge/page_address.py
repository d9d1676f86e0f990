"""Where the daemon's page listens, and by which names browsers may ask for it."""

from __future__ import annotations

import contextlib
import ipaddress
import platform
import re
import socket
from typing import NamedTuple

from scissionlite.errors import OffloadError

_LOOPBACK = ("127.0.0.1", "::1")
_BACKLOG = 128  # connections that wait in the kernel; more have to try again


class PageAddress(NamedTuple):
    """An address to listen on: ``host:port``; without a host, loopback.

    ``host`` is empty for loopback. ``port`` 0 is any free one.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> PageAddress:
        """Read ``:8080``, ``127.0.0.1:8080``, ``[::1]:8080`` or ``host:8080``; port ``*`` is 0.

        Raises
        ------
        ValueError
            If it is none of them.
        """
        match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+(?:%\w+)?)\]|([^\s:/\[\]]*)):(\d{1,5}|\*)", text)
        if match is None or (match[3] != "*" and int(match[3]) > 65535):
            raise ValueError(
                f"not an address such as :8080 (this machine only), 0.0.0.0:8080 or [::]:8080: "
                f"{text!r}"
            )
        host = match[1] or match[2] or ""
        port = 0 if match[3] == "*" else int(match[3])
        return cls("" if host == "localhost" else host, port)

    def listen(self) -> list[socket.socket]:
        """Open the listening sockets: on loopback one for IPv4 and one for IPv6, if there is IPv6.

        Raises
        ------
        OffloadError
            If the address cannot be listened on.
        """
        sockets: list[socket.socket] = []
        port = self.port
        for host in _LOOPBACK if self.host == "" else (self.host,):
            try:
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                for family, _, _, _, address in found[:1] if port == 0 else found:
                    sockets.append(_open(family, address))
            except OSError as error:
                if host == "::1":
                    continue  # no IPv6 here, or the port is somebody's: IPv4 is enough
                for each in sockets:
                    each.close()
                raise OffloadError(
                    f"cannot listen on {host}:{port} for the page: {error}"
                ) from error
            port = sockets[0].getsockname()[1]
        return sockets

    def allows(self, host: str) -> bool:
        """Whether a browser may ask with this Host header.

        A web page of somebody else can make its own name resolve to this machine (DNS rebinding),
        and would then read the daemon's page. So a name must be one of this machine's. An IP
        address cannot be rebound.
        """
        match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:]+))(?::\d{1,5})?", host)
        if match is None:
            return False
        name = (match[1] or match[2]).lower().rstrip(".")
        with contextlib.suppress(ValueError):
            address = ipaddress.ip_address(name)
            return self.host != "" or address.is_loopback
        own = platform.node().lower()
        return name == "localhost" or (
            self.host != "" and name in (self.host.lower(), own, f"{own}.local")
        )


def _open(family: int, address: tuple[object, ...]) -> socket.socket:
    each = socket.socket(family, socket.SOCK_STREAM)
    try:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # "::" is every address, as in `serve --bind`; another one is IPv6 anyway.
            each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::"))
        each.setblocking(False)
        each.bind(address)
        each.listen(_BACKLOG)
    except BaseException:
        each.close()
        raise
    return each
