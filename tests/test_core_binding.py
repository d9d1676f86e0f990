"""The Python binding of the core: its checks and its promises (src/scissionlite/_core.pyi)."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import oracle
import pytest
from kernel_targets import listed_isas
from oracle import Array, Call

from scissionlite import _core
from scissionlite.errors import IsaError

SHAPE = (2, 3, 5, 7)
POOLED, ELEMENTS = 2 * 3 * 3 * 4, 2 * 3 * 5 * 7


def transfer(**changed: Any) -> _core.Transfer:
    images, channels, height, width = SHAPE
    sizes = {"images": images, "channels": channels, "height": height, "width": width}
    return _core.Transfer(**{**sizes, "pool": 2, **changed})


def quantizer(groups: int = 1, zero_point: int = 0) -> _core.Quantizer:
    return _core.Quantizer(np.full(groups, 0.5, np.float32), np.full(groups, zero_point, np.int32))


def feature_map(dtype: type[np.generic] = np.float32) -> Array:
    return np.random.default_rng(0).normal(0, 9, SHAPE).astype(dtype)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"frame": np.zeros((4, 5, 3), np.int8)}, "frame must be uint8"),
        ({"frame": np.zeros((4, 5, 6), np.uint8)[:, :, ::2]}, "frame must be contiguous"),
        ({"frame": np.zeros((4, 15), np.uint8)}, "frame must be contiguous"),
        ({"tables": np.zeros((3, 255), np.float32)}, r"tables must be of shape \(channels, 256\)"),
        ({"tables": np.zeros((1, 256), np.float32)}, r"tables must be of shape \(channels, 256\)"),
        ({"out": np.zeros(59, np.float32)}, "out must have a value"),
        ({"out": np.broadcast_to(np.float32(0), (1, 3, 4, 5))}, "incompatible function arguments"),
        ({"out": np.zeros((1, 3, 4, 5))}, "incompatible function arguments"),
    ],
)
def test_frames_of_another_form_are_refused(changed: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {
        "frame": np.zeros((4, 5, 3), np.uint8),
        "tables": np.zeros((3, 256), np.float32),
        "out": np.zeros((1, 3, 4, 5), np.float32),
    }
    _core.normalize_frame(**given)
    given["out"].setflags(write=False)
    with pytest.raises(ValueError, match="out must be writable"):
        _core.normalize_frame(**given)
    given["out"].setflags(write=True)
    with pytest.raises((TypeError, ValueError), match=said):
        _core.normalize_frame(**given | changed)
    pixels = np.zeros(240 + 60, np.uint8)
    overlapping = {"frame": pixels[200:260].reshape(4, 5, 3), "out": pixels[:240].view(np.float32)}
    with pytest.raises(ValueError, match="must not overlap"):
        _core.normalize_frame(**given | overlapping)


def misaligned(size: int, dtype: type[np.generic]) -> Array:
    """An array one byte off."""
    itemsize = np.dtype(dtype).itemsize
    return np.zeros(size * itemsize + itemsize, np.uint8)[1 : 1 + size * itemsize].view(dtype)


def misaligned_copy(array: Array) -> Array:
    copy = misaligned(array.size, array.dtype.type)
    copy[...] = array
    return copy


def read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


def channels_last(array: Array) -> Array:
    """The same shape, channels fastest in memory."""
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


# --- Transfer


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int4"])
@pytest.mark.parametrize("pool", [1, 2, 4])
def test_sizes(dtype: str, pool: int) -> None:
    made = transfer(pool=pool, dtype=dtype)
    pooled = 2 * 3 * -(-5 // pool) * -(-7 // pool)
    bits = {"float32": 32, "float16": 16, "int8": 8, "int4": 4}[dtype]
    assert made.pooled_size == pooled
    assert made.nbytes == -(-pooled * bits // 8)


def test_int4_of_an_odd_size_is_rounded_up() -> None:
    assert transfer(images=1, channels=1, height=3, width=3, pool=1, dtype="int4").nbytes == 5


@pytest.mark.parametrize("name", ["images", "channels", "height", "width"])
def test_a_size_of_zero_or_less(name: str) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        transfer(**{name: 0})
    with pytest.raises(TypeError):
        transfer(**{name: -1})


@pytest.mark.parametrize(
    "sizes",
    [
        {"images": 2**40, "channels": 2**40},
        {"images": 2**32, "channels": 2**32, "height": 1, "width": 1},  # 2^64 is 0 in 64 bits
        {"images": 2**63, "channels": 2, "height": 1, "width": 1},
        {"images": 2**16, "channels": 2**16, "height": 2**16, "width": 2**16},
        {"images": 1, "channels": 1, "height": 2**31, "width": 2**31},  # bytes of float32
    ],
)
def test_sizes_that_overflow(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="too large"):
        transfer(**sizes)


@pytest.mark.parametrize("pool", [0, 3, 8, 2**32 - 1])
def test_an_unknown_pool(pool: int) -> None:
    with pytest.raises(ValueError, match="pool must be 1, 2 or 4"):
        transfer(pool=pool)


@pytest.mark.parametrize("name", ["pool_kind", "upsample", "layout", "dtype"])
@pytest.mark.parametrize("value", ["", "MAX", "nearest\0", "nhwc "])
def test_an_unknown_name(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=name):
        transfer(**{name: value})


@pytest.mark.parametrize("isa", ["sse9", "", "AVX2", "scalar "])
def test_an_unknown_isa(isa: str) -> None:
    with pytest.raises(IsaError, match="no such instruction set"):
        transfer(isa=isa)


def test_the_error_for_an_unknown_isa_names_the_known_ones() -> None:
    with pytest.raises(IsaError, match=f"known are {', '.join(listed_isas())}; usable here"):
        transfer(isa="sse9")


def test_an_isa_of_another_machine() -> None:
    built = {isa for _, isa in _core.kernels()}
    for elsewhere in listed_isas().keys() - built:
        with pytest.raises(IsaError, match=f"{elsewhere}.*this build has no kernels for it"):
            transfer(isa=elsewhere)


def test_the_isa_in_use_is_available_and_the_baseline_always_is() -> None:
    usable = _core.available_isas()
    assert _core.isa() in usable
    assert usable[-1] == "scalar"
    assert usable == list(dict.fromkeys(isa for _, isa in _core.kernels() if isa in usable))


# --- accepts


def test_accepts_dense_arrays_of_the_layout() -> None:
    x = feature_map()
    nchw, nhwc = transfer(), transfer(layout="nhwc")
    assert nchw.accepts(x)
    assert not nhwc.accepts(x)
    assert nhwc.accepts(channels_last(x))
    assert not nchw.accepts(channels_last(x))
    # Any leading dimensions are images; NCHW needs no more than the order.
    assert nchw.accepts(x.reshape(1, 2, 1, 3, 5, 7))
    assert nchw.accepts(x.reshape(-1))
    assert nhwc.accepts(channels_last(x)[None])


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_accepts_nothing_else(layout: str) -> None:
    made = transfer(layout=layout)
    whole = np.zeros((2, 3, 5, 14), np.float32)
    if layout == "nhwc":
        whole = channels_last(whole)
    right = whole[..., :7].copy(order="K")
    assert made.accepts(right)
    for wrong in (
        whole,
        whole[..., :7],  # gaps
        whole[..., ::2],
        right[..., ::-1],
        right[::-1],
        right.transpose(1, 0, 2, 3),
        right[:1],
        np.broadcast_to(np.float32(0), SHAPE),
        misaligned(ELEMENTS, np.float32).reshape(right.shape),
    ):
        assert not made.accepts(wrong)


def test_accepts_strides_of_dimensions_of_one() -> None:
    """NumPy and PyTorch may give these any stride."""
    made = transfer(images=1, channels=1, height=5, width=7, layout="nhwc")
    x = np.zeros((5, 7), np.float32)
    odd = np.lib.stride_tricks.as_strided(x, (1, 1, 5, 7), (999, 12, 28, 4))
    assert made.accepts(odd)


# --- Quantizer


@pytest.mark.parametrize(
    "scale", [0.0, -0.0, -1.0, np.nan, np.inf, -np.inf, 1e-45, 2.0**-128], ids=str
)
def test_a_scale_that_cannot_be(scale: float) -> None:
    scales = np.array([1, scale], np.float32)
    with pytest.raises(ValueError, match="finite reciprocal"):
        _core.Quantizer(scales, np.zeros(2, np.int32))


def test_the_smallest_and_largest_scales() -> None:
    scales = np.array([2.0**-128 + 2.0**-149, np.finfo(np.float32).max], np.float32)
    assert len(_core.Quantizer(scales, np.array([-128, 127], np.int32))) == 2


@pytest.mark.parametrize("zero_point", [-129, 128, 2**31 - 1, -(2**31)])
def test_a_zero_point_that_cannot_be(zero_point: int) -> None:
    with pytest.raises(ValueError, match=r"\[-128, 127\]"):
        quantizer(3, zero_point)


ONE, ZERO = np.ones(1, np.float32), np.zeros(1, np.int32)


@pytest.mark.parametrize(
    ("scales", "zero_points"),
    [
        (ONE[:0], ZERO[:0]),
        (ONE, np.zeros(2, np.int32)),
        (ONE[None], ZERO[None]),
        (ONE[0:1].reshape(()), ZERO),
        (np.ones(1), ZERO),
        (ONE.astype(">f4"), ZERO),
        (ONE, np.zeros(1, np.int64)),
        (np.ones(4, np.float32)[::2], np.zeros(2, np.int32)),
        ([1.0], [0]),
        (None, None),
        (misaligned_copy(ONE), ZERO),
        (ONE, misaligned_copy(ZERO)),
    ],
)
def test_a_quantizer_of_wrong_arrays(scales: Any, zero_points: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        _core.Quantizer(scales, zero_points)


def test_a_quantizer_keeps_its_own_copy() -> None:
    scales, zero_points = np.full(1, 0.5, np.float32), np.zeros(1, np.int32)
    made = _core.Quantizer(scales, zero_points)
    scales[0], zero_points[0] = 1, 9
    out = np.empty(POOLED, np.uint8)
    transfer().encode(np.ones(SHAPE, np.float32), out, made)
    assert (out == 2).all()


# --- the arrays of a call


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (feature_map().astype(np.float64), TypeError, "float32 or float16, not float64"),
        (feature_map().astype(">f4"), TypeError, "float32 or float16"),
        (feature_map().astype(np.int32), TypeError, "float32 or float16"),
        (feature_map().tolist(), TypeError, "incompatible"),
        (None, TypeError, "incompatible"),
        (feature_map()[:1], ValueError, "dense in nchw"),
        (feature_map()[..., ::-1], ValueError, "dense in nchw"),
        (channels_last(feature_map()), ValueError, "dense in nchw"),
        (misaligned(ELEMENTS, np.float32).reshape(SHAPE), ValueError, "aligned"),
        (misaligned(ELEMENTS, np.float16).reshape(SHAPE), ValueError, "aligned"),
    ],
)
def test_a_feature_map_that_does_not_fit(array: Any, error: type[Exception], message: str) -> None:
    made = transfer()
    with pytest.raises(error, match=message):
        made.encode(array, np.zeros(POOLED, np.uint8), quantizer())
    with pytest.raises(error, match=message):
        made.pool_range(array, np.zeros(POOLED, np.float32))
    with pytest.raises(error, match=message):
        made.decode(np.zeros(POOLED, np.uint8), array, quantizer())


PAYLOAD = np.zeros(4 * POOLED, np.uint8)


@pytest.mark.parametrize(
    ("payload", "error", "message"),
    [
        (PAYLOAD.view(np.int8), TypeError, "uint8, not int8"),
        (PAYLOAD.view(np.float32), TypeError, "uint8"),
        (PAYLOAD.tobytes(), TypeError, "incompatible"),
        (PAYLOAD[:-1], ValueError, "exactly 288 bytes"),
        (np.zeros(4 * POOLED + 1, np.uint8), ValueError, "exactly 288 bytes"),
        (PAYLOAD.reshape(2, -1), ValueError, "1-D"),
        (np.zeros(8 * POOLED, np.uint8)[::2], ValueError, "contiguous"),
        (PAYLOAD[::-1], ValueError, "contiguous"),
        (np.zeros(4 * POOLED + 4, np.uint8)[1:-3], ValueError, "aligned"),
        (np.zeros(4 * POOLED + 4, np.uint8)[2:-2], ValueError, "aligned"),
    ],
)
def test_a_payload_that_does_not_fit(payload: Any, error: type[Exception], message: str) -> None:
    made = transfer(dtype="float32")
    with pytest.raises(error, match=message):
        made.encode(feature_map(), payload)
    with pytest.raises(error, match=message):
        made.decode(payload, feature_map())


def test_float16_payloads_are_aligned_to_two_bytes() -> None:
    made = transfer(dtype="float16")
    some = np.zeros(2 * POOLED + 2, np.uint8)
    made.encode(feature_map(), some[2:])
    with pytest.raises(ValueError, match="aligned"):
        made.encode(feature_map(), some[1:-1])
    with pytest.raises(ValueError, match="aligned"):
        made.decode(some[1:-1], feature_map())


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.zeros(POOLED), TypeError, "float32, not float64"),
        (np.zeros(POOLED, np.float16), TypeError, "float32"),
        (np.zeros(POOLED + 1, np.float32), ValueError, "exactly 72 elements"),
        (np.zeros((POOLED, 1), np.float32), ValueError, "1-D"),
        (np.zeros(2 * POOLED, np.float32)[::2], ValueError, "contiguous"),
        (misaligned(POOLED, np.float32), ValueError, "aligned"),
        (read_only(np.zeros(POOLED, np.float32)), ValueError, "writable"),
        (None, ValueError, "only with pool=1"),
        ([0.0], TypeError, "incompatible"),
    ],
)
def test_a_pooled_map_that_does_not_fit(out: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        transfer().pool_range(feature_map(), out)
    with pytest.raises(error, match=message):
        transfer().encode_measured(feature_map(), np.zeros(POOLED, np.uint8), out)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_only_integers_have_scales_to_be_found(dtype: str) -> None:
    made = transfer(dtype=dtype)
    out, pooled = np.zeros(made.nbytes, np.uint8), np.zeros(POOLED, np.float32)
    with pytest.raises(ValueError, match="no scales"):
        made.encode_measured(feature_map(), out, pooled)


def test_scales_that_cannot_be_found() -> None:
    x, out, pooled = feature_map(), np.zeros(POOLED, np.uint8), np.zeros(POOLED, np.float32)
    with pytest.raises(ValueError, match="scheme='log' must be affine or symmetric"):
        transfer().encode_measured(x, out, pooled, scheme="log")
    with pytest.raises(ValueError, match="dtype='float32' must be int8 or int4"):
        _core.Quantizer.from_range(np.zeros(1), np.ones(1), "float32")
    with pytest.raises(ValueError, match="scheme='' must be"):
        _core.Quantizer.from_range(np.zeros(1), np.ones(1), "int8", "")
    for levels in (1, 257):
        with pytest.raises(ValueError, match="levels must be 2 or more"):
            transfer().encode_measured(x, out, pooled, levels=levels)
    for lows, highs in [(np.zeros(2), np.ones(1)), (np.zeros((1, 1)), np.ones((1, 1)))]:
        with pytest.raises(ValueError, match="one low and one high"):
            _core.Quantizer.from_range(lows, highs)
    with pytest.raises(ValueError, match="at least one scale"):
        _core.Quantizer.from_range(np.zeros(0), np.ones(0))
    with pytest.raises(ValueError, match="exactly 72 bytes"):
        transfer().encode_measured(x, out[1:], pooled)
    with pytest.raises(ValueError, match="overlap"):
        transfer().encode_measured(x, pooled.view(np.uint8)[:POOLED], pooled)
    with pytest.raises(ValueError, match="writable"):
        transfer().encode_measured(x, read_only(out), pooled)


def test_what_was_found_is_told() -> None:
    made = transfer(dtype="int4")
    out, pooled = np.zeros(made.nbytes, np.uint8), np.zeros(POOLED, np.float32)
    found = made.encode_measured(feature_map(), out, pooled, per_channel=True)
    lows, highs = made.pool_range(feature_map(), pooled, per_channel=True)
    again = _core.Quantizer.from_range(lows.astype(float), highs.astype(float), "int4")
    assert len(found) == SHAPE[1]
    assert (found.scales, found.zero_points) == (again.scales, again.zero_points)
    by_hand = np.zeros(made.nbytes, np.uint8)
    made.encode(feature_map(), by_hand, again)
    assert np.array_equal(out, by_hand)


def test_outputs_that_cannot_be_written() -> None:
    made = transfer()
    with pytest.raises(ValueError, match="writable"):
        made.encode(feature_map(), read_only(np.zeros(POOLED, np.uint8)), quantizer())
    with pytest.raises(ValueError, match="writable"):
        made.decode(np.zeros(POOLED, np.uint8), read_only(feature_map()), quantizer())


def test_outputs_that_overlap() -> None:
    made = transfer(dtype="float32")
    memory = np.zeros(ELEMENTS + POOLED, np.float32)
    x, after = memory[:ELEMENTS].reshape(SHAPE), memory[ELEMENTS:]
    for first in (0, ELEMENTS - 1):
        pooled = memory[first : first + POOLED]
        for call in (
            lambda out: made.encode(x, out.view(np.uint8)),
            lambda out: made.decode(out.view(np.uint8), x),
            lambda out: made.pool_range(x, out),
        ):
            with pytest.raises(ValueError, match="overlap"):
                call(pooled)
            call(after)  # neighbours are apart


# --- the quantizer of a call


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int4"])
def test_the_quantizer_that_a_payload_needs(dtype: str) -> None:
    made = transfer(dtype=dtype)
    payload = np.zeros(made.nbytes, np.uint8)
    quantizes = dtype.startswith("int")
    wrong: list[tuple[Any, str]] = [(None, "needs a quantizer")]
    if quantizes:
        wrong += [(quantizer(groups), "one for each of 3 channels") for groups in (2, 4)]
    else:
        wrong = [(quantizer(groups), "takes no quantizer") for groups in (1, 3)]
    if dtype == "int4":
        wrong += [(quantizer(1, zero_point), r"\[-8, 7\]") for zero_point in (-9, 8)]
    for bad, message in wrong:
        with pytest.raises(ValueError, match=message):
            made.encode(feature_map(), payload, bad)
        with pytest.raises(ValueError, match=message):
            made.decode(payload, feature_map(), bad)
    for good in [quantizer(1), quantizer(3)] if quantizes else [None]:
        made.encode(feature_map(), payload, good)
        made.decode(payload, feature_map(), good)


def test_a_refused_call_writes_nothing() -> None:
    out = np.full(POOLED, 7, np.uint8)
    with pytest.raises(ValueError, match="needs a quantizer"):
        transfer().encode(feature_map(), out)
    assert (out == 7).all()


# --- threads


def test_one_transfer_serves_many_threads() -> None:
    made, x = transfer(dtype="float32"), feature_map()
    expected = oracle.encode(x, "f32", Call(*SHAPE, window=2)).tobytes()
    wrong = []

    def work() -> None:
        out = np.empty(4 * POOLED, np.uint8)
        for _ in range(200):
            out[:] = 0
            made.encode(x, out)
            if out.tobytes() != expected:
                wrong.append(out)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
