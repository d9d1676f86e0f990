"""Distillation: the network with the Transfer Layer learns from the uncut network (no labels).

The uncut network is the teacher (Hinton, Vinyals, Dean, arXiv 1503.02531). As the device slice is
frozen unless it is asked to learn, what it and the teacher answer for a photograph never changes,
and is worked out once where it fits in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.utils.data import DataLoader, Dataset, Subset

from scissionlite.graph import Graph, SlicingPoint
from scissionlite.preprocessor.data import Data, Photographs, as_inputs
from scissionlite.preprocessor.inserter import SlicedNetwork
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.preprocessor.tasks import Task, normalised_error
from scissionlite.values import flat

_TAPS = 3
"""Most slicing points behind the cut where features are compared."""

_REMEMBERED_BYTES = 2 << 30
"""Most memory for what the frozen slices answer."""


class Teacher(nn.Module):
    """The uncut network, cut at the same slicing point, with its weights as they were.

    Parameters
    ----------
    graph
        The captured network.
    point
        Where the student is cut.

    Attributes
    ----------
    device_slice, edge_slice : torch.nn.Module
        The edge slice answers what the network does, and behind it what crosses at the taps.
    taps : tuple of str
        Nodes of the edge slice whose values are compared, too (FitNets: Romero et al., arXiv
        1412.6550): some slicing points, evenly spread over the slice.
    """

    def __init__(self, graph: Graph, point: SlicingPoint | str | int) -> None:
        super().__init__()
        cut = graph.point(point)
        self.device_slice, edge_slice = graph.split(cut)
        self.taps = _taps(graph, cut)
        self.edge_slice = tapped(edge_slice, self.taps)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode."""
        return super().train(False)


def _taps(graph: Graph, cut: SlicingPoint) -> tuple[str, ...]:
    """Some slicing points behind the cut where feature maps cross, by the node that makes them."""
    later = [
        other.crossing[0].name
        for other in graph.slicing_points[cut.index + 1 :]
        if len(other.crossing) == 1 and len(other.crossing[0].shape) > 2
    ]
    chosen = torch.linspace(0, len(later) - 1, _TAPS + 2).round().int().tolist()[1:-1]
    return tuple(dict.fromkeys(later[i] for i in chosen)) if later else ()


def tapped(edge_slice: nn.Module, taps: Sequence[str]) -> fx.GraphModule:
    """An edge slice, with the same weights, that also answers what some of its nodes hold."""
    assert isinstance(edge_slice, fx.GraphModule)  # Graph.split gives nothing else
    whole = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    answer = whole.graph_copy(edge_slice.graph, copies)
    by_name = {node.name: copy for node, copy in copies.items()}
    whole.output((*flat(answer), *(by_name[name] for name in taps)))
    return fx.GraphModule(edge_slice, whole)


class Lesson(NamedTuple):
    """A batch for a network with a Transfer Layer in it.

    Attributes
    ----------
    features
        What the student's device slice answers.
    reference
        What the teacher's does: the very same unless the student's learns.
    wanted
        What the teacher answers, and what it holds at the taps; empty without a teacher.
    target
        The labels, collated.
    """

    features: list[torch.Tensor]
    reference: list[torch.Tensor]
    wanted: list[torch.Tensor]
    target: Any


def lesson(
    student: SlicedNetwork,
    teacher: Teacher | None,
    inputs: tuple[torch.Tensor, ...],
    target: Any,
) -> Lesson:
    """Work out what a batch has to teach."""
    features = student.features(*inputs)
    with torch.no_grad():
        reference = features
        if teacher is not None and student.train_device_slice:
            reference = flat(teacher.device_slice(*inputs))
        wanted = [] if teacher is None else flat(teacher.edge_slice(*reference))
    return Lesson(features, reference, wanted, target)


