"""Predicted against measured: three networks, three links, several slicing points each.

    python bench/predicted.py ../shared/data/imagenet-sample-100 [OUT]
    python bench/predicted.py OUT/predicted.json [OUT]     # the tables and the figure once more

Each network is profiled in a process of its own. The device is imagined 5.3 times slower than the
edge (the published ratio that the demo uses). For each link these are measured: the planner's
choice, our 2x2 int8 TL at five slicing points and more, running locally, and JPEG to the edge. A
device, an edge daemon and an emulated link run in processes of their own, with one thread each. The
script writes OUT/predicted.json and OUT/predicted.png (OUT is build/bench by default) and prints
the tables.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch.utils.data import Dataset

import scissionlite as sl
from scissionlite.demo.processes import daemon, emulated, run_device
from scissionlite.models import load_model
from scissionlite.preprocessor.data import Sample, sample_frames
from scissionlite.preprocessor.recipe import Recipe

NETWORKS = {
    "efficientnet_lite0": "scissionlite.models:efficientnet_lite0_imagenet",
    "resnet50": "torchvision:resnet50",
    "deeplabv3": "torchvision:deeplabv3_mobilenet_v3_large",
}
SIZE = 224
LINKS = {
    "20 Mbit/s, 40 ms": sl.Link(0.040, 20e6),
    "58.8 Mbit/s, 27.4 ms": sl.Link(0.0274, 58.8e6),
    "300 Mbit/s, 5 ms": sl.Link(0.005, 300e6),
}
SLOWDOWN = 5.3
POINTS = 5
PREPROCESSING = sl.Preprocessing(size=(SIZE, SIZE))


class Photographs(Dataset[Sample]):
    """Some photographs to calibrate with; their labels are not used."""

    def __init__(self, folder: Path) -> None:
        frames = sample_frames(folder, PREPROCESSING, count=32)
        self._inputs = [torch.from_numpy(PREPROCESSING.tensor(frame)[0]) for frame in frames]

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, index: int) -> Sample:
        return self._inputs[index], 0


def profile(model: str, photographs: Path, out: Path) -> sl.Profile:
    """Profile a network on one thread, in a process of its own."""
    command = ["profile", model, "--size", str(SIZE), "--threads", "1", "--name", "here"]
    command += ["--images", str(photographs), "--out", str(out), "--json"]
    subprocess.run(
        [sys.executable, "-m", "scissionlite", *command], check=True, stdout=subprocess.DEVNULL
    )
    return sl.Profile.load(out)


def key(plan: sl.Plan) -> tuple[Any, ...]:
    where = (plan.kind, plan.slicing_point, plan.device_precision)
    return (*where, plan.spec, plan.image_format, plan.jpeg_quality)


def choose(ranked: dict[str, list[sl.Plan]]) -> dict[tuple[Any, ...], sl.Plan]:
    """Choose the plans to measure: each link's best and best of ours, more of ours, JPEG, local."""
    chosen: dict[tuple[Any, ...], sl.Plan] = {}
    for plans in ranked.values():
        ours = [p for p in plans if p.spec == sl.TransferSpec()]
        jpeg = [p for p in plans if p.image_format == "jpeg"]
        local = [p for p in plans if p.kind == "local"]
        for plan in (plans[0], ours[0], jpeg[0], local[0]):
            chosen[key(plan)] = plan
    # In the order of the network, evenly spread over those where a slice was measured or not.
    ours = sorted(ours, key=lambda p: p.predicted.device_blocks)
    for i in np.linspace(0, len(ours) - 1, POINTS + 2).round().astype(int)[1:-1]:
        chosen[key(ours[i])] = ours[i]
    points = {p.slicing_point for p in chosen.values() if p.kind == "split"}
    assert len(points) >= POINTS, points
    return chosen


def measure(bundle: sl.Bundle, files: Sequence[Path]) -> dict[str, dict[str, float]]:
    """Measure the median latency in seconds and the bytes sent, by link."""
    device = ["run", str(bundle.path), *map(str, files), "--json", "--threads", "1"]
    device += ["--slowdown", str(SLOWDOWN), "--warm-up", "5", "--deadline", "60"]
    if bundle.manifest.kind == "local":
        return dict.fromkeys(LINKS, _figures(run_device(device)))
    serve = ["-m", "scissionlite", "serve", str(bundle.path), "--bind", "tcp://127.0.0.1:*"]
    results = {}
    with daemon([*serve, "--threads", "1", "--json"]) as edge:
        for name, link in LINKS.items():
            with emulated(link, edge) as (tensors, control):
                run = run_device([*device, "--connect", tensors, "--control", control])
            assert all(answer["where"] == "edge" for answer in run["answers"])
            results[name] = _figures(run)
    return results


def _figures(run: dict[str, Any]) -> dict[str, float]:
    summary = run["summary"]
    parts: dict[str, list[float]] = {}
    for answer in run["answers"]:
        for stage, seconds in answer["timings"].items():
            parts.setdefault(stage, []).append(seconds)
    return {
        "measured": summary["latency_median"],
        "sent_bytes": summary["bytes_sent"] / summary["answers"],
        **{stage: median(values) for stage, values in parts.items()},
    }


