"""Trainer: retrains a network with the Transfer Layer in it (arXiv 2105.02019)."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Sized
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader

from scissionlite.bundle import Training
from scissionlite.errors import PrepareError
from scissionlite.preprocessor.checkpoint import Checkpoint
from scissionlite.preprocessor.data import (
    Data,
    Sample,
    as_inputs,
    augmented,
    loader_of,
    split_off,
)
from scissionlite.preprocessor.distillation import (
    Lesson,
    Teacher,
    lesson,
    loss_of,
    remember,
    tapped,
)
from scissionlite.preprocessor.inserter import SlicedNetwork
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.preprocessor.tasks import CLASSIFICATION, Task
from scissionlite.progress import progress_bar

_STATISTICS_BATCHES = 64
"""Most batches that batch statistics are taken from in the end."""


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

    AdamW under a one-cycle schedule: a few epochs have to be enough. Validation data have no part
    in it: the last epoch's weights are kept, or with a patience those of the best epoch on a split
    of the training data, so accuracy measured on validation data stays honest.

    Parameters
    ----------
    network
        Any network, or a :class:`SlicedNetwork`; changed in place.
    data
        Pairs of an input without batch dimension and a target. What is ``Mirrorable``, as
        photographs are, is mirrored at random.
    recipe
        How to train.
    task
        Loss and metric.
    teacher
        The uncut network, for distillation; needs a :class:`SlicedNetwork`.
    labelled
        Whether the targets mean anything; if not, a teacher is needed.
    checkpoint
        File to which every epoch's end is written, and from which an interrupted training goes on;
        removed at the end.
    progress
        Whether to show a bar with time left.
    description
        The bar's label.

    Returns
    -------
    Training
        What was done.

    Raises
    ------
    PrepareError
        If the data set is empty, nothing is trainable, there are neither labels nor a teacher, the
        loss stops being a number, or the checkpoint is of another training.
    """
    recipe = recipe or Recipe()
    started = time.perf_counter()
    run = _Run(network, data, recipe, task, teacher, labelled=labelled)
    saved = None
    if checkpoint is not None:
        purpose = f"{description} {task.name} {labelled} {recipe!r} {run.size} samples"
        saved = Checkpoint(checkpoint, purpose, network)
    epoch = run.restore(saved.load()) if saved is not None else 0
    with progress_bar(progress) as bar:
        shown = bar.add_task(
            description, total=recipe.epochs * run.steps, completed=epoch * run.steps, status=""
        )
        while epoch < recipe.epochs and not run.stopped:
            for status in run.epoch(epoch):
                bar.update(shown, advance=1, status=status)
            epoch += 1
            run.seconds += time.perf_counter() - started
            started = time.perf_counter()
            if saved is not None:
                saved.save(run.state(epoch))
    run.finish()
    if saved is not None:
        saved.remove()
    return Training(
        epochs=epoch,
        seconds=round(run.seconds, 1),
        seed=recipe.seed,
        learning_rate=recipe.learning_rate,
        device_slice_trained=bool(getattr(network, "train_device_slice", True)),
        labels=labelled,
        distillation=0.0 if teacher is None else recipe.distillation if labelled else 1.0,
        processor=run.processor.type,
    )


