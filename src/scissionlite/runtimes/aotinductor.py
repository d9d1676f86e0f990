"""Slices that AOTInductor compiled to machine code, run by LibTorch: what follows TorchScript.

A package (``.pt2``) is a zip file around a shared library, so a slice is a program: like every
slice it is loaded only after its digest was checked, and a bundle is trusted like a program.

It belongs to the processor that it was compiled on. Its convolutions' weights are laid out for
that processor's widest vectors, and one that lacks them would run them many times slower, or end
at an instruction that it does not know. Prepare a bundle on a machine like the one that runs it,
or give it a second runtime; :func:`load` refuses a package that needs more than there is.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch._C._aoti import AOTIModelContainerRunnerCpu
from torch.cpu import get_capabilities

from scissionlite.errors import PrepareError, RuntimeUnavailableError

SUFFIX = ".pt2"

_METADATA = "scissionlite"  # our key in the package's metadata

# What the compiler may use beside the vector instructions that Inductor asks for by name: without
# this it were all that the processor has (-march=native), of which the package does not tell.
_BASELINES = {"x86_64": "x86-64", "aarch64": "armv8-a"}

# Those instructions, and what oneDNN chooses the layout of weights by, as torch names them.
_VECTORS = (
    *("avx2", "fma3", "f16c", "avx512_f", "avx512_bw", "avx512_dq", "avx512_vl", "avx512_vnni"),
    *("amx_tile", "amx_bf16", "amx_int8", "amx_fp16", "neon", "sve", "sve2", "bf16"),
)


class _Input(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]


class _Made(msgspec.Struct, frozen=True):
    """What a package says of itself: how it was made, and what it must be called with."""

    torch: str
    processor: tuple[str, ...]
    dynamic_batch: bool
    inputs: tuple[_Input, ...]


class AOTInductorSlice:
    """A compiled slice, called with and answering NumPy arrays."""

    def __init__(self, runner: AOTIModelContainerRunnerCpu, made: _Made) -> None:
        self._runner = runner
        self._made = made

    def __call__(self, *inputs: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], ...]:
        """Run the slice on arrays.

        Raises
        ------
        ValueError
            If they have other shapes or dtypes than it was compiled for.
        """
        self._check(inputs)
        # OpenMP counts threads for each calling thread, and torch tells it the number only when
        # asked in that thread; compiled code does not ask.
        torch.get_num_threads()
        with torch.inference_mode():
            tensors = [torch.from_numpy(np.ascontiguousarray(x)) for x in inputs]
            return tuple(tensor.contiguous().numpy() for tensor in self._runner.run(tensors))

    def _check(self, inputs: tuple[npt.NDArray[Any], ...]) -> None:
        """Compiled code reads what it expects to be there, so nothing else may be given to it."""
        fixed = 1 if self._made.dynamic_batch else 0
        batch = inputs[0].shape[:fixed] if inputs else ()
        given = [(x.dtype.name, x.shape) for x in inputs]
        wanted = [(x.dtype, (*batch, *x.shape[fixed:])) for x in self._made.inputs]
        if given != wanted:
            raise ValueError(f"the slice was compiled for {wanted}, and was given {given}")


def load(path: Path, threads: int | None = None) -> AOTInductorSlice:
    """Load a slice that :func:`export` wrote; ``threads`` is torch's own, so process-wide.

    Raises
    ------
    RuntimeUnavailableError
        If it was compiled for another processor or another torch, or needs a library that is not
        here.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    # torch's own way of loading a package keeps it unpacked until the process ends in an orderly
    # manner, and asks for a C++ compiler. A library that is loaded needs its file no longer.
    with zipfile.ZipFile(path) as package, tempfile.TemporaryDirectory() as folder:
        made = _made(path, package)
        missing = sorted(set(made.processor) - set(_processor()))
        if missing:
            raise RuntimeUnavailableError(
                f"{path.name} was compiled for a processor with {', '.join(missing)}, which this "
                "one lacks: prepare the bundle on a machine like this one, or with a second runtime"
            )
        library = next(name for name in package.namelist() if name.endswith(".so"))
        try:
            runner = AOTIModelContainerRunnerCpu(package.extract(library, folder), 1)
        except RuntimeError as error:
            raise RuntimeUnavailableError(
                f"{path.name} was compiled with torch {made.torch} and cannot be loaded by torch "
                f"{torch.__version__}: {str(error).splitlines()[0]}"
            ) from error
    return AOTInductorSlice(runner, made)


