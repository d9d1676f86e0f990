"""Sources: the devices of a share, the ways of their requests, and what becomes of them. No torch.

A Device that gets no answer notices the outage once, after :data:`NOTICED` seconds, and then
answers otherwise at once, until an edge is back for :data:`BACK` seconds (docs/device.md,
tests/test_half_dead.py). With a fallback, an edge's late answer is not waited for: the device
answers itself, by the deadline if it can.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from scissionlite.errors import PlanError
from scissionlite.fleet.assignment import Share, link_name
from scissionlite.fleet.inventory import Devices, Inventory
from scissionlite.fleet.station import Floats, Requests
from scissionlite.scissiontl.link import Link
from scissionlite.scissiontl.planner import plan
from scissionlite.scissiontl.plans import Plan

NOTICED = 1.26
"""Seconds until a device notices that its edge is away: once, at the first request."""

BACK = 0.2
"""Seconds after which a device uses an edge that is back."""

_JITTER = 0.05  # of the interval: how exact a periodic device is

EDGE, LOCAL, LOST, LATE = range(4)
"""The counts of a group: answers of edges and of devices, requests that nobody answered, and
requests whose deadline passed."""


class Way(NamedTuple):
    """A station on the way of a request, and what follows.

    Attributes
    ----------
    group
        Position of the group.
    station
        Name.
    delay
        Seconds from the place before to this one.
    work
        Seconds there.
    then
        Position of the next part of the way; -1 where the answer is made.
    after
        Seconds from there back to the device.
    """

    group: int
    station: str
    delay: float
    work: float
    then: int
    after: float


class Route(NamedTuple):
    """The first part of a request's way, and its seconds on the device's own link before."""

    way: int
    serial: float


_NOWHERE = Route(-1, 0.0)


class Source:
    """The devices of a share, which send their requests window by window.

    Parameters
    ----------
    inventory
        The plant.
    share
        The devices and what they do.
    ways
        The list of ways, to which those of this share are added.
    rng
        Of the arrivals.
    """

    def __init__(
        self, inventory: Inventory, share: Share, ways: list[Way], rng: np.random.Generator
    ) -> None:
        self._group, self._plan = share.option.group, share.option.plan
        self._devices = inventory.devices[self._group]
        self._local = local_seconds(inventory, self._group)
        self._free, self._link_free = np.zeros(share.count), np.zeros(share.count)
        self._arrivals = _Arrivals(self._devices, share.count, rng)
        self._route = self._other = _NOWHERE
        away: list[tuple[float, float]] = []
        edge = share.option.edge
        if edge is not None:
            name = self._devices.name
            away = [
                (each.start, each.end)
                for each in inventory.outages
                if each.edge == edge and each.devices in (None, name)
            ]
            self._route = _add_way(ways, inventory, self._group, edge, self._plan)
            if self._devices.fallback == "edge" and away:
                self._other = self._other_way(ways, inventory, edge)
        self._outages = _Outages(away, share.count)
        self._ways = ways

    def _other_way(self, ways: list[Way], inventory: Inventory, edge: str) -> Route:
        """The way to the nearest other edge that can take the same requests."""
        name = self._devices.name
        others = [ends for ends in inventory.links if ends[0] == name and ends[1] != edge]
        for ends in sorted(others, key=lambda each: inventory.links[each][0].rtt):
            found = _same_plan(inventory, self._group, ends[1], self._plan)
            if found is not None:
                return _add_way(ways, inventory, self._group, ends[1], found)
        return _NOWHERE

    def send(self, start: float, end: float, tally: Tally) -> Requests:
        """Make the requests of a window; return those that go to a station."""
        sent: list[Requests] = []
        predicted = self._plan.predicted
        for born, valid in self._arrivals.between(start, end):
            away, first = self._outages.meet(born, valid)
            # A request in an outage that was noticed is answered here, or goes to another edge.
            here = (away & ~first) if self._other.way < 0 else np.zeros_like(away)
            raises = self._devices.fallback == "raise"
            work = np.full(len(born), predicted.device_stage)
            if here.any():
                work[here] = 0.0 if raises else self._local
            done = np.maximum(born, self._free) + work
            self._free = np.where(valid, done, self._free)
            if self._route.way < 0:
                tally.local_answers(self._group, (done - born)[valid])
                continue
            if here.any():
                if raises:
                    tally.lose(self._group, int((here & valid).sum()))
                else:
                    tally.local_answers(self._group, (done - born)[here & valid])
            if first.any():
                tally.unanswered(self._group, int((first & valid).sum()), NOTICED)
            goes = valid & ~here & ~first
            sent.append(self._on_the_way(born, done, goes, away))
        return Requests.joined(sent)

    def _on_the_way(
        self, born: Floats, done: Floats, goes: npt.NDArray[np.bool_], away: npt.NDArray[np.bool_]
    ) -> Requests:
        way = np.where(away, self._other.way, self._route.way)
        serial = np.where(away, self._other.serial, self._route.serial)
        left = np.maximum(done, self._link_free) + serial
        self._link_free = np.where(goes, left, self._link_free)
        delay = np.array([each.delay for each in self._ways])
        work = np.array([each.work for each in self._ways])
        return Requests(
            (left + delay[way])[goes],
            work[way][goes],
            (born + self._devices.deadline)[goes],
            born[goes],
            way[goes],
        )


class _Arrivals:
    """When the devices of a share take their frames."""

    def __init__(self, devices: Devices, count: int, rng: np.random.Generator) -> None:
        self._devices, self._count, self._rng = devices, count, rng
        self._phase = rng.uniform(0, 1 / devices.rate, count)

    def between(self, start: float, end: float) -> list[tuple[Floats, npt.NDArray[np.bool_]]]:
        """The first, second, ... request of every device in a window, and whether there is one."""
        rate, count = self._devices.rate, self._count
        if self._devices.arrivals == "poisson":
            numbers = self._rng.poisson(rate * (end - start), count)
            most = int(numbers.max(initial=0))
            times = self._rng.uniform(start, end, (count, most))
            times[np.arange(most) >= numbers[:, None]] = np.inf
            times.sort(axis=1)
            return [(np.where(t < np.inf, t, end), t < np.inf) for t in times.T]
        first, last = math.ceil(start * rate), math.ceil(end * rate)
        jitter = _JITTER / rate
        every = np.ones(count, dtype=bool)
        return [
            (i / rate + self._phase + self._rng.uniform(0, jitter, count), every)
            for i in range(first, last)
        ]


class _Outages:
    """The times in which an edge is away for the devices of a share, and who has noticed."""

    def __init__(self, times: list[tuple[float, float]], count: int) -> None:
        self._times = times
        self._noticed = np.zeros((len(times), count), dtype=bool)

    def meet(
        self, born: Floats, valid: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Whether requests are made in an outage, and whether they are their device's first."""
        away, first = np.zeros(len(born), dtype=bool), np.zeros(len(born), dtype=bool)
        for (start, end), noticed in zip(self._times, self._noticed, strict=True):
            inside = valid & (born >= start) & (born < end + BACK)
            away |= inside
            first |= inside & ~noticed
            noticed |= inside
        return away, first


