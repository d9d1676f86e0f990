"""TransferSpec: the choice of a Transfer Layer, and the shape and bytes that it sends."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from scissionlite.errors import CodecError

MAX_DIMENSIONS = 8
"""Most dimensions of a feature map."""

MAX_ELEMENTS = 2**28
"""Most elements of a feature map: 1 GiB in float32, far above any real feature map."""

MAX_ENTROPY_LEVEL = 19
"""zstd's highest level whose window every decoder accepts (8 MiB: RFC 8878, 3.1.1.1.2)."""

ENCODER_SHARE = 0.1
"""Most of the device slice's own multiplications that a learned Transfer Layer may add to it."""

PAYLOAD_BITS = {"float32": 32, "float16": 16, "int8": 8, "int4": 4}
"""Bits per element of a payload, for each value of ``TransferSpec.dtype``."""

CODE_RANGES = {"int8": (-128, 127), "int4": (-8, 7)}
"""Lowest and highest code of each integer payload."""

ENCODER_COEFFICIENTS = {"tiny": 24, "small": 48, "base": 96}
"""Most coefficients of a window that each shallow encoder sends."""

_VALUES: dict[str, tuple[object, ...]] = {
    "pool": (1, 2, 4, 8, 16),
    "pool_kind": ("max", "average", "learned"),
    "dtype": tuple(PAYLOAD_BITS),
    "granularity": ("tensor", "channel"),
    "layout": ("nchw", "nhwc"),
    "entropy": (None, "zstd", "ans"),
    "scheme": ("affine", "symmetric"),
    "upsample": ("nearest", "bilinear"),
    "reduction": (1, 2, 4, 8, 16),
    "encoder": (None, *ENCODER_COEFFICIENTS),
}

_ENCODER_POOLS = (8, 16)


