"""Finds instructions that not every CPU of a wheel's architecture has, in an unstripped module.

    python disassembly.py build/wheel-aarch64/_core.cpython-311-aarch64-linux-gnu.so

The code of an ISA's files may have them: dispatch runs it only on CPUs that have the ISA. All other
code, that of the C++ library in it included, must run on the oldest CPU. The module is
disassembled, and what has to be baseline is assembled again for the oldest CPU of the architecture:
the assembler itself says which instructions such a CPU lacks. Needs the binutils of the
architecture.
"""

from __future__ import annotations

import bisect
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CSRC = Path(__file__).parents[1] / "csrc"
ARCHITECTURES = {62: "x86_64", 183: "aarch64"}  # e_machine of an ELF file
BASELINES = {"x86_64": "-march=generic64", "aarch64": "-march=armv8-a"}
# No-operations for older CPUs; xgetbv, which cpu.cpp asks only a CPU that says it has it; and what
# objdump writes where there is no code.
_HARMLESS = re.compile(r"\b(endbr64|notrack|bnd|xgetbv|bti( [cj]+)?|udf|\.inst|\.word)\b")


class Found(NamedTuple):
    """An instruction that the baseline lacks, and whose code it is in."""

    function: str
    instruction: str
    reason: str


def isas_beyond_the_baseline() -> set[str]:
    """ISAs of csrc/kernel_list.h that are compiled with flags of their own."""
    text = (CSRC / "kernel_list.h").read_text()
    return {isa for isa, flags in re.findall(r'^  ISA\((\w+), \w+, "(.*)"\)', text, re.M) if flags}


def architecture(module: Path) -> str:
    """Architecture that an ELF file is for."""
    return ARCHITECTURES[int.from_bytes(module.read_bytes()[18:20], "little")]


def beyond_baseline(module: Path) -> list[Found]:
    """Find the instructions that the oldest CPU lacks, outside the files of ISAs.

    Raises
    ------
    ValueError
        If the module has no symbols, or no code of an ISA's files.
    """
    own = _ranges_of_isas(module)
    starts = [start for start, _ in own]
    wanted: dict[str, str] = {}
    passed_over = 0
    for address, function, instruction in _instructions(module):
        position = bisect.bisect_right(starts, address) - 1
        if position >= 0 and address < own[position][1]:
            passed_over += 1
        else:
            wanted.setdefault(instruction, function)
    if not passed_over:
        raise ValueError(f"{module} has no code of an ISA's files")
    return [
        Found(wanted[instruction], instruction, reason)
        for instruction, reason in _refused(list(wanted), architecture(module))
    ]


def _tool(name: str, architecture_: str) -> str:
    """The binutils of an architecture."""
    return name if platform.machine() == architecture_ else f"{architecture_}-linux-gnu-{name}"


def _ranges_of_isas(module: Path) -> list[tuple[int, int]]:
    """Addresses of the functions that ISAs' files define, by the module's table of symbols."""
    isas = isas_beyond_the_baseline()
    kernel = re.compile(rf"^_ZN12scissionlite\d+\w+__({'|'.join(isas)})E")
    file, found, functions = "", [], 0
    lines = subprocess.run(
        [_tool("readelf", architecture(module)), "--symbols", "--wide", module],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for line in lines:
        words = line.split()
        if len(words) < 7 or not words[0].endswith(":"):
            continue
        name = words[7] if len(words) > 7 else ""
        if words[3] == "FILE":
            file = name
        elif words[3] == "FUNC" and words[6] != "UND":
            functions += 1
            if file.removesuffix(".cpp") in isas or kernel.match(name):
                start, size = int(words[1], 16), int(words[2], 0)
                found.append((start, start + size))
    if functions < 100:
        raise ValueError(f"{module} is stripped: it has the symbols of {functions} functions")
    return sorted(found)


def _instructions(module: Path) -> Iterator[tuple[int, str, str]]:
    """Address, function and text of every instruction."""
    output = subprocess.run(
        [_tool("objdump", architecture(module)), "-d", "--no-show-raw-insn", module],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    function = ""
    for line in output.splitlines():
        if heading := re.match(r"^[0-9a-f]+ <(.*)>:$", line):
            function = heading[1]
        elif instruction := re.match(r"^ *([0-9a-f]+):\t(.+)$", line):
            # Where a jump goes is not the question; what follows // or # is objdump's remark.
            text = re.sub(r"\b[0-9a-f]+ <[^>]*>", ".", instruction[2])
            text = re.sub(r"\s*(//|# ).*", "", text)
            # Padding repeats a prefix that the assembler takes but once.
            yield int(instruction[1], 16), function, re.sub(r"^(data16 )+(rex\.W )?", "", text)


def _refused(instructions: list[str], architecture_: str) -> Iterator[tuple[str, str]]:
    """Instructions that the assembler refuses for the baseline, and why."""
    instructions = [each for each in instructions if not _HARMLESS.search(each)]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "baseline.s"
        source.write_text("\n".join(instructions) + "\n")
        done = subprocess.run(
            [_tool("as", architecture_), BASELINES[architecture_], source, "-o", f"{source}.o"],
            capture_output=True,
            text=True,
        )
    errors = re.findall(r"^.*?:(\d+): Error: (.*)$", done.stderr, re.M)
    if done.returncode and not errors:
        raise ValueError(f"the assembler failed: {done.stderr}")
    for line, reason in errors:
        yield instructions[int(line) - 1], reason


if __name__ == "__main__":
    faults = beyond_baseline(Path(sys.argv[1]))
    for fault in faults:
        print(f"{fault.function}: {fault.instruction}: {fault.reason}")
    sys.exit(bool(faults))
