"""docs/numerics.md in numbers written by hand, section by section: for the oracle and the kernels.

The numbers show another order of summation, another rounding or a fused multiply-add.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import oracle
import pytest
from kernel_targets import Run, item_type, kernel_names, kinds, targets
from oracle import Answer, Array, Call, Float32
from test_kernels import check_answer

INF, NAN = np.inf, np.nan


@dataclass(frozen=True)
class Example:
    """An operation's source and expected result; both flat."""

    name: str
    operation: str
    call: Call
    source: Array
    expected: Answer


EXAMPLES: list[Example] = []


def bits(*words: int) -> Float32:
    return np.array(words, np.uint32).view(np.float32)


def half_bits(*words: int) -> Array:
    return np.array(words, np.uint16).view(np.float16)


def quantized(scales: object, zero_points: object, call: Call) -> Call:
    scale_array = np.atleast_1d(np.array(scales, np.float32))
    return Call(
        *call.full,
        call.window,
        call.pooling,
        call.upsampling,
        call.layout,
        scale_array.size > 1,
        scale_array,
        np.atleast_1d(np.array(zero_points, np.int32)),
    )


def add(
    name: str,
    operation: str,
    call: Call,
    source: Array | Sequence[float],
    expected: Array | Sequence[float],
    lows: Sequence[float] = (),
    highs: Sequence[float] = (),
) -> None:
    _, given, result = kinds(operation)
    if not isinstance(source, np.ndarray):
        source = np.array(source, item_type(given))
    if not isinstance(expected, np.ndarray):
        # Codes may be written as the bytes that they are, or signed.
        expected = np.array(expected, np.int64 if result in oracle.CODES else item_type(result))
        expected = (expected & 0xFF).astype(np.uint8) if result in oracle.CODES else expected
    answer = Answer(expected, np.array(lows, np.float32), np.array(highs, np.float32))
    EXAMPLES.append(Example(name, operation, call, source, answer))


def row(width: int, **choices: object) -> Call:
    return Call(1, 1, 1, width, **choices)  # type: ignore[arg-type]  # valid ones only


# --- float16: ties to even, the largest, denormals, NaN by its upper bits

NARROWED = [
    (0x45001000, 0x6800),  # 2049, a tie: 2048
    (0x45003000, 0x6802),  # 2051, a tie: 2052
    (0x45001001, 0x6801),  # just above a tie: 2050
    (0x477FEFFF, 0x7BFF),  # just below 65520: the largest, 65504
    (0x477FF000, 0x7C00),  # 65520, a tie: infinity
    (0xF149F2CA, 0xFC00),  # -1e30
    (0x33800000, 0x0001),  # 2^-24, the smallest
    (0x33000000, 0x0000),  # 2^-25, a tie: zero
    (0x33000001, 0x0001),  # just above it
    (0x33C00000, 0x0002),  # 1.5 * 2^-24, a tie
    (0x387FE000, 0x0400),  # between the largest denormal and the smallest normal: normal
    (0x80000001, 0x8000),
    (0xFF800000, 0xFC00),
    (0x7FC00000, 0x7E00),
    (0x7F800001, 0x7E00),  # signalling, its payload is cut off: quiet all the same
    (0xFFBFFFFF, 0xFFFF),
    (0x7FA05000, 0x7F02),
]
WIDENED = [
    (0x0001, 0x33800000),
    (0x03FF, 0x387FC000),
    (0x8000, 0x80000000),
    (0x3C00, 0x3F800000),
    (0x7BFF, 0x477FE000),
    (0xFC00, 0xFF800000),
    (0xFE00, 0xFFC00000),
    (0x7C01, 0x7FC02000),  # signalling: quiet
    (0xFDFF, 0xFFFFE000),
]
_wide, _narrow = bits(*(a for a, _ in NARROWED)), half_bits(*(b for _, b in NARROWED))
add("rounding to float16", "encode_f32_f16", row(17), _wide, _narrow)
add("rounding to float16", "decode_f32_f16", row(17), _wide, _narrow)
_narrow, _wide = half_bits(*(a for a, _ in WIDENED)), bits(*(b for _, b in WIDENED))
add("widening float16", "encode_f16_f32", row(9), _narrow, _wide)
add("widening float16", "decode_f16_f32", row(9), _narrow, _wide)
for _operation in ("encode_f32_f32", "decode_f32_f32"):
    _same = bits(0x7F800001, 0xFFBFFFFF, 0x80000000, 0x00000001)
    add("no pooling copies", _operation, row(4), _same, _same)
for _operation in ("encode_f16_f16", "decode_f16_f16"):
    _halves = half_bits(0x7C01, 0xFDFF, 0x8000, 0x0001)
    add("no pooling copies", _operation, row(4), _halves, _halves)

