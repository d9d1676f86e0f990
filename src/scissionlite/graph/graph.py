"""Graph: a captured network as blocks, with the slicing points between them.

A *slicing point* is a place between two layers where the network may be cut. In the paper (arXiv
2105.02019) exactly one tensor crosses there, so that residual, dense and inception branches have
none inside. With ``max_tensors`` above 1, a place where up to that many tensors cross is a slicing
point too, as U-Net's skips and a detector's neck need. A *block* is the part of the network between
two neighbouring slicing points.

Only float32 tensors whose first dimension is the batch can cross: the Transfer Layer packs float32,
and both sides read a request's batch off the first dimension.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from scissionlite.errors import CaptureError
from scissionlite.graph.analysis import (
    constant_nodes,
    flat,
    fold_shapes,
    peak_bytes,
    placeholders,
    weights_of,
)
from scissionlite.graph.tensors import INPUT_POINT, MAX_TENSORS, OutputKind, TensorInfo
from scissionlite.graph.user_code import line_of_node


@dataclass(frozen=True)
class SlicingPoint:
    """A place where the network may be cut.

    Attributes
    ----------
    index : int
        Position; the blocks 0 to ``index`` are the device slice, the rest is the edge slice.
    name : str
        Unique in the graph: the outermost module that ends here, such as ``"layer1.0"``.
    after, before : str
        The module that ends here and the one that begins here.
    crossing : tuple of TensorInfo
        The tensors that cross, in the order in which they are computed.
    """

    index: int
    name: str
    after: str
    before: str
    crossing: tuple[TensorInfo, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that cross, without a Transfer Layer."""
        return sum(tensor.nbytes for tensor in self.crossing)

    def __str__(self) -> str:
        return f"after {self.after}, before {self.before}"


@dataclass(frozen=True)
class Block:
    """The part of the network between two neighbouring slicing points.

    Attributes
    ----------
    index : int
        Position in the network.
    name : str
        Name of the slicing point that ends it; the last block is named after its last module.
    nodes : tuple of str
        Names of the captured nodes in it.
    layers : tuple of str
        Names of the modules that run in it; of the operations, where they belong to no module.
    weight_bytes : int
        Bytes of the weights and buffers used in it.
    peak_bytes : int
        Most bytes of feature maps that are alive at the same time in it, for the example.
    """

    index: int
    name: str
    nodes: tuple[str, ...]
    layers: tuple[str, ...]
    weight_bytes: int
    peak_bytes: int


