"""``scissionlite doctor``: what this machine has."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, version

from scissionlite import __version__, _core
from scissionlite.cli.output import JsonOption, print_json, print_table
from scissionlite.runtimes import RUNTIMES

_NEEDED = {"torchscript": "torch", "onnx": "onnxruntime"}


def doctor(json: JsonOption = False) -> None:
    """Tell versions, instruction sets and runtimes, and what is missing for which job."""
    found: dict[str, str] = {
        "scissionlite": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "instruction sets": ", ".join(_core.available_isas()),
        "in use": _core.isa(),
    }
    for runtime, extra in RUNTIMES.items():
        package = _NEEDED[runtime]
        if importlib.util.find_spec(package) is None:
            found[f"{runtime} slices"] = f"no: pip install 'scissionlite[{extra}]'"
        else:
            found[f"{runtime} slices"] = f"yes, {package} {version(package)}"
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
