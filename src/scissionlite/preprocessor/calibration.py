"""Scales and zero points for what crosses, from what crosses for some real inputs."""

from __future__ import annotations

import numpy as np
import torch

from scissionlite.errors import PrepareError
from scissionlite.preprocessor.recipe import Calibration
from scissionlite.transfer_layer import Quantization, TransferSpec
from scissionlite.transfer_layer.layers import TransferLayer, pooled

_OUTERMOST = 1e-4
"""Share of the values beyond either end of the range, for "percentile"."""

_SHRINKINGS = np.linspace(1.0, 0.2, 41)
"""Shares of the range that are tried, for "mse"."""

_MOST_VALUES = 1 << 20
"""Most values that are looked at for "percentile" and "mse"."""


def calibrate(features: torch.Tensor, spec: TransferSpec, method: Calibration) -> Quantization:
    """Find scales and zero points.

    Parameters
    ----------
    features
        What a tensor that crosses was for some inputs, batch first. Of a learned Transfer Layer
        what its encoder answers.
    spec
        Of the tensor: int8 or int4, with as many levels as the range that is found will take.
    method
        How: see :data:`.recipe.Calibration`.

    Raises
    ------
    PrepareError
        If there are no features, or they are not finite.
    """
    spec = spec.packing
    values = pooled(features, spec)
    # Groups in rows: all but the channels, or all, share one scale.
    each_channel = spec.granularity == "channel"
    groups = (values.transpose(0, -3) if each_channel else values[None]).flatten(1)
    if not groups.numel() or not torch.isfinite(groups).all():
        raise PrepareError(
            "the device slice answers NaN, infinities or nothing on the calibration data: "
            "check that the network was trained and that the data set is not empty"
        )
    lows, highs = groups.amin(1).double().numpy(), groups.amax(1).double().numpy()
    if method != "range":
        # Evenly spread, as neighbours in a feature map are alike.
        step = -(-groups.numel() // _MOST_VALUES)
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
    """For each group the share of its range whose quantization has the least squared error."""
    plain = TransferSpec(pool=1, dtype=spec.dtype, granularity=spec.granularity, scheme=spec.scheme)
    rows = groups[:, :, None] if spec.granularity == "channel" else groups
    errors = []
    for share in _SHRINKINGS:
        # Of all codes: with fewer levels nothing saturates, and the smallest share would win.
        layer = TransferLayer(plain, _from_range(lows * share, highs * share, plain))
        difference = (layer(rows) - rows).reshape(groups.shape)
        errors.append(difference.double().square().mean(1))
    return np.asarray(_SHRINKINGS[torch.stack(errors).argmin(0).numpy()])


def _from_range(
    lows: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    highs: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    spec: TransferSpec,
) -> Quantization:
    how = spec.dtype, spec.scheme, spec.levels
    if spec.granularity == "tensor":
        return Quantization.from_range(lows.item(), highs.item(), *how)
    return Quantization.from_range(lows, highs, *how)
