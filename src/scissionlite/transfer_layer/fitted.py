"""A Transfer Layer fitted to feature maps of one shape: what is worked out once, not at every call.

Also the two layouts, which differ in nothing but the order of a feature map's elements in memory.
"""

from __future__ import annotations

import math
import threading
from functools import cached_property, lru_cache
from typing import Any, TypeAlias, TypeVar, cast

import msgspec
import numpy as np
import numpy.typing as npt

from scissionlite import _core
from scissionlite.errors import CodecError
from scissionlite.transfer_layer.quantization import Quantization
from scissionlite.transfer_layer.spec import CODE_RANGES, TransferSpec

Bytes: TypeAlias = npt.NDArray[np.uint8]
FloatMap: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float16]


class FittedLayer:
    """What encoding and decoding need, for one spec and one shape.

    Attributes
    ----------
    spec : TransferSpec
        Which Transfer Layer.
    shape, packed_shape : tuple of int
        Of the feature map and of the pooled one.
    transfer : _core.Transfer
        The core's kernels, chosen.
    nbytes : int
        Exact length of a payload before entropy coding.
    quantized : bool
        Whether the payload holds integer codes.
    scales : int or None
        Number of channels if each has a scale of its own; None if the tensor has one, or none.
    """

    def __init__(self, spec: TransferSpec, shape: tuple[int, ...]) -> None:
        if spec.learned:
            raise CodecError(
                f"{spec.label}: its bottleneck is part of the slices; the codec packs what that "
                "leaves, with spec.packing"
            )
        self.spec = spec
        self.shape = shape
        self.packed_shape = spec.packed_shape(shape)
        # Without planes, one long row: any number of dimensions will do.
        planes = shape[-3:] if spec.needs_planes else (1, 1, math.prod(shape))
        channels, height, width = planes
        self.transfer = _core.Transfer(
            images=math.prod(shape) // math.prod(planes),
            channels=channels,
            height=height,
            width=width,
            pool=spec.pool,
            pool_kind=spec.pool_kind,
            upsample=spec.upsample,
            layout=spec.layout,
            dtype=spec.dtype,
        )
        self.nbytes = self.transfer.nbytes
        self.quantized = spec.quantized
        self.scales = channels if self.quantized and spec.granularity == "channel" else None

    @cached_property
    def copies(self) -> np.dtype[Any] | None:
        """Type of the feature maps whose own bytes are the payload, if there is one."""
        return np.dtype(self.spec.dtype) if self.spec.pool == 1 and not self.quantized else None

    @cached_property
    def other_layout(self) -> FittedLayer:
        """The layer that decodes what :meth:`reordered` gives, into the other layout."""
        layout = "nchw" if self.spec.layout == "nhwc" else "nhwc"
        dtype = "int8" if self.spec.dtype == "int4" else self.spec.dtype
        return fit(msgspec.structs.replace(self.spec, layout=layout, dtype=dtype), *self.shape)

    def quantizer(self, quantization: Quantization | None) -> _core.Quantizer | None:
        """Check scales against spec and channels, and return them as the core takes them.

        Raises
        ------
        CodecError
            They are missing, superfluous, or not as many as the spec needs.
        """
        if quantization is None and not self.quantized:
            return None
        if not isinstance(quantization, Quantization) or not self.quantized:
            raise CodecError(f"quantization={quantization!r}: {self.spec.label} {self._needs}")
        if quantization.channels != self.scales:
            given = quantization.channels
            told = "one for the tensor" if given is None else f"one for each of {given} channels"
            raise CodecError(f"quantization with scales {told}: {self.spec.label} {self._needs}")
        return quantization.quantizer

    @property
    def _needs(self) -> str:
        if not self.quantized:
            return "is not quantized"
        return f"of shape {self.shape} needs " + (
            "one for the tensor"
            if self.scales is None
            else f"one for each of {self.scales} channels"
        )

    def reordered(self, payload: Bytes) -> Bytes:
        """Put a payload in the order of the other layout; int4 codes become int8."""
        codes: npt.NDArray[Any]
        if self.spec.dtype == "int4":
            # Shifted to the top and back with the sign: the lower half of each byte first.
            halves = np.stack([payload << 4, payload], axis=-1).view(np.int8) >> 4
            codes = halves.reshape(-1)[: math.prod(self.packed_shape)]
        else:
            codes = payload.view(self.spec.dtype)
        ordered = as_map(codes, self.packed_shape, self.spec.layout)
        if self.spec.layout == "nchw":
            ordered = _channels_last(ordered)
        return np.ascontiguousarray(ordered).reshape(-1).view(np.uint8)

    def aligned(self, payload: Bytes) -> Bytes:
        """Copy a payload that starts where its elements cannot be read."""
        if self.quantized or payload.view(self.spec.dtype).flags.aligned:
            return payload
        return payload.copy()

    def dense(self, array: FloatMap) -> FloatMap:
        """Copy a feature map that is not dense in the layout."""
        if self.transfer.accepts(array):
            return array
        if self.spec.layout == "nchw":
            return array.copy(order="C")
        return _channels_first(_channels_last(array).copy(order="C"))


