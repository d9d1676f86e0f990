"""Layouts: how the elements of a feature map lie in memory.

The logical shape is (..., channels, height, width) in both layouts. In "nchw" the width is fastest
in memory, in "nhwc" the channels are (PyTorch's ``channels_last``).
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt

from scissionlite.errors import CodecError

FloatMap: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float16]
"""A feature map, of logical shape (..., channels, height, width) in either layout."""

_Array = TypeVar("_Array", bound=npt.NDArray[Any])


def channels_last(array: _Array) -> _Array:
    """View (..., C, H, W) as (..., H, W, C); np.moveaxis takes five times as long."""
    images = array.ndim - 3
    return array.transpose(*range(images), images + 1, images + 2, images)


def channels_first(array: _Array) -> _Array:
    """View (..., H, W, C) as (..., C, H, W)."""
    images = array.ndim - 3
    return array.transpose(*range(images), images + 2, images, images + 1)


def elements_in_memory(array: _Array, layout: str) -> _Array:
    """View an array that is dense in a layout as 1-D, in the order of its elements in memory."""
    return cast(_Array, (array if layout == "nchw" else channels_last(array)).reshape(-1))


def as_map(elements: npt.NDArray[Any], shape: tuple[int, ...], layout: str) -> npt.NDArray[Any]:
    """View 1-D elements in the order of a layout as an array of logical shape."""
    if layout == "nchw":
        return elements.reshape(shape)
    *images, channels, height, width = shape
    return channels_first(elements.reshape(*images, height, width, channels))


def codes_of(
    payload: npt.NDArray[np.uint8], dtype: str, shape: tuple[int, ...]
) -> npt.NDArray[np.int8]:
    """Unpack the codes of an int8 or int4 payload, in its order: int8, 1-D.

    Parameters
    ----------
    payload : ndarray of uint8, shape (n,)
        Not entropy-coded.
    dtype : str
        "int8" or "int4".
    shape : tuple of int
        The shape that crosses the link.
    """
    if dtype == "int8":
        return payload.view(np.int8)
    # Shift to the top and back, which keeps the sign. The lower half of a byte is first.
    halves = np.stack([payload << 4, payload], axis=-1).view(np.int8) >> 4
    return halves.reshape(-1)[: math.prod(shape)]


def dense_copy(array: _Array, layout: str) -> _Array:
    """Copy an array of logical shape so that it is dense in a layout."""
    if layout == "nchw":
        return array.copy(order="C")
    return channels_first(channels_last(array).copy(order="C"))


def empty_map(shape: tuple[int, ...], dtype: str, layout: str) -> FloatMap:
    """Allocate a feature map.

    Raises
    ------
    CodecError
        `dtype` or `layout` is unknown, or the layout is "nhwc" and the shape has no channels.
    """
    if dtype not in ("float32", "float16"):
        raise CodecError(f"dtype={dtype!r} must be 'float32' or 'float16'")
    if layout not in ("nchw", "nhwc"):
        raise CodecError(f"layout={layout!r} must be 'nchw' or 'nhwc'")
    if layout == "nhwc" and len(shape) < 3:
        raise CodecError(f"layout='nhwc' of shape {shape}: needs (..., channels, height, width)")
    return cast(FloatMap, as_map(np.empty(math.prod(shape), dtype), shape, layout))
