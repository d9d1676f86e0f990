"""TransferSpec: which Transfer Layer stands at the slicing point, and what it makes of a shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from scissionlite.errors import CodecError

MAX_DIMENSIONS = 8
"""Most dimensions of a feature map."""

MAX_ELEMENTS = 2**28
"""Most elements of a feature map: 1 GiB in float32, far above any real one."""

_VALUES: dict[str, tuple[object, ...]] = {
    "pool": (1, 2),
    "pool_kind": ("max",),
    "dtype": ("float32", "int8"),
    "granularity": ("tensor",),
    "layout": ("nchw",),
    "entropy": (None,),
}


class TransferSpec(msgspec.Struct, frozen=True):
    """Which Transfer Layer: how it pools, quantizes and packs.

    The paper's TL (arXiv 2105.02019) is 2x2 max-pooling in float32; the int8 packing,
    which is the default here, is ours.

    Parameters
    ----------
    pool : int
        Size and stride of the pooling window. 1 does not pool; 2 pools the last two dimensions.
    pool_kind : str
        ``"max"``.
    dtype : str
        What crosses the link: ``"int8"`` (with ``pool=2``) or ``"float32"``.
    granularity : str
        What shares one scale and zero point: ``"tensor"``.
    layout : str
        Order of the dimensions: ``"nchw"``, height and width last.
    entropy : str or None
        Entropy coding of the payload: ``None``.

    Raises
    ------
    CodecError
        A value, or the combination, is not one that this version takes.

    Examples
    --------
    >>> TransferSpec().packed_nbytes((1, 64, 112, 112))
    200704
    >>> TransferSpec.float32_split().packed_nbytes((1, 64, 112, 112))
    3211264
    """

    pool: int = 2
    pool_kind: str = "max"
    dtype: str = "int8"
    granularity: str = "tensor"
    layout: str = "nchw"
    entropy: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in _VALUES.items():
            value = getattr(self, name)
            # True == 1, but pool=True is a mistake.
            if value not in allowed or isinstance(value, bool):
                choices = " or ".join(map(repr, allowed))
                raise CodecError(f"TransferSpec: {name}={value!r}; this version takes {choices}")
        if self.pool == 1 and self.dtype == "int8":
            raise CodecError(
                "TransferSpec: pool=1 with dtype='int8'; this version takes int8 with pool=2 only"
            )

    @classmethod
    def float32_split(cls) -> TransferSpec:
        """Return Scission's plain split: the feature map crosses as it is."""
        return cls(pool=1, dtype="float32")

    @classmethod
    def paper(cls) -> TransferSpec:
        """Return the TL of arXiv 2105.02019: 2x2 max-pooling in float32."""
        return cls(pool=2, dtype="float32")

    @property
    def label(self) -> str:
        """Short name for tables and plots."""
        if self.pool == 1:
            return "float32 split"
        return "paper TL (2x2 float32)" if self.dtype == "float32" else "TL 2x2 int8"

    @property
    def itemsize(self) -> int:
        """Bytes an element of the payload."""
        return 1 if self.dtype == "int8" else 4

    def packed_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape that crosses the link.

        Parameters
        ----------
        shape : sequence of int
            Shape of the feature map.

        Returns
        -------
        tuple of int
            `shape`, with the last two dimensions halved and rounded up where ``pool=2``.

        Raises
        ------
        CodecError
            A size is not a positive integer, there are no dimensions or more than
            ``MAX_DIMENSIONS``, more than ``MAX_ELEMENTS`` elements, or fewer than three
            dimensions with ``pool=2``.
        """
        checked = check_shape(shape)
        if self.pool == 1:
            return checked
        if len(checked) < 3:
            raise CodecError(f"shape {checked}: pool=2 needs (..., channels, height, width)")
        return (*checked[:-2], (checked[-2] + 1) // 2, (checked[-1] + 1) // 2)

    def packed_nbytes(self, shape: Sequence[int]) -> int:
        """Return the bytes of payload that a feature map of this shape makes.

        Raises
        ------
        CodecError
            As :meth:`packed_shape`.
        """
        return math.prod(self.packed_shape(shape)) * self.itemsize

    def valid_for(self, shape: Sequence[int]) -> bool:
        """Tell whether this TL makes sense for a feature map of this shape.

        Stricter than the codec: pooling needs CHW or NCHW with something to pool in both
        directions, so that the planner never offers a TL on what is no image any more.
        """
        try:
            checked = check_shape(shape)
        except CodecError:
            return False
        return self.pool == 1 or (len(checked) in (3, 4) and checked[-2] >= 2 and checked[-1] >= 2)


def check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a feature map's shape as a tuple, or raise CodecError if no codec can take it."""
    checked = tuple(shape)
    if not 1 <= len(checked) <= MAX_DIMENSIONS:
        raise CodecError(f"{len(checked)} dimensions; the codec takes 1 to {MAX_DIMENSIONS}")
    for size in checked:
        if not isinstance(size, int) or isinstance(size, bool):
            raise CodecError(f"shape {checked}: {size!r} is not an integer")
        if size < 1:
            raise CodecError(f"shape {checked}: the tensor is empty or a size is negative")
    # Python's integers do not overflow, so neither does this product.
    if math.prod(checked) > MAX_ELEMENTS:
        raise CodecError(f"shape {checked}: more than {MAX_ELEMENTS} elements")
    return checked
