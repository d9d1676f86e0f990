"""Options: every plan that a group of devices may take, at every edge it reaches. No torch."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from scissionlite.errors import PlanError
from scissionlite.fleet.inventory import Devices, Inventory
from scissionlite.fleet.queueing import waiting
from scissionlite.scissiontl.planner import plan
from scissionlite.scissiontl.plans import Plan

MOST_BUSY = 0.9
"""The share of its time that a device, or its own link, may be at work."""


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """A plan of a group of devices.

    Attributes
    ----------
    group
        Position of the group in the inventory.
    edge
        Name of the edge machine; None where the device runs everything.
    plan
        The plan, with its prediction.
    latency
        Predicted seconds from frame to answer, without waiting for other devices.
    service
        Seconds for which a request takes a worker of the edge.
    shared
        Seconds for which it takes the group's shared link; 0 where each device has its own.
    """

    group: int
    edge: str | None
    plan: Plan
    latency: float
    service: float = 0.0
    shared: float = 0.0


def options_of(inventory: Inventory) -> list[Option]:
    """Find the options of every group that keep the constraints and the group's deadline.

    Of those at one edge, only such stay that no other beats in latency, service and shared link.

    Raises
    ------
    PlanError
        If a group has none.
    ProfileError
        If a device and an edge have profiles of different networks.
    """
    found: list[Option] = []
    for position, group in enumerate(inventory.devices):
        found += _of_group(inventory, position, group)
    return found


def _of_group(inventory: Inventory, position: int, group: Devices) -> list[Option]:
    limits = [group.deadline, inventory.constraints.max_latency]
    constraints = msgspec.structs.replace(
        inventory.constraints, max_latency=min(each for each in limits if each is not None)
    )
    found: list[Option] = []
    reasons: list[str] = []
    for edge in inventory.edges:
        link, shared = inventory.links.get((group.name, edge.name), (None, False))
        if link is None:
            continue
        try:
            plans = plan(
                inventory.profiles[group.name],
                inventory.profiles[edge.name],
                link,
                constraints=constraints,
                power=group.power,
            )
        except PlanError as error:
            reasons.append(f"at {edge.name}, {error}")
            continue
        here = []
        for each in plans:
            predicted = each.predicted
            serial = predicted.serial_time
            own = max(predicted.device_stage, 0.0 if shared else serial)
            if group.rate * own > MOST_BUSY:
                continue
            here.append(
                Option(
                    group=position,
                    edge=None if each.kind == "local" else edge.name,
                    plan=each,
                    latency=predicted.latency + _waiting_on_device(group, own),
                    service=predicted.decode_time + predicted.edge_time,
                    shared=serial if shared else 0.0,
                )
            )
        found += _unbeaten(here)
    found = _one_local(found)
    if not found:
        why = "; ".join(reasons) or (
            f"no plan leaves its devices time for {group.rate:g} requests a second"
            if any(ends[0] == group.name for ends in inventory.links)
            else "no link begins there"
        )
        raise PlanError(f"the devices {group.name} have no plan: {why}")
    return found


def _waiting_on_device(group: Devices, own: float) -> float:
    """Seconds that a request waits for the one before it, on the device or on its own link.

    In a row of places that take fixed times, requests wait for the slowest alone (H. Friedman,
    "Reduction Methods for Tandem Queuing Systems", Operations Research 13, 1965).
    """
    return waiting(group.rate * own, 1) / group.rate if group.arrivals == "poisson" else 0.0


def _unbeaten(options: Iterable[Option]) -> list[Option]:
    """Those that no other beats; the best of each latency first."""
    kept: list[Option] = []
    for each in sorted(options, key=lambda o: (o.latency, o.service, o.shared)):
        if not any(o.service <= each.service and o.shared <= each.shared for o in kept):
            kept.append(each)
    return kept


def _one_local(options: list[Option]) -> list[Option]:
    """The planner names the local plans for every edge; they are the same."""
    local = [each for each in options if each.edge is None]
    rest = [each for each in options if each.edge is not None]
    return [*rest, *([min(local, key=lambda o: o.latency)] if local else [])]
