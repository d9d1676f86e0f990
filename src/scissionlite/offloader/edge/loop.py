"""The edge daemon's I/O loop: who may send what, and what is answered.

Whatever arrives is untrusted. A message that breaks a rule is counted by the class of its error
and dropped; nothing that one peer sends can stop the daemon or change another peer's answers.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from queue import Empty, SimpleQueue

import numpy as np
import zmq

from scissionlite.bundle import Bundle
from scissionlite.errors import (
    BundleMismatchError,
    ControlMessageError,
    OffloadError,
    ScissionLiteError,
    WireError,
)
from scissionlite.offloader import wire
from scissionlite.offloader.bundle_tensors import (
    check_request,
    max_payload,
    request_batch,
    result_tensors,
)
from scissionlite.offloader.edge.counters import Counters
from scissionlite.offloader.edge.schedule import Done, Job, Schedule
from scissionlite.offloader.edge.services import EdgeServices
from scissionlite.offloader.edge.sockets import EdgeSockets
from scissionlite.offloader.limits import EdgeLimits
from scissionlite.offloader.waker import Waker
from scissionlite.offloader.wire.control import (
    PROTOCOL_VERSION,
    Failed,
    FailureCode,
    Goodbye,
    Hello,
    Ping,
    Pong,
    Refused,
    Result,
    Stats,
    StatsReply,
    ToDevice,
    Welcome,
    decode_at_edge,
)
from scissionlite.offloader.wire.endpoints import Endpoints

logger = logging.getLogger(__name__)

_BATCH = 64  # messages read from one socket before the other has its turn


class EdgeLoop:
    """The work of the daemon's I/O thread, step by step.

    Parameters
    ----------
    bundle
        The bundle served; None serves edge clients only.
    welcome
        The answer to a device's Hello.
    limits
        Of the daemon.
    profile_models
        Globs of the model names that may be profiled.
    jobs, done
        To the worker and from it; None is never put here.
    """

    def __init__(
        self,
        bundle: Bundle | None,
        welcome: Welcome,
        limits: EdgeLimits,
        profile_models: Sequence[str],
        jobs: SimpleQueue[Job | None],
        done: SimpleQueue[Done],
    ) -> None:
        self._bundle = bundle
        self._bundle_prefix = b"" if bundle is None else wire.bundle_prefix(bundle.id)
        self._welcome = welcome
        self._services = EdgeServices(welcome.name, self._send, profile_models, limits)
        self._schedule = Schedule(limits)
        self._jobs = jobs
        self._done = done
        self._at_work: Job | None = None
        self._counters = Counters()

    def open(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoints: Endpoints, waker: Waker
    ) -> Endpoints:
        """Listen; return the endpoints with the ports that wildcards became.

        Raises
        ------
        OffloadError
            If an endpoint cannot be listened on.
        """
        self._waker = waker
        self._sockets = EdgeSockets(
            context,
            endpoints,
            credit=self._welcome.credit,
            largest_payload=0 if self._bundle is None else max_payload(self._bundle.manifest),
        )
        return self._sockets.endpoints

    def step(self) -> None:
        """Wait for something to do, a heartbeat at most, and do it."""
        self._sockets.wait(self._waker, int(1000 * min(self._welcome.heartbeat, 1.0)))
        self._read_control()
        self._read_requests()
        self._finish()
        self._dispatch()
        self._services.step()
        for name in self._schedule.remove_silent(time.monotonic()):
            logger.info("device %r is silent", name)

    def say_goodbye(self) -> None:
        """Send the results that the worker still finished, and Goodbye to every device."""
        self._finish()
        for device_id in self._schedule.devices:
            self._send(device_id, Goodbye())
        self._services.close()

    def close(self) -> None:
        """Close the sockets."""
        self._sockets.close()

    def stats(self) -> StatsReply:
        """Return the counts so far; may be called by any thread."""
        return self._counters.stats(len(self._schedule.devices))

    def _read_control(self) -> None:
        for _ in range(_BATCH):
            if not (frames := self._sockets.receive_control()):
                return
            device_id = bytes(frames[0])
            try:
                if len(frames) != 2:
                    raise ControlMessageError(f"{len(frames) - 1} frames, 1 expected")
                message = decode_at_edge(frames[1])
            except WireError as error:
                self._counters.reject(error)
                continue
            now = time.monotonic()
            if isinstance(message, Hello):
                self._greet(device_id, message)
            elif isinstance(message, Ping):
                if self._schedule.hear(device_id, now) or self._services.hear(device_id):
                    self._send(device_id, Pong(message.sequence))
            elif isinstance(message, Stats):
                self._send(device_id, self.stats())
            elif isinstance(message, Goodbye):
                self._schedule.remove(device_id)
                self._services.remove(device_id)
            else:
                self._services.take(device_id, message)

    def _greet(self, device_id: bytes, hello: Hello) -> None:
        refused = None
        if not wire.is_device_id(device_id):
            refused = Refused("identity", "a device's identity is 16 bytes, the first not zero")
        elif hello.protocol != PROTOCOL_VERSION:
            refused = Refused(
                "protocol", f"it speaks protocol {PROTOCOL_VERSION}, the device {hello.protocol}"
            )
        elif self._bundle is None:
            refused = Refused("bundle-mismatch", "it serves no bundle, only probes and profiles")
        elif hello.bundle != self._bundle.id:
            refused = Refused(
                "bundle-mismatch",
                f"it serves bundle {self._bundle.id[:12]} ({self._bundle.manifest.model[:100]}), "
                f"the device has {hello.bundle[:12]}: copy the same bundle to both",
            )
        if refused is not None:
            logger.warning("device %r refused: %s", hello.name, refused.reason)
            self._send(device_id, refused)
            return
        logger.info("device %r connected: %s", hello.name, hello.runtime)
        self._schedule.greet(device_id, hello.name, time.monotonic())
        self._send(device_id, self._welcome)

    def _read_requests(self) -> None:
        for _ in range(_BATCH):
            if not (frames := self._sockets.receive_tensors()):
                return
            try:
                header, payloads = wire.unpack(
                    frames, wire.MessageKind.REQUEST, wire.MessageKind.PROBE
                )
                if header.kind is wire.MessageKind.PROBE:
                    self._services.take_probe(header)
                    continue
                if self._bundle is None or header.bundle_id != self._bundle_prefix:
                    raise BundleMismatchError("the request is for another bundle")
                check_request(self._bundle.manifest, header.tensors)
            except (WireError, BundleMismatchError) as error:
                self._counters.reject(error)
                if (sender := wire.sender(frames[0])) is not None:
                    code: FailureCode = (
                        "malformed" if isinstance(error, WireError) else "bundle-mismatch"
                    )
                    self._fail(*sender, code, f"{type(error).__name__}: {error}")
                continue
            now = time.monotonic()
            device_id, request_id = header.device_id, header.request_id
            expires = now + header.deadline_ms / 1000
            if not self._schedule.hear(device_id, now):
                self._fail(device_id, request_id, "unknown-device", "say Hello first")
                continue
            job = Job(device_id, request_id, header.tensors, payloads, now, expires)
            if not self._schedule.add(job):
                self._counters.busy += 1
                self._fail(device_id, request_id, "busy", "too many requests wait")

    def _dispatch(self) -> None:
        """Give the worker one job; not more, so that turns and deadlines are those of now."""
        while self._at_work is None and (job := self._schedule.next()) is not None:
            if time.monotonic() < job.expires:
                self._at_work = job
                self._jobs.put(job)
                return
            self._schedule.done(job)
            self._counters.expired += 1
            self._fail(job.device_id, job.request_id, "expired", "the deadline passed in the queue")

    def _finish(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                done = self._done.get_nowait()
                self._at_work = None
                self._schedule.done(done.job)
                try:
                    self._send_result(done)
                except ScissionLiteError as error:
                    self._counters.failed += 1
                    self._fail(done.job.device_id, done.job.request_id, "execution", str(error))

    def _send_result(self, done: Done) -> None:
        assert self._bundle is not None  # or there were no request
        if done.outputs is None:
            raise OffloadError(done.reason)
        manifest = self._bundle.manifest
        tensors = result_tensors(manifest, request_batch(manifest, done.job.tensors))
        answered = [(array.dtype.name, array.shape) for array in done.outputs]
        if answered != [("float32", tensor.shape) for tensor in tensors]:
            raise OffloadError(
                "the slice answered "
                + ", ".join(f"{dtype} of shape {shape}" for dtype, shape in answered)
                + ", the manifest says float32 of shape "
                + ", ".join(str(tensor.shape) for tensor in tensors)
            )
        header = wire.Header(
            wire.MessageKind.RESULT,
            done.job.device_id,
            done.job.request_id,
            0,
            self._bundle_prefix,
            tensors,
        )
        frames = wire.pack(header, [np.ascontiguousarray(array).data for array in done.outputs])
        result = Result(done.job.request_id, done.queue, done.decode, done.run)
        self._counters.served += 1  # before the device can know
        self._send(done.job.device_id, result, frames)

    def _fail(self, device_id: bytes, request_id: int, code: FailureCode, message: str) -> None:
        self._send(device_id, Failed(request_id, code, message[:1000]))

    def _send(
        self, device_id: bytes, message: ToDevice, tensors: Sequence[wire.Buffer] = ()
    ) -> None:
        self._sockets.send(device_id, message, tensors)