def loss_of(
    student: SlicedNetwork,
    edge_slice: nn.Module,
    batch: Lesson,
    task: Task,
    recipe: Recipe,
    *,
    labelled: bool,
) -> tuple[torch.Tensor, Any]:
    """The loss of a batch, and what the student answers.

    Features at the cut are compared where that can teach something: where a learned Transfer Layer,
    or a device slice that learns, makes what arrives.

    Parameters
    ----------
    edge_slice
        The student's, with the teacher's taps where there is one (:func:`tapped`).
    labelled
        Whether the target is looked at.
    """
    arrived = student.transfer(batch.features)
    if not batch.wanted:
        answer = edge_slice(*arrived)
        return task.loss(answer, batch.target), answer
    answers = edge_slice(*arrived)
    count = student.outputs
    answer, wanted = _as_one(answers[:count]), _as_one(batch.wanted[:count])
    loss = task.distance(answer, wanted, recipe.temperature)
    # Each as far off as its own spread counts one; together they count as the outputs do.
    errors = []
    if student.train_device_slice or any(layer.spec.learned for layer in student.layers):
        errors.append(normalised_error(arrived, batch.reference))
    if len(answers) > count:
        errors.append(normalised_error(answers[count:], batch.wanted[count:]))
    loss = loss + sum(errors)
    if labelled and recipe.distillation < 1:
        by_label = task.loss(answer, batch.target)
        loss = recipe.distillation * loss + (1 - recipe.distillation) * by_label
    return loss, answer


def _as_one(tensors: Sequence[torch.Tensor]) -> Any:
    """A tensor, or a tuple of several, as a network answers."""
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


class Remembered(Dataset[tuple[list[torch.Tensor], list[torch.Tensor], Any]]):
    """Photographs, as they are and mirrored, with what the frozen slices answer for them.

    An item is one of the two at random: features, the teacher's answers, and the label.

    Parameters
    ----------
    answers
        For both, in the order of the photographs: features and the teacher's answers.
    labels
        Of the photographs.
    """

    def __init__(
        self, answers: list[list[tuple[list[torch.Tensor], list[torch.Tensor]]]], labels: list[int]
    ) -> None:
        self._answers = answers
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[list[torch.Tensor], list[torch.Tensor], Any]:
        mirrored = len(self._answers) > 1 and bool(torch.rand(()) < 0.5)
        features, wanted = self._answers[mirrored][index]
        return features, wanted, self._labels[index]


def remember(
    student: SlicedNetwork, teacher: Teacher | None, data: Data, processor: torch.device
) -> Remembered | None:
    """Work out beforehand what frozen slices answer for photographs; None where that cannot be.

    It cannot where the device slice learns, the data are not photographs of a folder (another data
    set may answer anew each time), or it takes more memory than is fit.
    """
    whole = data.dataset if isinstance(data, Subset) else data
    if student.train_device_slice or not isinstance(whole, Photographs) or not len(whole):
        return None
    indices = list(data.indices) if isinstance(data, Subset) else list(range(len(whole)))
    sides = [False, True] if whole.augment else [False]
    answers: list[list[tuple[list[torch.Tensor], list[torch.Tensor]]]] = []
    labels: list[int] = []
    for mirrored in sides:
        answers.append([])
        labels = []
        for inputs, label in _batches(whole, indices, mirrored):
            found = lesson(student, teacher, tuple(x.to(processor) for x in inputs), label)
            for i in range(len(label)):
                # Clones: a view would keep the whole batch.
                own = [x[i].cpu().clone() for x in found.features]
                answers[-1].append((own, [x[i].cpu().clone() for x in found.wanted]))
            labels += label.tolist()
            first = answers[0][0]
            each = sum(x.nbytes for part in first for x in part)
            if each * len(indices) * len(sides) > _REMEMBERED_BYTES:
                return None
    return Remembered(answers, labels)


def _batches(
    photographs: Photographs, indices: list[int], mirrored: bool
) -> Iterator[tuple[tuple[torch.Tensor, ...], torch.Tensor]]:
    side = photographs.side(mirrored)
    for x, label in DataLoader(Subset(side, indices), 32):
        yield as_inputs(x), label
