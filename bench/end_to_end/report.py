"""docs/benchmarks.md and its figures, from the records and from nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.end_to_end import figures, networks, records
from bench.end_to_end.claims import claims
from bench.end_to_end.contenders import MISSING, OURS_ENCODER, OURS_SPLIT, WEBP
from bench.end_to_end.machine import DEVICE_WATTS, RADIO_WATTS
from bench.end_to_end.records import Cell
from bench.end_to_end.run import DOMINATED, LONGEST
from bench.end_to_end.tables import claims_table, costs, latencies, winners
from bench.end_to_end.tasks import PAPER_LINK, SLOWDOWN, Task, whole_run

DOCUMENT = Path(__file__).parents[2] / "docs" / "benchmarks.md"


def write(out: Path, document: Path) -> None:
    """Write the report of all records of a folder, and its figures beside it."""
    cells = sorted(records.read(out), key=_order)
    folder = document.parent / document.stem
    folder.mkdir(parents=True, exist_ok=True)
    contested = [c for c in cells if c.kind in ("contenders", "quick")]
    lines = [*_head(cells, contested), *_results(cells, contested)]
    lines += _figures(cells, contested, folder)
    for network in dict.fromkeys(c.network for c in contested):
        lines += _network(network, [c for c in contested if c.network == network])
    document.write_text("\n".join(lines).rstrip() + "\n")


def _order(cell: Cell) -> tuple[int, float, float]:
    names = [*networks.NETWORKS, *networks.TINY]
    return names.index(cell.network), cell.slowdown, cell.bandwidth


def _head(cells: Sequence[Cell], contested: Sequence[Cell]) -> list[str]:
    lines = [
        "# Benchmarks: against everything else that one could choose",
        "",
        "<!-- python -m bench.end_to_end writes this page from its records; do not edit it -->",
        "",
        "The speed of the kernels is in [kernels.md](kernels.md). This page is written by",
        "",
        "```sh",
        "make bench-e2e    # or python -m bench.end_to_end, which goes on where it stopped",
        "python -m bench.end_to_end --report",
        "```",
        "",
        "Copied to `build/end_to_end`, the records in `docs/benchmarks/cells` give this page.",
        "",
    ]
    if not cells:
        return [*lines, "**Nothing has been measured yet.**"]
    loads = [c.load for c in cells]
    rounds = [len(m.latencies) for c in cells for m in c.ran]
    kinds = " and ".join(sorted({c.link_kind for c in cells}))
    versions = ", ".join(f"{name} {number}" for name, number in cells[-1].versions.items())
    known = list(dict.fromkeys(c.network for c in contested))
    lines += [
        f"Measured {min(c.date for c in cells)} to {max(c.date for c in cells)} on "
        f"{cells[-1].machine}; {versions}. When a cell began, the machine's load average was "
        f"{np.median(loads):.1f} in the median and {max(loads):.1f} at most; above 1.5, other work "
        f"ran on the two cores. {missing_cells(cells)}",
        "",
        "## How it is measured",
        "",
        f"- Networks: {_networks(contested)}. {_weights(known)}",
        f"- A device process on the first core, the edge daemon and the link on the second. The "
        f"device is emulated {SLOWDOWN} times slower than the edge: each stage of its work is "
        "stretched until it has taken so many times as long (`--slowdown`). Its share of the "
        "Offloader and of gRPC is not stretched. A CPU quota was not taken: its shortest burst is "
        "1 ms, which for requests of some milliseconds is all or nothing.",
        f"- The link ({kinds}): in a network namespace, a token bucket on each end of a veth pair "
        "limits the rate of payload, and a relay makes the delay and the same rate; as a relay "
        "alone it makes both. TCP's slow start over the long way is not in it.",
        f"- Contenders take turns, request by request; {min(rounds, default=0)} to "
        f"{max(rounds, default=0)} rounds a cell. Ratios are of neighbours in time, with the 95% "
        "interval of their median; with fewer than six rounds it is their whole range. One thread "
        f"everywhere. A way that was predicted to take more than {LONGEST['contenders']:g} s "
        f"({LONGEST['claims']:g} s for the paper's claims) is not run, nor one that was predicted "
        f"to take more than {DOMINATED:g} times as long as the fastest; but running locally, "
        "JPEG-75, the float32 split and ours are, up to the seconds.",
        "- Each split is cut at its own best slicing point, as predicted. Ours is the fastest of "
        "our ways that keeps the accuracy within half a point: a learned Transfer Layer or a "
        "[shallow encoder](training.md#a-shallow-encoder-at-the-image) that was trained and scored "
        "(`python -m bench.accuracy run --keep`), and then its bundle is measured, with its bytes; "
        "or a plain Transfer Layer by its record, where there is one, else int8 alone or 2x2 "
        "pooling with int8, which kept it in every network of [accuracy.md](accuracy.md) when "
        "retrained. Those are calibrated and not retrained here, which changes no time. "
        f"*{OURS_ENCODER}* and *{OURS_SPLIT}* are the best of ours of the other kind, with ONNX "
        "Runtime, where ours is of one kind and both exist. Slices run in TorchScript; running "
        "locally, JPEG-75, the lowest JPEG that keeps the accuracy, and ours also run in ONNX "
        "Runtime on both sides, and in the claims ours is the faster of its two, as its rivals "
        "are. The accuracy of an int8 device slice is not "
        "recorded.",
        f"- {WEBP} and the same split over gRPC go through a gRPC server in Python. Nothing is "
        f"predicted for {WEBP} and for float32 in ONNX Runtime. The gRPC contender is a transport "
        "to compare with, and no rival in the other claims. JPEG has quality 75 and 90, and where "
        "docs/accuracy knows it, the lowest that keeps the accuracy within half a point; elsewhere "
        f"JPEG-75 counts as accurate. **{MISSING} is missing**: it must be trained with ImageNet "
        "for each network.",
        "- *Device, ms* are the seconds in which the device computes, at its emulated speed. "
        f"*Energy* is a model, not measured: {DEVICE_WATTS} W for those seconds and {RADIO_WATTS} "
        "W for as long as the bytes take at the link's rate, both above idle. *Device memory* is "
        "the plan's: weights and feature maps. *Accuracy* is that of the records: of "
        "docs/accuracy, or of docs/benchmarks/accuracy for the networks trained on steel.",
        "- The *zero-byte bound* is a round trip and the uncut network on the edge: the median of "
        "its runs for the images that were sent to it, in the same rounds, with the faster "
        "runtime.",
        "",
    ]
    return lines


def missing_cells(cells: Sequence[Cell]) -> str:
    """A sentence on which cells of a whole run have no record."""
    measured = {(c.kind, c.network, c.link, c.slowdown) for c in cells}
    wanted = list(whole_run())
    missing = [task for task in wanted if task not in measured]
    count = f"{len(wanted) - len(missing)} of {len(wanted)} cells have been measured"
    if not missing:
        return f"{count}."
    return f"{count}. **Not measured**: {'; '.join(map(_in_words, missing))}."


def _in_words(task: Task) -> str:
    kind = {"contenders": "", "points": ", by slicing point"}.get(
        task.kind, f", device {task.slowdown:g} times slower"
    )
    return f"{task.network} at {task.link}{kind}"


def _networks(cells: Sequence[Cell]) -> str:
    """The networks in words: size and weights."""
    texts = {
        c.network: f"{c.network} at {c.size}x{c.size}, weights {c.weights}" for c in cells if c.size
    }
    return "; ".join(texts.get(name, name) for name in dict.fromkeys(c.network for c in cells))


def _weights(names: Sequence[str]) -> str:
    """Sentences on the networks' weights, and on what follows from them."""
    every = networks.NETWORKS | networks.TINY
    floats = ", ".join(n for n in names if not every[n].int8)
    text = (
        "Random weights change neither times nor bytes without an entropy stage, so ours has none "
        "there, though it would send fewer bytes. No network of a detector's heads was trained: "
        "its accuracy is not known."
    )
    return f"{text} ONNX Runtime cannot quantize {floats}: no int8." if floats else text


