"""The Transfer Layer's kernels against memory speed and against torch's own chain, one thread.

Encoding is compared with ``numpy.copyto`` of its input, decoding with ``ndarray.fill`` of its
output: no function that reads, or writes, a feature map can be much faster. Every result is
asserted against the tests' oracle before it is timed. A ratio compares the fastest of many calls of
each side. The two sides are called in turns on the same data, so that a busy neighbour slows both.

The scalar ISA is portable C++, compiled for the baseline CPU. It is a fair reference: the same
algorithm, in the same blocks, at ``-O3``. With SSE2, GCC 12 vectorises the pooling of rows in NCHW,
the packing and unpacking of int4, dequantization with one scale and bilinear interpolation. It
vectorises neither quantization nor the pooling of pixels in NHWC (``g++ -std=c++17 -O3
-ffp-contract=off -Icsrc -fopt-info-vec -c csrc/encode/scalar.cpp``, and
``csrc/decode/scalar.cpp``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import oracle
import pytest
import torch
from torch.nn import functional

from bench.conftest import Measure
from scissionlite import _core
from scissionlite.transfer_layer import Quantization, TransferSpec, decode, encode

Float32 = npt.NDArray[np.float32]
Shape = tuple[int, int, int, int]
KINDS = {"float32": "f32", "float16": "f16", "int8": "i8", "int4": "i4"}

# Shapes at slicing points of ResNet-50 and MobileNet.
SHAPES = [(1, 64, 112, 112), (1, 256, 56, 56), (1, 64, 56, 56), (1, 512, 28, 28), (1, 1024, 14, 14)]

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s[1:])))
each_layout = pytest.mark.parametrize("layout", ["nchw", "nhwc"])
each_isa = pytest.mark.parametrize("isa", _core.available_isas())


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


def empty_map(shape: Shape, layout: str) -> Float32:
    images, channels, height, width = shape
    if layout == "nchw":
        return np.empty(shape, np.float32)
    return np.empty((images, height, width, channels), np.float32).transpose(0, 3, 1, 2)


def feature_map(shape: Shape, layout: str) -> Float32:
    """A feature map with half of its values zero, as after a ReLU."""
    x = empty_map(shape, layout)
    x[:] = np.maximum(np.random.default_rng(0).normal(0, 1, shape), 0)
    return x


class Job:
    """A feature map, a Transfer Layer, and the oracle's result for them."""

    def __init__(self, shape: Shape, spec: TransferSpec) -> None:
        self.shape, self.spec = shape, spec
        self.x = feature_map(shape, spec.layout)
        self.quantization: Quantization | None = None
        images, channels, height, width = shape
        self.call = oracle.Call(
            images, channels, height, width, spec.pool, spec.pool_kind, spec.upsample, spec.layout
        )
        if spec.quantized:
            q = Quantization.from_range(0, float(self.x.max()), spec.dtype)
            self.quantization = q
            scales, zero_points = np.array([q.scale], "f4"), np.array([q.zero_point], "i4")
            self.call = dataclasses.replace(self.call, scales=scales, zero_points=zero_points)
        self.kind = KINDS[spec.dtype]
        self.expected = oracle.encode(self.x, self.kind, self.call).view(np.uint8)
        self.payload = np.empty(self.expected.size, np.uint8)
        self.restored = empty_map(shape, spec.layout)

    def transfer(self, isa: str) -> _core.Transfer:
        images, channels, height, width = self.shape
        return _core.Transfer(
            images=images,
            channels=channels,
            height=height,
            width=width,
            pool=self.spec.pool,
            pool_kind=self.spec.pool_kind,
            upsample=self.spec.upsample,
            layout=self.spec.layout,
            dtype=self.spec.dtype,
            isa=isa,
        )

    @property
    def step(self) -> tuple[float, int]:
        """Scale and zero point, as torch needs them."""
        assert self.quantization is not None
        scale, zero_point = self.quantization.scale, self.quantization.zero_point
        assert isinstance(scale, float)
        assert isinstance(zero_point, int)
        return scale, zero_point

    @property
    def quantizer(self) -> _core.Quantizer | None:
        return None if self.quantization is None else self.quantization.quantizer

    def encoder(self, isa: str) -> Callable[[], None]:
        """Return the encode kernel's call, checked."""
        transfer, quantizer = self.transfer(isa), self.quantizer

        def run() -> None:
            transfer.encode(self.x, self.payload, quantizer)

        run()
        assert np.array_equal(self.payload, self.expected)
        return run

    def decoder(self, isa: str) -> Callable[[], None]:
        """Return the decode kernel's call, checked."""
        transfer, quantizer = self.transfer(isa), self.quantizer
        self.payload[:] = self.expected
        values = self.expected if self.spec.quantized else self.expected.view(self.spec.dtype)

        def run() -> None:
            transfer.decode(self.payload, self.restored, quantizer)

        run()
        assert np.array_equal(
            self.restored, oracle.decode(values, self.kind, "f32", self.call), equal_nan=True
        )
        return run

    def copyto(self) -> Callable[[], None]:
        target = empty_map(self.shape, self.spec.layout)
        return lambda: np.copyto(target, self.x)

    def fill(self) -> Callable[[], None]:
        target = empty_map(self.shape, self.spec.layout)
        return lambda: target.fill(1.5)

    def info(self, isa: str) -> dict[str, object]:
        """Return the values that the roofline figure is drawn from."""
        return {
            "shape": "x".join(map(str, self.shape[1:])),
            "layout": self.spec.layout,
            "isa": isa,
            "spec": self.spec.label,
            "map_bytes": self.x.nbytes,
            "payload_bytes": self.expected.size,
        }


