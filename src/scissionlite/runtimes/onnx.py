"""ONNX slices, run by ONNX Runtime: no torch on the device."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnxruntime

if TYPE_CHECKING:
    import torch

SUFFIX = ".onnx"


class OnnxSlice:
    """An ONNX Runtime session on the CPU."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._input = session.get_inputs()[0].name

    def __call__(self, x: npt.NDArray[np.float32], /) -> npt.NDArray[np.float32]:
        """Run the slice on a float32 array."""
        answer: npt.NDArray[np.float32] = self._session.run(None, {self._input: x})[0]
        return answer


def load(path: Path, threads: int | None = None) -> OnnxSlice:
    """Load a slice that :func:`export` wrote; ``threads`` are this session's own."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3  # errors come as exceptions
    return OnnxSlice(
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    )


def export(module: torch.nn.Module, example: torch.Tensor, path: Path) -> None:
    """Write a module as an ONNX file with its weights inside."""
    import onnxscript  # noqa: F401 - named first when missing, rather than torch's own message
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's notes on its own internals
        program = torch.onnx.export(module.eval(), (example,), dynamo=True, verbose=False)
    assert program is not None
    program.optimize()
    program.save(str(path), external_data=False)
