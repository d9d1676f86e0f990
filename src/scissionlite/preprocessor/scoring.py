"""Scoring: a network's score on a data set, in torch."""

from __future__ import annotations

import torch
from torch import nn

from scissionlite.graph.analysis import flat
from scissionlite.graph.graph import Graph
from scissionlite.preprocessor.data import Data, loader_of
from scissionlite.preprocessor.tasks import CLASSIFICATION, Scored, Task


def evaluate(
    network: nn.Module, data: Data, *, task: Task = CLASSIFICATION, batch_size: int = 32
) -> float:
    """Score a network in evaluation mode.

    Raises
    ------
    PrepareError
        If the data set is empty.
    """
    network.eval()
    processor = next((p.device for p in network.parameters()), torch.device("cpu"))
    scored = Scored(task)
    with torch.inference_mode():
        for x, target in loader_of(data, batch_size):
            answer = network(*(part.to(processor) for part in flat(x)))
            scored.add(answer, target.to(processor))
    return scored.score()


def score_uncut(graph: Graph, validate: Data, task: Task) -> float:
    """Score the uncut network, in batches of a size that it takes."""
    return evaluate(graph.module, validate, task=task, batch_size=batch_size_of(graph))


def batch_size_of(graph: Graph) -> int:
    """The batch size of scoring: 32, or the only one that a network takes."""
    return 32 if graph.dynamic_batch else len(graph.example[0])
