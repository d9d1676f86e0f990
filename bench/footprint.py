"""What a device without torch takes: download, disk, memory, and time to the first answer.

    .ci/wheel aarch64 build/dist && .ci/arm64-root      # the aarch64 install that is measured
    python -m bench.footprint BUNDLE                    # a bundle with ONNX slices

Download and disk are of the arm64 root, whose packages its pip installed. Time and memory are of
this machine's processor, with what is installed here; each is the median of five processes.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1] / "build" / "arm64-root"
COMMAND_LINE = {"typer", "rich", "pygments", "markdown_it_py", "mdurl", "shellingham", "click"} | {
    "pydantic", "pydantic_core", "annotated_types", "annotated_doc", "typing_inspection",
    "typing_extensions",
}  # fmt: skip
"""Packages that only the command line needs, by `pip show`: typer and rich, and what they need."""

_FIRST_ANSWER = """
import json, resource, sys, time
started = float(sys.argv[2])
def memory():
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmRSS")).split()[1]) * 1024
import numpy, zmq
base = memory()
import scissionlite as sl
sl.Device
imported = memory()
bundle = sl.Bundle.load(sys.argv[1])
with sl.Device(bundle, fallback="local", runtime="onnx", threads=1) as device:
    shape = bundle.manifest.inputs[0].shape
    device.infer(numpy.zeros(shape, numpy.float32))
    print(json.dumps([time.time() - started, base, imported, memory()]))
"""


def megabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB"


def installed() -> dict[str, int]:
    """Bytes on the disk of each installed package of the root, compiled files included."""
    (site,) = (ROOT / "device" / "lib").glob("python3*/site-packages")
    sizes: dict[str, int] = {}
    for record in site.glob("*.dist-info/RECORD"):
        name = record.parent.name.split("-")[0].lower()
        files = {line.rsplit(",", 2)[0].strip('"') for line in record.read_text().splitlines()}
        sizes[name] = sum((site / file).stat().st_size for file in files if (site / file).is_file())
    return sizes


def starts(bundle: Path) -> list[list[float]]:
    """Seconds to the first answer, and bytes of memory at three moments, of five processes."""
    runs = []
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", _FIRST_ANSWER, bundle, str(time.time())],
            capture_output=True,
            text=True,
            check=True,
        )
        runs.append(json.loads(done.stdout))
    return runs


def main() -> None:
    wheels = {re.split("-", each.name)[0].lower(): each for each in (ROOT / "wheels").glob("*.whl")}
    downloads = {name: each.stat().st_size for name, each in wheels.items()}
    disk = installed()
    print("| package | download | installed |\n| --- | --- | --- |")
    for name in sorted(downloads, key=lambda name: -disk.get(name, 0)):
        note = " (command line)" if name in COMMAND_LINE else ""
        print(f"| {name}{note} | {megabytes(downloads[name])} | {megabytes(disk.get(name, 0))} |")
    for title, left_out in (("all of it", set()), ("without the command line's", COMMAND_LINE)):
        down = sum(size for name, size in downloads.items() if name not in left_out)
        size = sum(disk.get(name, 0) for name in downloads if name not in left_out)
        print(f"| {title} | {megabytes(down)} | {megabytes(size)} |")
    seconds, base, imported, answered = map(
        statistics.median, zip(*starts(Path(sys.argv[1])), strict=True)
    )
    print(f"\nFrom the start of the process to the first answer: {seconds:.2f} s")
    print(f"Resident memory with numpy and zmq: {megabytes(base)}")
    print(f"Resident memory with sl.Device: {megabytes(imported)}")
    print(f"Resident memory after the first answer: {megabytes(answered)}")


if __name__ == "__main__":
    main()
