"""Capture: from an ordinary PyTorch model to a :class:`scissionlite.Graph`."""

from __future__ import annotations

import copy
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import fx, nn

from scissionlite.errors import CaptureError
from scissionlite.graph import Graph, placeholders

_TORCH_FOLDER = str(Path(torch.__file__).parent)


def capture(model: nn.Module, example: torch.Tensor, *, name: str | None = None) -> Graph:
    """Capture a model and find its blocks and slicing points.

    Tries symbolic tracing (torch.fx) first, which keeps the modules and so a network that trains
    as before, then torch.export, which also takes control flow that depends on shapes.

    Parameters
    ----------
    model
        Any module of one input tensor and one output tensor. It is copied, not changed; the copy
        is captured as it behaves in evaluation mode.
    example
        An input, batch first. Shapes and bytes in the graph are those of this input.
    name
        What to call it; the class name unless given.

    Raises
    ------
    CaptureError
        If neither way captures the model, or the captured graph computes something else; the
        message names the line of the model's code that prevents it.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(
            f"a {type(model).__name__} cannot be captured: give an ordinary torch.nn.Module "
            "(TorchScript modules no longer have the Python code that is traced)"
        )
    if not isinstance(example, torch.Tensor) or example.dtype != torch.float32:
        raise CaptureError("the example must be one float32 tensor, batch first")
    name = name or type(model).__name__
    own = copy.deepcopy(model).eval()
    for module in own.modules():
        # A slice must not write into the tensor it is given, which may be a socket's buffer.
        if isinstance(getattr(module, "inplace", None), bool):
            module.inplace = False  # type: ignore[assignment]  # nn.Module types attributes as Tensor
    try:
        with torch.no_grad():
            expected = own(example)
    except Exception as error:
        raise CaptureError(
            f"{name} does not run on the example of shape {tuple(example.shape)}; this version "
            f"slices models of one input tensor.\n  {_first_line(error)}\n    at "
            f"{_user_line(error)}"
        ) from error
    failures: list[str] = []
    for how, trace in (("torch.fx", _trace_symbolically), ("torch.export", _trace_by_export)):
        try:
            traced = trace(own, example)
            graph = Graph(name, traced, example)
        except Exception as error:
            failures.append(f"{how}: {_first_line(error)}\n    at {_user_line(error)}")
            continue
        with torch.no_grad():
            if torch.allclose(traced(example), expected, rtol=1e-4, atol=1e-5, equal_nan=True):
                return graph
        failures.append(
            f"{how}: the captured graph answers something else than the model; does it draw "
            "random numbers, or keep state between calls?"
        )
    raise CaptureError(
        f"{name} cannot be captured.\n  " + "\n  ".join(failures) + "\n  Control flow must not "
        "depend on the values of tensors: move it out of forward(), or use torch.where"
    )


class _Tracer(fx.Tracer):
    """Symbolic tracing that keeps modules with a training mode whole, subclasses included."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # timm's BatchNormAct2d and the like: traced through in evaluation mode, their batch
        # statistics would be frozen for ever and retraining would suffer.
        if isinstance(m, (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)):
            return True
        return super().is_leaf_module(m, module_qualified_name)


def _trace_symbolically(model: nn.Module, example: torch.Tensor) -> fx.GraphModule:
    tracer = _Tracer()
    graph = tracer.trace(model)
    for extra in placeholders(graph)[1:]:
        # Optional inputs (a mask, a flag) that are never looked at; with others torch.export,
        # which takes their defaults for constants, is the way.
        if extra.users:
            raise CaptureError(f"the optional input {extra.target!r} is used")
        graph.erase_node(extra)
    for node in list(graph.nodes):
        if node.op == "call_function" and node.kwargs.get("inplace") is True:
            node.kwargs = {**node.kwargs, "inplace": False}
        if node.op == "call_module" and isinstance(model.get_submodule(node.target), nn.Identity):
            # The same tensor under a second name is no second slicing point.
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    module = fx.GraphModule(model, graph)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _trace_by_export(model: nn.Module, example: torch.Tensor) -> fx.GraphModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # A batch of two, since export takes a size of one for a constant.
        batch = example if len(example) > 1 else torch.cat([example, example])
        dynamic = ({0: torch.export.Dim.AUTO},)
        try:
            program = torch.export.export(model, (batch,), dynamic_shapes=dynamic)
        except Exception:
            program = torch.export.export(model, (example,))
        traced = program.module(check_guards=False)
    return ordinary_module(traced)


def ordinary_module(exported: nn.Module) -> fx.GraphModule:
    """An exported program's module as an ordinary one, which can be copied and has train().

    Raises
    ------
    CaptureError
        If it takes or answers anything but one tensor.
    """
    assert isinstance(exported, fx.GraphModule)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in exported.graph.nodes:
        if node.op != "output":
            copies[node] = graph.node_copy(node, copies.__getitem__)
        elif len(node.all_input_nodes) == 1 and len(placeholders(exported.graph)) == 1:
            # Without the tuple that torch.export puts round it, and unpacks in generated code.
            graph.output(copies[node.all_input_nodes[0]])
        else:
            raise CaptureError(
                f"the exported program has {len(placeholders(exported.graph))} inputs and "
                f"{len(node.all_input_nodes)} outputs: this version slices models with one output "
                "tensor and one input tensor"
            )
    module = fx.GraphModule(dict(_attributes(exported, graph)), graph)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _attributes(root: nn.Module, graph: fx.Graph) -> Iterator[tuple[str, object]]:
    """Name and value of every weight, buffer and module that a graph refers to."""
    for node in graph.nodes:
        if node.op in ("get_attr", "call_module"):
            value: object = root
            for part in str(node.target).split("."):
                value = getattr(value, part)
            yield str(node.target), value


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _user_line(error: BaseException) -> str:
    """The innermost line of the traceback that is the model's own code."""
    frames: Sequence[traceback.FrameSummary] = traceback.extract_tb(error.__traceback__)
    own: Iterable[traceback.FrameSummary] = (
        frame
        for frame in reversed(frames)
        if not frame.filename.startswith((_TORCH_FOLDER, "<")) and frame.filename != __file__
    )
    for frame in own:
        return f"{frame.filename}:{frame.lineno}, in {frame.name}: {frame.line}"
    return "an unknown line"
