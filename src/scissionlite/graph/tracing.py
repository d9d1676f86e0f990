"""Tracing: a model's computation as one torch.fx graph, by torch.fx or by torch.export."""

from __future__ import annotations

import copy
import inspect
import io
import logging
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.utils._sympy.numbers import int_oo

from scissionlite.errors import CaptureError
from scissionlite.graph.analysis import placeholders
from scissionlite.graph.arguments import map_leaves, named_leaves
from scissionlite.graph.mutation import MutatingProxy, make_functional
from scissionlite.graph.user_code import line_being_run

_BOUND = re.compile(r"\S+\.size\(\)\[\d+\] [<>]= (\d+)$")
"""A condition of torch.export that bounds a size, as its range may do, too."""


class _Tracer(fx.Tracer):
    """Symbolic tracing that keeps modules with a training mode whole, subclasses included."""

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        # One line, for errors to name; record_stack_traces formats the whole stack of each node.
        node.stack_trace = line_being_run()
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return MutatingProxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # timm's BatchNormAct2d and the like. Traced through in evaluation mode, their batch
        # statistics would be constants, and retraining would suffer.
        if isinstance(m, (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)):
            return True
        return super().is_leaf_module(m, module_qualified_name)


def _trace_symbolically(
    model: nn.Module, bound: inspect.BoundArguments, inputs: Sequence[torch.Tensor]
) -> fx.GraphModule:
    # A copy, whose modules are made out of place. It has the same weights, since they are large.
    model = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    graph = _Tracer().trace(model)
    for entry in placeholders(graph):
        _flatten_input(graph, entry, bound.arguments.get(str(entry.target).lstrip("*")))
    for node in list(graph.nodes):
        if node.op == "call_module" and isinstance(model.get_submodule(node.target), nn.Identity):
            # The same tensor under a second name is no second slicing point.
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        if node.target in (torch.zeros, torch.ones, torch.empty) and len(node.args) > 1:
            # torch.jit.trace follows a batch size in a tuple; as an argument of its own, it becomes
            # a constant.
            node.args = (node.args,)
        if node.op == "output":
            answers = [leaf for _, leaf in named_leaves(node.args[0])]
            node.args = (answers[0] if len(answers) == 1 else tuple(answers),)
    module = fx.GraphModule(model, graph)
    make_functional(module, inputs)
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


def _trace_by_export(
    model: nn.Module,
    bound: inspect.BoundArguments,
    inputs: Sequence[torch.Tensor],
    *,
    dynamic_batch: bool = True,
) -> fx.GraphModule:
    # Without gradients, as the model is checked: some views may be written to only then.
    with warnings.catch_warnings(), _without_printed_graphs(), torch.no_grad():
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

        if dynamic_batch:
            program = torch.export.export(
                model,
                map_leaves(bound.args, doubled),
                map_leaves(bound.kwargs, doubled),
                dynamic_shapes=map_leaves(dict(bound.arguments), dynamic),
            )

            def runs_on(size: int) -> bool:
                return _runs(model, bound, batch, size)

            if conditions := _conditions(program, runs_on):
                raise CaptureError(
                    f"the computation depends on the batch size: it is another unless {conditions}"
                )
        else:
            program = torch.export.export(model, bound.args, bound.kwargs)
        return program_module(program)


@contextmanager
def _without_printed_graphs() -> Iterator[None]:
    """Leave out what torch.export logs and prints of a network that it refuses: its whole graph.

    The error that follows says what matters. With ``TORCH_LOGS`` the log is written as asked for.
    """
    log = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = log.level
    if level == logging.NOTSET:
        log.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        log.setLevel(level)


def _conditions(program: torch.export.ExportedProgram, runs_on: Callable[[int], bool]) -> str:
    """The conditions on sizes under which an exported program is the model; empty if none.

    A largest size is none if the model itself does not run on a larger one (``runs_on``): it may
    have a table of so many rows. Otherwise a branch is behind it.
    """
    ranges = program.range_constraints.values()
    sizes = (
        f"{bounds.lower} <= batch <= {bounds.upper}"
        for bounds in ranges
        # Export takes a size of 0 or 1 for a constant, and 2 as the least of others.
        if bounds.lower > 2 or (bounds.upper != int_oo and runs_on(int(bounds.upper) + 1))
    )
    # Without a public name: also conditions that are no bounds, such as "batch != 7".
    known = {f"{end}" for bounds in ranges for end in (bounds.lower, bounds.upper)}
    guards = getattr(program, "_guards_code", ())
    others = (code for code in guards if not ((bound := _BOUND.match(code)) and bound[1] in known))
    return ", ".join([*sizes, *others])


