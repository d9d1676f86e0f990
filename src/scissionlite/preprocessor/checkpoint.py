"""Checkpoints: a training that was interrupted goes on where its last whole epoch ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import nn

from scissionlite.errors import PrepareError


class Checkpoint:
    """A file with everything that a training needs to go on.

    Parameters
    ----------
    path
        The file; it is removed when training is done.
    purpose
        What is trained and how, in words that are equal only where it is the same training.
    network
        With its first weights, which belong to what makes two trainings the same.
    """

    def __init__(self, path: Path, purpose: str, network: nn.Module) -> None:
        self.path = path
        digest = xxhash.xxh3_128(purpose.encode())
        for name, tensor in network.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        self._fingerprint = digest.hexdigest()

    def load(self) -> dict[str, Any] | None:
        """What :meth:`save` was last given; None if there is no file.

        Raises
        ------
        PrepareError
            If the file is of another training, or cannot be read.
        """
        if not self.path.exists():
            return None
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
        return stored

    def save(self, state: dict[str, Any]) -> None:
        """Write the state, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f"{self.path.name}.partial")
        torch.save({**state, "fingerprint": self._fingerprint}, partial)
        partial.replace(self.path)

    def remove(self) -> None:
        """Training is done."""
        self.path.unlink(missing_ok=True)
