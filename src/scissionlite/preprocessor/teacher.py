"""Teacher: the uncut network that the sliced network learns from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import fx, nn

from scissionlite.graph.analysis import flat
from scissionlite.graph.graph import Graph, SlicingPoint

_MAX_HINTS = 3
"""Most slicing points behind the cut where features are compared."""


class TeacherAnswer(NamedTuple):
    """A teacher's answer for a batch.

    Attributes
    ----------
    outputs
        The outputs of the network.
    hints
        The features at :attr:`Teacher.hint_nodes`, in that order.
    """

    outputs: list[torch.Tensor]
    hints: list[torch.Tensor]


class Teacher(nn.Module):
    """The uncut network with its weights as they were, cut where the sliced network is cut.

    It stays in evaluation mode.

    Parameters
    ----------
    graph
        The captured network.
    point
        The slicing point of the sliced network.

    Attributes
    ----------
    device_slice : torch.nn.Module
        From the inputs to the features at the slicing point.
    edge_slice : torch.nn.Module
        From these features to one tuple: the outputs, then the hints.
    hint_nodes : tuple of str
        Nodes of the edge slice whose features are compared, too: at most three slicing points,
        evenly spread over the slice. Comparing hidden layers is from FitNets (Romero et al., arXiv
        1412.6550), which calls the teacher's features hints.
    """

    def __init__(self, graph: Graph, point: SlicingPoint | str | int) -> None:
        super().__init__()
        cut = graph.point(point)
        self.device_slice, edge_slice = graph.split(cut)
        self.hint_nodes = _hint_nodes(graph, cut)
        self.edge_slice = with_hints(edge_slice, self.hint_nodes)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode."""
        return super().train(False)

    def features(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Compute the features at the slicing point."""
        return flat(self.device_slice(*inputs))

    def answer(self, features: Sequence[torch.Tensor]) -> TeacherAnswer:
        """Compute outputs and hints from the features at the slicing point."""
        answers = flat(self.edge_slice(*features))
        count = len(answers) - len(self.hint_nodes)
        return TeacherAnswer(answers[:count], answers[count:])


def _hint_nodes(graph: Graph, cut: SlicingPoint) -> tuple[str, ...]:
    """Choose slicing points behind the cut where one feature map crosses, by their node's name."""
    later = [
        other.crossing[0].name
        for other in graph.slicing_points[cut.index + 1 :]
        if len(other.crossing) == 1 and len(other.crossing[0].shape) > 2
    ]
    chosen = torch.linspace(0, len(later) - 1, _MAX_HINTS + 2).round().int().tolist()[1:-1]
    return tuple(dict.fromkeys(later[i] for i in chosen)) if later else ()


def with_hints(edge_slice: nn.Module, hint_nodes: Sequence[str]) -> fx.GraphModule:
    """Have an edge slice answer one tuple: its outputs, then the values of some of its nodes.

    The result shares the slice's weights.
    """
    assert isinstance(edge_slice, fx.GraphModule)  # Graph.split gives nothing else
    whole = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    answer = whole.graph_copy(edge_slice.graph, copies)
    by_name = {node.name: copy for node, copy in copies.items()}
    whole.output((*flat(answer), *(by_name[name] for name in hint_nodes)))
    return fx.GraphModule(edge_slice, whole)
