"""Checkpoints: an interrupted training goes on after its last whole epoch."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import nn

from scissionlite.atomic_folder import atomic_file
from scissionlite.errors import PrepareError
from scissionlite.preprocessor.early_stopping import EarlyStopping


@dataclass
class TrainingState:
    """Everything that changes in training, and so everything that a checkpoint holds.

    Attributes
    ----------
    network, optimizer, schedule, stopping
        With their weights, moments, step and best weights.
    epoch : int
        Epochs that are done.
    seconds : float
        Time that they took.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    stopping: EarlyStopping
    epoch: int = 0
    seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Everything as tensors and plain values."""
        return {
            "epoch": self.epoch,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "seconds": self.seconds,
            "best": self.stopping.best_weights,
            "best_score": self.stopping.best_score,
            "stale": self.stopping.epochs_without_gain,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over everything that :meth:`state_dict` returned."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.stopping.best_weights = state["best"]
        self.stopping.best_score = state["best_score"]
        self.stopping.epochs_without_gain = state["stale"]
        self.epoch, self.seconds = int(state["epoch"]), state["seconds"]


class Checkpoint:
    """A file with the state of a training after its last whole epoch.

    Parameters
    ----------
    path
        The file; it is removed when training is done.
    purpose
        Text that describes what is trained and how. Two trainings with different texts are
        different.
    network
        The network before training. Two trainings with different first weights are different.
    """

    def __init__(self, path: Path, purpose: str, network: nn.Module) -> None:
        self.path = path
        digest = xxhash.xxh3_128(purpose.encode())
        for name, tensor in network.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        self._fingerprint = digest.hexdigest()

    def restore(self, state: TrainingState) -> None:
        """Load the state from the file, if there is one.

        Raises
        ------
        PrepareError
            If the file is of another training, or cannot be read.
        """
        if not self.path.exists():
            return
        try:
            stored: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
            fingerprint = stored.pop("fingerprint")
        except Exception as error:
            raise PrepareError(
                f"{self.path} cannot be read as a checkpoint ({error}): remove it to start anew"
            ) from error
        if fingerprint != self._fingerprint:
            raise PrepareError(
                f"{self.path} is the checkpoint of another training (other weights, data, plan or "
                "recipe): remove it to start anew, or give another checkpoint="
            )
        state.load_state_dict(stored)

    def save(self, state: TrainingState) -> None:
        """Write the state, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        stored = io.BytesIO()  # given a file, torch does not say that the disk is full
        torch.save({**state.state_dict(), "fingerprint": self._fingerprint}, stored)
        with atomic_file(self.path) as file:
            file.write_bytes(stored.getbuffer())

    def remove(self) -> None:
        """Remove the file: training is done."""
        self.path.unlink(missing_ok=True)
