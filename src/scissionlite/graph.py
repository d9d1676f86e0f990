"""A captured network as blocks, and the slicing points between them.

A *slicing point* is a place where exactly one tensor crosses from what has run to what has not
(arXiv 2105.02019: the layers between which the network may be cut); residual, dense and
inception branches therefore have none inside. A *block* is what lies between two neighbouring
slicing points.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from scissionlite.errors import CaptureError


@dataclass(frozen=True)
class SlicingPoint:
    """A place where the network may be cut.

    Attributes
    ----------
    index : int
        Position; the device slice is the blocks 0 to ``index``, the edge slice the rest.
    name : str
        Unique in the graph: the outermost module that ends here, such as ``"layer1.0"``.
    after, before : str
        The module that ends here and the one that begins here.
    node : str
        Name of the captured node whose value crosses.
    shape : tuple of int
        Shape of the crossing tensor for the example input, batch first.
    dtype : str
        Its dtype, such as ``"float32"``.
    nbytes : int
        Its size in bytes.
    """

    index: int
    name: str
    after: str
    before: str
    node: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int

    def __str__(self) -> str:
        return f"after {self.after}, before {self.before}"


@dataclass(frozen=True)
class Block:
    """What lies between two neighbouring slicing points.

    Attributes
    ----------
    index : int
        Position in the network.
    name : str
        Name of the slicing point that ends it; the last block is named after its last module.
    nodes : tuple of str
        Names of the captured nodes in it.
    """

    index: int
    name: str
    nodes: tuple[str, ...]


class Graph:
    """A captured network; :func:`scissionlite.capture` makes one.

    Attributes
    ----------
    name : str
        What the model is called in profiles, plans and bundles.
    module : torch.fx.GraphModule
        The whole network in evaluation mode; it shares no weights with the model captured.
    example : torch.Tensor
        The example input.
    output_shape : tuple of int
        Shape of the output for the example.
    blocks : list of Block
    slicing_points : list of SlicingPoint
        One fewer than blocks.
    """

    def __init__(self, name: str, module: fx.GraphModule, example: torch.Tensor) -> None:
        self.name = name
        self.module = module
        self.example = example
        values = _ValueRecorder(module)
        with torch.no_grad():
            output = values.run(example)
        if not isinstance(output, torch.Tensor):
            raise CaptureError(
                f"{name} answers a {type(output).__name__}, this version slices models with one "
                "output tensor: wrap the model so that it returns the tensor you need"
            )
        self.output_shape: tuple[int, ...] = tuple(output.shape)
        self._constant = _constant_nodes(module.graph)
        self._batch_sizes, batched = _batch_size_nodes(module, example, values.integers)
        self.slicing_points, self.blocks = self._cut(values.tensors, batched)

    def __repr__(self) -> str:
        return (
            f"Graph({self.name!r}, input={tuple(self.example.shape)}, {len(self.blocks)} blocks, "
            f"{len(self.slicing_points)} slicing points)"
        )

    def point(self, which: SlicingPoint | str | int) -> SlicingPoint:
        """Find a slicing point by name or index.

        Raises
        ------
        CaptureError
            If there is none; the message lists the names.
        """
        for point in self.slicing_points:
            if which in (point, point.name) or which == point.index:
                return point
        names = ", ".join(point.name for point in self.slicing_points)
        raise CaptureError(f"{self.name} has no slicing point {which!r}; it has: {names}")

    def split(self, point: SlicingPoint | str | int) -> tuple[fx.GraphModule, fx.GraphModule]:
        """Cut the network in two.

        Returns
        -------
        tuple of torch.fx.GraphModule
            The device slice and the edge slice, with ``edge(device(x))`` equal to the network.
            They share their weights with :attr:`module`.
        """
        cut = self.point(point)
        return self._segment(None, cut), self._segment(cut, None)

    def block_modules(self) -> list[fx.GraphModule]:
        """Each block as a module of its own; chained, they are the network."""
        borders = [None, *self.slicing_points, None]
        return [self._segment(start, end) for start, end in itertools.pairwise(borders)]

    def _cut(
        self, tensors: Mapping[str, torch.Tensor], batched: set[str]
    ) -> tuple[list[SlicingPoint], list[Block]]:
        nodes = [n for n in self.module.graph.nodes if n.op not in ("placeholder", "output")]
        nodes = [n for n in nodes if n not in self._constant]
        position = {node: i for i, node in enumerate(nodes)}
        end = len(nodes)
        last_use = {
            # An output node has no position: what it uses lives to the end. So does the input,
            # which never counts as crossing at a point but may prevent one.
            node: max((position.get(user, end) for user in node.users), default=-1)
            for node in [*placeholders(self.module.graph), *nodes]
        }
        live: set[fx.Node] = set(placeholders(self.module.graph))
        crossing: list[tuple[fx.Node, int]] = []
        for i, node in enumerate(nodes[:-1]):
            live.add(node)
            live = {n for n in live if last_use[n] > i}
            values = live - self._batch_sizes
            if len(values) != 1:
                continue
            (only,) = values
            tensor = tensors.get(only.name)
            if tensor is None or not tensor.is_floating_point() or only.op == "placeholder":
                continue
            if len(live) > 1 and only.name not in batched:
                continue
            if not crossing or crossing[-1][0] is not only:
                crossing.append((only, i))
        points: list[SlicingPoint] = []
        blocks: list[Block] = []
        names: set[str] = set()
        start = 0
        for index, (value, i) in enumerate(crossing):
            after, before = _border(value, nodes[i + 1])
            name = _unique(after, names)
            tensor = tensors[value.name]
            points.append(
                SlicingPoint(
                    index=index,
                    name=name,
                    after=after,
                    before=before,
                    node=value.name,
                    shape=tuple(tensor.shape),
                    dtype=str(tensor.dtype).removeprefix("torch."),
                    nbytes=tensor.numel() * tensor.element_size(),
                )
            )
            blocks.append(Block(index, name, tuple(n.name for n in nodes[start : i + 1])))
            start = i + 1
        last = _unique(_own_name(nodes[-1]), names)
        blocks.append(Block(len(points), last, tuple(n.name for n in nodes[start:])))
        return points, blocks

    def _segment(self, start: SlicingPoint | None, end: SlicingPoint | None) -> fx.GraphModule:
        """Everything from one border to the next as a module of one input and one output."""
        source = self.module.graph
        first = 0 if start is None else start.index + 1
        last = len(self.blocks) - 1 if end is None else end.index
        wanted = {name for block in self.blocks[first : last + 1] for name in block.nodes}
        by_name = {node.name: node for node in source.nodes}
        entry = placeholders(source)[0] if start is None else by_name[start.node]
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {entry: graph.placeholder("x")}

        def copied(node: fx.Node) -> fx.Node:
            if node not in copies and node in self._batch_sizes:
                copies[node] = graph.call_method("size", (copies[entry], 0))
            elif node not in copies:
                assert node in self._constant, f"{node} crosses the cut at {entry} unnoticed"
                # Weights and what is computed of them alone are fetched again on either side.
                copies[node] = graph.node_copy(node, copied)
            return copies[node]

        for node in source.nodes:
            if node.name in wanted:
                copies[node] = graph.node_copy(node, copied)
        if end is None:
            (output,) = (node for node in source.nodes if node.op == "output")
            # torch.export wraps the one output in a tuple; a slice answers the tensor itself.
            graph.output(copied(output.all_input_nodes[0]))
        else:
            graph.output(copies[by_name[end.node]])
        graph.lint()
        return fx.GraphModule(self.module, graph).eval()


class _ValueRecorder(fx.Interpreter):
    """Runs a graph and keeps every node's tensor as a shape without data, and every integer."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.tensors: dict[str, torch.Tensor] = {}
        self.integers: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            self.tensors[n.name] = value.to("meta")
        elif isinstance(value, int) and not isinstance(value, bool):
            self.integers[n.name] = value
        return value


