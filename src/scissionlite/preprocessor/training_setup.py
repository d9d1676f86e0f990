"""Setup of a training: checks, placement, batches, objective and optimizer."""

from __future__ import annotations

import copy
from collections.abc import Sized
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader

from scissionlite.errors import PrepareError
from scissionlite.graph.analysis import flat
from scissionlite.preprocessor.batches import (
    Batches,
    CachedBatches,
    Placement,
    SampleBatches,
    make_batch,
)
from scissionlite.preprocessor.checkpoint import TrainingState
from scissionlite.preprocessor.data import (
    Data,
    Sample,
    augmented,
    class_weights,
    loader_of,
    split_off,
)
from scissionlite.preprocessor.early_stopping import EarlyStopping
from scissionlite.preprocessor.feature_cache import cache_features
from scissionlite.preprocessor.inserter import SlicedNetwork
from scissionlite.preprocessor.objectives import Distillation, LabelLoss, Objective
from scissionlite.preprocessor.rate import FASTER_DENSITIES, FASTER_SCALES, Rate, start_at
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.preprocessor.tasks import Task
from scissionlite.preprocessor.teacher import Teacher
from scissionlite.transfer_layer.layers import Scales


@dataclass(frozen=True)
class TrainingSetup:
    """Everything that stays the same from epoch to epoch.

    Attributes
    ----------
    recipe, task, labelled
        As in :func:`.trainer.train`.
    placement
        Where the network is.
    objective
        The loss to minimise.
    batches
        The training data.
    order
        Generator of the order of samples.
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
    holdout: SampleBatches | None


def set_up(
    network: nn.Module,
    data: Data,
    recipe: Recipe,
    task: Task,
    teacher: Teacher | None,
    *,
    labelled: bool,
) -> tuple[TrainingSetup, TrainingState]:
    """Place the networks, and make everything that the epochs need."""
    if not labelled and teacher is None:
        raise PrepareError("without labels there is only the uncut network to learn from")
    holdout_loader = None
    if recipe.patience is not None:
        data, holdout = split_off(augmented(data), recipe.holdout, recipe.seed)
        holdout_loader = loader_of(holdout, recipe.batch_size)
    data = augmented(data)
    order = torch.Generator()
    if recipe.balanced and not labelled:
        raise PrepareError("balanced=True (--balanced) needs labels: give train=, not unlabelled=")
    weights = class_weights(data) if recipe.balanced else None
    loader = loader_of(data, recipe.batch_size, generator=order, weights=weights)
    _check(network, loader, recipe)
    processor = _processor(recipe)
    network.to(processor)
    if teacher is not None:
        teacher = copy.deepcopy(teacher).to(processor).eval()
    placement = Placement(processor, torch.channels_last)
    if _runs(network, teacher, loader, task, placement, recipe):
        for module in filter(None, (network, teacher)):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in its stub
    else:
        placement = Placement(processor, torch.contiguous_format)
    objective = _objective(network, teacher, task, placement, recipe, labelled=labelled)
    batches: Batches = SampleBatches(loader, network, teacher, placement, labelled=labelled)
    # With a single epoch nothing would be used twice.
    if isinstance(network, SlicedNetwork) and recipe.epochs > 1:
        cache = cache_features(network.eval(), teacher, data, processor)
        if cache is not None:
            cache_loader = loader_of(cache, recipe.batch_size, generator=order, weights=weights)
            batches = CachedBatches(cache_loader, placement, labelled=labelled)
    holdout_batches = None
    if holdout_loader is not None:
        holdout_batches = SampleBatches(
            holdout_loader, network, teacher, placement, labelled=labelled
        )
    if recipe.bytes_in_loss:
        _add_rate(network, batches, recipe)
    optimizer = _optimizer(network, recipe)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=recipe.epochs * len(batches),
    )
    state = TrainingState(network, optimizer, schedule, EarlyStopping(recipe.patience))
    return (
        TrainingSetup(
            recipe=recipe,
            task=task,
            labelled=labelled,
            placement=placement,
            objective=objective,
            batches=batches,
            order=order,
            holdout=holdout_batches,
        ),
        state,
    )


def _check(network: nn.Module, loader: DataLoader[Sample], recipe: Recipe) -> None:
    """Check that there is something to train."""
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


def _add_rate(network: nn.Module, batches: Batches, recipe: Recipe) -> None:
    """Put the rate's term into the loss of a network, with densities of the codes of a batch."""
    if not isinstance(network, SlicedNetwork) or not any(
        layer.device.scales is not None for layer in network.layers
    ):
        raise PrepareError("rate and target_bytes (--rate, --target-bytes) need int8 or int4 codes")
    learned = any(layer.spec.learned for layer in network.layers)
    if not (learned or recipe.learn_scales or recipe.train_device_slice):
        raise PrepareError(
            "rate and target_bytes (--rate, --target-bytes) change nothing where neither scales "
            "nor a learned Transfer Layer nor the device slice learn: leave learn_scales on"
        )
    if recipe.target_bytes is not None and recipe.patience is not None:
        raise PrepareError(
            "target_bytes (--target-bytes) does not go with patience: the weight of the bytes "
            "moves, so that the epochs cannot be compared"
        )
    torch.manual_seed(recipe.seed)  # which samples are mirrored, and the user's own data
    batch = next(iter(batches))
    with torch.no_grad():
        features = batch.features or network.features(*batch.inputs)
        if recipe.target_bytes is not None:
            start_at(network, features, recipe.target_bytes)
        codes = network.send(features)
    network.rate = Rate(network.layers, codes, recipe.rate, recipe.target_bytes)


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Make AdamW over the trainable parameters, with weight decay for some of them.

    Biases, batch norms and the scales of quantization do not decay: it would only pull them away
    from where they should be. Scales per channel have more than one dimension, as weights have.
    Where bytes are in the loss, scales and densities learn faster.
    """
    scales = {
        id(p)
        for module in network.modules()
        if isinstance(module, Scales)
        for p in module.parameters()
    }
    fast: dict[float, list[nn.Parameter]] = {}
    if isinstance(network, SlicedNetwork) and network.rate is not None:
        fast[FASTER_DENSITIES] = list(network.rate.parameters())
        found = {id(p): p for p in network.parameters() if id(p) in scales}
        fast[FASTER_SCALES] = list(found.values())
    own = {id(p) for parameters in fast.values() for p in parameters}
    decaying: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for p in filter(lambda p: p.requires_grad and id(p) not in own, network.parameters()):
        (decaying if p.ndim > 1 and id(p) not in scales else others).append(p)
    rate = recipe.learning_rate
    groups: list[dict[str, Any]] = [
        {"params": decaying, "weight_decay": recipe.weight_decay, "lr": rate},
        {"params": others, "weight_decay": 0.0, "lr": rate},
    ]
    for faster, parameters in fast.items():
        groups.append({"params": parameters, "weight_decay": 0.0, "lr": faster * rate})
    return torch.optim.AdamW(groups, lr=rate)


def _runs(
    network: nn.Module,
    teacher: Teacher | None,
    loader: DataLoader[Sample],
    task: Task,
    placement: Placement,
    recipe: Recipe,
) -> bool:
    """Try a training step in a memory order, on copies: channels-last convolutions are faster.

    It fails where a feature map is viewed with dimensions joined that are not neighbours in this
    order, or where a weight of four dimensions is viewed as complex numbers.
    """
    inputs = placement.place(part[:2] for part in flat(next(iter(loader))[0]))
    network, teacher = copy.deepcopy((network, teacher))
    for module in filter(None, (network, teacher)):
        module.to(memory_format=placement.memory_format)  # type: ignore[call-overload]  # missing in its stub
    try:
        with placement.autocast():
            network.eval()(*inputs)  # as the holdout is scored
            network.train()
            batch = make_batch(network, teacher, inputs, None)
            if teacher is None:
                answers = flat(network(*inputs))
                loss = torch.stack([each.float().square().mean() for each in answers]).sum()
            else:
                objective = _objective(network, teacher, task, placement, recipe, labelled=False)
                loss = objective.step(batch).loss
        loss.backward()
    except RuntimeError:
        return False
    except ValueError:  # nothing to normalize in two samples: the training itself says it
        return True
    return True
