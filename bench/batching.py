"""Throughput of an edge daemon that runs requests together, against the slice alone.

    python -m bench.batching                # from a checkout, in the environment of `make test`

The edge slice is three fully connected layers of 4096: one sample must read as many weights as
sixteen, so batches gain. The daemon runs in a process of its own. Four devices in another process
keep twice the batch under way. Before and after, the same slice runs alone in the daemon's process
at the batch size that the daemon has found to pay. The last line is the daemon's throughput as a
share of that, and of the daemon's own without batches.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
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
from scissionlite.offloader.edge.schedule import Done, Job  # noqa: E402
from scissionlite.offloader.edge.side import EdgeSide  # noqa: E402

DEVICES = 4
SHAPE = (1, 64, 8, 8)
WIDTH = 64 * 8 * 8


class Layers(nn.Module):
    """Fully connected layers, whose weights are read once for all samples of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.layers(x.flatten(1))[:, :10].contiguous()
        return scores


def main() -> None:
    """Print the throughputs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16, help="most samples in one run")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_bundle(
            Toy("layers", nn.ReLU(), Layers(), SHAPE, SHAPE, (1, 10)),
            Path(folder),
            transfer=sl.TransferSpec(),
            quantization=sl.Quantization(0.02, 0),
            max_batch=options.batch,
        )
        together = measure(bundle, options.batch, options.seconds)
        single = measure(bundle, 1, options.seconds)
    print(f"slice alone, batches of {together.size}: {together.alone:.1f} samples/s")
    print(f"slice alone, one by one: {single.alone:.1f} samples/s")
    print(
        f"daemon, batches of {together.mean_size:.1f} on average: {together.served:.1f} samples/s"
    )
    print(f"daemon, one by one: {single.served:.1f} samples/s")
    print(
        f"the daemon reaches {together.served / together.alone:.2f} of the slice alone, and "
        f"{together.served / single.served:.2f} times itself without batches"
    )


class Throughput:
    """Samples a second: of the slice alone and of the daemon; and the batch sizes."""

    def __init__(self, size: int, alone: float, served: float, mean_size: float) -> None:
        self.size, self.alone, self.served, self.mean_size = size, alone, served, mean_size


def measure(bundle: sl.Bundle, batch: int, seconds: float) -> Throughput:
    """Measure a daemon that may run so many samples together."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(bundle.path, batch, there), daemon=True)
    process.start()
    endpoint, control, size, before = here.recv()
    in_flight = max(1, 2 * batch // DEVICES)
    x = np.random.default_rng(1).random(SHAPE, dtype=np.float32)
    devices = [sl.Device(bundle, endpoint, control=control, threads=1) for _ in range(DEVICES)]
    try:
        for device in devices:
            device.infer(x)
        answered, start = 0, time.monotonic()
        futures = [device.submit(x) for _ in range(in_flight) for device in devices]
        while time.monotonic() < start + seconds:
            for i, device in enumerate(devices * in_flight):
                futures[i].result()
                futures[i] = device.submit(x)
                answered += 1
        served = answered / (time.monotonic() - start)
        for future in futures:
            future.result()
    finally:
        for device in devices:
            device.close()
    here.send(None)
    mean_size, after = here.recv()
    process.join()
    return Throughput(size, statistics.mean((before, after)), served, mean_size)


def serve(bundle: Path, batch: int, parent: Connection) -> None:
    """Serve the bundle, and run its slice alone before and after; in a process of its own."""
    torch.set_num_threads(1)
    sizes = []
    finish = EdgeSide.finish

    def record(own: EdgeSide, jobs: list[Job]) -> list[list[Done]]:
        sizes.append(len(jobs))
        return finish(own, jobs)

    EdgeSide.finish = record  # type: ignore[method-assign,assignment]
    limits = sl.EdgeLimits(batch=batch, credit=32, queue=256)
    with sl.EdgeServer(bundle, "tcp://127.0.0.1:*", threads=1, limits=limits) as server:
        (side,) = server._loop.bundles.sides
        assert isinstance(side, EdgeSide)
        before = alone(side)
        parent.send((server.endpoint, server.control_endpoint, side.batch, before))
        parent.recv()
    parent.send((statistics.mean(sizes), alone(side)))


def alone(side: EdgeSide) -> float:
    """Samples a second of the slice alone: the median of some runs."""
    x = np.random.default_rng(1).random((side.batch, *SHAPE[1:]), dtype=np.float32)
    durations = []
    for _ in range(30):
        start = time.perf_counter()
        side.run(x)
        durations.append(time.perf_counter() - start)
    return side.batch / statistics.median(durations)


if __name__ == "__main__":
    main()
