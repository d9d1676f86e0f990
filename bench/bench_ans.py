"""The entropy coder "ans" against zstd at level 1 and against memory speed, one thread.

The codes are Laplacian, as activations are, with a scale of its own for each channel; the tables
were made from other codes of the same kind. "By neighbours" the codes are also like those to the
left and above, so that the tables depend on them. Rates are of the payload before coding: bytes of
int8, and half bytes of int4. Every result is decoded and compared before anything is timed. The two
sides are called in turns on the same data, so that a busy neighbour slows both.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from bench.conftest import Measure
from scissionlite.transfer_layer import Packed, Quantization, TransferSpec, fit_tables
from scissionlite.transfer_layer import entropy as stage

Bytes = npt.NDArray[np.uint8]
Shape = tuple[int, ...]

# What crosses after blocks.3 and blocks.1 of EfficientNet-Lite0 at 224, and ResNet-50's stem.
SHAPES = [(1, 80, 7, 7), (1, 24, 28, 28), (1, 64, 56, 56)]


class Coded(NamedTuple):
    """Both ways to code and decode payloads, one after the other at every call."""

    encode: Callable[[], object]
    decode: Callable[[], object]
    compress: Callable[[], object]
    decompress: Callable[[], object]
    copy: Callable[[], object]
    payload_nbytes: int
    label: str
    """Layout, and the bytes beside zstd's."""


def laplacian(
    rng: np.random.Generator, scales: npt.NDArray[np.float64], shape: Shape, neighbours: bool
) -> npt.NDArray[np.float64]:
    """Random values with a scale for each channel; with neighbours, means of them in part."""
    values = rng.laplace(0, scales, shape)
    if neighbours:
        for axis in (-1, -2):
            values = 0.9 * values + 0.45 * np.roll(values, 1, axis)
    return values


def coded(shape: Shape, dtype: str, layout: str, neighbours: bool) -> Coded:
    """Make payloads of about 24 levels, and code them.

    There are as many as a processor cannot know by heart: the same few thousand codes again and
    again would teach it their branches, and be coded faster than those of a camera.
    """
    spec = TransferSpec(pool=1, dtype=dtype, layout=layout)
    ans = TransferSpec(pool=1, dtype=dtype, layout=layout, entropy="ans")
    rng = np.random.default_rng(0)
    scales = rng.uniform(0.3, 2.5, shape[1])[:, None, None]
    low, high = (-8, 7) if dtype == "int4" else (-128, 127)
    packed = []
    fitted = max(8, 2**18 // math.prod(shape))
    for _ in range(fitted + max(2, 2**19 // math.prod(shape))):
        values = laplacian(rng, scales, shape, neighbours)
        codes = np.clip(np.rint(values), low, high).astype(np.int8)
        ordered = codes if layout == "nchw" else codes.transpose(0, 2, 3, 1)
        flat: Bytes = ordered.reshape(-1).view(np.uint8)
        if dtype == "int4":
            flat = ((flat[::2] & 15) | flat[1::2] << 4).astype(np.uint8)
        packed.append(Packed(np.ascontiguousarray(flat), spec, shape, Quantization(1.0, 0)))
    tables = fit_tables(packed[:fitted])
    assert (tables.bounds is not None) == neighbours
    payloads = [np.frombuffer(each.payload, np.uint8) for each in packed[fitted:]]
    nbytes = payloads[0].nbytes
    sent = [stage.code(each, ans, shape, tables) for each in payloads]
    frames = [stage.compress(each, "zstd", 1) for each in payloads]
    for payload, each, frame in zip(payloads, sent, frames, strict=True):
        assert each is not None
        assert frame is not None
        raw = stage.decompress(np.frombuffer(frame, np.uint8), "zstd", nbytes)
        decoded = stage.decode(each, ans, shape, nbytes, tables)
        assert payload.tobytes() == raw.tobytes() == decoded.tobytes()
    share = sum(x.nbytes for x in sent if x is not None) / sum(len(x) for x in frames if x)
    plain, short = itertools.cycle(payloads), itertools.cycle([x for x in sent if x is not None])
    zstd = itertools.cycle([np.frombuffer(x, np.uint8) for x in frames if x])
    return Coded(
        lambda: stage.code(next(plain), ans, shape, tables),
        lambda: stage.decode(next(short), ans, shape, nbytes, tables),
        lambda: stage.compress(next(plain), "zstd", 1),
        lambda: stage.decompress(next(zstd), "zstd", nbytes),
        lambda: next(plain).copy(),
        nbytes,
        f"ans{', by neighbours' * neighbours}, {layout}, {share:.2f} of zstd's bytes",
    )


each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s[1:])))
each_layout = pytest.mark.parametrize("layout", ["nchw", "nhwc"])
each_dtype = pytest.mark.parametrize("dtype", ["int8", "int4"])
each_kind = pytest.mark.parametrize("neighbours", [False, True], ids=["plain", "by neighbours"])
against = pytest.mark.parametrize("reference", ["zstd 1", "copy"])


@against
@each_shape
@each_dtype
@each_layout
@each_kind
def test_encode(
    measure: Measure,
    record: Any,
    shape: Shape,
    dtype: str,
    layout: str,
    neighbours: bool,
    reference: str,
) -> None:
    one = coded(shape, dtype, layout, neighbours)
    other = one.copy if reference == "copy" else one.compress
    measure(f"encode {one.payload_nbytes} bytes, {dtype}", one.label, one.encode, other, reference)
    _rate(record, one)


@against
@each_shape
@each_dtype
@each_layout
@each_kind
def test_decode(
    measure: Measure,
    record: Any,
    shape: Shape,
    dtype: str,
    layout: str,
    neighbours: bool,
    reference: str,
) -> None:
    one = coded(shape, dtype, layout, neighbours)
    other = one.copy if reference == "copy" else one.decompress
    measure(f"decode {one.payload_nbytes} bytes, {dtype}", one.label, one.decode, other, reference)
    _rate(record, one)


def _rate(record: Any, one: Coded) -> None:
    rate = one.payload_nbytes / record.extra_info["seconds"] / 1e6
    record.extra_info["what"] += f", {rate:.0f} MB/s"
