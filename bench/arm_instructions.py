"""Instructions of device slices on ARM, in float32 and in int8, counted by qemu.

    .ci/arm64-root                                  # an arm64 system with ONNX Runtime for it
    apt-get install qemu-user gcc                   # the one that is not static: it takes plugins
    python -m bench.arm_instructions --root build/arm64-root

Each slice is run once and three times by arm64's Python and ONNX Runtime, in processes of their
own. Half of the difference is a run's instructions: nothing else differs. No other process changes
them. They are no cycles: a slice that waits for memory is slower than its count says.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

import scissionlite as sl
from bench.int8_slices import CUTS, MODELS
from scissionlite.models import load_model
from scissionlite.runtimes import onnx, onnx_int8

PROCESSORS = {
    "cortex-a72": "fp asimd evtstrm crc32 cpuid",
    "cortex-a76": "fp asimd evtstrm crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
}
"""qemu's processors, and their features as /proc/cpuinfo names them: ARMv8.0 (Raspberry Pi 4), and
ARMv8.2 with dot products (Raspberry Pi 5; the A78 of a Jetson Orin has them, too)."""

_PLUGIN = Path(__file__).with_name("count_instructions.c")

_RUN = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
x = numpy.load(sys.argv[2])
for _ in range(int(sys.argv[3])):
    session.run(None, {"x0": x})
"""


class Emulator:
    """Runs slices in an arm64 system.

    Parameters
    ----------
    root
        The system, with a virtual environment ``device``.
    qemu
        The emulator's program.
    folder
        For the plugin, and for the files of /proc and /sys that ONNX Runtime reads.
    """

    def __init__(self, root: Path, qemu: str, folder: Path) -> None:
        self._qemu, self._folder, self._root = qemu, folder, folder / "root"
        # Hard links: a file of /proc is added, and the root stays as it is.
        subprocess.run(["cp", "-al", root, self._root], check=True)
        cpus = self._root / "sys/devices/system/cpu"
        cpus.mkdir(parents=True)
        for name in ("possible", "present", "online", "kernel_max"):
            (cpus / name).write_text("0\n")
        (self._root / "proc").mkdir(exist_ok=True)
        command = ["gcc", "-shared", "-fPIC", "-O2", "-Wl,--unresolved-symbols=ignore-all"]
        subprocess.run([*command, str(_PLUGIN), "-o", str(folder / "plugin.so")], check=True)

    def instructions(self, processor: str, file: Path, x: Path) -> float:
        """Count the instructions of a run of a slice."""
        features = PROCESSORS[processor]
        (self._root / "proc/cpuinfo").write_text(
            f"processor\t: 0\nFeatures\t: {features}\nCPU implementer\t: 0x41\n"
            "CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n"
        )
        once, thrice = (self._count(processor, file, x, runs) for runs in (1, 3))
        return (thrice - once) / 2

    def _count(self, processor: str, file: Path, x: Path, runs: int) -> int:
        counted = self._folder / "count"
        counted.unlink(missing_ok=True)
        (python,) = (self._root / "usr/lib").glob("python3.*/os.py")
        packages = self._root / "device/lib" / python.parent.name / "site-packages"
        variables = (f"PYTHONHOME={self._root}/usr", f"PYTHONPATH={packages}", "LD_LIBRARY_PATH=")
        emulate = [self._qemu, "-cpu", processor, "-L", str(self._root)]
        emulate += ["-plugin", str(self._folder / "plugin.so")]
        emulate += [word for variable in variables for word in ("-E", variable)]
        program = self._root / "usr/bin" / python.parent.name
        command = [*emulate, str(program), "-c", _RUN, str(file), str(x), str(runs)]
        environment = {**os.environ, "INSTRUCTIONS": str(counted)}
        subprocess.run(command, env=environment, check=True)
        return int(counted.read_text())


def export(name: str, folder: Path, size: int) -> None:
    """Write a network's device slice in float32 and in int8, and an input."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, size, size)
    device, _ = sl.capture(load_model(MODELS[name]).eval(), x).split(CUTS[name])
    onnx.export(device, (x,), folder / "float32.onnx")
    calibration = [(torch.randn_like(x).numpy(),) for _ in range(4)]
    onnx_int8.quantize(folder / "float32.onnx", folder / "int8.onnx", calibration)
    np.save(folder / "x.npy", x.numpy())


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    made = argparse.ArgumentParser()
    made.add_argument("--root", type=Path, default=Path("build/arm64-root"))
    made.add_argument("--qemu", default=shutil.which("qemu-aarch64"))
    made.add_argument("--size", type=int, default=128)
    return made


def main() -> None:
    options = parser().parse_args()
    print("| device slice | processor | float32, million instructions | int8 | times fewer |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory(dir=options.root.parent) as scratch:
        folder = Path(scratch)
        emulator = Emulator(options.root, options.qemu, folder)
        for name, cut in CUTS.items():
            export(name, folder, options.size)
            for processor in PROCESSORS:
                whole, int8 = (
                    emulator.instructions(processor, folder / file, folder / "x.npy")
                    for file in ("float32.onnx", "int8.onnx")
                )
                cells = f"{whole / 1e6:.1f} | {int8 / 1e6:.1f} | {whole / int8:.2f}"
                print(f"| {name} to {cut} | {processor} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
