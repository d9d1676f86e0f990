"""Instructions and modelled cycles of each way to write three NEON loops: bench/neon_tries.cpp.

    python -m bench.neon_tries    # needs the cross-compiler and qemu of .ci/arm64, and llvm-mca

Instructions are counted by qemu as in bench/neon_instructions.py, those of the C library's memcpy
included; "equal" says whether every bit is the reference's. Cycles are llvm-mca's, for
the function's innermost loop.
"""

from __future__ import annotations

import collections
import re
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ["-std=c++17", "-O3", "-march=armv8-a", "-ffp-contract=off", "-static"]
RETURNED = re.compile(r"^main$|5check")


def functions_run(program: Path, log: Path) -> tuple[list[str], collections.Counter[str]]:
    """What the program prints, and the instructions of each function that it executes."""
    command = ["qemu-aarch64-static", "-cpu", "cortex-a53", "-singlestep", "-d", "exec,nochain"]
    printed = subprocess.run(
        [*command, "-D", str(log), str(program)], check=True, capture_output=True, text=True
    ).stdout
    counted: collections.Counter[str] = collections.Counter()
    running = ""
    with log.open(errors="replace") as lines:
        for line in lines:
            name = line.rsplit(" ", 1)[-1].strip()
            if name == "copy_memcpy":
                running = name  # and what it jumps to, until that returns
            elif RETURNED.search(name):
                running = ""
            counted[running or name] += 1
    return printed.splitlines(), counted


def innermost_loop(assembly: str, name: str) -> str:
    """The shortest stretch of a function from a label to a branch back to it."""
    body = assembly.split(f"\n{name}:\n", 1)[1].split(f"\t.size\t{name},", 1)[0].splitlines()
    loops: list[list[str]] = []
    for end, line in enumerate(body):
        jump = re.match(r"\tb\.?\w*\s+(\.L\w+)|\tcbn?z\s+\w+, (\.L\w+)", line)
        label = jump and f"{jump[1] or jump[2]}:"
        if label in body[:end]:
            loops.append(body[body.index(label) + 1 : end + 1])
    shortest: list[str] = min(loops, key=len, default=[])
    return "\n".join(shortest)


def cycles(loop: str, cpu: str) -> float:
    """Cycles of one iteration of a loop."""
    command = ["llvm-mca", "-mtriple=aarch64", f"-mcpu={cpu}", "-iterations=100"]
    told = subprocess.run(command, input=loop, check=True, capture_output=True, text=True).stdout
    return int(told.split("Total Cycles:")[1].split()[0]) / 100


def main() -> None:
    """Print the table."""
    print("| way | instructions a byte | equal | loop's instructions | A53 cycles | A72 cycles |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        program, listing = Path(folder) / "tries", Path(folder) / "tries.s"
        compiler = ["aarch64-linux-gnu-g++", *FLAGS, str(SOURCE)]
        subprocess.run([*compiler, "-o", str(program)], check=True)
        subprocess.run([*compiler, "-S", "-o", str(listing)], check=True)
        printed, counted = functions_run(program, Path(folder) / "log")
        for line in printed:
            name, nbytes, equal = line.split()
            loop = innermost_loop(listing.read_text(), name)
            modelled = "| | "
            if loop:
                size = sum(step.startswith("\t") for step in loop.splitlines())
                modelled = (
                    f"{size} | {cycles(loop, 'cortex-a53'):.1f} | {cycles(loop, 'cortex-a72'):.1f}"
                )
            ratio = counted[name] / int(nbytes)
            print(f"| {name} | {ratio:.3f} | {'yes' if equal == '1' else 'no'} | {modelled} |")


if __name__ == "__main__":
    main()
