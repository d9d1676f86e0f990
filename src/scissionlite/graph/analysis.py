"""Analysis of a captured network's nodes: values, batch sizes, constants, memory, work."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from scissionlite.errors import CaptureError
from scissionlite.graph.user_code import line_of_node

PROBE_BATCH, LARGE_BATCH = 6, 4098
"""Batch sizes on which a network is run, besides the example's, to find out what depends on the
batch size; the large one on shapes alone. A number with a threshold in between, or with a period,
is not equal on 1, 6 and 4098."""

CHECKED_SCALES = (0.1, 1.0, 10.0)
"""Standard deviations of the random inputs on which a captured network is checked."""


class NodeRecorder(fx.Interpreter):
    """Runs a graph and keeps something of each node's value.

    Parameters
    ----------
    module, graph
        The network's modules, and its graph.
    shapes_only
        Whether the weights and the inputs have shapes and no values.
    keep
        Keep every value until the end, so that no address is used twice.
    """

    def __init__(
        self, module: nn.Module, graph: fx.Graph, *, shapes_only: bool, keep: bool = False
    ) -> None:
        super().__init__(module, garbage_collect_values=not keep, graph=graph)
        self.shapes_only = shapes_only

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function; what it makes has no values either, wherever the network wants it."""
        if self.shapes_only and kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": torch.device("meta")}
        return super().call_function(target, args, kwargs)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a module; a batch norm's answer is made without it where only its shape counts."""
        module = self.fetch_attr(target)
        if (
            # torch computes this shape by some forty operations in Python: half of a run's time.
            self.shapes_only
            and isinstance(module, nn.modules.batchnorm._BatchNorm)
            and not module.training
            and module.running_mean is not None
            and type(module).forward is nn.modules.batchnorm._BatchNorm.forward
        ):
            return torch.empty_like(*args, **kwargs)
        return super().call_module(target, args, kwargs)


class ValueRecorder(NodeRecorder):
    """Runs a graph and records the value of every node, tensors without their data.

    Attributes
    ----------
    tensors : dict of str to torch.Tensor
        Node name to a tensor on the meta device.
    numbers : dict of str to object
        Node name to any other value.
    answers : list of torch.Tensor
        The graph's outputs.
    """

    def __init__(self, module: nn.Module, graph: fx.Graph, *, shapes_only: bool) -> None:
        super().__init__(module, graph, shapes_only=shapes_only)
        self.tensors: dict[str, torch.Tensor] = {}
        self.numbers: dict[str, Any] = {}
        self.answers: list[torch.Tensor] = []

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        value = super().run_node(n)
        if n.op == "output":
            self.answers = flat(value)
            return value
        if isinstance(value, torch.Tensor):
            self.tensors[n.name] = value.to("meta")
        else:
            self.numbers[n.name] = value
        return value


Recorder = TypeVar("Recorder", bound=NodeRecorder)


@dataclass(frozen=True)
class Batching:
    """How a network treats its batch dimension.

    Attributes
    ----------
    dynamic : bool
        Whether the network runs on other batch sizes than the example's.
    sizes : set of torch.fx.Node
        Nodes whose value is the batch size.
    batched : set of str
        Names of the tensors whose first dimension is the batch.
    example : ValueRecorder
        The values of all nodes for the example.
    """

    dynamic: bool
    sizes: set[fx.Node]
    batched: set[str]
    example: ValueRecorder


def flat(answer: Any) -> list[Any]:
    """One thing, or several in a tuple or list, as a list."""
    return list(answer) if isinstance(answer, (tuple, list)) else [answer]


