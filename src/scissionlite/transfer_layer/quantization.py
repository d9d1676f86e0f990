"""Quantization: scales and zero points, per tensor or per channel, and how a range makes them.

docs/numerics.md ("Quantization", "The range") is the contract. The compiled core quantizes. Its
``Quantizer`` is kept beside the values, so that it is made once and not at every call.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from scissionlite import _core
from scissionlite.errors import CodecError
from scissionlite.transfer_layer.spec import CODE_RANGES

if TYPE_CHECKING:
    from typing import TypeVarTuple, Unpack  # of Python 3.11

    Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

Calibration = Literal["range", "percentile", "mse"]
"""How scales are found: "range" takes the whole range of what crosses, "percentile" leaves out the
outermost 0.01% at either end, "mse" minimises the mean squared error of quantization."""

# The least float32 with a finite reciprocal. The reciprocal of the next lower one is infinity.
_LEAST_SCALE = float(np.nextafter(np.float32(2.0**-128), np.float32(1)))
_FLOAT32 = struct.Struct("<f")


def call_core(
    function: Callable[[Unpack[Arguments]], Result], *arguments: Unpack[Arguments]
) -> Result:
    """Call the compiled core. Its TypeError or ValueError becomes a CodecError."""
    try:
        return function(*arguments)
    except (TypeError, ValueError) as error:
        raise CodecError(str(error)) from error


class Quantization(msgspec.Struct, frozen=True, dict=True):
    """Integer quantization of a feature map: ``x ~ (q - zero_point) * scale``.

    Parameters
    ----------
    scale : float or tuple of float
        Size of one step, in the units of the feature map; a tuple holds one per channel. It is
        kept as the nearest float32.
    zero_point : int or tuple of int
        The code of the value 0, from -128 to 127 (for int4 from -8 to 7); a tuple of the same
        length if `scale` is a tuple.

    Raises
    ------
    CodecError
        A scale is not finite and positive or its float32 reciprocal is not finite, a zero point
        is not an integer in range, or the two do not match.
    """

    scale: float | tuple[float, ...]
    zero_point: int | tuple[int, ...]

    def __post_init__(self) -> None:
        # The rounded scale is kept, as kernels and wire use it: equal structs decode equally.
        if type(self.zero_point) is int and type(self.scale) is float:
            # The usual case, and the fast one: every encoding that finds its scale comes here.
            rounded = _checked_scale(self.scale)
            if rounded != self.scale:
                msgspec.structs.force_setattr(self, "scale", rounded)
            if not -128 <= self.zero_point <= 127:
                _check_zero_points((self.zero_point,))
        elif isinstance(self.scale, tuple) and isinstance(self.zero_point, tuple):
            if len(self.scale) != len(self.zero_point):
                raise CodecError(
                    f"Quantization: {len(self.scale)} scales and {len(self.zero_point)} zero points"
                )
            msgspec.structs.force_setattr(self, "scale", _checked_scales(self.scale))
            _check_zero_points(self.zero_point)
        elif isinstance(self.scale, tuple) or isinstance(self.zero_point, tuple):
            raise CodecError("Quantization: scale and zero_point must both be tuples, or neither")
        else:
            msgspec.structs.force_setattr(self, "scale", _checked_scale(self.scale))
            _check_zero_points((self.zero_point,))

    @property
    def channels(self) -> int | None:
        """Number of channels if each has its own scale, None if the tensor has one."""
        return len(self.scale) if isinstance(self.scale, tuple) else None

    @property
    def groups(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Scales and zero points as tuples: one for the tensor, or one per channel."""
        if isinstance(self.scale, tuple) and isinstance(self.zero_point, tuple):
            return self.scale, self.zero_point
        assert isinstance(self.scale, float)  # __post_init__ has made it one
        assert isinstance(self.zero_point, int)
        return (self.scale,), (self.zero_point,)

    @property
    def quantizer(self) -> _core.Quantizer:
        """The values in the core's type, made at the first use."""
        # Not a cached_property: before Python 3.12 its lock costs more than all else here.
        made: _core.Quantizer | None = self.__dict__.get("_quantizer")
        if made is None:
            made = self.__dict__["_quantizer"] = self._make_quantizer()
        return made

    def _make_quantizer(self) -> _core.Quantizer:
        scale, zero_point = self.scale, self.zero_point
        if isinstance(scale, tuple) or isinstance(zero_point, tuple):
            return _core.Quantizer(np.array(scale, np.float32), np.array(zero_point, np.int32))
        return _core.Quantizer(scale, zero_point)  # four times as fast as from arrays

    @classmethod
    def from_range(
        cls,
        low: float | npt.NDArray[np.floating],
        high: float | npt.NDArray[np.floating],
        dtype: str = "int8",
        scheme: str = "affine",
        levels: int | None = None,
    ) -> Quantization:
        """Return the quantization whose codes span a range.

        Parameters
        ----------
        low, high : float, or ndarray of float, shape (channels,)
            Smallest and largest value of the pooled feature map; arrays hold one per channel. A
            range is widened to include zero, the most frequent feature after a ReLU, so that zero
            is exact. ``low=inf`` with ``high=-inf`` says that no value was finite; the range is
            then 0 to 0.
        dtype : str
            ``"int8"`` or ``"int4"``.
        scheme : str
            ``"affine"``: all codes are used. ``"symmetric"``: the zero point is 0.
        levels : int, optional
            How many of the codes the range uses, at least 2; by default all. With fewer, steps
            are larger, and values outside the range still have codes.

        Raises
        ------
        CodecError
            A bound is not finite or too large for float32, `low` is above `high`, `levels` is
            below 2 or above the number of codes, or `dtype` or `scheme` is unknown.
        """
        if dtype not in CODE_RANGES or scheme not in ("affine", "symmetric"):
            raise CodecError(
                f"dtype={dtype!r} with scheme={scheme!r} is not an integer quantization"
            )
        if levels is not None and levels < 2:  # to the core, 0 means all
            raise CodecError(f"levels={levels!r}: a range takes at least 2")
        per_channel = isinstance(low, np.ndarray) or isinstance(high, np.ndarray)
        lows, highs = np.asarray(low, np.float64), np.asarray(high, np.float64)
        if per_channel and (lows.ndim != 1 or lows.shape != highs.shape or not lows.size):
            raise CodecError(
                f"ranges of shape {lows.shape} and {highs.shape}: needs one low and one high per "
                "channel"
            )
        quantizer = call_core(
            _core.Quantizer.from_range,
            lows.reshape(-1),
            highs.reshape(-1),
            dtype,
            scheme,
            levels or 0,
        )
        return cls.of(quantizer, per_channel=per_channel)

    @classmethod
    def of(cls, quantizer: _core.Quantizer, *, per_channel: bool) -> Quantization:
        """Return the values of the core's quantizer: tuples if `per_channel`, else one of each."""
        scales, zero_points = quantizer.scales, quantizer.zero_points
        quantization = cls(scales, zero_points) if per_channel else cls(scales[0], zero_points[0])
        quantization.__dict__["_quantizer"] = quantizer
        return quantization


