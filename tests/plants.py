"""Small plants with profiles by hand, for the fleet's tests."""

from __future__ import annotations

from typing import Any

from profiles import written

import scissionlite as sl
from scissionlite.fleet.assignment import Assignment, Share
from scissionlite.fleet.inventory import Devices, EdgeMachine, Inventory
from scissionlite.fleet.options import Option, options_of

DEVICE, EDGE = (0.02, 0.05, 0.08), (0.004, 0.010, 0.016)
FAST = sl.Link(rtt=0.010, bandwidth=20e6)


def group(name: str = "line", **more: Any) -> Devices:
    values: dict[str, Any] = {"count": 10, "rate": 1.0, "deadline": 1.0} | more
    return Devices(name=name, profile="device.json", **values)


def plant(
    devices: tuple[Devices, ...] = (group(),),
    edges: tuple[EdgeMachine, ...] = (EdgeMachine(name="box", profile="edge.json"),),
    *,
    links: dict[tuple[str, str], tuple[sl.Link, bool]] | None = None,
    **more: Any,
) -> Inventory:
    """A plant with every link, if none are given."""
    every = {(d.name, e.name): (FAST, False) for d in devices for e in edges}
    device, edge = written("device", DEVICE), written("edge", EDGE)
    return Inventory(
        devices=devices,
        edges=edges,
        links=every if links is None else links,
        profiles={d.name: device.slowed(d.slowdown) for d in devices}
        | {e.name: edge for e in edges},
        **more,
    )


def split(inventory: Inventory) -> Option:
    """The fastest split of the first group."""
    return min(
        (each for each in options_of(inventory) if each.plan.kind == "split"),
        key=lambda each: each.latency,
    )


def taken(inventory: Inventory, *shares: Share) -> Assignment:
    return Assignment(shares=shares, latency=0.0, loads={})