def placeholders(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that stand for a graph's inputs."""
    return [node for node in graph.nodes if node.op == "placeholder"]


def constant_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that do not depend on the input: weights, buffers, and values computed from them."""
    constant: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op not in ("placeholder", "output") and all(
            argument in constant for argument in node.all_input_nodes
        ):
            constant.add(node)
    return constant


def varied_inputs(
    example: Sequence[torch.Tensor], scales: Sequence[float], batch: int | None = None
) -> list[torch.Tensor]:
    """Other inputs of the example's kind, drawn from a fixed seed.

    Parameters
    ----------
    example
        Whose shapes, dtypes and integers' range they have.
    scales
        Standard deviations of the floats, in turn along the batch.
    batch
        Another batch size than the example's.
    """
    generator = torch.Generator().manual_seed(0)
    varied = []
    for tensor in example if batch is None else _batch_of(example, batch):
        if tensor.is_floating_point():
            values = torch.randn(tensor.shape, generator=generator)
            for i, scale in enumerate(scales):
                values[i :: len(scales)] *= scale
        else:
            low, high = int(tensor.min()), int(tensor.max())
            values = torch.randint(low, high + 1, tensor.shape, generator=generator)
        varied.append(values)
    return varied


def fold_shapes(
    module: fx.GraphModule, example: Sequence[torch.Tensor], *, any_batch: bool = True
) -> Batching:
    """Replace numbers that a network reads from shapes by constants, except the batch size.

    Many models begin with ``n, _, h, w = x.shape`` and end with ``.view(n, -1)`` or
    ``interpolate(size=(h, w))``. Slices are made for one input size, so height and width are
    constants and need not cross. The batch size can be read from a tensor that crosses. To tell
    the two apart, the network runs on other batch sizes: numbers that are always equal to them are
    batch sizes, and what is computed from a number that changes stays. A network that does not run
    on other batch sizes keeps the example's, and so does one that was captured for the example's
    alone (without ``any_batch``).

    The graph is changed in place.
    """
    shapes = without_values(module)
    batches = [example[0].shape[0] if example[0].ndim else 0]
    runs = [interpret(ValueRecorder, module, example, shapes)]
    if not runs[0].shapes_only:
        _refuse_values(module, runs[0], example)
    dynamic = any_batch
    # Made on the meta device, since the large batch would take gigabytes.
    probed = [x.to("meta") for x in example] if runs[0].shapes_only else example
    probes = (PROBE_BATCH, LARGE_BATCH) if runs[0].shapes_only else (PROBE_BATCH,)
    for size in probes if any_batch else ():
        try:
            run = interpret(ValueRecorder, module, _batch_of(probed, size), shapes)
        except Exception:  # whatever a network raises on a batch that it was not made for
            # One that does not take the large batch may have a table of fewer rows.
            dynamic &= size != PROBE_BATCH
            break
        runs.append(run)
        batches.append(size)
        dynamic &= all(t.ndim and t.shape[0] == size for t in run.answers)
    if not dynamic:
        del runs[1:], batches[1:]
    sizes = _fold_numbers(module.graph, runs, batches)
    batched = set(runs[0].tensors)
    for run, size in zip(runs, batches, strict=True) if dynamic else ():
        batched &= {name for name, t in run.tensors.items() if t.ndim and t.shape[0] == size}
    module.graph.eliminate_dead_code()
    module.recompile()
    alive = set(module.graph.nodes)
    return Batching(dynamic, sizes & alive, batched, runs[0])


def _fold_numbers(
    graph: fx.Graph, runs: Sequence[ValueRecorder], batches: Sequence[int]
) -> set[fx.Node]:
    """Replace the numbers that do not depend on the batch size; find those that are equal to it."""
    sizes: set[fx.Node] = set()
    changing: set[fx.Node] = set()
    for node in list(graph.nodes):
        if node.name not in runs[0].numbers:
            continue
        values = [run.numbers.get(node.name) for run in runs]
        constant = all(_same(value, values[0]) for value in values)
        if not changing.isdisjoint(node.all_input_nodes):
            # It may change on another batch size than those, as ``batch == 5`` does.
            changing.add(node)
        elif constant and (literal := _literal(values[0])) is not None:
            _replace(node, literal)
        elif not constant and not isinstance(values[0], (tuple, list)):
            changing.add(node)
        if not constant and all(
            isinstance(value, int) and value == size
            for value, size in zip(values, batches, strict=True)
        ):
            sizes.add(node)
    return sizes


def _refuse_values(
    module: fx.GraphModule, run: ValueRecorder, example: Sequence[torch.Tensor]
) -> None:
    """Raise CaptureError if a number in a network is read off the values of a tensor.

    A run on shapes alone has no such number: it would have failed.
    """
    read = [n for n in module.graph.nodes if _literal(run.numbers.get(n.name)) is not None]
    for scale in CHECKED_SCALES:
        try:
            other = _computed(ValueRecorder, module, varied_inputs(example, (scale,)))
        except Exception:  # whatever a network raises on values that it was not made for
            continue
        for node in read:
            if not _same(run.numbers[node.name], other.numbers.get(node.name)):
                raise CaptureError(
                    f"{node.name} is a number that depends on the values of a tensor: "
                    f"{line_of_node(node)}"
                )


def peak_bytes(
    nodes: Sequence[fx.Node], entering: Iterable[fx.Node], tensors: Mapping[str, torch.Tensor]
) -> int:
    """Most bytes of tensors alive at the same time while consecutive nodes of a network run.

    A tensor counts from the node that computes it to its last use; views count with their full
    size. Weights and the memory inside an operation do not count.
    """
    position = {node: i for i, node in enumerate(nodes)}
    end = len(nodes)
    last = {
        node: max((position.get(user, end) for user in node.users), default=-1)
        for node in (*entering, *nodes)
    }
    live = set(entering)
    peak = sum(_nbytes(tensors, node) for node in live)
    for i, node in enumerate(nodes):
        live.add(node)
        peak = max(peak, sum(_nbytes(tensors, each) for each in live))
        live = {each for each in live if last[each] > i}
    return peak


def weights_of(module: fx.GraphModule, nodes: Iterable[fx.Node]) -> dict[int, int]:
    """Bytes of every weight and buffer that some nodes use, by the identity of the tensor."""
    found: dict[int, int] = {}
    for node in nodes:
        for used in (node, *node.all_input_nodes):
            if used.op == "call_module" and used is node:
                owner = module.get_submodule(str(used.target))
                tensors = [*owner.parameters(), *owner.buffers()]
            elif used.op == "get_attr":
                value: Any = module
                for part in str(used.target).split("."):
                    value = getattr(value, part)
                tensors = [value] if isinstance(value, torch.Tensor) else []
            else:
                continue
            found.update((id(t), t.numel() * t.element_size()) for t in tensors)
    return found


def multiplications(module: nn.Module, example: tuple[torch.Tensor, ...]) -> float:
    """Multiplications of convolutions and matrix products for one input of the example."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*example)
    # One multiplication and one addition are two.
    return float(counter.get_total_flops()) / 2 / len(example[0])


def interpret(
    kind: type[Recorder],
    module: fx.GraphModule,
    inputs: Sequence[torch.Tensor],
    shapes: nn.Module | None = None,
) -> Recorder:
    """Run a network in an interpreter; on shapes alone, without computing, where that is enough.

    Parameters
    ----------
    kind
        The interpreter.
    module, inputs
        The network, and inputs for it, which are not written to.
    shapes
        As :func:`without_values` makes it, to make it once for several runs.
    """
    shapes = without_values(module) if shapes is None else shapes
    recorder = kind(shapes, module.graph, shapes_only=True)
    try:
        # What the network makes itself, as by torch.arange(), has no values either.
        with torch.no_grad(), torch.device("meta"):
            recorder.run(*(x.to("meta") for x in inputs))
    except Exception:  # whatever a network raises that needs the values of its tensors
        return _computed(kind, module, inputs)
    return recorder


def without_values(module: fx.GraphModule) -> nn.Module:
    """The modules of a network, with weights that have shapes and no values (the meta device)."""
    copies: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        weight = isinstance(tensor, nn.Parameter)
        copies[id(tensor)] = nn.Parameter(empty, requires_grad=False) if weight else empty
    root = nn.Module()
    for attributes in ("_parameters", "_buffers", "_modules"):
        setattr(root, attributes, copy.deepcopy(getattr(module, attributes), copies))
    return root


def _computed(
    kind: type[Recorder], module: fx.GraphModule, inputs: Sequence[torch.Tensor]
) -> Recorder:
    recorder = kind(module, module.graph, shapes_only=False)
    with torch.no_grad():
        recorder.run(*(x.clone() for x in inputs))
    return recorder


def _batch_of(example: Sequence[torch.Tensor], size: int) -> list[torch.Tensor]:
    """The example with another batch size: its first element, repeated."""
    batch = example[0].shape[0] if example[0].ndim else 0
    return [
        t[:1].expand(size, *t.shape[1:]).clone() if t.ndim and t.shape[0] == batch else t
        for t in example
    ]


def _same(value: Any, other: Any) -> bool:
    try:
        return type(value) is type(other) and bool(value == other)
    except Exception:
        return False


def _literal(value: Any) -> Any:
    """A value as it can stand in a graph's arguments, or None if it cannot."""
    if isinstance(value, (bool, int, float, torch.dtype, torch.device)):
        return value
    if isinstance(value, (tuple, list)):
        parts = [_literal(part) for part in value]
        if all(part is not None for part in parts):
            return tuple(parts)
    return None


def _replace(node: fx.Node, literal: Any) -> None:
    for user in list(node.users):
        user.args = fx.map_arg(user.args, lambda n: literal if n is node else n)
        user.kwargs = fx.map_arg(user.kwargs, lambda n: literal if n is node else n)


def _nbytes(tensors: Mapping[str, torch.Tensor], node: fx.Node) -> int:
    tensor = tensors.get(node.name)
    return 0 if tensor is None else tensor.numel() * tensor.element_size()
