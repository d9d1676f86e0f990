"""Scores: a metric sees the whole data set, and a large drop is warned about."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from scissionlite.errors import PrepareError
from scissionlite.preprocessor import metrics, splitter
from scissionlite.preprocessor.classes import MetricName
from scissionlite.preprocessor.scoring import evaluate
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
    assert evaluate(nn.Identity(), data, task=task, batch_size=batch_size) == 0.5
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


@given(
    truth=hnp.arrays(np.int64, 12, elements=st.integers(0, 3)),
    answer=hnp.arrays(np.int64, 12, elements=st.integers(0, 3)),
)
def test_metrics_of_classes_are_those_of_their_definitions(truth: Any, answer: Any) -> None:
    logits = nn.functional.one_hot(torch.from_numpy(answer), 4).float()
    target = torch.from_numpy(truth)
    recalls, f1s = [], []
    for c in range(4):
        right = float(((truth == c) & (answer == c)).sum())
        if (truth == c).any():
            recalls.append(right / (truth == c).sum())
        if (truth == c).any() or (answer == c).any():
            precision = right / max((answer == c).sum(), 1)
            recall = right / max((truth == c).sum(), 1)
            f1s.append(2 * precision * recall / (precision + recall) if right else 0.0)
    expected = {
        "accuracy": np.mean(truth == answer),
        "balanced-accuracy": np.mean(recalls),
        "macro-f1": np.mean(f1s),
    }
    names: list[MetricName] = ["accuracy", "balanced-accuracy", "macro-f1"]
    for name in names:
        scored = Scored(CLASSIFICATION.by(name))
        for part in (slice(0, 5), slice(5, 12)):
            scored.add(logits[part], target[part])
        assert scored.score() == pytest.approx(expected[name])
    counts = scored.counts()
    assert counts is not None
    assert [r for r in metrics.recalls(counts) if r is not None] == pytest.approx(recalls)


def test_a_bundle_has_the_recall_of_each_class() -> None:
    """Always answering the class that 9 of 10 samples have: 90% right, and half of it balanced."""
    target = torch.tensor([0] * 9 + [1])
    answers = torch.tensor([[1.0, 0.0, 0.0]]).repeat(10, 1)
    data = torch.utils.data.TensorDataset(answers, target)
    local = splitter.LocalInference(lambda *inputs: inputs)
    task = CLASSIFICATION.by("balanced-accuracy")
    with pytest.warns(splitter.AccuracyWarning, match="most frequent class has 50.0%"):
        accuracy = splitter.measure(local, data, task, before=0.52)
    assert (accuracy.after, accuracy.metric) == (0.5, "balanced accuracy")
    assert accuracy.recalls == (1.0, 0.0, None)


def test_only_classes_have_metrics_of_classes() -> None:
    task = Task.of(lambda answer, target: answer.sum(), lambda answer, target: 0.0, name="depth")
    with pytest.raises(PrepareError, match="a depth task has no classes that macro-f1 could count"):
        task.by("macro-f1")
