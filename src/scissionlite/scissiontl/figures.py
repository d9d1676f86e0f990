"""Figures of ScissionTL: latency by slicing point, as in the paper, and the Pareto front."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scissionlite.scissiontl.planner import pareto
from scissionlite.scissiontl.plans import Plan
from scissionlite.transfer_layer import TransferSpec

LINES = (
    TransferSpec.float32_split(),
    TransferSpec.paper(),
    TransferSpec(pool=1),
    TransferSpec(),
    TransferSpec(dtype="int4"),
    TransferSpec(pool=4),
    TransferSpec(pool=4, dtype="int4"),
)
"""The codecs that always have a line of their own; that of the best plan has one, too."""

# The bars are light, so that the lines stand out. A line's colour is its codec's dtype, in colours
# of Okabe and Ito, which people of any colour vision tell apart; its dashes are the pooling.
_STAGES = (("device", "#a6bddb"), ("transfer", "#d9d9d9"), ("edge", "#b8e0b0"))
_COLOURS = {"float32": "#000000", "float16": "#cc79a7", "int8": "#0072b2", "int4": "#e69f00"}
_STYLES = {1: "-", 2: "--", 4: ":", 8: "-", 16: "-"}  # an encoder's is a single point
_BEST, _BEST_PRIVATE = "#d62728", "#009e73"
_MOST_LABELS = 45

_Dashes: TypeAlias = str | tuple[int, tuple[int, ...]]
"""Dashes of a line as matplotlib takes them."""


def split_figure(
    plans: Sequence[Plan], best_private: Plan | None = None, spec: TransferSpec | None = None
) -> Figure:
    """Latency by slicing point: the figure of the paper, for any network.

    Bars are the device, transfer and edge times of one Transfer Layer. Packing is part of the
    device time, unpacking of the edge time, the Offloader's share of the transfer time. Lines are
    the latencies with other Transfer Layers, that of the best plan among them. Running locally and
    the best image to the edge are horizontal lines. Device slices are drawn in the precision of the
    best split.

    Parameters
    ----------
    plans
        Plans of two tiers and one pair of machines, best first. All their slicing points are drawn.
    best_private
        The best plan under the privacy constraints, to be marked.
    spec
        Transfer Layer of the bars; 2x2 int8 by default.
    """
    spec = spec or TransferSpec()
    splits = [p for p in plans if p.kind == "split" and p.second is None]
    splits = [p for p in splits if p.device_precision == splits[0].device_precision]
    points = {p.predicted.device_blocks: p.slicing_point or "" for p in splits}
    order = sorted(points)
    place = {blocks: i for i, blocks in enumerate(order)}
    figure = Figure(figsize=(max(8.0, 3.2 + 0.19 * len(order)), 5.6), layout="constrained")
    axes = figure.subplots()
    _bars(axes, [p for p in splits if p.spec == spec], place)
    marked = [(plans[0], "best", "*", _BEST)]
    if best_private is not None:
        marked.append((best_private, "best under the privacy constraint", "P", _BEST_PRIVATE))
    colours = {line: _COLOURS[line.dtype] for line in LINES}
    for each, _, _, colour in marked:
        if each.spec is not None:
            colours.setdefault(each.spec, colour)
    for line, colour in colours.items():
        _line(axes, [p for p in splits if p.spec == line], place, colour)
    levels: dict[str, _Dashes] = {"float32": "-", "int8": (0, (8, 2))}
    for precision, style in levels.items():
        local = (p for p in plans if p.kind == "local" and p.device_precision == precision)
        for each in itertools.islice(local, 1):
            _level(axes, each, "local, int8" if precision == "int8" else "local", style)
    for each in (p for p in plans if p.kind == "image"):
        _level(axes, each, each.label, "-.")
        break
    for each, what, marker, colour in marked:
        x = place.get(each.predicted.device_blocks, -1 if each.kind == "image" else len(order))
        axes.plot(
            [x],
            [each.predicted.latency * 1e3],
            marker,
            markersize=13,
            color=colour,
            markeredgecolor="white",
            zorder=5,
            label=f"{what}:\n{_name(each)}",
        )
    step = -(-len(order) // _MOST_LABELS)
    axes.set_xticks(range(0, len(order), step))
    axes.set_xticklabels(
        [points[blocks] for blocks in order[::step]],
        rotation=60,
        ha="right",
        fontsize=7,
        rotation_mode="anchor",
    )
    axes.set_xlim(-1.5, len(order) + 0.5)
    latencies = np.array([p.predicted.latency for p in splits if p.spec in (*LINES, spec)]) * 1e3
    reference = [p.predicted.latency * 1e3 for p in plans if p.kind != "split"]
    if len(latencies):
        # One slicing point with a huge feature map must not flatten all the others.
        top = max(*reference, 1.6 * float(np.median(latencies)), plans[0].predicted.latency * 2e3)
        axes.set_ylim(0, min(1.15 * max(latencies.max(), *reference), 1.25 * top))
    axes.set_ylabel("predicted latency, ms")
    axes.set_xlabel("last block on the device")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8, handlelength=3.5)
    return figure


def pareto_figure(plans: Sequence[Plan]) -> Figure:
    """Latency against bytes sent, and against leakage where it was measured, with the fronts."""
    leaking = [p for p in plans if p.predicted.leakage is not None]
    panels = 2 if any(p.kind == "split" for p in leaking) else 1
    figure = Figure(figsize=(6.6 * panels, 5.0), layout="constrained")
    first, *rest = figure.subplots(1, panels, squeeze=False)[0]
    front = pareto(plans, ("bytes", "latency"))
    _cloud(first, plans, front, lambda p: p.predicted.sent_bytes / 1e3)
    first.set_xscale("symlog", linthresh=0.1)
    first.set_xlim(left=-0.05)
    first.set_xlabel("sent, kB (0: nothing leaves the device)")
    first.set_ylabel("predicted latency, ms")
    for axes in rest:
        front = pareto(leaking, ("leakage", "latency"))
        _cloud(axes, leaking, front, lambda p: p.predicted.leakage or 0.0)
        axes.set_xlabel("leakage: distance correlation of the input and what is sent")
    figure.legend(
        *first.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8
    )
    return figure


def _bars(axes: Axes, plans: Sequence[Plan], place: dict[int, int]) -> None:
    x = [place[p.predicted.device_blocks] for p in plans]
    bottom = np.zeros(len(x))
    for what, colour in _STAGES:
        heights = np.array([_stage(p, what) for p in plans]) * 1e3
        label = _bar_label(what, plans[0]) if plans else None
        axes.bar(x, heights, 0.8, bottom, color=colour, label=label, alpha=0.85)
        bottom += heights


def _bar_label(what: str, plan: Plan) -> str:
    precision = " in int8" if what == "device" and plan.device_precision == "int8" else ""
    return f"{what}{precision} ({plan.label})"


def _stage(plan: Plan, what: str) -> float:
    cost = plan.predicted
    if what == "device":
        return cost.device_time + cost.encode_time
    if what == "edge":
        return cost.decode_time + cost.edge_time
    return cost.transfer_time + cost.offload_time


def _line(axes: Axes, plans: Sequence[Plan], place: dict[int, int], colour: str) -> None:
    """Draw one codec's latencies; the dashes are its pooling."""
    own = sorted(plans, key=lambda p: p.predicted.device_blocks)
    if own and (spec := own[0].spec) is not None:
        axes.plot(
            [place[p.predicted.device_blocks] for p in own],
            [p.predicted.latency * 1e3 for p in own],
            color=colour,
            linestyle=_STYLES[spec.pool],
            linewidth=1.6,
            marker=".",
            markersize=5,
            label=spec.label,
        )


