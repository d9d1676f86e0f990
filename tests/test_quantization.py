"""Quantization: valid values, and scales from a range, per tensor and per channel."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scissionlite.errors import CodecError
from scissionlite.transfer_layer import Quantization
from scissionlite.transfer_layer.spec import CODE_RANGES

DTYPES, SCHEMES = st.sampled_from(sorted(CODE_RANGES)), st.sampled_from(["affine", "symmetric"])
BOUNDS = st.floats(-3e38, 3e38)


@given(low=BOUNDS, high=BOUNDS, dtype=DTYPES, scheme=SCHEMES, levels=st.none() | st.integers(2, 16))
@example(low=0.0, high=0.0, dtype="int4", scheme="affine", levels=2)
def test_from_range_covers_the_range(
    low: float, high: float, dtype: str, scheme: str, levels: int | None
) -> None:
    low, high = min(low, high), max(low, high)
    if levels is not None:  # a step of the widest ranges would be beyond float32
        low, high = low / 4, high / 4
    quantization = Quantization.from_range(low, high, dtype, scheme, levels)
    scale, zero_point = quantization.scale, quantization.zero_point
    assert isinstance(scale, float)
    assert isinstance(zero_point, int)
    low_code, high_code = CODE_RANGES[dtype]
    slack = scale * (0.5 + 1e-4)
    width = max(high, 0) - min(low, 0)
    if width == 0:
        assert scale == 1  # docs/numerics.md: a range of zero alone
    elif levels is not None and scheme == "affine" and scale > 2.0**-126:
        assert width / scale == pytest.approx(levels - 1, rel=1e-6)
    assert (low_code - zero_point) * scale - slack <= min(low, 0)
    assert max(high, 0) <= (high_code - zero_point) * scale + slack
    assert low_code <= zero_point <= high_code
    if scheme == "symmetric":
        assert zero_point == 0
    with np.errstate(over="raise"):
        assert np.isfinite(np.float32(1) / np.float32(scale))


@pytest.mark.parametrize(
    ("low", "high", "dtype", "scheme", "scale", "zero_point"),
    [
        (0.0, 0.0, "int8", "affine", 1.0, -128),
        (0.0, 255.0, "int8", "affine", 1.0, -128),
        (-255.0, 0.0, "int8", "affine", 1.0, 127),
        (-127.5, 127.5, "int8", "affine", 1.0, 0),
        (10.0, 255.0, "int8", "affine", 1.0, -128),
        (0.0, 1e-45, "int8", "affine", 2.0**-126, -128),
        (math.inf, -math.inf, "int8", "affine", 1.0, -128),
        (math.inf, -math.inf, "int4", "symmetric", 1.0, 0),
        (0.0, 15.0, "int4", "affine", 1.0, -8),
        (-15.0, -3.0, "int4", "affine", 1.0, 7),
        (-7.0, 3.0, "int4", "symmetric", 1.0, 0),
        (-2.0, 127.0, "int8", "symmetric", 1.0, 0),
        (-254.0, 127.0, "int8", "symmetric", 2.0, 0),
        (0.0, 0.0, "int8", "symmetric", 1.0, 0),
    ],
)
def test_from_range_values(
    low: float, high: float, dtype: str, scheme: str, scale: float, zero_point: int
) -> None:
    assert Quantization.from_range(low, high, dtype, scheme) == Quantization(scale, zero_point)


@pytest.mark.parametrize(
    ("low", "high", "dtype", "scheme", "levels", "scale", "zero_point"),
    [
        (0.0, 31.0, "int8", "affine", 32, 1.0, -128),
        (-31.0, 0.0, "int8", "affine", 32, 1.0, 127),
        (-15.0, 15.0, "int8", "affine", 31, 1.0, 0),
        (0.0, 1.0, "int8", "affine", 2, 1.0, -128),
        (0.0, 255.0, "int8", "affine", 256, 1.0, -128),
        (0.0, 3.0, "int4", "affine", 4, 1.0, -8),
        (-1.0, 2.0, "int4", "affine", 4, 1.0, -3),
        (-7.0, 3.0, "int4", "symmetric", 6, 3.0, 0),
        (math.inf, -math.inf, "int8", "affine", 9, 1.0, -128),
    ],
)
def test_levels_are_as_many_of_the_codes(
    low: float, high: float, dtype: str, scheme: str, levels: int, scale: float, zero_point: int
) -> None:
    found = Quantization.from_range(low, high, dtype, scheme, levels)
    assert found == Quantization(scale, zero_point)


@given(low=BOUNDS, high=BOUNDS, dtype=DTYPES)
def test_the_scale_is_rounded_once(low: float, high: float, dtype: str) -> None:
    # Against exact arithmetic; float64 in between may round a tie the other way, so one ulp.
    low, high = min(low, high, 0.0), max(low, high, 0.0)
    low_code, high_code = CODE_RANGES[dtype]
    exact = (Fraction(high) - Fraction(low)) / (high_code - low_code)
    found = Quantization.from_range(low, high, dtype).scale
    assert isinstance(found, float)
    scale = np.float32(found)
    if exact > 2.0**-126:
        assert abs(Fraction(float(scale)) - exact) <= Fraction(float(np.spacing(scale))) / 2 * (
            1 + Fraction(1, 2**20)
        )


@given(
    ranges=st.lists(st.tuples(BOUNDS, BOUNDS), min_size=1, max_size=20),
    dtype=DTYPES,
    scheme=SCHEMES,
    nothing=st.booleans(),
)
def test_ranges_of_channels_are_each_like_one_of_a_tensor(
    ranges: list[tuple[float, float]], dtype: str, scheme: str, nothing: bool
) -> None:
    lows = np.array([min(each) for each in ranges], np.float32)
    highs = np.array([max(each) for each in ranges], np.float32)
    if nothing:
        lows[0], highs[0] = np.inf, -np.inf
    together = Quantization.from_range(lows, highs, dtype, scheme)
    each = [
        Quantization.from_range(float(low), float(high), dtype, scheme)
        for low, high in zip(lows, highs, strict=True)
    ]
    assert together.scale == tuple(q.scale for q in each)
    assert together.zero_point == tuple(q.zero_point for q in each)
    assert together.channels == len(ranges)
    assert each[0].channels is None


def test_scales_are_kept_as_float32() -> None:
    rounded = float(np.float32(0.1))
    assert Quantization(0.1, 0) == Quantization(rounded, 0)
    assert Quantization((0.1, 1), (0, 3)).scale == (rounded, 1.0)
    assert hash(Quantization(0.1, 0)) == hash(Quantization(rounded, 0))


@given(
    quantization=st.one_of(
        st.builds(Quantization, st.floats(1e-37, 1e37), st.integers(-128, 127)),
        st.lists(
            st.tuples(st.floats(1e-37, 1e37), st.integers(-128, 127)), min_size=1, max_size=5
        ).map(lambda pairs: Quantization(*map(tuple, zip(*pairs, strict=True)))),
    )
)
def test_a_quantization_survives_json(quantization: Quantization) -> None:
    assert len(quantization.quantizer) == (quantization.channels or 1)  # kept beside the fields
    encoded = msgspec.json.encode(quantization)
    assert set(msgspec.json.decode(encoded)) == {"scale", "zero_point"}
    assert msgspec.json.decode(encoded, type=Quantization) == quantization


def test_json_of_a_tensor_is_as_it_always_was() -> None:
    assert msgspec.json.decode(b'{"scale":0.1,"zero_point":3}', type=Quantization) == Quantization(
        0.1, 3
    )


@pytest.mark.parametrize(
    "scale", [0, -1, np.nan, np.inf, 1e39, 1e-39, pytest.param(10**400, id="huge"), "1", True, None]
)
def test_quantization_refuses_scale(scale: Any) -> None:
    with pytest.raises(CodecError, match="scale"):
        Quantization(scale, 0)
    with pytest.raises(CodecError, match="scale"):
        Quantization((1.0, scale), (0, 0))


@pytest.mark.parametrize("zero_point", [-129, 128, 0.0, True, "0", None])
def test_quantization_refuses_zero_point(zero_point: Any) -> None:
    with pytest.raises(CodecError, match="zero_point"):
        Quantization(1.0, zero_point)
    with pytest.raises(CodecError, match="zero_point"):
        Quantization((1.0, 1.0), (0, zero_point))


@pytest.mark.parametrize(
    ("scale", "zero_point", "message"),
    [
        ((1.0, 2.0), (0,), "2 scales and 1 zero points"),
        ((1.0, 2.0), 0, "both be tuples"),
        (1.0, (0,), "both be tuples"),
        ((), (), "at least one channel"),
        ([1.0], (0,), "both be tuples"),
    ],
)
def test_scales_and_zero_points_go_together(scale: Any, zero_point: Any, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        Quantization(scale, zero_point)


@pytest.mark.parametrize(
    ("low", "high"), [(1, 0), (np.nan, 1), (0, np.inf), (-np.inf, np.inf), (-3e300, 0)]
)
def test_from_range_refuses(low: float, high: float) -> None:
    with pytest.raises(CodecError):
        Quantization.from_range(low, high)
    with pytest.raises(CodecError):
        Quantization.from_range(np.array([0, low]), np.array([1, high]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1.0, "float16"), "not an integer quantization"),
        ((0.0, 1.0, "int8", "log"), "not an integer quantization"),
        ((np.zeros(2), np.ones(3)), "one low and one high per channel"),
        ((np.zeros(2), 1.0), "one low and one high per channel"),
        ((np.zeros((1, 2)), np.ones((1, 2))), "one low and one high per channel"),
        ((np.zeros(0), np.ones(0)), "one low and one high per channel"),
        ((0.0, 1.0, "int8", "affine", 0), "levels=0: a range takes at least 2"),
        ((0.0, 1.0, "int8", "affine", 1), "levels=1: a range takes at least 2"),
        ((0.0, 1.0, "int8", "affine", 257), "levels must be 2 or more, and no more than"),
        ((0.0, 1.0, "int4", "affine", 17), "levels must be 2 or more, and no more than"),
    ],
)
def test_from_range_refuses_what_is_no_range(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(CodecError, match=message):
        Quantization.from_range(*arguments)
