"""The figures of the report."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from bench.end_to_end.claims import DEVICE_STAGES, fair, fastest
from bench.end_to_end.contenders import (
    GRPC,
    JPEG,
    JPEG_ONNX,
    LOCAL,
    LOCAL_INT8,
    LOCAL_ONNX,
    OURS,
    OURS_ENCODER,
    OURS_ONNX,
    OURS_SPLIT,
    PAPER,
    SCISSION,
    WEBP,
)
from bench.end_to_end.records import Cell, Measured

COLOURS = {
    OURS: "#c1272d",
    PAPER: "#e08a2e",
    SCISSION: "#7a5195",
    JPEG: "#2166ac",
    WEBP: "#5ab4ac",
    LOCAL: "#4d4d4d",
    LOCAL_INT8: "#1a9850",
    LOCAL_ONNX: "#8c8c8c",
    OURS_ONNX: "#f4a6a8",
    OURS_ENCODER: "#ff6f91",
    OURS_SPLIT: "#8e1b3a",
    JPEG_ONNX: "#92c5de",
}
OTHERS = ("#b8860b", "#8c564b", "#e377c2", "#17becf", "#9edae5", "#bcbd22")
PARTS = ("device", "encode", "transfer", "decode", "edge")


def by_slicing_point(cell: Cell, path: Path) -> None:
    """Draw the paper's figure: stacked bars by slicing point, predicted and measured."""
    rows = [m for m in cell.measured if m.ran]
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    panel = figure.subplots()
    colours = mpl.colormaps["viridis"](np.linspace(0.1, 0.9, len(PARTS)))
    for offset, values_of in ((-0.21, _predicted_parts), (0.21, _measured_parts)):
        bottom = np.zeros(len(rows))
        for part, colour in zip(PARTS, colours, strict=True):
            values = np.array([values_of(m)[part] for m in rows]) * 1e3
            label = part if offset < 0 else None
            hatch = "//" if offset < 0 else None
            x = np.arange(len(rows)) + offset
            style = {"width": 0.38, "color": colour, "label": label, "hatch": hatch}
            panel.bar(x, values, bottom=bottom, edgecolor="white", linewidth=0.4, **style)
            bottom += values
    panel.axhline(cell.bound * 1e3, color="0.3", linestyle=":", linewidth=1)
    names = [m.place.replace("features.", "") for m in rows]
    panel.set_xticks(np.arange(len(rows)), names, rotation=20, ha="right", fontsize=8)
    panel.set_ylabel("latency, ms")
    title = f"{cell.network}, {cell.link}: predicted (hatched) and measured by slicing point"
    panel.set_title(f"{title}; dotted: zero-byte bound", fontsize=9)
    panel.margins(y=0.15)  # room for the legend
    panel.legend(frameon=False, fontsize=8, ncols=len(PARTS))
    panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def _predicted_parts(m: Measured) -> dict[str, float]:
    return {part: m.parts.get(part, 0.0) for part in PARTS}


def _measured_parts(m: Measured) -> dict[str, float]:
    device = sum(m.timings.get(stage, 0.0) for stage in DEVICE_STAGES if stage != "encode")
    return {
        "device": device,
        "encode": m.timings.get("encode", 0.0),
        "transfer": sum(m.timings.get(s, 0.0) for s in ("transfer", "wait", "edge_queue")),
        "decode": m.timings.get("edge_decode", 0.0),
        "edge": m.timings.get("edge_run", 0.0),
    }


def by_bandwidth(cells: Sequence[Cell], path: Path) -> None:
    """Draw latency against bandwidth, a panel a network, and whose region it is."""
    networks = list(dict.fromkeys(c.network for c in cells))
    columns = min(len(networks), 3)
    lines = -(-len(networks) // columns)
    figure = Figure(figsize=(4.6 * columns, 0.6 + 3.7 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel in panels[len(networks) :]:
        panel.set_axis_off()
    for panel, network in zip(panels, networks, strict=False):
        own = sorted((c for c in cells if c.network == network), key=lambda c: c.bandwidth)
        rates = [c.bandwidth / 1e6 for c in own]
        names = list(dict.fromkeys(m.name for c in own for m in c.ran))
        for name in names:
            points = [(c.bandwidth / 1e6, m.median * 1e3) for c in own if (m := c.get(name))]
            known = name in COLOURS
            panel.plot(
                *zip(*points, strict=True),
                color=COLOURS.get(name, "0.75"),
                linewidth=1.8 if known else 0.8,
                marker="o",
                markersize=3 if known else 1.5,
                zorder=3 if known else 2,
                label=name if known else None,
            )
        edges = [rates[0] / 2, *np.sqrt(np.multiply(rates[:-1], rates[1:])), rates[-1] * 2]
        for i, cell in enumerate(own):
            winner = fastest(fair(cell)).name
            colour = COLOURS.get(winner, "0.75")
            panel.axvspan(edges[i], edges[i + 1], color=colour, alpha=0.16, linewidth=0)
        panel.set(xscale="log", yscale="log", title=network, xlabel="bandwidth, Mbit/s")
        panel.set_xlim(edges[0], edges[-1])
        panel.set_xticks(rates, [f"{rate:g}" for rate in rates])
        panel.xaxis.minorticks_off()
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[::columns]:
        panel.set_ylabel("median latency, ms")
    handles: dict[str, Artist] = {}
    for panel in panels:
        for handle, name in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    style = {"frameon": False, "fontsize": 8, "ncols": min(len(handles), 4)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", **style)
    figure.suptitle("The background has the colour of the fastest; grey: another one", fontsize=9)
    figure.savefig(path, dpi=130)


def accuracy_by_bytes(cells: Sequence[Cell], path: Path) -> bool:
    """Draw accuracy against bytes where it is known; False if it is known nowhere."""
    known = [(c.network, m) for c in cells for m in c.ran if m.accuracy is not None]
    counts = Counter(network for network, m in known if m.sent_bytes)
    networks = [network for network, count in counts.items() if count > 2]
    if not networks:
        return False
    figure = Figure(figsize=(4.4 * len(networks), 4.6), layout="constrained")
    panels = figure.subplots(1, len(networks), squeeze=False)[0]
    names = dict.fromkeys(
        m.name
        for c in cells
        if c.network in networks
        for m in c.ran
        if m.accuracy is not None
        and m.sent_bytes
        and m.name not in (GRPC, OURS_ONNX, JPEG_ONNX)  # as without
    )
    others = itertools.cycle(OTHERS)
    colours = {name: COLOURS.get(name) or next(others) for name in names}
    for panel, network in zip(panels, networks, strict=True):
        for name in names:
            points = {
                (m.sent_bytes, m.accuracy * 100)
                for c in cells
                if c.network == network
                for m in c.ran
                if m.name == name and m.accuracy is not None
            }
            sent, accuracy = zip(*points, strict=True) if points else ((), ())
            panel.plot(sent, accuracy, "o", color=colours[name], markersize=6, label=name)
        panel.set(xscale="log", title=network, xlabel="bytes sent")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    style = {"frameon": False, "fontsize": 8, "ncols": 3}
    figure.legend(handles, labels, loc="outside lower center", **style)
    panels[0].set_ylabel("accuracy, %")
    figure.savefig(path, dpi=130)
    return True