# --- pooling: windows of 2 x 2, each written top left, top right, bottom left, bottom right

MAXIMA: list[tuple[list[float], float, int, int]] = [
    # window, maximum, int8 and int4 code with scale 1 and zero point 1
    ([NAN, 1, -3, NAN], 1, 2, 2),
    ([NAN, NAN, NAN, NAN], -INF, -128, -8),
    ([1, INF, NAN, 0], INF, 127, 7),
    ([-INF, -INF, -INF, -INF], -INF, -128, -8),
    ([-1, 0.0, -0.0, -1], -0.0, 1, 1),  # the bottom left one comes before the top right one
    ([-1, -0.0, 0.0, -1], 0.0, 1, 1),
    ([0.5, -9, -9, -9], 0.5, 1, 1),
    ([-9, 1.5, -9, -9], 1.5, 3, 3),
    ([-9, -9, 2.5, -9], 2.5, 3, 3),
    ([-9, -9, -9, -2.5], -2.5, -1, -1),
    ([2.0**-24, 0, -1, -1], 2.0**-24, 1, 1),
    ([6e4, -6e4, 0, 0], 6e4, 127, 7),
    ([-200, -300, -300, -300], -200, -128, -8),
]


def side_by_side(windows: Sequence[Sequence[float]]) -> list[float]:
    """Windows of 2 x 2 as one map of two rows."""
    return [x for half in (slice(0, 2), slice(2, 4)) for each in windows for x in each[half]]


_source = side_by_side([each[0] for each in MAXIMA])
_call = quantized(1, 1, Call(1, 1, 2, 26, 2))
_maxima = [each[1] for each in MAXIMA]
_nibbles = [each[3] & 0xF for each in MAXIMA] + [0]
_pairs = [low | high << 4 for low, high in zip(_nibbles[::2], _nibbles[1::2], strict=True)]
for _type in ("f32", "f16"):
    add("maxima", f"encode_{_type}_f32", _call, _source, _maxima)
    add("maxima", f"encode_{_type}_f16", _call, _source, _maxima)
    add("maxima", f"encode_{_type}_i8", _call, _source, [each[2] for each in MAXIMA])
    add("maxima", f"encode_{_type}_i4", _call, _source, _pairs)
    # 6e4 is 60000 in float16, too.
    add("maxima", f"pool_range_{_type}_f32", _call, _source, _maxima, [-200], [6e4])

_zeros = [-1.0, 0.0, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -0.0, -1, -1, -1]
add("the first zero of 4 x 4", "encode_f32_f32", Call(1, 1, 4, 4, 4), _zeros, [-0.0])

_counted = [float(x) for x in range(15)]  # three rows of five
for _pooling, _by_2, _by_4 in (
    ("max", [6, 8, 9, 11, 13, 14], [13, 14]),
    ("average", [3, 5, 6.5, 10.5, 12.5, 14], [6.5, 9]),
):
    for _window, _pooled in ((2, _by_2), (4, _by_4)):
        _call = Call(1, 1, 3, 5, _window, _pooling)
        add("partial windows", "encode_f32_f32", _call, _counted, _pooled)
        add("partial windows", "encode_f16_f16", _call, _counted, _pooled)

# Column by column, 2^24 swallows the one below it but not the other column's sum: 1 / 4. Row by
# row it would be 2 / 4, and one after the other in column-major order 0 / 4.
_big = 2.0**24
add("columns first", "encode_f32_f32", Call(1, 1, 2, 2, 2, "average"), [_big, -_big, 1, 1], [0.25])
# 2^24 swallows each of the ones below it, and the next column's, but not what the other two make.
_source = [_big, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]
add("pairs of columns", "encode_f32_f32", Call(1, 1, 4, 4, 4, "average"), _source, [1048576.125])
add(
    "5 / 3, and not 5 times a third",
    "pool_range_f32_f32",
    Call(1, 1, 3, 1, 4, "average"),
    [1, 2, 2],
    bits(0x3FD55555),
    [1.6666666],
    [1.6666666],
)
_source = side_by_side(
    [[INF, -INF, 0, 0], [-NAN, 1, 1, 1], [3e38, 3e38, 0, 0], [-0.0] * 4, [INF, INF, 1, 1]]
)
_call = quantized(1, 1, Call(1, 1, 2, 10, 2, "average"))
_means = bits(0x7FC00000, 0x7FC00000, 0x7F800000, 0x80000000, 0x7F800000)
add("averages of NaN, infinities, -0.0", "encode_f32_f32", _call, _source, _means)
add("NaN averages to the lowest code", "encode_f32_i8", _call, _source, [-128, -128, 127, 1, 127])
_narrow = half_bits(0x7E00, 0x7E00, 0x7C00, 0x8000, 0x7C00)
add("averages of NaN, infinities, -0.0", "encode_f32_f16", _call, _source, _narrow)

