"""The edge daemon's I/O: its sockets, who may send what, and what is answered.

Whatever arrives is untrusted. A message that breaks a rule is counted by the class of its error
and dropped; nothing that one peer sends can stop the daemon or change another peer's answers.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
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
from scissionlite.offloader.contents import (
    Outputs,
    check_request,
    max_payload,
    request_batch,
    result_tensors,
)
from scissionlite.offloader.control import (
    MAX_CONTROL_BYTES,
    MAX_CREDIT,
    MAX_PROBE_BYTES,
    MISSED_HEARTBEATS,
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
    encode,
)
from scissionlite.offloader.edge_services import PROFILE_SECONDS, EdgeServices
from scissionlite.offloader.schedule import Job, Schedule

logger = logging.getLogger(__name__)

WAKE = "inproc://wake"
"""Where the worker's PAIR connects to say that something is done."""

_LINGER_MS = 500  # for the Goodbyes and the last results
_BATCH = 64  # messages read from one socket before the other has its turn
_LOG_INTERVAL = 10.0  # seconds between two lines on the same class of error
_SLACK_BYTES = 1 << 16  # over the largest valid frame, so that a near miss is named, not cut off


@dataclass(frozen=True)
class Done:
    """What became of a job: the outputs, or the reason why there are none."""

    job: Job
    outputs: Outputs | None
    reason: str
    queue: float
    decode: float
    run: float


