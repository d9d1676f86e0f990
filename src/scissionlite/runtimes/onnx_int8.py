"""int8 slices: static quantization of ONNX files, in the form that ONNX Runtime calls QDQ.

Weights become int8, symmetric, with a scale for each output channel. Feature maps become uint8,
with a scale and a zero point for each tensor, from the range that they have on calibration inputs.
Inputs and outputs of the file stay float32.

uint8 with int8 is the pair for which ONNX Runtime has kernels for symmetric weights both on x86-64
(``VPDPBUSD``) and on ARMv8. int8 with int8 was 1.0 to 1.6 times slower on x86-64 with VNNI.
On x86-64 without VNNI it needs a session option (:mod:`.onnx`), so that sums do not saturate.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scissionlite.errors import PrepareError, RuntimeUnavailableError

if TYPE_CHECKING:
    import onnx
    import torch

_CHANNEL_ALIGNMENT = 4
"""Input channels of a convolution are multiples of this in ONNX Runtime's fast kernels."""

_QUANTIZED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operations that int8 makes faster: one of them has to be there."""


def check_quantize() -> None:
    """Check that slices can be quantized here.

    Raises
    ------
    RuntimeUnavailableError
        If a package that it needs is not installed.
    """
    for package in ("torch", "onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise RuntimeUnavailableError(
                f"int8 slices need {package}, which is not installed: "
                "pip install 'scissionlite[torch,onnx,onnx-export]'"
            )


def export_int8(
    module: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    path: Path,
    calibration: Iterable[tuple[npt.NDArray[Any], ...]],
    *,
    dynamic_batch: bool = False,
) -> None:
    """Write a module as an int8 ONNX file; parameters and errors as :func:`quantize` too.

    Parameters
    ----------
    module, example, path, dynamic_batch
        As :func:`.onnx.export`.
    calibration
        Inputs of the module.
    """
    from scissionlite.runtimes import onnx as float_onnx

    whole = path.with_name(f"{path.stem}-float32.onnx")
    try:
        float_onnx.export(module, example, whole, dynamic_batch=dynamic_batch)
        quantize(whole, path, calibration)
    finally:
        whole.unlink(missing_ok=True)


def quantize(
    source: Path, target: Path, calibration: Iterable[tuple[npt.NDArray[Any], ...]]
) -> None:
    """Quantize an ONNX file that :func:`.onnx.export` wrote.

    Parameters
    ----------
    source, target
        The float32 file, and the int8 file to write.
    calibration
        Inputs of the file, in its batch size. The range of every tensor is from its least to its
        greatest value on them.

    Raises
    ------
    PrepareError
        If there is nothing in it that int8 makes faster, a value is not finite, or ONNX Runtime
        cannot quantize it.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    model = onnx.load(source)
    if not any(node.op_type in _QUANTIZED for node in model.graph.node):
        raise PrepareError(
            "nothing in it would be faster in int8: there is neither a convolution nor a matrix "
            "product; cut later, or keep float32"
        )
    _align_channels(model)
    # What ONNX Runtime's own preparation would do is done: batch norms are folded, shapes known.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    try:
        quantize_static(
            model,
            str(target),
            _Reader([node.name for node in model.graph.input], calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    except PrepareError:
        raise
    except Exception as error:  # it raises errors of many kinds
        first = str(error).strip().split("\n")[0]
        raise PrepareError(f"ONNX Runtime cannot quantize it: {first or error!r}") from error


def append_float(device: Path, encoders: Path) -> None:
    """Run a float32 ONNX file on the outputs of an int8 one; ``device`` becomes both together."""
    import onnx
    from onnx.compose import add_prefix, merge_models

    first, second = onnx.load(device), add_prefix(onnx.load(encoders), "encoders/")
    outputs = [node.name for node in first.graph.output]
    entries = {node.name for node in second.graph.input}
    # An input that is not used is not in the file.
    pairs = [
        (name, entry) for i, name in enumerate(outputs) if (entry := f"encoders/x{i}") in entries
    ]
    second.ir_version = first.ir_version
    onnx.save(merge_models(first, second, io_map=pairs), device)


class _Reader:
    """Calibration inputs in the form that ``quantize_static`` reads: by name, one after another."""

    def __init__(
        self, names: list[str], calibration: Iterable[tuple[npt.NDArray[Any], ...]]
    ) -> None:
        self._names = names
        self._inputs: Iterator[tuple[npt.NDArray[Any], ...]] = iter(calibration)

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        """The next inputs; None behind the last."""
        inputs = next(self._inputs, None)
        if inputs is None:
            return None
        if any(not np.isfinite(x).all() for x in inputs):
            raise PrepareError("the calibration data hold NaN or infinities")
        return {name: inputs[int(name[1:])] for name in self._names}


def _align_channels(model: onnx.ModelProto) -> None:
    """Add channels of zeros to an image, for the convolutions that read it.

    With 3 channels ONNX Runtime takes a slow way through the first convolution, which sees the
    largest maps. On one thread of an AMD EPYC with VNNI, EfficientNet-Lite0's first three stages
    became 1.07 to 1.1 times faster with 4. Zero weights meet the zeros, so answers stay.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    images = {node.name for node in graph.input}
    weights = {each.name: each for each in graph.initializer}
    for node in list(graph.node):
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        reads_image = node.op_type == "Conv" and node.input[0] in images
        if not reads_image or groups != 1 or node.input[1] not in weights:
            continue
        weight = numpy_helper.to_array(weights[node.input[1]])
        missing = -weight.shape[1] % _CHANNEL_ALIGNMENT
        if not missing:
            continue
        name, rank = f"{node.name}/aligned", weight.ndim
        pads = np.zeros(2 * rank, np.int64)
        pads[rank + 1] = missing
        wider = np.pad(weight, [(0, 0), (0, missing), *[(0, 0)] * (rank - 2)])
        graph.initializer.extend(
            [
                numpy_helper.from_array(pads, f"{name}/pads"),
                numpy_helper.from_array(wider, f"{name}/weight"),
            ]
        )
        padding = helper.make_node("Pad", [node.input[0], f"{name}/pads"], [name], name)
        graph.node.insert(list(graph.node).index(node), padding)
        narrow, node.input[0], node.input[1] = node.input[1], name, f"{name}/weight"
        if not any(narrow in other.input for other in graph.node):
            graph.initializer.remove(weights[narrow])
