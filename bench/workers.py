"""Two workers as threads of one process against two processes: ``python -m bench.workers``.

Each worker does what the daemon's do with a request: it decodes a payload, and runs the edge slice
with one thread. Nothing crosses a process here, so the processes are shown better than any daemon
could have them: it would have to hand each payload and each result over. One worker, two threads
and two processes take turns, several rounds of each. There are two edge slices: one of a tenth of a
millisecond, where most of the time holds the GIL, and one of some milliseconds. Options:
``--seconds`` of each turn, ``--rounds``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from bundles import Toy, write_bundle  # noqa: E402  # tests/ is on the path of pytest alone

import scissionlite as sl  # noqa: E402
from scissionlite.offloader.bundle_tensors import request_tensors  # noqa: E402
from scissionlite.offloader.edge.side import EdgeSide  # noqa: E402
from scissionlite.offloader.stopwatch import Stopwatch  # noqa: E402
from scissionlite.runtimes import RuntimeName  # noqa: E402

SHAPE = (1, 32, 56, 56)  # 25 KB as pooled int8
RUNTIMES: tuple[RuntimeName, ...] = ("torchscript", "onnx")


def edge_slices() -> dict[str, nn.Module]:
    """The ends of two networks: the time of a run is the name's, about."""
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    layers = [each for _ in range(4) for each in (nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())]
    return {"small": head, "large": nn.Sequential(*layers, head)}


class Worker:
    """Answers one request again and again."""

    def __init__(self, bundle: sl.Bundle) -> None:
        torch.set_num_threads(1)
        self._side = EdgeSide(bundle, 1)
        features = np.random.default_rng(1).random(SHAPE, dtype=np.float32)
        tensor = bundle.manifest.crossing[0]
        packed = sl.encode(features, tensor.transfer, tensor.quantization)
        self._payloads = [np.frombuffer(packed.payload, np.uint8).data]
        self._tensors = request_tensors(bundle.manifest)

    def work(self, until: float) -> int:
        """Answer until a monotonic time; how often it did."""
        answers = 0
        while time.monotonic() < until:
            outputs = self._side.answer(self._tensors, self._payloads, Stopwatch())
            assert outputs[0].shape == (1, 10)
            answers += 1
        return answers


def in_threads(workers: list[Worker], seconds: float) -> float:
    """Answers a second of workers in threads of this process."""
    until, answers = time.monotonic() + seconds, [0] * len(workers)

    def work(index: int) -> None:
        answers[index] = workers[index].work(until)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(workers))]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return sum(answers) / seconds


def obey(path: Path, parent: Connection) -> None:
    """Be a worker in a process of its own: work until each time that is told."""
    worker = Worker(sl.Bundle.load(path))
    worker.work(time.monotonic() + 0.5)
    parent.send(0)
    while until := parent.recv():
        parent.send(worker.work(until))


def measure(bundle: sl.Bundle, seconds: float, rounds: int) -> list[list[float]]:
    """Answers a second of one worker, of two threads and of two processes, in each round."""
    workers = [Worker(bundle) for _ in range(2)]
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(2)]
    processes = [
        context.Process(target=obey, args=(bundle.path, there), daemon=True) for _, there in pipes
    ]
    for process in processes:
        process.start()
    here = [each for each, _ in pipes]
    for each in here:
        each.recv()
    in_threads(workers, 0.5)
    rates = []
    for _ in range(rounds):
        one, threads = in_threads(workers[:1], seconds), in_threads(workers, seconds)
        until = time.monotonic() + seconds  # the clock is the machine's
        for each in here:
            each.send(until)
        rates.append([one, threads, sum(each.recv() for each in here) / seconds])
    for each in here:
        each.send(0.0)
    for process in processes:
        process.join()
    return rates


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print("| edge slice | one worker | two threads | two processes | threads / processes |")
    print("| --- | --- | --- | --- | --- |")
    for name, edge in edge_slices().items():
        for runtime in RUNTIMES:
            with tempfile.TemporaryDirectory() as folder:
                bundle = write_bundle(
                    Toy(name, nn.ReLU(), edge, SHAPE, SHAPE, (1, 10)),
                    Path(folder),
                    transfer=sl.TransferSpec(),
                    quantization=sl.Quantization(0.02, 0),
                    runtime=runtime,
                )
                rates = measure(bundle, options.seconds, options.rounds)
            one, threads, processes = (statistics.median(each) for each in zip(*rates, strict=True))
            ratios = sorted(each[1] / each[2] for each in rates)
            print(
                f"| {name}, {runtime} | {one:.0f}/s | {threads:.0f}/s | {processes:.0f}/s "
                f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
