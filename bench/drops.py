"""Predicted accuracy drops against the recorded ones.

    python -m bench.drops measure lite0 imagenet   # a line in docs/accuracy/drops.jsonl each
    python -m bench.drops table                    # rank correlations of every figure

``measure`` needs the networks of ``python -m bench.accuracy networks``. It takes one pass over some
training photographs, without labels, for each Transfer Layer of the records. ``table`` reads
records alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch

import scissionlite as sl
from bench.accuracy.networks import NETWORKS, load, training_mosaics
from bench.accuracy.photographs import DATA, ImageNetPhotographs, steel
from bench.accuracy.records import RUNS, Run, read, seeds_together
from scissionlite.graph.analysis import flat
from scissionlite.scissiontl.drops import MOST_IMAGES, answer_distance, drop_of, losses_of
from scissionlite.transfer_layer.calibration import calibrated_layer

RECORDS = Path("docs/accuracy")
DROPS = "drops.jsonl"

SPECS = [
    sl.TransferSpec(
        pool=pool,
        pool_kind=kind,
        reduction=reduction,
        levels=levels,
        entropy=entropy,
    )
    for pool, kind, reduction in (
        (1, "max", 1),
        (2, "max", 1),
        (2, "learned", 1),
        (2, "learned", 4),
    )
    for levels in (None, 8, 16, 24, 48)
    for entropy in ("zstd", "ans")
]
"""The Transfer Layers of the records."""

LABELS = {spec.label: spec for spec in SPECS}


class Drop(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of an untrained Transfer Layer, from unlabelled photographs.

    Attributes
    ----------
    network, cut, transfer
        As in the records; ``transfer`` without its entropy stage.
    images
        Number of photographs.
    divergence
        The Kullback-Leibler divergence of the classes, of which ``profile`` makes its figure.
    variation, disagreement, output_error, feature_error
        Other figures: the total variation distance of the probabilities of the classes, the share
        of photographs with another class, and the squared errors of outputs and of features over
        their variances.
    """

    network: str
    cut: str
    transfer: str
    images: int
    divergence: float
    variation: float
    disagreement: float
    output_error: float
    feature_error: float

    @property
    def predicted(self) -> float:
        """The drop that ``profile`` shows."""
        return drop_of(self.divergence)


FIGURES = ("divergence", "variation", "disagreement", "output_error", "feature_error")


class Outcome(NamedTuple):
    """A recorded way to run a network: what it sends, and the points that it loses."""

    network: str
    cut: str
    transfer: str
    labels: bool
    sent_bytes: float
    untrained: float
    trained: float


def outcomes() -> list[Outcome]:
    """The experiments of runs.jsonl, as means of their seeds."""
    found = []
    for group in seeds_together(read(RECORDS / RUNS, Run)):
        before, untrained, after, sent = (
            float(np.mean([getattr(run, name) for run in group]))
            for name in ("before", "untrained", "after", "sent_bytes")
        )
        first = group[0]
        losses = 100 * (before - untrained), 100 * (before - after)
        found.append(Outcome(first.network, first.cut, first.transfer, first.labels, sent, *losses))
    return found


def measure(name: str, images: int) -> Iterator[Drop]:
    """Measure every Transfer Layer of a network's records."""
    entry = NETWORKS[name]
    network = load(name, Path("build/accuracy"))
    graph = sl.capture(network, torch.zeros(1, 3, *entry.preprocessing.size), name=entry.model)
    data: Any
    if name == "imagenet":
        data = ImageNetPhotographs(DATA / "imagenet-sample-100")
    else:
        data = training_mosaics(DATA) if name == "segmentation" else steel(DATA, "train")
    chosen = np.linspace(0, len(data) - 1, images).round().astype(int)
    batch = torch.stack([data[int(i)][0] for i in chosen])
    with torch.inference_mode():
        reference = flat(graph.module(batch))[0]
    wanted = {
        (each.cut, losses_of(LABELS[each.transfer])) for each in outcomes() if each.network == name
    }
    for cut in entry.cuts:
        device_slice, edge_slice = graph.split(cut)
        with torch.no_grad():
            features = flat(device_slice(batch))[0]
        for spec in dict.fromkeys(losses_of(spec) for spec in SPECS):
            if (cut, spec) not in wanted:
                continue
            layer = calibrated_layer(spec, tuple(features.shape), features)
            with torch.no_grad():
                restored = layer(features)
                answer = flat(edge_slice(restored))[0]
            yield Drop(
                network=name,
                cut=cut,
                transfer=spec.label,
                images=images,
                divergence=answer_distance([answer], [reference]),
                variation=float((answer.softmax(1) - reference.softmax(1)).abs().sum(1).mean() / 2),
                disagreement=float((answer.argmax(1) != reference.argmax(1)).float().mean()),
                output_error=float((answer - reference).square().mean() / reference.var()),
                feature_error=float((restored - features).square().mean() / features.var()),
            )


