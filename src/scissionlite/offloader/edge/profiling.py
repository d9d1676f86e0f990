"""A profile that the edge daemon makes for an edge client, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scissionlite.errors import OffloadError
from scissionlite.offloader.wire.control import MAX_PROFILE_BYTES, ProfileRequest

_ERROR_CHARACTERS = 800  # of a failed profiler's error stream, the last ones


class Profiling:
    """A profiler's process, started at once.

    Parameters
    ----------
    client
        Identity of the edge client that waits for the profile.
    request
        The client's request.
    seconds
        Longest time that the profile may take.

    Raises
    ------
    OSError
        If no process can be started.
    """

    def __init__(self, client: bytes, request: ProfileRequest, seconds: float) -> None:
        self.client = client
        self.request = request
        self._expires = time.monotonic() + seconds
        self._folder = tempfile.TemporaryDirectory(prefix="scissionlite-profile-")
        self._result = Path(self._folder.name, "profile.json")
        self._errors = Path(self._folder.name, "errors.txt")
        try:
            with self._errors.open("wb") as stderr:
                self._process = subprocess.Popen(
                    profile_command(request, self._result),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    start_new_session=True,  # so that what it starts ends with it
                )
        except OSError:
            self._folder.cleanup()
            raise

    @property
    def done(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    @property
    def overdue(self) -> bool:
        """Whether it has taken longer than it may."""
        return time.monotonic() > self._expires

    def profile(self) -> bytes:
        """Return the profile, JSON, once the process has ended.

        Raises
        ------
        OffloadError
            If profiling failed, or the profile is too large.
        OSError
            If it cannot be read.
        """
        model = self.request.model
        if self._process.returncode != 0:
            text = self._errors.read_text(errors="replace").strip()[-_ERROR_CHARACTERS:]
            raise OffloadError(f"profiling {model} failed: {text}")
        nbytes = self._result.stat().st_size
        if not 0 < nbytes <= MAX_PROFILE_BYTES:
            raise OffloadError(f"a profile of {nbytes} bytes, at most {MAX_PROFILE_BYTES}")
        return self._result.read_bytes()

    def end(self) -> None:
        """Kill the process and all that it started, if it still runs, and delete its files."""
        if not self.done:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._folder.cleanup()


def profile_command(request: ProfileRequest, out: Path) -> list[str]:
    """Make the command line that profiles the model of a request."""
    options: dict[str, object] = {
        "--size": request.size,
        "--num-classes": request.num_classes,
        "--runtime": request.runtime,
        "--threads": request.threads,
        "--repetitions": request.repetitions,
        "--max-tensors": request.max_tensors,
        "--out": out,
    }
    chosen = [f"{name}={value}" for name, value in options.items() if value is not None]
    # Devices compute in int8; this machine is asked as an edge.
    command = [sys.executable, "-m", "scissionlite", "profile", "--json", "--no-int8"]
    # After "--" nothing is an option, whatever a model is called.
    return [*command, *chosen, "--", request.model]
