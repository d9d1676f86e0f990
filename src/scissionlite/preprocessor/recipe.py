"""Recipe: how the Trainer trains, as values that can be compared and written down."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from scissionlite.errors import PrepareError
from scissionlite.fields import check_fields
from scissionlite.transfer_layer.quantization import Calibration
from scissionlite.transfer_layer.spec import ENCODER_SHARE

Processor = Literal["auto", "cpu", "cuda"]
"""Where to train; "auto" takes the GPU if there is one."""


# More than 12 attributes: each is one choice, and one option of `scissionlite prepare`.
class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How to retrain a network with the Transfer Layer in it.

    The command line's options and their help are made from these fields (:mod:`.fields`).

    Parameters
    ----------
    epochs
        How often every sample is seen; 0 only calibrates.
    batch_size
        Samples per step.
    learning_rate
        Peak of the one-cycle schedule (Smith and Topin, arXiv 1708.07120).
    weight_decay
        AdamW's weight decay, of weights with more than one dimension.
    seed
        Fixes the order of samples, augmentation, dropout and the split.
    distillation
        Share of the loss that compares with the uncut network; the rest compares with the labels.
        Compared are the features at the cut and the outputs (Hinton, Vinyals, Dean, arXiv
        1503.02531). With photographs without labels it is always 1.
    temperature
        Temperature at which the outputs of classes are compared.
    rate
        Weight of the bytes in the loss: of the mean bits of a code, as the entropy coder "ans"
        would send it. 0 does not look at the bytes.
    target_bytes
        Find the weight of the bytes in training, so that an input sends about as many bytes as
        this, all its tensors together. `rate` is then where the weight starts.
    calibration
        How the scales of quantization are found.
    learn_scales
        Train the scales with the weights, from the calibrated ones on.
    train_device_slice
        Train the device slice too. By default it keeps its weights, so that several slicing
        points can share one device network.
    train_edge_slice
        Train the edge slice, as the paper does; otherwise only scales and learned Transfer Layers
        are trained. That is the better choice with few photographs, from which the slice would
        learn little else.
    patience
        Stop after this many epochs without a better score on the split. The weights of the best
        epoch are kept. None trains all epochs, needs no split and keeps the last epoch's weights.
    holdout
        Share of the training data that goes into the split, with `patience`.
    balanced
        Draw training samples so that every class is seen equally often, some samples several times
        in an epoch and others not at all. For data where most samples are of few classes; needs
        labels.
    encoder_share
        Most multiplications that a learned Transfer Layer may add to the device slice, as a share
        of the slice's own.
    processor
        Where to train; on a GPU in mixed precision.

    Raises
    ------
    PrepareError
        A value is out of its range.
    """

    # More than 12 attributes: each is one setting, and one option of `scissionlite prepare`.
    epochs: Annotated[int, Meta(ge=0, le=10_000)] = 8
    batch_size: Annotated[int, Meta(ge=1, le=65_536)] = 32
    learning_rate: Annotated[float, Meta(ge=1e-12, le=10)] = 1e-3
    weight_decay: Annotated[float, Meta(ge=0, le=10)] = 1e-4
    seed: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    distillation: Annotated[float, Meta(ge=0, le=1)] = 0.9
    temperature: Annotated[float, Meta(ge=0.1, le=100)] = 2.0
    rate: Annotated[float, Meta(ge=0, le=100)] = 0.0
    target_bytes: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    calibration: Calibration = "mse"
    learn_scales: bool = True
    train_device_slice: bool = False
    train_edge_slice: bool = True
    patience: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    holdout: Annotated[float, Meta(ge=0.01, le=0.5)] = 0.1
    balanced: bool = False
    encoder_share: Annotated[float, Meta(ge=1e-6, le=1e6)] = ENCODER_SHARE
    processor: Processor = "auto"

    def __post_init__(self) -> None:
        check_fields(self, PrepareError)

    @property
    def bytes_in_loss(self) -> bool:
        """Whether the loss has a term for the bytes that are sent."""
        return self.rate > 0 or self.target_bytes is not None