class Graph:
    """A captured network; :func:`scissionlite.capture` makes one.

    Attributes
    ----------
    name : str
        Name of the model in profiles, plans and bundles.
    module : torch.fx.GraphModule
        The whole network in evaluation mode. It takes the :attr:`inputs` in order and answers one
        tensor or a tuple of tensors. It shares no weights with the captured model.
    example : tuple of torch.Tensor
        The example inputs.
    inputs, outputs : tuple of TensorInfo
        Names, shapes and dtypes of the network's inputs and outputs.
    output_kind : str
        How the model itself answers: one "tensor", a "tuple" or a "dict".
    blocks : list of Block
    slicing_points : list of SlicingPoint
        One fewer than blocks.
    """

    def __init__(
        self,
        name: str,
        module: fx.GraphModule,
        example: Sequence[torch.Tensor],
        *,
        input_names: Sequence[str] = ("input",),
        output_names: Sequence[str] = ("output",),
        output_kind: OutputKind = "tensor",
        max_tensors: int = 1,
        any_batch: bool = True,
    ) -> None:
        if not 1 <= max_tensors <= MAX_TENSORS:
            raise CaptureError(f"max_tensors must be 1 to {MAX_TENSORS}, got {max_tensors}")
        self.name = name
        self.module = module
        self.example = tuple(example)
        self._batching = fold_shapes(module, self.example, any_batch=any_batch)
        values = self._batching.example
        self._tensors = values.tensors
        self.inputs = tuple(map(_tensor_info, input_names, self.example))
        self.outputs = tuple(map(_tensor_info, output_names, values.answers))
        self.output_kind = output_kind
        self._constant = constant_nodes(module.graph)
        self._by_name = {node.name: node for node in module.graph.nodes}
        self.slicing_points, self.blocks = self._cut(max_tensors)

    def __repr__(self) -> str:
        shapes = ", ".join(str(tensor.shape) for tensor in self.inputs)
        return (
            f"Graph({self.name!r}, input={shapes}, {len(self.blocks)} blocks, "
            f"{len(self.slicing_points)} slicing points)"
        )

    @property
    def dynamic_batch(self) -> bool:
        """Whether the network runs on other batch sizes than the example's."""
        return self._batching.dynamic

    @property
    def batch_size_lines(self) -> list[str]:
        """The lines of the model's code that use the batch size."""
        users = (
            user
            for node in self.module.graph.nodes
            for user in node.users
            if node in self._batching.sizes and user not in self._batching.sizes
        )
        return list(dict.fromkeys(map(line_of_node, users)))

    def point(self, which: SlicingPoint | str | int) -> SlicingPoint:
        """Find a slicing point by name or index; "input" is :attr:`input_point`.

        Raises
        ------
        CaptureError
            If there is none; the message lists the names.
        """
        for point in self.slicing_points:
            if which in (point, point.name) or which == point.index:
                return point
        if which == INPUT_POINT or (isinstance(which, SlicingPoint) and which.index == -1):
            return self.input_point
        if not self.slicing_points:
            raise CaptureError(self._why_no_points())
        names = ", ".join(point.name for point in self.slicing_points)
        raise CaptureError(f"{self.name} has no slicing point {which!r}; it has: {names}")

    @property
    def input_point(self) -> SlicingPoint:
        """The slicing point before the whole network, where a shallow encoder stands.

        It is not among :attr:`slicing_points`, as no layer runs before it.

        Raises
        ------
        CaptureError
            If the network's input is no image.
        """
        entries = placeholders(self.module.graph)
        shape = tuple(self.example[0].shape)
        if len(entries) != 1 or len(shape) != 4 or self.example[0].dtype != torch.float32:
            raise CaptureError(
                f"{self.name} cannot be cut at its input, which is no image: it takes "
                + ", ".join(f"{each.name} {each.dtype} {each.shape}" for each in self.inputs)
            )
        crossing = (_tensor_info(entries[0].name, self.example[0]),)
        return SlicingPoint(-1, INPUT_POINT, "the input", self.blocks[0].layers[0], crossing)

    def _why_no_points(self) -> str:
        batch = self.example[0].shape[:1]
        other = [
            f"{tensor.name} {tensor.shape}"
            for tensor in self.inputs
            if tensor.shape[:1] != tuple(batch)
        ]
        text = (
            f"{self.name} has no slicing point: nowhere do so few tensors cross, all float32 with "
            "the batch as their first dimension"
        )
        if other:
            return (
                f"{text}, as it is that of {self.inputs[0].name} {self.inputs[0].shape}, but not "
                f"of {', '.join(other)}. Wrap the model so that every input is batch first, and "
                "holds what is no request's own, such as queries"
            )
        return f"{text}. Allow more with max_tensors="

    def split(self, point: SlicingPoint | str | int) -> tuple[fx.GraphModule, fx.GraphModule]:
        """Cut the network in two.

        Returns
        -------
        tuple of torch.fx.GraphModule
            The device slice, from the network's inputs to the tensors that cross, and the edge
            slice, from these to the network's outputs. Each takes its tensors one by one and
            answers one tensor, or a tuple where there are several. Both share their weights with
            :attr:`module`.
        """
        cut = self.point(point)
        return self._segment(None, cut), self._segment(cut, None)

    def between(
        self, start: SlicingPoint | str | int, end: SlicingPoint | str | int
    ) -> fx.GraphModule:
        """The part between two slicing points, from the tensors of one to those of the other.

        Raises
        ------
        CaptureError
            If ``end`` does not come after ``start``.
        """
        first, last = self.point(start), self.point(end)
        if last.index <= first.index:
            raise CaptureError(f"{last.name} does not come after {first.name}")
        return self._segment(first, last)

    def block_modules(self) -> list[fx.GraphModule]:
        """Each block as a module of its own; chained, they are the network."""
        borders = [None, *self.slicing_points, None]
        return [self._segment(start, end) for start, end in itertools.pairwise(borders)]

    def _cut(self, max_tensors: int) -> tuple[list[SlicingPoint], list[Block]]:
        source = self.module.graph
        entries = placeholders(source)
        nodes = [n for n in source.nodes if n.op not in ("placeholder", "output")]
        nodes = [n for n in nodes if n not in self._constant]
        points: list[SlicingPoint] = []
        blocks: list[Block] = []
        names: set[str] = set()
        start, entering = 0, entries
        for end, live in _live_between(nodes, entries):
            crossing = [value for value in live if value not in self._batching.sizes]
            if crossing == entering or len(crossing) > max_tensors:
                continue
            if not self._can_cross(crossing):
                continue
            after, before = _border(crossing[-1], nodes[end + 1])
            name = _unique(after, names)
            tensors = tuple(_tensor_info(n.name, self._tensors[n.name]) for n in crossing)
            index = len(points)
            points.append(SlicingPoint(index, name, after, before, tensors))
            blocks.append(self._block(index, name, nodes[start : end + 1], entering))
            start, entering = end + 1, crossing
        last = _unique(_own_name(nodes[-1]), names)
        blocks.append(self._block(len(points), last, nodes[start:], entering))
        return points, blocks

    def _can_cross(self, values: list[fx.Node]) -> bool:
        """Whether the network can be cut where exactly these values cross."""
        tensors = [self._tensors.get(value.name) for value in values]
        if all(value.op == "placeholder" for value in values):
            return False
        batched = self._batching.batched
        batch = self.example[0].shape[:1]
        for value, tensor in zip(values, tensors, strict=True):
            # A tensor is packed from float32, and a request tells its batch by the first dimension.
            if tensor is None or tensor.dtype != torch.float32 or tensor.shape[:1] != batch:
                return False
            if value.name not in batched:
                return False
        # The batch size does not cross: the edge slice reads it from a tensor that does.
        return True

    def _block(self, index: int, name: str, nodes: list[fx.Node], entering: list[fx.Node]) -> Block:
        layers = dict.fromkeys(
            str(n.target) if n.op == "call_module" else _own_name(n) for n in nodes
        )
        return Block(
            index,
            name,
            tuple(n.name for n in nodes),
            tuple(layers),
            sum(weights_of(self.module, nodes).values()),
            peak_bytes(nodes, entering, self._tensors),
        )

    def _segment(self, start: SlicingPoint | None, end: SlicingPoint | None) -> fx.GraphModule:
        """The part from one slicing point to another as a module; None is the network's end."""
        source = self.module.graph
        first = 0 if start is None else start.index + 1
        last = len(self.blocks) - 1 if end is None else end.index
        inside = {name for block in self.blocks[first : last + 1] for name in block.nodes}
        entries = placeholders(source)
        if start is not None:
            entries = [self._by_name[tensor.name] for tensor in start.crossing]
        graph = fx.Graph()
        copies = {entry: graph.placeholder(f"x{i}") for i, entry in enumerate(entries)}
        # The batch size is the first dimension of such a tensor.
        batched = next((e for e in entries if e.name in self._batching.batched), entries[0])

        def copied(node: fx.Node) -> fx.Node:
            if node not in copies and node in self._batching.sizes:
                copies[node] = graph.call_method("size", (copies[batched], 0))
            elif node not in copies:
                assert node in self._constant, f"{node} crosses the cut at {entries} unnoticed"
                # Weights, and values computed from weights alone, are copied to either side.
                copies[node] = graph.node_copy(node, copied)
            return copies[node]

        for node in source.nodes:
            if node.name in inside:
                copies[node] = graph.node_copy(node, copied)
        if end is None:
            (output,) = (node for node in source.nodes if node.op == "output")
            answers = [copied(node) for node in flat(output.args[0])]
        else:
            answers = [copies[self._by_name[tensor.name]] for tensor in end.crossing]
        graph.output(answers[0] if len(answers) == 1 else tuple(answers))
        graph.lint()
        return fx.GraphModule(self.module, graph).eval()


def _tensor_info(name: str, tensor: torch.Tensor) -> TensorInfo:
    return TensorInfo(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def _live_between(
    nodes: list[fx.Node], entries: list[fx.Node]
) -> Iterator[tuple[int, list[fx.Node]]]:
    """Index of each node but the last, and the values that are used after it, oldest first."""
    position = {node: i for i, node in enumerate(nodes)}
    last_use = {
        # An output node has no position: the values that it uses live to the end.
        node: max((position.get(user, len(nodes)) for user in node.users), default=-1)
        for node in [*entries, *nodes]
    }
    live = list(entries)
    for i, node in enumerate(nodes[:-1]):
        live = [n for n in (*live, node) if last_use[n] > i]
        yield i, live


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
    """Names of the modules that end and begin between two neighbouring nodes."""
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
