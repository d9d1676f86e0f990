"""Classes of a code's neighbours, for entropy tables that depend on them. No torch here.

The neighbours are the codes to the left and above in the same channel. How far their sum is from
twice the channel's most frequent code says where a code probably is. Of the classes that were
tried (docs/kernels.md, "Tables and neighbours") this one is the cheapest that gains enough.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scissionlite.transfer_layer.entropy_tables import CLASSES, Bounds

_DISTANCES = np.array([0.5, 1.5, 3.0, 5.2])
"""Where a class ends: the sum's distance, in the mean distance of the channel's codes."""


def bounds_from(counts: npt.NDArray[np.float64], low: int) -> Bounds:
    """Choose the bounds of classes.

    Parameters
    ----------
    counts : ndarray of float64, shape (channels, codes)
        How often each channel has each code.
    low : int
        The lowest code.

    Returns
    -------
    ndarray of int16, shape (channels, CLASSES - 1)
        Symmetric about twice the channel's most frequent code.
    """
    codes = low + np.arange(counts.shape[1])
    middle = codes[counts.argmax(1)][:, None]
    distance = (counts * abs(codes - middle)).sum(1) / counts.sum(1)
    # A channel of hardly more than one code: the next code is another class.
    ends = np.ceil(np.maximum(1.0, distance)[:, None] * _DISTANCES)
    bounds = 2 * middle + np.concatenate([1 - ends[:, ::-1], ends], axis=1)
    laid: Bounds = bounds.astype(np.int16)  # at most 512 + 5.2 x 255 from zero
    return laid


def classes_of(codes: npt.NDArray[np.int8], bounds: Bounds) -> npt.NDArray[np.int64]:
    """Return the class of each code of some feature maps, as docs/numerics.md defines it.

    Parameters
    ----------
    codes : ndarray of int8, shape (..., channels, height, width)
        Codes of each map.
    bounds : ndarray of int16, shape (channels, CLASSES - 1)
        As :class:`.EntropyTables` has them.

    Returns
    -------
    ndarray of int64, shape (..., channels, height, width)
        Numbers from 0 to CLASSES - 1.
    """
    wide = codes.astype(np.int64)
    left, above = np.empty_like(wide), np.empty_like(wide)
    left[..., 1:], above[..., 1:, :] = wide[..., :-1], wide[..., :-1, :]
    above[..., 0, :], left[..., 0] = left[..., 0, :], above[..., 0]
    total = left + above
    classes = np.zeros_like(wide)
    for bound in bounds.T:
        classes += total >= bound[:, None, None]
    classes[..., 0, 0] = CLASSES // 2
    return classes
