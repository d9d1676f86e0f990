"""The daemon as a service of systemd: what it tells systemd, and its unit file."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest
from peers import LOCAL, LONG

from scissionlite.bundle import Bundle
from scissionlite.cli.run.pipeline import Pipeline
from scissionlite.cli.run.sources import Picture
from scissionlite.cli.systemd import notify, unit_file, watchdog
from scissionlite.errors import ImageError
from scissionlite.offloader import Device

ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(
    ANALYZE is None, reason="there is no systemd-analyze: apt install systemd"
)


class OnePicture:
    """A source of one picture."""

    dropped = 0

    def __init__(self, picture: Picture) -> None:
        self._picture = picture

    def pictures(self) -> Iterator[Picture]:
        yield self._picture

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


DOCUMENT = Path(__file__).parents[1] / "docs" / "daemon.md"


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A socket as systemd's, which the environment names."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as each:
        each.bind(f"{tmp_path}/notify")
        each.settimeout(LONG)
        monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/notify")
        yield each


def test_run_tells_systemd_of_its_life(
    onnx_bundle: Bundle, systemd: socket.socket, tmp_path: Path
) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "scissionlite", "run", onnx_bundle.path),
            *("--watch", inbox, "--fallback", "local"),
        ],
        env={**os.environ, "WATCHDOG_USEC": "300000"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert systemd.recv(4096) == b"READY=1"
        for _ in range(3):
            assert systemd.recv(4096) == b"WATCHDOG=1"
        process.send_signal(signal.SIGTERM)
        while (message := systemd.recv(4096)) == b"WATCHDOG=1":
            pass
        assert message == b"STOPPING=1"
        assert process.wait(LONG) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()


def test_a_picture_that_gets_no_row_is_seen() -> None:
    entered, stuck = threading.Event(), threading.Event()

    def write(row: object) -> None:
        entered.set()
        stuck.wait(LONG)

    source = OnePicture(Picture("one.png", None, ImageError("no picture")))
    pipeline = Pipeline(source, cast(Device, None), write, in_flight=1)
    assert pipeline.seconds_at_one == 0
    pipeline.start()
    assert entered.wait(LONG)
    first = pipeline.seconds_at_one
    time.sleep(0.01)
    assert pipeline.seconds_at_one > first
    stuck.set()
    assert pipeline.wait(LONG)
    assert pipeline.seconds_at_one == 0


def test_serve_tells_systemd_of_its_life(systemd: socket.socket) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "scissionlite", "serve", "--bind", LOCAL],
        env={**os.environ, "WATCHDOG_USEC": "300000"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        ready = systemd.recv(4096).decode().splitlines()
        assert ready[0] == "READY=1"
        assert re.fullmatch(r"STATUS=Serving on tcp://127\.0\.0\.1:\d+", ready[1])
        for _ in range(3):
            assert systemd.recv(4096) == b"WATCHDOG=1"
        process.send_signal(signal.SIGHUP)
        while (message := systemd.recv(4096)) == b"WATCHDOG=1":
            pass
        assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", message)
        assert systemd.recv(4096) == b"READY=1"
        process.send_signal(signal.SIGTERM)
        while (message := systemd.recv(4096)) == b"WATCHDOG=1":
            pass
        assert message == b"STOPPING=1"
        assert process.wait(LONG) == 0
    finally:
        process.kill()
        process.wait()


def test_the_watchdog_is_told_only_while_the_daemon_lives(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    alive = threading.Event()
    alive.set()
    with watchdog(alive.is_set):
        assert systemd.recv(4096) == b"WATCHDOG=1"
        alive.clear()
        time.sleep(0.1)
        systemd.setblocking(False)
        with suppress(BlockingIOError):  # those that were told before
            while systemd.recv(4096):
                pass
        time.sleep(0.1)
        with pytest.raises(BlockingIOError):
            systemd.recv(4096)
    alive.set()
    for other in ("1", "x"):  # a process that is not this one
        monkeypatch.setenv("WATCHDOG_PID", other)
        with watchdog(alive.is_set):
            time.sleep(0.1)
        with pytest.raises(BlockingIOError):
            systemd.recv(4096)


def test_without_systemd_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("", "/no/such/socket", "nonsense"):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify("READY=1")


def test_an_abstract_socket_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"scissionlite-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as each:
        each.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        notify("READY=1")
        assert each.recv(100) == b"READY=1"


def printed_unit(*options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "scissionlite", "serve", "--print-unit", *options],
        capture_output=True,
        text=True,
        check=True,
        timeout=LONG,
    )
    return done.stdout


def test_the_unit_starts_this_installation(tmp_path: Path) -> None:
    unit = printed_unit()
    command = f"{sys.executable} -m scissionlite serve --config /etc/scissionlite/edge.toml"
    assert f"\nExecStart={command}\n" in unit
    assert "LoadCredential" not in unit
    assert "@" not in re.sub(r"@(system-service|privileged|resources)", "", unit)
    (tmp_path / "edge.toml").write_text("")
    folder = tmp_path / "50% of $HOME"
    unit = unit_file(tmp_path / "edge.toml", folder / "edge.key")
    assert f"--config {tmp_path}/edge.toml --key %d/edge.key\n" in unit
    assert f"LoadCredential=edge.key:'{tmp_path}/50%% of $$HOME/edge.key'\n" in unit


@needs_systemd
def test_systemd_takes_the_unit_and_its_exposure_is_the_documented_one(tmp_path: Path) -> None:
    (tmp_path / "edge.toml").write_text("")
    unit = tmp_path / "scissionlite-edge.service"
    options = ("--config", f"{tmp_path}/edge.toml", "--key", f"{tmp_path}/edge.key")
    unit.write_text(printed_unit(*options))
    assert ANALYZE is not None
    verified = subprocess.run(
        [ANALYZE, "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=LONG
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    report = subprocess.run(
        [ANALYZE, "security", "--offline=true", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        timeout=LONG,
        check=True,
    ).stdout
    found = re.search(r"Overall exposure level for \S+: ([\d.]+) (\w+)", report)
    assert found, report
    assert float(found[1]) <= 2.0, report
    documented = re.search(r"exposure of ([\d.]+)", DOCUMENT.read_text())
    assert documented
    assert float(found[1]) <= float(documented[1]) + 0.2  # which differs by systemd's version
