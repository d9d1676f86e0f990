"""Whose turn it is at the edge: the devices connected, and their requests that wait."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from scissionlite.offloader.wire import TensorHeader


@dataclass(eq=False)
class Job:
    """A checked request: whose it is, its payloads, and when it came and ends (monotonic)."""

    device_id: bytes
    request_id: int
    tensors: tuple[TensorHeader, ...]
    payloads: list[memoryview]
    arrived: float
    expires: float


@dataclass(eq=False)
class _Device:
    name: str
    heard: float
    jobs: deque[Job] = field(default_factory=deque)


class Schedule:
    """Devices and their waiting requests, served in turns. Of one thread.

    Parameters
    ----------
    credit
        Requests that a device may have unanswered. Twice as many may wait, since a device
        forgets a request at its deadline but the edge only at its turn.
    capacity
        Requests of all devices together that may wait.
    silence
        Seconds without a sign of life after which a device is forgotten.
    """

    def __init__(self, credit: int, capacity: int, silence: float) -> None:
        self._jobs_per_device = 2 * credit
        self._capacity = capacity
        self._silence = silence
        self._devices: dict[bytes, _Device] = {}
        self._turns: deque[bytes] = deque()  # devices with waiting jobs, the next one first
        self._held: set[tuple[bytes, int]] = set()  # waiting or at work
        self._waiting = 0

    @property
    def devices(self) -> list[bytes]:
        """Ids of the devices connected."""
        return list(self._devices)

    def greet(self, device_id: bytes, name: str, now: float) -> None:
        """Note a device that has said Hello."""
        if device_id in self._devices:
            self._devices[device_id].heard = now
        else:
            self._devices[device_id] = _Device(name, now)

    def hear(self, device_id: bytes, now: float) -> bool:
        """Note a sign of life; False if the device is unknown."""
        if (device := self._devices.get(device_id)) is None:
            return False
        device.heard = now
        return True

    def forget(self, device_id: bytes) -> None:
        """Drop a device and what of its requests still waits."""
        device = self._devices.pop(device_id, None)
        if device is None:
            return
        if device.jobs:
            self._turns.remove(device_id)
        self._waiting -= len(device.jobs)
        self._held.difference_update((device_id, job.request_id) for job in device.jobs)

    def forget_silent(self, now: float) -> list[str]:
        """Drop every device that was silent for too long; return their names."""
        silent = [
            (device_id, device.name)
            for device_id, device in self._devices.items()
            if now - device.heard > self._silence
        ]
        for device_id, _ in silent:
            self.forget(device_id)
        return [name for _, name in silent]

    def add(self, job: Job) -> bool:
        """Queue a request of a known device; False if there is no room.

        One that is held already, because the device sent it again, is not queued twice.
        """
        key = (job.device_id, job.request_id)
        jobs = self._devices[job.device_id].jobs
        if key in self._held:
            return True
        if self._waiting >= self._capacity or len(jobs) >= self._jobs_per_device:
            return False
        if not jobs:
            self._turns.append(job.device_id)
        jobs.append(job)
        self._held.add(key)
        self._waiting += 1
        return True

    def next(self) -> Job | None:
        """Take the first request of the device whose turn it is; held until :meth:`done`."""
        if not self._turns:
            return None
        device_id = self._turns.popleft()
        jobs = self._devices[device_id].jobs
        job = jobs.popleft()
        if jobs:
            self._turns.append(device_id)
        self._waiting -= 1
        return job

    def done(self, job: Job) -> None:
        """Let go of a request that was answered, one way or another."""
        self._held.discard((job.device_id, job.request_id))
