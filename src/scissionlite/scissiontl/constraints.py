"""What a plan must keep to: Scission's criteria, and more. No torch."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from scissionlite.errors import PlanError
from scissionlite.scissiontl.profile import BlockProfile, Profile

if TYPE_CHECKING:
    from scissionlite.scissiontl.plans import Plan

_Names = tuple[str, ...]
_PRIVACY = ("max_leakage", "min_device_blocks", "min_device_layers")


class Constraints(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan must keep to; None, or no names, leaves a constraint out.

    Parameters
    ----------
    max_latency
        Seconds from frame to answer.
    max_device_time, max_edge_time
        Seconds of work on the device and on the edge, packing and unpacking included.
    max_device_share, max_edge_share
        The same as a share (0 to 1) of the latency.
    max_upload
        Bytes of a request.
    max_device_memory
        Bytes on the device: weights and feature maps.
    max_energy
        Joules on the device; needs its power.
    max_leakage
        Distance correlation (0 to 1) between the input and what leaves the device. Where it was
        not measured a plan is excluded.
    min_throughput
        Requests a second when they are pipelined.
    min_accuracy
        Share of right answers. Plans whose accuracy nobody measured are kept.
    min_device_blocks, min_device_layers
        Blocks or layers that must run on the device, so that no image and no early feature map
        leaves it.
    on_device, not_on_device, on_edge, not_on_edge
        Layers, modules with all that is in them, or blocks that must or must not run there.
    slicing_points, avoid_slicing_points
        Where the network must (at one of them) or must not be cut.
    machines, avoid_machines
        Names of machines to use (all of them) or to avoid.
    """

    max_latency: float | None = None
    max_device_time: float | None = None
    max_edge_time: float | None = None
    max_device_share: float | None = None
    max_edge_share: float | None = None
    max_upload: int | None = None
    max_device_memory: int | None = None
    max_energy: float | None = None
    max_leakage: float | None = None
    min_throughput: float | None = None
    min_accuracy: float | None = None
    min_device_blocks: int | None = None
    min_device_layers: int | None = None
    on_device: _Names = ()
    not_on_device: _Names = ()
    on_edge: _Names = ()
    not_on_edge: _Names = ()
    slicing_points: _Names = ()
    avoid_slicing_points: _Names = ()
    machines: _Names = ()
    avoid_machines: _Names = ()

    @property
    def privacy(self) -> Constraints | None:
        """Those of the constraints that are for privacy, or None if there are none."""
        fields = {name: self.given()[name] for name in _PRIVACY if name in self.given()}
        return Constraints(**fields) if fields else None

    def given(self) -> dict[str, Any]:
        """The constraints that are there, by name."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: value for name, value in fields.items() if value not in (None, ())}

    def select(self, plans: Sequence[Plan], profiles: Sequence[Profile]) -> list[Plan]:
        """Those of the plans that keep every constraint.

        Parameters
        ----------
        plans
            With predictions.
        profiles
            Of the machines planned with, the first of them telling the network's blocks.

        Raises
        ------
        PlanError
            If a name is unknown, or no plan is left: the message says which constraint excludes
            how many, and how close the nearest comes.
        """
        checks = [*self._limits(), *self._places(profiles[0].blocks), *self._machines(profiles)]
        kept = [plan for plan in plans if not any(check.breaks(plan) for check in checks)]
        if kept:
            return kept
        told = [check.told(plans) for check in checks if any(map(check.breaks, plans))]
        raise PlanError(
            f"no plan satisfies the constraints: {'; '.join(told)}. Relax one of them"
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
        points = {block.name for block in blocks[:-1]}
        for name in ("slicing_points", "avoid_slicing_points"):
            if names := set(getattr(self, name)):
                _check_names(names, points, "slicing point")
                must = name == "slicing_points"
                checks.append(
                    _Check(name, sorted(names), lambda p, n=names, m=must: (not n & _cuts(p)) == m)
                )
        return checks

    def _machines(self, profiles: Sequence[Profile]) -> list[_Check]:
        known = {profile.name for profile in profiles}
        checks = []
        for name in ("machines", "avoid_machines"):
            if names := set(getattr(self, name)):
                _check_names(names, known, "machine")
                if name == "machines":
                    rule = lambda p, n=names: not n <= set(p.machines)  # noqa: E731
                else:
                    rule = lambda p, n=names: bool(n & set(p.machines))  # noqa: E731
                checks.append(_Check(name, sorted(names), rule))
        return checks


_Rule = Callable[..., bool]


class _Check(msgspec.Struct):
    """One constraint at work: its name, its limit, and whether a plan breaks it."""

    name: str
    limit: Any
    breaks: _Rule
    value: Callable[[Any], float | None] | None = None
    at_most: bool = True

    def told(self, plans: Sequence[Plan]) -> str:
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
            # Nobody measured the accuracy: kept. What else is unknown is not known to be kept.
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
    """Where in the network a layer, a module or a block is."""

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
        """Whether a plan breaks a constraint on where something runs."""
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


def _check_names(names: Iterable[str], known: Iterable[str], what: str) -> None:
    every = list(known)
    for name in names:
        if name not in every:
            near = difflib.get_close_matches(name, every, n=5, cutoff=0.4) or sorted(every)[:10]
            raise PlanError(f"no {what} is named {name!r}; did you mean {', '.join(near)}?")
