"""What the edge daemon does beside inference: it answers probes, and profiles networks.

Both are for visitors: peers that have said Visit on the control socket, which takes no bundle.
Probes are answered on the I/O thread, as fast as it reads requests. A profile is the work of a
process of its own, one at a time, which this file only starts, watches and ends.
"""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import zstandard

from scissionlite.errors import OffloadError, ProbeSizeError, TensorMismatchError
from scissionlite.offloader import wire
from scissionlite.offloader.control import (
    MAX_PROBE_BYTES,
    MAX_PROFILE_BYTES,
    Failed,
    FailureCode,
    Goodbye,
    ProbeDownload,
    ProbeReply,
    ProfileReply,
    ProfileRequest,
    Refused,
    ToDevice,
    Visit,
    VisitReady,
)

logger = logging.getLogger(__name__)

Send = Callable[[bytes, ToDevice, Sequence[wire.Buffer]], None]

PROFILE_SECONDS = 1800.0
"""The longest time that a profile may take, unless told otherwise."""

SILENCE = 30.0
"""Seconds after which a silent visitor is forgotten, unless told otherwise."""

_MAX_VISITORS = 64  # at once; the one longest silent makes room
_TOLD = 800  # characters of a failed profiler's last words


def probe_header(device_id: bytes, request_id: int, nbytes: int) -> wire.Header:
    """Make the header of a probe: one int8 tensor of ``nbytes``, and no bundle."""
    tensor = wire.TensorHeader(wire.Encoding.INT8, (nbytes,), nbytes, 1, (1.0,), (0,))
    no_bundle = bytes(wire.BUNDLE_ID_BYTES)
    return wire.Header(wire.MessageKind.PROBE, device_id, request_id, 0, no_bundle, (tensor,))


def check_probe(header: wire.Header) -> int:
    """Return a probe's bytes.

    Raises
    ------
    ProbeSizeError
        If they are more than a probe may have.
    TensorMismatchError
        If the header is not exactly :func:`probe_header`'s.
    """
    nbytes = sum(tensor.nbytes for tensor in header.tensors)
    if nbytes > MAX_PROBE_BYTES:
        raise ProbeSizeError(f"probe of {nbytes} bytes, at most {MAX_PROBE_BYTES} allowed")
    if header != probe_header(header.device_id, header.request_id, nbytes):
        raise TensorMismatchError("a probe has one int8 tensor, no bundle and no deadline")
    return nbytes


@dataclass
class _Profiling:
    """The profile at work: for whom, and its process."""

    visitor: bytes
    request: ProfileRequest
    process: subprocess.Popen[bytes]
    folder: tempfile.TemporaryDirectory[str]
    expires: float

    @property
    def result(self) -> Path:
        return Path(self.folder.name, "profile.json")

    @property
    def errors(self) -> Path:
        return Path(self.folder.name, "errors.txt")


