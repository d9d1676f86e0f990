"""The Transfer Layer at run time: ``encode`` on the device, ``decode`` on the edge. No torch here.

Policy and defaults are here; arithmetic on feature maps is in the compiled core, which also checks
every array (docs/numerics.md specifies both). 2x2 max-pooling and nearest-neighbour upsampling are
those of arXiv 2105.02019; the rest is ours.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, overload

import msgspec
import numpy as np
import numpy.typing as npt

from scissionlite import _core
from scissionlite.errors import CodecError
from scissionlite.transfer_layer import entropy
from scissionlite.transfer_layer.fitted import (
    Bytes,
    FittedLayer,
    FloatMap,
    empty_map,
    fit,
    flat_view,
    scratch,
)
from scissionlite.transfer_layer.quantization import Quantization
from scissionlite.transfer_layer.spec import TransferSpec

Buffer: TypeAlias = bytes | bytearray | memoryview | npt.NDArray[Any]
"""What a payload may be in: any contiguous buffer."""

# A wrong SCISSIONLITE_ISA must surface as IsaError when the package is imported, not at some
# request later.
_core.isa()


class Packed(msgspec.Struct, frozen=True, eq=False):
    """A feature map as it crosses the link: payload bytes, and what decode needs.

    Nothing is checked here; :func:`decode` trusts none of it.

    Parameters
    ----------
    payload : buffer
        The packed elements in the order of the spec's layout, little-endian, or their entropy
        code. :func:`encode` gives 1-D uint8.
    spec : TransferSpec
        Which Transfer Layer packed it.
    shape : tuple of int
        Shape of the feature map before packing, (..., channels, height, width), which decoding
        restores.
    quantization : Quantization or None
        Scales and zero points; None for a float payload.
    entropy_coded : bool
        Whether the payload went through the spec's entropy coder. One that would not shrink does
        not.
    """

    payload: Buffer
    spec: TransferSpec
    shape: tuple[int, ...]
    quantization: Quantization | None = None
    entropy_coded: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of payload."""
        return _payload_bytes(self.payload).nbytes


def encode(
    array: FloatMap,
    spec: TransferSpec,
    quantization: Quantization | None = None,
    out: Bytes | None = None,
) -> Packed:
    """Pool and pack a feature map: DeviceTL (arXiv 2105.02019; all but 2x2 float32 is ours).

    Parameters
    ----------
    array : ndarray of float32 or float16, shape (..., C, H, W)
        The feature map; any shape of 1 to 8 dimensions where `spec` does not look at channels,
        height and width. Copied first if it is not dense in the spec's layout: with "nhwc" a
        PyTorch tensor in ``channels_last`` is taken as it is.
    spec : TransferSpec
        Which Transfer Layer.
    quantization : Quantization, optional
        Scales and zero points for int8 and int4, from calibration. Without it they are made from
        the range of the finite values of the pooled map, which is found in a pass of its own; the
        pooled map then lies in a float32 buffer that this thread keeps for the next call (a
        quarter of the feature map for 2x2, a sixteenth for 4x4, of the largest so far).
    out : ndarray of uint8, shape (spec.packed_nbytes(array.shape),), optional
        Where to put the payload, to save an allocation. The payload is `out`, or with an entropy
        coder its beginning.

    Returns
    -------
    Packed
        If nothing is to be computed (no pooling, and `array` has the type of the payload) and
        there is no `out`, the payload is a view of `array` and no byte is copied.

    Raises
    ------
    CodecError
        `array` is neither float32 nor float16, is empty, too large or has too few dimensions; the
        quantization does not go with `spec` and the channels; `out` does not fit.
    """
    if not isinstance(array, np.ndarray):
        raise CodecError(f"encode takes a float32 or float16 ndarray, not {type(array).__name__}")
    fitted = fit(spec, *array.shape)
    if quantization is None and fitted.quantized:
        return _encode_measured(array, fitted, out)
    quantizer = fitted.quantizer(quantization)
    if out is None and fitted.copies is not None and array.dtype == fitted.copies:
        payload = flat_view(fitted.dense(array), spec.layout).view(np.uint8)
    else:
        payload = _run_encode(array, fitted, quantizer, out)
    if spec.entropy is None:
        return Packed(payload, spec, fitted.shape, quantization)
    return _entropy_code(payload, fitted, quantization, out)


