"""Constraints: the limits that a plan must keep, Scission's criteria and more. No torch."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from scissionlite.errors import PlanError
from scissionlite.fields import check_fields
from scissionlite.graph.tensors import INPUT_POINT
from scissionlite.manifest import Precision
from scissionlite.scissiontl.profile import BlockProfile, Profile

if TYPE_CHECKING:
    from scissionlite.scissiontl.plans import Plan

_Limit: TypeAlias = Annotated[float, Meta(ge=0)] | None
_Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)] | None
_Count: TypeAlias = Annotated[int, Meta(ge=0)] | None
_Names: TypeAlias = tuple[str, ...]


class Constraints(msgspec.Struct, frozen=True, kw_only=True):
    """The limits that a plan must keep; None, or no names, leaves a constraint out.

    The command line's options and their help are made from these fields (:mod:`.fields`).

    Parameters
    ----------
    max_latency
        Seconds from frame to answer.
    max_device_time
        Seconds of work on the device, packing included.
    max_edge_time
        Seconds of work on the edge, unpacking included.
    max_device_share
        Work on the device as a share of the latency, 0 to 1.
    max_edge_share
        Work on the edge as a share of the latency, 0 to 1.
    max_upload
        Bytes of a request.
    max_device_memory
        Bytes of weights and feature maps on the device.
    max_energy
        Joules per request on the device; needs its power.
    max_leakage
        Distance correlation of the input and what leaves the device, 0 to 1. A plan for which it
        was not measured is excluded.
    min_throughput
        Requests per second when requests are pipelined.
    min_accuracy
        Share of right answers, 0 to 1, where it was measured. A plan for which it was not measured
        is kept.
    min_device_blocks
        Blocks that must run on the device, for privacy: no image and no early feature map leaves
        it.
    min_device_layers
        Layers that must run on the device, for privacy.
    on_device
        Layer, module (with all that is in it) or block that must run on the device.
    not_on_device
        Layer, module or block that must not run on the device.
    on_edge
        Layer, module or block that must run on the edge.
    not_on_edge
        Layer, module or block that must not run on the edge.
    slicing_points
        The network must be cut at one of these slicing points.
    avoid_slicing_points
        The network must not be cut at these slicing points.
    device_precision
        Numbers in which the device must compute: "float32" excludes plans in int8, which need
        ONNX Runtime on the device.
    machines
        Names of machines that must all be used.
    avoid_machines
        Names of machines that must not be used.

    Raises
    ------
    PlanError
        A number is negative, or a share is above 1.
    """

    # More than 12 attributes: each is one criterion, and one option of `scissionlite plan`.
    max_latency: _Limit = None
    max_device_time: _Limit = None
    max_edge_time: _Limit = None
    max_device_share: _Share = None
    max_edge_share: _Share = None
    max_upload: _Count = None
    max_device_memory: _Count = None
    max_energy: _Limit = None
    max_leakage: _Share = None
    min_throughput: _Limit = None
    min_accuracy: _Share = None
    min_device_blocks: _Count = None
    min_device_layers: _Count = None
    on_device: _Names = ()
    not_on_device: _Names = ()
    on_edge: _Names = ()
    not_on_edge: _Names = ()
    slicing_points: _Names = ()
    avoid_slicing_points: _Names = ()
    device_precision: Precision | None = None
    machines: _Names = ()
    avoid_machines: _Names = ()

    def __post_init__(self) -> None:
        check_fields(self, PlanError)

    @property
    def privacy(self) -> Constraints | None:
        """The constraints that protect privacy; None if there are none."""
        private = Constraints(
            max_leakage=self.max_leakage,
            min_device_blocks=self.min_device_blocks,
            min_device_layers=self.min_device_layers,
        )
        return private if private.active() else None

    def active(self) -> dict[str, object]:
        """The constraints that are set, by name."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: value for name, value in fields.items() if value not in (None, ())}

    def select(self, plans: Sequence[Plan], profiles: Sequence[Profile]) -> list[Plan]:
        """The plans that keep every constraint.

        Parameters
        ----------
        plans
            Plans with predictions.
        profiles
            Profiles of all machines. All have the network's blocks; those of the first are used.

        Raises
        ------
        PlanError
            If a name is unknown, or no plan is left. The message says how many plans each
            constraint excludes, and how close the nearest of them comes.
        """
        checks = [*self._limits(), *self._places(profiles[0].blocks), *self._machines(profiles)]
        kept = [plan for plan in plans if not any(check.breaks(plan) for check in checks)]
        if kept:
            return kept
        excluded = [check.summary(plans) for check in checks if any(map(check.breaks, plans))]
        raise PlanError(
            f"no plan satisfies the constraints: {'; '.join(excluded)}. Relax one of them"
            if plans
            else "there is nothing to plan with: no link joins the machines"
        )

    def _limits(self) -> list[_Check]:
        checks = []
        for name, (value, at_most) in _LIMITS.items():
            limit = getattr(self, name)
            if limit is not None:
                checks.append(_Check(name, limit, _limit(value, limit, at_most), value, at_most))
        return checks

    def _places(self, blocks: Sequence[BlockProfile]) -> list[_Check]:
        where = _Places(blocks)
        checks = []
        for name in ("on_device", "not_on_device", "on_edge", "not_on_edge"):
            for place in getattr(self, name):
                checks.append(_Check(name, place, where.rule(name, place)))
        points = {block.name for block in blocks[:-1]} | {INPUT_POINT}
        for name in ("slicing_points", "avoid_slicing_points"):
            if names := set(getattr(self, name)):
                _check_names(names, points, "slicing point")
                must = name == "slicing_points"
                checks.append(
                    _Check(name, sorted(names), lambda p, n=names, m=must: (not n & _cuts(p)) == m)
                )
        if self.device_precision is not None:
            wanted = self.device_precision
            name = "device_precision"
            checks.append(_Check(name, wanted, lambda p: p.device_precision != wanted))
        return checks

    def _machines(self, profiles: Sequence[Profile]) -> list[_Check]:
        machines = {profile.name for profile in profiles}
        checks = []
        for name in ("machines", "avoid_machines"):
            if names := set(getattr(self, name)):
                _check_names(names, machines, "machine")
                if name == "machines":
                    rule = lambda p, n=names: not n <= set(p.machines)  # noqa: E731
                else:
                    rule = lambda p, n=names: bool(n & set(p.machines))  # noqa: E731
                checks.append(_Check(name, sorted(names), rule))
        return checks


