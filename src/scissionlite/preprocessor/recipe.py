"""Recipe: how the Trainer trains, as values that can be compared and written down."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from scissionlite.errors import PrepareError
from scissionlite.transfer_layer.spec import ENCODER_SHARE

Calibration = Literal["range", "percentile", "mse"]
"""How scales are found: from the whole range of what crosses, all but its outermost 0.01% at
either end, or where the mean squared error of quantization is least."""

Processor = Literal["auto", "cpu", "cuda"]
"""Where to train: on the GPU if there is one, or as said."""


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How to retrain a network with the Transfer Layer in it.

    Parameters
    ----------
    epochs
        How often every sample is seen; 0 only calibrates.
    batch_size
        Samples a step.
    learning_rate
        Peak of the one-cycle schedule (Smith and Topin, arXiv 1708.07120).
    weight_decay
        AdamW's, of weights with more than one dimension.
    seed
        Fixes order, augmentation, dropout and the split.
    distillation
        Share, 0 to 1, of the loss that compares with the uncut network (features at the cut and
        outputs; Hinton, Vinyals, Dean, arXiv 1503.02531); the rest compares with the labels. With
        bare photographs it is 1, whatever is said here.
    temperature
        Of the outputs' comparison, for classes.
    calibration
        How scales are found.
    learn_scales
        Let the scales learn with the weights, from where calibration has put them.
    train_device_slice
        Let the device slice learn too. By default it keeps its weights, so that several slicing
        points can share one device network.
    train_edge_slice
        Let the edge slice learn, as the paper does. Without it only scales and learned Transfer
        Layers do: the better choice with few photographs, which would teach it little else.
    patience
        Stop after so many epochs without a better score on the split, and keep the best epoch's
        weights; None trains all epochs, needs no split and keeps the last.
    holdout
        Share of the training data that the split is, with `patience`.
    encoder_share
        Of a learned Transfer Layer: most of the device slice's own multiplications that its device
        side may add.
    processor
        Where to train. On a GPU in mixed precision.

    Raises
    ------
    PrepareError
        A value is out of its range.
    """

    epochs: int = 8
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    seed: int = 0
    distillation: float = 0.9
    temperature: float = 2.0
    calibration: Calibration = "mse"
    learn_scales: bool = True
    train_device_slice: bool = False
    train_edge_slice: bool = True
    patience: int | None = None
    holdout: float = 0.1
    encoder_share: float = ENCODER_SHARE
    processor: Processor = "auto"

    def __post_init__(self) -> None:
        ranges: dict[str, tuple[float, float]] = {
            "epochs": (0, 10_000),
            "batch_size": (1, 65_536),
            "learning_rate": (1e-12, 10),
            "weight_decay": (0, 10),
            "seed": (0, 2**31 - 1),
            "distillation": (0, 1),
            "temperature": (0.1, 100),
            "holdout": (0.01, 0.5),
            "encoder_share": (1e-6, 1e6),
            "patience": (1, 10_000),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise PrepareError(f"Recipe: {name}={value!r} must be {low:g} to {high:g}")
        choices = {"calibration": Calibration, "processor": Processor}
        for name, allowed in choices.items():
            known = allowed.__args__  # type: ignore[attr-defined]  # a Literal's
            if getattr(self, name) not in known:
                raise PrepareError(
                    f"Recipe: {name}={getattr(self, name)!r} must be {', '.join(known)}"
                )
