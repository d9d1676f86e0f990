"""Tensors at the borders of a network and of its slices, as graph, profile and bundle tell of them.

No torch: a device reads bundles.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np

MAX_TENSORS = 16
"""Most tensors that can cross at once, and that a message of the wire format can carry."""

OutputKind = Literal["tensor", "tuple", "dict"]
"""How the network's answer holds its tensors; a nested one is flattened into a dict."""


class TensorInfo(msgspec.Struct, frozen=True):
    """A tensor at a border of the network or between two slices.

    Attributes
    ----------
    name : str
        Of the input or output, or of the captured node whose value it is.
    shape : tuple of int
        Its shape for the example input, batch first.
    dtype : str
        Such as ``"float32"``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return tensor_nbytes(self.shape, self.dtype)

    def of_batch(self, batch: int) -> tuple[int, ...]:
        """The shape with another batch size."""
        return (batch, *self.shape[1:])


def tensor_nbytes(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a tensor of some shape and dtype, as it is in memory."""
    # NumPy does not know bfloat16, in which a network may compute.
    itemsize = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
    return math.prod(shape) * itemsize
