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
        if port in ("*", "0"):
            return f"{host}:*"
        if int(port) < 65535:
            return f"{host}:{int(port) + 1}"
    elif tensors.startswith("ipc://") and len(tensors) > len("ipc://"):
        return f"{tensors}.control"
    raise ValueError(f"not an endpoint such as tcp://host:5555 or ipc://path: {tensors!r}")


def is_local(endpoint: str) -> bool:
    """Whether only programs of this machine can reach an endpoint: ipc, or a loopback address."""
    import ipaddress  # a device does not need it

    if not endpoint.startswith("tcp://"):
        return True
    host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
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
    if endpoint.startswith("ipc://") or (match and 0 < int(match[1]) < 65536):
        return endpoint
    raise ValueError(f"not an endpoint such as tcp://host:5555 or ipc://path: {endpoint!r}")
