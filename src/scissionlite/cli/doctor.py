"""``scissionlite doctor``: what this machine has."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from scissionlite import __version__, _core
from scissionlite.cli.output import JsonOption, print_json, print_table
from scissionlite.errors import RuntimeUnavailableError
from scissionlite.processor import (
    SYSFS,
    core_list,
    cores,
    earlier_slowdowns,
    fast_cores,
    slowdowns,
    temperatures,
)
from scissionlite.runtimes import PACKAGES, RUNTIMES, runtime_module


def doctor(json: JsonOption = False) -> None:
    """Show versions, instruction sets and runtimes, the processor, and what each job needs."""
    found = machine()
    if json:
        print_json(found)
    else:
        print_table("This machine", ["", "has"], [[key, value] for key, value in found.items()])


def machine(sysfs: Path = SYSFS) -> dict[str, str]:
    """Find out what this machine has; ``sysfs`` is where the kernel describes it."""
    found: dict[str, str] = {
        "scissionlite": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "instruction sets": ", ".join(_core.available_isas()),
        "in use": _core.isa(),
        **_processor(sysfs),
    }
    for runtime in RUNTIMES:
        try:
            module = runtime_module(runtime)
        except RuntimeUnavailableError as error:
            found[f"{runtime} slices"] = f"no: {error}"
            continue
        found[f"{runtime} slices"] = f"yes, {PACKAGES[runtime]} {version(PACKAGES[runtime])}"
        try:
            module.check_export()
        except RuntimeUnavailableError as error:
            found[f"{runtime} slices"] += f", but none can be written here: {error}"
    for package in (
        "numpy",
        "pyzmq",
        "msgspec",
        "pillow",
        "zstandard",
        "timm",
        "torchvision",
        "matplotlib",
    ):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed (only the demo and named models need it)"
    return found


def _processor(sysfs: Path) -> dict[str, str]:
    """Describe the processor as Linux does: fast cores, temperatures, and why it is slow."""
    found = cores(sysfs)
    fast = fast_cores(found)
    rows = {}
    if len(fast) < len(found):
        rows["fast cores"] = f"{core_list(fast)} of {len(found)} (`run --cores fast` uses them)"
    if degrees := temperatures(sysfs):
        rows["temperature"] = ", ".join(f"{name} {value:.0f} °C" for name, value in degrees.items())
    now, earlier = slowdowns(sysfs), earlier_slowdowns(sysfs)
    rows["speed"] = f"slowed down now: {'; '.join(now)}" if now else "no slowdown known"
    if earlier:
        rows["speed"] += f". Since it was started: {'; '.join(earlier)}"
    return rows
