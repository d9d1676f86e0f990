"""AOTInductor slices: machine code that is compiled beforehand and run by LibTorch.

AOTInductor is the successor of TorchScript. A package (``.pt2``) is a zip file with a shared
library, so a slice is a program. It is loaded only after its digest was checked, like every slice.
Trust a bundle as you trust a program.

A package belongs to the kind of processor on which it was compiled. The weights of its convolutions
are laid out for the widest vectors of that processor. Without these vectors another processor
would be many times slower, or would stop at an unknown instruction. So :func:`load` refuses a
package that needs more than this processor has. Prepare a bundle on a machine like the one that
runs it, or for a second runtime as well.
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

from scissionlite.errors import PrepareError, RuntimeUnavailableError, first_line
from scissionlite.runtimes import unshared
from scissionlite.runtimes.torch_threads import set_threads, take_threads

SUFFIX = ".pt2"

SURVIVES_FORK = False
"""A run under way in another thread would occupy the only copy of the model in the child."""

_METADATA = "scissionlite"  # this project's key in the package's metadata

# The instruction set of the compiled code, beside the vector instructions that Inductor requests
# by name. By default it is everything that this processor has (-march=native), and the package
# does not record which instructions that are.
_BASELINES = {"x86_64": "x86-64", "aarch64": "armv8-a"}

# The vector instructions that Inductor requests, and those by which oneDNN chooses the layout of
# weights; the names are torch's.
_VECTORS = (
    *("avx2", "fma3", "f16c", "avx512_f", "avx512_bw", "avx512_dq", "avx512_vl", "avx512_vnni"),
    *("amx_tile", "amx_bf16", "amx_int8", "amx_fp16", "neon", "sve", "sve2", "bf16"),
)


class _Input(msgspec.Struct, frozen=True):
    """An input for which a package was compiled."""

    dtype: str
    shape: tuple[int, ...]


class _Description(msgspec.Struct, frozen=True):
    """A package's description in its metadata: how it was compiled, and for which inputs."""

    torch: str
    processor: tuple[str, ...]
    dynamic_batch: bool
    inputs: tuple[_Input, ...]


class AOTInductorSlice:
    """A compiled slice, called with and answering NumPy arrays."""

    def __init__(self, runner: AOTIModelContainerRunnerCpu, description: _Description) -> None:
        self._runner = runner
        self._description = description

    def __call__(self, *inputs: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], ...]:
        """Run the slice on arrays.

        Raises
        ------
        ValueError
            If they have other shapes or dtypes than it was compiled for.
        """
        self._check(inputs)
        take_threads()
        arrays = [np.require(x, requirements=["C", "W"]) for x in inputs]
        with torch.inference_mode():
            answers = self._runner.run([torch.from_numpy(x) for x in arrays])
        return unshared([tensor.contiguous().numpy() for tensor in answers], arrays)

    def _check(self, inputs: tuple[npt.NDArray[Any], ...]) -> None:
        """Check dtypes and shapes: compiled code does not, and would read out of bounds."""
        fixed = 1 if self._description.dynamic_batch else 0
        batch = inputs[0].shape[:fixed] if inputs else ()
        actual = [(x.dtype.name, x.shape) for x in inputs]
        expected = [(x.dtype, (*batch, *x.shape[fixed:])) for x in self._description.inputs]
        if actual != expected:
            raise ValueError(f"the slice was compiled for {expected}, and was called with {actual}")


def load(path: Path, threads: int | None = None) -> AOTInductorSlice:
    """Load a slice that :func:`export` wrote; ``threads`` is torch's own, so process-wide.

    Raises
    ------
    RuntimeUnavailableError
        If it was compiled for another processor or another torch, or needs a library that is
        missing.
    """
    set_threads(threads)
    # torch's own loader needs a C++ compiler, and leaves the unpacked files until the process ends
    # normally. Once the library is loaded, its file is no longer needed.
    with zipfile.ZipFile(path) as package, tempfile.TemporaryDirectory() as folder:
        description = _read_description(package)
        missing = sorted(set(description.processor) - set(_processor()))
        if missing:
            raise RuntimeUnavailableError(
                f"the slice was compiled for a processor with {', '.join(missing)}, which this "
                "one lacks: prepare the bundle on a machine like this one, or with a second runtime"
            )
        library = next(name for name in package.namelist() if name.endswith(".so"))
        try:
            runner = AOTIModelContainerRunnerCpu(package.extract(library, folder), 1)
        except RuntimeError as error:
            raise RuntimeUnavailableError(
                f"the slice was compiled with torch {description.torch} and cannot be loaded by "
                f"torch {torch.__version__}: {first_line(error)}"
            ) from error
    return AOTInductorSlice(runner, description)


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

    It takes 10 to 30 seconds, and the first time on a machine a minute: LibTorch's compiled headers
    then stay in torch's cache (``TORCHINDUCTOR_CACHE_DIR``).

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
    description = _Description(
        torch=str(torch.__version__),
        processor=_processor(),
        dynamic_batch=dynamic_batch,
        inputs=tuple(_Input(str(x.dtype).removeprefix("torch."), tuple(x.shape)) for x in example),
    )
    with _known_warnings(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        options = {
            # Weights are constants: batch norms are folded into convolutions, and the weights are
            # stored in oneDNN's layout, so that no inference converts them.
            "freezing": True,
            # Otherwise this machine's number of threads is compiled in.
            "cpp.dynamic_threads": True,
            "cpp.march": _BASELINES.get(platform.machine()),
            "aot_inductor.package": True,
            "aot_inductor.output_path": folder,  # torch's cache would keep every slice
            "aot_inductor.metadata": {_METADATA: msgspec.json.encode(description).decode()},
        }
        try:
            program = torch.export.export(
                module.eval(),
                # Export takes a batch of one as a constant.
                tuple(torch.cat([x, x]) for x in example) if dynamic_batch else example,
                dynamic_shapes=tuple({0: batch} for _ in example) if dynamic_batch else None,
            )
            flat_module = program.module(check_guards=False)
            files = aot_compile(flat_module, *program.example_inputs, options=options)
        except Exception as error:  # the compilers raise errors of many kinds
            raise PrepareError(
                f"AOTInductor cannot compile this network: {first_line(error)}"
            ) from error
        assert isinstance(files, list)  # of the paths of what is packaged
        package_aoti(str(path), files)


def _processor() -> tuple[str, ...]:
    """The vector instructions of this machine's processor that packages may need."""
    found = get_capabilities()
    kind = (f"{name} {found[name]}" for name in ("architecture", "sve_max_length") if name in found)
    return (*kind, *(name for name in _VECTORS if found.get(name)))


def _read_description(package: zipfile.ZipFile) -> _Description:
    metadata = next((n for n in package.namelist() if n.endswith("wrapper_metadata.json")), None)
    entries = {} if metadata is None else msgspec.json.decode(package.read(metadata))
    if _METADATA not in entries:
        raise RuntimeUnavailableError(
            "the slice was not written by this project: it does not say which processor it needs"
        )
    return msgspec.json.decode(entries[_METADATA], type=_Description)


@contextmanager
def _known_warnings() -> Iterator[None]:
    """Silence two warnings that torch's compiler raises about torch's own code."""
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
