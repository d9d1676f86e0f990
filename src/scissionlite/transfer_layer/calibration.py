"""Calibration: make a Transfer Layer ready for the feature maps of a slicing point.

Scales and zero points come from the tensor's values for some real inputs. From the range of the
values they follow as :meth:`.Quantization.from_range` says; the methods differ in the range that
they take. The halves of a learned Transfer Layer start from the same values.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from scissionlite.errors import CodecError
from scissionlite.transfer_layer.layers import TransferLayer, pooled
from scissionlite.transfer_layer.learned import bottleneck, initialise
from scissionlite.transfer_layer.quantization import Calibration, Quantization
from scissionlite.transfer_layer.spec import TransferSpec

_OUTERMOST = 1e-4
"""Share of the values that "percentile" leaves out at either end."""

_RANGE_SHARES = np.linspace(1.0, 0.2, 41)
"""Shares of the whole range that "mse" tries."""

_MAX_VALUES = 1 << 20
"""Most values that "percentile" and "mse" read."""


def calibrated_layer(
    spec: TransferSpec,
    shape: tuple[int, ...],
    features: torch.Tensor | None,
    *,
    method: Calibration = "mse",
    learn_scales: bool = False,
    most_multiplications: float = math.inf,
) -> TransferLayer:
    """Make a Transfer Layer that is calibrated and not trained.

    Parameters
    ----------
    spec
        The tensor's Transfer Layer.
    shape
        Shape of the tensor, batch first.
    features
        Its values for some inputs, float32, batch first; None where the spec needs none, because it
        is neither quantized nor learned.
    method
        How the scales are found (:data:`.quantization.Calibration`).
    learn_scales
        Whether training may change them.
    most_multiplications
        Most multiplications of the device's half of a learned one.

    Raises
    ------
    CodecError
        If a learned one costs more, or as :func:`calibrate`.
    """
    halves = None
    if spec.learned:
        assert features is not None
        halves = bottleneck(spec, shape, most_multiplications=most_multiplications)
        initialise(*halves, features.split(32))
        with torch.no_grad():
            features = torch.cat([halves[0](part) for part in features.split(32)])
    quantization = None
    if spec.quantized:
        assert features is not None
        quantization = calibrate(features, spec, method)
    return TransferLayer(spec, quantization, learn_scales=learn_scales, halves=halves)


def calibrate(features: torch.Tensor, spec: TransferSpec, method: Calibration) -> Quantization:
    """Find scales and zero points.

    Parameters
    ----------
    features
        The tensor's values for some inputs, float32, batch first. With a learned Transfer Layer
        these are its encoder's outputs.
    spec
        The tensor's Transfer Layer, int8 or int4. It says which values share a scale, and how many
        levels the range is divided into.
    method
        How to find the range: "range", "percentile" or "mse" (:data:`.quantization.Calibration`).

    Returns
    -------
    Quantization
        One scale and zero point, or one per channel.

    Raises
    ------
    CodecError
        If there are no features, or they are not finite.
    """
    spec = spec.packing
    values = pooled(features, spec)
    # One row per scale: the values of one channel, or all values.
    per_channel = spec.granularity == "channel"
    groups = (values.transpose(0, -3) if per_channel else values[None]).flatten(1)
    if not groups.numel() or not torch.isfinite(groups).all():
        raise CodecError(
            "the device slice answers NaN, infinities or nothing on the calibration data: "
            "check that the network was trained and that the data set is not empty"
        )
    lows, highs = groups.amin(1).double().numpy(), groups.amax(1).double().numpy()
    if method != "range":
        # Every n-th value: neighbours in a feature map are alike.
        step = -(-groups.numel() // _MAX_VALUES)
        groups = groups[:, ::step]
    if method == "percentile":
        lows, highs = np.quantile(groups.double().numpy(), [_OUTERMOST, 1 - _OUTERMOST], axis=1)
    if method == "mse":
        share = _best_share(groups, lows, highs, spec)
        lows, highs = lows * share, highs * share
    return _from_range(lows, highs, spec)


def _best_share(
    groups: torch.Tensor,
    lows: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    highs: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    spec: TransferSpec,
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Find for each group the share of its range that has the least squared error."""
    plain = TransferSpec(pool=1, dtype=spec.dtype, granularity=spec.granularity, scheme=spec.scheme)
    rows = groups[:, :, None] if spec.granularity == "channel" else groups
    errors = []
    for share in _RANGE_SHARES:
        # With all codes: with fewer levels nothing saturates, and the smallest share would win.
        layer = TransferLayer(plain, _from_range(lows * share, highs * share, plain))
        difference = (layer(rows) - rows).reshape(groups.shape)
        errors.append(difference.double().square().mean(1))
    return np.asarray(_RANGE_SHARES[torch.stack(errors).argmin(0).numpy()])


def _from_range(
    lows: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    highs: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    spec: TransferSpec,
) -> Quantization:
    if spec.granularity == "tensor":
        low, high = lows.item(), highs.item()
        return Quantization.from_range(low, high, spec.dtype, spec.scheme, spec.levels)
    return Quantization.from_range(lows, highs, spec.dtype, spec.scheme, spec.levels)