_Rule = Callable[..., bool]


class _Check(msgspec.Struct):
    """One constraint: its name, its limit, and a rule that says whether a plan breaks it."""

    name: str
    limit: Any
    breaks: _Rule
    value: Callable[[Any], float | None] | None = None
    at_most: bool = True

    def summary(self, plans: Sequence[Plan]) -> str:
        """How many plans it excludes, and how close the nearest comes."""
        count = sum(map(self.breaks, plans))
        text = f"{self.name}={self.limit} excludes {count} of {len(plans)}"
        if self.value is None:
            return text
        values = [v for v in map(self.value, plans) if v is not None]
        if not values:
            return f"{text} (it was not measured)"
        nearest = min(values) if self.at_most else max(values)
        return f"{text} (the {'least' if self.at_most else 'most'} of all is {nearest:.6g})"


def _limit(value: Callable[[Any], float | None], limit: float, at_most: bool) -> _Rule:
    def breaks(plan: Plan) -> bool:
        found = value(plan)
        if found is None:
            # An accuracy that was not measured breaks nothing; any other missing value does.
            return at_most
        return found > limit if at_most else found < limit

    return breaks


_LIMITS: Mapping[str, tuple[Callable[[Any], float | None], bool]] = {
    "max_latency": (lambda p: p.predicted.latency, True),
    "max_device_time": (lambda p: p.predicted.device_stage, True),
    "max_edge_time": (lambda p: p.predicted.decode_time + p.predicted.edge_time, True),
    "max_device_share": (lambda p: p.predicted.device_stage / p.predicted.latency, True),
    "max_edge_share": (
        lambda p: (p.predicted.decode_time + p.predicted.edge_time) / p.predicted.latency,
        True,
    ),
    "max_upload": (lambda p: p.predicted.sent_bytes, True),
    "max_device_memory": (lambda p: p.predicted.device_memory, True),
    "max_energy": (lambda p: p.predicted.energy, True),
    "max_leakage": (lambda p: p.predicted.leakage, True),
    "min_throughput": (lambda p: p.predicted.throughput, False),
    "min_accuracy": (lambda p: p.accuracy, False),
    "min_device_blocks": (lambda p: p.predicted.device_blocks, False),
    "min_device_layers": (lambda p: p.predicted.device_layers, False),
}


class _Places:
    """Finds the blocks that hold a layer, a module or a block of some name."""

    def __init__(self, blocks: Sequence[BlockProfile]) -> None:
        self._found: dict[str, list[int]] = {}
        for index, block in enumerate(blocks):
            names = {block.name}
            for layer in block.layers:
                parts = layer.split(".")
                names |= {".".join(parts[: n + 1]) for n in range(len(parts))}
            for name in names:
                self._found.setdefault(name, []).append(index)

    def rule(self, constraint: str, name: str) -> _Rule:
        """The rule of a constraint on the machine that runs a layer, module or block."""
        _check_names([name], self._found, "layer, module or block")
        first, last = self._found[name][0], self._found[name][-1]
        rules: dict[str, _Rule] = {
            "on_device": lambda p: last >= p.predicted.device_blocks,
            "not_on_device": lambda p: first < p.predicted.device_blocks,
            "on_edge": lambda p: (
                first < p.predicted.device_blocks
                or last >= p.predicted.device_blocks + p.predicted.edge_blocks
            ),
            "not_on_edge": lambda p: any(
                0 <= place - p.predicted.device_blocks < p.predicted.edge_blocks
                for place in self._found[name]
            ),
        }
        return rules[constraint]


def _cuts(plan: Plan) -> set[str]:
    cuts = {plan.slicing_point} if plan.slicing_point is not None else set()
    return cuts | ({plan.second.slicing_point} if plan.second is not None else set())


def _check_names(names: Iterable[str], existing: Iterable[str], what: str) -> None:
    every = list(existing)
    for name in names:
        if name not in every:
            near = difflib.get_close_matches(name, every, n=5, cutoff=0.4) or sorted(every)[:10]
            raise PlanError(f"no {what} is named {name!r}; did you mean {', '.join(near)}?")
