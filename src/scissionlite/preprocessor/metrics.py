"""Metrics of classes, of samples or pixels, from counts for each class.

Where most samples are of one class, accuracy says little: always answering that class has a high
one. Balanced accuracy and macro F1 weigh every class alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch

from scissionlite.errors import PrepareError
from scissionlite.graph.analysis import flat
from scissionlite.preprocessor.classes import MetricName

IGNORED = 255
"""Label of a pixel that counts neither in training nor in the score (Pascal VOC's)."""

Counts: TypeAlias = torch.Tensor
"""float64 (3, classes): how many samples or pixels of each class are answered right, how many there
are, and how many are answered as this class. Counts of several batches may be added up."""


class Metric(NamedTuple):
    """A metric of classes: its name in tables, and its value, 0 to 1, from the counts."""

    label: str
    value: Callable[[Counts], float]


def count_classes(answer: Any, target: torch.Tensor) -> Counts:
    """Count the samples or pixels of a batch.

    Parameters
    ----------
    answer
        The network's: float32 ``(N, classes, ...)``, or the first of several outputs.
    target
        int64 ``(N, ...)``; pixels of ``IGNORED`` are left out.

    Raises
    ------
    PrepareError
        If a label is none of the network's outputs.
    """
    logits = flat(answer)[0]
    classes = logits.shape[1]
    answered = logits.argmax(1).flatten()
    labels = target.flatten()
    if target.ndim > 1:  # pixels; in classes, 255 is one as any other
        counted = labels != IGNORED
        answered, labels = answered[counted], labels[counted]
    check_labels(labels, classes)
    kinds = (labels[answered == labels], labels, answered)
    return torch.stack([torch.bincount(each, minlength=classes) for each in kinds]).double().cpu()


def check_labels(labels: torch.Tensor, classes: int) -> None:
    """Check that labels are outputs of a network.

    Raises
    ------
    PrepareError
        If one is not.
    """
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise PrepareError(
            f"labels are {int(labels.min())} to {int(labels.max())}, and the network's outputs "
            f"are 0 to {classes - 1}"
        )


def recalls(counts: Counts) -> tuple[float | None, ...]:
    """The share of each class that is answered right; None for a class that does not occur."""
    right, there, _ = counts.tolist()
    return tuple(r / n if n else None for r, n in zip(right, there, strict=True))


def constant_answer(counts: Counts) -> Counts:
    """The counts of always answering the most frequent class."""
    there = counts[1]
    most = int(there.argmax())
    constant = torch.zeros_like(counts)
    constant[0, most], constant[1], constant[2, most] = there[most], there, there.sum()
    return constant


def _accuracy(counts: Counts) -> float:
    return float(counts[0].sum() / counts[1].sum())


def _balanced_accuracy(counts: Counts) -> float:
    """Mean recall of the classes that occur."""
    right, there, _ = counts
    return float((right / there)[there > 0].mean())


def _macro_f1(counts: Counts) -> float:
    """Mean F1 of the classes that occur or are answered."""
    right, there, answered = counts
    both = there + answered
    return float((2 * right / both)[both > 0].mean())


def _mean_iou(counts: Counts) -> float:
    """Mean intersection over union of the same classes (Everingham et al., IJCV 2015)."""
    right, there, answered = counts
    union = there + answered - right
    return float((right / union)[union > 0].mean())


METRICS: dict[MetricName, Metric] = {
    "accuracy": Metric("accuracy", _accuracy),
    "balanced-accuracy": Metric("balanced accuracy", _balanced_accuracy),
    "macro-f1": Metric("macro F1", _macro_f1),
    "miou": Metric("mIoU", _mean_iou),
}
