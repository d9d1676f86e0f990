"""Sources: the devices of a share, which compute, send, and answer themselves. No torch.

A Device that gets no answer notices the outage once, after :data:`.routes.NOTICED` seconds, and
then answers otherwise at once, until an edge is back for :data:`.routes.BACK` seconds
(docs/device.md, tests/test_half_dead.py). With a fallback, an edge's answer is waited for until a
local run must begin, but for half of the deadline in any case
(:meth:`scissionlite.offloader.device.answering.Answering.prepare`). A local run takes the device's
time, as everything that it computes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scissionlite.fleet.assignment import Share
from scissionlite.fleet.inventory import Devices, Inventory
from scissionlite.fleet.routes import NOTICED, Mask, Numbers, Route, Way, routes_of
from scissionlite.fleet.station import Floats, Requests, spread
from scissionlite.fleet.tally import Tally

_JITTER = 0.05  # of the interval: how exact a periodic device is
_RESERVE = 1.25  # a local run is given so many times what it takes


class _Events(NamedTuple):
    """Frames, or local runs of requests that no edge has answered in time, as columns.

    Attributes
    ----------
    device
        Positions of the devices.
    time
        When the device may begin.
    born
        When the frames were taken.
    waited
        Whether they are local runs.
    """

    device: Numbers
    time: Floats
    born: Floats
    waited: Mask

    def take(self, which: Numbers | Mask) -> _Events:
        """Those that a mask or positions select."""
        return _Events(self.device[which], self.time[which], self.born[which], self.waited[which])

    @classmethod
    def joined(cls, several: Sequence[_Events]) -> _Events:
        """All of several, in one."""
        return cls(
            np.concatenate([each.device for each in several]),
            np.concatenate([each.time for each in several]),
            np.concatenate([each.born for each in several]),
            np.concatenate([each.waited for each in several]),
        )


class Source:
    """The devices of a share, which send their requests window by window.

    Parameters
    ----------
    inventory
        The plant.
    share
        The devices and what they do.
    seconds
        Plant time that is simulated.
    ways
        The list of ways, to which those of this share are added.
    position
        Of this source.
    rng
        Of all that is random.
    """

    def __init__(
        self,
        inventory: Inventory,
        share: Share,
        seconds: float,
        ways: list[Way],
        position: int,
        rng: np.random.Generator,
    ) -> None:
        option, count = share.option, share.count
        self._group, self._devices = option.group, inventory.devices[option.group]
        self._local = local_seconds(inventory, option.group)
        self._stage = option.plan.predicted.device_stage
        self._patience = patience(self._devices, self._local)
        self._free, self._link_free = np.zeros(count), np.zeros(count)
        self._rng = rng
        self._arrivals = _Arrivals(self._devices, count, rng)
        self._later: list[_Events] = []  # local runs that are to come
        self._ways = ways
        self._routes: list[Route] = []
        if option.edge is not None:
            self._routes = routes_of(
                inventory,
                option.group,
                option.edge,
                option.plan,
                count=count,
                seconds=seconds,
                ways=ways,
                source=position,
                rng=rng,
            )

    @property
    def shortest_wait(self) -> float:
        """Seconds after its frame at which a device begins a local run at the earliest."""
        if self._devices.fallback == "raise" or not self._routes:
            return math.inf
        may_fail = any(each.absences.possible for each in self._routes)
        return min(self._patience, NOTICED) if may_fail else self._patience

    def send(self, start: float, end: float, tally: Tally) -> Requests:
        """Do what begins in a window; return the requests that go to a station."""
        frames = self._arrivals.between(start, end)
        sent = [self._step(each, tally) for each in self._in_turns(frames, end)]
        return Requests.joined(sent)

    def finish(self, tally: Tally) -> None:
        """Do all that is left to do on the devices; no frame is taken any more."""
        for each in self._in_turns(self._arrivals.between(0.0, 0.0), np.inf):
            self._step(each, tally)

    def answered(self, device: Numbers, born: Floats, latencies: Floats, tally: Tally) -> None:
        """Take what edges made of requests: seconds until the answer is here, or infinity."""
        in_time = latencies <= self._patience
        tally.edge_answers(self._group, latencies[in_time])
        late = ~in_time
        self._unanswered(device[late], born[late], self._patience, tally)

    def _unanswered(self, device: Numbers, born: Floats, waited: float, tally: Tally) -> None:
        """Requests that got no answer of an edge for some seconds."""
        if self._devices.fallback == "raise":
            tally.lose(self._group, len(device))
        elif len(device):
            begin = born + min(waited, self._patience)
            every = np.ones(len(device), dtype=bool)
            self._later.append(_Events(device, begin, born, every))

    def _in_turns(self, frames: _Events, end: float) -> list[_Events]:
        """The first, second, ... event of every device that has one before the end."""
        events = frames
        if self._later:
            later = _Events.joined(self._later)
            due = later.time < end
            self._later = [later.take(~due)] if not due.all() else []
            events = _Events.joined([frames, later.take(due)])
        order = np.lexsort((events.time, events.device))
        events = events.take(order)
        begins = np.flatnonzero(np.diff(events.device, prepend=-1))
        lengths = np.diff(begins, append=len(order))
        turn = np.arange(len(order)) - np.repeat(begins, lengths)
        return [events.take(turn == k) for k in range(int(lengths.max(initial=0)))]

    def _step(self, events: _Events, tally: Tally) -> Requests:
        """Do one thing on each of some devices."""
        # What has not begun by its deadline is given up.
        begins = np.maximum(events.time, self._free[events.device])
        too_late = begins > events.born + self._devices.deadline
        if self._routes and too_late.any():
            tally.lose(self._group, int(too_late.sum()))
            events = events.take(~too_late)
        device, born = events.device, events.born
        route, begin, fails = self._chosen(events)
        # What finds no route is answered here, or is an error, at once.
        here = (route < 0) & ~fails
        raises = here & (self._devices.fallback == "raise") & bool(self._routes)
        work = np.full(len(born), self._stage)
        if self._routes:
            work[here] = self._local
            work[raises] = 0.0
        work *= spread(self._devices.variation, len(born), self._rng)
        done = np.maximum(events.time, self._free[device]) + work
        self._free[device] = done
        tally.lose(self._group, int(raises.sum()))
        local = here & ~raises
        tally.local_answers(self._group, (done - born)[local])
        self._unanswered(device[fails], born[fails], NOTICED, tally)
        goes = route >= 0
        if not goes.any():
            return Requests.joined([])
        device, born, route = device[goes], born[goes], route[goes]
        serial = np.array([each.serial for each in self._routes])[route]
        way = np.array([each.way for each in self._routes])[route]
        begin = np.maximum(done[goes], begin[goes])
        left = np.maximum(begin, self._link_free[device]) + serial
        self._link_free[device] = left
        delay = np.array([each.delay for each in self._ways])[way]
        work = np.array([each.work for each in self._ways])[way]
        return Requests(left + delay, work, born + self._patience, born, way, device)

    def _chosen(self, events: _Events) -> tuple[Numbers, Floats, Mask]:
        """The route of each request or -1, the earliest time to send it, and who notices."""
        number = len(events.device)
        chosen = np.full(number, -1)
        begin = np.full(number, -np.inf)
        fails = np.zeros(number, dtype=bool)
        open_ones = np.flatnonzero(~events.waited)
        for position, route in enumerate(self._routes):
            if not len(open_ones):
                break
            met = route.absences.meet(events.device[open_ones], events.born[open_ones])
            fails[open_ones[met.fails]] = True
            goes = ~met.away | (np.isfinite(met.until) & ~met.fails)
            chosen[open_ones[goes]] = position
            begin[open_ones[goes]] = met.until[goes]
            open_ones = open_ones[~goes & ~met.fails]
        return chosen, begin, fails


class _Arrivals:
    """When the devices of a share take their frames."""

    def __init__(self, devices: Devices, count: int, rng: np.random.Generator) -> None:
        self._devices, self._count, self._rng = devices, count, rng
        self._phase = rng.uniform(0, 1 / devices.rate, count)

    def between(self, start: float, end: float) -> _Events:
        """The frames of a window."""
        rate, count = self._devices.rate, self._count
        if self._devices.arrivals == "poisson":
            number = int(self._rng.poisson(rate * (end - start) * count))
            device = self._rng.integers(count, size=number)
            time = self._rng.uniform(start, end, number)
        else:
            first = np.ceil((start - self._phase) * rate).astype(np.int64)
            numbers = np.ceil((end - self._phase) * rate).astype(np.int64) - first
            device = np.repeat(np.arange(count), numbers)
            nth = np.arange(len(device)) - np.repeat(np.cumsum(numbers) - numbers, numbers)
            time = (first[device] + nth) / rate + self._phase[device]
            time += self._rng.uniform(0, _JITTER / rate, len(device))
        return _Events(device, time, time, np.zeros(len(device), dtype=bool))


def local_seconds(inventory: Inventory, group: int) -> float:
    """Seconds of the uncut network on a device of a group."""
    profile = inventory.profiles[inventory.devices[group].name]
    return profile.preprocess + profile.network_latency


def patience(devices: Devices, local: float) -> float:
    """Seconds for which an edge's answer is waited for."""
    if devices.fallback == "raise":
        return devices.deadline
    return devices.deadline - min(devices.deadline / 2, _RESERVE * local)