class Tally:
    """Counts what becomes of the requests of each group.

    Attributes
    ----------
    counts
        Of each group: :data:`EDGE`, :data:`LOCAL`, :data:`LOST` and :data:`LATE`.
    """

    def __init__(self, inventory: Inventory) -> None:
        groups = range(len(inventory.devices))
        self.counts = [[0, 0, 0, 0] for _ in groups]
        self._latencies: list[list[npt.NDArray[np.float32]]] = [[] for _ in groups]
        self._devices = inventory.devices
        self._local = [local_seconds(inventory, group) for group in groups]

    def latencies(self, group: int) -> npt.NDArray[np.float32]:
        """Seconds from frame to answer, of all that were answered."""
        return np.concatenate([np.empty(0, np.float32), *self._latencies[group]])

    def edge_answers(self, group: int, latencies: Floats) -> None:
        """Count answers of an edge; infinite ones never came."""
        deadline = self._devices[group].deadline
        in_time = latencies <= deadline
        self._add(group, EDGE, latencies[in_time])
        self.unanswered(group, int((~in_time).sum()), deadline)

    def local_answers(self, group: int, latencies: Floats) -> None:
        """Count answers of the devices themselves."""
        self._add(group, LOCAL, latencies)
        self.counts[group][LATE] += int((latencies > self._devices[group].deadline).sum())

    def unanswered(self, group: int, number: int, waited: float) -> None:
        """Count requests that got no answer of an edge for some seconds, or by the deadline."""
        if self._devices[group].fallback == "raise":
            self.lose(group, number)
        elif number:
            local, deadline = self._local[group], self._devices[group].deadline
            latency = max(local, min(deadline, waited + local))
            self.local_answers(group, np.full(number, latency))

    def lose(self, group: int, number: int) -> None:
        """Count requests that nobody answers."""
        self.counts[group][LOST] += number
        self.counts[group][LATE] += number

    def _add(self, group: int, what: int, latencies: Floats) -> None:
        self.counts[group][what] += len(latencies)
        self._latencies[group].append(latencies.astype(np.float32))


def local_seconds(inventory: Inventory, group: int) -> float:
    """Seconds of the uncut network on a device of a group."""
    profile = inventory.profiles[inventory.devices[group].name]
    return profile.preprocess + profile.network_latency


def _add_way(ways: list[Way], inventory: Inventory, group: int, edge: str, taken: Plan) -> Route:
    """Add the way of a plan; return its first part, and the seconds on the device's own link."""
    name = inventory.devices[group].name
    link, shared = inventory.links[name, edge]
    predicted = taken.predicted
    there = link.rtt / 2
    back = predicted.transfer_time - predicted.serial_time - there + predicted.offload_time
    work = predicted.decode_time + predicted.edge_time
    ways.append(Way(group, edge, there, work, -1, back))
    if not shared:
        return Route(len(ways) - 1, predicted.serial_time)
    ways.append(Way(group, link_name(name, edge), 0.0, predicted.serial_time, len(ways) - 1, 0.0))
    return Route(len(ways) - 1, 0.0)


def _same_plan(inventory: Inventory, group: int, edge: str, taken: Plan) -> Plan | None:
    name = inventory.devices[group].name
    link: Link = inventory.links[name, edge][0]
    try:
        plans = plan(inventory.profiles[name], inventory.profiles[edge], link)
    except PlanError:
        return None
    return next((each for each in plans if _what(each) == _what(taken)), None)


def _what(plan: Plan) -> tuple[object, ...]:
    """Everything that a device does in a plan, whichever edge it asks."""
    return (
        *(plan.kind, plan.slicing_point, plan.spec, plan.image_format, plan.jpeg_quality),
        plan.device_precision,
    )
