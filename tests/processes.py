"""Commands of the tests, here and as processes: started, read line by line, stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from scissionlite.cli import app


def run_here(*arguments: object, **environment: str) -> Result:
    """Run a command in this process, which has imported what takes long; it keeps its handlers."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return CliRunner().invoke(app, [*map(str, arguments)], env=environment)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class Process:
    """``python -m ...`` with its output streams as pipes."""

    def __init__(self, *arguments: str) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        )

    def write_line(self, line: str = "") -> None:
        """Write a line to its input, by default an empty one."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(f"{line}\n")
        self._popen.stdin.flush()

    def close_input(self) -> None:
        """End its input."""
        assert self._popen.stdin is not None
        self._popen.stdin.close()

    def read_line(self) -> str:
        """Read the next line of output; empty if the process ended instead."""
        assert self._popen.stdout is not None
        return self._popen.stdout.readline()

    def read_json(self) -> dict[str, Any]:
        """Read the next line of output; an AssertionError if the process ended instead."""
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        assert line, f"the process ended with exit code {self._popen.wait(timeout=60)}"
        parsed: dict[str, Any] = json.loads(line)
        return parsed

    def read_all(self) -> str:
        """Read what else it prints, until it ends; an AssertionError if it failed."""
        assert self._popen.stdout is not None
        output = self._popen.stdout.read()
        assert self._popen.wait(timeout=60) == 0
        return output

    @property
    def pid(self) -> int:
        """Its number."""
        return self._popen.pid

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._popen.poll() is not None

    def send_signal(self, number: int) -> None:
        """Send a signal, and do not wait."""
        self._popen.send_signal(number)

    def terminate(self, number: int = signal.SIGTERM) -> int:
        """Send SIGTERM, or another signal, and wait; return the exit code."""
        self.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for its end; return the exit code."""
        return self._popen.wait(timeout=60)

    def kill(self) -> None:
        """Kill the process, if it still runs, and close its streams."""
        self._popen.kill()
        self._popen.wait(timeout=60)
        for stream in (self._popen.stdin, self._popen.stdout):
            if stream is not None:
                stream.close()
