"""The two endpoints of an edge daemon: ``tcp://host:port`` or ``ipc://path``."""

from __future__ import annotations

import re

import msgspec


class Endpoints(msgspec.Struct, frozen=True):
    """Tensor endpoint and control endpoint of one daemon."""

    tensors: str
    control: str

    @classmethod
    def to_bind(cls, tensors: str, control: str | None) -> Endpoints:
        """Endpoints to listen on; ``control`` is the next port if None.

        Raises
        ------
        ValueError
            If ``control`` is None and does not follow from ``tensors``.
        """
        return cls(tensors, control_endpoint(tensors) if control is None else control)

    @classmethod
    def to_connect(cls, tensors: str, control: str | None) -> Endpoints:
        """Endpoints to connect to; ``control`` is the next port if None.

        Raises
        ------
        ValueError
            If one of them cannot be connected to.
        """
        both = cls.to_bind(tensors, control)
        return cls(check_endpoint(both.tensors), check_endpoint(both.control))


def control_endpoint(tensors: str) -> str:
    """Derive a daemon's control endpoint from its tensor endpoint.

    ``tcp://host:port`` gives the next port, a wildcard port (``*`` or ``0``) a wildcard, and
    ``ipc://path`` gives ``ipc://path.control``.

    Raises
    ------
    ValueError
        If the endpoint is neither.
    """
    if match := re.fullmatch(r"(tcp://.+):(\d+|\*)", tensors):
        host, port = match.groups()
        check_host(tensors)
        if port in ("*", "0"):
            return f"{host}:*"
        if int(port) < 65535:
            return f"{host}:{int(port) + 1}"
    elif tensors.startswith("ipc://") and len(tensors) > len("ipc://"):
        return f"{tensors}.control"
    raise ValueError(f"not an endpoint such as tcp://host:5555 or ipc://path: {tensors!r}")


def host_of(endpoint: str) -> str:
    """Return the host of a ``tcp://`` endpoint, without brackets; of another one, nothing."""
    if not endpoint.startswith("tcp://"):
        return ""
    return endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")


def is_ipv6(host: str) -> bool:
    """Whether a host is an IPv6 address."""
    import socket  # a device without an edge does not need it

    try:
        socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except OSError:
        return False
    return True


def is_name(host: str) -> bool:
    """Whether a host is a name (or a network interface), not an address and not ``*``."""
    return re.fullmatch(r"[0-9.]*|\*|.*:.*", host) is None


def check_host(endpoint: str) -> None:
    """Check how the host of a ``tcp://`` endpoint is written.

    Raises
    ------
    ValueError
        If it has colons and is no IPv6 address in brackets.
    """
    bracketed = endpoint.startswith("tcp://[")
    host = host_of(endpoint)
    if bracketed and not is_ipv6(host):
        raise ValueError(f"[{host}] is not an IPv6 address: {endpoint!r}")
    if not bracketed and ":" in host:
        raise ValueError(
            f"an IPv6 address stands in brackets, as in tcp://[::1]:5555: {endpoint!r}"
        )


def is_local(endpoint: str) -> bool:
    """Whether only programs of this machine can reach an endpoint: ipc, or a loopback address."""
    import ipaddress  # a device does not need it

    if not endpoint.startswith("tcp://"):
        return True
    host = host_of(endpoint)
    try:
        return host == "localhost" or ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False  # a name, or an interface: it may be on a network


def check_endpoint(endpoint: str) -> str:
    """Return an endpoint that can be connected to: ``tcp://host:port`` or ``ipc://path``.

    Raises
    ------
    ValueError
        If it is not one.
    """
    match = re.fullmatch(r"tcp://.+:(\d+)", endpoint)
    if match:
        check_host(endpoint)
    if endpoint.startswith("ipc://") or (match and 0 < int(match[1]) < 65536):
        return endpoint
    raise ValueError(f"not an endpoint such as tcp://host:5555 or ipc://path: {endpoint!r}")
