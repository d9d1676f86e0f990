"""In-place operations of a traced network, made out of place.

A slice must not write into the tensors that it is given, and a graph can only be cut, and cleaned
of dead code, where each value is computed once. So ``relu_(x)`` becomes ``y = relu(x)``, and what
uses ``x`` afterwards uses ``y``. Where another view of the same memory is used afterwards, this is
not enough; then torch.export, which has its own functionalization, is the way.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

from scissionlite.errors import CaptureError
from scissionlite.graph.analysis import NodeRecorder, interpret
from scissionlite.graph.arguments import named_leaves

_OUT_OF_PLACE: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
    operator.imatmul: operator.matmul,
}


class MutatingProxy(fx.Proxy):
    """A proxy that records ``x += y`` as what it is; torch.fx takes it for ``x = x + y``."""


def _augmented(function: Callable[..., Any]) -> Callable[..., fx.Proxy]:
    def record(self: MutatingProxy, other: Any) -> fx.Proxy:
        proxy: fx.Proxy = self.tracer.create_proxy("call_function", function, (self, other), {})
        return proxy

    return record


for _function in _OUT_OF_PLACE:
    setattr(MutatingProxy, f"__{_function.__name__}__", _augmented(_function))


def make_functional(module: fx.GraphModule, inputs: Sequence[torch.Tensor]) -> None:
    """Make a traced network's in-place operations out of place; the graph is changed in place.

    Parameters
    ----------
    module
        The traced network, in evaluation mode.
    inputs
        Inputs to run it on once, to see which values share memory, and which are written to. They
        are not written to themselves.

    Raises
    ------
    CaptureError
        If an in-place operation cannot be replaced in this way; the message names it.
    """
    memory = interpret(_Memory, module, inputs)
    position = {node: i for i, node in enumerate(module.graph.nodes)}
    for node in list(module.graph.nodes):
        if _is_in_place(module, node):
            target = _target(node)
            _replace_operation(node)
        elif node in memory.writes:
            target = _write_to_copy(module, node, memory)
        else:
            continue
        if memory.storages[target]:  # a number, as in ``n += 1``, has no memory to share
            _rename_later_uses(node, target, memory.storages, position)
    for each in module.modules():
        if isinstance(getattr(each, "inplace", None), bool):
            each.inplace = False  # type: ignore[assignment]  # nn.Module types attributes as Tensor
    module.recompile()


class _Memory(NodeRecorder):
    """Runs a graph; records where each node's value lies, and what functions write to.

    Attributes
    ----------
    storages : dict of torch.fx.Node to set of int
        The storages in which each node's value lies.
    writes : dict of torch.fx.Node to list of torch.fx.Node
        A node that writes to the values of others, whatever its name says, to those.
    same : set of torch.fx.Node
        Nodes of these that answer nothing but the very value that they wrote to.
    """

    def __init__(self, module: nn.Module, graph: fx.Graph, *, shapes_only: bool) -> None:
        super().__init__(module, graph, keep=True, shapes_only=shapes_only)
        self.storages: dict[fx.Node, set[int]] = {}
        self.writes: dict[fx.Node, list[fx.Node]] = {}
        self.same: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        before = {read: _versions(self.env[read]) for read in n.all_input_nodes}
        value = super().run_node(n)
        self.storages[n] = {tensor.untyped_storage()._cdata for tensor in _tensors(value)}
        if written := [each for each in before if _versions(self.env[each]) != before[each]]:
            self.writes[n] = written
            if value is self.env[written[0]]:
                self.same.add(n)
        return value


class _WritesToCopy(nn.Module):
    """A function that writes to one of its arguments, as one that answers what it wrote."""

    def __init__(self, function: Callable[..., Any], position: int) -> None:
        super().__init__()
        self.function, self.position = function, position

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        written: torch.Tensor = args[self.position].clone()
        self.function(*args[: self.position], written, *args[self.position + 1 :], **kwargs)
        return written


def _write_to_copy(module: fx.GraphModule, node: fx.Node, memory: _Memory) -> fx.Node:
    """Let a function that torch.fx.wrap() keeps whole write to a copy, and answer the copy.

    Returns
    -------
    torch.fx.Node
        The node whose value it wrote to.
    """
    target, *others = memory.writes[node]
    if (
        others
        or node.op != "call_function"
        or node.args.count(target) != 1
        or target.op == "get_attr"
        or (node.users and node not in memory.same)
    ):
        raise CaptureError(
            f"{node.format_node()} writes to {', '.join(map(str, memory.writes[node]))}"
        )
    assert callable(node.target)
    name = f"{node.name}_on_copy"
    module.add_submodule(name, _WritesToCopy(node.target, node.args.index(target)))
    node.op, node.target = "call_module", name
    return target


def _versions(value: Any) -> list[int]:
    """How often each tensor of a value has been written to."""
    return [tensor._version for tensor in _tensors(value)]


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for _, leaf in named_leaves(value) if isinstance(leaf, torch.Tensor)]


def _is_in_place(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        # In evaluation mode dropout answers its input as it is.
        dropout = isinstance(called, nn.modules.dropout._DropoutNd)
        return getattr(called, "inplace", None) is True and not dropout
    if node.op == "call_method":
        return _has_in_place_name(str(node.target))
    if node.op == "call_function":
        name = _function_name(node.target)
        return (
            node.target in _OUT_OF_PLACE
            or node.kwargs.get("out") is not None
            or _has_in_place_name(name)
            or _inplace_argument(node) is True
        )
    return False


def _function_name(function: Any) -> str:
    if isinstance(function, torch._ops.OpOverload):
        return function._opname
    return getattr(function, "__name__", "")


def _has_in_place_name(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def _inplace_argument(node: fx.Node) -> Any:
    """The value of a function's ``inplace`` argument, by name or by position."""
    if "inplace" in node.kwargs:
        return node.kwargs["inplace"]
    if not inspect.isfunction(node.target):
        return None
    names = list(inspect.signature(node.target).parameters)
    position = names.index("inplace") if "inplace" in names else len(node.args)
    return node.args[position] if position < len(node.args) else None


