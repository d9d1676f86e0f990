"""The demo's figure: latency, bytes and accuracy of the ways, one colour per link."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from scissionlite.atomic_folder import atomic_file
from scissionlite.demo.comparison import Row


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Write the figure as a PNG file."""
    links = list(dict.fromkeys(str(row.link) for row in rows))
    names = list(dict.fromkeys(row.configuration for row in rows))
    by_key = {(str(row.link), row.configuration): row for row in rows}
    height = 0.8 / len(links)
    positions = np.arange(len(names))
    figure = Figure(figsize=(13, 1.8 + 0.45 * len(names) * max(1.0, len(links) / 1.5)))
    panels = figure.subplots(1, 3, sharey=True)
    colours = mpl.colormaps["viridis"](np.linspace(0.15, 0.65, len(links)))
    for i, link in enumerate(links):
        y = positions + (i - (len(links) - 1) / 2) * height
        own = [by_key[link, name] for name in names]
        medians = np.array([row.median for row in own]) * 1e3
        beyond = np.array([row.p95 for row in own]) * 1e3 - medians
        whiskers = [np.zeros_like(beyond), np.maximum(beyond, 0)]
        style = {"height": height * 0.92, "color": colours[i]}
        latency = panels[0].barh(y, medians, xerr=whiskers, ecolor="0.3", label=link, **style)
        sent = panels[1].barh(y, [row.sent_bytes / 1e3 for row in own], **style)
        panels[0].bar_label(latency, fmt="%.0f", label_type="center", color="white", fontsize=8)
        panels[1].bar_label(sent, fmt="%.1f", padding=3, fontsize=8)
        accuracies = [row.accuracy * 100 for row in own]
        # Points, since an axis of bars would have to start at zero.
        panels[2].plot(accuracies, y, "o", color=colours[i], clip_on=False)
        for value, height_of in zip(accuracies, y, strict=True):
            offset = {"xytext": (7, 0), "textcoords": "offset points"}
            panels[2].annotate(
                f"{value:.1f}", (value, height_of), va="center", fontsize=8, **offset
            )
    panels[0].set_yticks(positions, names)
    panels[0].invert_yaxis()
    panels[0].set_xlabel("latency, ms (median; whisker: 95th percentile)")
    panels[1].set_xlabel("bytes sent, kB")
    panels[2].set_xlabel("accuracy, %")
    # The axis ends at 100%. A label that stands beside a point there reaches over its end.
    panels[2].set_xlim(max(0, min(row.accuracy for row in rows) * 100 - 3), 100)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[:2]:
        panel.margins(x=0.14)
    panels[2].grid(axis="x", alpha=0.3)
    panels[0].legend(fontsize=8, frameon=False, loc="best")
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    with atomic_file(path) as file:
        figure.savefig(file, dpi=130)
