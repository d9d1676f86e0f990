"""``scissionlite doctor``: what this machine has."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from scissionlite import __version__, _core
from scissionlite.cli.output import JsonOption, print_json, print_table
from scissionlite.errors import RuntimeUnavailableError
from scissionlite.runtimes import PACKAGES, RUNTIMES, runtime_module


def doctor(json: JsonOption = False) -> None:
    """Show versions, instruction sets and runtimes, and what each job still needs."""
    found: dict[str, str] = {
        "scissionlite": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "instruction sets": ", ".join(_core.available_isas()),
        "in use": _core.isa(),
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
    if json:
        print_json(found)
    else:
        print_table("This machine", ["", "has"], [[key, value] for key, value in found.items()])
