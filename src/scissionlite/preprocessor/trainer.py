"""Trainer: retrains a network with the Transfer Layer in it (arXiv 2105.02019)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import nn
from torch.utils.data import DataLoader, Dataset

from scissionlite.bundle import Training
from scissionlite.errors import PrepareError
from scissionlite.preprocessor.data import Sample, as_inputs


@contextmanager
def progress_bar(enabled: bool) -> Iterator[Progress]:
    """A progress bar with time passed and time left, on the terminal's error stream."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not enabled) as progress:
        yield progress


def train(
    network: nn.Module,
    data: Dataset[Sample],
    *,
    epochs: int,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: bool = False,
    description: str = "training",
) -> Training:
    """Train a classifier's trainable parameters with cross entropy.

    AdamW under a one-cycle schedule: a few epochs have to be enough. The last epoch's weights are
    kept; none is chosen by its score on validation data, so accuracy measured there stays honest.

    Parameters
    ----------
    network
        float32 ``(N, C, H, W)`` to logits ``(N, classes)``; changed in place.
    data
        Pairs of an input without batch dimension and a label.
    epochs, batch_size, learning_rate
        The usual; the learning rate is the schedule's peak.
    seed
        Fixes order, augmentation and dropout.
    progress
        Whether to show a bar with time left.
    description
        The bar's label.

    Raises
    ------
    PrepareError
        If the data set is empty, nothing is trainable, or the loss stops being a number.
    """
    started = time.perf_counter()
    parameters = [p for p in network.parameters() if p.requires_grad]
    size = len(cast(Sized, data))
    if not parameters or not size or epochs < 1:
        raise PrepareError(
            f"nothing to train: {len(parameters)} trainable parameters, {size} samples, "
            f"{epochs} epochs"
        )
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    # A last batch of one would have no batch statistics.
    loader = DataLoader(
        data, batch_size, shuffle=True, drop_last=size > batch_size, generator=generator
    )
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=learning_rate, total_steps=epochs * len(loader)
    )
    network.train()
    with progress_bar(progress) as bar:
        task = bar.add_task(description, total=epochs * len(loader), status="")
        for epoch in range(epochs):
            right = seen = 0
            for x, labels in loader:
                logits = network(*as_inputs(x))
                loss = F.cross_entropy(logits, labels, label_smoothing=0.05)
                if not torch.isfinite(loss):
                    raise PrepareError(
                        f"the loss became {loss.item()} in epoch {epoch + 1}: lower the learning "
                        f"rate ({learning_rate}) or check the data for bad values"
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                right += int((logits.argmax(1) == labels).sum())
                seen += len(labels)
                bar.update(task, advance=1, status=f"training accuracy {right / seen:.1%}")
    network.eval()
    return Training(
        epochs=epochs,
        seconds=round(time.perf_counter() - started, 1),
        seed=seed,
        learning_rate=learning_rate,
        device_slice_trained=bool(getattr(network, "train_device_slice", True)),
    )


def evaluate(network: nn.Module, data: Dataset[Sample], *, batch_size: int = 32) -> float:
    """Share of right answers (0 to 1) of a classifier in evaluation mode."""
    right = seen = 0
    network.eval()
    with torch.inference_mode():
        for x, labels in DataLoader(data, batch_size):
            right += int((network(*as_inputs(x)).argmax(1) == labels).sum())
            seen += len(labels)
    if not seen:
        raise PrepareError("the validation data set is empty")
    return right / seen
