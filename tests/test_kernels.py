"""Every kernel of csrc/kernel_list.h against the NumPy oracle, byte for byte.

The kernels run in this process and, where there is one, in the runner (tests/kernel_targets.py).
SCISSIONLITE_REQUIRE_ISA=neon,avx2 makes it a failure if one of those was not tested. The numbers
of docs/numerics.md are tested in tests/test_numerics.py.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import oracle
import pytest
from hypothesis import example, given, settings
from kernel_targets import (
    GuardedArray,
    Run,
    isas_that_run,
    item_type,
    kernel_names,
    kinds,
    output_size,
    source_size,
    targets,
)
from oracle import CODES, Answer, Array, Call

every_kernel = pytest.mark.parametrize(("run", "operation", "isa"), targets())


@dataclass(frozen=True)
class Case:
    """One call and its data; `shift` is how the arrays stand to the guard pages."""

    call: Call
    data: str = "normal"
    seed: int = 0
    # Of the tensor; with one per channel, they are drawn around these.
    scale: float = 1.0
    zero_point: int = 0
    shift: int = 0

    def for_(self, operation: str) -> Call:
        """The call, with the scales and zero points that the operation takes."""
        name, given_, result = kinds(operation)
        quantized = {given_, result} & CODES.keys()
        if not quantized:
            # Without a quantizer only pool_range knows channels.
            return replace(self.call, per_channel=self.call.per_channel and name == "pool_range")
        low, high = CODES[quantized.pop()]
        zero_point = min(max(self.zero_point, low), high)
        if not self.call.per_channel:
            scales, zero_points = np.array([self.scale]), np.array([zero_point])
        else:
            rng = np.random.default_rng(self.seed)
            factors = 2.0 ** rng.integers(-3, 4, self.call.channels) * rng.choice([1, 0.7])
            scales = np.clip(factors * self.scale, SMALLEST_SCALE, LARGEST_SCALE)
            zero_points = rng.integers(low, high + 1, self.call.channels)
            zero_points[0] = zero_point
        return replace(
            self.call, scales=scales.astype(np.float32), zero_points=zero_points.astype(np.int32)
        )


SMALLEST_SCALE = 3.0e-39  # a denormal, near the smallest whose reciprocal is finite
LARGEST_SCALE = float(np.finfo(np.float32).max)

# Quiet and signalling NaN, infinities, both zeros, denormals, the largest numbers.
SPECIAL_BITS = np.array(
    [
        *[0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFBFFFFF, 0x7FA05000, 0x7F800000, 0xFF800000],
        *[0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x007FFFFF, 0x7F7FFFFF, 0xFF7FFFFF],
        *[0x3F800000, 0xC0200000, 0x477FEFFF, 0x477FF000, 0x33000000, 0x33000001, 0x33C00000],
    ],
    np.uint32,
)
SPECIAL_HALF_BITS = np.array(
    [
        *[0x7E00, 0xFE00, 0x7C01, 0xFDFF, 0x7D55, 0x7C00, 0xFC00, 0x0000, 0x8000],
        *[0x0001, 0x8001, 0x03FF, 0x7BFF, 0xFBFF, 0x3C00, 0xC100],
    ],
    np.uint16,
)
DATA = ["normal", "ties", "special", "bits", "zeros", "nans", "halfway"]


def source_of(operation: str, call: Call, data: str, seed: int) -> Array:
    """Make the input of an operation, flat."""
    _, given_, _ = kinds(operation)
    rng = np.random.default_rng(seed)
    size = source_size(operation, call)
    if given_ in CODES:
        return rng.integers(0, 256, size, np.uint8)
    half_bits = rng.integers(0, 2**16, size, np.uint16)
    if given_ == "f16" and data in ("special", "bits", "halfway"):
        drawn = rng.choice(SPECIAL_HALF_BITS, size) if data == "special" else half_bits
        halves: Array = drawn.view(np.float16)
        return halves
    if data == "special":
        return rng.choice(SPECIAL_BITS, size).view(np.float32)
    if data == "bits":
        return rng.integers(0, 2**32, size, np.uint32).view(np.float32)
    if data == "halfway":
        # Between two neighbours of float16, and next to that: where rounding turns.
        bits = oracle.widen(half_bits.view(np.float16)).view(np.uint32)
        near: Array = (bits + rng.choice(HALFWAY, size)).view(np.float32)
        return near
    if data in ("zeros", "nans"):
        some = [0.0, -0.0, -1.0] if data == "zeros" else [np.nan, -np.inf, np.inf, -2.5]
        values = rng.choice(some, size)
    elif data == "ties":
        values = rng.integers(-600, 600, size) * 0.5 * float(rng.choice(call.scales))
    else:
        values = rng.normal(0, 60, size) * float(rng.choice(call.scales))
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(np.float32).astype(item_type(given_))


HALFWAY = np.array([0, 0x0FFF, 0x1000, 0x1001, 0x1800], np.uint32)


def check(run: Run, operation: str, isa: str, case: Case) -> None:
    call = case.for_(operation)
    source = source_of(operation, call, case.data, case.seed)
    expected = oracle.run(operation, source, call)
    assert expected.output.size == output_size(operation, call)
    check_answer(run(operation, isa, source, call, case.shift), expected)


def check_answer(actual: Answer, expected: Answer) -> None:
    for name in Answer._fields:
        written, right = getattr(actual, name), getattr(expected, name)
        assert (written.dtype, written.shape) == (right.dtype, right.shape)
        bits = f"u{written.itemsize}"
        wrong = np.flatnonzero(written.view(bits) != np.ascontiguousarray(right).view(bits))
        if wrong.size:
            at = wrong[0]
            got, expected_ = (f"{x[at]!r} ({x.view(bits)[at]:#x})" for x in (written, right))
            pytest.fail(
                f"{name}: {wrong.size} of {written.size} differ, [{at}]: {got}, not {expected_}"
            )


# --- drawn at random

# Around one, two and four vectors of every ISA (4 to 64 lanes), and the blocks that kernels stage.
AROUND = [1, 2, 4, 8, 16, 32, 64, 128, 256]
LENGTHS = sorted({max(1, n + d) for n in AROUND for d in (-1, 0, 1, 2, 3)})
BLOCKS = [1021, 1023, 1024, 1025, 1027, 2047, 2051, 4095, 4096, 4099, 5000]
SHORT, LONG = st.integers(1, 5), st.one_of(st.integers(1, 40), st.sampled_from(LENGTHS))


def _shapes(images: int, channels: Any, height: int, width: Any) -> st.SearchStrategy[Any]:
    up_to = [st.integers(1, x) if isinstance(x, int) else x for x in (channels, width)]
    return st.tuples(st.integers(1, images), up_to[0], st.integers(1, height), up_to[1])


SHAPES = st.one_of(
    _shapes(3, 5, 9, st.integers(1, 40)),
    _shapes(2, 3, 6, LONG),
    _shapes(2, st.one_of(st.integers(1, 70), st.sampled_from(LENGTHS)), 6, 6),
    _shapes(2, 20, 24, 24),  # several blocks of narrow rows
    _shapes(2, 2, 5, st.sampled_from(BLOCKS)),
    _shapes(2, st.sampled_from(BLOCKS), 5, 2),
)


@st.composite
def calls(draw: st.DrawFn) -> Call:
    images, channels, height, width = draw(SHAPES)
    return Call(
        images,
        channels,
        height,
        width,
        window=draw(st.sampled_from([1, 2, 4])),
        pooling=draw(st.sampled_from(["max", "average"])),
        upsampling=draw(st.sampled_from(["nearest", "bilinear"])),
        layout=draw(st.sampled_from(["nchw", "nhwc"])),
        per_channel=draw(st.booleans()),
    )


# 32-bit scales: usual ones, and the smallest and the largest that the contract allows.
SCALES = st.one_of(
    st.floats(2.0**-10, 2.0**10, width=32),
    st.sampled_from([1.0, 0.1, SMALLEST_SCALE, 2.0**-126, 1e30, LARGEST_SCALE]),
).map(lambda scale: float(np.float32(scale)))

CASES = st.builds(
    Case,
    calls(),
    data=st.sampled_from(DATA),
    seed=st.integers(0, 2**32 - 1),
    scale=SCALES,
    zero_point=st.one_of(st.sampled_from([-128, -8, 0, 7, 127]), st.integers(-128, 127)),
    shift=st.integers(0, 9),
)


@every_kernel
@settings(max_examples=200)
@given(case=CASES)
@example(case=Case(Call(1, 1, 1, 1), "special"))
@example(case=Case(Call(1, 3, 5, 7, 4, "average", "bilinear", per_channel=True), "bits"))
def test_kernel_equals_the_oracle(run: Run, operation: str, isa: str, case: Case) -> None:
    check(run, operation, isa, case)


# --- swept


def _variants(operation: str) -> list[Call]:
    """Yield every choice of an operation's parameters, on one row of one value."""
    name = kinds(operation)[0]
    choices = ("nearest", "bilinear") if name == "decode" else ("max", "average")
    choice = "upsampling" if name == "decode" else "pooling"
    changes: list[dict[str, Any]] = [
        {"layout": layout, "window": window, choice: chosen}
        for layout in ("nchw", "nhwc")
        for window in (1, 2, 4)
        for chosen in choices[: 1 if window == 1 else 2]
    ]
    return [Call(1, 1, 1, 1, **each) for each in changes]


