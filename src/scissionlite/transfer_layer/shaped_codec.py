"""The shaped codec: a TransferSpec fixed to feature maps of one shape, with encode and decode.

The shape decides the kernels, the sizes and the number of scales. They are worked out once per spec
and shape and kept, so that a call does little beyond its kernel. The compiled core does the
arithmetic and checks every array (docs/numerics.md).
"""

from __future__ import annotations

import math
import threading
from functools import cached_property, lru_cache
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from scissionlite import _core
from scissionlite.errors import CodecError
from scissionlite.transfer_layer import entropy
from scissionlite.transfer_layer.entropy_tables import EntropyTables
from scissionlite.transfer_layer.layouts import (
    FloatMap,
    as_map,
    channels_last,
    codes_of,
    dense_copy,
    elements_in_memory,
    empty_map,
)
from scissionlite.transfer_layer.quantization import Quantization, call_core
from scissionlite.transfer_layer.spec import CODE_RANGES, TransferSpec

Bytes: TypeAlias = npt.NDArray[np.uint8]


class ShapedCodec:
    """Encode and decode feature maps of one shape with one spec.

    Attributes
    ----------
    spec : TransferSpec
        Which Transfer Layer.
    shape, packed_shape : tuple of int
        Shape of the feature map, and of what crosses the link.
    nbytes : int
        Exact length of a payload before entropy coding, in bytes.
    scaled_channels : int or None
        Number of channels if each has its own scale; None if the tensor has one scale, or none.

    Raises
    ------
    CodecError
        The spec is of a learned Transfer Layer, or it cannot take the shape.
    """

    def __init__(self, spec: TransferSpec, shape: tuple[int, ...]) -> None:
        if spec.learned:
            raise CodecError(
                f"{spec.label}: its bottleneck is part of the slices; the codec packs the "
                "bottleneck's output, with spec.packing"
            )
        self.spec = spec
        self.shape = shape
        self.packed_shape = spec.packed_shape(shape)
        # Without planes the map is one long row, so any number of dimensions is possible.
        planes = shape[-3:] if spec.needs_planes else (1, 1, math.prod(shape))
        channels, height, width = planes
        self._transfer = _core.Transfer(
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
        self.nbytes = self._transfer.nbytes
        self._quantized = spec.quantized
        per_channel = self._quantized and spec.granularity == "channel"
        self.scaled_channels = channels if per_channel else None
        # A feature map of this type is its own payload: nothing is computed, nothing is copied.
        copies = spec.pool == 1 and not self._quantized
        self._copied_dtype = np.dtype(spec.dtype) if copies else None

    def encode(
        self,
        array: FloatMap,
        quantization: Quantization | None,
        out: Bytes | None,
        tables: EntropyTables | None,
    ) -> tuple[Bytes, Quantization | None, bool]:
        """Encode a feature map of this shape; see :func:`.codec.encode`.

        Returns
        -------
        payload : ndarray of uint8, shape (n,)
            `out` or its beginning, a view of `array`, or a new array.
        quantization : Quantization or None
            The scales and zero points of the payload.
        entropy_coded : bool
            Whether the payload is entropy-coded.
        """
        if not self._transfer.accepts(array):
            array = dense_copy(array, self.spec.layout)
        if quantization is None and self._quantized:
            payload = np.empty(self.nbytes, np.uint8) if out is None else out
            quantization = self._encode_by_range(array, payload)
        else:
            quantizer = self.quantizer(quantization)
            if out is None and self._copied_dtype is not None and array.dtype == self._copied_dtype:
                payload = elements_in_memory(array, self.spec.layout).view(np.uint8)
            else:
                payload = np.empty(self.nbytes, np.uint8) if out is None else out
                call_core(self._transfer.encode, array, payload, quantizer)
        if self.spec.entropy is None:
            return payload, quantization, False
        coded = entropy.code(payload, self.spec, self.packed_shape, tables)
        if coded is None:
            return payload, quantization, False
        if out is None:
            return coded, quantization, True
        out[: coded.size] = coded
        return out[: coded.size], quantization, True

    def decode(
        self,
        payload: Bytes,
        quantization: Quantization | None,
        entropy_coded: bool,
        tables: EntropyTables | None,
        out: FloatMap | None,
        dtype: str,
        layout: str | None,
    ) -> FloatMap:
        """Decode a payload into a feature map of this shape; see :func:`.codec.decode`."""
        quantizer = self.quantizer(quantization)
        if entropy_coded:
            payload = entropy.decode(payload, self.spec, self.packed_shape, self.nbytes, tables)
        if payload.nbytes != self.nbytes:
            raise CodecError(
                f"payload of {payload.nbytes} bytes; {self.spec.label} of shape {self.shape} has "
                f"exactly {self.nbytes}"
            )
        if out is None:
            out = empty_map(self.shape, dtype, layout or self.spec.layout)
        elif not isinstance(out, np.ndarray) or out.shape != self.shape:
            raise CodecError(f"out must be a float32 or float16 ndarray of shape {self.shape}")
        codec = self
        if not self._transfer.accepts(out):
            if out.ndim < 3 or not self._other_layout._transfer.accepts(out):
                raise CodecError("out must be contiguous in nchw or nhwc, and aligned")
            payload, codec = self._reordered(payload), self._other_layout
        if not self._quantized and not payload.view(self.spec.dtype).flags.aligned:
            payload = payload.copy()  # in a message it may start anywhere
        call_core(codec._transfer.decode, payload, out, quantizer)
        return out

    def quantizer(self, quantization: Quantization | None) -> _core.Quantizer | None:
        """Check scales against spec and channels, and return them in the core's type.

        Raises
        ------
        CodecError
            They are missing, superfluous, or not as many as the spec needs.
        """
        if self._quantized:
            if isinstance(quantization, Quantization):
                if quantization.channels == self.scaled_channels:
                    return quantization.quantizer
                actual = f"the scales are {_number_of_scales(quantization.channels)}"
            else:
                actual = f"quantization={quantization!r}"
            expected = f"of shape {self.shape} needs {_number_of_scales(self.scaled_channels)}"
            raise CodecError(f"{actual}; {self.spec.label} {expected}")
        if quantization is not None:
            raise CodecError(f"quantization={quantization!r}: {self.spec.label} is not quantized")
        return None

    def _encode_by_range(self, array: FloatMap, payload: Bytes) -> Quantization:
        """Encode with scales from the range of the map, which takes a pass of its own to find."""
        spec = self.spec
        pooled = _pooled_map(self._transfer.pooled_size) if spec.pool > 1 else None
        per_channel = self.scaled_channels is not None
        quantizer = call_core(
            self._transfer.encode_measured,
            array,
            payload,
            pooled,
            per_channel,
            spec.scheme,
            spec.levels or 0,
        )
        return Quantization.of(quantizer, per_channel=per_channel)

    @cached_property
    def _other_layout(self) -> ShapedCodec:
        """The codec that decodes what :meth:`_reordered` returns, into the other layout."""
        layout = "nchw" if self.spec.layout == "nhwc" else "nhwc"
        dtype = "int8" if self.spec.dtype == "int4" else self.spec.dtype
        spec = msgspec.structs.replace(self.spec, layout=layout, dtype=dtype)
        return codec_for(spec, *self.shape)

    def _reordered(self, payload: Bytes) -> Bytes:
        """Put a payload in the order of the other layout; int4 codes become int8."""
        codes: npt.NDArray[Any]
        if self.spec.dtype == "int4":
            codes = codes_of(payload, "int4", self.packed_shape)
        else:
            codes = payload.view(self.spec.dtype)
        ordered = as_map(codes, self.packed_shape, self.spec.layout)
        if self.spec.layout == "nchw":
            ordered = channels_last(ordered)
        return np.ascontiguousarray(ordered).reshape(-1).view(np.uint8)


@lru_cache(maxsize=256, typed=True)  # typed, because 2.0 == 2 but is not a size
def codec_for(spec: TransferSpec, *shape: int) -> ShapedCodec:
    """Return the codec for a spec and a shape, made at the first call.

    Raises
    ------
    CodecError
        `spec` is not a TransferSpec, or it cannot take this shape.
    """
    if not isinstance(spec, TransferSpec):
        raise CodecError(f"spec={spec!r} must be a TransferSpec")
    return ShapedCodec(spec, shape)


def check_quantization(
    spec: TransferSpec, shape: tuple[int, ...], quantization: Quantization | None
) -> None:
    """Check that feature maps of a shape can be packed with a spec and these scales.

    Raises
    ------
    CodecError
        The spec cannot take the shape; scales are missing, superfluous, or not as many as it
        needs; or a zero point is outside the codes of its dtype.
    """
    codec_for(spec, *shape).quantizer(quantization)
    if quantization is not None:
        low, high = CODE_RANGES[spec.dtype]
        _, zero_points = quantization.groups
        if min(zero_points) < low or max(zero_points) > high:
            raise CodecError(f"{spec.label} needs zero points within [{low}, {high}]")


def _number_of_scales(channels: int | None) -> str:
    return "one for the tensor" if channels is None else f"one for each of {channels} channels"


class _PooledMaps(threading.local):
    """A buffer per thread for pooled maps. A new one at every call would have to be paged in."""

    buffer: npt.NDArray[np.float32] = np.empty(0, np.float32)


_pooled_maps = _PooledMaps()


def _pooled_map(size: int) -> npt.NDArray[np.float32]:
    """Return this thread's buffer; the next call overwrites it. It keeps its largest size."""
    if _pooled_maps.buffer.size < size:
        _pooled_maps.buffer = np.empty(size, np.float32)
    return _pooled_maps.buffer[:size]
