"""Trainer: retrains a network with the Transfer Layer in it (arXiv 2105.02019)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from scissionlite.errors import PrepareError
from scissionlite.manifest import Training
from scissionlite.preprocessor.batch_norm import recalibrate_batch_norms
from scissionlite.preprocessor.batches import SampleBatches
from scissionlite.preprocessor.checkpoint import Checkpoint, TrainingState, data_digest
from scissionlite.preprocessor.data import Data
from scissionlite.preprocessor.floor import BelowFloorError, Floor
from scissionlite.preprocessor.inserter import SlicedNetwork
from scissionlite.preprocessor.objectives import Step, TooSmallBatchError, step_or_too_small
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.preprocessor.scoring import evaluate
from scissionlite.preprocessor.tasks import CLASSIFICATION, Scored, Task
from scissionlite.preprocessor.teacher import Teacher
from scissionlite.preprocessor.training_setup import TrainingSetup, set_up
from scissionlite.preprocessor.training_time import epoch_seconds
from scissionlite.progress import duration, progress_bar


def train(
    network: nn.Module,
    data: Data,
    recipe: Recipe | None = None,
    *,
    task: Task = CLASSIFICATION,
    teacher: Teacher | None = None,
    labelled: bool = True,
    floor: Floor | None = None,
    checkpoint: Path | None = None,
    progress: bool = False,
    description: str = "training",
) -> Training:
    """Train a network's trainable parameters.

    AdamW under a one-cycle schedule: a few epochs have to be enough. Without a patience the last
    epoch's weights are kept. With one, a part of the training data is held out, and the weights of
    the epoch that scores best there are kept. Validation data have no part in training, so that
    accuracy measured on them stays honest.

    Parameters
    ----------
    network
        Any network, or a :class:`.SlicedNetwork`; changed in place.
    data
        Pairs of an input without batch dimension and a target. :class:`.Mirrorable` data, such as
        photographs, are mirrored at random.
    recipe
        How to train.
    task
        Loss and metric.
    teacher
        The uncut network, for distillation; needs a :class:`.SlicedNetwork`.
    labelled
        Whether the targets are labels; if not, a teacher is needed.
    floor
        A least score on validation data: training stops when it cannot be reached any more.
    checkpoint
        File that is written after every epoch, and from which an interrupted training goes on;
        removed at the end.
    progress
        Whether to show a bar with the time left.
    description
        The bar's label.

    Returns
    -------
    Training
        A record of the training, for the manifest.

    Raises
    ------
    PrepareError
        If the data set is empty, nothing is trainable, there are neither labels nor a teacher, the
        teacher's student is not a :class:`.SlicedNetwork`, the loss stops being a finite number, or
        the checkpoint is of another training.
    BelowFloorError
        If the floor cannot be reached any more.
    """
    recipe = recipe or Recipe()
    started = time.perf_counter()
    setup, state = set_up(network, data, recipe, task, teacher, labelled=labelled)
    saved = None
    if checkpoint is not None:
        purpose = f"{description} {task.name} {labelled} {recipe!r} {data_digest(data)}"
        saved = Checkpoint(checkpoint, purpose, network)
        saved.restore(state)
    steps = len(setup.batches)
    with progress_bar(progress) as bar:
        shown = bar.add_task(
            description,
            total=recipe.epochs * steps,
            completed=state.epoch * steps,
            status=_estimate(setup, state) if progress else "",
        )
        while state.epoch < recipe.epochs and not state.stopping.stopped:
            for status in _train_epoch(setup, state):
                bar.update(shown, advance=1, status=status)
            state.seconds += time.perf_counter() - started
            started = time.perf_counter()
            if saved is not None:
                saved.save(state)
            if floor is not None and floor.looks(state.epoch, recipe.epochs):
                _check_floor(setup, state, floor, saved)
    weight, estimated = _finish(setup, state)
    if saved is not None:
        saved.remove()
    return Training(
        epochs=state.epoch,
        seconds=round(state.seconds, 1),
        seed=recipe.seed,
        learning_rate=recipe.learning_rate,
        device_slice_trained=bool(getattr(network, "train_device_slice", True)),
        labels=labelled,
        distillation=0.0 if teacher is None else recipe.distillation if labelled else 1.0,
        processor=setup.placement.processor.type,
        rate=weight,
        estimated_bytes=estimated,
    )


def _estimate(setup: TrainingSetup, state: TrainingState) -> str:
    """The time that training will take, for the progress bar; nothing where that is not known."""
    each = epoch_seconds(setup, state.network)
    left = setup.recipe.epochs - state.epoch
    return f"{left} epochs of about {duration(each)}: {duration(left * each)}" if each else ""


def _check_floor(
    setup: TrainingSetup, state: TrainingState, floor: Floor, saved: Checkpoint | None
) -> None:
    """Score the network as it is after an epoch; what training needs does not change."""
    if setup.holdout is None:
        recalibrate_batch_norms(state.network, setup.batches, setup.objective)
    try:
        floor.check(state.network, state.epoch, setup.recipe.epochs)
    except BelowFloorError:
        if saved is not None:
            saved.remove()  # it would not go on
        raise


def _train_epoch(setup: TrainingSetup, state: TrainingState) -> Iterator[str]:
    """Train for one epoch; yield the status after each step. Too small batches are left out."""
    recipe = setup.recipe
    # Each epoch has its own seed, so that one after an interruption is the same as without.
    seed = recipe.seed * 1_000_003 + state.epoch
    torch.manual_seed(seed)
    setup.order.manual_seed(seed)
    state.network.train()
    meter = _Meter(setup.task)
    too_small = None
    steps = 0
    for batch in setup.batches:
        try:
            step = step_or_too_small(setup.objective, batch)
        except TooSmallBatchError as error:
            too_small = error
            if not steps and setup.batches.loader.batch_size == 1:
                break  # all the others are as small
            continue
        steps += 1
        if not torch.isfinite(step.loss):
            raise PrepareError(
                f"the loss became {step.loss.item()} in epoch {state.epoch + 1}: lower the "
                f"learning rate ({recipe.learning_rate}) or check the data for bad values"
            )
        state.optimizer.zero_grad(set_to_none=True)
        step.loss.backward()
        state.optimizer.step()
        state.schedule.step()
        yield meter.score(step, batch.target) if setup.labelled else meter.loss(step)
    if too_small is not None and not steps:
        raise PrepareError(
            f"every batch is too small for the network's normalization ({too_small}): train on "
            "batches of two samples or more (batch_size, --batch-size), or do not train the slice "
            "that has it (train_edge_slice=False, --no-train-edge-slice)"
        ) from too_small
    state.epoch += 1
    # Only weights that are scored or kept need statistics.
    if setup.holdout is not None or state.epoch == recipe.epochs:
        recalibrate_batch_norms(state.network, setup.batches, setup.objective)
    if setup.holdout is not None:
        state.stopping.update(_holdout_score(setup, setup.holdout, state.network), state.network)


class _Meter:
    """Running means over the steps of an epoch, as texts for the progress bar."""

    def __init__(self, task: Task) -> None:
        self._task, self._scored = task, Scored(task)
        self._loss, self._steps = 0.0, 0

    def score(self, step: Step, target: torch.Tensor) -> str:
        """Add a step; the score on the training data so far, or the loss if a score takes long."""
        if not self._task.counted:
            return self.loss(step, "loss")
        with torch.no_grad():
            self._scored.add(step.answer, target)
        return f"training {self._task.metric} {self._scored.score():.1%}"

    def loss(self, step: Step, name: str = "distance") -> str:
        """Add a step; the mean loss so far, which without labels is a distance."""
        self._loss, self._steps = self._loss + step.loss.item(), self._steps + 1
        return f"{name} {self._loss / self._steps:.3g}"


def _holdout_score(setup: TrainingSetup, holdout: SampleBatches, network: nn.Module) -> float:
    """The score on the holdout; without labels the negative mean loss."""
    network.eval()
    if setup.labelled:
        return evaluate(network, holdout.loader, task=setup.task)
    with torch.no_grad():
        losses = [setup.objective.step(batch).loss.item() for batch in holdout]
    return -sum(losses) / len(losses)


def _finish(setup: TrainingSetup, state: TrainingState) -> tuple[float, float | None]:
    """Leave the network as it will be exported: with the best weights, on the CPU.

    Returns the weight of the bytes and their estimate, where they were in the loss.
    """
    network = state.network
    state.optimizer.zero_grad(set_to_none=True)  # gradients would stay as long as the network
    if state.stopping.best_weights is not None:
        network.load_state_dict(state.stopping.best_weights)
    weight, estimated = 0.0, None
    if isinstance(network, SlicedNetwork) and network.rate is not None:
        network.eval()
        weight = network.rate.weight
        estimated = round(network.rate.estimated_bytes(network, setup.batches), 1)
    network.to("cpu")
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # missing in its stub
    if isinstance(network, SlicedNetwork):
        network.settle()
    network.eval()
    return weight, estimated
