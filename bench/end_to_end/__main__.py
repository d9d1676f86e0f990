"""The command line of the harness.

python -m bench.end_to_end                       # all cells that have no record, and the report
python -m bench.end_to_end --minutes 36          # those that fit, the most important ones first
python -m bench.end_to_end --networks resnet50 --links "5 Mbit/s, 60 ms" --minutes 10
python -m bench.end_to_end --report              # the report once more, from the records
python -m bench.end_to_end --quick --out build/e2e-quick    # a tiny network: tests the harness
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from bench.accuracy.photographs import DATA
from bench.end_to_end import contenders, networks, report
from bench.end_to_end.links import BUSY_UPLINK, LINKS, best_kind
from bench.end_to_end.machine import pin_to_core
from bench.end_to_end.prepared import Prepared, Setting, note
from bench.end_to_end.records import cell_path, write
from bench.end_to_end.run import run_cell
from bench.end_to_end.tasks import ONLY, POINTS, Task, quick_task, whole_run

EVERY_LINK = LINKS | BUSY_UPLINK


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    whole = argparse.ArgumentParser(prog="python -m bench.end_to_end")
    whole.add_argument("--networks", nargs="+", choices=networks.NETWORKS, default=[])
    whole.add_argument("--links", nargs="+", choices=EVERY_LINK, default=[])
    whole.add_argument("--minutes", type=float, help="begin no cell after so long")
    whole.add_argument("--seconds", type=float, default=6.0, help="of measuring in each cell")
    whole.add_argument("--repetitions", type=int, default=8, help="of each network's profile")
    whole.add_argument("--link", choices=("namespace", "relay"), help="by default the best")
    whole.add_argument("--data", type=Path, default=DATA, help="the project's shared/data")
    whole.add_argument(
        "--trained", type=Path, default=Path("build/accuracy"), help="what bench.accuracy trained"
    )
    whole.add_argument("--out", type=Path, default=Path("build/end_to_end"))
    whole.add_argument("--document", type=Path, help="the report; docs/benchmarks.md by default")
    whole.add_argument("--report", action="store_true", help="measure nothing")
    whole.add_argument("--quick", action="store_true", help="a tiny network, one cell")
    return whole


def measure(options: argparse.Namespace, command: str) -> None:
    """Measure the cells that have no record."""
    started = time.monotonic()
    setting = Setting(
        out=options.out,
        data=options.data,
        trained=options.trained,
        link_kind=options.link or best_kind(),
        seconds=1.0 if options.quick else options.seconds,
        repetitions=2 if options.quick else options.repetitions,
        slices=1 if options.quick else 6,
        int8=not options.quick,
        command=command,
    )
    every: dict[str, Prepared] = {}
    for task in chosen_tasks(options):
        path = cell_path(setting.out, *task)
        passed = time.monotonic() - started
        if path.exists():
            continue
        if options.minutes is not None and passed > 60 * options.minutes:
            note(f"{passed / 60:.0f} minutes are over: the other cells are left for the next run")
            return
        try:
            rounds = _measure_cell(task, every, setting, path)
        except Exception:  # the other cells do not depend on it, and the report says that it fails
            note(f"{', '.join(map(str, task))} failed:\n{traceback.format_exc()}")
            continue
        note(f"{time.monotonic() - started:6.0f} s  {', '.join(map(str, task))}: {rounds} rounds")


def chosen_tasks(options: argparse.Namespace) -> Iterator[Task]:
    """The cells that the command line asks for, in their order."""
    if options.quick:
        yield quick_task()
        return
    for task in whole_run():
        if task.network in (options.networks or networks.NETWORKS) and task.link in (
            options.links or EVERY_LINK
        ):
            yield task


def _measure_cell(task: Task, every: dict[str, Prepared], setting: Setting, path: Path) -> int:
    """Measure a cell and write its record; returns its number of rounds."""
    network = (networks.NETWORKS | networks.TINY)[task.network]
    if task.network not in every:
        every[task.network] = Prepared(task.network, network, setting)
    prepared = every[task.network]
    link, profile = EVERY_LINK[task.link], prepared.profile
    if task.kind == "points":
        chosen = contenders.by_slicing_point(profile, link, task.slowdown, POINTS)
    else:
        chosen = contenders.contenders(
            profile,
            link,
            task.slowdown,
            prepared.known,
            ONLY.get(task.kind, ()),
            trained=prepared.first_layers_trained,
            kept=prepared.trained.keys(),
        )
    cell = run_cell(prepared, task.link, link, task.slowdown, chosen, task.kind)
    write(path, cell)
    return min((len(m.latencies) for m in cell.ran), default=0)


def main(arguments: Sequence[str]) -> None:
    """Measure and report."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(1)
    pin_to_core(0)
    # A run that is told to end stops its processes, as one that is interrupted does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    quick = options.out / "benchmarks.md"
    document = options.document or (quick if options.quick else report.DOCUMENT)
    try:
        if not options.report:
            measure(options, shlex.join(["python", "-m", "bench.end_to_end", *arguments]))
    finally:  # a run that is stopped reports what it has
        report.write(options.out, document)
        note(f"{document} is written")


if __name__ == "__main__":
    main(sys.argv[1:])
