"""Tables and figure of :mod:`bench.predicted`, and its part of docs/planning.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

import scissionlite as sl

LINKS = {
    "20 Mbit/s, 40 ms": sl.Link(0.040, 20e6),
    "58.8 Mbit/s, 27.4 ms": sl.Link(0.0274, 58.8e6),
    "300 Mbit/s, 5 ms": sl.Link(0.005, 300e6),
}
BEGIN = "<!-- python -m bench.predicted --document writes from here -->"
END = "<!-- to here -->"


def write_part(document: Path, text: str) -> None:
    """Replace what stands between the marks of a document; the rest stays as it is."""
    whole = document.read_text()
    before, begin, rest = whole.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{document} has no lines `{BEGIN}` and `{END}`")
    document.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Tabulate errors by network and link, and what the planner's choice loses, in Markdown."""
    lines = [
        "| network | link | measured | splits | median error | largest | chosen, ms "
        "| best measured, ms | lost |",
        "| --- " * 9 + "|",
    ]
    lost: list[float] = []
    for network in dict.fromkeys(row["network"] for row in rows):
        for link in LINKS:
            own = [r for r in rows if r["network"] == network and r["link"] == link]
            errors = np.array([r["predicted"] / r["measured"] - 1 for r in own])
            worst = errors[np.abs(errors).argmax()]
            chosen = next(r for r in own if r["chosen"])
            best = min(own, key=lambda r: r["measured"])
            splits = [r for r in own if r["kind"] == "split"]
            lost.append(chosen["measured"] / best["measured"] - 1)
            lines.append(
                f"| {network} | {link} | {len(own)} | {len(splits)} | "
                f"{np.median(np.abs(errors)):.1%} | {worst:+.1%} | {_with_latency(chosen)} | "
                f"{_with_latency(best)} | {lost[-1]:.1%} |"
            )
    errors = np.array([abs(r["predicted"] / r["measured"] - 1) for r in rows])
    near = np.mean(np.array(lost) <= 0.03)
    lines.append(
        f"\nOf all {len(rows)}: median error {np.median(errors):.1%} (to be at most 5%), largest "
        f"{errors.max():.1%} (15%). The choice is within 3% of the best measured in {near:.0%} of "
        f"the {len(lost)} cells (90%); it loses at most {max(lost):.1%}."
    )
    return "\n".join(lines)


def _with_latency(row: dict[str, Any]) -> str:
    return f"{name_of(row)}, {row['measured'] * 1e3:.1f}"


def name_of(row: dict[str, Any]) -> str:
    return str(row["what"]) + (f" after {row['slicing_point']}" if row["slicing_point"] else "")


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw predicted against measured latency, one panel per network."""
    names = list(dict.fromkeys(row["network"] for row in rows))
    columns = min(len(names), 5)
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(3.4 * columns, 0.5 + 3.6 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    colours = mpl.colormaps["viridis"](np.linspace(0.1, 0.75, len(LINKS)))
    markers = {"split": "o", "image": "s", "local": "^"}
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    for panel, name in zip(panels, names, strict=False):
        own = [row for row in rows if row["network"] == name]
        for link, colour in zip(LINKS, colours, strict=True):
            for kind, marker in markers.items():
                some = [r for r in own if r["link"] == link and r["kind"] == kind]
                panel.plot(
                    [r["measured"] * 1e3 for r in some],
                    [r["predicted"] * 1e3 for r in some],
                    marker,
                    color=colour,
                    markersize=5,
                    label=link if kind == "split" else None,
                )
        values = [row[which] * 1e3 for row in own for which in ("measured", "predicted")]
        ends = np.array([0.8 * min(values), 1.25 * max(values)])
        panel.plot(ends, ends, color="0.4", linewidth=0.8)
        panel.fill_between(ends, 0.92 * ends, 1.08 * ends, color="0.9", zorder=0)
        panel.set(xscale="log", yscale="log", xlim=ends, ylim=ends, title=name.partition(":")[2])
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        panel.set_xlabel("measured, ms")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("predicted, ms")
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle(
        "Splits (circles), JPEG to the edge (squares), local (triangles); the band is 8%",
        fontsize=9,
    )
    figure.savefig(path, dpi=130)
