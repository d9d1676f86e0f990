"""The slice of one bundle in a process of Ray, for the calls of the daemons.

A call is the requests that a daemon wants run together; the answer is the frames that it sends on.
Both are pickled by Ray, between processes that the cluster trusts; arrays of 100 KB and more cross
in its object store, and are read there without a copy.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from ray import serve

from scissionlite import __version__
from scissionlite.errors import BundleError
from scissionlite.offloader.edge.engines.engine import SliceOptions
from scissionlite.offloader.edge.engines.local import LocalEngine
from scissionlite.offloader.edge.engines.ray_options import RayOptions
from scissionlite.offloader.edge.metrics import BundleMetrics, Traffic
from scissionlite.offloader.edge.schedule import Done, Job
from scissionlite.offloader.edge.served import Served
from scissionlite.offloader.wire import Buffer, TensorHeader


class Request(msgspec.Struct, frozen=True):
    """A checked request of a device; ``left`` is the time in seconds to its deadline."""

    device_id: bytes
    request_id: int
    tensors: tuple[TensorHeader, ...]
    payloads: list[npt.NDArray[np.uint8]]
    samples: int
    left: float


class Reply(msgspec.Struct, frozen=True):
    """The end of a request, as :class:`.schedule.Done`; ``position`` is its place in the call."""

    position: int
    frames: list[npt.NDArray[np.uint8]]
    reason: str
    decode: float
    run: float
    expired: bool


class Setting(msgspec.Struct, frozen=True):
    """The parts of an application: daemons that want the same ones share it as it is.

    ``path`` is that of the bundle's folder, on a file system that every node reads.
    """

    path: str
    bundle_id: str
    options: SliceOptions
    ray: RayOptions
    version: str = __version__


class EdgeReplica:
    """Runs a bundle's slice, one run at a time.

    Parameters
    ----------
    setting
        What it runs.

    Raises
    ------
    BundleError
        If another bundle lies at the path, or this node has another version of ScissionLite.
    """

    def __init__(self, setting: Setting) -> None:
        if setting.version != __version__:
            raise BundleError(
                f"the daemon has ScissionLite {setting.version}, this node of Ray {__version__}: "
                "install the same on all"
            )
        side = LocalEngine().open(setting.path, setting.options)
        if side.bundle.id != setting.bundle_id:
            raise BundleError(
                f"{setting.path} on this node is bundle {side.bundle.id[:12]}, not "
                f"{setting.bundle_id[:12]}: share the folder, or copy the same bundle to it"
            )
        self._setting = setting
        self._served = Served(side, BundleMetrics(side.bundle, Traffic()))
        self._runner = ThreadPoolExecutor(1, "scissionlite-slice")
        self._finish_together: Any = None
        if setting.ray.replica_batch_delay > 0 and side.batch > 1:
            self._finish_together = serve.batch(
                self._finish,
                max_batch_size=side.batch,
                batch_wait_timeout_s=setting.ray.replica_batch_delay,
                batch_size_fn=_samples,
            )

    async def describe(self) -> tuple[Setting, int]:
        """Return what it runs, and the samples in one run beyond which it gains nothing."""
        return self._setting, self._served.side.batch

    async def finish(self, call: Sequence[Request]) -> list[list[Reply]]:
        """Answer the requests of a call, as :meth:`.engine.Computation.finish`."""
        if self._finish_together is not None and _samples([call]) <= self._served.side.batch:
            runs: list[list[Reply]] = await self._finish_together(call)
            return runs
        return (await self._finish([call]))[0]

    async def _finish(self, calls: Sequence[Sequence[Request]]) -> list[list[list[Reply]]]:
        """Answer the requests of several calls in as few runs as possible."""
        arrived = time.monotonic()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._runner, self._work, calls, arrived)

    def _work(self, calls: Sequence[Sequence[Request]], arrived: float) -> list[list[list[Reply]]]:
        places: dict[int, tuple[int, int]] = {}  # of a job: its call, and its place there
        jobs: list[Job] = []
        answers: list[list[list[Reply]]] = [[] for _ in calls]
        now = time.monotonic()
        for number, call in enumerate(calls):
            for position, request in enumerate(call):
                if now - arrived >= request.left:
                    answers[number].append([Reply(position, [], "", 0.0, 0.0, expired=True)])
                    continue
                jobs.append(self._job(request, arrived))
                places[id(jobs[-1])] = number, position
        if jobs:
            for run in self._served.side.finish(jobs):
                parts: dict[int, list[Reply]] = {}
                for done in run:
                    number, position = places[id(done.job)]
                    parts.setdefault(number, []).append(_reply(position, done))
                for number, part in parts.items():
                    answers[number].append(part)
        return answers

    def _job(self, request: Request, arrived: float) -> Job:
        return Job(
            self._served,
            request.device_id,
            request.request_id,
            request.tensors,
            [payload.data for payload in request.payloads],
            request.samples,
            arrived,
            arrived + request.left,
        )


def as_array(frame: Buffer) -> npt.NDArray[np.uint8]:
    """A frame as an array without a copy: Ray keeps arrays apart from what it pickles."""
    return np.frombuffer(frame, np.uint8)


def _reply(position: int, done: Done) -> Reply:
    frames = [as_array(frame) for frame in done.frames]
    return Reply(position, frames, done.reason, done.decode, done.run, done.expired)


def _samples(calls: Sequence[Any]) -> int:
    return sum(request.samples for call in calls for request in call)
