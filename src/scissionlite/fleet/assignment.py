"""Assignment: which devices cut where and which edge serves them, an integer program. No torch.

Minimise the mean seconds from frame to answer, waiting included, weighted by the rates:

    sum over options o of  n[o] * rate[o] * latency[o]  +  sum over stations s of  W(load[s])

where n[o] is the number of devices that take option o, a station is an edge machine or a shared
link, its load is the sum of n * rate * seconds of work, and W is the number of waiting requests
(:func:`.queueing.waiting`), by Little's law the seconds waited in each second. W is convex, so its
tangents bound it from below, and the program with tangents in its place is linear. The solver is
SciPy's ``milp`` (HiGHS). Its bound is a bound of the exact program, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from scissionlite.errors import PlanError
from scissionlite.fleet.inventory import Inventory
from scissionlite.fleet.options import Option, options_of
from scissionlite.fleet.queueing import waiting, waiting_slope

_TANGENTS = 40
_GAP = 1e-3  # of the objective to its bound, at which the solver may stop


class Share(msgspec.Struct, frozen=True):
    """So many devices of a group, and the option that they take."""

    option: Option
    count: int


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """Who cuts where, and who serves whom.

    Attributes
    ----------
    shares
        The options taken; the counts of a group's add up to its devices.
    latency
        Predicted mean seconds from frame to answer, waiting included; infinite where a station has
        more work than time.
    bound
        No assignment has a lower mean; None if nothing was solved.
    loads
        Share of its time that each edge machine, and each shared link ("group > edge"), works.
    """

    shares: tuple[Share, ...]
    latency: float
    bound: float | None = None
    loads: dict[str, float]


def assign(inventory: Inventory, *, most_busy: float = 0.8, seconds: float = 10.0) -> Assignment:
    """Find the assignment with the least mean latency.

    Parameters
    ----------
    inventory
        The devices, edges and links.
    most_busy
        The share of its time that an edge machine or a shared link may work.
    seconds
        Time for the solver; what it has found by then is taken.

    Raises
    ------
    PlanError
        If a group has no plan, or the edges cannot serve them all.
    ProfileError
        If profiles are of different networks.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_matrix, lil_matrix

    options = options_of(inventory)
    stations = _Stations(inventory, options)
    rates = np.array([inventory.devices[each.group].rate for each in options])
    number, queues = len(options), len(stations.servers)
    rows: list[tuple[Sequence[int], Sequence[float], float, float]] = []
    for group, each in enumerate(inventory.devices):
        own = [i for i, option in enumerate(options) if option.group == group]
        rows.append((own, [1.0] * len(own), each.count, each.count))
    for station, servers in enumerate(stations.servers):
        work = rates * stations.seconds[:, station]
        users = np.flatnonzero(work)
        rows.append((users.tolist(), work[users].tolist(), 0.0, most_busy * servers))
        for load in np.linspace(0.0, most_busy * servers, _TANGENTS):
            slope = waiting_slope(float(load), servers)
            least = waiting(float(load), servers) - slope * float(load)
            with_queue = [*users.tolist(), number + station]
            rows.append((with_queue, [*(-slope * work[users]).tolist(), 1.0], least, np.inf))
    matrix = lil_matrix((len(rows), number + queues))
    for row, (columns, values, _, _) in enumerate(rows):
        matrix[row, list(columns)] = list(values)
    counts = [inventory.devices[each.group].count for each in options]
    total_rate = sum(each.count * each.rate for each in inventory.devices)
    cost = np.array([each.latency for each in options]) * rates
    result = milp(
        np.concatenate([cost, np.ones(queues)]) / total_rate,
        integrality=np.array([1] * number + [0] * queues),
        bounds=Bounds(0.0, np.array([*counts, *[np.inf] * queues], dtype=float)),
        constraints=LinearConstraint(
            csr_matrix(matrix), [row[2] for row in rows], [row[3] for row in rows]
        ),
        options={"time_limit": seconds, "mip_rel_gap": _GAP},
    )
    if result.x is None:
        raise PlanError(_too_much(inventory, options, most_busy, result.message))
    taken = np.rint(result.x[:number]).astype(int)
    shares = tuple(
        Share(option, int(count)) for option, count in zip(options, taken, strict=True) if count
    )
    return _evaluated(inventory, shares, float(result.mip_dual_bound))


def each_alone(inventory: Inventory) -> Assignment:
    """The assignment in which every device chooses alone.

    Each takes its own fastest plan, at the edge of its link with the shortest round trip, and
    knows nothing of the others.

    Raises
    ------
    PlanError
        If a group has no plan.
    """
    options = options_of(inventory)
    shares = []
    for position, group in enumerate(inventory.devices):
        own = [each for each in options if each.group == position]
        ends = [ends for ends in inventory.links if ends[0] == group.name]
        nearest = min(ends, key=lambda each: inventory.links[each][0].rtt)[1]
        near = [each for each in own if each.edge in (None, nearest)] or own
        shares.append(Share(min(near, key=lambda each: each.latency), group.count))
    return _evaluated(inventory, tuple(shares), None)


class _Stations:
    """The queues: servers of each, and the seconds of each that a request of an option takes."""

    def __init__(self, inventory: Inventory, options: Sequence[Option]) -> None:
        self.names = [each.name for each in inventory.edges]
        self.servers = [each.workers for each in inventory.edges]
        for ends, (_, shared) in inventory.links.items():
            if shared:
                self.names.append(link_name(*ends))
                self.servers.append(1)
        self.seconds = np.zeros((len(options), len(self.names)))
        for i, option in enumerate(options):
            if option.edge is None:
                continue
            self.seconds[i, self.names.index(option.edge)] = option.service
            if option.shared:
                name = link_name(inventory.devices[option.group].name, option.edge)
                self.seconds[i, self.names.index(name)] = option.shared


def link_name(group: str, edge: str) -> str:
    """Name the shared link of a group to an edge machine."""
    return f"{group} > {edge}"


def _evaluated(inventory: Inventory, shares: tuple[Share, ...], bound: float | None) -> Assignment:
    stations = _Stations(inventory, [share.option for share in shares])
    rates = np.array([s.count * inventory.devices[s.option.group].rate for s in shares])
    loads = (rates[:, None] * stations.seconds).sum(axis=0).tolist()
    alone = float(rates @ [share.option.latency for share in shares])
    waited = sum(waiting(*each) for each in zip(loads, stations.servers, strict=True))
    return Assignment(
        shares=shares,
        latency=(alone + waited) / float(rates.sum()),
        bound=bound,
        loads={
            name: load / servers
            for name, load, servers in zip(stations.names, loads, stations.servers, strict=True)
        },
    )


def _too_much(inventory: Inventory, options: Sequence[Option], most_busy: float, said: str) -> str:
    """Say why there is no assignment: the least work of all devices, and the edges' time."""
    least: dict[str, float] = {}
    for position, group in enumerate(inventory.devices):
        own = [each.service for each in options if each.group == position]
        least[group.name] = group.count * group.rate * min(own)
    workers = most_busy * sum(each.workers for each in inventory.edges)
    if sum(least.values()) <= workers:
        return f"the edges or shared links cannot serve all devices ({said.strip()})"
    largest, load = max(least.items(), key=lambda each: each[1])
    return (
        f"the devices need at least {sum(least.values()):.1f} workers of the edges, which have "
        f"{workers:.1f} at {100 * most_busy:g}% of their time; {largest} alone need {load:.1f}: "
        "add edges or workers, lower the rates, or raise the deadlines so that devices may run "
        "locally"
    )
