"""Instructions of each NEON kernel per output byte, beside the compiler's scalar, counted by qemu.

    .ci/arm64                            # builds build/arm64/kernel_runner
    python -m bench.neon_instructions

qemu executes tests/kernel_runner.cpp one instruction at a time and logs the function of each; those
of the kernels are counted. Both sides are compiled for ARMv8.0-A at -O3, where the compiler
vectorises the scalar kernels with NEON as it can. Every result is asserted against the oracle.
"""

from __future__ import annotations

import itertools
import re
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import kernel_targets  # noqa: E402
import oracle  # noqa: E402

RUNNER = ROOT / "build" / "arm64" / "kernel_runner"
# What is in the kernels' files; the runner's own functions have no namespace of ours.
KERNEL = re.compile(r"N12scissionlite12_GLOBAL__N_1|N12scissionlite\d+\w+__(neon|scalar)E")
WINDOWS = (1, 2, 4)


def call_of(operation: str, window: int, layout: str) -> oracle.Call:
    """A feature map of 8 channels of 28 x 28."""
    kinds = kernel_targets.kinds(operation)
    scale = np.full(1, 0.03 if {kinds[1], kinds[2]} & oracle.CODES.keys() else 1, np.float32)
    return oracle.Call(1, 8, 28, 28, window, layout=layout, scales=scale)


def source_of(operation: str, call: oracle.Call) -> oracle.Array:
    kind = kernel_targets.kinds(operation)[1]
    generator = np.random.default_rng(0)
    size = kernel_targets.source_size(operation, call)
    if kind in oracle.FLOATS:
        return generator.normal(size=size).astype(oracle.FLOATS[kind])
    return generator.integers(0, 256, size, dtype=np.uint8)


def instructions(operation: str, isa: str, call: oracle.Call) -> tuple[int, bytes]:
    """Instructions of one call of a kernel, and its answer."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = f"qemu-aarch64-static -cpu cortex-a53 -singlestep -d exec,nochain -D {log}"
        runner = kernel_targets.Runner(f"{command} {RUNNER}")
        answer = runner.run(operation, isa, source_of(operation, call), call, 0)
        runner.close()
        with log.open(errors="replace") as lines:
            counted = sum(1 for line in lines if KERNEL.search(line))
    return counted, answer.output.tobytes() + answer.lows.tobytes() + answer.highs.tobytes()


def main() -> None:
    """Print the table; the exit code is 1 if a kernel takes more than half of the scalar's."""
    print("| kernel | window | layout | scalar | NEON | fewer |")
    print("| --- | --- | --- | --- | --- | --- |")
    worst = 99.0
    for operation in kernel_targets.listed_operations():
        for window, layout in itertools.product(WINDOWS, ("nchw", "nhwc")):
            call = call_of(operation, window, layout)
            scalar, expected = instructions(operation, "scalar", call)
            neon, answer = instructions(operation, "neon", call)
            assert answer == expected, operation
            kind = kernel_targets.item_type(kernel_targets.kinds(operation)[2])
            nbytes = kernel_targets.output_size(operation, call) * np.dtype(kind).itemsize
            ratio = scalar / neon
            worst = min(worst, ratio)
            counts = f"{scalar / nbytes:.2f} | {neon / nbytes:.2f} | {ratio:.1f}"
            print(f"| {operation} | {window} | {layout} | {counts} |", flush=True)
    print(f"\nThe least: {worst:.1f} times fewer.")
    sys.exit(worst < 2)


if __name__ == "__main__":
    main()
