"""The daemon as a service of systemd: what it tells systemd, and its unit file."""

from __future__ import annotations

import os
import re
import shlex
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
from typing import cast, get_type_hints

import pytest
from peers import LOCAL, LONG
from processes import run_here

from scissionlite.bundle import Bundle
from scissionlite.cli.run import run
from scissionlite.cli.run.pipeline import Pipeline
from scissionlite.cli.run.service import PATHS
from scissionlite.cli.run.sources import Picture
from scissionlite.cli.systemd import edge_unit, notify, watchdog
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


DOCUMENTS = Path(__file__).parents[1] / "docs"


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


def printed_unit(*command: object) -> str:
    done = run_here(*command, "--print-unit")
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_unit_starts_this_installation(tmp_path: Path) -> None:
    unit = printed_unit("serve")
    command = f"{sys.executable} -m scissionlite serve --config /etc/scissionlite/edge.toml"
    assert f"\nExecStart={command}\n" in unit
    assert "LoadCredential" not in unit
    assert "@" not in re.sub(r"@(system-service|privileged|resources)", "", unit)
    (tmp_path / "edge.toml").write_text("")
    folder = tmp_path / "50% of $HOME"
    unit = edge_unit(tmp_path / "edge.toml", folder / "edge.key")
    assert f"--config {tmp_path}/edge.toml --key %d/edge.key\n" in unit
    assert f"LoadCredential=edge.key:'{tmp_path}/50%% of $$HOME/edge.key'\n" in unit


def test_a_devices_unit_has_the_options_that_were_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in box").mkdir()
    options = ["--watch", "in box", "--connect", "tcp://a:1", "--connect", "tcp://b:1"]
    options += ["--key", "k", "--edge-key", "a.pub", "--edge-key", "b.pub", "--no-adapt"]
    unit = printed_unit("run", "bundle", *options, "--deadline", "0.5", "--jsonl")
    given = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    words = shlex.split(given)[1:]
    expected = [*("-m", "scissionlite", "run", f"{tmp_path}/bundle"), *options, "--deadline", "0.5"]
    for relative in ("in box", "a.pub", "b.pub"):
        expected[expected.index(relative)] = f"{tmp_path}/{relative}"
    expected[expected.index("k")] = "%d/device.key"
    # In the order of the command's options, whose values follow them.
    assert sorted(words) == sorted([*expected, "--jsonl"])
    for option, value in (("--deadline", "0.5"), ("--watch", f"{tmp_path}/in box")):
        assert words[words.index(option) + 1] == value
    assert f"\nLoadCredential=device.key:{tmp_path}/k\n" in unit
    assert "\nPrivateDevices=yes\n" in unit
    assert "@" not in re.sub(r"@(system-service|privileged|resources)", "", unit)
    camera = printed_unit("run", "bundle", "--camera", "0", "--mqtt", "mqtt://u@h/t")
    assert "DeviceAllow=char-video4linux rw\n" in camera
    assert "PrivateDevices" not in camera
    assert "\nEnvironmentFile=-/etc/scissionlite/device.env\n" in camera


def test_every_path_of_a_devices_command_is_made_absolute() -> None:
    hints = get_type_hints(run, include_extras=True)
    paths = {name for name, hint in hints.items() if "Path" in str(hint)}
    assert paths - {"images"} == PATHS


def test_what_cannot_be_a_devices_service_is_refused(tmp_path: Path) -> None:
    for options, reason in (
        ([tmp_path], "goes with --watch, --camera or --video"),
        (["--camera", "0", "--mqtt", "mqtt://u:secret@h/t"], "leave the password out of --mqtt"),
    ):
        done = run_here("run", "bundle", *options, "--print-unit")
        assert (done.exit_code, done.stdout) == (2, "")
        assert reason in " ".join(done.stderr.split())
        assert "secret" not in done.stderr


def test_paths_that_a_service_does_not_see_are_named(tmp_path: Path) -> None:
    done = run_here("run", "/home/pi/bundle", "--watch", tmp_path, "--print-unit")
    assert "home folders" in done.stderr
    assert "/home/pi/bundle" in done.stderr


@needs_systemd
@pytest.mark.parametrize(
    ("document", "command"),
    [
        ("daemon.md", ("serve", "--config", "{}/edge.toml", "--key", "{}/edge.key")),
        ("arm.md", ("run", "{}/bundle", "--watch", "{}", "--key", "{}/k", "--edge-key", "{}/e")),
        ("arm.md", ("run", "{}/bundle", "--camera", "0", "--mqtt", "mqtt://u@h/t")),
    ],
)
def test_systemd_takes_the_unit_and_its_exposure_is_the_documented_one(
    document: str, command: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "edge.toml").write_text("")
    unit = tmp_path / "scissionlite-this.service"
    unit.write_text(printed_unit(*(word.format(tmp_path) for word in command)))
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
    documented = re.search(
        r"exposure of ([\d.]+)(?:, with `--camera` ([\d.]+))?", (DOCUMENTS / document).read_text()
    )
    assert documented
    expected = float(documented[2 if "--camera" in command else 1])
    assert float(found[1]) <= expected + 0.2  # which differs by systemd's version