def _level(axes: Axes, plan: Plan, what: str, style: _Dashes) -> None:
    axes.axhline(
        plan.predicted.latency * 1e3, color="0.45", linestyle=style, linewidth=1, label=what
    )


def _cloud(
    axes: Axes,
    plans: Sequence[Plan],
    front: Sequence[Plan],
    value: Callable[[Plan], float],
) -> None:
    """All plans as points, coloured by what crosses, and the front as a line."""
    groups: dict[str, list[Plan]] = {}
    for each in plans:
        kind = each.spec.dtype if each.spec is not None else each.kind
        groups.setdefault(kind, []).append(each)
    names = [n for n in ("local", "image", "float32", "float16", "int8", "int4") if n in groups]
    colours = mpl.colormaps["viridis"](np.linspace(0.0, 0.95, len(names)))
    for name, colour in zip(names, colours, strict=True):
        own = groups[name]
        special = name in ("local", "image")
        axes.plot(
            [value(p) for p in own],
            [p.predicted.latency * 1e3 for p in own],
            "s" if special else ".",
            color=colour,
            markersize=7 if special else 4,
            label=name if special else f"split, {name}",
            alpha=0.8,
        )
    ordered = sorted(front, key=lambda p: (value(p), p.predicted.latency))
    axes.step(
        [value(p) for p in ordered],
        [p.predicted.latency * 1e3 for p in ordered],
        where="post",
        color="#d62728",
        linewidth=1.2,
        label="Pareto front",
        zorder=4,
    )
    low = min(p.predicted.latency for p in plans) * 1e3
    high = float(np.percentile([p.predicted.latency for p in plans], 90)) * 1e3
    axes.set_ylim(0.85 * low, max(1.1 * high, 1.3 * max(p.predicted.latency * 1e3 for p in front)))
    axes.spines[["top", "right"]].set_visible(False)


def _name(plan: Plan) -> str:
    return plan.label + (f"\nafter {plan.place}" if plan.slicing_point else "")
