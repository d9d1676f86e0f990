"""Objectives of training: each a class whose ``step(batch)`` computes the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from scissionlite.graph.analysis import flat
from scissionlite.preprocessor.batches import Batch, Placement
from scissionlite.preprocessor.inserter import SlicedNetwork
from scissionlite.preprocessor.tasks import Task, normalised_error
from scissionlite.preprocessor.teacher import Teacher, with_hints


class Step(NamedTuple):
    """The loss of a batch, a scalar with gradients, and the network's answer."""

    loss: torch.Tensor
    answer: Any


class TooSmallBatchError(Exception):
    """A batch leaves a normalization in training mode one value, which has no variance."""


def step_or_too_small(objective: Objective, batch: Batch) -> Step:
    """Run a step of an objective.

    Raises
    ------
    TooSmallBatchError
        Where torch refuses to normalize: a batch of one sample behind global pooling, mostly.
    """
    try:
        return objective.step(batch)
    except ValueError as error:
        # torch has no exception of its own for it; batch, group and instance norms say this.
        if not str(error).startswith("Expected more than 1 "):
            raise
        raise TooSmallBatchError(str(error)) from error


class Objective(Protocol):
    """A loss that training minimises."""

    def step(self, batch: Batch) -> Step:
        """Run the network on a batch and compute the loss; weights stay as they are."""
        ...


class LabelLoss:
    """The task's loss against the labels.

    For a network f and a batch (x, y)::

        L = loss(f(x), y)

    Parameters
    ----------
    network
        Any network; of a :class:`.SlicedNetwork` with a frozen device slice, batches hold its
        features instead of x.
    task
        Whose ``loss`` it is: cross entropy for classes and pixels.
    placement
        Where the network is.
    """

    def __init__(self, network: nn.Module, task: Task, placement: Placement) -> None:
        self._network, self._task, self._placement = network, task, placement

    def step(self, batch: Batch) -> Step:
        """Compute the loss of a batch."""
        with self._placement.autocast():
            if not isinstance(self._network, SlicedNetwork):
                answer = self._network(*batch.inputs)
                return Step(self._task.loss(answer, batch.target), answer)
            arrived, rate = _transferred(self._network, batch)
            answer = self._network.edge_slice(*arrived)
            return Step(self._task.loss(answer, batch.target) + rate, answer)


class Distillation:
    """A weighted sum of two losses: against the uncut network (the teacher), and against labels.

    For the student's outputs z, the teacher's outputs t, labels y, the share s and the temperature
    T::

        L = s * (distance(z, t, T) + E(features) + E(hints)) + (1 - s) * loss(z, y)
        E(a) = mean over tensors of MSE(a, teacher's a) / variance(teacher's a)

    - ``distance`` is the task's. For classes and pixels it is T^2 times the Kullback-Leibler
      divergence of softened outputs (Hinton, Vinyals, Dean, arXiv 1503.02531, section 2).
    - Features are those that arrive behind the Transfer Layer. E(features) is left out where
      nothing that learns makes them: a frozen device slice and no learned Transfer Layer.
    - Hints are features at up to three slicing points behind the cut (FitNets: Romero et al.,
      arXiv 1412.6550, equation 3, there without the division). Divided by its variance, an error
      of features weighs as much as one of outputs.

    - With three tiers there are no hints.

    Where the network has a :class:`.Rate`, its term is added, here and in :class:`LabelLoss`.

    With s = 1 labels are not looked at, and ``target`` may be None.

    Parameters
    ----------
    network
        The student.
    teacher
        The uncut network, cut at the same slicing point.
    task
        Whose ``distance`` and ``loss`` these are.
    placement
        Where both networks are.
    share
        s, 0 to 1.
    temperature
        T.
    """

    def __init__(
        self,
        network: SlicedNetwork,
        teacher: Teacher,
        task: Task,
        placement: Placement,
        *,
        share: float,
        temperature: float,
    ) -> None:
        self._network, self._task, self._placement = network, task, placement
        self._edge_slice: Callable[..., Sequence[torch.Tensor]]
        if isinstance(whole := network.edge_slice, SlicedNetwork):
            # Three tiers: no hints, as features of the teacher do not have the second Transfer
            # Layer's losses.
            self._edge_slice = lambda *arrived: flat(whole(*arrived))
        else:
            self._edge_slice = with_hints(whole, teacher.hint_nodes)
        self._share, self._temperature = share, temperature
        learned_layer = any(layer.spec.learned for layer in network.layers)
        self._features_learn = network.train_device_slice or learned_layer

    def step(self, batch: Batch) -> Step:
        """Compute the loss of a batch."""
        with self._placement.autocast():
            arrived, rate = _transferred(self._network, batch)
            answers = self._edge_slice(*arrived)
            count = len(batch.teacher_outputs)
            answer, hints = _one_or_several(answers[:count]), answers[count:]
            teacher_answer = _one_or_several(batch.teacher_outputs)
            loss = self._task.distance(answer, teacher_answer, self._temperature)
            errors = []
            if self._features_learn:
                teacher_features = batch.teacher_features or batch.features
                errors.append(normalised_error(arrived, teacher_features))
            if hints:
                errors.append(normalised_error(hints, batch.teacher_hints))
            loss = loss + sum(errors)
            if self._share < 1:
                by_label = self._task.loss(answer, batch.target)
                loss = self._share * loss + (1 - self._share) * by_label
            return Step(loss + rate, answer)


def _transferred(
    network: SlicedNetwork, batch: Batch
) -> tuple[list[torch.Tensor], torch.Tensor | float]:
    """Run the Transfer Layers: the features behind them, and the loss's term for their bytes."""
    features = batch.features or network.features(*batch.inputs)
    sent = network.send(features)
    rate = 0.0 if network.rate is None else network.rate(network.layers, sent)
    return network.receive(sent, features), rate


def _one_or_several(tensors: Sequence[torch.Tensor]) -> Any:
    """A tensor, or a tuple of several, as a network answers."""
    return tensors[0] if len(tensors) == 1 else tuple(tensors)
