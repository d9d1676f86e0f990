"""The Transfer Layer at run time: ``encode`` on the device, ``decode`` on the edge. No torch here.

Checks and defaults are here; arithmetic on feature maps is in the compiled core, whose numerics
docs/numerics.md specifies. Pooling and upsampling are those of arXiv 2105.02019; the
int8 packing is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from scissionlite import _core
from scissionlite.errors import CodecError
from scissionlite.transfer_layer.spec import TransferSpec

Buffer: TypeAlias = bytes | bytearray | memoryview | npt.NDArray[Any]
"""What a payload may be in: any contiguous buffer."""

_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)  # its reciprocal is finite, a denormal's may not

# A wrong SCISSIONLITE_ISA must surface as IsaError when the package is imported, not at some
# request later.
_core.isa()


class Quantization(msgspec.Struct, frozen=True):
    """Affine int8 quantization of one tensor: ``x ~ (q - zero_point) * scale``.

    Parameters
    ----------
    scale : float
        Size of one step, in the units of the feature map. Kept as the nearest float32.
    zero_point : int
        The int8 value that stands for zero, -128 to 127.

    Raises
    ------
    CodecError
        `scale` is not finite and positive or its float32 reciprocal is not finite, or
        `zero_point` is not an integer in range.
    """

    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        if not isinstance(self.scale, float | int) or isinstance(self.scale, bool):
            raise CodecError(f"Quantization: scale={self.scale!r} is not a number")
        # What the kernels and the wire hold, so that equal structs decode equally.
        with np.errstate(over="ignore", under="ignore", divide="ignore"):
            scale = np.float32(self.scale)
            usable = scale > 0 and np.isfinite(scale) and np.isfinite(np.float32(1) / scale)
        if not usable:
            raise CodecError(
                f"Quantization: scale={self.scale!r} must be finite and positive, with a finite "
                "reciprocal in float32"
            )
        if (
            not isinstance(self.zero_point, int)
            or isinstance(self.zero_point, bool)
            or not -128 <= self.zero_point <= 127
        ):
            raise CodecError(
                f"Quantization: zero_point={self.zero_point!r} must be an integer in [-128, 127]"
            )
        msgspec.structs.force_setattr(self, "scale", float(scale))

    @classmethod
    def from_range(cls, low: float, high: float) -> Quantization:
        """Return the quantization whose 256 values span a range.

        Parameters
        ----------
        low, high : float
            Smallest and largest value of the pooled feature map. The range is widened to include
            zero, so that zero (the most frequent feature after a ReLU) is exact.

        Raises
        ------
        CodecError
            A bound is not finite, or `low` is above `high`.
        """
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise CodecError(f"range [{low!r}, {high!r}] must be finite and not reversed")
        low, high = min(float(low), 0.0), max(float(high), 0.0)
        if low == high:
            return cls(scale=1.0, zero_point=-128)
        with np.errstate(under="ignore", over="ignore"):
            scale = max(float(np.float32((high - low) / 255)), _SMALLEST_SCALE)
        # round() is half to even. An infinite scale (bounds beyond float32) is refused by cls.
        zero_point = min(max(round(-128 - low / scale), -128), 127)
        return cls(scale=scale, zero_point=zero_point)


class Packed(msgspec.Struct, frozen=True, eq=False):
    """A feature map as it crosses the link: payload bytes, and what decode needs.

    Nothing is checked here; :func:`decode` trusts none of it.

    Parameters
    ----------
    payload : buffer
        The packed elements in C order, little-endian. :func:`encode` gives 1-D uint8.
    spec : TransferSpec
        Which Transfer Layer packed it.
    shape : tuple of int
        Shape of the feature map before packing, which decoding restores.
    quantization : Quantization or None
        Scale and zero point; None for a float32 payload.
    """

    payload: Buffer
    spec: TransferSpec
    shape: tuple[int, ...]
    quantization: Quantization | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of payload."""
        return _payload_bytes(self.payload).nbytes


def encode(
    array: npt.NDArray[np.float32],
    spec: TransferSpec,
    quantization: Quantization | None = None,
    out: npt.NDArray[np.uint8] | None = None,
) -> Packed:
    """Pool and pack a feature map: DeviceTL (arXiv 2105.02019; int8 is ours).

    Parameters
    ----------
    array : ndarray of float32, shape (..., C, H, W)
        The feature map; with ``pool=1`` any shape of 1 to 8 dimensions. Copied first if it is not
        C-contiguous.
    spec : TransferSpec
        Which Transfer Layer.
    quantization : Quantization, optional
        Scale and zero point for int8, from calibration. Without it the range of the finite values
        of the pooled map is used, which costs a second pass.
    out : ndarray of uint8, shape (spec.packed_nbytes(array.shape),), optional
        Where to put the payload, to save an allocation.

    Returns
    -------
    Packed
        With ``TransferSpec.float32_split()``, no `out` and a contiguous `array`, the payload is a
        view of `array` and no byte is copied.

    Raises
    ------
    CodecError
        `array` is not float32, is empty, too large or has too few dimensions; a quantization is
        given for a float32 payload; `out` does not fit.
    """
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise CodecError(f"encode takes a float32 ndarray, not {kind}")
    shape = array.shape
    packed_shape = spec.packed_shape(shape)
    if spec.dtype == "float32" and quantization is not None:
        raise CodecError(f"a quantization is given, but {spec.label} is not quantized")
    source = np.require(array, requirements=["C", "A"])
    nbytes = math.prod(packed_shape) * spec.itemsize
    if out is None and spec.pool == 1:
        return Packed(source.reshape(-1).view(np.uint8), spec, shape)
    payload = np.empty(nbytes, np.uint8) if out is None else _check_payload_out(out, nbytes, spec)
    if np.may_share_memory(source, payload):
        raise CodecError("out must not overlap the array")

    if spec.pool == 1:
        payload[:] = source.reshape(-1).view(np.uint8)
        return Packed(payload, spec, shape)
    planes = source.reshape(_planes(shape))
    if spec.dtype == "float32":
        _core.maxpool2x2_f32_f32(planes, payload.view(np.float32).reshape(_planes(packed_shape)))
        return Packed(payload, spec, shape)
    if quantization is None:
        quantization = _range_of_pooled(planes, packed_shape)
    _core.maxpool2x2_quantize_f32_i8(
        planes,
        payload.view(np.int8).reshape(_planes(packed_shape)),
        quantization.scale,
        quantization.zero_point,
    )
    return Packed(payload, spec, shape, quantization)


