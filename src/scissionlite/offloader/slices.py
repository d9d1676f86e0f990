"""A bundle's slices: loaded by the first runtime that can, and warmed up."""

from __future__ import annotations

import fcntl
import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scissionlite.bundle import Bundle
from scissionlite.errors import BundleError, RuntimeUnavailableError, first_line
from scissionlite.graph.tensors import TensorInfo
from scissionlite.manifest import Role
from scissionlite.runtimes import Slice, load_slice, runtime_module, warm_up

logger = logging.getLogger(__name__)


class ReloadedSlice:
    """A slice that a forked child loads anew, at its first call there.

    Parameters
    ----------
    load
        Loads the slice.
    """

    def __init__(self, load: Callable[[], Slice]) -> None:
        self._load = load
        self._slice = load()
        self._process = os.getpid()

    def __call__(self, *inputs: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], ...]:
        """Run the slice; a failure to load it in a child is one of :func:`open_slice`."""
        if os.getpid() != self._process:
            self._slice, self._process = self._load(), os.getpid()
        return self._slice(*inputs)


def open_slice(
    bundle: Bundle,
    role: Role,
    inputs: Sequence[TensorInfo],
    threads: int | None,
    runtime: str | None,
    processor: str = "cpu",
) -> Slice:
    """Load one of a bundle's slices and run it a few times.

    Parameters
    ----------
    bundle
        The bundle.
    role
        Which of its slices.
    inputs
        The slice's inputs.
    threads
        For one run of the slice; None is the runtime's default.
    runtime
        Which of the bundle's runtimes runs it; None is the first that can here.
    processor
        "cpu" or "cuda".

    Raises
    ------
    BundleError
        If the slice is missing or altered, or does not take its inputs.
    RuntimeUnavailableError
        If no runtime can run it here.
    """
    failures: list[str] = []
    for name in bundle.runtimes(role) if runtime is None else (runtime,):
        try:
            load = functools.partial(_load, bundle, role, name, threads, processor)
            loaded = load() if runtime_module(name).SURVIVES_FORK else ReloadedSlice(load)
        except RuntimeUnavailableError as error:
            failures.append(str(error))
            continue
        also = "".join(f"; {failure}" for failure in failures)
        extra = {"runtime": name, "role": role, "bundle": bundle.id}
        logger.info("%s runs the %s slice%s", name, role, also, extra=extra)
        try:
            warm_up_slice(loaded, inputs)
        except Exception as error:  # of the runtime, which has classes of its own
            shapes = ", ".join(f"{each.dtype} {list(each.shape)}" for each in inputs)
            raise BundleError(
                f"{bundle.path}: the {role} slice does not take the inputs that the manifest names "
                f"({shapes}): {first_line(error)}; prepare it again"
            ) from error
        return loaded
    raise RuntimeUnavailableError(f"the {role} slice cannot run here: {'; or '.join(failures)}")


def warm_up_slice(loaded: Slice, inputs: Sequence[TensorInfo], runs: int = 3) -> None:
    """Run a slice on zeros of its inputs' shapes."""
    warm_up(loaded, [(tensor.shape, tensor.dtype) for tensor in inputs], runs)


def _load(bundle: Bundle, role: Role, runtime: str, threads: int | None, processor: str) -> Slice:
    with _checked_copy(bundle, role, runtime) as path:
        return load_slice(path, runtime, threads, processor)


@contextmanager
def _checked_copy(bundle: Bundle, role: Role, runtime: str) -> Iterator[Path]:
    """Yield the path of a copy of a slice, in memory: nobody can alter it once it is checked.

    Raises
    ------
    BundleError
        As :meth:`.Bundle.slice_path`.
    """
    descriptor = os.memfd_create(f"{role} slice", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        bundle.slice_path(role, runtime, copy=descriptor)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
