"""The edge daemon's I/O loop: who may send what, and what is answered.

One thread at a time, the leader (:mod:`.threads`), waits for messages and handles them; a thread
that has finished a job sends its result itself. Both hold the loop's lock, which is free while the
leader waits.

Whatever arrives is untrusted. A message that breaks a rule is counted by the class of its error
and dropped; nothing that one peer sends can stop the daemon or change another peer's answers.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence

from msgspec import structs

from scissionlite.bundle import Bundle
from scissionlite.errors import (
    BundleMismatchError,
    ControlMessageError,
    ForeignDeviceIdError,
    UnauthorizedKeyError,
    WireError,
)
from scissionlite.offloader import wire
from scissionlite.offloader.bundle_tensors import find_variant, request_samples
from scissionlite.offloader.edge.access import Access
from scissionlite.offloader.edge.batching import Batches
from scissionlite.offloader.edge.bounds import bounds_of
from scissionlite.offloader.edge.metrics import Metrics, Outcome
from scissionlite.offloader.edge.schedule import Done, Job, Schedule
from scissionlite.offloader.edge.services import EdgeServices
from scissionlite.offloader.edge.sockets import EdgeSockets
from scissionlite.offloader.limits import EdgeLimits
from scissionlite.offloader.link_keys import EdgeKeys
from scissionlite.offloader.waker import Waker
from scissionlite.offloader.wire.control import (
    PROTOCOL_VERSION,
    Failed,
    FailureCode,
    Goodbye,
    Grant,
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

_HOUSEKEEPING = 0.01  # seconds for which a run may come before what is due
_BATCH = 64  # messages read from one socket before the other has its turn
_LAST_BATCH = 4096  # messages read when the daemon is stopped: what has arrived by then


class EdgeLoop:
    """The daemon's sockets, devices and waiting jobs, step by step.

    Parameters
    ----------
    bundle
        The bundle served; None serves edge clients only.
    welcome
        The answer to a device's Hello.
    limits
        Of the daemon.
    keys
        Of the daemon and of the devices that it takes; None takes every device.
    profile_models
        Globs of the model names that may be profiled.
    workers
        Runs of the slice that may be at work at once.
    batch
        Samples that are run together.
    """

    def __init__(
        self,
        bundle: Bundle | None,
        welcome: Welcome,
        limits: EdgeLimits,
        keys: EdgeKeys | None,
        profile_models: Sequence[str],
        workers: int,
        batch: int,
    ) -> None:
        self._bundle_prefix = b"" if bundle is None else wire.bundle_prefix(bundle.id)
        self._welcome = welcome
        self._services = EdgeServices(welcome.name, self._send, profile_models, limits)
        self._lock = threading.Lock()
        # Under the lock:
        self._schedule = Schedule(limits)
        self._batches = Batches(self._schedule, workers, batch)
        self.metrics = Metrics(self._schedule)
        self._recorded = None if bundle is None else self.metrics.add_bundle(bundle)
        self._access = Access(keys, self.metrics)

    def open(self, endpoints: Endpoints, waker: Waker) -> Endpoints:
        """Listen; return the endpoints with the ports that wildcards became.

        Raises
        ------
        OffloadError
            If an endpoint cannot be listened on.
        """
        self._waker = waker
        manifest = None if self._recorded is None else self._recorded.bundle.manifest
        bounds = bounds_of(self._schedule.limits, manifest)
        self.metrics.connections_limit = bounds.connections
        self._sockets = EdgeSockets(
            endpoints,
            bounds=bounds,
            access=self._access,
            on_end=self.metrics.refuse,
        )
        self.metrics.endpoints = self._sockets.endpoints
        return self.metrics.endpoints

    def step(self, until: float) -> list[Job]:
        """Wait for something to do, at most until a monotonic time, and do it; of the leader.

        It does not wait longer than a heartbeat.

        Returns
        -------
        list of Job
            What the leader is to work on, in one run.
        """
        until = min(until, self._batches.due)
        seconds = max(0.0, min(self._welcome.heartbeat, 1.0, until - time.monotonic()))
        self._sockets.wait(self._lock, self._waker, math.ceil(1000 * seconds))
        with self._lock:
            if self._sockets.answer_handshakes():
                self._drop_revoked()
            self._read_control()
            self._read_requests()
            jobs = self._next_jobs()
            if not jobs or time.monotonic() > self.metrics.stepped + _HOUSEKEEPING:
                self._keep_house()
            return jobs

    def _keep_house(self) -> None:
        """Do what is due, whether messages come or not."""
        self._services.step()
        self.metrics.connections = self._sockets.look_at_connections()
        self.metrics.stepped = now = time.monotonic()
        for name in self._schedule.remove_silent(now):
            self._access.log.info("silent", name, "device %r is silent", name, device=name)
        self._share_queue()

    def next_jobs(self) -> list[Job]:
        """Take the jobs for the next run, if any wait and one more run may be; of any thread."""
        with self._lock:
            return self._next_jobs()

    def finish(self, several: Sequence[Done]) -> None:
        """Send the results of a run; of the thread that worked on it."""
        with self._lock:
            if self._sockets.closed:
                return
            self._batches.finish([done.job for done in several])
            if self._recorded is not None and several[0].frames:
                self._recorded.batch_size.add(several[0].samples)
            for done in several:
                self._finish(done)
            # Sending may have taken notice of messages for which the leader then waits in vain.
            if self._sockets.has_control:
                self._waker.wake()

    def _finish(self, done: Done) -> None:
        assert self._recorded is not None  # or there were no request
        job = done.job
        if done.frames:
            self._end(job, "served", _nbytes(done.frames))  # before the device can know
            result = Result(job.request_id, done.queue, done.decode, done.run)
            self._send(job.device_id, result, done.frames)
            self._recorded.time(done)
        else:
            self._end(job, "failed")
            self._fail(job.device_id, job.request_id, "execution", done.reason)

    @property
    def idle(self) -> bool:
        """Whether every request that was accepted is answered."""
        return self._schedule.empty

    def reload(self) -> None:
        """Read again, in the next step, what may change while it runs; of any thread."""
        self._access.reload()

    def stop_accepting(self) -> None:
        """Take no device any more, and no request but those that have arrived; of the leader."""
        with self._lock:
            self._read_requests(most=_LAST_BATCH)
            self._schedule.accepting = False

    def close(self) -> None:
        """Say Goodbye to every device, and close the sockets; of the leader. No step follows."""
        with self._lock:
            for device_id in self._schedule.devices:
                self._send(device_id, Goodbye())
            self._services.close()
            self.metrics.endpoints = None
            self._sockets.close()

    def stats(self) -> StatsReply:
        """Return the counts so far; may be called by any thread."""
        return self.metrics.stats()

    def _read_control(self) -> None:
        for _ in range(_BATCH):
            peer, frames, connection = self._sockets.receive_control()
            if not frames:
                return
            device_id = bytes(frames[0])
            try:
                self._access.check(peer)
                self._check_owner(peer, device_id)
                if len(frames) != 2:
                    raise ControlMessageError(f"{len(frames) - 1} frames, 1 expected")
                message = decode_at_edge(frames[1])
            except WireError as error:
                self.metrics.reject(error)
                if isinstance(error, ForeignDeviceIdError):
                    self._send(device_id, Refused("identity", str(error)))
                elif isinstance(error, UnauthorizedKeyError):
                    self._send(device_id, Refused("unauthorized", str(error)))
                self._sockets.reject(connection, error)
                continue
            now = time.monotonic()
            if isinstance(message, Hello):
                self._greet(device_id, message, peer)
            elif isinstance(message, Ping):
                if (usage := self._schedule.usage(device_id)) is not None and connection:
                    usage.round_trip = connection.round_trip()
                if self._schedule.hear(device_id, now) or self._services.hear(device_id):
                    self._send(device_id, Pong(message.sequence))
            elif isinstance(message, Stats):
                self._send(device_id, self.stats())
            elif isinstance(message, Goodbye):
                if (name := self._schedule.remove(device_id)) is not None:
                    self._access.log.info("left", name, "device %r left", name, device=name)
                    self._share_queue()
                self._services.remove(device_id)
            else:
                self._services.take(device_id, message, peer)

    def _share_queue(self) -> None:
        """Tell the devices whose credit changes, because others have come or gone."""
        for device_id, credit in self._schedule.new_credits():
            self._send(device_id, Grant(credit))

    def _peer_of(self, device_id: bytes) -> str | None:
        """Who said Hello or ClientHello with a device id; None if nobody did."""
        peer = self._schedule.peer(device_id)
        return self._services.peer(device_id) if peer is None else peer

    def _check_owner(self, peer: str, device_id: bytes) -> None:
        """Raise a ForeignDeviceIdError if the device id in a message is not its sender's."""
        if self._peer_of(device_id) not in (None, peer):
            raise ForeignDeviceIdError("the device id in the message belongs to another device")

    def _drop_revoked(self) -> None:
        """Refuse the devices and edge clients whose keys are no longer authorised."""
        for device_id in (*self._schedule.devices, *self._services.clients):
            try:
                self._access.check(self._peer_of(device_id) or "")
            except UnauthorizedKeyError as error:
                self.metrics.refuse("unauthorized")
                text = "a connected device is refused: %s"
                self._access.log.warning("revoked", str(error), text, error, code="unauthorized")
                self._send(device_id, Refused("unauthorized", str(error)))
                self._schedule.remove(device_id)
                self._services.remove(device_id)

    def _greet(self, device_id: bytes, hello: Hello, peer: str) -> None:
        refused = None
        if not wire.is_device_id(device_id):
            refused = Refused("identity", "a device's identity is 16 bytes, the first not zero")
        elif hello.protocol != PROTOCOL_VERSION:
            refused = Refused(
                "protocol", f"it speaks protocol {PROTOCOL_VERSION}, the device {hello.protocol}"
            )
        elif self._recorded is None:
            refused = Refused("bundle-mismatch", "it serves no bundle, only probes and profiles")
        elif hello.bundle != (bundle := self._recorded.bundle).id:
            refused = Refused(
                "bundle-mismatch",
                f"it serves bundle {bundle.id[:12]} ({bundle.manifest.model[:100]}), "
                f"the device has {hello.bundle[:12]}: copy the same bundle to both",
            )
        elif not self._schedule.greet(device_id, hello.name, time.monotonic(), peer):
            refused = Refused("full", "it serves as many devices as its limits allow")
        if refused is not None:
            self.metrics.refuse(refused.code)
            self._access.log_refused(hello, peer, refused)
            self._send(device_id, refused)
            return
        if not self._schedule.accepting:
            self._send(device_id, Goodbye())
            return
        who = self._access.describe(peer)
        if (usage := self._schedule.usage(device_id)) is not None:
            usage.address = who
        self._access.log_connected(hello, peer)
        self._send(device_id, structs.replace(self._welcome, credit=self._schedule.credit))
        self._share_queue()

    def _read_requests(self, most: int = _BATCH) -> None:
        for _ in range(most):
            peer, frames, connection = self._sockets.receive_tensors()
            if not frames:
                return
            try:
                self._access.check(peer)
                header, payloads = wire.unpack(
                    frames, wire.MessageKind.REQUEST, wire.MessageKind.PROBE
                )
                self._check_owner(peer, header.device_id)
                if header.kind is wire.MessageKind.PROBE:
                    known = self._schedule.hear(header.device_id, time.monotonic())
                    self._services.take_probe(header, from_device=known)
                    continue
                if self._recorded is None or header.bundle_id != self._bundle_prefix:
                    raise BundleMismatchError("the request is for another bundle")
                find_variant(self._recorded.bundle.manifest, header.tensors)
            except (WireError, BundleMismatchError) as error:
                self._reject_request(error, peer, frames[0])
                self._sockets.reject(connection, error)
                continue
            now = time.monotonic()
            device_id, request_id = header.device_id, header.request_id
            expires = now + header.deadline_ms / 1000
            if not self._schedule.hear(device_id, now):
                self.metrics.refuse("unknown-device")
                self._fail(device_id, request_id, "unknown-device", "say Hello first")
                continue
            if not self._schedule.accepting:
                continue  # the device sends it elsewhere, or again, after the Goodbye
            samples = request_samples(self._recorded.bundle.manifest, header.tensors)
            job = Job(device_id, request_id, header.tensors, payloads, samples, now, expires)
            usage = self._schedule.usage(device_id)
            self._recorded.receive(usage, _nbytes(frames))
            if not self._schedule.add(job):
                self._recorded.end(usage, "busy")
                self._fail(device_id, request_id, "busy", "too many requests wait")
            elif self._batches.at_once:
                return  # the next leader reads what else has come

    def _reject_request(
        self, error: WireError | BundleMismatchError, peer: str, header: memoryview
    ) -> None:
        """Count a request that breaks a rule, and tell the device, if it is the sender itself."""
        sender = wire.sender(header)
        impostor = isinstance(error, UnauthorizedKeyError | ForeignDeviceIdError)
        if sender is None or impostor or self._peer_of(sender[0]) not in (None, peer):
            self.metrics.reject(error)
        else:
            self.metrics.reject(error, self._schedule.usage(sender[0]))
            code: FailureCode = "malformed" if isinstance(error, WireError) else "bundle-mismatch"
            self._fail(*sender, code, f"{type(error).__name__}: {error}")

    def _next_jobs(self) -> list[Job]:
        before = self._batches.due
        jobs, expired = self._batches.take()
        if self._batches.due < before:
            self._waker.wake()  # the leader may wait for longer
        for job in expired:
            self._end(job, "expired")
            self._fail(job.device_id, job.request_id, "expired", "the deadline passed in the queue")
        return jobs

    def _end(self, job: Job, outcome: Outcome, nbytes: int = 0) -> None:
        """Record how a job ended."""
        assert self._recorded is not None  # or there were no request
        self._recorded.end(self._schedule.usage(job.device_id), outcome, nbytes)

    def _fail(self, device_id: bytes, request_id: int, code: FailureCode, message: str) -> None:
        self._send(device_id, Failed(request_id, code, message[:1000]))

    def _send(
        self, device_id: bytes, message: ToDevice, tensors: Sequence[wire.Buffer] = ()
    ) -> None:
        self._sockets.send(device_id, message, tensors)


def _nbytes(frames: Sequence[wire.Buffer]) -> int:
    return sum(memoryview(frame).nbytes for frame in frames)
