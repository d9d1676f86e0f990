"""What a network is for: its loss, its metric, and how it is compared with the uncut network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from scissionlite.graph.analysis import flat

IGNORED = 255
"""Label of a pixel that counts neither in training nor in the score (Pascal VOC's)."""


@dataclass(frozen=True)
class Task:
    """A task: plain callables on a batch.

    ``answer`` is what the network answers: a tensor, or a tuple of several. ``target`` is what the
    data set gives beside the input, collated into a batch.

    Attributes
    ----------
    name : str
        What messages and checkpoints call it.
    loss : callable
        ``loss(answer, target)``: a scalar tensor with gradients.
    tally : callable
        ``tally(answer, target)``: a tensor of counts that are added over all batches.
    score : callable
        ``score(counts)``: the metric, from the sum of all counts; more is better.
    distance : callable
        ``distance(answer, reference, temperature)``: how far an answer is from the uncut network's,
        a scalar tensor with gradients.
    metric : str
        What the score is called.
    """

    name: str
    loss: Callable[[Any, Any], torch.Tensor]
    tally: Callable[[Any, Any], torch.Tensor]
    score: Callable[[torch.Tensor], float]
    distance: Callable[[Any, Any, float], torch.Tensor]
    metric: str

    @classmethod
    def of(
        cls,
        loss: Callable[[Any, Any], torch.Tensor],
        metric: Callable[[Any, Any], float],
        *,
        name: str = "custom",
        distance: Callable[[Any, Any, float], torch.Tensor] | None = None,
    ) -> Task:
        """A task of a user's own loss and metric.

        Parameters
        ----------
        loss
            ``loss(answer, target)``, a scalar tensor with gradients.
        metric
            ``metric(answer, target)``, the mean over the batch, more is better; batches are
            weighted by their size.
        name
            What to call it.
        distance
            As the attribute; by default the mean squared error of all outputs, each divided by its
            variance.
        """

        def tally(answer: Any, target: Any) -> torch.Tensor:
            size = len(flat(answer)[0])
            return torch.tensor([float(metric(answer, target)) * size, size], dtype=torch.float64)

        return cls(name, loss, tally, _mean, distance or normalised_error, "score")


def normalised_error(answer: Any, reference: Any, temperature: float = 1.0) -> torch.Tensor:
    """Mean squared error of all tensors, each divided by its reference's variance."""
    pairs = list(zip(flat(answer), flat(reference), strict=True))
    errors = [F.mse_loss(a, r) / r.var(correction=0).clamp_min(1e-12) for a, r in pairs]
    return torch.stack(errors).mean()


def _mean(counts: torch.Tensor) -> float:
    return float(counts[0] / counts[1])


def _class_loss(answer: Any, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(flat(answer)[0], target, label_smoothing=0.05)


def _right(answer: Any, target: torch.Tensor) -> torch.Tensor:
    right = (flat(answer)[0].argmax(1) == target).sum()
    return torch.stack([right, torch.tensor(len(target), device=right.device)]).double()


def _divergence(answer: Any, reference: Any, temperature: float) -> torch.Tensor:
    """Kullback-Leibler divergence of softened outputs over dimension 1, a sample or pixel each."""
    student = F.log_softmax(flat(answer)[0] / temperature, 1)
    teacher = F.log_softmax(flat(reference)[0] / temperature, 1)
    each = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
    # The gradients of softened outputs are 1/T^2 as large (arXiv 1503.02531, section 2.1).
    return each.mean() * temperature**2


def _pixel_loss(answer: Any, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(flat(answer)[0], target, ignore_index=IGNORED)


def _confusion(answer: Any, target: torch.Tensor) -> torch.Tensor:
    """Pixels by true class (rows) and answered class (columns)."""
    logits = flat(answer)[0]
    classes = logits.shape[1]
    counted = target != IGNORED
    pairs = target[counted] * classes + logits.argmax(1)[counted]
    return torch.bincount(pairs, minlength=classes**2).double().reshape(classes, classes)


def _mean_iou(confusion: torch.Tensor) -> float:
    """Mean over the classes that occur of intersection over union (Everingham et al., 2015)."""
    intersection = confusion.diag()
    union = confusion.sum(0) + confusion.sum(1) - intersection
    occurs = union > 0
    return float((intersection[occurs] / union[occurs]).mean())


CLASSIFICATION = Task("classification", _class_loss, _right, _mean, _divergence, "accuracy")
"""Answer (N, classes), of several outputs the first; target (N,), integers. Share of right
answers."""

SEGMENTATION = Task("segmentation", _pixel_loss, _confusion, _mean_iou, _divergence, "mIoU")
"""Answer (N, classes, H, W), of several outputs the first; target (N, H, W), integers, 255 where it
does not count. Mean intersection over union."""

TASKS = {task.name: task for task in (CLASSIFICATION, SEGMENTATION)}