# --- quantization

_source = [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, 127.5, -128.5, -129.5]
add(
    "half to even before the zero point",
    "encode_f32_i8",
    quantized(1, 1, row(10)),
    _source,
    [1, 3, 3, 1, -1, -1, 127, 127, -127, -128],
)
# 15.5 and 32.500004 by the reciprocal of 0.1, 15.499999 and 32.5 by division.
_bits = bits(0x3FC66666, 0x40500001)
add("the reciprocal", "encode_f32_i8", quantized(0.1, 0, row(2)), _bits, [16, 33])
_source = [NAN, INF, -INF, 1e30, -1e30, 511, -513, 0]
for _zero_point, _codes in (
    (127, [-128, 127, -128, 127, -128, 127, -128, 127]),
    (-128, [-128, 127, -128, 127, -128, 127, -128, -128]),
):
    add("saturation", "encode_f32_i8", quantized(1, _zero_point, row(8)), _source, _codes)
add("saturation", "encode_f16_i8", quantized(1, 5, row(3)), [NAN, INF, -INF], [-128, 127, -128])
add("saturation", "encode_f16_i4", quantized(1, 5, row(3)), [NAN, INF, -INF], [0x78, 0x08])
_call = quantized(3e-39, 0, row(2))
add("a product that overflows", "encode_f32_i8", _call, [3e38, -3e38], [127, -128])
_source = [3.0, 3, 3, 3]
_call = quantized([1, 2], [0, 5], Call(1, 2, 1, 2))
add("one scale per channel", "encode_f32_i8", _call, _source, [3, 3, 7, 7])  # 1.5 is 2
_call = quantized([1, 2], [0, 5], Call(1, 2, 1, 2, layout="nhwc"))
add("one scale per channel", "encode_f32_i8", _call, _source, [3, 7, 3, 7])

# --- packing

_call = quantized(1, 0, Call(3, 1, 1, 1))
add("int4 across images, odd", "encode_f32_i4", _call, [1, -1, 7], [0xF1, 0x07])
add("int4 saturates", "encode_f32_i4", quantized(1, 0, row(2)), [99, -99], [0x87])
_codes_4 = np.array([0xF1, 0xF7], np.uint8)  # the last four bits are no value's
add("int4 across images, odd", "decode_i4_f32", _call, _codes_4, [1, -1, 7])
add("int4 across images, odd", "decode_i4_f16", _call, _codes_4, [1, -1, 7])
_call = quantized([1, 10], [0, -8], Call(1, 2, 1, 2, layout="nhwc"))
add("int4 per channel", "decode_i4_f32", _call, np.array([0x81, 0x7F], np.uint8), [1, 0, -1, 150])

# --- dequantization

_codes_8 = np.array([-128, 127, 2], np.int8).view(np.uint8)
_call = quantized(2.0**121, 2, row(6, window=2))
_large = 125 * 2.0**121
add("overflow", "decode_i8_f32", _call, _codes_8, [-INF, -INF, _large, _large, 0.0, 0.0])
_call = quantized(2.0**-127, 2, row(3))
_denormals = [2.0**-127, -(2.0**-127), 0.0]
add("denormals", "decode_i8_f32", _call, np.array([3, 1, 2], np.uint8), _denormals)
# 3 * scale is 2050.9999 exactly, 2051 in float32, and that is a tie in float16.
_call = quantized(bits(0x442AEAAA), 0, row(1))
add("two roundings", "decode_i8_f16", _call, np.array([3], np.uint8), [2052])
_call = quantized([0.5, 4], [-128, 127], Call(1, 2, 1, 1))
add("extreme zero points", "decode_i8_f32", _call, np.array([127, 128], np.uint8), [127.5, -1020])

# --- upsampling

