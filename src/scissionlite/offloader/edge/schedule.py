"""The devices connected to an edge, and the order in which their waiting requests are run."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from scissionlite.offloader.edge.metrics import DeviceUsage
from scissionlite.offloader.limits import EdgeLimits
from scissionlite.offloader.wire import Buffer, TensorHeader
from scissionlite.offloader.wire.control import HopTimes

if TYPE_CHECKING:
    from scissionlite.offloader.edge.served import Served


class Job(msgspec.Struct, eq=False):
    """A checked request; ``arrived`` and ``expires`` are monotonic times.

    ``samples`` is its batch; ``served`` the bundle that it was made for, which may be dropped
    meanwhile.
    """

    served: Served
    device_id: bytes
    request_id: int
    tensors: tuple[TensorHeader, ...]
    payloads: list[memoryview]
    samples: int
    arrived: float
    expires: float


class Done(msgspec.Struct, frozen=True, eq=False):
    """The end of a job: the result's frames, or the reason why there are none; times in seconds.

    ``expired`` says that the deadline passed before an engine had an answer, ``busy`` that the next
    edge of three tiers had no room until then. ``hop`` has the times behind this edge, if there are
    three tiers.
    """

    job: Job
    frames: list[Buffer]
    reason: str
    queue: float
    decode: float
    run: float
    expired: bool = False
    busy: bool = False
    hop: HopTimes | None = None


class _Device(msgspec.Struct, eq=False):
    served: Served
    name: str
    peer: str
    heard: float
    credit: int
    jobs: deque[Job] = msgspec.field(default_factory=deque)
    usage: DeviceUsage = msgspec.field(default_factory=DeviceUsage)


class Schedule:
    """Devices and their waiting requests, served in turns. Of one thread.

    Credit is a promise: together the devices are promised no more than the queue holds, except
    that each has one request.

    Parameters
    ----------
    limits
        Credit, queue and silence. Twice the credit may wait, since a device drops a request at
        its deadline but the edge only at its turn.

    Attributes
    ----------
    limits : EdgeLimits
        As given.
    accepting : bool
        Whether it takes requests; false once the daemon is told to stop.
    all_busy_since : float
        Monotonic time of the last run's begin, if it left no worker free; else infinite.
    """

    def __init__(self, limits: EdgeLimits) -> None:
        self.accepting = True
        self.all_busy_since = math.inf
        self.limits = limits
        self._most_credit = limits.credit
        self._queue = limits.queue
        self._silence = limits.device_silence
        self._most_devices = limits.devices
        self._devices: dict[bytes, _Device] = {}
        self._turns: deque[bytes] = deque()  # devices with waiting jobs, the next one first
        self._held: set[tuple[bytes, int]] = set()  # waiting or at work
        self._waiting = 0
        self._shared_anew = False  # whether devices have come or gone

    @property
    def devices(self) -> list[bytes]:
        """Ids of the devices connected."""
        return list(self._devices)

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._waiting

    @property
    def head(self) -> Job:
        """The request whose turn is next, of those that wait."""
        return self._devices[self._turns[0]].jobs[0]

    def samples_of(self, served: Served) -> int:
        """Count the samples in the requests for a bundle that wait."""
        waiting = (job for device_id in self._turns for job in self._devices[device_id].jobs)
        return sum(job.samples for job in waiting if job.served is served)

    @property
    def oldest(self) -> float:
        """Monotonic time at which the request that waits longest has arrived; now if none does."""
        heads = (self._devices[device_id].jobs[0].arrived for device_id in self._turns)
        return min(heads, default=time.monotonic())

    @property
    def capacity(self) -> int:
        """Requests that may wait for their turn."""
        return max(self._queue, len(self._devices))

    @property
    def most_devices(self) -> int:
        """Devices that may be connected at once."""
        return self._most_devices

    def records(self) -> list[tuple[str, float, DeviceUsage]]:
        """Name, monotonic time of the last sign of life, and record of each device."""
        return [(each.name, each.heard, each.usage) for each in list(self._devices.values())]

    @property
    def credit(self) -> int:
        """Each device's share of the queue, in requests."""
        return max(1, min(self._most_credit, self._queue // max(1, len(self._devices))))

    @property
    def empty(self) -> bool:
        """Whether no request waits or is at work."""
        return not self._held

    def served(self, device_id: bytes) -> Served | None:
        """Return the bundle of a device's Hello; None if it is not connected."""
        device = self._devices.get(device_id)
        return None if device is None else device.served

    def devices_of(self, served: Served) -> list[bytes]:
        """Ids of the devices connected that have a bundle."""
        return [name for name, device in self._devices.items() if device.served is served]

    def holds(self, device_id: bytes) -> bool:
        """Whether a request of a device waits or is at work."""
        return any(held == device_id for held, _ in self._held)

    def new_credits(self) -> list[tuple[bytes, int]]:
        """Grant every device its share; return the devices for which that is a change."""
        if not self._shared_anew:
            return []
        self._shared_anew, share = False, self.credit
        changed = [each for each in self._devices.items() if each[1].credit != share]
        for _, device in changed:
            device.credit = share
        return [(device_id, share) for device_id, _ in changed]

    def greet(
        self, device_id: bytes, served: Served, name: str, now: float, peer: str = ""
    ) -> bool:
        """Add a device that has said Hello; False if there is no room for one more."""
        if device_id in self._devices:
            self._devices[device_id].heard = now
            self._devices[device_id].served = served
        elif len(self._devices) < self._most_devices:
            self._devices[device_id] = _Device(served, name, peer, now, 0)
            self._shared_anew = True
        else:
            return False
        self._devices[device_id].credit = self.credit
        return True

    def peer(self, device_id: bytes) -> str | None:
        """Who said Hello with a device id (:attr:`.access.Access.sender`); None if nobody did."""
        device = self._devices.get(device_id)
        return None if device is None else device.peer

    def usage(self, device_id: bytes) -> DeviceUsage | None:
        """Return the record of a device; None if it is not connected."""
        device = self._devices.get(device_id)
        return None if device is None else device.usage

    def hear(self, device_id: bytes, now: float) -> bool:
        """Record a sign of life; False if the device is not connected."""
        if (device := self._devices.get(device_id)) is None:
            return False
        device.heard = now
        return True

    def remove(self, device_id: bytes) -> str | None:
        """Drop a device and its waiting requests; return its name, None if it is not known."""
        device = self._devices.pop(device_id, None)
        if device is None:
            return None
        self._shared_anew = True
        if device.jobs:
            self._turns.remove(device_id)
        self._waiting -= len(device.jobs)
        self._held.difference_update((device_id, job.request_id) for job in device.jobs)
        return device.name

    def remove_silent(self, now: float) -> list[str]:
        """Drop every device that was silent for too long; return their names."""
        silent = [
            (device_id, device.name)
            for device_id, device in self._devices.items()
            if now - device.heard > self._silence
        ]
        for device_id, _ in silent:
            self.remove(device_id)
        return [name for _, name in silent]

    def add(self, job: Job) -> bool:
        """Queue a request of a connected device; False if there is no room.

        A request that is held already, because the device sent it again, is not queued twice.
        """
        key = (job.device_id, job.request_id)
        jobs = self._devices[job.device_id].jobs
        if key in self._held:
            return True
        if self._waiting >= self.capacity:
            return False
        if len(jobs) >= 2 * self._most_credit:
            return False
        if not jobs:
            self._turns.append(job.device_id)
        jobs.append(job)
        self._held.add(key)
        self._waiting += 1
        return True

    def has_used_credit(self, device_id: bytes) -> bool:
        """Whether as many of a connected device's requests wait as it may have unanswered."""
        device = self._devices[device_id]
        return len(device.jobs) >= device.credit

    def next(self, beside: Job | None = None, room: int = 0) -> Job | None:
        """Take the first request of the device whose turn it is; held until :meth:`done`.

        To be run ``beside`` another one, it must be for the same bundle: devices with another one
        keep their turns. None if there is none, or if it has more samples than there is ``room``
        for.
        """
        for device_id in self._turns:
            jobs = self._devices[device_id].jobs
            if beside is None or jobs[0].served is beside.served:
                break
        else:
            return None
        if beside is not None and jobs[0].samples > room:
            return None
        self._turns.remove(device_id)
        job = jobs.popleft()
        if jobs:
            self._turns.append(device_id)
        self._waiting -= 1
        return job

    def done(self, job: Job) -> None:
        """Drop a request that was answered."""
        self._held.discard((job.device_id, job.request_id))
