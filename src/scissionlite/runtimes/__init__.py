"""Runtimes: they run the slices. One file per runtime, all with one small interface.

    load_slice(path, runtime) -> runtime_module -> torchscript | onnx | aotinductor .load -> Slice
    export.export_slices(modules, runtimes, folder) -> the same module's .export -> SliceFile
    triton_repository.write_repository(bundle, folder): models of a Triton server

The module of a runtime has the functions ``load(path, threads)``, ``export(module, example, path,
dynamic_batch=)`` and ``check_export()``, and the constants ``SUFFIX`` and ``SURVIVES_FORK``
(whether a slice runs in a forked child, too). It is imported when a slice first needs it, so a
device with ONNX slices never imports torch. A Slice takes and answers NumPy arrays; it runs in the
thread that calls it.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from scissionlite.errors import RuntimeUnavailableError

RuntimeName: TypeAlias = Literal["torchscript", "onnx", "aotinductor"]

RUNTIMES: dict[str, str] = {"torchscript": "torch", "onnx": "onnx", "aotinductor": "aotinductor"}
"""Name of each runtime, and the extra that installs it."""

PACKAGES: dict[str, str] = {"torchscript": "torch", "onnx": "onnxruntime", "aotinductor": "torch"}
"""The package that runs each runtime's slices."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h


class Slice(Protocol):
    """A loaded slice: one or more tensors in, one or more float32 tensors out."""

    def __call__(self, *inputs: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], ...]:
        """Run the slice.

        The inputs may be read-only, and need not be contiguous. They are not modified. The outputs
        are C-contiguous, and share no memory with the inputs, with each other or with the slice.
        """
        ...


def runtime_module(runtime: str) -> ModuleType:
    """Import the module of a runtime.

    Raises
    ------
    RuntimeUnavailableError
        If there is no runtime of that name, or what it needs is not installed or too old.
    """
    if runtime not in RUNTIMES:
        raise RuntimeUnavailableError(
            f"unknown runtime {runtime!r}: this build knows {', '.join(sorted(RUNTIMES))}"
        )
    try:
        return importlib.import_module(f"scissionlite.runtimes.{runtime}")
    except ImportError as error:
        needed = f"needs {error.name}, which is not installed"
        if not isinstance(error, ModuleNotFoundError):
            needed = f"cannot be imported ({error})"
        raise RuntimeUnavailableError(
            f"the {runtime} runtime {needed}: pip install 'scissionlite[{RUNTIMES[runtime]}]'"
        ) from error


def load_slice(
    path: Path, runtime: str, threads: int | None = None, processor: str = "cpu"
) -> Slice:
    """Load a slice.

    Parameters
    ----------
    path
        The slice's file; check its digest first (:meth:`scissionlite.Bundle.slice_path`).
    runtime
        One of :data:`RUNTIMES`.
    threads
        Threads for one inference; None leaves the runtime's own default.
    processor
        "cpu", or "cuda" where TorchScript is to run it on a GPU.

    Raises
    ------
    RuntimeUnavailableError
        As :func:`runtime_module`, or if the slice was compiled for another processor, or there is
        no such processor.
    """
    keep_memory()
    if processor == "cpu":
        loaded: Slice = runtime_module(runtime).load(path, threads)
    elif runtime == "torchscript":
        loaded = runtime_module(runtime).load(path, threads, processor)
    else:
        raise RuntimeUnavailableError(f"{runtime} runs slices on the CPU here, not on {processor}")
    return loaded


def keep_memory() -> None:
    """Keep the memory that an inference frees in this process, for the next inference.

    glibc returns large blocks to the system at once, so that every feature map of every inference
    is mapped again, page by page. On small networks that took longer than the network itself, and
    at 640x640 a third of its time. So no block is mapped by itself, and all threads share the one
    heap that can grow: those of other threads hold 64 MB, and what is larger is mapped. Threads
    that allocated before keep theirs. Where the environment sets malloc's options
    (``MALLOC_...``), or the C library is another one, nothing is changed.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_TRIM_THRESHOLD, 256 << 20)


def unshared(
    outputs: Sequence[npt.NDArray[np.float32]], inputs: Sequence[npt.NDArray[Any]]
) -> tuple[npt.NDArray[np.float32], ...]:
    """Copy the outputs that share memory with an input or with an earlier output.

    A network may answer its input, or a view of it, which its caller may write to later.
    """
    taken = list(inputs)
    for output in outputs:
        shared = any(np.may_share_memory(output, other) for other in taken)
        taken.append(output.copy() if shared else output)
    return tuple(taken[len(inputs) :])


def warm_up(loaded: Slice, inputs: Sequence[tuple[tuple[int, ...], str]], runs: int = 3) -> None:
    """Run a slice on zeros of the inputs' shapes and dtypes: TorchScript optimises in two runs."""
    for _ in range(runs):
        loaded(*(np.zeros(shape, dtype) for shape, dtype in inputs))