# The claims are made for this ISA.
CLAIMED = "avx2" if "avx2" in _core.available_isas() else _core.isa()
INT8 = TransferSpec()


def in_layout(spec: TransferSpec, layout: str) -> TransferSpec:
    return msgspec.structs.replace(spec, layout=layout)


def group_of(operation: str, shape: Shape, layout: str) -> str:
    return f"{operation} {'x'.join(map(str, shape[1:]))} {layout}"


# --- against the speed of memory


@each_shape
@each_layout
@each_isa
def test_encode(measure: Measure, shape: Shape, layout: str, isa: str) -> None:
    job = Job(shape, in_layout(INT8, layout))
    bar = None
    if isa == CLAIMED:
        wide = shape[3] >= 28
        bar = (
            f"encode, {'widths of 28 and more' if wide else 'width 14'}, against copyto",
            "at most",
            1.25 if wide else 2.0,
        )
    measure(
        group_of("encode", shape, layout),
        f"{INT8.label}, {isa}",
        job.encoder(isa),
        job.copyto(),
        "numpy.copyto",
        bar=bar,
        operation="encode",
        **job.info(isa),
    )


@each_shape
@each_layout
@each_isa
def test_decode(measure: Measure, shape: Shape, layout: str, isa: str) -> None:
    job = Job(shape, in_layout(INT8, layout))
    measure(
        group_of("decode", shape, layout),
        f"{INT8.label}, {isa}",
        job.decoder(isa),
        job.fill(),
        "ndarray.fill",
        bar=("decode against fill", "at most", 1.3) if isa == CLAIMED else None,
        operation="decode",
        **job.info(isa),
    )


@each_shape
@each_layout
def test_encode_finding_the_scale(measure: Measure, shape: Shape, layout: str) -> None:
    """Encoding that finds its scale: one pass over the map, one over the pooled map."""
    job = Job(shape, in_layout(INT8, layout))
    transfer = job.transfer(CLAIMED)
    pooled = np.empty(transfer.pooled_size, np.float32)

    def run() -> None:
        transfer.encode_measured(job.x, job.payload, pooled)

    run()
    assert np.array_equal(job.payload, job.expected)
    measure(
        group_of("encode", shape, layout),
        f"{INT8.label}, finding the scale, {CLAIMED}",
        run,
        job.encoder(CLAIMED),
        "with a fixed scale",
        bar=("finding the scale, against encode with a fixed scale", "at most", 1.6),
    )


# --- the whole call


def test_call_overhead(measure: Measure) -> None:
    """A feature map so small that all its time is that of the call."""
    job = Job((1, 1, 2, 2), INT8)
    measure(
        "the call",
        "encode() of 1x2x2",
        lambda: encode(job.x, INT8, job.quantization, job.payload),
        lambda: job.x.fill(1.5),
        "ndarray.fill",
    )


