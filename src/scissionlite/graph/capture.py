"""Capture: from an ordinary PyTorch model to a :class:`scissionlite.Graph`."""

from __future__ import annotations

import copy
import inspect
import operator
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import fx, nn

from scissionlite.errors import CaptureError
from scissionlite.graph.analysis import flat, placeholders
from scissionlite.graph.graph import Graph
from scissionlite.graph.tensors import OutputKind

Example: TypeAlias = torch.Tensor | Sequence[Any] | Mapping[str, Any]
"""One tensor, a sequence of positional arguments, or keyword arguments by name."""

_TORCH_FOLDER = str(Path(torch.__file__).parent)


def capture(
    model: nn.Module, example: Example, *, name: str | None = None, max_tensors: int = 1
) -> Graph:
    """Capture a model and find its blocks and slicing points.

    Symbolic tracing (torch.fx) comes first: it keeps the modules, so that the network trains as
    before. If it fails, torch.export follows: it also takes control flow that depends on shapes.

    Parameters
    ----------
    model
        Any module whose inputs and outputs are tensors, alone or in tuples, lists and dicts. A copy
        is captured, in evaluation mode; the model itself is not changed.
    example
        An input, batch first; for several inputs a tuple of arguments, or a dict of arguments by
        name. Shapes and bytes in the graph are those of this input. Its height and width are fixed.
    name
        Name of the model; the name of its class by default.
    max_tensors
        Most tensors that may cross at a slicing point. 1 gives the paper's slicing points; U-Net's
        skips and a detector's neck need more.

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
    name = name or type(model).__name__
    own = copy.deepcopy(model).eval()
    bound = _bind(own, example)
    for module in own.modules():
        # A slice must not write into its input, which may be a socket's buffer.
        if isinstance(getattr(module, "inplace", None), bool):
            module.inplace = False  # type: ignore[assignment]  # nn.Module types attributes as Tensor
    inputs = dict(named_leaves(bound.arguments))
    try:
        with torch.no_grad():
            answer = own(*bound.args, **bound.kwargs)
    except Exception as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs.values())
        raise CaptureError(
            f"{name} does not run on the example of shape {shapes}.\n  {_first_line(error)}\n    "
            f"at {_user_line(error)}"
        ) from error
    outputs, kind = _outputs(name, answer)
    failures: list[str] = []
    for how, trace in (("torch.fx", _trace_symbolically), ("torch.export", _trace_by_export)):
        try:
            traced = trace(own, bound)
            graph = Graph(
                name,
                traced,
                tuple(inputs.values()),
                input_names=tuple(inputs),
                output_names=tuple(outputs),
                output_kind=kind,
                max_tensors=max_tensors,
            )
            with torch.no_grad():
                answers = flat(graph.module(*graph.example))
        except Exception as error:
            failures.append(f"{how}: {_first_line(error)}\n    at {_user_line(error)}")
            continue
        if _equal(answers, list(outputs.values())):
            return graph
        failures.append(
            f"{how}: the captured graph answers something else than the model; does it draw "
            "random numbers, or keep state between calls?"
        )
    raise CaptureError(
        f"{name} cannot be captured.\n  " + "\n  ".join(failures) + "\n  Control flow must not "
        "depend on the values of tensors: move it out of forward(), or use torch.where"
    )


def named_leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values in nested dicts, tuples and lists, each with its dotted path; None is skipped."""
    parts: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, (tuple, list)):
        parts = zip(getattr(value, "_fields", range(len(value))), value, strict=True)
    else:
        if value is not None:
            yield name, value
        return
    for key, part in parts:
        yield from named_leaves(part, f"{name}.{key}" if name else str(key))


def _bind(model: nn.Module, example: Example) -> inspect.BoundArguments:
    """The model's arguments by name, in the order of its signature."""
    signature = inspect.signature(model.forward)
    if isinstance(example, Mapping) and set(example) <= set(signature.parameters):
        arguments, named = (), dict(example)
    else:
        # A dict of other names is one argument that is a dict.
        arguments = tuple(example) if isinstance(example, (tuple, list)) else (example,)
        named = {}
    try:
        bound = signature.bind(*arguments, **named)
    except TypeError as error:
        raise CaptureError(
            f"the example does not fit {type(model).__name__}.forward{signature}: {error}; give "
            "one tensor, a tuple of arguments, or a dict of arguments by name"
        ) from error
    leaves = dict(named_leaves(bound.arguments))
    for leaf, value in leaves.items():
        if not isinstance(value, torch.Tensor) or value.dtype not in (torch.float32, torch.int64):
            kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            raise CaptureError(
                f"the example's {leaf} is {kind}: an example is made of float32 (or int64) "
                "tensors, batch first"
            )
    if not leaves:
        raise CaptureError("the example holds no tensor")
    return bound


def _outputs(name: str, answer: Any) -> tuple[dict[str, torch.Tensor], OutputKind]:
    """The tensors of the model's answer by name, and how it holds them."""
    kind: OutputKind
    if isinstance(answer, torch.Tensor):
        found, kind = {"output": answer}, "tensor"
    else:
        found = dict(named_leaves(answer))
        nested = any(isinstance(part, (Mapping, tuple, list)) for part in _parts(answer))
        kind = "tuple" if isinstance(answer, (tuple, list)) and not nested else "dict"
    for path, value in found.items():
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
            what = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            raise CaptureError(
                f"{name} answers {what} in {path or 'its output'}: wrap the model so that it "
                "returns float32 tensors, alone or in tuples, lists and dicts"
            )
    if not found:
        raise CaptureError(f"{name} answers no tensor")
    return found, kind


