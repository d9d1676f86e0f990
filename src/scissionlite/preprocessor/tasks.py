"""Tasks: the loss and the metric of a network, and its distance from the uncut network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from scissionlite.errors import PrepareError
from scissionlite.graph.analysis import flat

IGNORED = 255
"""Label of a pixel that counts neither in training nor in the score (Pascal VOC's)."""


@dataclass(frozen=True)
class Task:
    """A task, as functions of a batch.

    ``answer`` is the network's: a tensor, or a tuple of several. ``target`` is the data set's, with
    samples collated into a batch.

    Attributes
    ----------
    name : str
        Its name in messages and checkpoints.
    loss : callable
        ``loss(answer, target)``: a scalar tensor with gradients.
    tally : callable
        ``tally(answer, target)``: a tensor of counts, which are summed over all batches.
    score : callable
        ``score(counts)``: the metric from the summed counts; more is better.
    distance : callable
        ``distance(answer, reference, temperature)``: the distance of an answer from the uncut
        network's, a scalar tensor with gradients.
    metric : str
        The score's name.
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
        """Make a task of your own loss and metric.

        Parameters
        ----------
        loss
            ``loss(answer, target)``, a scalar tensor with gradients.
        metric
            ``metric(answer, target)``, the mean over the batch; more is better. Batches are
            weighted by their size.
        name
            The task's name.
        distance
            As the attribute; by default :func:`normalised_error` of the outputs.
        """

        def tally(answer: Any, target: Any) -> torch.Tensor:
            size = len(flat(answer)[0])
            return torch.tensor([float(metric(answer, target)) * size, size], dtype=torch.float64)

        return cls(name, loss, tally, _mean, distance or normalised_error, "score")


def normalised_error(answer: Any, reference: Any, temperature: float = 1.0) -> torch.Tensor:
    """Mean squared error per tensor, divided by the reference's variance; the mean over tensors.

    The temperature has no effect. (It is there so that this can be a task's ``distance``.)
    """
    pairs = list(zip(flat(answer), flat(reference), strict=True))
    errors = [F.mse_loss(a, r) / r.var(correction=0).clamp_min(1e-12) for a, r in pairs]
    return torch.stack(errors).mean()


def _mean(counts: torch.Tensor) -> float:
    return float(counts[0] / counts[1])


def _class_loss(answer: Any, target: torch.Tensor) -> torch.Tensor:
    logits = flat(answer)[0]
    try:
        return F.cross_entropy(logits, target, label_smoothing=0.05)
    except IndexError as error:  # on a CPU; a GPU stops with an error of its own
        raise PrepareError(
            f"labels are {int(target.min())} to {int(target.max())}, and the network's outputs "
            f"are 0 to {logits.shape[1] - 1}"
        ) from error


def _count_right(answer: Any, target: torch.Tensor) -> torch.Tensor:
    right = (flat(answer)[0].argmax(1) == target).sum()
    return torch.stack([right, torch.tensor(len(target), device=right.device)]).double()


def _divergence(answer: Any, reference: Any, temperature: float) -> torch.Tensor:
    """Kullback-Leibler divergence of softened outputs over the classes, times temperature squared.

    It is the mean over samples or pixels; the classes are dimension 1.
    """
    student = F.log_softmax(flat(answer)[0] / temperature, 1)
    teacher = F.log_softmax(flat(reference)[0] / temperature, 1)
    each = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
    # Softening makes gradients T^2 times smaller (arXiv 1503.02531, section 2).
    return each.mean() * temperature**2


def _pixel_loss(answer: Any, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(flat(answer)[0], target, ignore_index=IGNORED)


def _confusion(answer: Any, target: torch.Tensor) -> torch.Tensor:
    """Count pixels by true class (rows) and answered class (columns)."""
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


CLASSIFICATION = Task("classification", _class_loss, _count_right, _mean, _divergence, "accuracy")
"""Classes. Answer float32 (N, classes), the first of several outputs; target int64 (N,). The score
is the share of right answers."""

SEGMENTATION = Task("segmentation", _pixel_loss, _confusion, _mean_iou, _divergence, "mIoU")
"""Classes of pixels. Answer float32 (N, classes, H, W), the first of several outputs; target int64
(N, H, W), 255 where a pixel does not count. The score is the mean intersection over union."""

TASKS = {task.name: task for task in (CLASSIFICATION, SEGMENTATION)}
