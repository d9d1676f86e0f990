"""Both units under a real systemd, the first process of a container that the test makes.

The container has namespaces of its own, a network of its own, and a tree of processes that ends
with the test. It needs root's rights; without them the test is skipped.
"""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from conftest import BundleFactory
from peers import LONG
from PIL import Image
from processes import run_here

import scissionlite
from scissionlite import _core
from scissionlite.cli.systemd import edge_unit
from scissionlite.keys.authorized import authorize
from scissionlite.keys.files import make_key_pair

HERE = Path(__file__).parent
CGROUPS = [Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")]
UNSHARE = ("unshare", "--pid", "--mount", "--ipc", "--uts", "--net", "--cgroup", "--fork")


def trouble() -> str:
    """Say why no systemd can be started here; empty if one can."""
    if not Path("/lib/systemd/systemd").exists():
        return "there is no systemd: apt install systemd"
    tried = subprocess.run(
        [*UNSHARE, "sh", "-c", "mount -t tmpfs tmpfs /mnt && mount -t cgroup2 cgroup2 /mnt"],
        capture_output=True,
        text=True,
    )
    return f"no container can be made: {tried.stderr.strip()}" if tried.returncode else ""


OVERRIDE = """
[Unit]
DefaultDependencies=no
[Service]
Environment=PYTHONPATH=/opt/site:/opt/packages PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1
StandardOutput=append:/mnt/out/{log}.log
StandardError=append:/mnt/out/{log}.log
WatchdogSec=4
"""
CHECK = """
[Unit]
DefaultDependencies=no
Wants=scissionlite-edge.service
After=scissionlite-edge.service
SuccessAction=exit
FailureAction=exit
[Service]
Type=oneshot
Environment=PYTHONPATH=/opt/site:/opt/packages PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1
StandardOutput=append:/mnt/out/check.log
StandardError=append:/mnt/out/check.log
ExecStart=/bin/bash -eux /mnt/check.sh {python}
"""
TARGET = "[Unit]\nDefaultDependencies=no\nRequires=check.service\n"
EDGE = """
bundle = ["bundle"]
bind = "tcp://0.0.0.0:5555"
authorized = "authorized_keys"
page = ":8080"
threads = 1
"""
SCRIPT = """
property() { systemctl show scissionlite-edge --property="$1" --value; }
pid=$(property MainPID)
grep -E '^(Uid|CapBnd|NoNewPrivs|Seccomp):' /proc/$pid/status > /mnt/out/status
property StatusText > /mnt/out/text
"$1" /mnt/device.py > /mnt/out/first
! nsenter -t $pid -m touch /etc/written
nsenter -t $pid -m ls -A /root /home > /mnt/out/homes
systemctl start scissionlite-device
device=$(systemctl show scissionlite-device --property=MainPID --value)
grep -E '^(Uid|CapBnd|NoNewPrivs|Seccomp):' /proc/$device/status > /mnt/out/device-status
until grep -q where /mnt/out/device.log; do sleep 0.2; done
! nsenter -t $device -m touch /var/lib/written
systemctl stop scissionlite-device
systemctl show scissionlite-device --property=Result --value > /mnt/out/device-result
systemctl reload scissionlite-edge
kill -STOP $pid  # as a daemon that is stuck
until [ "$(property NRestarts)" = 1 ] && [ "$(property ActiveState)" = active ]; do sleep 0.2; done
test "$(property MainPID)" != $pid
"$1" /mnt/device.py > /mnt/out/second
systemctl stop scissionlite-edge
property Result > /mnt/out/result
"""
DEVICE = """
import urllib.request
import numpy as np, scissionlite as sl
keys = sl.DeviceKeys("/etc/scissionlite/camera.key", edge="/etc/scissionlite/edge.key.pub")
place = "/etc/scissionlite/bundle", "tcp://127.0.0.1:5555"
with sl.Device(*place, keys=keys, deadline=30, threads=1) as device:
    where = device.submit(np.zeros((32, 32, 3), np.uint8)).result(60).where
ready = urllib.request.urlopen("http://127.0.0.1:8080/readyz").read().decode()
print(where, ready, end="")
"""


def lay_files(files: Path, bundle: Path, python: str) -> None:
    """Write what the container needs into a folder; ``python`` is its interpreter."""
    etc, units = files / "etc" / "scissionlite", files / "units"
    for folder in (etc, units, files / "out", files / "inbox"):
        folder.mkdir(parents=True)
    files.chmod(0o755)
    shutil.copytree(bundle, etc / "bundle")
    for path in (etc / "bundle").rglob("*"):
        path.chmod(0o644)
    for name in ("edge.key", "camera.key"):
        public = make_key_pair(etc / name)
    authorize(etc / "authorized_keys", public)  # the camera's
    (etc / "edge.toml").write_text(EDGE)
    Image.new("RGB", (32, 32)).save(files / "inbox" / "one.png")
    keys = ("--key", etc / "camera.key", "--edge-key", etc / "edge.key.pub")
    options = ("--watch", files / "inbox", "--existing", "--jsonl", *keys, "--print-unit")
    device = run_here("run", etc / "bundle", "--connect", "tcp://127.0.0.1:5555", *options).stdout
    written = {
        "edge": edge_unit(None, Path("/etc/scissionlite/edge.key")),
        "device": device.replace(str(files), "/mnt"),  # where the container has them
    }
    for name, unit in written.items():
        service = units / f"scissionlite-{name}.service"
        service.write_text(unit)
        override = service.with_suffix(".service.d") / "test.conf"
        override.parent.mkdir()
        override.write_text(OVERRIDE.format(log=name))
    (units / "check.service").write_text(CHECK.format(python=python))
    (units / "test.target").write_text(TARGET)
    (files / "check.sh").write_text(SCRIPT)
    (files / "device.py").write_text(DEVICE)


def boot(folder: Path, python: Path) -> str:
    """Start systemd and wait for its end; return what it writes to its console."""
    site, root = folder / "site", folder / "root"
    root.mkdir()
    package = Path(scissionlite.__file__).parent
    shutil.copytree(package, site / "scissionlite", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(_core.__file__, site / "scissionlite")
    packages = Path(sysconfig.get_path("platlib"))
    for metadata in packages.glob("scissionlite-*.dist-info"):
        shutil.copytree(metadata, site / metadata.name)
    group = next(filter(Path.is_dir, CGROUPS)) / f"scissionlite-test-{os.getpid()}"
    group.mkdir()
    arguments = [root, site, packages, python.parents[1], folder / "files"]
    script = f'echo $$ > {group}/cgroup.procs && exec "$@"'
    master, slave = pty.openpty()
    command = [*UNSHARE, "--kill-child", "bash", HERE / "systemd_root.sh", *arguments]
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", *map(str, command)],
        env={**os.environ, "CONSOLE": os.ttyname(slave)},
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
    )
    console, until = b"", time.monotonic() + 2 * LONG
    try:
        while process.poll() is None and time.monotonic() < until:
            if select.select([master], [], [], 0.2)[0]:
                console += os.read(master, 65536)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        for descriptor in (master, slave):
            os.close(descriptor)
        for each in sorted(group.rglob("*/"), reverse=True):
            if each.is_dir():
                each.rmdir()
        group.rmdir()
    return console.decode(errors="replace")


@pytest.mark.long
def test_the_unit_under_systemd(
    tmp_path: Path, make_bundle: BundleFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why := trouble():
        pytest.skip(why)
    python = Path(os.path.realpath(sys.executable))
    inside = f"/opt/python/bin/{python.name}"
    monkeypatch.setattr(sys, "executable", inside)  # which the unit starts
    files = tmp_path / "files"
    lay_files(files, make_bundle(runtime="onnx").path, inside)
    console = boot(tmp_path, python)
    logs = "\n".join(log.read_text() for log in (files / "out").glob("*.log"))
    out = {path.name: path.read_text() for path in (files / "out").iterdir()}
    assert out.get("result") == "success\n", console + logs
    for each in (out["status"], out["device-status"]):
        status = dict(line.split(":\t", 1) for line in each.splitlines())
        assert int(status["Uid"].split()[0]) >= 61184  # of a DynamicUser
        assert int(status["CapBnd"], 16) == 0
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert json.loads(out["device.log"].splitlines()[1])["where"] == "edge", out["device.log"]
    assert out["device-result"] == "success\n"
    assert out["text"] == "Serving on tcp://0.0.0.0:5555\n"
    assert out["homes"].split() == ["/home:", "/root:"]
    assert out["first"] == out["second"] == "edge ok\n"
    assert out["check.log"].count("Read-only file system") == 2
    assert "Watchdog timeout" in console
