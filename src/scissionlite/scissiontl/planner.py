"""The planner: every way to run a network over a link, ranked by predicted cost. No torch.

A plan is defined in :mod:`.plans` and its limits in :mod:`.constraints`; :mod:`.cost` has the cost
model, :mod:`.tiers` the third tier.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np

from scissionlite.errors import PlanError, ProfileError
from scissionlite.graph.tensors import INPUT_POINT
from scissionlite.manifest import Precision
from scissionlite.scissiontl.constraints import Constraints
from scissionlite.scissiontl.cost import (
    Machine,
    Prediction,
    device_memory,
    offload_time,
    offloaded,
)
from scissionlite.scissiontl.link import Link
from scissionlite.scissiontl.plans import MeasuredAccuracy, Plan
from scissionlite.scissiontl.profile import Profile
from scissionlite.scissiontl.tiers import three_tiers

Objective = Literal["latency", "throughput", "bytes", "device_time", "energy", "leakage"]

_OBJECTIVES: dict[str, Callable[[Prediction], float | None]] = {
    "latency": lambda p: p.latency,
    "throughput": lambda p: p.bottleneck,
    "bytes": lambda p: p.sent_bytes,
    "device_time": lambda p: p.device_stage,
    "energy": lambda p: p.energy,
    "leakage": lambda p: p.leakage,
}


def plan(
    device: Profile | Sequence[Profile],
    edge: Profile | Sequence[Profile],
    link: Link | Mapping[tuple[str, str], Link],
    *,
    constraints: Constraints | None = None,
    objective: Objective = "latency",
    accuracies: Iterable[MeasuredAccuracy] = (),
    power: float | None = None,
    cloud: Profile | Sequence[Profile] = (),
    learned: bool = False,
) -> list[Plan]:
    """Rank every slicing point and Transfer Layer, with running locally and images to the edge.

    Where the device's profile has times in int8, running locally and the splits are ranked with
    the device in int8, too.

    Parameters
    ----------
    device, edge
        Profiles of the same network, of one machine or of several to choose from.
    link
        One link for all, or links by ``(source, destination)``, names of profiles. Machines
        without a link between them do not work together.
    constraints
        Limits that a plan must keep.
    objective
        What to rank by: "latency"; "throughput", of a pipeline of requests; "bytes" sent;
        "device_time"; "energy" of the device; "leakage" of the input.
    accuracies
        Measured accuracies, such as :meth:`MeasuredAccuracy.of` bundles.
    power
        Watts of the device at work, for its energy.
    cloud
        Profiles of a third tier: the edge slice may end before the network does, and a machine in
        the cloud runs the rest. A device may also use the cloud directly.
    learned
        Offer learned Transfer Layers and shallow encoders that nobody has trained yet; otherwise
        only those among the `accuracies`.

    Returns
    -------
    list of Plan
        Best first; among equals, the fastest.

    Raises
    ------
    ProfileError
        If the profiles are not of the same network.
    PlanError
        If the constraints exclude everything (the message says which excludes how much), a link is
        missing, or the energy is to be ranked without the power.
    """
    devices, edges, clouds = _machines(device), _machines(edge), _machines(cloud)
    profiles = [machine.profile for machine in (*devices, *edges, *clouds)]
    _check_same_network(profiles)
    _check_objective(objective)
    _check_power(power, objective)
    _check_links(link, profiles)
    found: list[Plan] = []
    for source in devices:
        found += _local(source, power)
        for target in [*edges, *clouds]:
            if (between := _link_between(link, source, target)) is not None:
                found += _images(source, target, between, power)
                found += _splits(source, target, between, power)
                found += _encoders(source, target, between, power)
        for middle, last in itertools.product(edges, clouds):
            first_link = _link_between(link, source, middle)
            second_link = _link_between(link, middle, last)
            if first_link is not None and second_link is not None:
                found += three_tiers(
                    (source, middle, last), (first_link, second_link), constraints, power
                )
    accuracies = list(accuracies)
    if not learned:
        found = _without_untrained(found, accuracies)
    found = _with_accuracies(found, accuracies)
    kept = (constraints or Constraints()).select(found, profiles)
    return _ranked(kept, objective)


def pareto(
    plans: Sequence[Plan], objectives: Sequence[Objective] = ("latency", "bytes")
) -> list[Plan]:
    """The Pareto front: plans that no other plan beats.

    A plan beats another if it is at least as good in every objective and better in one. A value
    that was not measured counts as the worst.

    Raises
    ------
    PlanError
        If an objective is unknown.
    """
    for objective in objectives:
        _check_objective(objective)
    worth = [[_OBJECTIVES[o](p.predicted) for o in objectives] for p in plans]
    # A None becomes NaN in an array of floats.
    values = np.nan_to_num(np.array(worth, dtype=np.float64), nan=math.inf, posinf=math.inf)
    values = values.reshape(len(plans), len(objectives))
    front = []
    for each, own in zip(plans, values, strict=True):
        beaten = (values <= own).all(axis=1) & (values < own).any(axis=1)
        if not beaten.any():
            front.append(each)
    return front


def _local(source: Machine, power: float | None) -> Iterator[Plan]:
    profile = source.profile
    latencies: dict[Precision, float | None] = {
        "float32": profile.network_latency,
        "int8": profile.network_latency_int8,
    }
    for precision, latency in latencies.items():
        if latency is None:
            continue
        seconds = profile.preprocess + latency
        yield Plan(
            kind="local",
            device_precision=precision,
            device=profile.name,
            prediction=Prediction(
                device_time=seconds,
                device_blocks=len(profile.blocks),
                device_layers=source.layers[-1],
                device_memory=device_memory(source, len(profile.blocks), precision),
                leakage=0.0,
                energy=None if power is None else power * seconds,
                drop=profile.network_drop_int8 if precision == "int8" else 0.0,
            ),
        )


def _images(source: Machine, target: Machine, between: Link, power: float | None) -> Iterator[Plan]:
    device, edge = source.profile, target.profile
    for image in device.images:
        received = target.images.get((image.format, image.quality))
        if received is None:
            continue
        yield Plan(
            kind="image",
            image_format=image.format,
            jpeg_quality=image.quality,
            device=device.name,
            edge=edge.name,
            prediction=offloaded(
                source,
                0,
                between,
                device_time=0.0,
                encode_time=image.encode,
                sent_bytes=image.nbytes,
                decode_time=received.decode + edge.preprocess,
                edge_time=edge.network_latency,
                edge_blocks=len(device.blocks),
                offload_time=offload_time(device, edge, image.nbytes),
                power=power,
                drop=received.drop if image.drop is None else image.drop,
            ),
        )


def _splits(source: Machine, target: Machine, between: Link, power: float | None) -> Iterator[Plan]:
    device, edge = source.profile, target.profile
    slices: dict[Precision, list[float] | None] = {
        "float32": source.device_slice,
        "int8": source.int8_device_slice,
    }
    for transfer, (precision, times) in itertools.product(device.transfers, slices.items()):
        key = (transfer.block, transfer.spec)
        received = target.transfers.get(key)
        if received is None or times is None:
            continue
        cut = transfer.block + 1
        yield Plan(
            kind="split",
            slicing_point=device.blocks[transfer.block].name,
            spec=transfer.spec,
            device_precision=precision,
            device=device.name,
            edge=edge.name,
            prediction=offloaded(
                source,
                cut,
                between,
                device_time=device.preprocess + times[transfer.block],
                encode_time=transfer.encode,
                sent_bytes=transfer.nbytes,
                decode_time=received.decode,
                edge_time=target.edge_slice[transfer.block],
                edge_blocks=len(device.blocks) - cut,
                offload_time=offload_time(device, edge, transfer.nbytes),
                power=power,
                drop=source.drops.get(key, target.drops.get(key)),
                precision=precision,
            ),
        )


def _encoders(
    source: Machine, target: Machine, between: Link, power: float | None
) -> Iterator[Plan]:
    """Shallow encoders at the image: the device runs none of the network, the edge all of it."""
    device, edge = source.profile, target.profile
    for spec, sent in source.encoders.items():
        received = target.encoders.get(spec)
        if received is None:
            continue
        yield Plan(
            kind="split",
            slicing_point=INPUT_POINT,
            spec=spec,
            device=device.name,
            edge=edge.name,
            prediction=offloaded(
                source,
                0,
                between,
                device_time=device.preprocess + sent.encoder,
                encode_time=sent.encode,
                sent_bytes=sent.nbytes,
                decode_time=received.decode,
                edge_time=received.decoder + edge.network_latency,
                edge_blocks=len(device.blocks),
                offload_time=offload_time(device, edge, sent.nbytes),
                power=power,
                drop=received.drop if sent.drop is None else sent.drop,
                image_leakage=sent.leakage,
            ),
        )


def _without_untrained(plans: Iterable[Plan], accuracies: Iterable[MeasuredAccuracy]) -> list[Plan]:
    """The plans without learned Transfer Layers that nobody has trained and measured."""
    trained = {(measured.slicing_point, measured.spec) for measured in accuracies}
    return [
        each
        for each in plans
        if each.spec is None or not each.spec.learned or (each.slicing_point, each.spec) in trained
    ]


def _ranked(plans: Iterable[Plan], objective: Objective) -> list[Plan]:
    """Plans by an objective, and by latency where it is equal."""
    value = _OBJECTIVES[objective]

    def key(each: Plan) -> tuple[float, float]:
        worth = value(each.predicted)
        return (math.inf if worth is None else worth, each.predicted.latency)

    return sorted(plans, key=key)


def _with_accuracies(plans: list[Plan], accuracies: Iterable[MeasuredAccuracy]) -> list[Plan]:
    by_kind = {_accuracy_key(a): a.accuracy for a in accuracies}
    if not by_kind:
        return plans
    uncut = by_kind.get(_accuracy_key(Plan(kind="local")))

    def measured(each: Plan) -> float | None:
        key = _accuracy_key(each)
        if key in by_kind:
            return by_kind[key]
        # A lossless plan answers as the uncut network.
        specs = [each.spec] if each.second is None else [each.spec, each.second.spec]
        lossless = each.image_format in ("uint8", "png") or all(
            spec is not None and spec.lossless for spec in specs
        )
        return uncut if lossless and each.device_precision == "float32" else None

    return [msgspec.structs.replace(each, accuracy=measured(each)) for each in plans]


def _accuracy_key(each: Plan | MeasuredAccuracy) -> tuple[object, ...]:
    """Everything of a plan that its accuracy depends on."""
    return (
        each.kind,
        each.slicing_point,
        each.spec,
        each.image_format,
        each.jpeg_quality,
        each.device_precision,
        each.second,
    )


def _link_between(
    link: Link | Mapping[tuple[str, str], Link], source: Machine, target: Machine
) -> Link | None:
    if isinstance(link, Link):
        return link
    return link.get((source.profile.name, target.profile.name))


def _check_links(link: Link | Mapping[tuple[str, str], Link], profiles: Sequence[Profile]) -> None:
    if isinstance(link, Link):
        return
    names = {profile.name for profile in profiles}
    if not any({*pair} <= names for pair in link):
        pairs = ", ".join(f"{a} to {b}" for a, b in link) or "none"
        raise PlanError(
            f"no link joins the machines {', '.join(sorted(names))}; there are: {pairs}. "
            "The names are those of the profiles (`scissionlite profile --name`)"
        )


def _check_objective(objective: str) -> None:
    if objective not in _OBJECTIVES:
        raise PlanError(f"no objective {objective!r}: there are {', '.join(_OBJECTIVES)}")


def _check_power(power: float | None, objective: str) -> None:
    if objective == "energy" and power is None:
        raise PlanError("ranking by energy needs the device's power: power=WATTS")
    if power is not None and not 0 < power < math.inf:
        raise PlanError(f"a power of {power} W cannot be")


def _machines(profiles: Profile | Sequence[Profile]) -> list[Machine]:
    every = [profiles] if isinstance(profiles, Profile) else list(profiles)
    return [Machine(profile) for profile in every]


def _check_same_network(profiles: Sequence[Profile]) -> None:
    if not profiles:
        raise PlanError("there is no profile to plan with")
    first = profiles[0]
    for other in profiles[1:]:
        for what, expected, actual in (
            ("model", first.model, other.model),
            ("inputs", [t.shape for t in first.inputs], [t.shape for t in other.inputs]),
            ("blocks", [b.name for b in first.blocks], [b.name for b in other.blocks]),
        ):
            if actual != expected:
                raise ProfileError(
                    f"the profiles are not of the same network: {what} of {first.name} is "
                    f"{expected}, of {other.name} {actual}; profile both machines with the same "
                    "version and model"
                )
