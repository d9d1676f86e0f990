"""Addresses of an edge daemon: IPv4, IPv6, names that have both, and what is said of wrong ones.

Time-outs here only guard against hangs; no outcome depends on how fast the machine is.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from peers import LONG, Frames, in_one_process

from scissionlite.bundle import Bundle
from scissionlite.errors import EdgeUnavailableError, OffloadError
from scissionlite.offloader import Device, EdgeServer, Timeouts
from scissionlite.offloader.device.edge_client import EdgeClient
from scissionlite.offloader.wire.endpoints import (
    Endpoints,
    check_endpoint,
    control_endpoint,
    is_local,
)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as attempt:
            attempt.bind(("::1", 0))
    except OSError:
        return False
    return True


pytestmark = [
    pytest.mark.usefixtures("no_threads_left"),
    pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback"),
]


def both_families_of_localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the name localhost mean both loopback addresses, whatever this machine's files say."""
    looked_up = socket.getaddrinfo

    def look_up(host: str, *more: object, **named: object) -> object:
        if host != "localhost":
            return looked_up(host, *more, **named)  # type: ignore[arg-type]  # passed on
        families = ((socket.AF_INET6, ("::1", 0, 0, 0)), (socket.AF_INET, ("127.0.0.1", 0)))
        return [(family, socket.SOCK_STREAM, 6, "", address) for family, address in families]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.mark.parametrize(
    ("bind", "hosts"),
    [
        ("tcp://[::1]:*", ["[::1]"]),
        ("tcp://[::]:*", ["[::1]", "127.0.0.1", "localhost"]),
        ("tcp://127.0.0.1:*", ["127.0.0.1", "localhost"]),
        ("tcp://0.0.0.0:*", ["127.0.0.1", "localhost"]),
        ("tcp://localhost:*", ["127.0.0.1", "[::1]", "localhost"]),
    ],
)
def test_each_family_of_addresses_on_both_sides(
    tiny_bundle: Bundle,
    frames: Frames,
    monkeypatch: pytest.MonkeyPatch,
    bind: str,
    hosts: list[str],
) -> None:
    both_families_of_localhost(monkeypatch)
    expected = in_one_process(tiny_bundle, frames[0])
    with EdgeServer(tiny_bundle, bind, insecure=True) as edge:
        ports = [each.rpartition(":")[2] for each in (edge.endpoint, edge.control_endpoint)]
        for host in hosts:
            tensors, control = (f"tcp://{host}:{port}" for port in ports)
            with Device(tiny_bundle, tensors, control=control, deadline=LONG) as device:
                np.testing.assert_array_equal(device.infer(frames[0]), expected)
            with EdgeClient(tensors, control, Timeouts(answer=LONG)) as client:
                assert client.edge


BOTH_FAMILIES = """
import sys
import numpy as np
from scissionlite.offloader import Device, EdgeServer
x = np.zeros((32, 32, 3), np.uint8)
for bind in ("tcp://[::1]:*", "tcp://127.0.0.1:*"):
    with EdgeServer(sys.argv[1], bind) as edge:
        ports = [each.rpartition(":")[2] for each in (edge.endpoint, edge.control_endpoint)]
        tensors, control = (f"tcp://both:{port}" for port in ports)
        with Device(sys.argv[1], tensors, control=control, deadline=30) as device:
            print(device.submit(x).result().where)
"""


def test_a_device_finds_the_family_of_a_name_that_the_edge_listens_on(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 both\n::1 both\n")
    # In a file system of its own, because libzmq looks names up by itself.
    in_own_files = ["unshare", "--mount", "sh", "-c", 'mount --bind "$1" /etc/hosts; shift; "$@"']
    if subprocess.run([*in_own_files, "-", hosts, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here")
    done = subprocess.run(
        [*in_own_files, "-", hosts, sys.executable, "-c", BOTH_FAMILIES, tiny_bundle.path],
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert (done.returncode, done.stdout) == (0, "edge\nedge\n"), done.stderr


def test_a_name_without_a_daemon_is_told_with_its_name(tiny_bundle: Bundle, frames: Frames) -> None:
    with (
        Device(tiny_bundle, "tcp://localhost:9", deadline=1.0) as device,
        pytest.raises(EdgeUnavailableError, match=r"connection refused at tcp://localhost:(9|10)"),
    ):
        device.infer(frames[0])


@pytest.mark.parametrize("bind", ["tcp://no-such-host.invalid:*", "tcp://[2001:db8::1]:*"])
def test_an_address_that_is_not_this_machines_is_told(bind: str) -> None:
    said = "cannot listen on " + re.escape(bind) + ": this machine has no such address"
    with pytest.raises(OffloadError, match=said):
        EdgeServer(None, bind, insecure=True).start()


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("tcp://::1:5555", "an IPv6 address stands in brackets"),
        ("tcp://fe80::1%eth0:5555", "an IPv6 address stands in brackets"),
        ("tcp://[localhost]:5555", r"\[localhost\] is not an IPv6 address"),
        ("tcp://[127.0.0.1]:5555", "is not an IPv6 address"),
        ("tcp://[::1]", "not an endpoint"),
        ("tcp://[::1]:", "not an endpoint"),
        ("tcp://:5555", "not an endpoint"),
    ],
)
def test_a_wrong_endpoint_is_told(endpoint: str, said: str) -> None:
    for check in (check_endpoint, control_endpoint, lambda e: Endpoints.to_connect(e, None)):
        with pytest.raises(ValueError, match=said):
            check(endpoint)


def test_endpoints_of_ipv6() -> None:
    assert control_endpoint("tcp://[::1]:5555") == "tcp://[::1]:5556"
    assert control_endpoint("tcp://[::]:*") == "tcp://[::]:*"
    assert check_endpoint("tcp://[fe80::1%eth0]:5555") == "tcp://[fe80::1%eth0]:5555"
    assert is_local("tcp://[::1]:5555")
    assert not is_local("tcp://[::]:5555")
    assert not is_local("tcp://[2001:db8::1]:5555")
