"""Feature cache: features and outputs that never change in training, computed once.

A photograph has the same outputs and features in the teacher in every epoch, and the same features
behind a frozen device slice. Samples that are mirrored at random are computed twice: as they are,
and mirrored.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from scissionlite.graph.analysis import flat
from scissionlite.preprocessor.batches import Batch, make_batch
from scissionlite.preprocessor.data import Data, Mirrorable, Sample
from scissionlite.preprocessor.inserter import SlicedNetwork
from scissionlite.preprocessor.teacher import Teacher

_MEMORY_SHARE = 0.25
"""Most of the machine's (or the container's) memory that the cache may take."""

_BATCH_SIZE = 32


class FeatureCache(Dataset[Batch]):
    """Samples with everything computed for them that never changes.

    Where samples are mirrored at random, an item is the one or the other at random (with torch's
    global generator).

    Parameters
    ----------
    views
        The samples as they are, in their order; after them the mirrored ones, if there are any.
    """

    def __init__(self, views: Sequence[Sequence[Batch]]) -> None:
        self._views = views

    def __len__(self) -> int:
        return len(self._views[0])

    def __getitem__(self, index: int) -> Batch:
        mirrored = len(self._views) > 1 and bool(torch.rand(()) < 0.5)
        return self._views[mirrored][index]


def cache_features(
    network: SlicedNetwork,
    teacher: Teacher | None,
    data: Data,
    processor: torch.device,
    *,
    max_bytes: int | None = None,
) -> FeatureCache | None:
    """Compute the cache, or nothing where that is not possible.

    Parameters
    ----------
    network
        The network to train, in evaluation mode.
    teacher
        The uncut network, or None.
    data
        Training data. They must be :class:`.Mirrorable`: other data may answer anew each time.
    processor
        Where network and teacher are; the cache is in the CPU's memory.
    max_bytes
        Most bytes of tensors; by default a quarter of the machine's memory.

    Returns
    -------
    FeatureCache or None
        None where data are not ``Mirrorable`` or empty, or the cache would be too large.
    """
    dataset = data.dataset if isinstance(data, Subset) else data
    if not isinstance(dataset, Mirrorable) or not len(dataset):
        return None
    if max_bytes is None:
        max_bytes = _memory_limit()
    indices = list(data.indices) if isinstance(data, Subset) else list(range(len(dataset)))
    mirrorings = [False, True] if dataset.augment else [False]
    views: list[list[Batch]] = []
    for mirrored in mirrorings:
        view: list[Batch] = []
        views.append(view)
        for x, targets in _sample_batches(Subset(dataset.side(mirrored), indices)):
            inputs = [part.to(processor) for part in flat(x)]
            view += _samples(make_batch(network, teacher, inputs, None), targets)
            # All samples are of one size.
            if _nbytes(views[0][0]) * len(indices) * len(mirrorings) > max_bytes:
                return None
    return FeatureCache(views)


def _sample_batches(data: Dataset[Sample]) -> Iterator[tuple[Any, list[Any]]]:
    """Batches of inputs, with the targets as the samples have them."""

    def collate(samples: list[Sample]) -> tuple[Any, list[Any]]:
        return default_collate([x for x, _ in samples]), [target for _, target in samples]

    return iter(DataLoader(data, _BATCH_SIZE, collate_fn=collate))


def _samples(batch: Batch, targets: Sequence[Any]) -> Iterator[Batch]:
    """The samples of a batch, each in memory of its own: a view would keep the whole batch."""
    for i, target in enumerate(targets):
        parts = ([each[i].cpu().clone() for each in part] for part in batch[:-1])
        yield Batch._make((*parts, target))


def _nbytes(sample: Batch) -> int:
    tensors = [each for part in sample[:-1] for each in part]
    return sum(each.nbytes for each in (*tensors, sample.target) if torch.is_tensor(each))


def _memory_limit() -> int:
    """Most bytes that the cache may take on this machine."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # not POSIX
        memory = 8 << 30
    with contextlib.suppress(OSError, ValueError):  # not in a container, or one without a limit
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return int(memory * _MEMORY_SHARE)
