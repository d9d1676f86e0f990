"""The Transfer Layer at run time: ``encode`` on the device, ``decode`` on the edge. No torch here.

The way down: :func:`encode` and :func:`decode` look up the shaped codec of the spec and the shape
(:mod:`.shaped_codec`), which calls the compiled core and then the entropy coder (:mod:`.entropy`).
2x2 max-pooling and nearest-neighbour upsampling are those of arXiv 2105.02019; the rest is ours.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, overload

import msgspec
import numpy as np
import numpy.typing as npt

from scissionlite import _core
from scissionlite.errors import CodecError
from scissionlite.transfer_layer.entropy_tables import EntropyTables
from scissionlite.transfer_layer.layouts import FloatMap
from scissionlite.transfer_layer.quantization import Quantization
from scissionlite.transfer_layer.shaped_codec import Bytes, codec_for
from scissionlite.transfer_layer.spec import TransferSpec

Buffer: TypeAlias = bytes | bytearray | memoryview | npt.NDArray[Any]
"""A payload: any contiguous buffer."""

# A wrong SCISSIONLITE_ISA must raise IsaError when the package is imported, not at a later request.
_core.isa()


class Packed(msgspec.Struct, frozen=True, eq=False):
    """A packed feature map: the payload that crosses the link, and what decode needs.

    Nothing is checked here. :func:`decode` checks every field.

    Parameters
    ----------
    payload : buffer
        The packed elements in the order of the spec's layout, little-endian, or their entropy
        code. From :func:`encode` it is 1-D uint8.
    spec : TransferSpec
        The Transfer Layer that packed it.
    shape : tuple of int
        Shape of the feature map before packing, (..., channels, height, width). Decoding restores
        it.
    quantization : Quantization or None
        Scales and zero points; None for a float payload.
    entropy_coded : bool
        Whether the payload is entropy-coded. A payload that the coder cannot shrink is sent as it
        is.
    tables : EntropyTables or None
        The tables of the entropy coder "ans"; None for others.
    """

    payload: Buffer
    spec: TransferSpec
    shape: tuple[int, ...]
    quantization: Quantization | None = None
    entropy_coded: bool = False
    tables: EntropyTables | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of payload."""
        return _bytes_of(self.payload).nbytes


def encode(
    array: FloatMap,
    spec: TransferSpec,
    quantization: Quantization | None = None,
    out: Bytes | None = None,
    *,
    tables: EntropyTables | None = None,
) -> Packed:
    """Pool and pack a feature map: DeviceTL (arXiv 2105.02019; all but 2x2 float32 is ours).

    Parameters
    ----------
    array : ndarray of float32 or float16, shape (..., C, H, W)
        The feature map. Where `spec` does not use channels, height and width, any shape of 1 to 8
        dimensions will do. It is copied first if it is not dense in the spec's layout. With "nhwc"
        a PyTorch tensor in ``channels_last`` is dense.
    spec : TransferSpec
        The Transfer Layer.
    quantization : Quantization, optional
        Scales and zero points for int8 and int4, from calibration. Without it they are made from
        the range of the finite values of the pooled map. Finding the range takes a second pass.
        The pooled map then lies in a float32 buffer, which this thread keeps for the next call: a
        quarter of the largest feature map so far for 2x2, a sixteenth for 4x4.
    out : ndarray of uint8, shape (spec.packed_nbytes(array.shape),), optional
        Where to write the payload, to save an allocation. The payload is then `out`, or its
        beginning if it is entropy-coded.
    tables : EntropyTables, optional
        Required for ``entropy="ans"``, None otherwise: :func:`.fit_tables` makes them.

    Returns
    -------
    Packed
        The payload is a view of `array`, and no byte is copied, if there is nothing to compute (no
        pooling, and `array` has the type of the payload) and no `out`.

    Raises
    ------
    CodecError
        `array` is neither float32 nor float16, or is empty, too large or of too few dimensions; the
        quantization does not match `spec` and the channels; or `out` does not fit.
    EntropyTablesError
        The tables are missing or superfluous, or do not match `spec` and the channels.
    """
    if not isinstance(array, np.ndarray):
        raise CodecError(f"encode takes a float32 or float16 ndarray, not {type(array).__name__}")
    if out is not None and not isinstance(out, np.ndarray):
        raise CodecError(f"out must be a uint8 ndarray, not {type(out).__name__}")
    codec = codec_for(spec, *array.shape)
    payload, quantization, entropy_coded = codec.encode(array, quantization, out, tables)
    return Packed(payload, spec, codec.shape, quantization, entropy_coded, tables)


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

    Every field of `packed` is checked, because it may come from another machine.

    Parameters
    ----------
    packed : Packed
        A result of :func:`encode`, from this machine or another one.
    out : ndarray of float32 or float16, of shape packed.shape, optional
        Where to write the result, to save an allocation. It must be dense in one of the layouts.
    dtype : str
        Type of the result if there is no `out`: ``"float32"`` or ``"float16"``.
    layout : str, optional
        Order in memory of the result if there is no `out`: ``"nchw"`` or ``"nhwc"``, by default
        the spec's. For the other one the payload is reordered before it is upsampled.

    Returns
    -------
    ndarray of shape packed.shape
        `out`, or a new array that shares no memory with the payload.

    Raises
    ------
    CodecError
        The codec cannot take the shape; the payload does not have exactly the length that shape
        and spec require, or is not a valid entropy code; the quantization is missing or does not
        match the spec; or `out`, `dtype` or `layout` does not fit.
    EntropyCodeError, EntropyTablesError
        The payload is no entropy code of this spec and shape, or was made with other tables.
    """
    if not isinstance(packed.shape, tuple | list):
        raise CodecError(f"Packed: shape must be a tuple, not {packed.shape!r}")
    try:
        codec = codec_for(packed.spec, *packed.shape)
    except TypeError as error:  # a value that cannot be hashed
        raise CodecError(
            f"Packed: spec must be a TransferSpec and shape a tuple of integers: {error}"
        ) from error
    payload = _bytes_of(packed.payload)
    return codec.decode(
        payload, packed.quantization, packed.entropy_coded, packed.tables, out, dtype, layout
    )


def _bytes_of(payload: Buffer) -> Bytes:
    """View the payload as 1-D uint8, without a copy."""
    try:
        view = memoryview(payload)  # type: ignore[arg-type]  # ndarray's stub lacks __buffer__
        if not view.c_contiguous:
            raise CodecError("payload must be contiguous")
        return np.frombuffer(view, np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        raise CodecError(f"payload is not a contiguous buffer: {error}") from error
