"""Inventory: the devices, edge machines and links of a plant, from a TOML file. No torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from scissionlite.errors import PlanError
from scissionlite.scissiontl.constraints import Constraints
from scissionlite.scissiontl.link import Link
from scissionlite.scissiontl.profile import Profile
from scissionlite.toml_file import read_toml

_HOUR = 3600.0
_Name = Annotated[str, Meta(min_length=1)]
_Positive = Annotated[float, Meta(gt=0, le=1e9)]
_Time = Annotated[float, Meta(ge=0, le=1e9)]
_Variation = Annotated[float, Meta(ge=0, le=10)]
_Count = Annotated[int, Meta(ge=1, le=10_000_000)]


class Devices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group of equal devices.

    Attributes
    ----------
    name
        The group's name, for links and tables.
    profile
        File of the profile of one of them, relative to the inventory.
    count
        How many there are.
    rate
        Requests per second of each.
    deadline
        Seconds within which a request is to be answered.
    slowdown
        How many times slower than the profile they are.
    power
        Watts of one at work; None if it is not known.
    arrivals
        "periodic", each device at a phase of its own, or "poisson".
    fallback
        What becomes of a request while the edge is away: "local" runs the network on the device,
        "edge" asks the nearest other edge (and runs locally if none is there), "raise" is an error.
    variation
        Coefficient of variation (standard deviation over mean) of the time in which one of them
        computes, from request to request.
    """

    # As many attributes as the table of a group has keys.
    name: _Name
    profile: _Name
    count: _Count
    rate: _Positive
    deadline: _Positive
    slowdown: Annotated[float, Meta(ge=1, le=10_000)] = 1.0
    power: _Positive | None = None
    arrivals: Literal["periodic", "poisson"] = "poisson"
    fallback: Literal["local", "edge", "raise"] = "local"
    variation: _Variation = 0.0


class EdgeMachine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An edge machine: its name, the file of its profile, and runs of the edge slice at once.

    ``variation`` is the coefficient of variation of a run's time, from request to request.
    """

    name: _Name
    profile: _Name
    workers: Annotated[int, Meta(ge=1, le=1024)] = 1
    variation: _Variation = 0.0


class FleetLink(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={"source": "from", "destination": "to"},
):
    """The link from a group of devices to an edge machine.

    Attributes
    ----------
    source, destination
        Names of the group and of the edge machine.
    link
        As :meth:`scissionlite.Link.parse` reads it, such as "58.8Mbit/27.4ms".
    shared
        Whether the group has this rate together, as behind one access point; otherwise each
        device has it for itself.
    drops_per_hour, drop_seconds
        How often the link drops at random, for the simulation, and how long it is away then, both
        on average: each device's by itself, a shared one for all of them.
    """

    source: _Name
    destination: _Name
    link: str
    shared: bool = False
    drops_per_hour: _Time = 0.0
    drop_seconds: _Positive = 5.0


class Drops(NamedTuple):
    """Random drops of a link: mean seconds between two of them, and of one; exponential."""

    between: float
    seconds: float


class Outage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A time in which an edge machine is away, or only its link from a group of devices.

    Attributes
    ----------
    edge
        The edge machine's name.
    devices
        The group's name; None if the machine itself is away.
    start, end
        Seconds after the simulation's start.
    """

    edge: _Name
    start: _Time
    end: _Time
    devices: str | None = None


