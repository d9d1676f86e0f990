"""Trainer: retrains a network with the Transfer Layer in it (arXiv 2105.02019)."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn
from torch.utils.data import DataLoader

from scissionlite.bundle import Training
from scissionlite.errors import PrepareError
from scissionlite.graph.analysis import flat
from scissionlite.preprocessor.batch_norm import recalibrate_batch_norms
from scissionlite.preprocessor.batches import (
    Batches,
    CachedBatches,
    Placement,
    SampleBatches,
)
from scissionlite.preprocessor.checkpoint import Checkpoint, TrainingState
from scissionlite.preprocessor.data import Data, Sample, augmented, loader_of, split_off
from scissionlite.preprocessor.early_stopping import EarlyStopping
from scissionlite.preprocessor.feature_cache import cache_features
from scissionlite.preprocessor.inserter import SlicedNetwork
from scissionlite.preprocessor.objectives import Distillation, LabelLoss, Objective, Step
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.preprocessor.tasks import CLASSIFICATION, Task
from scissionlite.preprocessor.teacher import Teacher
from scissionlite.progress import progress_bar
from scissionlite.transfer_layer.layers import Scales


def train(
    network: nn.Module,
    data: Data,
    recipe: Recipe | None = None,
    *,
    task: Task = CLASSIFICATION,
    teacher: Teacher | None = None,
    labelled: bool = True,
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
    """
    recipe = recipe or Recipe()
    started = time.perf_counter()
    setup, state = _set_up(network, data, recipe, task, teacher, labelled=labelled)
    saved = None
    if checkpoint is not None:
        purpose = f"{description} {task.name} {labelled} {recipe!r} {setup.samples} samples"
        saved = Checkpoint(checkpoint, purpose, network)
        saved.restore(state)
    steps = len(setup.batches)
    with progress_bar(progress) as bar:
        shown = bar.add_task(
            description, total=recipe.epochs * steps, completed=state.epoch * steps, status=""
        )
        while state.epoch < recipe.epochs and not state.stopping.stopped:
            for status in _train_epoch(setup, state):
                bar.update(shown, advance=1, status=status)
            state.seconds += time.perf_counter() - started
            started = time.perf_counter()
            if saved is not None:
                saved.save(state)
    _finish(network, state.stopping)
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
    )


@dataclass(frozen=True)
class _Setup:
    """Everything that stays the same from epoch to epoch.

    Attributes
    ----------
    recipe, task, labelled
        As in :func:`train`.
    placement
        Where the network is.
    objective
        The loss to minimise.
    batches
        The training data.
    order
        Generator of the order of samples.
    samples
        How many samples are trained on.
    holdout
        The part of the training data that early stopping scores; None without a patience.
    """

    recipe: Recipe
    task: Task
    labelled: bool
    placement: Placement
    objective: Objective
    batches: Batches
    order: torch.Generator
    samples: int
    holdout: SampleBatches | None


def _set_up(
    network: nn.Module,
    data: Data,
    recipe: Recipe,
    task: Task,
    teacher: Teacher | None,
    *,
    labelled: bool,
) -> tuple[_Setup, TrainingState]:
    """Place the networks, and make everything that the epochs need."""
    if not labelled and teacher is None:
        raise PrepareError("without labels there is only the uncut network to learn from")
    holdout_loader = None
    if recipe.patience is not None:
        data, holdout = split_off(augmented(data), recipe.holdout, recipe.seed)
        holdout_loader = loader_of(holdout, recipe.batch_size)
    data = augmented(data)
    order = torch.Generator()
    loader = loader_of(data, recipe.batch_size, generator=order)
    samples = _check(network, loader, recipe)
    processor = _processor(recipe)
    network.to(processor)
    if teacher is not None:
        teacher = copy.deepcopy(teacher).to(processor).eval()
    memory_format = _use_fastest_format(network, teacher, loader, processor)
    placement = Placement(processor, memory_format)
    objective = _objective(network, teacher, task, placement, recipe, labelled=labelled)
    batches: Batches = SampleBatches(loader, network, teacher, placement, labelled=labelled)
    # With a single epoch nothing would be used twice.
    if isinstance(network, SlicedNetwork) and recipe.epochs > 1:
        cache = cache_features(network.eval(), teacher, data, processor)
        if cache is not None:
            cache_loader = loader_of(cache, recipe.batch_size, generator=order)
            batches = CachedBatches(cache_loader, placement, labelled=labelled)
    holdout_batches = None
    if holdout_loader is not None:
        holdout_batches = SampleBatches(
            holdout_loader, network, teacher, placement, labelled=labelled
        )
    optimizer = _optimizer(network, recipe)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=recipe.learning_rate, total_steps=recipe.epochs * len(batches)
    )
    state = TrainingState(network, optimizer, schedule, EarlyStopping(recipe.patience))
    return (
        _Setup(
            recipe=recipe,
            task=task,
            labelled=labelled,
            placement=placement,
            objective=objective,
            batches=batches,
            order=order,
            samples=samples,
            holdout=holdout_batches,
        ),
        state,
    )


