"""Draw the measurements of bench_kernels.py: bytes a second against the speed of memory.

    python bench/roofline.py BENCHMARK.json FIGURE.png

reads the JSON that ``pytest --benchmark-json`` writes; ``make bench`` does both. A bar is the
number of bytes of feature map that an ISA's kernel handles in a second. The black line above it is
the roof: ``numpy.copyto`` of the same map for encoding, ``ndarray.fill`` for decoding, timed in
turns with that kernel.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOFS = {"encode": "numpy.copyto of the map", "decode": "ndarray.fill of the map"}
LAYOUTS = ("nchw", "nhwc")


def read(path: Path) -> tuple[list[dict[str, Any]], str]:
    """Return the kernels' measurements, and the machine that they were made on."""
    content = json.loads(path.read_text())
    infos = [benchmark["extra_info"] for benchmark in content["benchmarks"]]
    kernels = [info for info in infos if info.get("operation") in ROOFS]
    if not kernels:
        raise SystemExit(f"{path} has no kernels: run bench/bench_kernels.py with --benchmark-json")
    first = kernels[0]
    return (
        kernels,
        f"{first['cpu']}, {first['threads']} thread, ScissionLite {first['scissionlite']}",
    )


def draw(kernels: list[dict[str, Any]], machine: str, path: Path) -> None:
    """Write the figure: one row per operation, one column per layout."""
    figure = Figure(figsize=(13, 8))
    panels = figure.subplots(len(ROOFS), len(LAYOUTS), sharey="row", squeeze=False)
    for row, operation in enumerate(ROOFS):
        for column, layout in enumerate(LAYOUTS):
            own = [k for k in kernels if (k["operation"], k["layout"]) == (operation, layout)]
            draw_panel(panels[row, column], own)
            panels[row, column].set_title(f"{operation}, {layout.upper()}", fontsize=10)
        panels[row, 0].set_ylabel("feature map gone through, GB/s")
        panels[row, 0].legend(fontsize=8, frameon=False, ncols=2, title=f"line: {ROOFS[operation]}")
    figure.suptitle(f"2x2 max-pooling, int8, float32 feature maps: {machine}", fontsize=11)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def draw_panel(panel: Axes, kernels: list[dict[str, Any]]) -> None:
    shapes = list(dict.fromkeys(kernel["shape"] for kernel in kernels))
    isas = list(dict.fromkeys(kernel["isa"] for kernel in kernels))[::-1]  # the slowest first
    width = 0.8 / len(isas)
    colours = mpl.colormaps["viridis"](np.linspace(0.2, 0.8, len(isas)))
    by_key = {(kernel["isa"], kernel["shape"]): kernel for kernel in kernels}
    for i, isa in enumerate(isas):
        x = np.arange(len(shapes)) + (i - (len(isas) - 1) / 2) * width
        own = [by_key[isa, shape] for shape in shapes]
        speeds = [kernel["map_bytes"] / kernel["seconds"] / 1e9 for kernel in own]
        roofs = [kernel["map_bytes"] / kernel["reference_seconds"] / 1e9 for kernel in own]
        bars = panel.bar(x, speeds, width * 0.94, color=colours[i], label=isa)
        panel.bar_label(bars, fmt="%.0f", fontsize=7, padding=1)
        panel.hlines(roofs, x - width / 2, x + width / 2, color="black", linewidth=1.5)
    panel.set_xticks(np.arange(len(shapes)), shapes, fontsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(y=0.25)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(f"usage: {sys.argv[0]} BENCHMARK.json FIGURE.png")
    draw(*read(Path(sys.argv[1])), Path(sys.argv[2]))
    print(f"wrote {sys.argv[2]}")
