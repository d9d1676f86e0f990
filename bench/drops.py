"""Predicted accuracy drops against the recorded ones, and the trainings that they save.

    python -m bench.drops measure lite0 imagenet   # a line in docs/accuracy/drops.jsonl each
    python -m bench.drops table                    # rank correlations of every figure
    python -m bench.drops replay                   # trainings of --accuracy-drop, before and now

``measure`` needs the networks of ``python -m bench.accuracy networks``. It takes one pass over some
training photographs, without labels, for each Transfer Layer of the records. ``table`` and
``replay`` read records alone.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch

import scissionlite as sl
from bench.accuracy.networks import NETWORKS, load, training_mosaics
from bench.accuracy.photographs import DATA, ImageNetPhotographs, steel
from bench.accuracy.records import JPEGS, RUNS, Jpeg, Run, read, seeds_together
from scissionlite.graph.analysis import flat
from scissionlite.preprocessor.choosing import LossyTransfer
from scissionlite.preprocessor.search import REMAINING, FloorSearch, front
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


def page_outcomes(network: str) -> list[Outcome]:
    """The experiments of a network whose records were lost, from the tables of docs/accuracy.md."""
    page = Path("docs/accuracy.md").read_text()
    table = re.search(
        rf"^{network}, with labels: .*? ([\d.]+)% uncut.*?\n\n(.*?)\n\n", page, re.M | re.S
    )
    assert table is not None
    found: dict[tuple[str, str], Outcome] = {}
    for line in table[2].splitlines()[2:]:
        cut, transfer, _, sent, untrained, _, _, _, drop, *_ = (
            c.strip() for c in line.split("|")[1:-1]
        )
        if transfer not in LABELS:  # the device slice learned too: not what --accuracy-drop does
            continue
        before = 100 * (float(table[1]) / 100) - float(untrained.split("%")[0])
        # Of several rows of one Transfer Layer the one with most epochs is last.
        found[cut, transfer] = Outcome(
            network, cut, transfer, True, float(sent), before, float(drop)
        )
    return list(found.values())


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


def _figures() -> dict[tuple[str, str, str], Drop]:
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
    figures = _figures()
    rows = [
        (each, figures[key])
        for each in outcomes()
        if (key := (each.network, each.cut, losses_of(LABELS[each.transfer]).label)) in figures
    ]
    columns = ("network", "after", "Transfer Layer", "predicted, points", *FIGURES)
    columns += ("before training", "as recorded")
    lines = [_row(columns), _row(["---"] * len(columns))]
    for each, drop in sorted(rows, key=lambda row: row[1].divergence):
        values = [
            f"{100 * drop.predicted:.1f}",
            *(f"{getattr(drop, name):.4f}" for name in FIGURES),
        ]
        losses = [f"{each.untrained:+.2f}", f"{each.trained:+.2f}"]
        labels = "" if each.labels else ", without labels"
        lines.append(_row([each.network, each.cut, each.transfer + labels, *values, *losses]))
    lines += ["", _row(["rank correlation with the drop", "experiments", *FIGURES])]
    lines.append(_row(["---"] * (2 + len(FIGURES))))
    for when in ("untrained", "trained"):
        for name in (*dict.fromkeys(each.network for each, _ in rows), "all"):
            own = [row for row in rows if name in (row[0].network, "all")]
            measured = [getattr(each, when) for each, _ in own]
            found = [
                f"{spearman([getattr(d, figure) for _, d in own], measured):.2f}"
                for figure in FIGURES
            ]
            what = "before training" if when == "untrained" else "as recorded"
            lines.append(_row([f"{what}, {name}", f"{len(own)}", *found]))
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


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


class Way(NamedTuple):
    """A plan of the replay."""

    latency: float
    drop: float
    untrained: float
    trained: float
    lossy: LossyTransfer | None


DEVICE_SECONDS = {
    "blocks.0": 0.81e-3,
    "blocks.1": 2.55e-3,
    "blocks.2": 3.86e-3,
    "blocks.3": 5.75e-3,
    "maxpool": 1.0e-3,
    "layer1": 2.6e-3,
    "layer2": 4.4e-3,
    "layer3": 6.2e-3,
}
"""Seconds of the device slices at 128x128, one thread. Those of resnet18 share its uncut time by
their multiplications."""

WHOLE_SECONDS = {"lite0": 10e-3, "segmentation": 12e-3, "resnet18": 8e-3}
"""Seconds of the uncut networks, about."""

RTT = 0.02
LINKS = (0.25e6, 1e6, 4e6, 20e6, 58.8e6)
SLOWDOWNS = (1.0, 5.0, 20.0)
FLOORS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)
"""Points that may be lost."""
TRIES = 5


def ways(network: str, link: float, slowdown: float) -> list[Way]:
    """The recorded ways to run a network, with a float32 split at each cut, JPEG-75 and local."""
    figures = _figures()
    recorded = [each for each in outcomes() if each.network == network and each.labels]
    if len(recorded) < 8:  # its records were lost, the tables of its page are there
        recorded = page_outcomes(network)
    whole = WHOLE_SECONDS[network]
    found = [Way(slowdown * whole, 0.0, 0.0, 0.0, None)]

    def latency(device: float, sent: float) -> float:
        return slowdown * device + RTT + 8 * sent / link + whole - device

    for each in recorded:
        spec = LABELS[each.transfer]
        known = figures.get((network, each.cut, losses_of(spec).label))
        # Without the network, its recorded drop before training stands for the prediction.
        drop = max(0.0, each.untrained / 100) if known is None else known.predicted
        device = DEVICE_SECONDS[each.cut]
        lossy = LossyTransfer(spec, ((1, hash(each.cut)),), int8=False)
        found.append(
            Way(latency(device, each.sent_bytes), drop, each.untrained, each.trained, lossy)
        )
    float32 = {"blocks.0": 262144, "blocks.1": 98304, "blocks.2": 40960, "blocks.3": 20480}
    float32 |= {"maxpool": 262144, "layer1": 262144, "layer2": 131072, "layer3": 65536}
    for cut in {each.cut for each in recorded}:
        found.append(Way(latency(DEVICE_SECONDS[cut], float32[cut]), 0.0, 0.0, 0.0, None))
    jpegs = [
        j
        for j in read(RECORDS / JPEGS, Jpeg)
        if (j.network, j.scale, j.quality) == (network, 1.0, 75)
    ]
    if jpegs:
        uncut = max(j.score for j in read(RECORDS / JPEGS, Jpeg) if j.network == network)
        lost = 100 * (uncut - jpegs[0].score)
        found.append(Way(latency(0.4e-3, jpegs[0].as_sent), max(0.0, lost / 100), lost, lost, None))
    return sorted(found, key=lambda way: way.latency)


class Replayed(NamedTuple):
    """A replay: how many networks were trained, and the latency of the choice."""

    trainings: int
    latency: float


def before(plans: Sequence[Way], floor: float) -> Replayed:
    """Replay the rule that was: in order of latency, each lossy plan trained, at most five."""
    failed: list[LossyTransfer] = []
    for way in plans:
        if way.lossy and (len(failed) >= TRIES or any(map(way.lossy.as_harsh_as, failed))):
            continue
        if way.trained <= floor + 1e-9:
            return Replayed(len(failed) + (way.lossy is not None), way.latency)
        if way.lossy:
            failed.append(way.lossy)
    raise AssertionError("running locally always holds")


def now(plans: Sequence[Way], floor: float) -> Replayed:
    """Replay the search by predicted drops; what holds before training is not trained."""
    kept = [plans[place] for place in front([way.drop for way in plans])]
    search = FloorSearch([way.drop for way in kept], floor / 100 / REMAINING)
    failed: list[LossyTransfer] = []
    trainings = 0
    while (place := search.next()) is not None:
        way = kept[place]
        if way.lossy and any(map(way.lossy.as_harsh_as, failed)):
            search.tell(place, held=False)
            continue
        held = way.untrained <= floor + 1e-9
        if not held and way.lossy and trainings < TRIES:
            trainings += 1
            held = way.trained <= floor + 1e-9
        if not held and way.lossy:
            failed.append(way.lossy)
        search.tell(place, held=held)
    assert search.found is not None  # running locally always holds
    return Replayed(trainings, kept[search.found].latency)


def replay() -> str:
    """Tabulate the trainings of both rules over links, slowdowns and floors."""
    columns = (
        "network",
        "floor, points",
        "cases",
        "trainings before",
        "now",
        "faster",
        "slower",
        "latency, mean ratio",
    )
    lines = [_row(columns), _row(["---"] * len(columns))]
    totals = []
    for network, floor in product(WHOLE_SECONDS, FLOORS):
        pairs = [
            (before(plans, floor), now(plans, floor))
            for plans in (ways(network, *each) for each in product(LINKS, SLOWDOWNS))
        ]
        totals += pairs
        lines.append(_summary(network, f"{floor:g}", pairs))
    lines.append(_summary("all", "", totals))
    return "\n".join(lines)


def _summary(network: str, floor: str, pairs: Sequence[tuple[Replayed, Replayed]]) -> str:
    old, new = (sum(pair[i].trainings for pair in pairs) for i in (0, 1))
    ratios = [b.latency / a.latency for a, b in pairs]
    faster, slower = sum(r < 1 - 1e-9 for r in ratios), sum(r > 1 + 1e-9 for r in ratios)
    mean = float(np.exp(np.mean(np.log(ratios))))
    return _row(
        [
            network,
            floor,
            f"{len(pairs)}",
            f"{old}",
            f"{new}",
            f"{faster}",
            f"{slower}",
            f"{mean:.3f}",
        ]
    )


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    whole = argparse.ArgumentParser(prog="python -m bench.drops")
    commands = whole.add_subparsers(dest="command", required=True)
    each = commands.add_parser("measure", help="measure the figures of networks")
    each.add_argument("networks", nargs="+", choices=list(NETWORKS))
    each.add_argument("--images", type=int, default=MOST_IMAGES)
    commands.add_parser("table", help="figures, recorded drops and rank correlations")
    commands.add_parser("replay", help="trainings of --accuracy-drop, before and now")
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
        print(table() if options.command == "table" else replay())


if __name__ == "__main__":
    main()
