"""Tables and figures of docs/accuracy.md, from the records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import msgspec
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from bench.accuracy import jpeg
from bench.accuracy.networks import NETWORKS
from bench.accuracy.records import JPEGS, RUNS, Jpeg, Run, read, seeds_together

MARKERS = "osD^vP*X<>"
SHOWN = 20
"""How many points below the best score the figure goes; the tables hold everything."""
COLUMNS = (
    "after",
    "Transfer Layer",
    "times fewer bytes",
    "bytes sent",
    "without retraining",
    "epochs",
    "seeds",
    "retrained",
    "drop, points",
    "JPEG of no fewer bytes",
    "minutes",
)


def results(runs: Sequence[Run], jpegs: Sequence[Jpeg], *, labels: bool = True) -> str:
    """Tabulate bytes and scores of each network's Transfer Layers, before and after, in Markdown.

    Scores are means of all seeds, with the lowest and the highest in brackets. "Times fewer bytes"
    compares the feature map in float32 with the packed one, without the entropy stage. "Bytes sent"
    is with the entropy stage.
    """
    parts = []
    for name in NETWORKS:
        groups = [g for g in seeds_together(runs) if g[0].network == name and g[0].labels == labels]
        if not groups:
            continue
        groups.sort(key=_order)
        own = [j for j in jpegs if j.network == name]
        first = groups[0][0]
        parts.append(
            f"{name}, {'with' if labels else 'without'} labels: "
            f"{first.metric} {first.before:.2%} uncut, {first.samples} test samples, "
            f"{first.threads} thread(s) of {first.cpu}\n"
        )
        parts += [_row(COLUMNS), _row(["---"] * len(COLUMNS))]
        for group in groups:
            sent, after = _mean(group, "sent_bytes"), _mean(group, "after")
            parts.append(
                _row(
                    [
                        group[0].cut,
                        group[0].label,
                        f"{group[0].float32_bytes / group[0].packed_bytes:.3g}",
                        f"{sent:.0f}",
                        _spread(group, "untrained"),
                        f"{group[0].recipe.epochs}",
                        f"{len(group)}",
                        _spread(group, "after") if group[0].recipe.epochs else "",
                        f"{100 * (_mean(group, 'before') - after):+.2f}",
                        _jpeg_cell(jpeg.best(own, sent)),
                        f"{_mean(group, 'minutes'):.1f}",
                    ]
                )
            )
        parts.append("")
    return "\n".join(parts)


def label_free(runs: Sequence[Run]) -> str:
    """Compare training with and without labels, where both were run, in Markdown."""
    columns = (
        "network",
        "after",
        "Transfer Layer",
        "epochs",
        "with labels",
        "without",
        "points lost",
    )
    groups = {group[0].setting: group for group in seeds_together(runs)}
    lines = []
    for setting, group in groups.items():
        bare = groups.get(setting._replace(labels=False))
        if setting.labels and bare is not None:
            lost = 100 * (_mean(group, "after") - _mean(bare, "after"))
            scores = _spread(group, "after"), _spread(bare, "after")
            lines.append(
                _row(
                    [
                        setting.network,
                        setting.cut,
                        group[0].label,
                        f"{setting.recipe.epochs}",
                        *scores,
                        f"{lost:+.2f}",
                    ]
                )
            )
    return "\n".join([_row(columns), _row(["---"] * len(columns)), *lines, ""]) if lines else ""


def jpeg_table(jpegs: Sequence[Jpeg]) -> str:
    """Tabulate the uncut networks on JPEGs, in Markdown: bytes by coder, and the score."""
    parts = []
    for name in dict.fromkeys(j.network for j in jpegs):
        columns = ("height", "quality", "bytes as sent", "smallest bytes", "score")
        parts += [f"{name}\n", _row(columns), _row(["---"] * len(columns))]
        own = sorted((j for j in jpegs if j.network == name), key=lambda j: (-j.scale, -j.quality))
        for j in own:
            sizes = f"{j.as_sent:.0f}", f"{j.smallest:.0f}"
            parts.append(_row([f"{j.scale:g}", f"{j.quality}", *sizes, f"{j.score:.2%}"]))
        parts.append("")
    return "\n".join(parts)


def draw(runs: Sequence[Run], jpegs: Sequence[Jpeg], path: Path) -> None:
    """Draw score against bytes, one panel per network: ours by slicing point, and JPEG's curves.

    Markers of runs without labels are hollow.
    """
    measured = {run.network for run in runs} | {j.network for j in jpegs}
    names = [name for name in NETWORKS if name in measured]
    figure = Figure(figsize=(max(4.6 * len(names), 6.4), 4.8), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    transfers = list(dict.fromkeys(run.label for run in runs))
    markers = {t: MARKERS[i % len(MARKERS)] for i, t in enumerate(transfers)}
    for panel, name in zip(panels, names, strict=True):
        _panel(panel, name, runs, [j for j in jpegs if j.network == name], markers)
    for transfer, marker in markers.items():
        panels[-1].plot([], [], marker, color="0.4", markersize=5, label=transfer)
    handles: dict[str, Artist] = {}
    for panel in panels:
        handles |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(5, 1 + len(names)),
        frameon=False,
        fontsize=8,
    )
    figure.savefig(path, dpi=130)


def _panel(
    panel: Axes,
    name: str,
    runs: Sequence[Run],
    jpegs: Sequence[Jpeg],
    markers: dict[str, str],
) -> None:
    cuts = NETWORKS[name].cuts
    colours = mpl.colormaps["viridis"](np.linspace(0.0, 0.85, len(cuts)))
    for scale, style in zip(jpeg.SCALES, ("-", "--", ":"), strict=True):
        curve = sorted((j for j in jpegs if j.scale == scale), key=lambda j: j.quality)
        panel.plot(
            [j.smallest for j in curve],
            [100 * j.score for j in curve],
            style,
            color="#d62728",
            linewidth=1.2,
            label="JPEG" if scale == 1 else f"JPEG, {scale:g} of the height",
        )
    scores = []
    for group in seeds_together(runs):
        if group[0].network != name or group[0].cut not in cuts:
            continue
        after = [100 * run.after for run in group]
        scores += after
        mean = float(np.mean(after))
        colour = colours[cuts.index(group[0].cut)]
        panel.errorbar(
            [_mean(group, "sent_bytes")],
            [mean],
            # A mean of equal numbers may differ from them by a rounding.
            [[max(0.0, mean - min(after))], [max(0.0, max(after) - mean)]],
            marker=markers[group[0].label],
            color=colour,
            markerfacecolor=colour if group[0].labels else "white",
            markersize=5,
            linewidth=1,
        )
    for cut, colour in zip(cuts, colours, strict=True):
        panel.plot([], [], "s", color=colour, label=f"after {cut}")
    before = [100 * run.before for run in runs if run.network == name]
    if before:
        panel.axhline(before[-1], color="0.4", linestyle="-", linewidth=0.8, label="uncut")
        # JPEG's low scores at its smallest must not flatten the close scores at the top.
        low, high = min(scores or before), max(scores + before)
        bottom = max(low - 5, high - SHOWN)
        panel.set_ylim(bottom, high + 0.1 * (high - bottom))
    panel.set(xscale="log", title=name, xlabel="bytes a picture")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_ylabel(f"{NETWORKS[name].task.metric}, %")
    panel.spines[["top", "right"]].set_visible(False)


def _order(group: Sequence[Run]) -> tuple[int, int, str, int]:
    first = group[0]
    return _place(first), -first.packed_bytes, first.label, first.recipe.epochs


def _place(run: Run) -> int:
    cuts = NETWORKS[run.network].cuts
    return cuts.index(run.cut) if run.cut in cuts else len(cuts)


def _mean(group: Sequence[Run], field: str) -> float:
    return float(np.mean([getattr(run, field) for run in group]))


def _spread(group: Sequence[Run], field: str) -> str:
    values = [100 * getattr(run, field) for run in group]
    spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}%{spread}"


def _jpeg_cell(point: Jpeg | None) -> str:
    if point is None:
        return ""
    shrunk = f", {point.scale:g} of the height" if point.scale < 1 else ""
    return f"{point.score:.2%} ({point.smallest:.0f} bytes{shrunk})"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def report(out: Path, only: str | None = None) -> str:
    """Return the tables, in Markdown, and draw ``out/accuracy.png``, or that of one network."""
    runs = [run for run in read(out / RUNS, Run) if only in (None, run.network)]
    jpegs = [point for point in read(out / JPEGS, Jpeg) if only in (None, point.network)]
    draw(runs, jpegs, out / f"{only or 'accuracy'}.png")
    recipes = [
        f"{group[0].network}, {group[0].label} after {group[0].cut}: `{group[0].command}`; "
        + msgspec.json.encode(group[0].recipe).decode()
        for group in seeds_together(runs)
    ]
    parts = [results(runs, jpegs), results(runs, jpegs, labels=False), label_free(runs)]
    return "\n".join([*parts, jpeg_table(jpegs), *recipes])
