"""ONNX slices, run by ONNX Runtime: no torch on the device.

ONNX Runtime does not survive a fork. Its threads are not in the child, and what waits for them
there waits for ever: the end of a session, and the end of the process, which waits for a thread
that the import itself starts. So a forked child frees no session of its parent, and leaves out
ONNX Runtime's own work at exit.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import logging
import os
import platform
import warnings
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

# Wheels of ONNX Runtime (1.32 is one) send events to Microsoft, and keep an identifier of the
# machine in its user's cache, unless this is set before the import. Who wants that sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

from scissionlite.errors import PrepareError, RuntimeUnavailableError
from scissionlite.runtimes import unshared

if TYPE_CHECKING:
    import torch

SUFFIX = ".onnx"

SURVIVES_FORK = False


class OnnxSlice:
    """An ONNX Runtime session on the CPU."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        _SESSIONS.add(session)
        # An unused input is not in the file, so the position is read from the name: x0, x1, ...
        self._inputs = [(node.name, int(node.name[1:])) for node in session.get_inputs()]

    def __call__(self, *inputs: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], ...]:
        """Run the slice on arrays."""
        feed = {name: inputs[position] for name, position in self._inputs}
        return unshared(self._session.run(None, feed), inputs)


def load(path: Path, threads: int | None = None, *, literal: bool = False) -> OnnxSlice:
    """Load a slice that :func:`export` wrote, or :mod:`.onnx_int8`.

    Parameters
    ----------
    path
        The slice's file.
    threads
        This session's own threads; None is ONNX Runtime's default.
    literal
        Run the file's operations as they stand, for a comparison: int8 ones in float32, between
        the rounding that the file describes. It is many times slower.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3  # errors come as exceptions
    if literal:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if _int8_saturates():
        # Products of uint8 feature maps and uint8 weights are slower, and right. float32 slices
        # have none.
        options.add_session_config_entry("session.x64quantprecision", "1")
    return OnnxSlice(
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    )


@functools.cache
def _int8_saturates() -> bool:
    """Whether ONNX Runtime's products of uint8 and int8 are wrong where they are large.

    On x86-64 without VNNI it adds pairs of them in 16 bits (``VPMADDUBSW``), which hold 128 * 255
    and not 254 * 255. Kernels of other processors add in 32 bits.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        with Path("/proc/cpuinfo").open() as lines:
            flags = next((line for line in lines if line.startswith("flags")), "").split()
    except OSError:
        return True
    return not {"avx512_vnni", "avx_vnni"} & set(flags)


_SESSIONS: weakref.WeakSet[onnxruntime.InferenceSession] = weakref.WeakSet()


def _after_fork() -> None:
    """Keep a forked child from waiting for threads that are not there; see the top."""
    for session in list(_SESSIONS):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # glibc's; what is registered last is called first
        libc.on_exit(libc._exit, None)


os.register_at_fork(after_in_child=_after_fork)


def check_export() -> None:
    """Check that slices can be written here.

    Raises
    ------
    RuntimeUnavailableError
        If the packages that write ONNX files are not installed.
    """
    for package in ("torch", "onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise RuntimeUnavailableError(
                f"writing onnx slices needs {package}, which is not installed: "
                "pip install 'scissionlite[torch,onnx-export]'"
            )


def export(
    module: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    path: Path,
    *,
    dynamic_batch: bool = False,
) -> None:
    """Write a module as an ONNX file with its weights inside; inputs are named x0, x1, ...

    Batch norms are folded into the convolutions before them.

    Raises
    ------
    RuntimeUnavailableError
        If the packages that write ONNX files are not installed.
    PrepareError
        If ONNX cannot take the module.
    """
    check_export()
    import torch

    from scissionlite.errors import first_line

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's notes on its own internals
        try:
            program = torch.onnx.export(
                module.eval(),
                # Export takes a batch of one as a constant.
                tuple(torch.cat([x, x]) for x in example) if dynamic_batch else example,
                dynamo=True,
                verbose=False,
                input_names=[f"x{i}" for i in range(len(example))],
                dynamic_shapes=tuple({0: "batch"} for _ in example) if dynamic_batch else None,
            )
        except Exception as error:  # the exporter raises errors of many kinds
            raise PrepareError(
                f"ONNX cannot take this network{' for any batch size' * dynamic_batch}: "
                f"{first_line(error.__cause__ or error)}"
            ) from error
    assert program is not None
    program.optimize()
    program.save(str(path), external_data=False)
