"""Export modules as slices for several runtimes, and load them again (needs torch)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from scissionlite.bundle import file_sha256
from scissionlite.errors import PrepareError
from scissionlite.manifest import Role, SliceFile
from scissionlite.runtimes import Slice, load_slice, runtime_module


def check_runtimes(runtimes: Sequence[str]) -> None:
    """Check that slices can be written for the runtimes, before hours of training.

    Raises
    ------
    PrepareError
        If there is no runtime, or one more than once.
    RuntimeUnavailableError
        If a runtime is unknown, or a package that it needs is not installed.
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
    """Export modules for the runtimes into a folder; every runtime folds batch norms.

    Parameters
    ----------
    modules
        Each role's module, and an example of its inputs.
    runtimes
        Names of runtimes, best first.
    folder
        Where to write files, each named ``ROLE`` with the runtime's suffix.
    dynamic_batch
        Whether the slices must run on other batch sizes than the example's.

    Returns
    -------
    dict
        Each role's files, in the order of the runtimes.

    Raises
    ------
    RuntimeUnavailableError
        If a runtime is unknown, or a package that it needs is not installed.
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
    """Load one of the slices that :func:`export_slices` has written.

    A slice that was not written for this runtime, as one in int8, is loaded by the first that it
    was written for.
    """
    files = {file.runtime: file for file in reversed(slices[role])}
    chosen = files.get(runtime, slices[role][0])
    return load_slice(folder / chosen.file, chosen.runtime)
