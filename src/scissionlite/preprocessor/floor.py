"""The floor: the least score that a network has to reach, looked at before and during training."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from scissionlite.errors import PrepareError
from scissionlite.graph.graph import Graph
from scissionlite.preprocessor.data import Data
from scissionlite.preprocessor.scoring import batch_size_of, evaluate
from scissionlite.preprocessor.tasks import Task

MOST_GAIN = ((0.125, 0.10), (0.25, 0.05), (0.5, 0.03))
"""Shares of a training that is done, and the most that its score may still rise to the end, 0 to 1.

Generous on purpose: in the recorded curves (docs/training.md) scores rose much less."""


class BelowFloorError(PrepareError):
    """A training that was stopped, because the network cannot reach the floor any more.

    Attributes
    ----------
    score : float
        The score when it was stopped.
    epoch : int
        Epochs that were done.
    """

    def __init__(self, score: float, epoch: int, least: float) -> None:
        super().__init__(
            f"after epoch {epoch} the score is {score:.2%}, too far below {least:.2%} to reach it: "
            "the training was stopped"
        )
        self.score, self.epoch = score, epoch


@dataclass(frozen=True)
class Floor:
    """A least score on validation data.

    Validation data choose nothing but when to stop here: the weights are those of the last epoch.

    Attributes
    ----------
    data
        The validation data.
    task
        Its metric.
    least
        The score to reach, 0 to 1.
    batch_size
        Of scoring, for a network that runs on one batch size only.
    """

    data: Data
    task: Task
    least: float
    batch_size: int = 32

    def holds(self, network: nn.Module) -> bool:
        """Whether a network reaches the floor as it is."""
        return self._score(network) >= self.least

    def looks(self, epoch: int, epochs: int) -> bool:
        """Whether the score is looked at after an epoch: once for each entry of the table."""
        return self._gain(epoch, epochs) != self._gain(epoch - 1, epochs)

    def check(self, network: nn.Module, epoch: int, epochs: int) -> None:
        """Score a network after an epoch of its training.

        Raises
        ------
        BelowFloorError
            If it is further below the floor than scores have risen from there to the end.
        """
        score = self._score(network)
        gain = self._gain(epoch, epochs)
        if gain is not None and score + gain < self.least:
            raise BelowFloorError(score, epoch, self.least)

    def _score(self, network: nn.Module) -> float:
        return evaluate(network, self.data, task=self.task, batch_size=self.batch_size)

    def _gain(self, epoch: int, epochs: int) -> float | None:
        """The most that the score still rises after an epoch; None before the first entry."""
        done = epoch / epochs
        return next((gain for share, gain in reversed(MOST_GAIN) if done >= share), None)


def floor_of(graph: Graph, least: float | None, data: Data | None, task: Task) -> Floor | None:
    """The floor of a network's splits; None without a least score.

    Raises
    ------
    PrepareError
        If there is a least score and no data to score on.
    """
    if least is None:
        return None
    if data is None:
        raise PrepareError("a floor needs data to score on: give validate=")
    return Floor(data, task, least, batch_size_of(graph))
