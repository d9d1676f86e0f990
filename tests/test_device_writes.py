"""A device in normal running writes nothing: read-only systems will do, and SD cards live long."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from peers import LOCAL, LONG, Frames
from PIL import Image

from scissionlite.bundle import Bundle
from scissionlite.offloader import EdgeServer

pytestmark = pytest.mark.usefixtures("no_threads_left")

STRACE = shutil.which("strace")
# As in the unit file: Python itself writes compiled files beside the sources.
ENVIRONMENT = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
COMMAND = (sys.executable, "-m", "scissionlite", "run")

# System calls that change a file system; opens for writing are looked at by their flags.
CHANGES = re.compile(
    r"(creat|mk|rmdir|rename|unlink|link|symlink|truncate|ch(mod|own)|fchmodat|fchownat|lchown"
    r"|utime|futimesat|setxattr|lsetxattr|removexattr|mount|swapon)"
)
WRITING = re.compile(r"O_(WRONLY|RDWR|CREAT|TRUNC|TMPFILE)")
# What is no file on a disk: devices, and the kernel's own settings of this very process.
NO_FILES = re.compile(r'"(/dev/(null|tty|urandom)|/proc/self/[^"]*)"')

# Every file system read-only, in name spaces of its own: that of the pictures and /tmp, too.
READ_ONLY = """
mount --make-rprivate /
while read -r _ _ _ _ place _; do
  case $place in /proc | /proc/* | /sys | /sys/*) continue ;; esac
  mount -o remount,bind,ro "$place" || exit 99
done < /proc/self/mountinfo
for folder in "$1" /tmp /dev/shm "$HOME" .; do
  if touch "$folder/written" 2>/dev/null; then echo "$folder is not read-only" >&2; exit 98; fi
done
shift
exec "$@"
"""


def save(frames: Frames, folder: Path) -> None:
    for index, frame in enumerate(frames):
        # Moved there, so that a device that watches sees it complete.
        Image.fromarray(frame).save(folder / f".{index}.png")
        (folder / f".{index}.png").rename(folder / f"{index}.png")


def changes(trace: str) -> list[str]:
    """The calls of a trace that would change a file system, whether or not they could."""
    found = []
    for line in trace.splitlines():
        call = line.split(None, 1)[1]
        writes = call.startswith("open") and WRITING.search(call)
        if (writes or CHANGES.match(call)) and not NO_FILES.search(call):
            found.append(line)
    return found


@pytest.mark.skipif(STRACE is None, reason="there is no strace: apt install strace")
def test_a_device_that_watches_a_folder_writes_nothing(
    onnx_bundle: Bundle, frames: Frames, tmp_path: Path
) -> None:
    inbox, trace = tmp_path / "inbox", tmp_path / "trace"
    inbox.mkdir()
    save(frames[:2], inbox)
    with EdgeServer(onnx_bundle, LOCAL) as edge:
        process = subprocess.Popen(
            [
                *(str(STRACE), "-D", "-f", "-q", "-o", trace, "-e", "trace=%file"),
                *(*COMMAND, onnx_bundle.path, "--watch", inbox, "--existing", "--jsonl"),
                *("--connect", edge.endpoint, "--control", edge.control_endpoint),
                *("--fallback", "local", "--deadline", str(LONG)),
            ],
            stdout=subprocess.PIPE,
            env=ENVIRONMENT,
            text=True,
        )
        try:
            assert process.stdout is not None
            rows = [json.loads(process.stdout.readline()) for _ in range(2)]
            save(frames[2:4], inbox)
            rows += [json.loads(process.stdout.readline()) for _ in range(2)]
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=LONG)
        finally:
            process.kill()
            process.communicate()
    assert ([row["where"] for row in rows], output) == (["edge"] * 4, "")
    assert process.returncode == 128 + signal.SIGTERM
    ended, until = re.compile(rf"^{process.pid} +\+\+\+ exited", re.M), time.monotonic() + LONG
    while not ended.search(calls := trace.read_text()):  # strace is no child of ours
        assert time.monotonic() < until
        time.sleep(0.02)
    assert f'"{onnx_bundle.path}' in calls
    assert not changes(calls)


@pytest.mark.parametrize("answered_by", ["edge", "local"])
def test_a_device_runs_where_every_file_system_is_read_only(
    onnx_bundle: Bundle, frames: Frames, tmp_path: Path, answered_by: str
) -> None:
    save(frames[:3], tmp_path)
    with EdgeServer(onnx_bundle, LOCAL) as edge:
        connect = ("--connect", edge.endpoint, "--control", edge.control_endpoint)
        done = subprocess.run(
            [
                *("unshare", "--map-root-user", "--mount", "sh", "-c", READ_ONLY, "sh", tmp_path),
                *(*COMMAND, onnx_bundle.path, tmp_path, "--jsonl", "--deadline", str(LONG)),
                *(connect if answered_by == "edge" else ("--fallback", "local")),
            ],
            capture_output=True,
            env=ENVIRONMENT,
            text=True,
            timeout=LONG,
        )
    if "unshare" in done.stderr or done.returncode == 99:
        pytest.skip(f"no name spaces can be made here: {done.stderr.strip()}")
    assert (done.returncode, "written" in done.stderr) == (0, False), done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["where"] for row in rows] == [answered_by] * 3
