"""Station: one queue and some servers: an edge's workers, or a shared link. No torch."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Requests(NamedTuple):
    """Requests on their way to a station, as columns.

    Attributes
    ----------
    arrival
        Seconds of plant time at which they are there.
    work
        Seconds for which they take a server.
    latest
        When their deadlines pass: the station drops them then.
    born
        When their frames were taken.
    way
        Positions in the list of ways.
    device
        Positions of the devices in their source.
    """

    arrival: Floats
    work: Floats
    latest: Floats
    born: Floats
    way: npt.NDArray[np.int64]
    device: npt.NDArray[np.int64]

    def take(self, which: npt.NDArray[Any]) -> Requests:
        """Those that a mask or an order selects."""
        return Requests(
            self.arrival[which],
            self.work[which],
            self.latest[which],
            self.born[which],
            self.way[which],
            self.device[which],
        )

    @classmethod
    def joined(cls, several: Sequence[Requests]) -> Requests:
        """All of several, in one."""
        nothing, none = np.empty(0), np.empty(0, np.int64)
        empty = cls(nothing, nothing, nothing, nothing, none, none)
        return cls(*map(np.concatenate, zip(empty, *several, strict=True)))


def spread(variation: float, number: int, rng: np.random.Generator) -> Floats:
    """Factors of mean 1 with a coefficient of variation; they have a gamma distribution."""
    if not variation:
        return np.ones(number)
    return rng.gamma(1 / variation**2, variation**2, number)


class Station:
    """A queue, first in, first out, and its servers.

    Parameters
    ----------
    servers
        Requests that are served at once.
    away
        Start and end of the times in which it is away. What it holds then is lost.
    variation
        Coefficient of variation of the seconds of work, by which they vary at random.
    rng
        Of these.

    Attributes
    ----------
    worked
        Seconds that its servers have worked, together.
    """

    def __init__(
        self,
        servers: int,
        away: Sequence[tuple[float, float]] = (),
        variation: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> None:
        self.servers = servers
        self._variation = variation
        self._rng = np.random.default_rng(0) if rng is None else rng
        self.worked = 0.0
        self._free = [0.0] * servers  # a heap: when each server is free
        self._away = sorted(away)
        self._pending: list[Requests] = []

    def add(self, requests: Requests) -> None:
        """Take requests, in any order."""
        self._pending.append(requests)

    def serve(self, until: float) -> tuple[Requests, Floats]:
        """Serve what arrives before a time, after which nothing earlier may be added.

        Returns
        -------
        served : Requests
            In the order of their arrival.
        ends : ndarray of float64
            When each was done; infinite for those that were dropped or lost.
        """
        pending = Requests.joined(self._pending)
        due = pending.arrival < until
        self._pending = [pending.take(~due)]
        served = pending.take(due)
        served = served.take(np.argsort(served.arrival, kind="stable"))
        ends = []
        free = self._free
        begins, comes_back = self._next_away()
        works = served.work * spread(self._variation, len(served.work), self._rng)
        columns = (served.arrival, works, served.latest)
        for arrival, work, latest in zip(*(each.tolist() for each in columns), strict=True):
            while arrival >= comes_back:
                free[:] = [max(each, comes_back) if each <= begins else comes_back for each in free]
                self._away.pop(0)
                begins, comes_back = self._next_away()
            start = free[0]
            if start < arrival:
                start = arrival
            if start > latest or start >= begins:
                ends.append(np.inf)
                continue
            end = start + work
            heapq.heapreplace(free, end)
            self.worked += min(end, begins) - start
            ends.append(end if end <= begins else np.inf)
        return served, np.array(ends, dtype=np.float64)

    def _next_away(self) -> tuple[float, float]:
        """When it is away next, or now: from when, and until when."""
        return self._away[0] if self._away else (np.inf, np.inf)
