"""ScissionLite: split DNN inference between a device and an edge machine.

This file lists the public names and holds no other code. A name's module is imported when the
name is first used: a device has no torch, and it starts fast because it loads only what it uses.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scissionlite.bundle import Bundle
    from scissionlite.errors import ScissionLiteError
    from scissionlite.graph.capture import capture
    from scissionlite.graph.graph import Graph, SlicingPoint
    from scissionlite.images import Preprocessing
    from scissionlite.offloader import Answer, Device, DeviceKeys, EdgeKeys, EdgeLimits, EdgeServer
    from scissionlite.preprocessor.choosing import choose
    from scissionlite.preprocessor.pipeline import prepare
    from scissionlite.preprocessor.recipe import Recipe
    from scissionlite.preprocessor.tasks import CLASSIFICATION, SEGMENTATION, Task
    from scissionlite.scissiontl.constraints import Constraints
    from scissionlite.scissiontl.link import Link
    from scissionlite.scissiontl.planner import plan
    from scissionlite.scissiontl.plans import Plan
    from scissionlite.scissiontl.profile import Profile
    from scissionlite.scissiontl.profiler import profile
    from scissionlite.transfer_layer import (
        EntropyTables,
        Packed,
        Quantization,
        TransferSpec,
        decode,
        encode,
        fit_tables,
    )

__version__: str  # the installed package's, looked up at first use

_HOMES = {
    "Answer": "offloader",
    "Bundle": "bundle",
    "CLASSIFICATION": "preprocessor.tasks",
    "Constraints": "scissiontl.constraints",
    "Device": "offloader",
    "DeviceKeys": "offloader",
    "EdgeKeys": "offloader",
    "EdgeLimits": "offloader",
    "EdgeServer": "offloader",
    "EntropyTables": "transfer_layer",
    "Graph": "graph.graph",
    "Link": "scissiontl.link",
    "Packed": "transfer_layer",
    "Plan": "scissiontl.plans",
    "Preprocessing": "images",
    "Profile": "scissiontl.profile",
    "Quantization": "transfer_layer",
    "Recipe": "preprocessor.recipe",
    "SEGMENTATION": "preprocessor.tasks",
    "ScissionLiteError": "errors",
    "SlicingPoint": "graph.graph",
    "Task": "preprocessor.tasks",
    "TransferSpec": "transfer_layer",
    "capture": "graph.capture",
    "choose": "preprocessor.choosing",
    "decode": "transfer_layer",
    "encode": "transfer_layer",
    "fit_tables": "transfer_layer",
    "plan": "scissiontl.planner",
    "prepare": "preprocessor.pipeline",
    "profile": "scissiontl.profiler",
}

__all__ = [
    "Answer",
    "Bundle",
    "CLASSIFICATION",
    "Constraints",
    "Device",
    "DeviceKeys",
    "EdgeKeys",
    "EdgeLimits",
    "EdgeServer",
    "EntropyTables",
    "Graph",
    "Link",
    "Packed",
    "Plan",
    "Preprocessing",
    "Profile",
    "Quantization",
    "Recipe",
    "SEGMENTATION",
    "ScissionLiteError",
    "SlicingPoint",
    "Task",
    "TransferSpec",
    "capture",
    "choose",
    "decode",
    "encode",
    "fit_tables",
    "plan",
    "prepare",
    "profile",
]


def __getattr__(name: str) -> object:
    value: object
    if name == "__version__":
        from importlib.metadata import version  # takes 20 ms, and a device does not need it

        value = version("scissionlite")
    elif name in _HOMES:
        value = getattr(importlib.import_module(f"scissionlite.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'scissionlite' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
