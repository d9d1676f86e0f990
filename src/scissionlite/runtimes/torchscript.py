"""TorchScript slices, run by LibTorch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from scissionlite.values import flat

SUFFIX = ".pt"


class TorchScriptSlice:
    """A frozen TorchScript module, called with and answering NumPy arrays without copies."""

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        self._module = module

    def __call__(self, *inputs: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], ...]:
        """Run the slice on arrays."""
        with torch.inference_mode():
            answer = self._module(*map(torch.from_numpy, inputs))
            return tuple(tensor.contiguous().numpy() for tensor in flat(answer))


def load(path: Path, threads: int | None = None) -> TorchScriptSlice:
    """Load a slice that :func:`export` wrote; ``threads`` is torch's own, so process-wide."""
    if threads is not None:
        torch.set_num_threads(threads)
    with _known_deprecation():
        return TorchScriptSlice(torch.jit.load(str(path), map_location="cpu"))


def compile_module(
    module: torch.nn.Module, example: tuple[torch.Tensor, ...]
) -> torch.jit.ScriptModule:
    """Trace and freeze a module: the very form that :func:`export` saves."""
    with _known_deprecation(), torch.no_grad():
        traced = torch.jit.trace(module.eval(), example, check_trace=False)
        frozen: torch.jit.ScriptModule = torch.jit.freeze(traced)
        return frozen


def export(
    module: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    path: Path,
    *,
    dynamic_batch: bool = False,
) -> None:
    """Write a module as a frozen TorchScript file (batch norms folded into convolutions).

    TorchScript keeps shapes open, so it runs on other batch sizes with or without
    ``dynamic_batch``.
    """
    compiled = compile_module(module, example)
    with _known_deprecation():
        torch.jit.save(compiled, str(path))


@contextmanager
def _known_deprecation() -> Iterator[None]:
    """Silence what torch says of TorchScript's future, and nothing else.

    TorchScript is deprecated upstream; the answer is a second runtime, not a warning that a user
    of this one can do nothing about.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore",
            message=r"`torch\.jit\.(trace|trace_method|freeze|save|load)` is "
            r"(deprecated\. Please|not supported in Python 3\.14)",
            category=DeprecationWarning,
        )
        yield
