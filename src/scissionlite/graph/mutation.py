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
        Inputs to run it on once, to see which values share memory. They are not written to.

    Raises
    ------
    CaptureError
        If an in-place operation cannot be replaced in this way; the message names it.
    """
    mutations = [node for node in module.graph.nodes if _is_in_place(module, node)]
    if mutations:
        memory = _Memory(module)
        with torch.no_grad():
            memory.run(*(x.clone() for x in inputs))
        position = {node: i for i, node in enumerate(module.graph.nodes)}
        for node in mutations:
            target = _target(node)
            _replace_operation(node)
            if memory.storages[target]:  # a number, as in ``n += 1``, has no memory to share
                _rename_later_uses(node, target, memory.storages, position)
    for each in module.modules():
        if isinstance(getattr(each, "inplace", None), bool):
            each.inplace = False  # type: ignore[assignment]  # nn.Module types attributes as Tensor
    module.recompile()


class _Memory(fx.Interpreter):
    """Runs a graph and records in which storages each node's value lies."""

    def __init__(self, module: fx.GraphModule) -> None:
        # Every value is kept until the end, so that no address is used twice.
        super().__init__(module, garbage_collect_values=False)
        self.storages: dict[fx.Node, set[int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.storages[n] = set(_storages(value))
        return value


def _storages(value: Any) -> list[int]:
    if isinstance(value, torch.Tensor):
        return [value.untyped_storage()._cdata]
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        return [storage for part in value for storage in _storages(part)]
    return []


def _is_in_place(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        # In evaluation mode dropout answers its input as it is.
        dropout = isinstance(called, nn.modules.dropout._DropoutNd)
        return getattr(called, "inplace", None) is True and not dropout
    if node.op == "call_method":
        return _has_in_place_name(str(node.target))
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        return (
            node.target in _OUT_OF_PLACE
            or node.kwargs.get("out") is not None
            or _has_in_place_name(name)
            or _inplace_argument(node) is True
        )
    return False


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
            name = node.target.__name__  # type: ignore[union-attr]  # a function
            owner = torch if hasattr(torch, name[:-1]) else nn.functional
        if not hasattr(owner, name[:-1]):
            raise CaptureError(f"{name} has no form that is not in place: {node.format_node()}")
        node.target = name[:-1] if node.op == "call_method" else getattr(owner, name[:-1])


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
