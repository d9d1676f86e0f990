"""Recalibration of batch norms: their statistics as means over many batches."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from itertools import islice

import torch
from torch import nn

from scissionlite.preprocessor.batches import Batch
from scissionlite.preprocessor.objectives import Objective, TooSmallBatchError, step_or_too_small

_MAX_BATCHES = 64
"""Most batches that statistics are taken from."""


def recalibrate_batch_norms(
    network: nn.Module, batches: Iterable[Batch], objective: Objective
) -> None:
    """Replace the running statistics of batch norms by means over many batches.

    Running statistics are a decaying mean of about the last ten batches, made while the weights
    still moved. With few epochs that costs accuracy. Means over many batches with the final weights
    are "precise BN" (Wu and Johnson, arXiv 2105.07576, section 3).

    ``torch.optim.swa_utils.update_bn`` computes the same means, but does not fit here:

    - It resets every batch norm. Those of a frozen slice must keep their statistics.
    - It puts the whole network into training mode, so that dropout disturbs the statistics.
    - It runs ``network(batch[0])``: one input tensor, and always the device slice. Here a network
      may have several inputs, and the feature cache holds features instead of them.
    - It has no limit of batches.

    Parameters
    ----------
    network
        In training mode; batch norms in evaluation mode are frozen. Afterwards all but the
        recalibrated batch norms is in evaluation mode.
    batches
        At most 64 of them are used. One that is too small for statistics is left out.
    objective
        Whose ``step`` runs the network.
    """
    norms = [
        module
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.training
        and module.track_running_stats
    ]
    if not norms:
        return
    momenta = [module.momentum for module in norms]
    network.eval()
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # the mean of all batches
        module.train()
    with torch.no_grad():
        for batch in islice(batches, _MAX_BATCHES):
            with suppress(TooSmallBatchError):
                step_or_too_small(objective, batch)
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