@overload
def decode(
    packed: Packed, out: None = None, *, dtype: Literal["float32"] = ..., layout: str | None = None
) -> npt.NDArray[np.float32]: ...
@overload
def decode(
    packed: Packed, out: None = None, *, dtype: Literal["float16"], layout: str | None = None
) -> npt.NDArray[np.float16]: ...
@overload
def decode(packed: Packed, out: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]: ...
@overload
def decode(packed: Packed, out: npt.NDArray[np.float16]) -> npt.NDArray[np.float16]: ...
def decode(
    packed: Packed,
    out: FloatMap | None = None,
    *,
    dtype: str = "float32",
    layout: str | None = None,
) -> FloatMap:
    """Unpack and upsample a feature map: EdgeTL (arXiv 2105.02019; all but 2x2 float32 is ours).

    Nothing in `packed` is trusted: it may come from the network.

    Parameters
    ----------
    packed : Packed
        What :func:`encode` made, here or on another machine.
    out : ndarray of float32 or float16, of shape packed.shape, optional
        Where to put the result, to save an allocation; dense in either layout.
    dtype : str
        Of the result if there is no `out`: ``"float32"`` or ``"float16"``.
    layout : str, optional
        Order in memory of the result if there is no `out`, ``"nchw"`` or ``"nhwc"``; by default
        the spec's. For another one the payload is put in order before it is upsampled.

    Returns
    -------
    ndarray of shape packed.shape
        `out`, or a new array that shares no memory with the payload.

    Raises
    ------
    CodecError
        The shape is not one that the codec takes, the payload is not exactly as long as shape and
        spec say or no valid entropy code, the quantization is missing or does not go with the
        spec, or `out`, `dtype` or `layout` does not fit.
    """
    if not isinstance(packed.shape, tuple | list):
        raise CodecError(f"Packed: shape must be a tuple, not {packed.shape!r}")
    try:
        fitted = fit(packed.spec, *packed.shape)
    except TypeError as error:
        raise CodecError(f"Packed: a spec or shape that is none: {error}") from error
    quantizer = fitted.quantizer(packed.quantization)
    payload = _payload_bytes(packed.payload)
    if packed.entropy_coded:
        if packed.spec.entropy is None:
            raise CodecError(f"an entropy-coded payload, but {packed.spec.label} has no such coder")
        payload = entropy.decompress(payload, packed.spec.entropy, fitted.nbytes)
    if payload.nbytes != fitted.nbytes:
        raise CodecError(
            f"payload of {payload.nbytes} bytes; {packed.spec.label} of shape {fitted.shape} has "
            f"exactly {fitted.nbytes}"
        )
    if out is None:
        out = empty_map(fitted.shape, dtype, layout or packed.spec.layout)
    elif not isinstance(out, np.ndarray) or out.shape != fitted.shape:
        raise CodecError(f"out must be a float32 or float16 ndarray of shape {fitted.shape}")
    if not fitted.transfer.accepts(out):
        if out.ndim < 3 or not fitted.other_layout.transfer.accepts(out):
            raise CodecError("out must be contiguous in nchw or nhwc, and aligned")
        payload, fitted = fitted.reordered(payload), fitted.other_layout
    try:
        # A payload may start anywhere in a message.
        fitted.transfer.decode(fitted.aligned(payload), out, quantizer)
    except (TypeError, ValueError) as error:
        raise CodecError(str(error)) from error
    return out


def _encode_measured(array: FloatMap, fitted: FittedLayer, out: Bytes | None) -> Packed:
    """Encode with scales from the array's own range, which takes a pass to find."""
    spec = fitted.spec
    if out is not None and np.may_share_memory(array, out):
        raise CodecError("out must not overlap the array")
    payload = _payload_array(out, fitted)
    pooled = scratch(fitted.transfer.pooled_size) if spec.pool > 1 else None
    each_channel = fitted.scales is not None
    try:
        quantizer = fitted.transfer.encode_measured(
            fitted.dense(array), payload, pooled, each_channel, spec.scheme, spec.levels or 0
        )
    except (TypeError, ValueError) as error:
        raise CodecError(str(error)) from error
    quantization = Quantization.of(quantizer, each_channel=each_channel)
    if spec.entropy is None:
        return Packed(payload, spec, fitted.shape, quantization)
    return _entropy_code(payload, fitted, quantization, out)


def _run_encode(
    array: FloatMap, fitted: FittedLayer, quantizer: _core.Quantizer | None, out: Bytes | None
) -> Bytes:
    payload = _payload_array(out, fitted)
    try:
        fitted.transfer.encode(fitted.dense(array), payload, quantizer)
    except (TypeError, ValueError) as error:
        raise CodecError(str(error)) from error
    return payload


def _payload_array(out: Bytes | None, fitted: FittedLayer) -> Bytes:
    if out is None:
        return np.empty(fitted.nbytes, np.uint8)
    if not isinstance(out, np.ndarray):
        raise CodecError(f"out must be a uint8 ndarray, not {type(out).__name__}")
    return out


def _entropy_code(
    payload: Bytes, fitted: FittedLayer, quantization: Quantization | None, out: Bytes | None
) -> Packed:
    spec = fitted.spec
    assert spec.entropy is not None
    coded = entropy.compress(payload, spec.entropy, spec.entropy_level)
    if coded is None:
        return Packed(payload, spec, fitted.shape, quantization)
    result: Bytes = np.frombuffer(coded, np.uint8)
    if out is not None:
        out[: len(coded)] = result
        result = out[: len(coded)]
    return Packed(result, spec, fitted.shape, quantization, entropy_coded=True)


def _payload_bytes(payload: Buffer) -> Bytes:
    """View the payload as 1-D uint8, without a copy."""
    try:
        view = memoryview(payload)  # type: ignore[arg-type]  # ndarray's stub lacks __buffer__
        if not view.c_contiguous:
            raise CodecError("payload must be contiguous")
        return np.frombuffer(view, np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        raise CodecError(f"payload is no usable buffer: {error}") from error