def _train_epoch(setup: _Setup, state: TrainingState) -> Iterator[str]:
    """Train for one epoch; yield the status after each step."""
    recipe = setup.recipe
    # Each epoch has its own seed, so that one after an interruption is the same as without.
    seed = recipe.seed * 1_000_003 + state.epoch
    torch.manual_seed(seed)
    setup.order.manual_seed(seed)
    state.network.train()
    meter = _Meter(setup.task)
    for batch in setup.batches:
        step = setup.objective.step(batch)
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
    state.epoch += 1
    # Only weights that are scored or kept need statistics.
    if setup.holdout is not None or state.epoch == recipe.epochs:
        recalibrate_batch_norms(state.network, setup.batches, setup.objective)
    if setup.holdout is not None:
        state.stopping.update(_holdout_score(setup, setup.holdout, state.network), state.network)


class _Meter:
    """Running means over the steps of an epoch, as texts for the progress bar."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._counts: torch.Tensor | None = None
        self._loss, self._steps = 0.0, 0

    def score(self, step: Step, target: torch.Tensor) -> str:
        """Add a step; the score on the training data so far."""
        with torch.no_grad():
            counts = self._task.tally(step.answer, target).cpu()
        self._counts = counts if self._counts is None else self._counts + counts
        return f"training {self._task.metric} {self._task.score(self._counts):.1%}"

    def loss(self, step: Step) -> str:
        """Add a step; the mean loss so far, which without labels is a distance."""
        self._loss, self._steps = self._loss + step.loss.item(), self._steps + 1
        return f"distance {self._loss / self._steps:.3g}"


def _holdout_score(setup: _Setup, holdout: SampleBatches, network: nn.Module) -> float:
    """The score on the holdout; without labels the negative mean loss."""
    network.eval()
    if setup.labelled:
        return evaluate(network, holdout.loader, task=setup.task)
    with torch.no_grad():
        losses = [setup.objective.step(batch).loss.item() for batch in holdout]
    return -sum(losses) / len(losses)


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
    counts = None
    with torch.inference_mode():
        for x, target in loader_of(data, batch_size):
            answer = network(*(part.to(processor) for part in flat(x)))
            step = task.tally(answer, target.to(processor)).cpu()
            counts = step if counts is None else counts + step
    if counts is None:
        raise PrepareError("the validation data set is empty")
    return task.score(counts)


def _check(network: nn.Module, loader: DataLoader[Sample], recipe: Recipe) -> int:
    """Check that there is something to train; how many samples there are to train on."""
    try:
        steps, samples = len(loader), len(cast(Sized, loader.dataset))
    except TypeError as error:
        raise PrepareError("training data must have a length: give a Dataset") from error
    trainable = sum(p.requires_grad for p in network.parameters())
    if not trainable or not steps or recipe.epochs < 1:
        raise PrepareError(
            f"nothing to train: {trainable} trainable parameters, {samples} samples, "
            f"{recipe.epochs} epochs"
        )
    return samples


def _processor(recipe: Recipe) -> torch.device:
    if recipe.processor == "cuda" and not torch.cuda.is_available():
        raise PrepareError("processor='cuda', but torch finds no GPU here")
    use_gpu = recipe.processor == "cuda" or (
        recipe.processor == "auto" and torch.cuda.is_available()
    )
    return torch.device("cuda" if use_gpu else "cpu")


def _objective(
    network: nn.Module,
    teacher: Teacher | None,
    task: Task,
    placement: Placement,
    recipe: Recipe,
    *,
    labelled: bool,
) -> Objective:
    if teacher is None:
        return LabelLoss(network, task, placement)
    if not isinstance(network, SlicedNetwork):
        raise PrepareError("only a SlicedNetwork can learn from a teacher")
    share = recipe.distillation if labelled else 1.0
    return Distillation(
        network, teacher, task, placement, share=share, temperature=recipe.temperature
    )


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Make AdamW over the trainable parameters, with weight decay for some of them.

    Biases, batch norms and the scales of quantization do not decay: it would only pull them away
    from where they should be. Scales per channel have more than one dimension, as weights have.
    """
    scales = {
        id(p)
        for module in network.modules()
        if isinstance(module, Scales)
        for p in module.parameters()
    }
    decaying: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for p in filter(lambda p: p.requires_grad, network.parameters()):
        (decaying if p.ndim > 1 and id(p) not in scales else others).append(p)
    groups = [
        {"params": decaying, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate)


def _use_fastest_format(
    network: nn.Module,
    teacher: Teacher | None,
    loader: DataLoader[Sample],
    processor: torch.device,
) -> torch.memory_format:
    """Put the networks in channels-last order where they can run in it: convolutions are faster."""
    x = next(iter(loader))[0]
    channels_last = Placement(processor, torch.channels_last)
    network.eval()
    try:
        with torch.no_grad():
            network(*channels_last.place(part[:2] for part in flat(x)))
    except RuntimeError:  # a view of dimensions that are not neighbours in this order
        return torch.contiguous_format
    for module in filter(None, (network, teacher)):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in its stub
    return torch.channels_last


def _finish(network: nn.Module, stopping: EarlyStopping) -> None:
    """Leave the network as it will be exported: with the best weights, on the CPU."""
    if stopping.best_weights is not None:
        network.load_state_dict(stopping.best_weights)
    network.to("cpu")
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # missing in its stub
    if isinstance(network, SlicedNetwork):
        network.settle()
    network.eval()