def _target(node: fx.Node) -> fx.Node:
    """The node whose value an in-place operation writes to."""
    arguments = [*node.args, node.kwargs.get("input"), node.kwargs.get("out")]
    target = node.kwargs.get("out") or next((a for a in arguments if isinstance(a, fx.Node)), None)
    if not isinstance(target, fx.Node) or target.op == "get_attr":
        raise CaptureError(f"the network changes its own state in {node.format_node()}")
    return target


def _replace_operation(node: fx.Node) -> None:
    """Let a node compute out of place what it computes in place."""
    if node.op == "call_module":
        return  # the flag of every module is cleared at the end
    if node.kwargs.get("out") is not None:
        raise CaptureError(f"an operation writes to its argument out=: {node.format_node()}")
    if node.target in _OUT_OF_PLACE:
        node.target = _OUT_OF_PLACE[node.target]
    elif node.op == "call_function" and _inplace_argument(node) is True:
        assert inspect.isfunction(node.target)  # or it had no such argument
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
        bound.arguments["inplace"] = False
        node.args, node.kwargs = bound.args, bound.kwargs
    else:
        owner: Any = torch.Tensor
        name = str(node.target)
        if node.op == "call_function":
            name = _function_name(node.target)
            owner = torch if hasattr(torch, name[:-1]) else nn.functional
        if isinstance(node.target, torch._ops.OpOverload):
            owner = getattr(torch.ops, node.target.namespace)
        if not hasattr(owner, name[:-1]):
            raise CaptureError(f"{name} has no form that is not in place: {node.format_node()}")
        out_of_place = getattr(owner, name[:-1])
        if isinstance(node.target, torch._ops.OpOverload):
            out_of_place = getattr(out_of_place, node.target._overloadname)
        node.target = name[:-1] if node.op == "call_method" else out_of_place


def _rename_later_uses(
    node: fx.Node,
    target: fx.Node,
    storages: dict[fx.Node, set[int]],
    position: dict[fx.Node, int],
) -> None:
    """Let what uses the target after an operation use the operation's answer."""
    for other, places in storages.items():
        if other in (node, target) or position[other] > position[node]:
            continue
        if places & storages[target] and any(position[u] > position[node] for u in other.users):
            raise CaptureError(
                f"{node.format_node()} writes to memory that {other} shares and that is used later"
            )
    for user in list(target.users):
        if position[user] > position[node]:
            user.replace_input_with(target, node)
