"""Distillation: the network with the Transfer Layer learns from the uncut network (no labels).

The uncut network is the teacher (Hinton, Vinyals, Dean, arXiv 1503.02531). What it answers for a
photograph never changes, nor does what the device slice answers unless that is asked to learn: both
are worked out once where they fit in memory.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from scissionlite.graph.analysis import flat
from scissionlite.graph.graph import Graph, SlicingPoint
from scissionlite.preprocessor.data import Data, Mirrorable, Sample, as_inputs
from scissionlite.preprocessor.inserter import SlicedNetwork
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.preprocessor.tasks import Task, normalised_error

_TAPS = 3
"""Most slicing points behind the cut where features are compared."""

_REMEMBERED_SHARE = 0.25
"""Most of the machine's (or the container's) memory for what is remembered."""


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
    """What never changes in training, of a batch or of one sample.

    Attributes
    ----------
    given
        What crosses; or the inputs, where the student's device slice learns.
    reference
        What crosses in the teacher; empty where that is what is given, or there is no teacher.
    wanted
        What the teacher answers, and what it holds at the taps; empty without a teacher.
    target
        The labels, collated, or the sample's.
    """

    given: list[torch.Tensor]
    reference: list[torch.Tensor]
    wanted: list[torch.Tensor]
    target: Any


def lesson(
    student: SlicedNetwork,
    teacher: Teacher | None,
    inputs: Sequence[torch.Tensor],
    target: Any,
) -> Lesson:
    """Work out what a batch has to teach."""
    reference: list[torch.Tensor] = []
    with torch.no_grad():
        if not student.train_device_slice:
            given = student.features(*inputs)
        else:
            given = list(inputs)
            if teacher is not None:
                reference = flat(teacher.device_slice(*inputs))
        wanted = [] if teacher is None else flat(teacher.edge_slice(*(reference or given)))
    return Lesson(given, reference, wanted, target)


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
    features = student.features(*batch.given) if student.train_device_slice else batch.given
    arrived = student.transfer(features)
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
        errors.append(normalised_error(arrived, batch.reference or batch.given))
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


class Remembered(Dataset[Lesson]):
    """Samples, as they are and mirrored, with what never changes worked out for them.

    An item is one of the two at random.

    Parameters
    ----------
    sides
        The answers for one or both, in the order of the samples.
    """

    def __init__(self, sides: list[list[Lesson]]) -> None:
        self._sides = sides

    def __len__(self) -> int:
        return len(self._sides[0])

    def __getitem__(self, index: int) -> Lesson:
        mirrored = len(self._sides) > 1 and bool(torch.rand(()) < 0.5)
        return self._sides[mirrored][index]


def remember(
    student: SlicedNetwork,
    teacher: Teacher | None,
    data: Data,
    processor: torch.device,
    *,
    most_bytes: int | None = None,
) -> Remembered | None:
    """Work out beforehand what never changes in training; None where that cannot be.

    It cannot where the data are not :class:`Mirrorable` as photographs are (they may answer anew
    each time), or where it takes more memory than ``most_bytes``, by default a quarter of the
    machine's.
    """
    whole = data.dataset if isinstance(data, Subset) else data
    if not isinstance(whole, Mirrorable) or not len(whole):
        return None
    if most_bytes is None:
        most_bytes = _share_of_memory()
    indices = list(data.indices) if isinstance(data, Subset) else list(range(len(whole)))
    sides = [False, True] if whole.augment else [False]
    remembered: list[list[Lesson]] = []
    for mirrored in sides:
        own: list[Lesson] = []
        remembered.append(own)
        samples = Subset(whole.side(mirrored), indices)
        for x, targets in DataLoader(samples, 32, collate_fn=_with_targets):
            inputs = tuple(part.to(processor) for part in as_inputs(x))
            found = lesson(student, teacher, inputs, None)
            for i, target in enumerate(targets):
                # Clones: a view would keep the whole batch.
                given, reference, wanted = (
                    [each[i].cpu().clone() for each in part] for part in found[:3]
                )
                own.append(Lesson(given, reference, wanted, target))
            first = remembered[0][0]
            tensors = [*first.given, *first.reference, *first.wanted, first.target]
            nbytes = sum(each.nbytes for each in tensors if torch.is_tensor(each))
            if nbytes * len(indices) * len(sides) > most_bytes:
                return None
    return Remembered(remembered)


def _with_targets(batch: list[Sample]) -> tuple[Any, list[Any]]:
    """Inputs as a batch, and every target as it came."""
    return default_collate([x for x, _ in batch]), [target for _, target in batch]


def _share_of_memory() -> int:
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # not POSIX
        whole = 8 << 30
    with contextlib.suppress(OSError, ValueError):  # not in a container, or one without a limit
        whole = min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return int(whole * _REMEMBERED_SHARE)
