"""The demo's figure: latency, bytes and accuracy of the five ways, a colour a link."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

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
    colours = mpl.colormaps["viridis"](np.linspace(0.15, 0.8, len(links)))
    for i, link in enumerate(links):
        y = positions + (i - (len(links) - 1) / 2) * height
        own = [by_key[link, name] for name in names]
        medians = np.array([row.median for row in own]) * 1e3
        beyond = np.array([row.p95 for row in own]) * 1e3 - medians
        values = (medians, [r.sent_bytes / 1e3 for r in own], [r.accuracy * 100 for r in own])
        formats = ("%.0f", "%.1f", "%.1f")
        for panel, series, form in zip(panels, values, formats, strict=True):
            bars = panel.barh(y, series, height * 0.92, color=colours[i], label=link)
            panel.bar_label(bars, fmt=form, padding=3, fontsize=8)
        whiskers = [np.zeros_like(beyond), np.maximum(beyond, 0)]
        panels[0].errorbar(medians, y, xerr=whiskers, fmt="none", ecolor="0.3")
    panels[0].set_yticks(positions, names)
    panels[0].invert_yaxis()
    panels[0].set_xlabel("latency, ms (median; whisker: 95th percentile)")
    panels[1].set_xlabel("bytes sent, kB")
    panels[2].set_xlabel("accuracy, %")
    panels[2].set_xlim(max(0, min(row.accuracy for row in rows) * 100 - 5), 101)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(x=0.14)
    panels[2].margins(x=0)
    panels[0].legend(fontsize=8, frameon=False, loc="best")
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
