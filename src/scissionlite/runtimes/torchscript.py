"""TorchScript slices, run by LibTorch."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.utils.fusion import fuse_conv_bn_weights

from scissionlite.errors import RuntimeUnavailableError
from scissionlite.graph.analysis import flat
from scissionlite.runtimes import unshared
from scissionlite.runtimes.torch_threads import set_threads, take_threads

SUFFIX = ".pt"

SURVIVES_FORK = True


class TorchScriptSlice:
    """A frozen TorchScript module, called with and answering NumPy arrays.

    They are copied only where memory would be shared for longer than the call. An input may be a
    tensor, too: one that is on the module's processor already.
    """

    def __init__(self, module: torch.jit.ScriptModule, processor: str = "cpu") -> None:
        self._module = module
        self._processor = processor
        self._constant = _constant_outputs(module.graph)

    def __call__(
        self, *inputs: npt.NDArray[Any] | torch.Tensor
    ) -> tuple[npt.NDArray[np.float32], ...]:
        """Run the slice on arrays."""
        take_threads()
        # torch takes no array that it could not write to, or that runs backwards.
        arrays = [
            x if isinstance(x, torch.Tensor) else np.require(x, requirements=["C", "W"])
            for x in inputs
        ]
        tensors = [x if isinstance(x, torch.Tensor) else torch.from_numpy(x) for x in arrays]
        with torch.inference_mode():
            answers = flat(self._module(*(x.to(self._processor) for x in tensors)))
        outputs = [tensor.contiguous().cpu().numpy() for tensor in answers]
        for i in self._constant:
            outputs[i] = outputs[i].copy()
        return unshared(outputs, [x for x in arrays if isinstance(x, np.ndarray)])


def _constant_outputs(graph: torch.Graph) -> list[int]:
    """The positions of the outputs that are the module's own constants."""
    outputs = list(graph.outputs())
    if outputs[0].node().kind() == "prim::TupleConstruct":
        outputs = list(outputs[0].node().inputs())
    kinds = ("prim::Constant", "prim::GetAttr")
    return [i for i, value in enumerate(outputs) if value.node().kind() in kinds]


def load(path: Path, threads: int | None = None, processor: str = "cpu") -> TorchScriptSlice:
    """Load a slice that :func:`export` wrote; ``threads`` is torch's own, so process-wide.

    Raises
    ------
    RuntimeUnavailableError
        If the processor is "cuda" and there is none that this torch can use.
    """
    if processor == "cuda" and not torch.cuda.is_available():
        built = "has no CUDA" if torch.version.cuda is None else f"is for CUDA {torch.version.cuda}"
        raise RuntimeUnavailableError(
            f"no GPU can be used: torch {torch.__version__} here {built}; use --processor cpu, or "
            "install a torch with CUDA and its driver"
        )
    set_threads(threads)
    with _known_deprecation():
        module = torch.jit.load(str(path), map_location=processor)
        if processor == "cpu" and _suits_onednn(module.graph):
            module = torch.jit.optimize_for_inference(module)
    return TorchScriptSlice(module, processor)


def _suits_onednn(graph: torch.Graph) -> bool:
    """Whether a module is faster with its weights and features in oneDNN's own memory layout.

    ``torch.jit.optimize_for_inference`` makes that of it, and the result cannot be saved: oneDNN's
    tensors have no serial form. bench/load_options.py has figures: slices of the operations below
    are 1.2 to 1.5 times faster on x86-64, and the first convolution alone up to 4 times. Others
    leave the layout and come back to it, which made some of them 1.4 times slower, and adaptive
    pooling fails for some sizes.
    """
    kinds = {node.kind() for node in graph.nodes()}
    known = platform.machine() == "x86_64" and kinds <= _ONEDNN | _CONSTANT
    return known and "aten::_convolution" in kinds


_ONEDNN = {
    *("aten::_convolution", "aten::batch_norm", "aten::relu", "aten::hardtanh"),
    *("aten::add", "aten::cat", "aten::max_pool2d"),
}

_CONSTANT = {"prim::Constant", "prim::ListConstruct", "prim::TupleConstruct"}


def compile_module(
    module: torch.nn.Module, example: tuple[torch.Tensor, ...]
) -> torch.jit.ScriptModule:
    """Trace and freeze a module, into the form that :func:`export` saves."""
    with _known_deprecation(), torch.no_grad():
        traced = torch.jit.trace(module.eval(), example, check_trace=False)
        frozen: torch.jit.ScriptModule = torch.jit.freeze(traced)
        _fold_into_transposed(frozen.graph)
        return frozen


def _fold_into_transposed(graph: torch.Graph) -> None:
    """Fold batch norms into the transposed convolutions before them; freezing does not do it."""
    for norm in [node for node in graph.nodes() if node.kind() == "aten::batch_norm"]:
        convolved = next(iter(norm.inputs()))
        convolution = convolved.node()
        if convolution.kind() != "aten::_convolution" or len(convolved.uses()) > 1:
            continue
        _, weight, bias, _, _, _, transposed, *_ = _constants(convolution)
        _, scale, shift, mean, variance, _, _, epsilon, _ = _constants(norm)
        # With groups, fuse_conv_bn_weights would scale the wrong channels.
        if not transposed or mean is None or weight.shape[1] != len(mean):
            continue
        folded = fuse_conv_bn_weights(
            weight, bias, mean, variance, epsilon, scale, shift, transpose=True
        )
        graph.setInsertPoint(convolution)
        for position, value in enumerate(folded, start=1):
            constant = graph.insertConstant(value.detach())  # type: ignore[attr-defined]  # no stub
            convolution.replaceInput(position, constant)
        norm.output().replaceAllUsesWith(convolved)
        norm.destroy()


def _constants(node: torch.Node) -> list[Any]:
    """The inputs of a frozen node; None for an input that is not constant."""
    return [value.toIValue() for value in node.inputs()]


def check_export() -> None:
    """Check that slices can be written here; torch, which loads them, also writes them."""


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
    # Given a path, torch ends the process where the disk is full.
    with path.open("wb") as file, _known_deprecation():
        torch.jit.save(compiled, file)


@contextmanager
def _known_deprecation() -> Iterator[None]:
    """Silence torch's warning that TorchScript is deprecated, and no other warning.

    A user of this runtime can do nothing about it; the other runtimes are the alternative.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore",
            message=r"`torch\.jit\.(trace|trace_method|freeze|optimize_for_inference|save|load)` "
            r"is (deprecated\. Please|not supported in Python 3\.14)",
            category=DeprecationWarning,
        )
        yield