def _results(cells: Sequence[Cell], contested: Sequence[Cell]) -> list[str]:
    if not cells:
        return []
    return [
        "## The claims",
        "",
        *claims_table(claims(cells)),
        "",
        "## Who wins where",
        "",
        *winners(contested),
        "",
        "*Without the image*: contenders that send no image; running locally is one of them. A "
        "shallow encoder sends an image in its own code (leakage 1.00), so it is not among them, "
        f"and there ours is its best split, *{OURS_SPLIT}* where that is another one. "
        "Ratios are medians over rounds with their interval: above 1, ours is faster; where the "
        "interval reaches over 1, neither is. *Lost in* is the part of a request in which ours "
        "takes the most longer than the fastest of all.",
        "",
    ]


def _figures(cells: Sequence[Cell], contested: Sequence[Cell], folder: Path) -> list[str]:
    lines: list[str] = []
    if contested:
        figures.by_bandwidth(contested, folder / "bandwidth.png")
        lines += [f"![Latency against bandwidth]({folder.name}/bandwidth.png)", ""]
        if figures.accuracy_by_bytes(contested, folder / "accuracy.png"):
            lines += [f"![Accuracy against bytes]({folder.name}/accuracy.png)", ""]
    for cell in cells:
        if cell.kind == "points":
            figures.by_slicing_point(cell, folder / "points.png")
            lines += [f"![Predicted and measured parts]({folder.name}/points.png)", ""]
    return lines


def _network(name: str, cells: Sequence[Cell]) -> list[str]:
    shown = next((c for c in cells if c.link == PAPER_LINK), cells[-1])
    return [
        f"## {name}",
        "",
        *latencies(cells),
        "",
        f"The rest, at {shown.link}:",
        "",
        *costs(shown),
        "",
    ]