def check_export() -> None:
    """Check that slices can be written here.

    Raises
    ------
    RuntimeUnavailableError
        If there is no C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")  # as Inductor looks for it
    if shutil.which(compiler) is None:
        raise RuntimeUnavailableError(
            f"writing aotinductor slices needs a C++ compiler, and there is no {compiler}: "
            "apt install g++, or name another one in the environment variable CXX"
        )


def export(
    module: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    path: Path,
    *,
    dynamic_batch: bool = False,
) -> None:
    """Compile a module to a package, for processors like this machine's.

    It takes some 10 to 30 seconds, the first time on a machine a minute, and leaves the compiled
    headers of LibTorch in torch's cache (``TORCHINDUCTOR_CACHE_DIR``) for the next time.

    Raises
    ------
    RuntimeUnavailableError
        If there is no C++ compiler.
    PrepareError
        If AOTInductor cannot compile the module.
    """
    from torch._inductor import aot_compile
    from torch._inductor.package.package import package_aoti

    check_export()
    batch = torch.export.Dim("batch", min=1)
    made = _Made(
        torch=str(torch.__version__),
        processor=_processor(),
        dynamic_batch=dynamic_batch,
        inputs=tuple(_Input(str(x.dtype).removeprefix("torch."), tuple(x.shape)) for x in example),
    )
    with _known_warnings(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        options = {
            # Weights are constants: batch norms go into convolutions, which get them in oneDNN's
            # own layout, so that none is turned into it again and again.
            "freezing": True,
            # Or the number of threads of this machine were compiled in.
            "cpp.dynamic_threads": True,
            "cpp.march": _BASELINES.get(platform.machine()),
            "aot_inductor.package": True,
            "aot_inductor.output_path": folder,  # torch's cache would keep every slice
            "aot_inductor.metadata": {_METADATA: msgspec.json.encode(made).decode()},
        }
        try:
            program = torch.export.export(
                module.eval(),
                # A batch of one would be taken for a constant.
                tuple(torch.cat([x, x]) for x in example) if dynamic_batch else example,
                dynamic_shapes=tuple({0: batch} for _ in example) if dynamic_batch else None,
            )
            flat_module = program.module(check_guards=False)
            files = aot_compile(flat_module, *program.example_inputs, options=options)
        except Exception as error:  # whatever the compilers in between raise
            raise PrepareError(
                f"AOTInductor cannot compile this network: {(str(error).splitlines() or [''])[0]}"
            ) from error
        assert isinstance(files, list)  # of the paths of what is packaged
        package_aoti(str(path), files)


def _processor() -> tuple[str, ...]:
    """What this machine's processor has of what packages need."""
    found = get_capabilities()
    kind = (f"{name} {found[name]}" for name in ("architecture", "sve_max_length") if name in found)
    return (*kind, *(name for name in _VECTORS if found.get(name)))


def _made(path: Path, package: zipfile.ZipFile) -> _Made:
    metadata = next((n for n in package.namelist() if n.endswith("wrapper_metadata.json")), None)
    told = {} if metadata is None else msgspec.json.decode(package.read(metadata))
    if _METADATA not in told:
        raise RuntimeUnavailableError(
            f"{path.name} was not written by this project, so what it needs is not known"
        )
    return msgspec.json.decode(told[_METADATA], type=_Made)


@contextmanager
def _known_warnings() -> Iterator[None]:
    """Silence what torch's compiler says of torch's own code, and nothing else."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore",
            message=r"`torch\.jit\.script_method` is deprecated\. Please switch to",
            category=DeprecationWarning,
        )
        warnings.filterwarnings(
            "ignore",
            message=r"`isinstance\(treespec, LeafSpec\)` is deprecated, use",
            category=FutureWarning,
        )
        yield
