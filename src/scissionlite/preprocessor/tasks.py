"""Tasks: the loss and the metric of a network, and its distance from the uncut network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map

from scissionlite.errors import PrepareError
from scissionlite.graph.analysis import flat
from scissionlite.preprocessor.classes import MetricName
from scissionlite.preprocessor.metrics import (
    IGNORED,
    METRICS,
    Counts,
    check_labels,
    count_classes,
)


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
        ``tally(answer, target)``: what the metric needs of a batch. That of all batches is added
        up with ``+=``: a tensor of counts, or a :class:`WholeSet`, which holds all answers.
    score : callable
        ``score(sum)``: the metric over the whole data set; more is better.
    distance : callable
        ``distance(answer, reference, temperature)``: the distance of an answer from the uncut
        network's, a scalar tensor with gradients.
    metric : str
        The score's name.
    """

    name: str
    loss: Callable[[Any, Any], torch.Tensor]
    tally: Callable[[Any, Any], Any]
    score: Callable[[Any], float]
    distance: Callable[[Any, Any, float], torch.Tensor]
    metric: str

    @property
    def counted(self) -> bool:
        """Whether the metric needs only counts of a batch, and not all answers at once."""
        return self.tally != WholeSet.of

    @property
    def of_classes(self) -> bool:
        """Whether it counts samples or pixels by class, as :data:`.metrics.METRICS` need it."""
        return self.tally == count_classes

    def by(self, metric: MetricName) -> Task:
        """Make the same task with another metric of classes.

        Raises
        ------
        PrepareError
            If it is not a task of classes.
        """
        if not self.of_classes:
            raise PrepareError(f"a {self.name} task has no classes that {metric} could count")
        label, value = METRICS[metric]
        return replace(self, score=value, metric=label)

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
            ``metric(answer, target)`` over a whole data set, called once for each score; more is
            better. Both are on the CPU and collated, as if the data set were one batch. All answers
            of the network are in memory for it; their inputs are not.
        name
            The task's name.
        distance
            As the attribute; by default :func:`normalised_error` of the outputs.
        """

        def score(whole: WholeSet) -> float:
            return float(metric(_joined(whole.answers), _joined(whole.targets)))

        return cls(name, loss, WholeSet.of, score, distance or normalised_error, "score")


class Scored:
    """A task's score over all batches that are added.

    Parameters
    ----------
    task
        Whose metric it is.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._sum: Any = None

    def add(self, answer: Any, target: Any) -> None:
        """Add a batch."""
        tally = self._task.tally(answer, target)
        if self._sum is None:
            self._sum = tally
        else:
            self._sum += tally

    def score(self) -> float:
        """Compute the metric over all batches.

        Raises
        ------
        PrepareError
            If there are none.
        """
        return self._task.score(self._whole())

    def counts(self) -> Counts | None:
        """The counts of all batches by class; None if the task is not one of classes.

        Raises
        ------
        PrepareError
            As :meth:`score`.
        """
        whole = self._whole()
        return whole if self._task.of_classes else None

    def _whole(self) -> Any:
        if self._sum is None:
            raise PrepareError("the validation data set is empty")
        return self._sum


class WholeSet:
    """The answers and targets of a data set, batch by batch, on the CPU.

    Attributes
    ----------
    answers, targets : list
        One entry for each batch.
    """

    def __init__(self, answers: list[Any], targets: list[Any]) -> None:
        self.answers, self.targets = answers, targets

    @classmethod
    def of(cls, answer: Any, target: Any) -> WholeSet:
        """One batch."""
        return cls([_on_cpu(answer)], [_on_cpu(target)])

    def __iadd__(self, other: WholeSet) -> WholeSet:
        self.answers += other.answers
        self.targets += other.targets
        return self


def _on_cpu(value: Any) -> Any:
    return tree_map(lambda x: x.detach().cpu() if torch.is_tensor(x) else x, value)


def _joined(batches: Sequence[Any]) -> Any:
    """Join batches of collated tensors, lists, tuples and dicts of them to one batch."""
    first = batches[0]
    if torch.is_tensor(first):
        return torch.cat(list(batches))
    if isinstance(first, Mapping):
        return {key: _joined([each[key] for each in batches]) for key in first}
    if all(map(torch.is_tensor, first)):  # several outputs or targets of each sample
        return tuple(_joined(parts) for parts in zip(*batches, strict=True))
    return [each for batch in batches for each in batch]  # texts, of which torch makes a list


def normalised_error(answer: Any, reference: Any, temperature: float = 1.0) -> torch.Tensor:
    """Mean squared error per tensor, divided by the reference's variance; the mean over tensors.

    The temperature has no effect. (It is there so that this can be a task's ``distance``.)
    """
    pairs = list(zip(flat(answer), flat(reference), strict=True))
    errors = [F.mse_loss(a, r) / r.var(correction=0).clamp_min(1e-12) for a, r in pairs]
    return torch.stack(errors).mean()


def _class_loss(answer: Any, target: torch.Tensor) -> torch.Tensor:
    logits = flat(answer)[0]
    try:
        return F.cross_entropy(logits, target, label_smoothing=0.05)
    except IndexError:  # on a CPU; a GPU stops with an error of its own
        check_labels(target, logits.shape[1])
        raise


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
    logits = flat(answer)[0]
    try:
        return F.cross_entropy(logits, target, ignore_index=IGNORED)
    except IndexError:
        check_labels(target[target != IGNORED], logits.shape[1])
        raise


CLASSIFICATION = Task(
    "classification",
    _class_loss,
    count_classes,
    METRICS["accuracy"].value,
    _divergence,
    METRICS["accuracy"].label,
)
"""Classes. Answer float32 (N, classes), the first of several outputs; target int64 (N,). The score
is the share of right answers; ``CLASSIFICATION.by("balanced-accuracy")`` has another one."""

SEGMENTATION = Task(
    "segmentation",
    _pixel_loss,
    count_classes,
    METRICS["miou"].value,
    _divergence,
    METRICS["miou"].label,
)
"""Classes of pixels. Answer float32 (N, classes, H, W), the first of several outputs; target int64
(N, H, W), 255 where a pixel does not count. The score is the mean intersection over union."""

TASKS = {task.name: task for task in (CLASSIFICATION, SEGMENTATION)}