class _Tables(msgspec.Struct, forbid_unknown_fields=True):
    devices: Annotated[list[Devices], Meta(min_length=1)]
    edges: Annotated[list[EdgeMachine], Meta(min_length=1)]
    links: Annotated[list[FleetLink], Meta(min_length=1)]
    outages: list[Outage] = []
    constraints: dict[str, Any] = {}


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """The content of an inventory file, checked, with its profiles loaded.

    Attributes
    ----------
    devices, edges, outages
        In the file's order.
    links
        Links, and whether they are shared, by the names of group and edge.
    profiles
        Profiles by the name of the group or edge machine; those of groups have their slowdown.
    constraints
        The limits that every plan must keep.
    drops
        Random drops of links, by the names of group and edge; others never drop.
    """

    devices: tuple[Devices, ...]
    edges: tuple[EdgeMachine, ...]
    links: dict[tuple[str, str], tuple[Link, bool]]
    profiles: dict[str, Profile]
    outages: tuple[Outage, ...] = ()
    constraints: Constraints = Constraints()
    drops: dict[tuple[str, str], Drops] = {}

    @classmethod
    def load(cls, path: str | Path) -> Inventory:
        """Read an inventory.

        Raises
        ------
        PlanError
            If the file cannot be read, or a value of it is wrong; the message names it.
        ProfileError
            If a profile cannot be read.
        """
        path = Path(path)
        try:
            tables = msgspec.convert(read_toml(path), _Tables)
        except OSError as error:
            raise PlanError(f"{path} cannot be read: {error.strerror}") from error
        except msgspec.ValidationError as error:
            raise PlanError(f"{path}: {_in_words(str(error))}") from None
        except ValueError as error:
            raise PlanError(f"{path} is not TOML: {error}") from None
        try:
            return _checked(tables, path.parent)
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from None


def _checked(tables: _Tables, folder: Path) -> Inventory:
    groups = {each.name: each for each in tables.devices}
    edges = {each.name: each for each in tables.edges}
    names = [*(each.name for each in tables.devices), *(each.name for each in tables.edges)]
    for name in names:
        if names.count(name) > 1:
            raise PlanError(f"two devices or edges are named {name!r}: give each its own name")
    links: dict[tuple[str, str], tuple[Link, bool]] = {}
    drops: dict[tuple[str, str], Drops] = {}
    for each in tables.links:
        _check_known(each.source, groups, "links", "devices")
        _check_known(each.destination, edges, "links", "edges")
        ends = each.source, each.destination
        if ends in links:
            raise PlanError(f"two links join {ends[0]} and {ends[1]}: give one")
        links[ends] = Link.parse(each.link), each.shared
        if each.drops_per_hour:
            drops[ends] = Drops(_HOUR / each.drops_per_hour, each.drop_seconds)
    for outage in tables.outages:
        _check_known(outage.edge, edges, "outages", "edges")
        if outage.devices is not None:
            _check_known(outage.devices, groups, "outages", "devices")
        if outage.end <= outage.start:
            raise PlanError(f"an outage of {outage.edge} ends at {outage.end:g}, before it starts")
    try:
        constraints = msgspec.convert(tables.constraints, Constraints)
    except msgspec.ValidationError as error:
        raise PlanError(f"constraints: {_in_words(str(error))}") from None
    if unknown := set(tables.constraints) - set(Constraints.__struct_fields__):
        raise PlanError(f"constraints: there is no {sorted(unknown)[0]!r}")
    loaded: dict[str, Profile] = {}

    def load(file: str) -> Profile:
        if file not in loaded:
            loaded[file] = Profile.load(folder / file)
        return loaded[file]

    profiles = {each.name: load(each.profile).slowed(each.slowdown) for each in tables.devices}
    profiles |= {each.name: load(each.profile) for each in tables.edges}
    return Inventory(
        devices=tuple(tables.devices),
        edges=tuple(tables.edges),
        links=links,
        profiles=profiles,
        outages=tuple(tables.outages),
        constraints=constraints,
        drops=drops,
    )


def _check_known(name: str, known: dict[str, Any], table: str, kind: str) -> None:
    if name not in known:
        raise PlanError(f"{table}: no {kind} are named {name!r}; there are {', '.join(known)}")


def _in_words(text: str) -> str:
    """A validation error with its place as the file has it: "devices[0]" is the first of them."""
    said, _, place = text.partition(" - at `$.")
    said = said.replace("`", "'").replace("Object", "Table").replace("object", "table")
    place = re.sub(r"\[(\d+)\]", lambda found: f" {int(found[1]) + 1}", place.rstrip("`"))
    place = place.replace(".", ", ")
    return f"{place}: {said}" if place else said