class EdgeServices:
    """The daemon's visitors, and what they asked for. Of the I/O thread.

    Parameters
    ----------
    name
        What visitors are told the daemon is called.
    send
        Sends a control message, and frames that follow it, to a peer.
    profile_models
        Globs of the model names that may be profiled; none allows none.
    profile_seconds
        The longest time that a profile may take.
    silence
        How long a visitor may be silent before it is forgotten.
    """

    def __init__(
        self,
        name: str,
        send: Send,
        profile_models: Sequence[str],
        profile_seconds: float,
        silence: float = SILENCE,
    ) -> None:
        self._name = name
        self._send = send
        self._profile_models = tuple(profile_models)
        self._profile_seconds = profile_seconds
        self._silence = silence
        self._visitors: dict[bytes, float] = {}  # when each was heard last, the latest at the end
        self._noise = b""
        self._profiling: _Profiling | None = None

    def hear(self, visitor: bytes) -> bool:
        """Note a sign of life; False if it is no visitor."""
        if visitor not in self._visitors:
            return False
        del self._visitors[visitor]
        self._visitors[visitor] = time.monotonic()
        return True

    def forget(self, visitor: bytes) -> None:
        """Drop a visitor, and the profile that it waits for."""
        self._visitors.pop(visitor, None)
        if self._profiling is not None and self._profiling.visitor == visitor:
            self._end_profiling()

    def take(self, sender: bytes, message: Visit | ProbeDownload | ProfileRequest) -> None:
        """Answer a control message."""
        if isinstance(message, Visit):
            self._greet(sender, message)
        elif not self.hear(sender):
            self._fail(sender, message.request, "unknown-device", "say Visit first")
        elif isinstance(message, ProbeDownload):
            # Made once, and not before it is needed.
            self._noise = self._noise or os.urandom(MAX_PROBE_BYTES)
            payload = memoryview(self._noise)[: message.nbytes]
            self._send(sender, ProbeReply(message.request, message.nbytes), [payload])
        else:
            self._start_profiling(sender, message)

    def take_probe(self, header: wire.Header) -> None:
        """Answer a probe that came to the tensor port.

        Raises
        ------
        WireError
            If it is none.
        """
        nbytes = check_probe(header)
        if self.hear(header.device_id):
            self._send(header.device_id, ProbeReply(header.request_id, nbytes), ())
        else:
            self._fail(header.device_id, header.request_id, "unknown-device", "say Visit first")

    def step(self) -> None:
        """Answer a profile that is done; forget who is silent."""
        now = time.monotonic()
        for visitor, heard in list(self._visitors.items()):
            if now - heard > self._silence:
                self.forget(visitor)
        if (work := self._profiling) is None:
            return
        if work.process.poll() is not None:
            self._answer(work)
            self._end_profiling()
        elif now > work.expires:
            self._fail(
                work.visitor,
                work.request.request,
                "execution",
                f"the profile took longer than {self._profile_seconds:g} s",
            )
            self._end_profiling()

    def close(self) -> None:
        """End the profile at work, and say Goodbye to the visitors."""
        self._end_profiling()
        for visitor in self._visitors:
            self._send(visitor, Goodbye(), ())
        self._visitors.clear()

    def _greet(self, sender: bytes, visit: Visit) -> None:
        if len(sender) != wire.DEVICE_ID_BYTES or sender[0] == 0:
            reason = "a visitor's identity is 16 bytes, the first not zero"
            self._send(sender, Refused("identity", reason), ())
            return
        if sender not in self._visitors and len(self._visitors) >= _MAX_VISITORS:
            self.forget(next(iter(self._visitors)))
        self._visitors[sender] = 0.0
        self.hear(sender)
        logger.info("%r visits", visit.name)
        self._send(sender, VisitReady(self._name), ())

    def _start_profiling(self, visitor: bytes, request: ProfileRequest) -> None:
        model = request.model
        if not any(fnmatch.fnmatchcase(model, glob) for glob in self._profile_models):
            allowed = ", ".join(self._profile_models) or "none"
            self._fail(
                visitor,
                request.request,
                "forbidden",
                f"it profiles no {model!r}: start it with --profile-models (now {allowed})",
            )
            return
        if self._profiling is not None:
            self._fail(visitor, request.request, "busy", "it is profiling for somebody else")
            return
        folder = tempfile.TemporaryDirectory(prefix="scissionlite-profile-")
        result, errors = Path(folder.name, "profile.json"), Path(folder.name, "errors.txt")
        try:
            with errors.open("wb") as stderr:
                process = subprocess.Popen(
                    profile_command(request, result),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    start_new_session=True,  # so that what it starts ends with it
                )
        except OSError as error:
            folder.cleanup()
            self._fail(visitor, request.request, "execution", f"no profiler: {error}")
            return
        logger.info("profiling %s", model)
        expires = time.monotonic() + self._profile_seconds
        self._profiling = _Profiling(visitor, request, process, folder, expires)

    def _answer(self, work: _Profiling) -> None:
        try:
            if work.process.returncode != 0:
                told = work.errors.read_text(errors="replace").strip()[-_TOLD:]
                raise OffloadError(f"profiling {work.request.model} failed: {told}")
            nbytes = work.result.stat().st_size
            if not 0 < nbytes <= MAX_PROFILE_BYTES:
                raise OffloadError(f"a profile of {nbytes} bytes, at most {MAX_PROFILE_BYTES}")
            packed = zstandard.compress(work.result.read_bytes())
        except (OffloadError, OSError) as error:
            self._fail(work.visitor, work.request.request, "execution", str(error))
            return
        self._send(work.visitor, ProfileReply(work.request.request, nbytes), [packed])

    def _end_profiling(self) -> None:
        if (work := self._profiling) is None:
            return
        self._profiling = None
        if work.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(work.process.pid, signal.SIGKILL)
            work.process.wait()
        work.folder.cleanup()

    def _fail(self, visitor: bytes, request: int, code: FailureCode, message: str) -> None:
        self._send(visitor, Failed(request, code, message[:1000]), ())


def profile_command(request: ProfileRequest, out: Path) -> list[str]:
    """Make the command line that profiles what a visitor asks for."""
    options: dict[str, object] = {
        "--size": request.size,
        "--num-classes": request.num_classes,
        "--runtime": request.runtime,
        "--threads": request.threads,
        "--repetitions": request.repetitions,
        "--max-tensors": request.max_tensors,
        "--out": out,
    }
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    # After "--" nothing is an option, whatever a model is called.
    return [sys.executable, "-m", "scissionlite", "profile", "--json", *given, "--", request.model]