def figures_by_place() -> dict[tuple[str, str, str], Drop]:
    """The latest figures of each Transfer Layer."""
    path = RECORDS / DROPS
    lines = path.read_bytes().splitlines() if path.exists() else []
    drops = [msgspec.json.decode(line, type=Drop) for line in lines]
    return {(each.network, each.cut, each.transfer): each for each in drops}


def ranks(values: Sequence[float]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Ranks from 0; equal values share the mean of theirs."""
    array = np.asarray(values)
    less = (array[None] < array[:, None]).sum(1)
    equal = (array[None] == array[:, None]).sum(1)
    ranked: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = less + (equal - 1) / 2
    return ranked


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation."""
    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


def table() -> str:
    """Tabulate the figures with the recorded drops, and their rank correlations."""
    figures = figures_by_place()
    rows = [
        (each, figures[key])
        for each in outcomes()
        if (key := (each.network, each.cut, losses_of(LABELS[each.transfer]).label)) in figures
    ]
    columns = ["network", "after", "Transfer Layer", "predicted, points", *FIGURES]
    columns += ["before training", "as recorded"]
    lines = [table_row(columns), table_row(["---"] * len(columns))]
    for each, drop in sorted(rows, key=lambda row: row[1].divergence):
        values = [
            f"{100 * drop.predicted:.1f}",
            *(f"{getattr(drop, name):.4f}" for name in FIGURES),
        ]
        losses = [f"{each.untrained:+.2f}", f"{each.trained:+.2f}"]
        labels = "" if each.labels else ", without labels"
        lines.append(table_row([each.network, each.cut, each.transfer + labels, *values, *losses]))
    lines += ["", table_row(["rank correlation with the drop", "experiments", *FIGURES])]
    lines.append(table_row(["---"] * (2 + len(FIGURES))))
    for when in ("untrained", "trained"):
        for name in (*dict.fromkeys(each.network for each, _ in rows), "all"):
            own = [row for row in rows if name in (row[0].network, "all")]
            measured = [getattr(each, when) for each, _ in own]
            found = [
                f"{spearman([getattr(d, figure) for _, d in own], measured):.2f}"
                for figure in FIGURES
            ]
            what = "before training" if when == "untrained" else "as recorded"
            lines.append(table_row([f"{what}, {name}", f"{len(own)}", *found]))
    lines += ["", _reliability()]
    return "\n".join(lines)


def _reliability() -> str:
    """How well one seed of the recorded trainings predicts the other seeds."""
    first, rest = [], []
    for group in seeds_together(read(RECORDS / RUNS, Run)):
        drops = [100 * (run.before - run.after) for run in group]
        if group[0].network == "lite0" and len(group) > 1:
            first.append(drops[0])
            rest.append(float(np.mean(drops[1:])))
    return (
        f"lite0, one seed against the mean of the others, {len(first)} experiments: rank "
        f"correlation of the recorded drops {spearman(first, rest):.2f}"
    )


def table_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    whole = argparse.ArgumentParser(prog="python -m bench.drops")
    commands = whole.add_subparsers(dest="command", required=True)
    each = commands.add_parser("measure", help="measure the figures of networks")
    each.add_argument("networks", nargs="+", choices=list(NETWORKS))
    each.add_argument("--images", type=int, default=MOST_IMAGES)
    commands.add_parser("table", help="figures, recorded drops and rank correlations")
    return whole


def main() -> None:
    options = parser().parse_args()
    if options.command == "measure":
        torch.set_num_threads(1)
        for name in options.networks:
            for drop in measure(name, options.images):
                with (RECORDS / DROPS).open("ab") as file:
                    file.write(msgspec.json.encode(drop) + b"\n")
                print(drop, flush=True)
    else:
        print(table())


if __name__ == "__main__":
    main()
