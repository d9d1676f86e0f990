"""Routes: the way of a share's requests to an edge machine, and when it is away. No torch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from scissionlite.errors import PlanError
from scissionlite.fleet.assignment import link_name
from scissionlite.fleet.inventory import Drops, Inventory
from scissionlite.fleet.station import Floats
from scissionlite.scissiontl.planner import plan
from scissionlite.scissiontl.plans import Plan

Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]

NOTICED = 1.26
"""Seconds until a device notices that its edge is away: once, at the first request."""

BACK = 0.2
"""Seconds after which a device uses an edge that is back."""


class Way(NamedTuple):
    """A station on the way of a request, and what follows.

    Attributes
    ----------
    source
        Position of the source whose requests go there.
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

    source: int
    station: str
    delay: float
    work: float
    then: int
    after: float


class Route(NamedTuple):
    """The first part of a request's way, its seconds on the device's own link, and absences."""

    way: int
    serial: float
    absences: Absences


class Met(NamedTuple):
    """Requests and the absences that they meet.

    Attributes
    ----------
    away
        Whether the edge is away for them.
    fails
        Whether they are those with which their device notices it.
    until
        When it is there again, for those whose device knows of no absence; otherwise -infinity.
    """

    away: Mask
    fails: Mask
    until: Floats


class Absences:
    """The times in which an edge is away for the devices of a share, and who has noticed.

    A request that would be sent in an absence waits if it ends before the device notices.

    Parameters
    ----------
    times
        Starts and ends that hold for all devices.
    count
        Number of devices.
    drops
        Random drops of each device's own link, or None.
    rng
        Of the random drops.
    """

    def __init__(
        self,
        times: list[tuple[float, float]],
        count: int,
        drops: Drops | None,
        rng: np.random.Generator,
    ) -> None:
        self._times = sorted(times)
        self._starts = np.array([start for start, _ in self._times])
        self._latest_ends = np.maximum.accumulate([end for _, end in self._times])
        self._noticed = np.zeros((len(self._times), count), dtype=bool)
        self._drops, self._rng = drops, rng
        # The next or the present drop of each device.
        self._start = np.full(count, np.inf)
        self._end = np.full(count, np.inf)
        self._noticed_drop = np.zeros(count, dtype=bool)
        if drops is not None:
            self._start = rng.exponential(drops.between, count)
            self._end = self._start + rng.exponential(drops.seconds, count)

    @property
    def possible(self) -> bool:
        """Whether it is ever away."""
        return bool(self._times) or self._drops is not None

    def meet(self, device: Numbers, born: Floats) -> Met:
        """Find the absences that requests of different devices meet."""
        until = np.full(len(born), -np.inf)
        if not self.possible or not len(born):
            nobody = np.zeros(len(born), dtype=bool)
            return Met(nobody, nobody, until)
        inside: list[tuple[Mask, Mask, Floats | float]] = []
        first = np.searchsorted(self._latest_ends, born.min() - BACK)
        last = np.searchsorted(self._starts, born.max(), "right")
        for number in range(int(first), int(last)):
            start, end = self._times[number]
            within = (born >= start) & (born < end + BACK)
            inside.append((within, self._noticed[number], end))
        if self._drops is not None:
            self._next_drops(device, born)
            within = (born >= self._start[device]) & (born < self._end[device] + BACK)
            inside.append((within, self._noticed_drop, self._end[device]))
        away, known = np.zeros(len(born), dtype=bool), np.zeros(len(born), dtype=bool)
        for within, noticed, over in inside:
            away |= within
            known |= within & noticed[device]
            until = np.where(within, np.maximum(until, over + BACK), until)
        unnoticed = away & ~known
        fails = unnoticed & (until - born > NOTICED)
        for within, noticed, _ in inside:
            noticed[device[fails & within]] = True
        return Met(away, fails, np.where(unnoticed, until, -np.inf))

    def _next_drops(self, device: Numbers, born: Floats) -> None:
        assert self._drops is not None
        while len(device):
            over = born >= self._end[device] + BACK
            device, born = device[over], born[over]
            self._start[device] = self._end[device] + self._rng.exponential(
                self._drops.between, len(device)
            )
            self._end[device] = self._start[device] + self._rng.exponential(
                self._drops.seconds, len(device)
            )
            self._noticed_drop[device] = False


def routes_of(
    inventory: Inventory,
    group: int,
    edge: str,
    taken: Plan,
    *,
    count: int,
    seconds: float,
    ways: list[Way],
    source: int,
    rng: np.random.Generator,
) -> list[Route]:
    """The route of a plan's requests to its edge, and those to others if it may be away.

    Parameters
    ----------
    inventory, group, edge, taken, count
        So many devices of a group (its position) take a plan at an edge.
    seconds
        Plant time that is simulated.
    ways
        To which those of the routes are added.
    source
        Position of the source.
    rng
        Of random drops.
    """
    devices = inventory.devices[group]

    def route(to: str, plan_there: Plan) -> Route:
        absences = _absences(inventory, (devices.name, to), count, seconds, rng)
        return _add_way(ways, source, inventory, group, to, plan_there, absences)

    found = [route(edge, taken)]
    if devices.fallback == "edge" and found[0].absences.possible:
        others = [ends for ends in inventory.links if ends[0] == devices.name and ends[1] != edge]
        for _, other in sorted(others, key=lambda each: inventory.links[each][0].rtt):
            same = _same_plan(inventory, group, other, taken)
            if same is not None:
                found.append(route(other, same))
    return found


def _absences(
    inventory: Inventory,
    ends: tuple[str, str],
    count: int,
    seconds: float,
    rng: np.random.Generator,
) -> Absences:
    name, edge = ends
    times = [
        (each.start, each.end)
        for each in inventory.outages
        if each.edge == edge and each.devices in (None, name)
    ]
    drops = inventory.drops.get(ends)
    if drops is not None and inventory.links[ends][1]:  # all devices lose a shared link together
        common = np.random.default_rng([*ends[0].encode(), 0, *ends[1].encode()])
        now = common.exponential(drops.between)
        while now < seconds:
            times.append((now, now + common.exponential(drops.seconds)))
            now = times[-1][1] + common.exponential(drops.between)
        drops = None
    return Absences(times, count, drops, rng)


def _add_way(
    ways: list[Way],
    source: int,
    inventory: Inventory,
    group: int,
    edge: str,
    taken: Plan,
    absences: Absences,
) -> Route:
    name = inventory.devices[group].name
    link, shared = inventory.links[name, edge]
    predicted = taken.predicted
    there = link.rtt / 2
    back = predicted.transfer_time - predicted.serial_time - there + predicted.offload_time
    work = predicted.decode_time + predicted.edge_time
    ways.append(Way(source, edge, there, work, -1, back))
    if not shared:
        return Route(len(ways) - 1, predicted.serial_time, absences)
    ways.append(Way(source, link_name(name, edge), 0.0, predicted.serial_time, len(ways) - 1, 0.0))
    return Route(len(ways) - 1, 0.0, absences)


def _same_plan(inventory: Inventory, group: int, edge: str, taken: Plan) -> Plan | None:
    name = inventory.devices[group].name
    try:
        plans = plan(
            inventory.profiles[name], inventory.profiles[edge], inventory.links[name, edge][0]
        )
    except PlanError:
        return None
    return next((each for each in plans if _what(each) == _what(taken)), None)


def _what(taken: Plan) -> tuple[object, ...]:
    """Everything that a device does in a plan, whichever edge it asks."""
    return (
        *(taken.kind, taken.slicing_point, taken.spec, taken.image_format, taken.jpeg_quality),
        taken.device_precision,
    )
