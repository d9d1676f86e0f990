"""What peers that mean harm do to a good device and to the daemon: ``python -m bench.hostile``.

For each attack: the good device's p95 before and during, their ratio, and the ratio while another
daemon of the machine is attacked in the same way ("elsewhere"), which is what the attacker and a
busy daemon take from two cores; the cores that the daemon and the attacker use; and the daemon's
memory before and at most. Daemon, device and attackers (:mod:`attackers`) are processes of one
machine, connected by loopback and without keys. Attackers run at the lowest priority, since real
ones use no core of this machine; what the kernel does for their packets still counts. Options:
``--seconds`` of each measurement, ``--only`` attacks whose name contains a text.
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
    """Seconds of requests, the daemon's memory at most in bytes, and the cores in use."""

    p95: float
    memory: int
    cores: float  # of the daemon
    attacker: float


def make_bundle(folder: Path, end: nn.Module, outputs: int) -> sl.Bundle:
    """Write a bundle of 50 KB packets whose slices compute almost nothing."""
    folder.mkdir()
    toy = Toy("nothing", nn.ReLU(), end, SHAPE, SHAPE, (1, outputs))
    spec = sl.TransferSpec(pool=1)
    return write_bundle(toy, folder, transfer=spec, quantization=sl.Quantization(0.02, 0))


def resident(process: int) -> int:
    """The memory of a process, in bytes."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def worked(process: int) -> float:
    """Processor time that a process has used, in seconds."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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


def measure(daemon: Daemon, seconds: float, attack: tuple[str, Daemon] | None = None) -> Measured:
    """Infer at a camera's pace for some seconds, while a daemon is attacked or none is."""
    x = np.zeros(SHAPE, np.float32)
    attacker = None if attack is None else attack[1].attack(attack[0])
    pids = [daemon.process.pid, *([] if attacker is None else [attacker.pid])]
    times, memory = [], 0
    began, work = time.perf_counter(), [worked(pid) for pid in pids]
    while time.perf_counter() < began + seconds:
        start = time.perf_counter()
        daemon.device.infer(x)
        times.append(time.perf_counter() - start)
        memory = max(memory, resident(pids[0]))
        time.sleep(max(0.0, 0.01 - times[-1]))
    lasted = time.perf_counter() - began
    cores = [(worked(pid) - before) / lasted for pid, before in zip(pids, work, strict=True)]
    if attacker is not None:
        attacker.kill()
        attacker.wait()
    return Measured(float(np.percentile(times, 95)), memory, cores[0], cores[-1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    columns = ["attack", "p95 before", "during", "ratio", "elsewhere", "cores before", "during"]
    columns += ["the attacker's", "memory before", "at most"]
    print("|", " | ".join(columns), "|\n|", " | ".join("---" for _ in columns), "|")
    with tempfile.TemporaryDirectory() as folder:
        small = make_bundle(Path(folder, "small"), Corner(), SHAPE[1])
        large = make_bundle(Path(folder, "large"), Large(), ANSWER)
        for name in ATTACKS:
            if options.only not in name:
                continue
            bundle = large if "reads nothing" in name else small
            daemon, other = Daemon(bundle), Daemon(bundle)
            measure(daemon, 1.0)
            before = measure(daemon, options.seconds)
            during = measure(daemon, options.seconds, attack=(name, daemon))
            elsewhere = measure(daemon, options.seconds, attack=(name, other))
            daemon.close()
            other.close()
            print(
                f"| {name} | {1e3 * before.p95:.2f} ms | {1e3 * during.p95:.2f} ms "
                f"| {during.p95 / before.p95:.2f} | {elsewhere.p95 / before.p95:.2f} "
                f"| {before.cores:.2f} | {during.cores:.2f} | {during.attacker:.2f} "
                f"| {before.memory >> 20} MB | {during.memory >> 20} MB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