@every_kernel
def test_every_length(run: Run, operation: str, isa: str) -> None:
    """Rows, or columns of channels, of 1 to 72 values, in all ways to pool or to upsample."""
    for n, variant in enumerate(_variants(operation)):
        for length in range(1, 73):
            shape = (1 + length % 2, 2, 1 + (length + n) % 6, length)
            if variant.layout == "nhwc":
                shape = (1 + length % 2, length, 1 + (length + n) % 6, 1 + length % 5)
            images, channels, height, width = shape
            call = replace(
                variant,
                images=images,
                channels=channels,
                height=height,
                width=width,
                per_channel=length % 3 == 0,
            )
            data = DATA[(length + n) % len(DATA)]
            check(run, operation, isa, Case(call, data, length, 0.5, 3, shift=length // 2 % 2))


@every_kernel
def test_long_rows(run: Run, operation: str, isa: str) -> None:
    """Rows, or columns of channels, longer than what kernels may stage at once."""
    for variant in _variants(operation):
        for length in (1020, 1023, 1026, 2049, 4100):
            call = replace(variant, channels=2, height=5, width=length)
            if variant.layout == "nhwc":
                call = replace(variant, channels=length, height=2, width=5)
            for per_channel in (False, True):
                call = replace(call, per_channel=per_channel)
                check(run, operation, isa, Case(call, "normal", length, 0.7, -3))
                check(run, operation, isa, Case(call, "special", length, 0.7, 4, shift=1))


# --- properties that no oracle is needed for


@every_kernel
def test_images_are_independent(run: Run, operation: str, isa: str) -> None:
    """A batch of three is three calls of one; int4 only if an image has an even size."""
    for variant in _variants(operation):
        call = replace(variant, images=3, channels=6, height=7, width=9)
        call = Case(call).for_(operation)
        source = source_of(operation, call, "normal", 1)
        whole = run(operation, isa, source, call, 0)
        one = replace(call, images=1)
        parts = [run(operation, isa, part, one, 0) for part in np.split(source, 3)]
        assert whole.output.tobytes() == b"".join(part.output.tobytes() for part in parts)
        if kinds(operation)[0] == "pool_range":
            assert whole.lows[0] == min(part.lows[0] for part in parts)
            assert whole.highs[0] == max(part.highs[0] for part in parts)


@every_kernel
@pytest.mark.parametrize("per_channel", [False, True])
def test_layout_never_changes_a_value(
    run: Run, operation: str, isa: str, per_channel: bool
) -> None:
    name, given_, result = kinds(operation)
    for variant in _variants(operation):
        if variant.layout == "nhwc":
            continue
        nchw = replace(variant, images=2, channels=19, height=6, width=11, per_channel=per_channel)
        nchw = Case(nchw, seed=3).for_(operation)
        nhwc = replace(nchw, layout="nhwc")
        before, after = (nchw.full, nchw.pooled)[:: -1 if name == "decode" else 1]
        source = source_of(operation, nchw, "special", 5)
        codes = _elements(source, given_)
        moved = oracle.flat(codes.reshape(before), "nhwc")
        if given_ == "i4":
            moved = oracle.pack(moved, "i4")
        in_nchw = run(operation, isa, source, nchw, 0)
        in_nhwc = run(operation, isa, np.ascontiguousarray(moved), nhwc, 0)
        expected = oracle.flat(_elements(in_nchw.output, result).reshape(after), "nhwc")
        assert _elements(in_nhwc.output, result).tobytes() == expected.tobytes()
        assert in_nchw.lows.tobytes() == in_nhwc.lows.tobytes()
        assert in_nchw.highs.tobytes() == in_nhwc.highs.tobytes()


def _elements(values: Array, kind: str) -> Array:
    """int4 codes one by one; their number must be even."""
    return oracle.unpack(values, "i4", 2 * values.size) if kind == "i4" else values


# --- the list


def test_every_isa_is_complete() -> None:
    names = kernel_names()
    operations = {operation for operation, _ in names}
    for isa in {isa for _, isa in names}:
        assert {operation for operation, other in names if other == isa} == operations


def test_required_isas_were_tested() -> None:
    required = {isa for isa in os.environ.get("SCISSIONLITE_REQUIRE_ISA", "").split(",") if isa}
    assert required <= isas_that_run(), f"not tested: {sorted(required - isas_that_run())}"


def test_canaries_catch_what_guard_pages_do_not() -> None:
    """Canaries show a write behind an array that ends in the middle of a page."""
    for outside, side in ((-1, "before"), (5, "after")):
        guarded = GuardedArray(5, np.uint8, 3)
        guarded.check_canaries()
        beyond = guarded.array.ctypes.data + outside
        ctypes.memset(beyond, 0, 1)
        with pytest.raises(AssertionError, match=f"wrote {side}"):
            guarded.check_canaries()
