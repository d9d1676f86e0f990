"""Latency on a link that goes 50, 5, 0.5, 50 Mbit/s: adaptation against each fixed choice.

    python -m bench.adaptation              # from a checkout, in the environment of `make test`
    python -m bench.adaptation --seconds 15 --slowdown 15

The network has random weights. Its bundle has two slicing points that share the front: behind the
first cross 64 KiB, behind the second 8 KiB, for which the device computes several times as long.
Each choice has one device, which asks for an answer as soon as it has the one before, for so many
seconds on each link. The edge daemon and the emulated link are in a process of their own. Latency
is the mean in a phase; the switches are those of the device that adapts.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

import scissionlite as sl
from scissionlite.demo.link_emulator import LinkEmulator
from scissionlite.offloader.device.adaptation import LOCAL, Switch

PHASES = (50.0, 5.0, 0.5, 50.0)  # Mbit/s
RTT = 0.01
SHAPE = (1, 3, 64, 64)
ADAPTIVE = "adaptive"


def network() -> nn.Module:
    """A network whose middle takes long and sends little."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 64, 3, stride=2, padding=1), nn.ReLU()),
        nn.Sequential(
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 32, 3, stride=2, padding=1),
            nn.ReLU(),
        ),
        nn.Sequential(
            nn.Conv2d(32, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
        ),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10)),
    ).eval()


def prepare(folder: Path) -> sl.Bundle:
    """A bundle with the two slicing points, calibrated and not trained."""
    graph = sl.capture(network(), torch.zeros(SHAPE), name="two-points")
    spec = sl.TransferSpec(pool=1)
    return sl.prepare(
        graph,
        sl.Plan(kind="split", slicing_point="0", spec=spec),
        unlabelled=TensorDataset(torch.rand(16, *SHAPE[1:]), torch.zeros(16)),
        out=folder / "bundle",
        recipe=sl.Recipe(epochs=0),
        variants=[sl.Plan(kind="split", slicing_point="1", spec=spec)],
    )


def serve(path: Path, pipe: Connection) -> None:
    """Serve the bundle behind an emulated link, whose rates come from the pipe."""
    torch.set_num_threads(1)
    with sl.EdgeServer(path, bind="tcp://127.0.0.1:*", threads=1) as edge:
        ports = [int(e.rpartition(":")[2]) for e in (edge.endpoint, edge.control_endpoint)]
        with LinkEmulator([(0, "127.0.0.1", port) for port in ports], RTT, 1e6) as link:
            pipe.send([f"tcp://127.0.0.1:{port}" for port in link.ports])
            while (mbits := pipe.recv()) is not None:
                link.bandwidth = 1e6 * mbits
                pipe.send("set")


def measure(
    bundle: sl.Bundle,
    choice: str,
    pipe: Connection,
    endpoints: tuple[str, str],
    args: argparse.Namespace,
) -> tuple[list[float], tuple[Switch, ...]]:
    """Mean latency of a choice in each phase, and the switches of the one that adapts."""
    tensors, control = endpoints
    x = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    device = sl.Device(
        bundle,
        None if choice == LOCAL else tensors,
        control=None if choice == LOCAL else control,
        fallback="local" if choice in (LOCAL, ADAPTIVE) else "raise",
        variant=None if choice in (LOCAL, ADAPTIVE) else choice,
        slowdown=args.slowdown,
        threads=1,
        deadline=30,
    )
    means = []
    with device:
        for phase, mbits in enumerate(PHASES):
            pipe.send(mbits)
            pipe.recv()
            if phase == 0:
                device.infer(x)  # connects
            latencies: list[float] = []
            until = time.monotonic() + args.seconds
            while time.monotonic() < until:
                latencies.append(device.submit(x).result().latency)
            means.append(statistics.mean(latencies))
        return means, device.adaptation.switches


def main() -> None:
    """Print the table, the switches and the two figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=15.0, help="of each phase")
    parser.add_argument("--slowdown", type=float, default=15.0, help="of the device")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bundle = prepare(Path(folder))
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        edge = multiprocessing.get_context("spawn").Process(
            target=serve, args=(bundle.path, theirs), daemon=True
        )
        edge.start()
        endpoints = ours.recv()
        fixed = [*(each.name for each in bundle.manifest.every_variant), LOCAL]
        means: dict[str, list[float]] = {}
        switches: tuple[Switch, ...] = ()
        for choice in (*fixed, ADAPTIVE):
            means[choice], switches = measure(bundle, choice, ours, endpoints, args)
        ours.send(None)
        edge.join(10)
    report(fixed, means, switches)


def report(fixed: list[str], means: dict[str, list[float]], switches: tuple[Switch, ...]) -> None:
    """Print what was measured."""
    print(f"{'mean latency (ms)':>20}" + "".join(f"{m:>8g} Mbit/s" for m in PHASES))
    for choice, values in means.items():
        print(f"{choice:>20}" + "".join(f"{1000 * value:>15.1f}" for value in values))
    best = [min(means[choice][i] for choice in fixed) for i in range(len(PHASES))]
    shares = [mean / least for mean, least in zip(means[ADAPTIVE], best, strict=True)]
    print(f"{'adaptive / best':>20}" + "".join(f"{share:>15.2f}" for share in shares))
    for choice in fixed:
        worst = max(mean / least for mean, least in zip(means[choice], best, strict=True))
        print(f"{choice} is {100 * (worst - 1):.0f} % worse than the best in its worst phase")
    for each in switches:
        print(each)


if __name__ == "__main__":
    main()
