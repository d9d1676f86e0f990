"""Starts the processes of a measurement: an edge daemon, an emulated link, a device."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from scissionlite.errors import OffloadError
from scissionlite.scissiontl.link import Link

START_TIMEOUT = 120.0
"""Seconds that a daemon may take to load its slices and report that it is ready."""


@contextmanager
def emulated(link: Link, edge: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Emulate a link to an edge daemon; yields the addresses of its two ports behind the link."""
    ports = [edge[key].rpartition(":")[2] for key in ("endpoint", "control_endpoint")]
    forwards = [option for port in ports for option in ("--forward", f"0:127.0.0.1:{port}")]
    command = ["-m", "scissionlite.demo.link_emulator", *forwards]
    command += ["--rtt", str(link.rtt), "--bandwidth", str(link.bandwidth)]
    with daemon(command) as emulator:
        tensors, control = (f"tcp://127.0.0.1:{port}" for port in emulator["ports"])
        yield tensors, control


@contextmanager
def daemon(arguments: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Run a Python process; yields its first line, JSON, which says where it is ready."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=errors, text=True
        )
        assert process.stdout is not None
        try:
            readable, _, _ = select.select([process.stdout], [], [], START_TIMEOUT)
            line = process.stdout.readline() if readable else ""
            if not line:
                process.kill()
                process.wait()
                errors.seek(0)
                raise OffloadError(f"`{' '.join(arguments)}` did not start: {errors.read()}")
            yield cast("dict[str, Any]", json.loads(line))
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


def run_device(arguments: Sequence[str]) -> dict[str, Any]:
    """Run a ``scissionlite`` command to its end and return its JSON output."""
    command = [sys.executable, "-m", "scissionlite", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OffloadError(f"the device process failed: {done.stderr.strip()}")
    return cast("dict[str, Any]", json.loads(done.stdout))
