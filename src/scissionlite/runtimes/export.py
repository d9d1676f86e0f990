"""Exporting modules as slices for some runtimes, and loading what was exported (needs torch)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from scissionlite.bundle import Role, SliceFile, file_sha256
from scissionlite.errors import PrepareError
from scissionlite.runtimes import Slice, load_slice, runtime_module


def check_runtimes(runtimes: Sequence[str]) -> None:
    """Check that slices can be written for some runtimes, before hours of training.

    Raises
    ------
    PrepareError
        If none are given, or one more than once.
    RuntimeUnavailableError
        If a runtime is unknown, or what it needs is not installed.
    """
    if isinstance(runtimes, str) or not runtimes or len(set(runtimes)) < len(runtimes):
        raise PrepareError(
            f"runtimes= is a sequence of different ones, such as ('torchscript', 'onnx'), not "
            f"{runtimes!r}"
        )
    for runtime in runtimes:
        runtime_module(runtime).check_export()


def export_slices(
    modules: dict[Role, tuple[nn.Module, tuple[torch.Tensor, ...]]],
    runtimes: Sequence[str],
    folder: Path,
    *,
    dynamic_batch: bool = False,
) -> dict[Role, tuple[SliceFile, ...]]:
    """Export modules for some runtimes into a folder; every runtime folds their batch norms.

    Parameters
    ----------
    modules
        Role to the module and an example of its inputs.
    runtimes
        Names of runtimes, in the order of preference.
    folder
        Where to write, each as ``ROLE`` with the runtime's suffix.
    dynamic_batch
        Whether the slices must run on other batch sizes than the example's.

    Raises
    ------
    RuntimeUnavailableError
        If a runtime is unknown, or what it needs is not installed.
    PrepareError
        If a runtime cannot take a module.
    """
    slices: dict[Role, tuple[SliceFile, ...]] = {}
    for role, (module, example) in modules.items():
        files: list[SliceFile] = []
        for runtime in runtimes:
            exporter = runtime_module(runtime)
            path = folder / f"{role}{exporter.SUFFIX}"
            exporter.export(module, example, path, dynamic_batch=dynamic_batch)
            files.append(SliceFile(path.name, runtime, file_sha256(path), path.stat().st_size))
        slices[role] = tuple(files)
    return slices


def load_exported(
    slices: dict[Role, tuple[SliceFile, ...]], role: Role, runtime: str, folder: Path
) -> Slice:
    """Load what :func:`export_slices` has just written."""
    (file,) = (file.file for file in slices[role] if file.runtime == runtime)
    return load_slice(folder / file, runtime)