_corners = [0, 16, 32, 48]
_call = Call(1, 1, 3, 5, 4)
_nearest = [1, 1, 1, 1, 2] * 3
add("nearest, cropped", "decode_f32_f32", _call, [1, 2], _nearest)
add("nearest, cropped", "decode_f16_f32", _call, [1, 2], _nearest)
_call = Call(1, 1, 3, 3, 2)
add("nearest, cropped", "decode_f32_f32", _call, _corners, [0, 0, 16, 0, 0, 16, 32, 32, 48])
_call = Call(1, 2, 2, 3, 2, layout="nhwc")
_nearest = [1, 2, 1, 2, 3, 4] * 2
add("nearest, nhwc", "decode_f32_f32", _call, [1, 2, 3, 4], _nearest)
_signalling = bits(0x7F800001, 0xFFBFFFFF)
_call = row(3, window=2)
_copied = bits(0x7F800001, 0x7F800001, 0xFFBFFFFF)
add("nearest copies", "decode_f32_f32", _call, _signalling, _copied)
_quieted = half_bits(0x7E00, 0x7E00, 0xFFFF)
add("nearest narrows", "decode_f32_f16", _call, _signalling, _quieted)
_copied = half_bits(0x7C01, 0x7C01, 0xFDFF)
add("nearest copies", "decode_f16_f16", _call, half_bits(0x7C01, 0xFDFF), _copied)
_widened = bits(0x7FC02000, 0x7FC02000, 0xFFFFE000)
add("nearest widens", "decode_f16_f32", _call, half_bits(0x7C01, 0xFDFF), _widened)

_smooth = [0, 4, 12, 16, 8, 12, 20, 24, 24, 28, 36, 40, 32, 36, 44, 48]
_call = Call(1, 1, 4, 4, 2, upsampling="bilinear")
add("bilinear by 2", "decode_f32_f32", _call, _corners, _smooth)
add("bilinear by 2", "decode_f16_f16", _call, _corners, _smooth)
_call = Call(1, 1, 3, 3, 2, upsampling="bilinear")
add("bilinear, cropped", "decode_f32_f32", _call, _corners, [0, 4, 12, 8, 12, 20, 24, 28, 36])
_call = row(8, window=4, upsampling="bilinear")
add("bilinear by 4", "decode_f32_f32", _call, [0, 32], [0, 0, 4, 12, 20, 28, 32, 32])
_call = quantized([1, 2], [0, 0], Call(1, 2, 1, 4, 2, upsampling="bilinear", layout="nhwc"))
_codes_8 = np.array([0, 0, 16, 16], np.uint8)
add("bilinear, nhwc", "decode_i8_f32", _call, _codes_8, [0, 0, 4, 8, 12, 24, 16, 32])
_call = row(4, window=2, upsampling="bilinear")
_bits = bits(0xFFC12345, 0x3F800000)
_result = bits(0x7FC00000, 0x7FC00000, 0x7FC00000, 0x3F800000)
add("a NaN spreads", "decode_f32_f32", _call, _bits, _result)
_result = bits(0xFF800000, 0x7FC00000, 0x7FC00000, 0x7F800000)
add("infinities of both signs", "decode_f32_f32", _call, bits(0xFF800000, 0x7F800000), _result)
_call = row(3, upsampling="bilinear")
_same = bits(0x7F800001, 0xFFBFFFFF, 0x80000000)
add("bilinear without a window", "decode_f32_f32", _call, _same, _same)

# --- the range

_call = Call(1, 2, 1, 3, per_channel=True)
_source = [-0.0, NAN, INF, 5, -INF, -7]
for _type in ("f32", "f16"):
    _operation = f"pool_range_{_type}_f32"
    add("one range per channel", _operation, _call, _source, _source, [0.0, -7], [0.0, 5])
    _tensor = Call(1, 2, 1, 3)
    add("a range of the tensor", _operation, _tensor, _source, _source, [-7], [5])
    add("nothing finite", _operation, row(2), [NAN, -INF], [NAN, -INF], [INF], [-INF])


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda each: f"{each.operation}: {each.name}")
def test_the_oracle_keeps_the_contract(example: Example) -> None:
    check_answer(oracle.run(example.operation, example.source, example.call), example.expected)


@pytest.mark.parametrize(("run", "operation", "isa"), targets())
def test_a_kernel_keeps_the_contract(run: Run, operation: str, isa: str) -> None:
    for example in (each for each in EXAMPLES if each.operation == operation):
        answer = run(operation, isa, example.source, example.call, 0)
        try:
            check_answer(answer, example.expected)
        except pytest.fail.Exception as error:
            pytest.fail(f"{example.name}: {error}")


@pytest.mark.parametrize(
    ("run", "operation", "isa"),
    [each for each in targets() if each.values[1] in ("decode_f32_f32", "")],
)
def test_bilinear_rounds_every_product_and_sum(run: Run, operation: str, isa: str) -> None:
    """A fused multiply-add or a + (b - a) * weight give 9084887, vertically first 9084886."""
    source = np.array([13282335, 14704965, 1330429, 982609], np.float32)
    call = Call(1, 1, 8, 8, 4, upsampling="bilinear")
    for answer in (oracle.run(operation, source, call), run(operation, isa, source, call, 0)):
        assert answer.output.reshape(8, 8)[3, 3] == 9084888


def test_every_operation_has_an_example() -> None:
    assert {name for name, _ in kernel_names()} == {each.operation for each in EXAMPLES}
