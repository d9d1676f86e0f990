"""What peers that mean harm do to a good device and to the daemon: ``python -m bench.hostile``.

For each attack: the good device's p95 before and during, and the daemon's memory before and at
most. Daemon, device and attackers (:mod:`attackers`) are processes of one machine, connected by
loopback and without keys. Attackers run at the lowest priority, since real ones use no core of
this machine; what the kernel does for their packets still counts. Options: ``--seconds`` of each
measurement, ``--only`` attacks whose name contains a text.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from attackers import ATTACKS  # noqa: E402
from bundles import Toy, write_bundle  # noqa: E402
from torch import nn  # noqa: E402

import scissionlite as sl  # noqa: E402

SHAPE = (1, 16, 56, 56)  # 50 KB as int8
ANSWER = 1 << 20  # values of an answer: 4 MB, for the device that reads nothing


class Large(nn.Module):
    """An end of the network whose answer has 4 MB."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean().expand(1, ANSWER).contiguous()


class Corner(nn.Module):
    """An end of the network that costs almost nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, 0, 0].contiguous()


class Measured(NamedTuple):
    """Seconds of requests, and the daemon's memory at most, in bytes."""

    p95: float
    memory: int


def make_bundle(folder: Path, end: nn.Module, outputs: int) -> sl.Bundle:
    """Write a bundle of 50 KB packets whose slices compute almost nothing."""
    folder.mkdir()
    toy = Toy("nothing", nn.ReLU(), end, SHAPE, SHAPE, (1, outputs))
    spec = sl.TransferSpec(pool=1)
    return write_bundle(toy, folder, transfer=spec, quantization=sl.Quantization(0.02, 0))


def resident(process: int) -> int:
    """The memory of a process, in bytes."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def measure(device: sl.Device, seconds: float, process: int) -> Measured:
    """Infer at a camera's pace for some seconds."""
    x = np.zeros(SHAPE, np.float32)
    times, memory = [], 0
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        device.infer(x)
        times.append(time.perf_counter() - start)
        memory = max(memory, resident(process))
        time.sleep(max(0.0, 0.01 - times[-1]))
    return Measured(float(np.percentile(times, 95)), memory)


class Daemon:
    """``scissionlite serve`` with a bundle, and a device that uses it."""

    def __init__(self, bundle: sl.Bundle) -> None:
        command = [sys.executable, "-m", "scissionlite", "serve", str(bundle.path), "--json"]
        command += ["--bind", "tcp://127.0.0.1:*", "--threads", "1"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        import json

        ready = json.loads(self.process.stdout.readline())
        self.endpoints = (ready["endpoint"], ready["control_endpoint"])
        self.device = sl.Device(bundle, self.endpoints[0], control=self.endpoints[1], deadline=60)
        self.bundle = bundle

    def attack(self, name: str) -> subprocess.Popen[str]:
        """Start an attacker; return once it attacks."""
        command = [sys.executable, "-m", "attackers", name, str(self.bundle.path), *self.endpoints]
        attacker = subprocess.Popen(
            ["nice", "-n", "19", *command],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        )
        assert attacker.stdout is not None
        attacker.stdout.readline()
        threading.Thread(target=attacker.stdout.read, daemon=True).start()
        return attacker

    def close(self) -> None:
        self.device.close()
        self.process.terminate()
        self.process.wait()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    print("| attack | p95 before | during | ratio | memory before | at most |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        small = make_bundle(Path(folder, "small"), Corner(), SHAPE[1])
        large = make_bundle(Path(folder, "large"), Large(), ANSWER)
        for name in ATTACKS:
            if options.only not in name:
                continue
            daemon = Daemon(large if "reads nothing" in name else small)
            measure(daemon.device, 1.0, daemon.process.pid)
            before = measure(daemon.device, options.seconds, daemon.process.pid)
            attacker = daemon.attack(name)
            during = measure(daemon.device, options.seconds, daemon.process.pid)
            attacker.kill()
            attacker.wait()
            daemon.close()
            print(
                f"| {name} | {1e3 * before.p95:.2f} ms | {1e3 * during.p95:.2f} ms "
                f"| {during.p95 / before.p95:.2f} | {before.memory >> 20} MB "
                f"| {during.memory >> 20} MB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
