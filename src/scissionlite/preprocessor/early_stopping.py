"""Early stopping: end training when the score no longer rises, and keep the best weights."""

from __future__ import annotations

import torch
from torch import nn


class EarlyStopping:
    """Scores after each epoch, and the weights of the best one.

    Parameters
    ----------
    patience
        Epochs without a better score after which training stops; None never stops.

    Attributes
    ----------
    best_score : float
        The best score so far.
    best_weights : dict of str to torch.Tensor, or None
        The network's state dict of that epoch; None before the first score.
    epochs_without_gain : int
        Epochs since the best one.
    """

    def __init__(self, patience: int | None) -> None:
        self.patience = patience
        self.best_score = -float("inf")
        self.best_weights: dict[str, torch.Tensor] | None = None
        self.epochs_without_gain = 0

    @property
    def stopped(self) -> bool:
        """Whether training should stop."""
        return self.patience is not None and self.epochs_without_gain >= self.patience

    def update(self, score: float, network: nn.Module) -> None:
        """Take an epoch's score (more is better), and a copy of the weights if it is the best."""
        if score > self.best_score:
            self.best_score, self.epochs_without_gain = score, 0
            self.best_weights = {k: v.detach().clone() for k, v in network.state_dict().items()}
        else:
            self.epochs_without_gain += 1