class EdgeLoop:
    """What the daemon's I/O thread does, again and again.

    Parameters
    ----------
    bundle
        The bundle served; None serves visitors only.
    welcome
        What devices are told: session, credit, name and heartbeat.
    capacity
        Requests of all devices together that may wait.
    jobs, done
        To the worker and from it; None is never put here.
    profile_models, profile_seconds
        For :class:`.edge_services.EdgeServices`.
    """

    def __init__(
        self,
        bundle: Bundle | None,
        welcome: Welcome,
        capacity: int,
        jobs: SimpleQueue[Job | None],
        done: SimpleQueue[Done],
        profile_models: Sequence[str] = (),
        profile_seconds: float = PROFILE_SECONDS,
    ) -> None:
        self._bundle = bundle
        self._bundle_prefix = b"" if bundle is None else wire.bundle_prefix(bundle.id)
        self._services = EdgeServices(welcome.name, self._send, profile_models, profile_seconds)
        self._welcome = welcome
        self._schedule = Schedule(welcome.credit, capacity, MISSED_HEARTBEATS * welcome.heartbeat)
        self._jobs = jobs
        self._done = done
        self._at_work: Job | None = None
        self._counters = {"served": 0, "failed": 0, "expired": 0, "busy": 0}
        self._rejected: dict[str, int] = {}
        self._logged: dict[str, float] = {}
        self._started = time.monotonic()

    def open(self, context: zmq.Context[zmq.Socket[bytes]], binds: tuple[str, str]) -> None:
        """Listen on the tensor and the control endpoint.

        Raises
        ------
        OffloadError
            If one cannot be listened on; every socket is closed then.
        """
        self._pull = context.socket(zmq.PULL)
        self._router = context.socket(zmq.ROUTER)
        self._wake = context.socket(zmq.PAIR)
        self._pull.rcvhwm = 2 * self._welcome.credit
        largest = 0 if self._bundle is None else max_payload(self._bundle.manifest)
        self._pull.maxmsgsize = _SLACK_BYTES + max(largest, wire.MAX_HEADER_BYTES, MAX_PROBE_BYTES)
        self._router.sndhwm = self._router.rcvhwm = MAX_CREDIT
        self._router.maxmsgsize = _SLACK_BYTES + MAX_CONTROL_BYTES
        # Sending to a device that is gone is an error, and one that is back takes its place.
        self._router.router_mandatory = 1
        self._router.router_handover = 1
        for each in (self._pull, self._router, self._wake):
            each.linger = _LINGER_MS if each is self._router else 0
            each.sndtimeo = each.rcvtimeo = 0
        endpoint = ""
        try:
            for each, endpoint in zip((self._pull, self._router), binds, strict=True):
                # Connections of devices that lost their power are found out by TCP.
                each.tcp_keepalive = 1
                each.tcp_keepalive_idle = 30
                each.tcp_keepalive_intvl = 10
                each.tcp_keepalive_cnt = 3
                each.bind(endpoint)
            self._wake.bind(WAKE)
        except zmq.ZMQError as error:
            self.close()
            raise OffloadError(f"cannot listen on {endpoint}: {error}") from error
        self._poller = zmq.Poller()
        for each in (self._pull, self._router, self._wake):
            self._poller.register(each, zmq.POLLIN)

    @property
    def endpoints(self) -> tuple[str, str]:
        """The tensor and the control endpoint, with the ports that wildcards became."""
        return _bound(self._pull), _bound(self._router)

    def step(self) -> None:
        """Wait for something to do, a heartbeat at most, and do it."""
        self._poller.poll(int(1000 * min(self._welcome.heartbeat, 1.0)))
        while _receive(self._wake):
            pass  # only there to wake this thread up
        self._read_control()
        self._read_requests()
        self._finish()
        self._dispatch()
        self._services.step()
        for name in self._schedule.forget_silent(time.monotonic()):
            logger.info("device %r is silent", name)

    def say_goodbye(self) -> None:
        """Send what the worker still finished, and Goodbye to every device."""
        self._finish()
        for device_id in self._schedule.devices:
            self._send(device_id, Goodbye())
        self._services.close()

    def close(self) -> None:
        """Close the sockets."""
        for each in (self._pull, self._router, self._wake):
            each.close()

    def stats(self) -> StatsReply:
        """Count what happened so far; may be called by any thread."""
        return StatsReply(
            **self._counters,
            rejected=dict(self._rejected),
            devices=len(self._schedule.devices),
            uptime=time.monotonic() - self._started,
        )

    def _read_control(self) -> None:
        for _ in range(_BATCH):
            if not (frames := _receive(self._router)):
                return
            device_id = bytes(frames[0])
            try:
                if len(frames) != 2:
                    raise ControlMessageError(f"{len(frames) - 1} frames, 1 expected")
                message = decode_at_edge(frames[1])
            except WireError as error:
                self._reject(error)
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
                self._schedule.forget(device_id)
                self._services.forget(device_id)
            else:
                self._services.take(device_id, message)

    def _greet(self, device_id: bytes, hello: Hello) -> None:
        refused = None
        if len(device_id) != wire.DEVICE_ID_BYTES or device_id[0] == 0:
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
            if not (frames := _receive(self._pull)):
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
                self._reject(error)
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
                self._counters["busy"] += 1
                self._fail(device_id, request_id, "busy", "too many requests wait")

    def _dispatch(self) -> None:
        """Give the worker its next job; only one, so that turns and deadlines are the latest."""
        while self._at_work is None and (job := self._schedule.next()) is not None:
            if time.monotonic() < job.expires:
                self._at_work = job
                self._jobs.put(job)
                return
            self._schedule.done(job)
            self._counters["expired"] += 1
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
                    self._counters["failed"] += 1
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
        self._counters["served"] += 1  # before the device can know
        self._send(done.job.device_id, result, frames)

    def _fail(self, device_id: bytes, request_id: int, code: FailureCode, message: str) -> None:
        self._send(device_id, Failed(request_id, code, message[:1000]))

    def _send(
        self, device_id: bytes, message: ToDevice, tensors: Sequence[wire.Buffer] = ()
    ) -> None:
        # A device that is gone, or does not read, does without: it asks again if it needs to.
        with contextlib.suppress(zmq.ZMQError):
            self._router.send_multipart(
                [device_id, encode(message), *tensors], zmq.NOBLOCK, copy=False
            )

    def _reject(self, error: ScissionLiteError) -> None:
        kind, now = type(error).__name__, time.monotonic()
        self._rejected[kind] = self._rejected.get(kind, 0) + 1
        if now - self._logged.get(kind, -_LOG_INTERVAL) >= _LOG_INTERVAL:
            self._logged[kind] = now
            logger.warning("%s (%d so far): %s", kind, self._rejected[kind], error)


def _bound(each: zmq.Socket[bytes]) -> str:
    endpoint = each.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return endpoint.rstrip(b"\0").decode()


def _receive(each: zmq.Socket[bytes]) -> list[memoryview]:
    """Read a message if there is one; its frames are not copied."""
    try:
        return [frame.buffer for frame in each.recv_multipart(zmq.NOBLOCK, copy=False)]
    except zmq.Again:
        return []