def decode(packed: Packed, out: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
    """Unpack and upsample a feature map: EdgeTL (arXiv 2105.02019; int8 is ours).

    Nothing in `packed` is trusted: it may come from the network.

    Parameters
    ----------
    packed : Packed
        What :func:`encode` made, here or on another machine.
    out : ndarray of float32, C-contiguous, of shape packed.shape, optional
        Where to put the result, to save an allocation.

    Returns
    -------
    ndarray of float32, shape packed.shape
        `out`, or a new array that shares no memory with the payload.

    Raises
    ------
    CodecError
        The shape is not one that the codec takes, the payload is not exactly as long as shape and
        spec say, the quantization is missing or superfluous, or `out` does not fit.
    """
    if not isinstance(packed.spec, TransferSpec) or not isinstance(packed.shape, tuple | list):
        raise CodecError("Packed: spec must be a TransferSpec and shape a tuple")
    spec, shape = packed.spec, tuple(packed.shape)
    packed_shape = spec.packed_shape(shape)
    payload = _payload_bytes(packed.payload)
    expected = math.prod(packed_shape) * spec.itemsize
    if payload.nbytes != expected:
        raise CodecError(
            f"payload of {payload.nbytes} bytes; {spec.label} of shape {shape} has exactly "
            f"{expected}"
        )
    if (spec.dtype == "int8") != isinstance(packed.quantization, Quantization):
        raise CodecError(f"quantization={packed.quantization!r} does not go with {spec.label}")
    result = np.empty(shape, np.float32) if out is None else _check_result_out(out, shape)
    if np.may_share_memory(result, payload):
        raise CodecError("out must not overlap the payload")

    if spec.pool == 1:
        result.reshape(-1).view(np.uint8)[:] = payload
        return result
    planes = result.reshape(_planes(shape))
    if packed.quantization is None:
        # The payload may start anywhere in a message, so it may need to be copied to be aligned.
        pooled = np.require(payload.view(np.float32), requirements=["A"])
        _core.upsample2x_f32_f32(pooled.reshape(_planes(packed_shape)), planes)
    else:
        _core.dequantize_upsample2x_i8_f32(
            payload.view(np.int8).reshape(_planes(packed_shape)),
            planes,
            packed.quantization.scale,
            packed.quantization.zero_point,
        )
    return result


def _planes(shape: Sequence[int]) -> tuple[int, int, int]:
    """Merge batch and channels into one dimension, as the kernels see a shape."""
    return math.prod(shape[:-2]), shape[-2], shape[-1]


def _range_of_pooled(planes: npt.NDArray[np.float32], packed_shape: Sequence[int]) -> Quantization:
    pooled = np.empty(_planes(packed_shape), np.float32)
    _core.maxpool2x2_f32_f32(planes, pooled)
    finite = pooled[np.isfinite(pooled)]
    if finite.size == 0:
        return Quantization.from_range(0.0, 0.0)
    return Quantization.from_range(float(finite.min()), float(finite.max()))


def _check_payload_out(
    out: npt.NDArray[np.uint8], nbytes: int, spec: TransferSpec
) -> npt.NDArray[np.uint8]:
    if not isinstance(out, np.ndarray) or out.dtype != np.uint8 or out.shape != (nbytes,):
        raise CodecError(f"out must be a 1-D uint8 ndarray of exactly {nbytes} bytes")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise CodecError("out must be contiguous and writable")
    if spec.dtype == "float32" and not out.view(np.float32).flags.aligned:
        raise CodecError("out must start at a multiple of 4 bytes")
    return out


def _check_result_out(
    out: npt.NDArray[np.float32], shape: tuple[int, ...]
) -> npt.NDArray[np.float32]:
    if not isinstance(out, np.ndarray) or out.dtype != np.float32 or out.shape != shape:
        raise CodecError(f"out must be a float32 ndarray of shape {shape}")
    if not (out.flags.c_contiguous and out.flags.aligned and out.flags.writeable):
        raise CodecError("out must be C-contiguous, aligned and writable")
    return out


def _payload_bytes(payload: Buffer) -> npt.NDArray[np.uint8]:
    """View the payload as 1-D uint8, without a copy."""
    try:
        view = memoryview(payload)  # type: ignore[arg-type]  # ndarray's stub lacks __buffer__
        if not view.c_contiguous:
            raise CodecError("payload must be contiguous")
        return np.frombuffer(view, np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        raise CodecError(f"payload is no usable buffer: {error}") from error
