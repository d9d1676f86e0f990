"""Descriptions of tensors, shared by graph, profile, bundle and wire format.

No torch: a device reads bundles.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np

MAX_TENSORS = 16
"""Most tensors that can cross at once, and that a message of the wire format can carry."""

INPUT_POINT = "input"
"""Name of the slicing point before the whole network, where a shallow encoder stands."""

OutputKind = Literal["tensor", "tuple", "dict"]
"""How the network's answer holds its tensors; a nested one is flattened into a dict."""


class TensorInfo(msgspec.Struct, frozen=True):
    """A tensor at a border of the network or between two slices.

    Attributes
    ----------
    name : str
        Name of the input or output, or of the captured node whose value it is.
    shape : tuple of int
        Shape for the example input, batch first.
    dtype : str
        Type of its elements, such as ``"float32"``.
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
    """Bytes of a tensor in memory."""
    # NumPy has no bfloat16, in which a network may compute.
    itemsize = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
    return math.prod(shape) * itemsize
