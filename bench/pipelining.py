"""Throughput of pipelined requests, against one over the slowest stage.

    python -m bench.pipelining              # from a checkout, in the environment of `make test`

Each device keeps 8 requests under way, to a daemon in a process of its own. Both slices wait
instead of computing, as a program does whose GPU computes: 4 ms on a device; at the edge 4 ms and
1 ms more for each sample. So the stages can overlap on any number of cores, and what is missing is
the Offloader's. The stages are timed alone, in the same processes, before and after: device slice
and encoding; decoding and the edge slice, at the batch size that the daemon has found to pay. The
settings: one worker without batches, batches, two workers, encryption (CURVE), and all of these
together. The goal is at least 0.9 of one over the slowest stage.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from bundles import Toy, write_bundle  # noqa: E402  # tests/ is on the path of pytest alone

import scissionlite as sl  # noqa: E402
from scissionlite.keys.files import make_key_pair  # noqa: E402
from scissionlite.manifest import Role  # noqa: E402
from scissionlite.offloader import slices  # noqa: E402
from scissionlite.offloader.device import side as device_side  # noqa: E402
from scissionlite.offloader.edge import side as edge_side  # noqa: E402
from scissionlite.offloader.stopwatch import Stopwatch  # noqa: E402
from scissionlite.runtimes import Slice  # noqa: E402

SHAPE = (1, 16, 56, 56)  # 12.5 KB as pooled int8
DEVICE_SECONDS = 0.004
EDGE_SECONDS = (0.004, 0.001)  # of a run, and of each sample in it
IN_FLIGHT = 8  # requests of a device: its credit
open_slice = slices.open_slice


class Setting(NamedTuple):
    """What the daemon is given, and how many devices use it."""

    name: str
    devices: int = 1
    batch: int = 1
    workers: int = 1
    keys: bool = False


SETTINGS = (
    Setting("one worker"),
    Setting("batching", devices=4, batch=8),
    Setting("two workers", devices=2, workers=2),
    Setting("encryption", keys=True),
    Setting("all of them", devices=8, batch=8, workers=2, keys=True),
)


class Corner(nn.Module):
    """An edge slice that answers one value per channel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, 0, 0].contiguous()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each setting")
    options = parser.parse_args()
    make_slices_wait()
    print("| setting | devices | device stage | edge stage | throughput | of the slowest stage |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_bundle(
            Toy("waiting", nn.ReLU(), Corner(), SHAPE, SHAPE, SHAPE[:2]),
            Path(folder),
            transfer=sl.TransferSpec(),
            quantization=sl.Quantization(0.02, 0),
            max_batch=8,
            runtime="onnx",
        )
        for name in ("edge", "device"):
            make_key_pair(Path(folder, name))
        for setting in SETTINGS:
            device, edge, served = measure(bundle, Path(folder), setting, options.seconds)
            print(
                f"| {setting.name} | {setting.devices} | {device:.0f}/s | {edge:.0f}/s "
                f"| {served:.0f}/s | {served / min(device, edge):.2f} |",
                flush=True,
            )


def make_slices_wait() -> None:
    """Have the slices of this process wait."""

    def waiting(bundle: sl.Bundle, role: Role, *more: Any) -> Slice:
        loaded = open_slice(bundle, role, *more)

        def run(*inputs: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], ...]:
            once, each = EDGE_SECONDS
            time.sleep(DEVICE_SECONDS if role == "device" else once + each * len(inputs[0]))
            return loaded(*inputs)

        return run

    device_side.open_slice = waiting  # type: ignore[attr-defined,assignment]
    edge_side.open_slice = waiting  # type: ignore[attr-defined,assignment]


def measure(
    bundle: sl.Bundle, folder: Path, setting: Setting, seconds: float
) -> tuple[float, float, float]:
    """Requests a second of the devices alone, of the edge alone, and of both, pipelined."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(bundle.path, folder, setting, there), daemon=True)
    process.start()
    endpoint, control, edge_before = here.recv()
    keys = sl.DeviceKeys(folder / "device", folder / "edge.pub") if setting.keys else None
    x = np.random.default_rng(1).random(SHAPE, dtype=np.float32)
    alone = device_side.DeviceSide(bundle, 1)

    def device_stage() -> None:
        alone.make_request((x,), Stopwatch())

    device_before = rate(device_stage, setting.devices)
    devices = [
        sl.Device(bundle, endpoint, control=control, threads=1, keys=keys)
        for _ in range(setting.devices)
    ]
    try:
        for device in devices:
            device.infer(x)
        start = time.monotonic()
        with ThreadPoolExecutor(len(devices)) as threads:
            answered = sum(threads.map(use, devices, [x] * len(devices), [start + seconds] * 99))
        served = answered / (time.monotonic() - start)
    finally:
        for device in devices:
            device.close()
    device_after = rate(device_stage, setting.devices)
    here.send(None)
    edge_after = here.recv()
    process.join()
    means = statistics.mean
    return means((device_before, device_after)), means((edge_before, edge_after)), served


def use(device: sl.Device, x: npt.NDArray[np.float32], until: float) -> int:
    """Keep some requests under way; how many were answered."""
    under_way = [device.submit(x) for _ in range(IN_FLIGHT)]
    answered = 0
    while time.monotonic() < until:
        under_way.pop(0).result()
        answered += 1
        under_way.append(device.submit(x))
    for future in under_way:
        future.result()
    return answered + len(under_way)


def serve(path: Path, folder: Path, setting: Setting, parent: Connection) -> None:
    """Serve the bundle, and run its slice alone before and after; in a process of its own."""
    make_slices_wait()
    bundle = sl.Bundle.load(path)
    alone = edge_side.EdgeSide(bundle, 1, batch=setting.batch)
    features = np.random.default_rng(1).random(SHAPE, dtype=np.float32)
    packed = sl.encode(features, sl.TransferSpec(), sl.Quantization(0.02, 0))

    def edge_stage() -> None:
        alone.run(np.concatenate([sl.decode(packed) for _ in range(alone.batch)]))

    before = alone.batch * rate(edge_stage, setting.workers)
    keys = sl.EdgeKeys(folder / "edge", authorized=folder / "device.pub") if setting.keys else None
    with sl.EdgeServer(
        bundle,
        "tcp://127.0.0.1:*",
        threads=1,
        workers=setting.workers,
        limits=sl.EdgeLimits(batch=setting.batch),
        keys=keys,
    ) as server:
        parent.send((server.endpoint, server.control_endpoint, before))
        parent.recv()
    parent.send(alone.batch * rate(edge_stage, setting.workers))


def rate(stage: Callable[[], None], at_once: int) -> float:
    """Runs a second of a stage, in so many threads."""

    def median(_: int) -> float:
        times = []
        for _ in range(100):
            start = time.perf_counter()
            stage()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    with ThreadPoolExecutor(at_once) as threads:
        return at_once / statistics.mean(threads.map(median, range(at_once)))


if __name__ == "__main__":
    main()
