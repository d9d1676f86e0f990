"""What runs a slice: one file a runtime behind one small interface.

A runtime's module has two functions, ``load(path, threads)`` and ``export(module, example,
path)``, and a constant ``SUFFIX``; it is imported only when a slice needs it, so a device with
ONNX slices never imports torch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from scissionlite.errors import RuntimeUnavailableError

RUNTIMES = {"torchscript": "torch", "onnx": "onnx"}
"""Name of each runtime, and the extra that installs it."""


class Slice(Protocol):
    """A loaded slice: one float32 tensor in, one float32 tensor out."""

    def __call__(self, x: npt.NDArray[np.float32], /) -> npt.NDArray[np.float32]:
        """Run the slice; the input is not modified, the output is C-contiguous."""
        ...


def runtime_module(runtime: str) -> ModuleType:
    """Import the module of a runtime.

    Raises
    ------
    RuntimeUnavailableError
        If there is no runtime of that name, or what it needs is not installed.
    """
    if runtime not in RUNTIMES:
        raise RuntimeUnavailableError(
            f"unknown runtime {runtime!r}: this build knows {', '.join(sorted(RUNTIMES))}"
        )
    try:
        return importlib.import_module(f"scissionlite.runtimes.{runtime}")
    except ModuleNotFoundError as error:
        raise RuntimeUnavailableError(
            f"the {runtime} runtime needs {error.name}, which is not installed: "
            f"pip install 'scissionlite[{RUNTIMES[runtime]}]'"
        ) from error


def load_slice(path: Path, runtime: str, threads: int | None = None) -> Slice:
    """Load a slice.

    Parameters
    ----------
    path
        The slice's file; check its digest first (:meth:`scissionlite.Bundle.slice_path`).
    runtime
        "torchscript" or "onnx".
    threads
        Threads for one inference; None leaves the runtime's own default.
    """
    loaded: Slice = runtime_module(runtime).load(path, threads)
    return loaded


def warm_up(loaded: Slice, shape: tuple[int, ...], runs: int = 3) -> None:
    """Run a slice on zeros a few times: TorchScript optimises itself in its first two runs."""
    for _ in range(runs):
        loaded(np.zeros(shape, dtype=np.float32))
