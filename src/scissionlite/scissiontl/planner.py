"""ScissionTL's prediction: every way to run a network over a link, ranked. No torch.

:mod:`.cost` has the cost model, :mod:`.constraints` what a plan must keep to, :mod:`.tiers` the
third tier.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec
import numpy as np

from scissionlite.bundle import Kind
from scissionlite.errors import PlanError, ProfileError
from scissionlite.images import ImageFormat
from scissionlite.scissiontl.constraints import Constraints
from scissionlite.scissiontl.cost import Machine, Prediction, offload_time
from scissionlite.scissiontl.network import Link
from scissionlite.scissiontl.profile import Profile
from scissionlite.transfer_layer import TransferSpec

if TYPE_CHECKING:
    from scissionlite.bundle import Bundle

JPEG_QUALITY = 75
"""Pillow's and libjpeg's default: what JPEG to the edge means unless told otherwise."""

Links: TypeAlias = Link | Mapping[tuple[str, str], Link]
"""One link between all machines, or links by the names of source and destination."""

Objective = Literal["latency", "throughput", "bytes", "device_time", "energy", "leakage"]

_OBJECTIVES: dict[str, Callable[[Prediction], float | None]] = {
    "latency": lambda p: p.latency,
    "throughput": lambda p: p.bottleneck,
    "bytes": lambda p: p.sent_bytes,
    "device_time": lambda p: p.device_stage,
    "energy": lambda p: p.energy,
    "leakage": lambda p: p.leakage,
}


class SecondCut(msgspec.Struct, frozen=True):
    """Where the edge's slice ends and the cloud's begins, and what crosses there."""

    slicing_point: str
    spec: TransferSpec


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run the network.

    Attributes
    ----------
    kind
        "split", "image" (the input to the edge, as an image) or "local".
    slicing_point
        Name of the slicing point of a split.
    spec
        The Transfer Layer of a split; each tensor that crosses has it as far as it makes sense.
    image_format, jpeg_quality
        Of an image plan: "uint8", "png" or "jpeg", and for this its quality, 1 to 95.
    second
        With a third tier: the cut between edge and cloud.
    device, edge, cloud
        Names of the machines; empty where there is none.
    accuracy
        Share of right answers (0 to 1), where somebody measured it.
    prediction
        What it is predicted to cost; None in a plan written by hand.
    """

    kind: Kind
    slicing_point: str | None = None
    spec: TransferSpec | None = None
    image_format: ImageFormat | None = None
    jpeg_quality: int | None = None
    second: SecondCut | None = None
    device: str = ""
    edge: str = ""
    cloud: str = ""
    accuracy: float | None = None
    prediction: Prediction | None = None

    def __post_init__(self) -> None:
        if (self.kind == "split") != (self.slicing_point is not None and self.spec is not None):
            raise PlanError("a 'split' plan has slicing_point and spec, others have neither")
        if (self.kind == "image") != (self.image_format is not None):
            raise PlanError("an 'image' plan has image_format, others have not")
        if (self.image_format == "jpeg") != (self.jpeg_quality is not None):
            raise PlanError("jpeg_quality goes with the image format 'jpeg', and only with it")

    @property
    def predicted(self) -> Prediction:
        """The prediction of a ranked plan.

        Raises
        ------
        PlanError
            If the plan was written by hand.
        """
        if self.prediction is None:
            raise PlanError("this plan was written by hand: only plan() predicts")
        return self.prediction

    @property
    def label(self) -> str:
        """What crosses, in a few words."""
        if self.spec is not None:
            first = self.spec.label
        elif self.kind == "local":
            return "nothing (local)"
        elif self.image_format == "jpeg":
            first = f"JPEG-{self.jpeg_quality} image"
        else:
            first = f"{'PNG' if self.image_format == 'png' else 'raw'} image"
        return first if self.second is None else f"{first}, then {self.second.spec.label}"

    @property
    def place(self) -> str:
        """Where the network is cut, in a few words."""
        if self.second is not None:
            return f"{self.slicing_point} | {self.second.slicing_point}"
        return self.slicing_point or "-"

    @property
    def machines(self) -> tuple[str, ...]:
        """Names of the machines that take part."""
        return tuple(filter(None, (self.device, self.edge, self.cloud)))


class MeasuredAccuracy(msgspec.Struct, frozen=True, kw_only=True):
    """An accuracy (0 to 1) that was measured, and of what: the fields are a plan's."""

    kind: Kind
    slicing_point: str | None = None
    spec: TransferSpec | None = None
    image_format: ImageFormat | None = None
    jpeg_quality: int | None = None
    accuracy: float

    @classmethod
    def of(cls, bundle: Bundle, profile: Profile) -> list[MeasuredAccuracy]:
        """What a bundle's manifest tells: of the bundle itself, and of the uncut network.

        Raises
        ------
        PlanError
            If the bundle is not of the profile's network, or nobody measured its accuracy.
        """
        manifest = bundle.manifest
        if manifest.accuracy is None:
            raise PlanError(f"{bundle.path} tells no accuracy: prepare it with validate=")
        name = None
        if manifest.slicing_point is not None:
            index = manifest.slicing_point.index
            crossing = profile.blocks[index].crossing if index < len(profile.blocks) else ()
            shapes = [t.feature_shape or t.shape for t in manifest.crossing]
            if [t.shape for t in crossing] != shapes:
                raise PlanError(
                    f"{bundle.path} was cut after {manifest.slicing_point.after}, but something "
                    f"else crosses there in the profile of {profile.name}: they are not of the "
                    "same network"
                )
            name = profile.blocks[index].name
        return [
            cls(kind="local", accuracy=manifest.accuracy.before),
            cls(
                kind=manifest.kind,
                slicing_point=name,
                spec=manifest.transfer if name is not None else None,
                image_format=manifest.image_format,
                jpeg_quality=manifest.jpeg_quality,
                accuracy=manifest.accuracy.after,
            ),
        ]


def plan(
    device: Profile | Sequence[Profile],
    edge: Profile | Sequence[Profile],
    link: Links,
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
    from scissionlite.scissiontl.tiers import three_tiers

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


def first_leg(
    source: Machine, cut: int, sent_bytes: int, between: Link
) -> dict[str, float | int | None]:
    """What a prediction says of the device and the first link for a cut before block ``cut``."""
    profile = source.profile
    leakage = profile.blocks[cut - 1].leakage if cut else 1.0
    return {
        "serial_time": sent_bytes * 8 / between.bandwidth,
        "sent_bytes": sent_bytes,
        "device_blocks": cut,
        "device_layers": source.layers[cut - 1] if cut else 0,
        "device_memory": source.device_memory[cut - 1] if cut else 0,
        "leakage": leakage,
    }


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

    def __init__(self, link: Links, profiles: Sequence[Profile]) -> None:
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
