"""Many devices at one daemon: every answer right, none lost, and the daemon's memory flat.

    python -m bench.scale --devices 64 --seconds 60     # from a checkout, as `make test`

One ``scissionlite serve``, and some processes with a device in each of their threads. Each device
has inputs of its own, whose answers were computed before, so an answer that went to the wrong
device is seen. The bundle is a tiny network: what is measured is the Offloader, and with all
processes on one machine the devices' own work takes most of its time. Fails if an answer was wrong
or missing.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from bundles import Toy, write_bundle  # noqa: E402  # tests/ is on the path of pytest alone
from many_devices import Tally  # noqa: E402
from processes import Process  # noqa: E402

import scissionlite as sl  # noqa: E402

SHAPE, CROSSING = (1, 3, 32, 32), (1, 8, 15, 15)
SAMPLES = 4  # of the daemon's memory, each second


class Classifier(nn.Module):
    """The rest of the network: pooling and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(CROSSING[1], 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.classifier(torch.relu(x).mean((2, 3)))
        return scores


class Scale(NamedTuple):
    """What became of the requests; and the daemon's memory in bytes, its slope in bytes/s."""

    tally: Tally
    before: int
    during: list[int]
    after: int
    slope: float


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=64)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(Path(folder))
        scale = measure(bundle, options.devices, options.processes, options.seconds)
    tally, mb = scale.tally, 1 << 20
    p50, p95 = (1e3 * float(np.percentile(tally.latencies, q)) for q in (50, 95))
    print(f"{options.devices} devices in {options.processes} processes, {options.seconds:g} s")
    print(f"asked {tally.asked}, right {tally.right}, wrong {tally.wrong}, failed {tally.failed}")
    print(
        f"latency: p50 {p50:.1f} ms, p95 {p95:.1f} ms, {tally.right / options.seconds:.0f} a second"
    )
    print(
        f"daemon's memory: {scale.before / mb:.1f} MB before, "
        f"{statistics.median(scale.during) / mb:.1f} during (at most "
        f"{max(scale.during) / mb:.1f}), {scale.after / mb:.1f} after; "
        f"{60 * scale.slope / mb:+.2f} MB a minute in the second half"
    )
    sys.exit(tally.right != tally.asked)


def make_bundle(folder: Path) -> sl.Bundle:
    """Write a bundle of a tiny network whose answers depend on every input."""
    torch.manual_seed(1)
    toy = Toy("tiny", nn.Conv2d(3, 8, 3, stride=2), Classifier(), SHAPE, CROSSING, (1, 5))
    return write_bundle(
        toy,
        folder,
        transfer=sl.TransferSpec(),
        quantization=sl.Quantization(0.05, 0),
        max_batch=16,
        runtime="onnx",
    )


def measure(bundle: sl.Bundle, devices: int, processes: int, seconds: float) -> Scale:
    """Serve the bundle, and have so many devices use it."""
    command = ["serve", str(bundle.path), "--bind", "tcp://127.0.0.1:*", "--threads", "1", "--json"]
    started = [Process("scissionlite", *command)]
    try:
        daemon = started[0]
        ready = daemon.read_json()
        where = (str(bundle.path), ready["endpoint"], ready["control_endpoint"])
        bounds = [devices * i // processes for i in range(processes + 1)]
        for first, end in itertools.pairwise(bounds):
            group = (str(first), str(end - first), str(seconds))
            started.append(Process("many_devices", *where, *group))
        for process in started[1:]:
            process.read_line()
        before = resident(daemon.pid)
        for process in started[1:]:
            process.write_line()
        times, during = watch(daemon.pid, seconds)
        tally = Tally()
        for process in started[1:]:
            tally.add(Tally(**process.read_json()))
            process.wait()
        after = resident(daemon.pid)
        assert daemon.terminate() == 0
        served = daemon.read_json()["stats"]["served"]
        assert served >= tally.right
    finally:
        for process in started:
            process.kill()
    half = len(times) // 2
    slope = float(np.polyfit(times[half:], during[half:], 1)[0])
    return Scale(tally, before, during, after, slope)


def watch(process: int, seconds: float) -> tuple[list[float], list[int]]:
    """Look at a process's memory for some seconds; when, and how much it was."""
    times: list[float] = []
    memory: list[int] = []
    start = time.monotonic()
    while (now := time.monotonic() - start) < seconds:
        times.append(now)
        memory.append(resident(process))
        time.sleep(1 / SAMPLES)
    return times, memory


def resident(process: int) -> int:
    """The memory of a process, in bytes."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


if __name__ == "__main__":
    main()
