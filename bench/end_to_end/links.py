"""Links with real rate limits: a network namespace with a token bucket, or a relay alone.

Where this process may (root, with ``ip`` and ``tc``), the device runs in a network namespace of its
own. A veth pair joins it to the edge's, and a token bucket (tbf) on each end limits the rate, so
that the kernel's TCP meets a real bottleneck. Behind it stands the relay of the demo
(:mod:`scissionlite.demo.link_emulator`), which makes the delay. It has the same rate: a bucket lets
its first two packets pass at once, which at 1 Mbit/s would give small requests 25 ms for nothing.
Elsewhere the relay alone makes rate and delay. Each cell's record says which it was.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal, NamedTuple

import scissionlite as sl
from bench.end_to_end.machine import on_core
from scissionlite.demo.processes import daemon

LINKS = {
    "0.25 Mbit/s, 200 ms": sl.Link(0.200, 0.25e6),
    "1 Mbit/s, 100 ms": sl.Link(0.100, 1e6),
    "5 Mbit/s, 60 ms": sl.Link(0.060, 5e6),
    "20 Mbit/s, 40 ms": sl.Link(0.040, 20e6),
    "58.8 Mbit/s, 27.4 ms": sl.Link(0.0274, 58.8e6),
    "200 Mbit/s, 5 ms": sl.Link(0.005, 200e6),
}
"""The links: narrow-band radio, 3G, a busy 4G cell, Wi-Fi at its edge, the paper's, good Wi-Fi."""

BUSY_UPLINK = {"4 Mbit/s, 60 ms": sl.Link(0.060, 4e6)}
"""Where a slow device meets JPEG (:data:`.tasks.IMAGE_NETWORKS`)."""

LinkKind = Literal["namespace", "relay"]

_NAMESPACE, _OUTER, _INNER = "scissionlite-e2e", "sle2e0", "sle2e1"
_HOST, _DEVICE = "10.213.77.1", "10.213.77.2"
_HEADERS = 1514 / 1448
"""Bytes on the wire for each byte of payload: Ethernet, IP and TCP with time stamps."""


class Behind(NamedTuple):
    """Ports as the device sees them, and the command that runs the device where it sees them."""

    host: str
    ports: Sequence[int]
    within: Sequence[str]


def best_kind() -> LinkKind:
    """The most realistic kind of link that this process may make."""
    allowed = os.geteuid() == 0 and shutil.which("ip") and shutil.which("tc")
    if not allowed:
        return "relay"
    try:
        with _namespace(1e6):
            return "namespace"
    except subprocess.CalledProcessError:
        return "relay"


@contextmanager
def linked(link: sl.Link, ports: Sequence[int], kind: LinkKind) -> Iterator[Behind]:
    """Put a link before some ports of this host."""
    forwards = [option for port in ports for option in ("--forward", f"0:127.0.0.1:{port}")]
    command = ["-m", "scissionlite.demo.link_emulator", *forwards, "--rtt", str(link.rtt)]
    with ExitStack() as stack:
        host, within = "127.0.0.1", on_core(0)
        if kind == "namespace":
            stack.enter_context(_namespace(link.bandwidth))
            host = _HOST
            within = ["ip", "netns", "exec", _NAMESPACE, *within]
        command += ["--listen", host, "--bandwidth", str(link.bandwidth)]
        relay = stack.enter_context(daemon(command, on_core(1)))
        yield Behind(host, relay["ports"], within)


@contextmanager
def _namespace(bandwidth: float) -> Iterator[None]:
    """A namespace that a veth pair joins to this one, at a rate of payload in each direction."""
    _remove()
    inside = f"ip netns exec {_NAMESPACE}"
    wire_rate = round(bandwidth * _HEADERS)
    burst = max(3200, round(wire_rate / 8 * 0.001))  # two packets, or a millisecond
    bucket = f"root tbf rate {wire_rate}bit burst {burst} limit {max(300_000, 4 * burst)}"
    try:
        for command in (
            f"ip netns add {_NAMESPACE}",
            f"ip link add {_OUTER} type veth peer name {_INNER} netns {_NAMESPACE}",
            f"ip addr add {_HOST}/30 dev {_OUTER}",
            f"ip link set {_OUTER} up",
            f"{inside} ip addr add {_DEVICE}/30 dev {_INNER}",
            f"{inside} ip link set {_INNER} up",
            f"{inside} ip link set lo up",
            f"tc qdisc add dev {_OUTER} {bucket}",
            f"{inside} tc qdisc add dev {_INNER} {bucket}",
        ):
            subprocess.run(command.split(), check=True, capture_output=True)
        yield
    finally:
        _remove()


def _remove() -> None:
    """Remove what an earlier run left behind."""
    for command in (f"ip link del {_OUTER}", f"ip netns del {_NAMESPACE}"):
        subprocess.run(command.split(), check=False, capture_output=True)
