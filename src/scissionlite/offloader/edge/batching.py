"""Dynamic batching: which requests are run together, and whether that pays.

Requests of several devices are run together where that takes less time than one run each. It does
not everywhere: a slice whose one sample keeps all cores busy gains nothing. So it is measured when
the slice is loaded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np

from scissionlite.graph.tensors import TensorInfo
from scissionlite.offloader.edge.schedule import Job, Schedule
from scissionlite.runtimes import Slice

_GAIN = 1.1  # in throughput, for which a batch is made larger
_SECONDS = 1.0  # about the longest time for the measurement of one batch size
_RUNS = 5


class Batches:
    """Chooses the jobs of the next run. Under the loop's lock.

    Parameters
    ----------
    schedule
        Has the jobs that wait.
    workers
        Runs that may be at work at once.

    Attributes
    ----------
    due : float
        Monotonic time at which the jobs that wait for others are run; infinite if none does.
    """

    def __init__(self, schedule: Schedule, workers: int) -> None:
        self.due = math.inf
        self._schedule = schedule
        self._workers = workers
        self._runs: list[tuple[Job, float]] = []  # at work: the first job, and when it was taken

    def runs_at_once(self, job: Job) -> bool:
        """Whether a job that has come now is run at once, and alone."""
        return job.served.side.batch == 1 and self._worker_is_free()

    def take(self) -> tuple[list[Job], list[Job]]:
        """Take jobs only when they are to be run, so that turns and deadlines are those of now.

        Returns
        -------
        jobs : list of Job
            To be run together, for the same bundle; a job that has more samples than are run
            together is alone. None if none waits, if all workers work, or if it is too early.
        expired : list of Job
            Jobs whose deadline has passed.
        """
        schedule, now = self._schedule, time.monotonic()
        jobs: list[Job] = []
        expired: list[Job] = []
        self.due = math.inf
        if not self._worker_is_free() or not schedule.waiting:
            return jobs, expired
        if schedule.accepting and now < (due := schedule.oldest + schedule.limits.batch_delay):
            served = schedule.head.served
            if schedule.samples_of(served) < served.side.batch:
                self.due = due
                return jobs, expired
        room = 0
        while (job := schedule.next(jobs[0] if jobs else None, room)) is not None:
            if now < job.expires:
                room = (room if jobs else job.served.side.batch) - job.samples
                jobs.append(job)
            else:
                schedule.done(job)
                expired.append(job)
        if jobs:
            self._runs.append((jobs[0], now))
            self._tell()
        return jobs, expired

    def finish(self, jobs: Sequence[Job]) -> None:
        """Take note that a run is over."""
        self._runs = [run for run in self._runs if run[0] not in jobs]
        self._tell()
        for job in jobs:
            self._schedule.done(job)

    def _worker_is_free(self) -> bool:
        return len(self._runs) < self._workers

    def _tell(self) -> None:
        free = self._worker_is_free()
        self._schedule.all_busy_since = math.inf if free else max(begun for _, begun in self._runs)


def best_batch(
    loaded: Slice,
    inputs: Sequence[TensorInfo],
    most: int,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Find the smallest batch size with about the best throughput.

    Parameters
    ----------
    loaded
        The slice, which has run before.
    inputs
        Its inputs; the first dimension is the batch.
    most
        Largest batch size that may be used.
    clock
        Returns seconds.

    Returns
    -------
    int
        A power of two times the example's batch, or ``most``; the example's batch if others gain
        nothing.
    """
    rates: dict[int, float] = {}
    size = single = inputs[0].shape[0]
    while size <= most:
        seconds = _seconds(loaded, [(each.of_batch(size), each.dtype) for each in inputs], clock)
        rates[size] = size / seconds
        if size == most or seconds > _SECONDS:
            break
        size = min(2 * size, most)
    enough = max(rates.values()) / _GAIN
    return next((size for size, rate in rates.items() if rate >= enough), single)


def _seconds(
    loaded: Slice, inputs: Sequence[tuple[tuple[int, ...], str]], clock: Callable[[], float]
) -> float:
    """The shortest of some runs, after one that is not counted."""
    arrays = [np.zeros(shape, dtype) for shape, dtype in inputs]
    shortest, begun = float("inf"), clock()
    for run in range(_RUNS + 1):
        start = clock()
        loaded(*arrays)
        if run > 0 or clock() - begun > _SECONDS:
            shortest = min(shortest, clock() - start)
        if clock() - begun > _SECONDS:
            break
    return max(shortest, 1e-9)
