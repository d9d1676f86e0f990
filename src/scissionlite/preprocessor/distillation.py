"""Distillation: the network with the Transfer Layer learns from the uncut network (no labels)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from scissionlite.graph import Graph, SlicingPoint
from scissionlite.preprocessor.inserter import SlicedNetwork
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.preprocessor.tasks import Task, normalised_error


class Teacher(nn.Module):
    """The uncut network, cut at the same slicing point, with its weights as they were.

    Parameters
    ----------
    graph
        The captured network.
    point
        Where the student is cut.
    """

    def __init__(self, graph: Graph, point: SlicingPoint | str | int) -> None:
        super().__init__()
        self.device_slice, self.edge_slice = graph.split(point)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode."""
        return super().train(False)


def distilled_loss(
    student: SlicedNetwork,
    teacher: Teacher,
    inputs: tuple[torch.Tensor, ...],
    target: Any,
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
    labelled
        Whether the target is looked at.
    """
    features = student.features(*inputs)
    arrived = student.transfer(features)
    answer = student.edge_slice(*arrived)
    with torch.no_grad():
        if student.train_device_slice:
            crossing = teacher.device_slice(*inputs)
            reference = crossing if isinstance(crossing, (tuple, list)) else [crossing]
        else:  # the frozen device slice is the teacher's own
            reference = features
        wanted = teacher.edge_slice(*reference)
    loss = task.distance(answer, wanted, recipe.temperature)
    if student.train_device_slice or any(layer.spec.learned for layer in student.layers):
        loss = loss + normalised_error(arrived, reference)
    if labelled and recipe.distillation < 1:
        by_label = task.loss(answer, target)
        loss = recipe.distillation * loss + (1 - recipe.distillation) * by_label
    return loss, answer
