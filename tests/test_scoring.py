"""Scores: a metric sees the whole data set, and a large drop is warned about."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import nn

from scissionlite.preprocessor import splitter, trainer
from scissionlite.preprocessor.tasks import CLASSIFICATION, Scored, Task


def _balanced_accuracy(answer: torch.Tensor, target: torch.Tensor) -> float:
    """Mean of the classes' recalls: no mean over samples."""
    right = (answer.argmax(1) == target).double()
    return float(torch.stack([right[target == each].mean() for each in target.unique()]).mean())


@pytest.mark.parametrize("batch_size", [100, 32, 7, 1])
def test_a_metric_sees_the_whole_set(batch_size: int) -> None:
    """90 of class 0 are right and 10 of class 1 are wrong: 0.5, whatever the batches."""
    answers = torch.tensor([[1.0, 0.0]]).repeat(100, 1)
    target = (torch.arange(100) % 10 == 0).long()
    data = torch.utils.data.TensorDataset(answers, target)
    task = Task.of(lambda answer, target: 0 * answer.sum(), _balanced_accuracy)
    assert trainer.evaluate(nn.Identity(), data, task=task, batch_size=batch_size) == 0.5
    # The exported network is scored one sample at a time: the same.
    accuracy = splitter.measure(
        splitter.LocalInference(lambda *inputs: inputs), data, task, before=0.5
    )
    assert accuracy.after == 0.5


def test_a_metric_sees_several_answers_and_targets() -> None:
    """Outputs in a tuple, and a target of tensors and texts, are joined as one batch."""
    seen: list[Any] = []

    def metric(answer: Any, target: Any) -> float:
        seen.append((answer, target))
        return 1.0

    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, 2 * x

    task = Task.of(lambda answer, target: answer[0].sum(), metric)
    scored = Scored(task)
    for i in (0, 1):
        x = torch.full((2, 3), float(i))
        scored.add(Two()(x), {"box": x, "name": [f"{i}a", f"{i}b"], "pair": [x, x]})
    assert scored.score() == 1.0
    ((answer, target),) = seen
    assert [part.shape for part in answer] == [(4, 3), (4, 3)]
    assert target["name"] == ["0a", "0b", "1a", "1b"]
    assert target["box"].shape == target["pair"][1].shape == (4, 3)


@pytest.mark.parametrize(
    ("before", "after", "labels", "said"),
    [
        (0.97, 0.6, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1], "fell from 97.0% to 60.0%: train"),
        (0.62, 0.6, [0, 0, 0, 0, 0, 0, 0, 1, 1, 1], "most frequent class has 70.0%"),
        (0.64, 0.6, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1], ""),
        (0.6, 0.6, [0, 0, 0, 0, 0, 0, 0, 1, 1, 1], ""),
        (0.2, 0.6, [0, 0, 0, 0, 0, 0, 0, 1, 1, 1], ""),
    ],
)
def test_a_large_drop_of_the_score_is_warned_about(
    before: float, after: float, labels: list[int], said: str
) -> None:
    target = torch.tensor(labels)
    right = torch.arange(10) < round(after * 10)
    answers = nn.functional.one_hot(torch.where(right, target, 1 - target), 2).float()
    data = torch.utils.data.TensorDataset(answers, target)
    local = splitter.LocalInference(lambda *inputs: inputs)
    warned = pytest.warns(splitter.AccuracyWarning, match=said)
    with warned if said else contextlib.nullcontext():
        accuracy = splitter.measure(local, data, CLASSIFICATION, before=before)
    assert accuracy.after == pytest.approx(after)