def test_decode_call_overhead(measure: Measure) -> None:
    job = Job((1, 1, 2, 2), INT8)
    packed = encode(job.x, INT8, job.quantization)
    measure(
        "the call",
        "decode() of 1x2x2",
        lambda: decode(packed, job.restored),
        lambda: job.x.fill(1.5),
        "ndarray.fill",
    )


@each_shape
@each_layout
def test_codec(measure: Measure, shape: Shape, layout: str) -> None:
    """encode() against the kernel that it calls."""
    spec = in_layout(INT8, layout)
    job = Job(shape, spec)
    measure(
        group_of("encode", shape, layout),
        f"{INT8.label}, encode(), {_core.isa()}",
        lambda: encode(job.x, spec, job.quantization, job.payload),
        job.encoder(_core.isa()),
        "its kernel",
    )


@each_shape
@each_layout
def test_codec_decode(measure: Measure, shape: Shape, layout: str) -> None:
    """decode() against the kernel that it calls."""
    spec = in_layout(INT8, layout)
    job = Job(shape, spec)
    packed = encode(job.x, spec, job.quantization)
    measure(
        group_of("decode", shape, layout),
        f"{INT8.label}, decode(), {_core.isa()}",
        lambda: decode(packed, job.restored),
        job.decoder(_core.isa()),
        "its kernel",
    )


# --- against torch's own chain, in the same layout


def tensor_of(array: npt.NDArray[Any]) -> torch.Tensor:
    """The same memory as a tensor; channels_last where the array is NHWC."""
    return torch.from_numpy(array)


@each_shape
@each_layout
def test_encode_torch(measure: Measure, shape: Shape, layout: str) -> None:
    job = Job(shape, in_layout(INT8, layout))
    scale, zero_point = job.step
    tensor = tensor_of(job.x)

    def run() -> torch.Tensor:
        t = functional.max_pool2d(tensor, 2, ceil_mode=True).div_(scale)
        return t.round_().add_(zero_point).clamp_(-128, 127).to(torch.int8)

    codes = oracle.flat(run().numpy(), layout).astype(int)
    # A division instead of a product with the reciprocal may move a tie by one step.
    assert np.abs(codes - job.expected.view(np.int8)).max() <= 1
    measure(
        group_of("encode", shape, layout),
        f"{INT8.label}, torch",
        run,
        job.encoder(CLAIMED),
        f"{CLAIMED} kernel",
        bar=(f"torch's encode chain, {layout}", "at least", 15 if layout == "nchw" else 2.5),
    )


@each_shape
@each_layout
def test_decode_torch(measure: Measure, shape: Shape, layout: str) -> None:
    job = Job(shape, in_layout(INT8, layout))
    scale, zero_point = job.step
    decoder = job.decoder(CLAIMED)
    pooled = oracle.logical(job.expected.view(np.int8), job.call.pooled, layout)
    tensor = tensor_of(pooled)

    def run() -> torch.Tensor:
        t = tensor.to(torch.float32).sub_(zero_point).mul_(scale)
        return functional.interpolate(t, scale_factor=2, mode="nearest")

    assert np.array_equal(run().numpy(), job.restored)
    measure(
        group_of("decode", shape, layout),
        f"{INT8.label}, torch",
        run,
        decoder,
        f"{CLAIMED} kernel",
        bar=(f"torch's decode chain, {layout}", "at least", 8),
    )


# --- the other Transfer Layers, on one shape


SPECS = [
    TransferSpec.paper(),
    TransferSpec(pool=1),
    TransferSpec(pool=4),
    TransferSpec(pool_kind="average"),
    TransferSpec(dtype="int4"),
    TransferSpec(dtype="float16"),
    TransferSpec(upsample="bilinear"),
]


@each_layout
@each_isa
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.label)
def test_other_specs(measure: Measure, spec: TransferSpec, layout: str, isa: str) -> None:
    job = Job(SHAPES[2], in_layout(spec, layout))
    group = group_of("encode other", job.shape, layout)
    measure(group, f"{spec.label}, {isa}", job.encoder(isa), job.copyto(), "numpy.copyto")


@each_layout
@each_isa
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.label)
def test_other_specs_decode(measure: Measure, spec: TransferSpec, layout: str, isa: str) -> None:
    job = Job(SHAPES[2], in_layout(spec, layout))
    group = group_of("decode other", job.shape, layout)
    measure(group, f"{spec.label}, {isa}", job.decoder(isa), job.fill(), "ndarray.fill")