class _Run:
    """A training under way."""

    def __init__(
        self,
        network: nn.Module,
        data: Data,
        recipe: Recipe,
        task: Task,
        teacher: Teacher | None,
        *,
        labelled: bool,
    ) -> None:
        if not labelled and teacher is None:
            raise PrepareError("without labels there is only the uncut network to learn from")
        self.network, self.recipe, self.task = network, recipe, task
        self.teacher, self.labelled = teacher, labelled
        self.split: DataLoader[Sample] | None = None
        if recipe.patience is not None:
            data, kept = split_off(augmented(data), recipe.holdout, recipe.seed)
            self.split = loader_of(kept, recipe.batch_size)
        data = augmented(data)
        self._order = torch.Generator()
        self.loader = loader_of(data, recipe.batch_size, generator=self._order)
        try:
            self.steps, self.size = len(self.loader), len(cast(Sized, self.loader.dataset))
        except TypeError as error:
            raise PrepareError("training data must have a length: give a Dataset") from error
        parameters = [p for p in network.parameters() if p.requires_grad]
        if not parameters or not self.steps or recipe.epochs < 1:
            raise PrepareError(
                f"nothing to train: {len(parameters)} trainable parameters, {self.size} samples, "
                f"{recipe.epochs} epochs"
            )
        self.processor = _processor(recipe)
        network.to(self.processor)
        if teacher is not None:
            self.teacher = copy.deepcopy(teacher).to(self.processor).eval()
        # Decay of biases, batch norms and scales would only pull them off where they should be.
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, max_lr=recipe.learning_rate, total_steps=recipe.epochs * self.steps
        )
        self.memory_format = self._fastest_format()
        if isinstance(network, SlicedNetwork):
            self.edge_slice = network.edge_slice
            if self.teacher is not None:
                self.edge_slice = tapped(network.edge_slice, self.teacher.taps)
        self.remembered = False
        if isinstance(network, SlicedNetwork) and recipe.epochs > 1:
            known = remember(network.eval(), self.teacher, data, self.processor)
            if known is not None:
                self.loader = loader_of(known, recipe.batch_size, generator=self._order)
                self.remembered = True
        self.seconds = 0.0
        self.best_score = -float("inf")
        self.best: dict[str, torch.Tensor] | None = None
        self.stale = 0

    @property
    def stopped(self) -> bool:
        """Whether patience has run out."""
        return self.recipe.patience is not None and self.stale >= self.recipe.patience

    def epoch(self, number: int) -> Iterator[str]:
        """Train for an epoch; after each step, how it goes."""
        # Each epoch has a seed of its own, so that one trained after an interruption is the same.
        seed = self.recipe.seed * 1_000_003 + number
        torch.manual_seed(seed)
        self._order.manual_seed(seed)
        self.network.train()
        counts, total, seen = None, 0.0, 0
        for batch in self.loader:
            loss, answer, target = self._loss(batch, remembered=self.remembered)
            if not torch.isfinite(loss):
                raise PrepareError(
                    f"the loss became {loss.item()} in epoch {number + 1}: lower the learning "
                    f"rate ({self.recipe.learning_rate}) or check the data for bad values"
                )
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            total, seen = total + loss.item(), seen + 1
            if self.labelled:
                with torch.no_grad():
                    step = self.task.tally(answer, target).cpu()
                counts = step if counts is None else counts + step
                yield f"training {self.task.metric} {self.task.score(counts):.1%}"
            else:
                yield f"distance {total / seen:.3g}"
        if self.split is not None or number + 1 == self.recipe.epochs:
            self._renew_statistics()
        if self.split is not None:
            self._judge()

    def _renew_statistics(self) -> None:
        """Take batch statistics anew, as means over many batches with the weights as they are.

        The running ones remember the last ten batches or so, while the weights still moved: with
        few epochs that alone costs some samples (Wu and Johnson, arXiv 2105.07576, "precise BN").
        """
        norms = [
            module
            for module in self.network.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            and module.training
            and module.track_running_stats
        ]
        if not norms:
            return
        momenta = [module.momentum for module in norms]
        self.network.eval()
        for module in norms:
            module.reset_running_stats()
            module.momentum = None  # the mean of all batches
            module.train()
        with torch.no_grad():
            for batch in islice(self.loader, _STATISTICS_BATCHES):
                self._loss(batch, remembered=self.remembered)
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum

    def _loss(self, batch: Any, *, remembered: bool) -> tuple[torch.Tensor, Any, Any]:
        """The loss of a loader's batch, the answer and the target."""
        *seen, target = batch
        if self.labelled:
            target = target.to(self.processor)
        # bfloat16 has float32's range: no scaling of gradients.
        mixed = self.processor.type == "cuda"
        with torch.autocast(self.processor.type, dtype=torch.bfloat16, enabled=mixed):
            if not isinstance(self.network, SlicedNetwork):
                answer = self.network(*self._placed(as_inputs(seen[0])))
                return self.task.loss(answer, target), answer, target
            if remembered:
                given, reference, wanted = map(self._placed, seen)
                known = Lesson(given, reference, wanted, target)
            else:
                inputs = self._placed(as_inputs(seen[0]))
                known = lesson(self.network, self.teacher, inputs, target)
            loss, answer = loss_of(
                self.network,
                self.edge_slice,
                known,
                self.task,
                self.recipe,
                labelled=self.labelled,
            )
            return loss, answer, target

    def _judge(self) -> None:
        """Score the split, and keep the weights if they are the best so far."""
        assert self.split is not None
        self.network.eval()
        if self.labelled:
            score = evaluate(self.network, self.split, task=self.task)
        else:
            with torch.no_grad():
                losses = [self._loss(batch, remembered=False)[0].item() for batch in self.split]
            score = -sum(losses) / len(losses)
        if score > self.best_score:
            self.best_score, self.stale = score, 0
            self.best = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        else:
            self.stale += 1

    def _placed(self, tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """Tensors where and as the network takes them."""
        moved = [x.to(self.processor) for x in tensors]
        return [x.contiguous(memory_format=self.memory_format) if x.ndim == 4 else x for x in moved]

    def _fastest_format(self) -> torch.memory_format:
        """Channels last, which trains convolutions faster, where the network can take it."""
        x = next(iter(self.loader))[0]
        self.memory_format = torch.channels_last
        self.network.eval()
        try:
            with torch.no_grad():
                self.network(*self._placed(part[:2] for part in as_inputs(x)))
        except RuntimeError:  # a view of dimensions that are no neighbours in this order
            return torch.contiguous_format
        for module in filter(None, (self.network, self.teacher)):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in its stub
        return torch.channels_last

    def state(self, epoch: int) -> dict[str, Any]:
        """What a checkpoint holds after some epochs."""
        return {
            "epoch": epoch,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "seconds": self.seconds,
            "best": self.best,
            "best_score": self.best_score,
            "stale": self.stale,
        }

    def restore(self, state: dict[str, Any] | None) -> int:
        """Go on from a checkpoint; the epochs that are done."""
        if state is None:
            return 0
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.seconds, self.best = state["seconds"], state["best"]
        self.best_score, self.stale = state["best_score"], state["stale"]
        return int(state["epoch"])

    def finish(self) -> None:
        """Leave the network as it will be exported."""
        if self.best is not None:
            self.network.load_state_dict(self.best)
        self.network.to("cpu")
        self.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # missing in its stub
        if isinstance(self.network, SlicedNetwork):
            self.network.settle()
        self.network.eval()


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
            answer = network(*(part.to(processor) for part in as_inputs(x)))
            step = task.tally(answer, target.to(processor)).cpu()
            counts = step if counts is None else counts + step
    if counts is None:
        raise PrepareError("the validation data set is empty")
    return task.score(counts)


def _processor(recipe: Recipe) -> torch.device:
    if recipe.processor == "cuda" and not torch.cuda.is_available():
        raise PrepareError("processor='cuda', but torch finds no GPU here")
    wanted = recipe.processor == "cuda" or (
        recipe.processor == "auto" and torch.cuda.is_available()
    )
    return torch.device("cuda" if wanted else "cpu")
