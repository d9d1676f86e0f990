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
from collections.abc import Callable, Sequence
from pathlib import Path

from scissionlite.errors import (
    BundleMismatchError,
    ControlMessageError,
    ForeignDeviceIdError,
    OffloadError,
    UnauthorizedKeyError,
    WireError,
)
from scissionlite.offloader import wire
from scissionlite.offloader.edge.access import Access
from scissionlite.offloader.edge.administration import Administration
from scissionlite.offloader.edge.admission import Admission
from scissionlite.offloader.edge.bounds import bounds_of
from scissionlite.offloader.edge.engines.engine import Computation
from scissionlite.offloader.edge.metrics import Metrics
from scissionlite.offloader.edge.requests import Requests, Taken
from scissionlite.offloader.edge.schedule import Done, Job, Schedule
from scissionlite.offloader.edge.served import ServedBundles
from scissionlite.offloader.edge.services import EdgeServices
from scissionlite.offloader.edge.sockets import EdgeSockets
from scissionlite.offloader.limits import EdgeLimits
from scissionlite.offloader.link_keys import EdgeKeys
from scissionlite.offloader.waker import Waker
from scissionlite.offloader.wire.control import (
    Goodbye,
    Hello,
    LinkReport,
    Ping,
    Pong,
    Refused,
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
    sides
        The computations of the bundles served from the start; none serves edge clients only.
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
    open_side
        Loads a bundle and its slices.
    """

    def __init__(
        self,
        sides: Sequence[Computation],
        welcome: Welcome,
        limits: EdgeLimits,
        keys: EdgeKeys | None,
        profile_models: Sequence[str],
        workers: int,
        open_side: Callable[[Path], Computation],
    ) -> None:
        self._lock = threading.Lock()
        # Under the lock:
        self._schedule = Schedule(limits)
        self.metrics = Metrics(self._schedule)
        self.bundles = ServedBundles(sides, self.metrics)
        self._services = EdgeServices(
            welcome.name,
            self._send,
            profile_models,
            limits,
            Administration(
                self.bundles,
                self.metrics,
                None if keys is None else keys.admin_keys(),
                open_side,
                self.put,
                self._wake,
            ),
        )
        self._admission = Admission(
            Access(keys, self.metrics),
            welcome,
            self._schedule,
            self.bundles,
            self._services,
            self.metrics,
            self._send,
        )
        self._requests = Requests(
            self._schedule, workers, self._admission, self._services, self.metrics, self._send
        )

    def open(self, endpoints: Endpoints, waker: Waker) -> Endpoints:
        """Listen; return the endpoints with the ports that wildcards became.

        Raises
        ------
        OffloadError
            If an endpoint cannot be listened on.
        """
        self._waker = waker
        manifests = [bundle.manifest for bundle in self.bundles.bundles]
        bounds = bounds_of(self._schedule.limits, manifests)
        self.metrics.connections_limit = bounds.connections
        self._sockets = EdgeSockets(
            endpoints,
            bounds=bounds,
            access=self._admission.access,
            on_end=self.metrics.refuse,
            on_reject=self.metrics.reject_many,
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
        until = min(until, self._requests.due)
        seconds = max(0.0, min(self._schedule.limits.heartbeat, 1.0, until - time.monotonic()))
        self._sockets.wait(self._lock, self._waker, math.ceil(1000 * seconds))
        with self._lock:
            if self._sockets.answer_handshakes():
                self._admission.drop_revoked()
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
        self.metrics.stepped = time.monotonic()
        self._admission.drop_silent()
        self._admission.drop_without_bundle()
        self._admission.share_queue()

    def next_jobs(self) -> list[Job]:
        """Take the jobs for the next run, if any wait and one more run may be; of any thread."""
        with self._lock:
            return self._next_jobs()

    def finish(self, runs: Sequence[Sequence[Done]]) -> None:
        """Send the results of :meth:`.Computation.finish`; of the thread that worked."""
        with self._lock:
            if self._sockets.closed:
                return
            self._requests.finish(runs)
            # Sending may have taken notice of messages for which the leader then waits in vain; and
            # it refuses the devices of a dropped bundle after the last answer.
            if self._sockets.has_control or runs[0][0].job.served.dropped:
                self._waker.wake()

    def put(self, side: Computation, replaces: str | None = None) -> None:
        """Serve a bundle, in the place of another one if that is served; of any thread.

        Raises
        ------
        OffloadError
            If its requests are larger than the daemon takes, there are too many bundles, or the
            daemon has ended.
        """
        with self._lock:
            self._check_open()
            self._sockets.make_room_for(side.bundle.manifest)
            self.bundles.put(side, replaces)
        self._waker.wake()

    def drop(self, bundle_id: str) -> None:
        """Serve a bundle no longer; of any thread.

        Raises
        ------
        OffloadError
            If it is not served, or the daemon has ended.
        """
        with self._lock:
            self._check_open()
            self.bundles.drop(bundle_id)
        self._waker.wake()

    @property
    def idle(self) -> bool:
        """Whether every request that was accepted is answered."""
        return self._schedule.empty

    def reload(self) -> None:
        """Read again, in the next step, what may change while it runs; of any thread."""
        self._admission.access.reload()

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

    @property
    def loading(self) -> bool:
        """Whether an administrator's bundle is being loaded."""
        return self._services.loading

    def _wake(self) -> None:
        self._waker.wake()

    def _check_open(self) -> None:
        if self._sockets.closed:
            raise OffloadError("the edge daemon has ended")

    def _read_control(self) -> None:
        for _ in range(_BATCH):
            peer, frames, connection = self._sockets.receive_control()
            if not frames:
                return
            device_id = bytes(frames[0])
            try:
                self._admission.access.check(peer)
                self._admission.check_owner(peer, device_id)
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
            self._sockets.count_control(connection)
            now = time.monotonic()
            if isinstance(message, Hello):
                if not self._admission.greet(device_id, message, peer):
                    self._sockets.reject(connection)
            elif isinstance(message, Ping):
                if (usage := self._schedule.usage(device_id)) is not None and connection:
                    usage.round_trip = connection.round_trip()
                if self._schedule.hear(device_id, now) or self._services.hear(device_id):
                    self._send(device_id, Pong(message.sequence))
            elif isinstance(message, LinkReport):
                if (usage := self._schedule.usage(device_id)) is not None:
                    usage.link_rtt, usage.bandwidth = message.rtt, message.bandwidth
            elif isinstance(message, Stats):
                self._send(device_id, self.stats())
            elif isinstance(message, Goodbye):
                self._admission.leave(device_id)
                self._services.remove(device_id)
            else:
                self._services.take(device_id, message, peer)

    def _read_requests(self, most: int = _BATCH) -> None:
        for _ in range(most):
            peer, frames, connection = self._sockets.receive_tensors()
            if not frames:
                return
            try:
                taken = self._requests.take(peer, frames)
                if taken is Taken.REFUSED:
                    self._sockets.reject(connection)
                elif taken is Taken.PROBE:
                    self._sockets.count_control(connection)
                elif taken is Taken.RUN:
                    return  # the next leader reads what else has come
            except (WireError, BundleMismatchError) as error:
                self._requests.reject(error, peer, frames[0])
                self._sockets.reject(connection, error)

    def _next_jobs(self) -> list[Job]:
        before = self._requests.due
        jobs = self._requests.next_jobs()
        if self._requests.due < before:
            self._waker.wake()  # the leader may wait for longer
        return jobs

    def _send(
        self, device_id: bytes, message: ToDevice, tensors: Sequence[wire.Buffer] = ()
    ) -> None:
        self._sockets.send(device_id, message, tensors)
