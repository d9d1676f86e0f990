"""The requests of devices at the edge daemon: from a tensor message to its result.

Whatever arrives is untrusted: a message that breaks a rule raises an error, which is counted and
answered, and nothing else changes.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Sequence

from scissionlite.errors import (
    BundleMismatchError,
    ForeignDeviceIdError,
    UnauthorizedKeyError,
    WireError,
)
from scissionlite.offloader import wire
from scissionlite.offloader.edge.admission import Admission
from scissionlite.offloader.edge.batching import Batches
from scissionlite.offloader.edge.metrics import Metrics, Outcome
from scissionlite.offloader.edge.schedule import Done, Job, Schedule
from scissionlite.offloader.edge.services import EdgeServices
from scissionlite.offloader.wire.control import Failed, FailureCode, Result


class Taken(enum.Enum):
    """The end of a tensor message that was read, as far as the loop has to know it."""

    RUN = enum.auto()  # a request to be run before other messages are read
    WAITS = enum.auto()  # a request that waits for its turn, or needs nothing more
    PROBE = enum.auto()  # answered
    REFUSED = enum.auto()  # its sender has not said Hello, or asks for more than its credit


class Requests:
    """Checks requests, has them run, and sends their results. Under the loop's lock.

    Parameters
    ----------
    schedule
        The devices, and their requests that wait.
    workers
        Runs of the slice that may be at work at once.
    admission
        Which peers take part.
    services
        Answers the probes.
    metrics
        The record.
    send
        Sends a control message to a device, and the frames that follow it.
    """

    def __init__(
        self,
        schedule: Schedule,
        workers: int,
        admission: Admission,
        services: EdgeServices,
        metrics: Metrics,
        send: Callable[..., None],
    ) -> None:
        self._schedule = schedule
        self._batches = Batches(schedule, workers)
        self._admission = admission
        self._services = services
        self._metrics = metrics
        self._send = send

    @property
    def due(self) -> float:
        """Monotonic time at which requests that wait for others are run; infinite if none does."""
        return self._batches.due

    def take(self, peer: str, frames: Sequence[memoryview]) -> Taken:
        """Check a tensor message, and queue it if it is a request.

        Parameters
        ----------
        peer
            Its sender (:attr:`.access.Access.sender`).
        frames
            As received.

        Raises
        ------
        WireError, BundleMismatchError
            If it breaks a rule: :meth:`reject` is to be told.
        """
        self._admission.access.check(peer)
        header, payloads = wire.unpack(frames, wire.MessageKind.REQUEST, wire.MessageKind.PROBE)
        device_id, request_id = header.device_id, header.request_id
        self._admission.check_owner(peer, device_id)
        if header.kind is wire.MessageKind.PROBE:
            known = self._schedule.hear(device_id, time.monotonic())
            self._services.take_probe(header, from_device=known)
            return Taken.PROBE
        served = self._schedule.served(device_id)
        if served is None:
            self._metrics.refuse("unknown-device")
            self._fail(device_id, request_id, "unknown-device", "say Hello first")
            return Taken.REFUSED
        if header.bundle_id != served.prefix:
            raise BundleMismatchError("the request is not for the bundle of its Hello")
        samples = served.side.check(header.tensors).samples
        now = time.monotonic()
        self._schedule.hear(device_id, now)
        if served.dropped or not self._schedule.accepting:
            return Taken.WAITS  # it is sent elsewhere, or again, after the Refused or Goodbye
        expires = now + header.deadline_ms / 1000
        job = Job(served, device_id, request_id, header.tensors, payloads, samples, now, expires)
        usage = self._schedule.usage(device_id)
        served.record.receive(usage, _nbytes(frames))
        if not self._schedule.add(job):
            served.record.end(usage, "busy")
            self._fail(device_id, request_id, "busy", "too many requests wait")
            return Taken.REFUSED if self._schedule.has_used_credit(device_id) else Taken.WAITS
        return Taken.RUN if self._batches.runs_at_once(job) else Taken.WAITS

    def reject(self, error: WireError | BundleMismatchError, peer: str, header: memoryview) -> None:
        """Count a message that breaks a rule, and tell the device, if it is the sender itself."""
        sender = wire.sender(header)
        impostor = isinstance(error, UnauthorizedKeyError | ForeignDeviceIdError)
        if sender is None or impostor or self._admission.peer_of(sender[0]) not in (None, peer):
            self._metrics.reject(error)
        else:
            self._metrics.reject(error, self._schedule.usage(sender[0]))
            code: FailureCode = "malformed" if isinstance(error, WireError) else "bundle-mismatch"
            self._fail(*sender, code, f"{type(error).__name__}: {error}")

    def next_jobs(self) -> list[Job]:
        """Take the jobs for the next run, if any wait and one more run may be."""
        jobs, expired = self._batches.take()
        for job in expired:
            self._end(job, "expired")
            self._fail(job.device_id, job.request_id, "expired", "the deadline passed in the queue")
        return jobs

    def finish(self, runs: Sequence[Sequence[Done]]) -> None:
        """Send the results of the jobs that were taken together, by the slice's runs."""
        self._batches.finish([done.job for run in runs for done in run])
        for run in runs:
            if run[0].frames:
                samples = sum(done.job.samples for done in run)
                run[0].job.served.record.batch_size.add(samples)
            for done in run:
                self._finish(done)

    def _finish(self, done: Done) -> None:
        job = done.job
        if done.frames:
            self._end(job, "served", _nbytes(done.frames))  # before the device can know
            result = Result(job.request_id, done.queue, done.decode, done.run, done.hop)
            self._send(job.device_id, result, done.frames)
            job.served.record.time(done)
        elif done.expired:
            self._end(job, "expired")
            self._fail(job.device_id, job.request_id, "expired", done.reason)
        elif done.busy:
            self._end(job, "busy")
            self._fail(job.device_id, job.request_id, "busy", done.reason)
        else:
            self._end(job, "failed")
            self._fail(job.device_id, job.request_id, "execution", done.reason)

    def _end(self, job: Job, outcome: Outcome, nbytes: int = 0) -> None:
        """Record how a job ended."""
        job.served.record.end(self._schedule.usage(job.device_id), outcome, nbytes)

    def _fail(self, device_id: bytes, request_id: int, code: FailureCode, message: str) -> None:
        self._send(device_id, Failed(request_id, code, message[:1000]))


def _nbytes(frames: Sequence[wire.Buffer]) -> int:
    return sum(map(len, frames))
