"""Trainings of ``prepare --accuracy-drop``, before and with predicted drops, on recorded outcomes.

    python -m bench.floor_search

It reads the records and tables of docs/accuracy.md and the figures of :mod:`bench.drops`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.accuracy.records import JPEGS, Jpeg, read
from bench.drops import LABELS, RECORDS, Outcome, figures_by_place, outcomes, table_row
from scissionlite.preprocessor.choosing import LossyTransfer
from scissionlite.preprocessor.search import REMAINING, FloorSearch, front
from scissionlite.scissiontl.drops import losses_of


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
    figures = figures_by_place()
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
    lines = [table_row(columns), table_row(["---"] * len(columns))]
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
    return table_row(
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
    """Build the parser of the command line, which has no options."""
    return argparse.ArgumentParser(prog="python -m bench.floor_search")


if __name__ == "__main__":
    parser().parse_args()
    print(replay())