def network_rows(name: str, model: str, photographs: Path, out: Path) -> list[dict[str, Any]]:
    """Predict and measure one network."""
    measured = profile(model, photographs, out / f"predicted-{name}.json")
    ranked = {link: sl.plan(measured.slowed(SLOWDOWN), measured, LINKS[link]) for link in LINKS}
    predicted = {link: {key(p): p for p in plans} for link, plans in ranked.items()}
    network = load_model(model)
    graph = sl.capture(network, torch.zeros(1, 3, SIZE, SIZE), name=model)
    data = Photographs(photographs)
    files = sorted(photographs.glob("*.JPEG"))[::8]
    rows = []
    for identity, plan in choose(ranked).items():
        with tempfile.TemporaryDirectory() as folder:
            bundle = sl.prepare(
                graph,
                plan,
                train=data,
                recipe=Recipe(epochs=0),
                preprocessing=PREPROCESSING,
                out=Path(folder) / "bundle",
                local_fallback=plan.kind != "split",
            )
            for link, figures in measure(bundle, files).items():
                each = predicted[link][identity]
                prediction = each.predicted
                row: dict[str, Any] = {
                    "network": name,
                    "link": link,
                    "what": each.label,
                    "slicing_point": each.slicing_point,
                    "kind": each.kind,
                    "predicted": prediction.latency,
                    "chosen": key(ranked[link][0]) == identity,
                    "parts": {
                        "device": prediction.device_time,
                        "encode": prediction.encode_time,
                        "transfer": prediction.transfer_time,
                        "decode": prediction.decode_time,
                        "edge": prediction.edge_time,
                        "offload": prediction.offload_time,
                    },
                    **figures,
                }
                rows.append(row)
                print(
                    f"{name}, {link}, {_name(row)}: predicted {row['predicted'] * 1e3:.1f}, "
                    f"measured {row['measured'] * 1e3:.1f} ms, "
                    f"{row['predicted'] / row['measured'] - 1:+.1%}",
                    file=sys.stderr,
                    flush=True,
                )
    return rows


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Tabulate errors by network and link, and the loss of the planner's choice, in Markdown."""
    lines = [
        "| network | link | measured | splits | median error | largest | chosen, ms "
        "| best measured, ms | lost | split predicted best, ms | lost on the best |",
        "| --- " * 11 + "|",
    ]
    for network in dict.fromkeys(row["network"] for row in rows):
        for link in LINKS:
            own = [r for r in rows if r["network"] == network and r["link"] == link]
            errors = np.array([r["predicted"] / r["measured"] - 1 for r in own])
            worst = errors[np.abs(errors).argmax()]
            chosen = next(r for r in own if r["chosen"])
            best = min(own, key=lambda r: r["measured"])
            splits = [r for r in own if r["kind"] == "split"]
            split = min(splits, key=lambda r: r["predicted"])
            best_split = min(splits, key=lambda r: r["measured"])
            lines.append(
                f"| {network} | {link} | {len(own)} | {len(splits)} | "
                f"{np.median(np.abs(errors)):.1%} | {worst:+.1%} | {_with_latency(chosen)} | "
                f"{_with_latency(best)} | {chosen['measured'] / best['measured'] - 1:.1%} | "
                f"{_with_latency(split)} | {split['measured'] / best_split['measured'] - 1:.1%} |"
            )
    errors = np.array([abs(r["predicted"] / r["measured"] - 1) for r in rows])
    lines.append(f"\nMedian absolute error of all {len(rows)}: {np.median(errors):.1%}.")
    return "\n".join(lines)


def _with_latency(row: dict[str, Any]) -> str:
    return f"{_name(row)}, {row['measured'] * 1e3:.1f}"


def _name(row: dict[str, Any]) -> str:
    return str(row["what"]) + (f" after {row['slicing_point']}" if row["slicing_point"] else "")


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw predicted against measured latency, one panel per network."""
    names = list(dict.fromkeys(row["network"] for row in rows))
    figure = Figure(figsize=(4.4 * len(names), 4.6), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    colours = mpl.colormaps["viridis"](np.linspace(0.1, 0.75, len(LINKS)))
    markers = {"split": "o", "image": "s", "local": "^"}
    for panel, name in zip(panels, names, strict=True):
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
        panel.set(xscale="log", yscale="log", xlim=ends, ylim=ends, title=name)
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


def main(source: Path, out: Path) -> None:
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    if source.suffix == ".json":
        rows = json.loads(source.read_text())
    else:
        for name, model in NETWORKS.items():
            rows += network_rows(name, model, source, out)
        (out / "predicted.json").write_text(json.dumps(rows, indent=1))
    draw(rows, out / "predicted.png")
    print(tables(rows))


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        raise SystemExit(f"usage: {sys.argv[0]} PHOTOGRAPHS|JSON [OUT]")
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) == 3 else "build/bench"))