def _parts(answer: Any) -> Iterable[Any]:
    return answer.values() if isinstance(answer, Mapping) else answer


def _equal(answers: Sequence[Any], expected: Sequence[torch.Tensor]) -> bool:
    return len(answers) == len(expected) and all(
        a.shape == e.shape and torch.allclose(a, e, rtol=1e-4, atol=1e-5, equal_nan=True)
        for a, e in zip(answers, expected, strict=True)
    )


class _Tracer(fx.Tracer):
    """Symbolic tracing that keeps modules with a training mode whole, subclasses included."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # timm's BatchNormAct2d and the like. Traced through in evaluation mode, their batch
        # statistics would be constants, and retraining would suffer.
        if isinstance(m, (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)):
            return True
        return super().is_leaf_module(m, module_qualified_name)


def _trace_symbolically(model: nn.Module, bound: inspect.BoundArguments) -> fx.GraphModule:
    graph = _Tracer().trace(model)
    for entry in placeholders(graph):
        _flatten_input(graph, entry, bound.arguments.get(str(entry.target).lstrip("*")))
    for node in list(graph.nodes):
        if node.op == "call_function" and node.kwargs.get("inplace") is True:
            node.kwargs = {**node.kwargs, "inplace": False}
        if node.op == "call_module" and isinstance(model.get_submodule(node.target), nn.Identity):
            # The same tensor under a second name is no second slicing point.
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        if node.op == "output":
            answers = [leaf for _, leaf in named_leaves(node.args[0])]
            node.args = (answers[0] if len(answers) == 1 else tuple(answers),)
    module = fx.GraphModule(model, graph)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _flatten_input(graph: fx.Graph, entry: fx.Node, value: Any) -> None:
    """Replace an input that is a dict or tuple by one input per tensor; drop an unused one."""
    if isinstance(value, torch.Tensor):
        return
    if value is None:
        # An optional input (a mask, a flag) that is not used. One that is used is left to
        # torch.export, which takes its default as a constant.
        if entry.users:
            raise CaptureError(f"the optional input {entry.target!r} is used")
        graph.erase_node(entry)
        return
    parts = value if isinstance(value, Mapping) else dict(enumerate(value))
    uses: dict[Any, list[fx.Node]] = {key: [] for key in parts}
    for user in list(entry.users):
        key = (
            user.args[1] if user.target is operator.getitem and user.op == "call_function" else None
        )
        if user.args[:1] != (entry,) or key not in uses:
            raise CaptureError(f"the input {entry.target!r} is used as a whole by {user}")
        uses[key].append(user)
    with graph.inserting_before(entry):
        for key, part in parts.items():
            if part is None:
                raise CaptureError(f"the input {entry.target!r} holds None")
            flattened = graph.placeholder(f"{entry.target}_{key}")
            for user in uses[key]:
                user.replace_all_uses_with(flattened)
                graph.erase_node(user)
            _flatten_input(graph, flattened, part)
    graph.erase_node(entry)


def _trace_by_export(model: nn.Module, bound: inspect.BoundArguments) -> fx.GraphModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = next(leaf for _, leaf in named_leaves(bound.arguments))
        batch = len(first) if first.ndim else 0

        def doubled(tensor: torch.Tensor) -> torch.Tensor:
            # A batch of two, since export takes a size of one for a constant.
            batched = tensor.ndim and len(tensor) == batch == 1
            return torch.cat([tensor, tensor]) if batched else tensor

        def dynamic(tensor: torch.Tensor) -> Any:
            batched = tensor.ndim and len(tensor) == batch
            return {0: torch.export.Dim.AUTO} if batched else None

        try:
            program = torch.export.export(
                model,
                _mapped(bound.args, doubled),
                _mapped(bound.kwargs, doubled),
                dynamic_shapes=_mapped(dict(bound.arguments), dynamic),
            )
        except Exception:
            program = torch.export.export(model, bound.args, bound.kwargs)
        traced = program.module(check_guards=False)
    return ordinary_module(traced)


def _mapped(value: Any, function: Any) -> Any:
    """The same nested dicts, tuples and lists with every tensor replaced."""
    if isinstance(value, Mapping):
        return {key: _mapped(part, function) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(part, function) for part in value)
    return None if value is None else function(value)


def ordinary_module(exported: nn.Module) -> fx.GraphModule:
    """An exported program's module as an ordinary one, which can be copied and has train().

    It takes the program's input tensors one by one, and answers one tensor or a tuple of them.

    Raises
    ------
    CaptureError
        If it answers no tensor.
    """
    assert isinstance(exported, fx.GraphModule)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in exported.graph.nodes:
        if node.op != "output":
            copies[node] = graph.node_copy(node, copies.__getitem__)
            continue
        answers = [copies[leaf] for _, leaf in named_leaves(node.args[0]) if leaf in copies]
        if not answers:
            raise CaptureError("the exported program answers no tensor")
        graph.output(answers[0] if len(answers) == 1 else tuple(answers))
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