@lru_cache(maxsize=256, typed=True)  # typed, as 2.0 == 2 is no size
def fit(spec: TransferSpec, *shape: int) -> FittedLayer:
    """Fit a Transfer Layer to feature maps of a shape.

    Raises
    ------
    CodecError
        `spec` is no TransferSpec, or it cannot take this shape.
    """
    if not isinstance(spec, TransferSpec):
        raise CodecError(f"spec={spec!r} must be a TransferSpec")
    return FittedLayer(spec, shape)


def check_quantization(
    spec: TransferSpec, shape: tuple[int, ...], quantization: Quantization | None
) -> None:
    """Check that feature maps of a shape can be packed with a spec and these scales.

    Raises
    ------
    CodecError
        The spec cannot take the shape, or scales are missing, superfluous, or not as many as it
        needs, or a zero point is none of its codes.
    """
    fit(spec, *shape).quantizer(quantization)
    if quantization is not None:
        low, high = CODE_RANGES[spec.dtype]
        _, zero_points = quantization.groups
        if min(zero_points) < low or max(zero_points) > high:
            raise CodecError(f"{spec.label} needs zero points within [{low}, {high}]")


def as_map(flat: npt.NDArray[Any], shape: tuple[int, ...], layout: str) -> npt.NDArray[Any]:
    """View elements in the order of a layout as a feature map of logical shape."""
    if layout == "nchw":
        return flat.reshape(shape)
    *images, channels, height, width = shape
    return _channels_first(flat.reshape(*images, height, width, channels))


def flat_view(array: FloatMap, layout: str) -> FloatMap:
    """View a feature map, dense in the layout, as its elements lie in memory."""
    return (array if layout == "nchw" else _channels_last(array)).reshape(-1)


def empty_map(shape: tuple[int, ...], dtype: str, layout: str) -> FloatMap:
    """Allocate a feature map.

    Raises
    ------
    CodecError
        `dtype` or `layout` is unknown, or the shape has no channels.
    """
    if dtype not in ("float32", "float16"):
        raise CodecError(f"dtype={dtype!r} must be 'float32' or 'float16'")
    if layout not in ("nchw", "nhwc"):
        raise CodecError(f"layout={layout!r} must be 'nchw' or 'nhwc'")
    if layout == "nhwc" and len(shape) < 3:
        raise CodecError(f"layout='nhwc' of shape {shape}: needs (..., channels, height, width)")
    return cast(FloatMap, as_map(np.empty(math.prod(shape), dtype), shape, layout))


_Array = TypeVar("_Array", bound=npt.NDArray[Any])


def _channels_last(array: _Array) -> _Array:
    """View (..., C, H, W) as (..., H, W, C); np.moveaxis takes five times as long."""
    images = array.ndim - 3
    return array.transpose(*range(images), images + 1, images + 2, images)


def _channels_first(array: _Array) -> _Array:
    images = array.ndim - 3
    return array.transpose(*range(images), images + 2, images, images + 1)


class _Scratch(threading.local):
    """A thread's buffer for pooled maps; a fresh one each time would have to be paged in."""

    buffer: npt.NDArray[np.float32] = np.empty(0, np.float32)


_scratch = _Scratch()


def scratch(size: int) -> npt.NDArray[np.float32]:
    """Lend this thread's buffer, until its next call; it grows to the largest size and stays."""
    if _scratch.buffer.size < size:
        _scratch.buffer = np.empty(size, np.float32)
    return _scratch.buffer[:size]
