"""Simulation: every request of every device of an assignment, with outages. No torch.

A request passes the device, its link, a worker of the edge, and the link back. Devices and their
own links are first in, first out, one request at a time: computed for all devices of a share at
once, request by request. An edge and a shared link are stations with one queue for all: computed
one request after the other, in the order of arrival. Time goes in windows; what reaches a station
after a window's end waits for the next window. A window is shorter than a device waits for an
answer, so that it is known which requests a device must answer itself before it begins to.

``sources`` has the devices, ``routes`` their ways to the edges, ``station`` the queues, ``tally``
the counts.
"""

from __future__ import annotations

import msgspec
import numpy as np

from scissionlite.fleet.assignment import Assignment, link_name
from scissionlite.fleet.inventory import Inventory
from scissionlite.fleet.routes import Way
from scissionlite.fleet.sources import Source
from scissionlite.fleet.station import Floats, Requests, Station
from scissionlite.fleet.tally import EDGE, LATE, LOCAL, LOST, Tally

_WINDOW = 60.0  # seconds
_SHORTEST = 0.02  # seconds
_MOST = 2_000_000  # requests of all devices in a window, about


class GroupOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The fate of a group's requests.

    Attributes
    ----------
    name
        Of the group.
    requests
        How many there were.
    at_edge, local, lost
        Shares (0 to 1) answered by an edge, by the device itself, and by nobody.
    late
        Share that was lost, or answered after its deadline.
    p50, p95, p99
        Seconds from frame to answer, of those that were answered; NaN if none was.
    """

    name: str
    requests: int
    at_edge: float
    local: float
    lost: float
    late: float
    p50: float
    p95: float
    p99: float


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a simulation.

    Attributes
    ----------
    seconds
        Plant time.
    groups
        By group, in the inventory's order.
    mean
        Mean seconds from frame to answer, of all that were answered.
    late
        Share of all requests that were lost or answered after their deadlines.
    busy
        Share of its time that each edge machine, and each shared link, worked.
    """

    seconds: float
    groups: tuple[GroupOutcome, ...]
    mean: float
    late: float
    busy: dict[str, float]


def simulate(
    inventory: Inventory, assignment: Assignment, seconds: float, *, seed: int = 0
) -> Outcome:
    """Play the requests of some seconds of plant time.

    Parameters
    ----------
    inventory
        The devices, edges, links and outages.
    assignment
        Who cuts where.
    seconds
        Plant time.
    seed
        Of all that is random.
    """
    ways: list[Way] = []
    rng = np.random.default_rng(seed)
    stations = _stations(inventory, rng)
    shares = zip(assignment.shares, rng.spawn(len(assignment.shares)), strict=True)
    sources = [
        Source(inventory, share, seconds, ways, position, each)
        for position, (share, each) in enumerate(shares)
    ]
    tally = Tally(inventory)
    window = _window(inventory, assignment, sources)
    start = 0.0
    while start < seconds:
        end = min(start + window, seconds)
        for source in sources:
            _pass_on(source.send(start, end, tally), ways, stations)
        until = np.inf if end >= seconds else end
        for station in stations.values():  # shared links come before the edges they lead to
            served, ends = station.serve(until)
            _pass_on(_next_hops(served, ends, ways), ways, stations)
            _answer(served, ends, ways, sources, tally)
        start = end
    for source in sources:
        source.finish(tally)
    busy = {name: each.worked / each.servers / seconds for name, each in stations.items()}
    return _outcome(inventory, tally, seconds, busy)


def _window(inventory: Inventory, assignment: Assignment, sources: list[Source]) -> float:
    rate = sum(s.count * inventory.devices[s.option.group].rate for s in assignment.shares)
    longest = min([_WINDOW, *(each.shortest_wait / 2 for each in sources)])
    return max(_SHORTEST, min(longest, max(1.0, _MOST / rate)))


def _stations(inventory: Inventory, rng: np.random.Generator) -> dict[str, Station]:
    stations = {
        link_name(*ends): Station(1) for ends, (_, shared) in inventory.links.items() if shared
    }
    for edge in inventory.edges:
        away = [
            (each.start, each.end)
            for each in inventory.outages
            if each.edge == edge.name and each.devices is None
        ]
        (own,) = rng.spawn(1)
        stations[edge.name] = Station(edge.workers, away, edge.variation, own)
    return stations


def _pass_on(requests: Requests, ways: list[Way], stations: dict[str, Station]) -> None:
    for way in np.unique(requests.way):
        stations[ways[way].station].add(requests.take(requests.way == way))


def _next_hops(served: Requests, ends: Floats, ways: list[Way]) -> Requests:
    """The requests that go on to another station, as they arrive there."""
    found = []
    for way in np.unique(served.way):
        then = ways[way].then
        if then < 0:
            continue
        mine = (served.way == way) & np.isfinite(ends)
        number = int(mine.sum())
        found.append(
            Requests(
                arrival=ends[mine] + ways[then].delay,
                work=np.full(number, ways[then].work),
                latest=served.latest[mine],
                born=served.born[mine],
                way=np.full(number, then),
                device=served.device[mine],
            )
        )
    return Requests.joined(found)


def _answer(
    served: Requests, ends: Floats, ways: list[Way], sources: list[Source], tally: Tally
) -> None:
    for way in np.unique(served.way):
        mine = served.way == way
        if ways[way].then >= 0:
            mine &= ~np.isfinite(ends)  # those went on
        if mine.any():
            born = served.born[mine]
            latencies = ends[mine] + ways[way].after - born
            sources[ways[way].source].answered(served.device[mine], born, latencies, tally)


def _outcome(inventory: Inventory, tally: Tally, seconds: float, busy: dict[str, float]) -> Outcome:
    groups, every, late, requests = [], [], 0, 0
    for position, group in enumerate(inventory.devices):
        latencies = tally.latencies(position)
        counts = tally.counts[position]
        number = counts[EDGE] + counts[LOCAL] + counts[LOST]
        total = max(1, number)
        quantiles = np.quantile(latencies, (0.5, 0.95, 0.99)) if len(latencies) else [np.nan] * 3
        groups.append(
            GroupOutcome(
                name=group.name,
                requests=number,
                at_edge=counts[EDGE] / total,
                local=counts[LOCAL] / total,
                lost=counts[LOST] / total,
                late=counts[LATE] / total,
                **{f"p{n}": float(q) for n, q in zip((50, 95, 99), quantiles, strict=True)},
            )
        )
        every.append(latencies)
        late += counts[LATE]
        requests += number
    answered = np.concatenate(every)
    return Outcome(
        seconds=seconds,
        groups=tuple(groups),
        mean=float(answered.mean(dtype=np.float64)) if len(answered) else float("nan"),
        late=late / max(1, requests),
        busy=busy,
    )