def placeholders(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that stand for a graph's inputs."""
    return [node for node in graph.nodes if node.op == "placeholder"]


def _constant_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that do not depend on the input: weights, buffers and what is computed of them."""
    constant: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op not in ("placeholder", "output") and all(
            argument in constant for argument in node.all_input_nodes
        ):
            constant.add(node)
    return constant


def _batch_size_nodes(
    module: fx.GraphModule, example: torch.Tensor, integers: Mapping[str, int]
) -> tuple[set[fx.Node], set[str]]:
    """Nodes that hold the batch size, and names of the tensors whose first dimension it is.

    Many models begin with ``n = x.shape[0]`` and end with ``.view(n, -1)``: such a number need
    not cross, since the edge slice reads it off the crossing tensor. Which nodes are meant shows
    when the network runs on two other batch sizes.
    """
    if not integers:
        return set(), set()
    holding, batched = set(integers), None
    for size in (2, 3):
        recorder = _ValueRecorder(module)
        try:
            with torch.no_grad():
                recorder.run(example[:1].expand(size, *example.shape[1:]))
        except Exception:
            return set(), set()
        holding &= {name for name, value in recorder.integers.items() if value == size}
        leading = {name for name, t in recorder.tensors.items() if t.ndim and t.shape[0] == size}
        batched = leading if batched is None else batched & leading
    return {node for node in module.graph.nodes if node.name in holding}, batched or set()


def _module_path(node: fx.Node) -> list[str]:
    """Qualified names of the modules around a node, outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] if isinstance(entry, tuple) else entry for entry in stack.values()]
    cleaned = (str(path).removeprefix("L['self']").lstrip(".") for path in paths)
    return [path for path in cleaned if path]


def _own_name(node: fx.Node) -> str:
    path = _module_path(node)
    if node.op == "call_module":
        return str(node.target)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    operation = str(name).removesuffix(".default").removeprefix("aten.").strip("_")
    return f"{path[-1]}.{operation}" if path else operation


def _border(value: fx.Node, following: fx.Node) -> tuple[str, str]:
    """Names of what ends and what begins between two neighbouring nodes."""
    ending, beginning = _module_path(value), _module_path(following)
    after = next((path for path in ending if path not in beginning), None)
    before = next((path for path in beginning if path not in ending), None)
    return after or _own_name(value), before or _own_name(following)


def _unique(name: str, taken: set[str]) -> str:
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}#{count}"
    taken.add(candidate)
    return candidate