def _runs(model: nn.Module, bound: inspect.BoundArguments, batch: int, size: int) -> bool:
    """Whether a model runs on another batch size."""

    def resized(tensor: torch.Tensor) -> torch.Tensor:
        batched = tensor.ndim and len(tensor) == batch
        return tensor[:1].expand(size, *tensor.shape[1:]).clone() if batched else tensor.clone()

    try:
        with torch.no_grad():
            model(*map_leaves(bound.args, resized), **map_leaves(bound.kwargs, resized))
    except Exception:  # whatever a model raises on a batch that it was not made for
        return False
    return True


def program_module(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """An exported program as an ordinary module, which can be copied and has train().

    It takes the program's input tensors one by one, and answers one tensor or a tuple of them.
    In-place operations are made out of place; by torch's functionalization where that is needed,
    which takes several times as long as the export itself.

    Raises
    ------
    CaptureError
        If it answers no tensor, or the program changes its own state.
    """
    inputs = [leaf for _, leaf in named_leaves(program.example_inputs)]
    try:
        module = _flat_module(program)
        make_functional(module, inputs)
    except Exception:  # whatever the run on shapes raises, or CaptureError
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's notes on its own internals
            # Functionalization, and nothing else.
            module = _flat_module(program.run_decompositions({}), functional=True)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _flat_module(
    program: torch.export.ExportedProgram, *, functional: bool = False
) -> fx.GraphModule:
    exported = program.module(check_guards=False)
    assert isinstance(exported, fx.GraphModule)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in exported.graph.nodes:
        if node.target is torch.ops.aten.copy_.default and functional:
            # What an exported program wrote into its inputs, it writes back at its end.
            if node.args[0].op != "placeholder":
                raise CaptureError(f"the network changes its own state ({node.args[0]})")
            continue
        if node.op != "output":
            copies[node] = graph.node_copy(node, copies.__getitem__)
            if _has_size(node):
                _as_called_by_users(copies[node])
            continue
        answers = [copies[leaf] for _, leaf in named_leaves(node.args[0]) if leaf in copies]
        if not answers:
            raise CaptureError("the exported program answers no tensor")
        graph.output(answers[0] if len(answers) == 1 else tuple(answers))
    return fx.GraphModule(dict(_attributes(exported, graph)), graph)


def _has_size(node: fx.Node) -> bool:
    """Whether an exported operation reads a tensor's size, or takes one as an argument."""
    return isinstance(node.target, torch._ops.OpOverload) and any(
        isinstance(each.meta.get("val"), torch.SymInt) for each in (node, *node.all_input_nodes)
    )


def _as_called_by_users(node: fx.Node) -> None:
    """Turn an exported operation into the method or function of torch that a model would call.

    torch.jit.trace follows sizes through these. Of an operator of ``torch.ops`` it records the
    sizes of the example as constants, so that slices would answer for one batch size only.
    """
    assert isinstance(node.target, torch._ops.OpOverload)
    operation = node.target._schema.name.removeprefix("aten::").removeprefix("sym_")
    if operation == "_unsafe_view":  # functionalization's name for it, without one in Python
        operation = "reshape"
    if node.target is torch.ops.aten.slice.Tensor:
        tensor, dim, *bounds = node.args
        assert isinstance(dim, int)
        node.target = operator.getitem
        node.args = (tensor, (slice(None),) * dim + (slice(*bounds),))
    elif node.args and _is_tensor(node.args[0]) and hasattr(torch.Tensor, operation):
        node.op, node.target = "call_method", operation
    elif hasattr(torch, operation):
        node.target = getattr(torch, operation)


def _is_tensor(argument: object) -> bool:
    return isinstance(argument, fx.Node) and isinstance(argument.meta.get("val"), torch.Tensor)


def _attributes(root: nn.Module, graph: fx.Graph) -> Iterator[tuple[str, object]]:
    """Name and value of every weight, buffer and module that a graph refers to."""
    for node in graph.nodes:
        if node.op in ("get_attr", "call_module"):
            value: object = root
            for part in str(node.target).split("."):
                value = getattr(value, part)
            yield str(node.target), value


FIXED_BATCH = "torch.export for the example's batch size alone"
"""The tracer whose graphs hold for one batch size."""

TRACERS: dict[str, Callable[..., fx.GraphModule]] = {
    "torch.fx": _trace_symbolically,
    "torch.export": _trace_by_export,
    FIXED_BATCH: partial(_trace_by_export, dynamic_batch=False),
}
"""Ways to capture a model, tried in this order."""
