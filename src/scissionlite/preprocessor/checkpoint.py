"""Checkpoints: an interrupted training goes on after its last whole epoch."""

from __future__ import annotations

import random
from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset, Subset

from scissionlite.atomic_folder import atomic_file
from scissionlite.errors import PrepareError
from scissionlite.preprocessor.data import Data, Mirrorable, Photographs
from scissionlite.preprocessor.early_stopping import EarlyStopping
from scissionlite.preprocessor.masks import MaskFolder


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


_SAMPLES = 64
"""Most samples of a dataset that are read for its digest."""


def data_digest(data: Data) -> str:
    """Digest of training data, for a checkpoint's purpose: cheap, and equal in the next process.

    Of photographs it covers every file's path below the folder, size and label, those of their
    masks, and how they are read. Of another Dataset it covers its length and up to 64 samples,
    evenly spread, where they answer the same when they are read twice.
    """
    digest = xxhash.xxh3_128()
    _add_data(digest, data)
    return digest.hexdigest()


def _add_data(digest: xxhash.xxh3_128, data: object) -> None:
    if isinstance(data, DataLoader):
        digest.update(f"loader {data.batch_size} {data.drop_last}".encode())
        _add_data(digest, data.dataset)
    elif isinstance(data, Subset):
        digest.update(repr(list(data.indices)).encode())
        _add_data(digest, data.dataset)
    elif isinstance(data, Photographs):
        digest.update(repr((data.preprocessing, getattr(data, "classes", ()))).encode())
        masks = [(mask, 0) for mask in data.masks] if isinstance(data, MaskFolder) else []
        for file, label in (*data.files, *masks):
            place = file.relative_to(data.folder).as_posix()
            digest.update(
                f"{place} {file.stat().st_size} {label}\n".encode(errors="surrogateescape")
            )
    elif isinstance(data, Sized):
        plain: Any = data.side(False) if isinstance(data, Mirrorable) else data
        size = len(data)
        digest.update(f"{size} samples".encode())
        if hasattr(plain, "__getitem__") and not isinstance(plain, IterableDataset):
            for index in np.unique(np.linspace(0, size - 1, min(size, _SAMPLES)).astype(int)):
                digest.update(_sample_bytes(plain, int(index)))


def _sample_bytes(data: Any, index: int) -> bytes:
    """The bytes of a sample; of one that is random, only its shapes."""
    readings = []
    for _ in range(2):
        state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - the user's data may draw from it
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(index)
            random.seed(index)
            np.random.seed(index)  # noqa: NPY002
            readings.append(tree_leaves(data[index]))
        random.setstate(state)
        np.random.set_state(numpy_state)  # noqa: NPY002
    first, second = ([_value_bytes(each) for each in leaves] for leaves in readings)
    pairs = zip(readings[0], first, second, strict=True)
    return b" ".join(a if a == b else str(np.shape(leaf)).encode() for leaf, a, b in pairs)


def _value_bytes(value: object) -> bytes:
    if torch.is_tensor(value):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} ".encode() + value.tobytes()
    return repr(value).encode(errors="surrogateescape")


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
                f"{self.path} is not a checkpoint, or not a whole one: remove it to start anew"
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
        stored = {**state.state_dict(), "fingerprint": self._fingerprint}
        # Given a path instead of an open file, torch does not say that the disk is full.
        with atomic_file(self.path) as file, file.open("wb") as opened:
            torch.save(stored, opened)

    def remove(self) -> None:
        """Remove the file: training is done."""
        self.path.unlink(missing_ok=True)
