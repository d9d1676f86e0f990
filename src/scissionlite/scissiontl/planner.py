"""ScissionTL's prediction: every way to run a network over a link, ranked. No torch.

:mod:`.plans` says what a plan is, :mod:`.constraints` what it must keep to; :mod:`.cost` has the
cost model, :mod:`.tiers` the third tier.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np

from scissionlite.errors import PlanError, ProfileError
from scissionlite.scissiontl.constraints import Constraints
from scissionlite.scissiontl.cost import Machine, Prediction, first_leg, offload_time
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

    Parameters
    ----------
    device, edge
        Profiles of the same network, of one machine or of several to choose from.
    link
        One for all, or by ``(source, destination)``, names of profiles; machines without a link
        between them are not joined.
    constraints
        What a plan must keep to.
    objective
        What to rank by: "latency"; "throughput", of a pipeline of requests; "bytes" sent;
        "device_time"; "energy" of the device; "leakage" of the input.
    accuracies
        What was measured, such as :meth:`MeasuredAccuracy.of` bundles.
    power
        Watts of the device at work, for its energy.
    cloud
        Profiles of a third tier: the edge's slice may end before the network does, and a machine
        of the cloud runs the rest. A device may use the cloud directly, too.
    learned
        Offer learned Transfer Layers that nobody has trained yet; otherwise only those among the
        `accuracies`.

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
    tiers = [_machines(each) for each in (device, edge, cloud)]
    devices, edges, clouds = tiers
    everyone = [machine for tier in tiers for machine in tier]
    _check_same_network([machine.profile for machine in everyone])
    if objective not in _OBJECTIVES:
        raise PlanError(f"no objective {objective!r}: there are {', '.join(_OBJECTIVES)}")
    if objective == "energy" and power is None:
        raise PlanError("ranking by energy needs the device's power, in watts")
    if power is not None and not 0 < power < math.inf:
        raise PlanError(f"a power of {power} W cannot be")
    joined = _Joined(link, [machine.profile for machine in everyone])
    found: list[Plan] = []
    for source in devices:
        found.append(_local(source, power))
        for target in [*edges, *clouds]:
            if (between := joined(source, target)) is not None:
                found += _images(source, target, between, power)
                found += _splits(source, target, between, power)
        for middle in edges:
            for last in clouds:
                first_link, second_link = joined(source, middle), joined(middle, last)
                if first_link is not None and second_link is not None:
                    found += three_tiers(
                        (source, middle, last), (first_link, second_link), constraints, power
                    )
    accuracies = list(accuracies)
    trained = {(known.slicing_point, known.spec) for known in accuracies}
    found = [
        each
        for each in found
        if learned
        or each.spec is None
        or not each.spec.learned
        or (each.slicing_point, each.spec) in trained
    ]
    found = _with_accuracies(found, accuracies)
    kept = (constraints or Constraints()).select(found, [m.profile for m in everyone])
    value = _OBJECTIVES[objective]

    def key(each: Plan) -> tuple[float, float]:
        worth = value(each.predicted)
        return (math.inf if worth is None else worth, each.predicted.latency)

    return sorted(kept, key=key)


def pareto(
    plans: Sequence[Plan], objectives: Sequence[Objective] = ("latency", "bytes")
) -> list[Plan]:
    """Plans that no other is at least as good as in every objective and better in one.

    What was not measured counts as worst.

    Raises
    ------
    PlanError
        If an objective is unknown.
    """
    for objective in objectives:
        if objective not in _OBJECTIVES:
            raise PlanError(f"no objective {objective!r}: there are {', '.join(_OBJECTIVES)}")
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


def _local(source: Machine, power: float | None) -> Plan:
    profile = source.profile
    seconds = profile.preprocess + profile.network_latency
    return Plan(
        kind="local",
        device=profile.name,
        prediction=Prediction(
            device_time=seconds,
            device_blocks=len(profile.blocks),
            device_layers=source.layers[-1],
            device_memory=source.device_memory[-1],
            leakage=0.0,
            energy=None if power is None else power * seconds,
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
            prediction=Prediction(
                device_time=0.0,
                encode_time=image.encode,
                transfer_time=between.transfer_time(image.nbytes, device.answer_bytes),
                decode_time=received.decode + edge.preprocess,
                edge_time=edge.network_latency,
                offload_time=offload_time(device, edge, image.nbytes),
                edge_blocks=len(device.blocks),
                energy=None if power is None else power * image.encode,
                **first_leg(source, 0, image.nbytes, between),  # type: ignore[arg-type]
            ),
        )


def _splits(source: Machine, target: Machine, between: Link, power: float | None) -> Iterator[Plan]:
    device, edge = source.profile, target.profile
    blocks, answer = len(device.blocks), device.answer_bytes
    for transfer in device.transfers:
        received = target.transfers.get((transfer.block, transfer.spec))
        if received is None:
            continue
        device_time = device.preprocess + source.device_slice[transfer.block]
        cut = transfer.block + 1
        yield Plan(
            kind="split",
            slicing_point=device.blocks[transfer.block].name,
            spec=transfer.spec,
            device=device.name,
            edge=edge.name,
            prediction=Prediction(
                device_time=device_time,
                encode_time=transfer.encode,
                transfer_time=between.transfer_time(transfer.nbytes, answer),
                decode_time=received.decode,
                edge_time=target.edge_slice[transfer.block],
                offload_time=offload_time(device, edge, transfer.nbytes),
                edge_blocks=blocks - cut,
                energy=None if power is None else power * (device_time + transfer.encode),
                **first_leg(source, cut, transfer.nbytes, between),  # type: ignore[arg-type]
            ),
        )


def _with_accuracies(plans: list[Plan], accuracies: Iterable[MeasuredAccuracy]) -> list[Plan]:
    known = {
        (a.kind, a.slicing_point, a.spec, a.image_format, a.jpeg_quality): a.accuracy
        for a in accuracies
    }
    if not known:
        return plans
    uncut = known.get(("local", None, None, None, None))

    def measured(each: Plan) -> float | None:
        if each.second is not None:
            return None
        what = (each.kind, each.slicing_point, each.spec, each.image_format, each.jpeg_quality)
        if what in known:
            return known[what]
        # What loses nothing answers as the uncut network.
        lossless = each.image_format in ("uint8", "png") or (
            each.spec is not None and each.spec.lossless
        )
        return uncut if lossless else None

    return [msgspec.structs.replace(each, accuracy=measured(each)) for each in plans]


class _Joined:
    """The link between two machines, if there is one."""

    def __init__(
        self, link: Link | Mapping[tuple[str, str], Link], profiles: Sequence[Profile]
    ) -> None:
        self._link = link
        if isinstance(link, Mapping):
            names = {profile.name for profile in profiles}
            if not any({*pair} <= names for pair in link):
                told = ", ".join(f"{a} to {b}" for a, b in link) or "none"
                raise PlanError(
                    f"no link joins the machines {', '.join(sorted(names))}; there are: {told}. "
                    "The names are those of the profiles (`scissionlite profile --name`)"
                )

    def __call__(self, source: Machine, target: Machine) -> Link | None:
        if isinstance(self._link, Link):
            return self._link
        return self._link.get((source.profile.name, target.profile.name))


def _machines(profiles: Profile | Sequence[Profile]) -> list[Machine]:
    every = [profiles] if isinstance(profiles, Profile) else list(profiles)
    return [Machine(profile) for profile in every]


def _check_same_network(profiles: Sequence[Profile]) -> None:
    if not profiles:
        raise PlanError("there is no profile to plan with")
    first = profiles[0]
    for other in profiles[1:]:
        for what, ours, theirs in (
            ("model", first.model, other.model),
            ("inputs", [t.shape for t in first.inputs], [t.shape for t in other.inputs]),
            ("blocks", [b.name for b in first.blocks], [b.name for b in other.blocks]),
        ):
            if ours != theirs:
                raise ProfileError(
                    f"the profiles are not of the same network: {what} of {first.name} is {ours}, "
                    f"of {other.name} {theirs}; profile both machines with the same version and "
                    "model"
                )
