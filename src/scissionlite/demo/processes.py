"""Starts the processes of a measurement: an edge daemon, an emulated link, a device."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, cast

import msgspec

from scissionlite.demo.device_process import Turn, Turned
from scissionlite.errors import OffloadError
from scissionlite.scissiontl.link import Link

START_TIMEOUT = 300.0
"""Seconds that a daemon may take to load its slices and report that it is ready."""

TURN_TIMEOUT = 300.0
"""Seconds that a device's turn may take."""


@contextmanager
def emulated(
    link: Link, edge: dict[str, Any], within: Sequence[str] = ()
) -> Iterator[tuple[str, str]]:
    """Emulate a link to an edge daemon; yields the addresses of its two ports behind the link."""
    ports = [int(edge[key].rpartition(":")[2]) for key in ("endpoint", "control_endpoint")]
    with emulated_ports(link, ports, within) as (tensors, control):
        yield f"tcp://127.0.0.1:{tensors}", f"tcp://127.0.0.1:{control}"


@contextmanager
def emulated_ports(
    link: Link, ports: Sequence[int], within: Sequence[str] = ()
) -> Iterator[list[int]]:
    """Emulate a link to some ports of this host, in a process; yields the ports in front of it."""
    forwards = [option for port in ports for option in ("--forward", f"0:127.0.0.1:{port}")]
    command = ["-m", "scissionlite.demo.link_emulator", *forwards]
    command += ["--rtt", str(link.rtt), "--bandwidth", str(link.bandwidth)]
    with daemon(command, within) as emulator:
        yield emulator["ports"]


@contextmanager
def daemon(arguments: Sequence[str], within: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Run a Python process; yields its first line, JSON, which says where it is ready.

    Its number is added as ``pid``. ``within`` is a command to run it with, as ``taskset -c 1``.
    """
    with Running(arguments, within) as running:
        yield {**running.read(START_TIMEOUT), "pid": running.pid}


class Running:
    """A Python process that reads and writes lines of JSON; a context manager."""

    def __init__(self, arguments: Sequence[str], within: Sequence[str] = ()) -> None:
        self._arguments = arguments
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(
            [*within, sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        process = self._process
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        self._errors.close()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def write(self, message: object) -> None:
        """Give the process a line; if it has ended, the next :meth:`read` says why."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(msgspec.json.encode(message) + b"\n")
            self._process.stdin.flush()

    def read(self, timeout: float) -> dict[str, Any]:
        """Wait for a line of the process.

        Raises
        ------
        OffloadError
            If it ends or takes too long; with its error output.
        """
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], timeout)
        line = self._process.stdout.readline() if readable else b""
        if not line:
            self._process.kill()
            self._process.wait()
            self._errors.seek(0)
            trouble = self._errors.read().decode(errors="replace").strip()
            name = " ".join(self._arguments)
            raise OffloadError(f"`{name}` did not answer in {timeout:g} s: {trouble}")
        return cast("dict[str, Any]", json.loads(line))


class DeviceProcess(Running):
    """A device whose ways take turns (:mod:`.device_process`), in a process of its own.

    Parameters
    ----------
    setup
        Its ways and images.
    within
        A command to run it with.
    module
        The program.
    """

    def __init__(
        self,
        setup: msgspec.Struct,
        within: Sequence[str] = (),
        module: str = "scissionlite.demo.device_process",
    ) -> None:
        super().__init__(["-m", module], within)
        self.write(setup)

    def __enter__(self) -> DeviceProcess:
        try:
            self.read(START_TIMEOUT)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def take(self, turn: Turn) -> Turned:
        """Have a way answer some images."""
        self.write(turn)
        return msgspec.convert(self.read(TURN_TIMEOUT), Turned)
