"""Training time: how long a training will take, told before it starts."""

from __future__ import annotations

import copy
import time
from collections.abc import Sized
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import DataLoader

from scissionlite.graph.analysis import flat, multiplications
from scissionlite.graph.graph import Graph
from scissionlite.preprocessor.data import Data, Mirrorable, loader_of
from scissionlite.preprocessor.inserter import CALIBRATION_INPUTS
from scissionlite.preprocessor.objectives import TooSmallBatchError, step_or_too_small
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.preprocessor.training_setup import TrainingSetup
from scissionlite.scissiontl.plans import Plan

_BACKWARD = 2.0
"""Time of the backward pass over that of the forward pass, about."""

_SCORINGS = 4
"""How often a network in a try is scored: calibrated, in training, and as it was exported."""


def epoch_seconds(setup: TrainingSetup, network: nn.Module) -> float:
    """Measure a training step, and multiply by the steps of an epoch; 0 where a step is impossible.

    Two steps are made, on copies, and the second one counts: the first also takes memory.
    """
    objective, student = copy.deepcopy((setup.objective, network))
    student.train()
    seconds = 0.0
    batches = iter(setup.batches)
    for _ in range(2):
        started = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            break
        try:
            step_or_too_small(objective, batch).loss.backward()
        except TooSmallBatchError:
            break
        seconds = time.perf_counter() - started
    return seconds * len(setup.batches)


@dataclass(frozen=True)
class TryTimes:
    """Predicts how long the tries of several plans take, from one measurement of the uncut network.

    Attributes
    ----------
    graph
        The captured network.
    forward
        Seconds in which the uncut network answers one sample, in batches of training.
    train, validate
        Number of samples.
    views
        How often a sample's features are computed with a cache; None without, where it is once in
        each epoch.
    """

    graph: Graph
    forward: float
    train: int
    validate: int
    views: int | None

    @classmethod
    def measured(
        cls, graph: Graph, train: Data | None, validate: Data, recipe: Recipe
    ) -> TryTimes | None:
        """Measure the uncut network with a batch of training data; None without such data."""
        if train is None:
            return None
        inputs = flat(next(iter(loader_of(train, recipe.batch_size)))[0])
        with torch.inference_mode():
            graph.module(*inputs)  # the first run also takes memory
            started = time.perf_counter()
            graph.module(*inputs)
            seconds = time.perf_counter() - started
        cached = isinstance(_dataset(train), Mirrorable)
        return cls(
            graph,
            seconds / len(inputs[0]),
            _samples(train),
            _samples(validate),
            2 if cached else None,
        )

    def seconds(self, plan: Plan, recipe: Recipe) -> float:
        """Seconds to calibrate, train and score a plan; exporting is not among them."""
        if plan.slicing_point is None:
            return self.forward * self.validate
        example = self.graph.example
        whole = max(1, multiplications(self.graph.module, example))
        device = multiplications(self.graph.split(plan.slicing_point)[0], example) / whole
        passes = min(CALIBRATION_INPUTS, self.train) * device + _SCORINGS * self.validate
        if recipe.epochs:
            learning = 1.0 if recipe.train_device_slice else 1.0 - device
            passes += self.train * (self.views or recipe.epochs)
            passes += recipe.epochs * self.train * learning * (1 + _BACKWARD)
        return self.forward * passes


def _dataset(data: Data) -> object:
    return data.dataset if isinstance(data, DataLoader) else data


def _samples(data: Data) -> int:
    """Number of samples; of data that do not say it, none."""
    dataset = _dataset(data)
    return len(dataset) if isinstance(dataset, Sized) else 0