def _float32(value: float) -> float:
    """Round to float32. For one number NumPy would take several times as long."""
    try:
        rounded: float = _FLOAT32.unpack(_FLOAT32.pack(value))[0]
    except (OverflowError, struct.error):  # struct.error: an integer too large for float64
        return math.inf if value > 0 else -math.inf
    return rounded


def _checked_scale(scale: float) -> float:
    if not isinstance(scale, float | int) or isinstance(scale, bool):
        raise CodecError(f"Quantization: scale={scale!r} is not a number")
    rounded = _float32(scale)
    if not _LEAST_SCALE <= rounded < math.inf:
        raise CodecError(
            f"Quantization: scale={scale!r} must be finite and positive, with a finite reciprocal "
            "in float32"
        )
    return rounded


def _checked_scales(scales: tuple[float, ...]) -> tuple[float, ...]:
    """Round the scales of all channels to float32, and check them."""
    for kind in {*map(type, scales)}:
        if not issubclass(kind, float | int) or kind is bool:
            raise CodecError(f"Quantization: scale of type {kind.__name__} is not a number")
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        try:
            rounded = np.array(scales, np.float64).astype(np.float32)
        except OverflowError:  # an integer too large for float64
            rounded = np.zeros(1, np.float32)
        usable = (rounded > 0) & np.isfinite(rounded) & np.isfinite(np.float32(1) / rounded)
    if not scales or not usable.all():
        raise CodecError(
            "Quantization: scales must be finite and positive, with a finite reciprocal in "
            f"float32, one per channel for at least one channel; got {_shortened(scales)}"
        )
    return tuple(rounded.tolist())


def _check_zero_points(zero_points: tuple[int, ...]) -> None:
    for kind in {*map(type, zero_points)}:
        if not issubclass(kind, int) or kind is bool:
            raise CodecError(f"Quantization: zero_point of type {kind.__name__} is not an integer")
    if min(zero_points) < -128 or max(zero_points) > 127:
        raise CodecError(
            f"Quantization: zero_point={_shortened(zero_points)} must be within [-128, 127]"
        )


def _shortened(values: tuple[float, ...]) -> str:
    shown = ", ".join(map(repr, values[:4]))
    return f"{shown}, ... ({len(values)})" if len(values) > 4 else shown
