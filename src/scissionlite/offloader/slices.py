"""A bundle's slices: loaded by the first runtime that can, and warmed up."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from scissionlite.bundle import Bundle, Role
from scissionlite.errors import RuntimeUnavailableError
from scissionlite.graph.tensors import TensorInfo
from scissionlite.runtimes import Slice, load_slice, warm_up

logger = logging.getLogger(__name__)


def open_slice(
    bundle: Bundle,
    role: Role,
    inputs: Sequence[TensorInfo],
    threads: int | None,
    runtime: str | None,
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

    Raises
    ------
    BundleError
        If the slice is missing or altered.
    RuntimeUnavailableError
        If no runtime can run it here.
    """
    failures: list[str] = []
    for name in bundle.runtimes(role) if runtime is None else (runtime,):
        try:
            loaded = load_slice(bundle.slice_path(role, name), name, threads)
        except RuntimeUnavailableError as error:
            failures.append(str(error))
            continue
        logger.info("%s runs the %s slice%s", name, role, "".join(f"; {f}" for f in failures))
        warm_up_slice(loaded, inputs)
        return loaded
    raise RuntimeUnavailableError(f"the {role} slice cannot run here: {'; or '.join(failures)}")


def warm_up_slice(loaded: Slice, inputs: Sequence[TensorInfo], runs: int = 3) -> None:
    """Run a slice on zeros of its inputs' shapes."""
    warm_up(loaded, [(tensor.shape, tensor.dtype) for tensor in inputs], runs)
