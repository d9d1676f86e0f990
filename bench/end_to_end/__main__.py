"""The command line of the harness.

python -m bench.end_to_end                       # all cells that have no record, and the report
python -m bench.end_to_end --networks resnet50 --links "5 Mbit/s, 60 ms" --minutes 10
python -m bench.end_to_end --report              # the report once more, from the records
python -m bench.end_to_end --quick --out build/e2e-quick    # a tiny network: tests the harness
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from bench.accuracy.photographs import DATA
from bench.end_to_end import contenders, networks, report
from bench.end_to_end.links import LINKS, best_kind
from bench.end_to_end.machine import pin_to_core
from bench.end_to_end.records import cell_path, write
from bench.end_to_end.run import Prepared, Setting, note, run_cell
from scissionlite.errors import ScissionLiteError

SLOWDOWN = 5.3
"""The device is so many times slower than the edge: the ratio of DenseNet-169's published times."""

CLAIM_NETWORK = "densenet169"
CLAIM_SLOWDOWNS = (10.0, 20.0, 40.0)
CLAIM_LINKS = ("1 Mbit/s, 100 ms", "58.8 Mbit/s, 27.4 ms", "200 Mbit/s, 5 ms")
CLAIM_CONTENDERS = (contenders.LOCAL, contenders.SCISSION, contenders.PAPER, contenders.OURS)
QUICK_CONTENDERS = (
    *(contenders.LOCAL, "JPEG-75 to the edge", contenders.OURS),
    *(contenders.PIPELINED, contenders.GRPC),
)
ONLY = {"claims": CLAIM_CONTENDERS, "quick": QUICK_CONTENDERS}
POINTS_LINK = "58.8 Mbit/s, 27.4 ms"
POINTS = 7


class Task(NamedTuple):
    """A cell to measure."""

    kind: str
    network: str
    link: str
    slowdown: float


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    whole = argparse.ArgumentParser(prog="python -m bench.end_to_end")
    whole.add_argument("--networks", nargs="+", choices=networks.NETWORKS, default=[])
    whole.add_argument("--links", nargs="+", choices=LINKS, default=[])
    whole.add_argument("--minutes", type=float, help="begin no cell after so long")
    whole.add_argument("--seconds", type=float, default=10.0, help="of measuring in each cell")
    whole.add_argument("--repetitions", type=int, default=14, help="of each network's profile")
    whole.add_argument("--link", choices=("namespace", "relay"), help="by default the best")
    whole.add_argument("--data", type=Path, default=DATA, help="the project's shared/data")
    whole.add_argument("--out", type=Path, default=Path("build/end_to_end"))
    whole.add_argument("--document", type=Path, help="the report; docs/benchmarks.md by default")
    whole.add_argument("--report", action="store_true", help="measure nothing")
    whole.add_argument("--quick", action="store_true", help="a tiny network, one cell")
    return whole


def tasks(options: argparse.Namespace) -> Iterator[Task]:
    """The cells, in the order in which they are measured: network by network."""
    if options.quick:
        yield Task("quick", "tiny", "200 Mbit/s, 5 ms", SLOWDOWN)
        return
    links = options.links or list(LINKS)
    for network in options.networks or list(networks.NETWORKS):
        for link in links:
            yield Task("contenders", network, link, SLOWDOWN)
        if network == CLAIM_NETWORK and not options.links:
            yield Task("points", network, POINTS_LINK, SLOWDOWN)
            for slowdown in CLAIM_SLOWDOWNS:
                for link in CLAIM_LINKS:
                    yield Task("claims", network, link, slowdown)


def measure(options: argparse.Namespace, command: str) -> None:
    """Measure the cells that have no record."""
    started = time.monotonic()
    setting = Setting(
        out=options.out,
        data=options.data,
        link_kind=options.link or best_kind(),
        seconds=1.0 if options.quick else options.seconds,
        repetitions=2 if options.quick else options.repetitions,
        slices=1 if options.quick else 8,
        int8=False if options.quick else None,
        command=command,
    )
    prepared: Prepared | None = None
    for task in tasks(options):
        path = cell_path(setting.out, task.kind, task.network, task.link, task.slowdown)
        passed = time.monotonic() - started
        if path.exists():
            continue
        if options.minutes is not None and passed > 60 * options.minutes:
            note(f"{passed / 60:.0f} minutes are over: the other cells are left for the next run")
            return
        if prepared is None or prepared.name != task.network:
            every = networks.NETWORKS | networks.TINY
            prepared = Prepared(task.network, every[task.network], setting)
            note(f"{time.monotonic() - started:6.0f} s  {task.network} is profiled")
        link, profile = LINKS[task.link], prepared.profile
        if task.kind == "points":
            chosen = contenders.by_slicing_point(profile, link, task.slowdown, POINTS)
        else:
            only = ONLY.get(task.kind, ())
            chosen = contenders.contenders(profile, link, task.slowdown, prepared.known, only)
        try:
            cell = run_cell(prepared, task.link, link, task.slowdown, chosen, task.kind)
        except ScissionLiteError as error:  # the other cells do not depend on it
            note(f"{', '.join(map(str, task))} failed: {error}")
            continue
        write(path, cell)
        rounds = min((len(m.latencies) for m in cell.ran), default=0)
        note(f"{time.monotonic() - started:6.0f} s  {', '.join(map(str, task))}: {rounds} rounds")


def main(arguments: Sequence[str]) -> None:
    """Measure and report."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(1)
    pin_to_core(0)
    if not options.report:
        measure(options, shlex.join(["python", "-m", "bench.end_to_end", *arguments]))
    quick = options.out / "benchmarks.md"
    document = options.document or (quick if options.quick else report.DOCUMENT)
    report.write(options.out, document)
    note(f"{document} is written")


if __name__ == "__main__":
    main(sys.argv[1:])