class TransferSpec(msgspec.Struct, frozen=True, cache_hash=True):
    """The choice of a Transfer Layer: how it pools, quantizes, packs and upsamples.

    The paper's TL (arXiv 2105.02019) is 2x2 max-pooling and nearest-neighbour upsampling in
    float32. Everything else is ours, the default here included. docs/numerics.md says how each
    value is computed.

    Parameters
    ----------
    pool : int
        Size and stride of the pooling window over height and width: 1 (no pooling), 2 or 4; of an
        encoder's window 8 or 16.
    pool_kind : str
        How a feature map is reduced: ``"max"``, ``"average"`` or ``"learned"``. The last is a
        bottleneck of convolutions, which is trained and becomes part of the slices
        (:mod:`.learned`). The codec then only packs the bottleneck's output.
    dtype : str
        Type of the elements that cross the link: ``"float32"``, ``"float16"``, ``"int8"`` or
        ``"int4"``.
    granularity : str
        One scale and zero point per ``"tensor"`` or per ``"channel"``.
    layout : str
        Order in memory of feature map and payload: ``"nchw"``, width fastest, or ``"nhwc"``,
        channels fastest (PyTorch's ``channels_last``). Shapes are (..., channels, height, width)
        in both.
    entropy : str or None
        Entropy coding of the payload: ``None``, ``"zstd"`` (RFC 8878), or ``"ans"`` for int8 and
        int4: with static tables for each channel, which were made from calibration inputs
        (:class:`.EntropyTables`) and stand in the bundle.
    scheme : str
        How scale and zero point follow from a range: ``"affine"``, or ``"symmetric"``, where the
        zero point is 0.
    upsample : str
        How the edge brings a pooled feature map back to its shape: ``"nearest"`` or ``"bilinear"``.
    entropy_level : int
        Level of zstd, from 1 (fastest) to 19 (smallest payload); "ans" has no others than 1.
    reduction : int
        Divisor of the number of channels: 1, 2, 4, 8 or 16; above 1 for ``"learned"`` only.
    levels : int or None
        For int8 and int4: how many of the codes the range uses, at least 2; None for all. With
        fewer, steps are larger and the entropy coder sends fewer bytes, as JPEG does at a lower
        quality.

    encoder : str or None
        A shallow encoder of the image, ``"tiny"``, ``"small"`` or ``"base"`` by its cost, instead
        of the network's first layers (:mod:`.image_encoder`). It stands at the slicing point
        "input". :meth:`shallow_encoder` makes the whole spec.

    Raises
    ------
    CodecError
        A value is not one of those, or two values do not match.

    Examples
    --------
    >>> TransferSpec().packed_nbytes((1, 64, 112, 112))
    200704
    >>> TransferSpec(pool=4, dtype="int4").packed_nbytes((1, 64, 112, 112))
    25088
    >>> TransferSpec.float32_split().packed_nbytes((1, 64, 112, 112))
    3211264
    """

    pool: int = 2
    pool_kind: str = "max"
    dtype: str = "int8"
    granularity: str = "tensor"
    layout: str = "nchw"
    entropy: str | None = None
    scheme: str = "affine"
    upsample: str = "nearest"
    entropy_level: int = 1
    reduction: int = 1
    levels: int | None = None
    encoder: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in _VALUES.items():
            value = getattr(self, name)
            # True == 1 and 2.0 == 2, but both are mistakes.
            if not any(type(value) is type(each) and value == each for each in allowed):
                choices = " or ".join(map(repr, allowed))
                raise CodecError(f"TransferSpec: {name}={value!r}; this version takes {choices}")
        level = self.entropy_level
        if type(level) is not int or not 1 <= level <= MAX_ENTROPY_LEVEL:
            raise CodecError(
                f"TransferSpec: entropy_level={level!r}; this version takes 1 to "
                f"{MAX_ENTROPY_LEVEL}"
            )
        if self.entropy == "ans" and not self.quantized:
            raise CodecError(
                f"TransferSpec: entropy='ans' codes int8 and int4, not {self.dtype}: take 'zstd'"
            )
        if self.entropy == "ans" and level != 1:
            raise CodecError(f"TransferSpec: entropy_level={level}; 'ans' has no level but 1")
        codes = 2 ** PAYLOAD_BITS[self.dtype] if self.quantized else 0
        if self.levels is not None and (
            type(self.levels) is not int or not 2 <= self.levels < codes
        ):
            takes = f"takes 2 to {codes - 1}" if codes else "is not quantized"
            raise CodecError(f"TransferSpec: levels={self.levels!r}; {self.dtype} {takes}")
        if not self.learned and self.reduction > 1:
            raise CodecError(
                f"TransferSpec: reduction={self.reduction} goes with pool_kind='learned' only"
            )
        if self.learned and (self.pool, self.reduction) == (1, 1):
            raise CodecError("TransferSpec: a learned TL needs a pool or a reduction above 1")
        if self.learned and self.upsample != "nearest":
            raise CodecError(
                "TransferSpec: a learned TL learns its upsampling; set upsample='nearest'"
            )
        if (self.encoder is None) == (self.pool in _ENCODER_POOLS):
            raise CodecError(
                f"TransferSpec: pool={self.pool} and encoder={self.encoder!r}; an encoder's window "
                "is 8 or 16, and a feature map's 1, 2 or 4"
            )
        if self.encoder is not None and not (
            self.learned and self.quantized and (self.reduction, self.granularity) == (1, "channel")
        ):
            raise CodecError(
                "TransferSpec: an encoder is learned, sends int8 or int4 with a scale for each "
                "channel, and reduces no channels: TransferSpec.shallow_encoder() makes one"
            )

    @classmethod
    def float32_split(cls) -> TransferSpec:
        """Return Scission's plain split: the feature map crosses the link unchanged."""
        return cls(pool=1, dtype="float32")

    @classmethod
    def paper(cls) -> TransferSpec:
        """Return the TL of arXiv 2105.02019: 2x2 max-pooling in float32."""
        return cls(pool=2, dtype="float32")

    @classmethod
    def shallow_encoder(cls, size: str = "tiny", levels: int | None = 64) -> TransferSpec:
        """Return a shallow encoder of the image; `levels` is what a quality is for JPEG."""
        return cls(
            pool=8,
            pool_kind="learned",
            granularity="channel",
            entropy="ans",
            levels=levels,
            encoder=size,
        )

    @property
    def label(self) -> str:
        """Short name for tables and plots; no two specs share one."""
        words = [
            f"{self.encoder} encoder" if self.encoder else "learned" if self.learned else "",
            f"TL {self.pool}x{self.pool}" if self.pool > 1 or self.learned else "",
            f"1/{self.reduction} channels" if self.reduction > 1 else "",
            "average" if self.pool_kind == "average" else "",
            self.dtype + ("/channel" if self.granularity == "channel" else ""),
            f"{self.levels} levels" if self.levels else "",
            "split" if self.pool == 1 and not self.quantized and not self.learned else "",
            "symmetric" if self.scheme == "symmetric" else "",
            "bilinear" if self.upsample == "bilinear" else "",
            "nhwc" if self.layout == "nhwc" else "",
            f"+ {self.entropy}" if self.entropy else "",
            f"level {self.entropy_level}" if self.entropy_level != 1 else "",
        ]
        name = " ".join(filter(None, words))
        return "paper TL (2x2 float32)" if name == "TL 2x2 float32" else name

    @property
    def name(self) -> str:
        """Short name for command lines; :func:`.names.spec_named` reads it."""
        from scissionlite.transfer_layer.names import spec_name

        return spec_name(self)

    @property
    def quantized(self) -> bool:
        """Whether the payload holds integer codes, which need scales and zero points."""
        return self.dtype in CODE_RANGES

    @property
    def codes(self) -> int:
        """Number of codes that the range uses: `levels`, or all that the dtype has."""
        return self.levels or 2 ** PAYLOAD_BITS[self.dtype]

    @property
    def learned(self) -> bool:
        """Whether the Transfer Layer is a trained bottleneck inside the slices."""
        return self.pool_kind == "learned"

    @property
    def lossless(self) -> bool:
        """Whether decoding restores the feature map bit for bit."""
        return self.pool == 1 and self.dtype == "float32" and not self.learned

    @property
    def packing(self) -> TransferSpec:
        """The spec of the codec: this one without the learned bottleneck, which the slices hold."""
        if not self.learned:
            return self
        return msgspec.structs.replace(self, pool=1, pool_kind="max", reduction=1, encoder=None)

    def crossing_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape that the device slice passes to the codec.

        For a learned TL it is the shape of the bottleneck's output, otherwise `shape` itself.

        Raises
        ------
        CodecError
            As :meth:`packed_shape`.
        """
        return self.packed_shape(shape) if self.learned else check_shape(shape)

    def packed_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape that crosses the link.

        Parameters
        ----------
        shape : sequence of int
            Shape of the feature map, (..., channels, height, width). With ``pool=1``, one scale
            and layout "nchw" any shape of 1 to ``MAX_DIMENSIONS`` dimensions will do.

        Returns
        -------
        tuple of int
            `shape`, with height and width divided by `pool`, and channels by `reduction`, rounded
            up. An encoder has a channel per coefficient.

        Raises
        ------
        CodecError
            A size is not a positive integer, there are too few or too many dimensions, or more
            than ``MAX_ELEMENTS`` elements.
        """
        checked = check_shape(shape)
        if len(checked) < 3 and self.needs_planes:
            raise CodecError(f"shape {checked}: {self.label} needs (..., channels, height, width)")
        if self.pool == 1 and not self.learned:
            return checked
        *images, channels, height, width = pooled_shape(checked, self.pool)
        return (*images, self.packed_channels(channels), height, width)

    def packed_channels(self, channels: int) -> int:
        """Number of channels that cross the link of so many in the feature map or image."""
        if self.encoder is not None:
            return min(ENCODER_COEFFICIENTS[self.encoder], channels * self.pool**2)
        return -(-channels // self.reduction)

    @property
    def needs_planes(self) -> bool:
        """Whether this TL uses the dimensions channels, height and width."""
        return (
            self.pool > 1 or self.learned or self.granularity == "channel" or self.layout == "nhwc"
        )

    def packed_nbytes(self, shape: Sequence[int]) -> int:
        """Return the length of the payload of a feature map of this shape, in bytes.

        With an entropy coder it is the greatest length: a payload that does not shrink is sent as
        it is.

        Raises
        ------
        CodecError
            As :meth:`packed_shape`.
        """
        return -(-math.prod(self.packed_shape(shape)) * PAYLOAD_BITS[self.dtype] // 8)

    def valid_for(self, shape: Sequence[int]) -> bool:
        """Tell whether this TL makes sense for a tensor of this shape.

        Stricter than the codec, so that the planner offers pooling for images only: it needs a
        shape (batch, channels, height, width) with at least 2 rows and columns. A token sequence
        (batch, tokens, features) cannot be pooled.
        """
        try:
            checked = check_shape(shape)
        except CodecError:
            return False
        if self.learned and (len(checked) != 4 or checked[-3] < self.reduction):
            return False
        if self.pool == 1:
            return len(checked) >= 3 or not self.needs_planes
        return len(checked) == 4 and checked[-2] >= 2 and checked[-1] >= 2

    def adapted_to(self, shape: Sequence[int]) -> TransferSpec:
        """Return this TL if it is valid for a tensor of this shape, otherwise plain packing.

        Where several tensors cross at once, each has its own TL. A tensor without height and width
        is quantized and packed only; a tensor without channels has one scale.
        """
        if self.valid_for(shape):
            return self
        plain = msgspec.structs.replace(
            self, pool=1, pool_kind="max", upsample="nearest", reduction=1, encoder=None
        )
        if plain.valid_for(shape):
            return plain
        return msgspec.structs.replace(plain, granularity="tensor", layout="nchw")


def pooled_shape(shape: Sequence[int], pool: int) -> tuple[int, ...]:
    """Return a shape (..., height, width) with the last two divided by `pool` and rounded up."""
    return (*shape[:-2], -(-shape[-2] // pool), -(-shape[-1] // pool))


def check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a feature map as a tuple; raise CodecError if no codec can take it."""
    checked = tuple(shape)
    if not 1 <= len(checked) <= MAX_DIMENSIONS:
        raise CodecError(f"{len(checked)} dimensions; the codec takes 1 to {MAX_DIMENSIONS}")
    for size in checked:
        if not isinstance(size, int) or isinstance(size, bool):
            raise CodecError(f"shape {checked}: {size!r} is not an integer")
        if size < 1:
            raise CodecError(f"shape {checked}: the tensor is empty or a size is negative")
    # Integers of Python do not overflow.
    if math.prod(checked) > MAX_ELEMENTS:
        raise CodecError(f"shape {checked}: more than {MAX_ELEMENTS} elements")
    return checked
