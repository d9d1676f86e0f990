"""Batches for training steps, and where their tensors are placed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.utils.data import DataLoader

from scissionlite.graph.analysis import flat
from scissionlite.preprocessor.data import Sample
from scissionlite.preprocessor.inserter import SlicedNetwork
from scissionlite.preprocessor.teacher import Teacher


class Batch(NamedTuple):
    """The input of a training step. In the feature cache: one sample, without batch dimension.

    A list is empty where its tensors are not needed.

    Attributes
    ----------
    inputs
        The network's inputs. Not needed where ``features`` replace them.
    features
        The features at the slicing point, where the device slice is frozen.
    teacher_features
        The teacher's features at the slicing point, where the device slice learns or is an int8
        one. Otherwise it is the teacher's, and so are ``features``.
    teacher_outputs
        The teacher's outputs, where there is a teacher.
    teacher_hints
        The teacher's features behind the slicing point, as :attr:`.Teacher.hint_nodes` names them.
    target
        The labels, collated; None where training has no labels.
    """

    inputs: list[torch.Tensor]
    features: list[torch.Tensor]
    teacher_features: list[torch.Tensor]
    teacher_outputs: list[torch.Tensor]
    teacher_hints: list[torch.Tensor]
    target: Any


class Batches(Protocol):
    """Batches of one epoch, as often as they are asked for, made of a loader's."""

    @property
    def loader(self) -> DataLoader[Any]:
        """The loader of samples."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


def make_batch(
    network: nn.Module, teacher: Teacher | None, inputs: Sequence[torch.Tensor], target: Any
) -> Batch:
    """Compute everything of a batch that does not depend on weights that learn.

    Parameters
    ----------
    network
        The network in training; a :class:`.SlicedNetwork` if there is a teacher.
    teacher
        The uncut network, or None.
    inputs
        The network's inputs, batch first.
    target
        The labels, or None.
    """
    if not isinstance(network, SlicedNetwork):
        return Batch(list(inputs), [], [], [], [], target)
    learns = network.train_device_slice
    with torch.no_grad():
        features = [] if learns else network.features(*inputs)
        kept_inputs = list(inputs) if learns else []
        if teacher is None:
            return Batch(kept_inputs, features, [], [], [], target)
        own = learns or network.quantized
        teacher_features = teacher.features(*inputs) if own else []
        outputs, hints = teacher.answer(teacher_features or features)
    return Batch(kept_inputs, features, teacher_features, outputs, hints, target)


@dataclass(frozen=True)
class Placement:
    """Where a training's tensors are: the processor, and the memory order of feature maps."""

    processor: torch.device
    memory_format: torch.memory_format

    def place(self, tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """Move tensors there; feature maps ``(N, C, H, W)`` get the memory order."""
        moved = [x.to(self.processor) for x in tensors]
        return [x.contiguous(memory_format=self.memory_format) if x.ndim == 4 else x for x in moved]

    def place_target(self, target: Any) -> Any:
        """Move a target there, if there is one."""
        return None if target is None else target.to(self.processor)

    def autocast(self) -> torch.autocast:
        """Compute in bfloat16 on a GPU, where torch holds that safe; in float32 on a CPU.

        bfloat16 has float32's range, so that gradients need no scaling.
        """
        kind = self.processor.type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=kind == "cuda")


class SampleBatches:
    """Batches made of a loader's samples: the device slice and the teacher run for each batch.

    Parameters
    ----------
    loader
        Of pairs of inputs and target.
    network, teacher
        As :func:`make_batch` takes them.
    placement
        Where the network is.
    labelled
        Whether targets are kept.
    """

    def __init__(
        self,
        loader: DataLoader[Sample],
        network: nn.Module,
        teacher: Teacher | None,
        placement: Placement,
        *,
        labelled: bool,
    ) -> None:
        self.loader, self.network, self.teacher = loader, network, teacher
        self.placement, self.labelled = placement, labelled

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for x, target in self.loader:
            inputs = self.placement.place(flat(x))
            target = self.placement.place_target(target if self.labelled else None)
            with self.placement.autocast():
                batch = make_batch(self.network, self.teacher, inputs, target)
            yield batch


class CachedBatches:
    """Batches of a feature cache: neither a frozen device slice nor the teacher runs again.

    Parameters
    ----------
    loader
        Of a :class:`.FeatureCache`.
    placement
        Where the network is.
    labelled
        Whether targets are kept.
    """

    def __init__(self, loader: DataLoader[Batch], placement: Placement, *, labelled: bool) -> None:
        self.loader, self.placement, self.labelled = loader, placement, labelled

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for *tensors, target in self.loader:
            placed = map(self.placement.place, tensors)
            target = self.placement.place_target(target if self.labelled else None)
            yield Batch._make((*placed, target))
