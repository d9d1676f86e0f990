"""The Transfer Layer's kernels against memory speed and against torch's own chain, one thread.

Encoding is compared with ``numpy.copyto`` of its input, decoding with ``ndarray.fill`` of its
output: nothing that reads, or writes, a feature map can be much faster. Reported is the fastest
round, relative to that reference, measured in the same run on the same data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import oracle
import pytest
import torch
from torch.nn import functional

from scissionlite import _core
from scissionlite.transfer_layer import Packed, Quantization, TransferSpec, decode, encode

Float32 = npt.NDArray[np.float32]
Shape = tuple[int, int, int, int]

# Where ResNet-50's and MobileNet's slicing points are.
SHAPES = [(1, 64, 112, 112), (1, 256, 56, 56), (1, 64, 56, 56), (1, 512, 28, 28), (1, 1024, 14, 14)]
PAPER, INT8 = TransferSpec.paper(), TransferSpec()

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s[1:])))
each_isa = pytest.mark.parametrize("isa", _core.available_isas())
each_format = pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"]
)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


def feature_map(shape: Shape) -> Float32:
    """Half zeros, as after a ReLU."""
    return np.maximum(np.random.default_rng(0).normal(0, 1, shape).astype(np.float32), 0)


def quantization_of(x: Float32) -> Quantization:
    return Quantization.from_range(0, float(x.max()))


def measure(
    record: Any, group: str, shape: Shape, what: str, run: Callable[[], object], **info: object
) -> None:
    record.group = f"{group} {'x'.join(map(str, shape[1:]))}"
    record.extra_info.update(what=what, **info)
    record(run)


# --- encode


@each_shape
def test_encode_copyto(record: Any, shape: Shape) -> None:
    x = feature_map(shape)
    out = np.empty_like(x)
    measure(
        record, "encode", shape, "numpy.copyto", lambda: np.copyto(out, x), reference=True, isa="-"
    )


@each_shape
@each_isa
@pytest.mark.parametrize("spec", [INT8, PAPER], ids=lambda spec: spec.label)
def test_encode_kernel(record: Any, shape: Shape, isa: str, spec: TransferSpec) -> None:
    x = feature_map(shape)
    q = quantization_of(x)
    planes = x[0]
    expected = oracle.maxpool2x2(planes)
    if spec == INT8:
        out: npt.NDArray[Any] = np.empty(expected.shape, np.int8)
        expected_bytes = oracle.quantize(expected, q.scale, q.zero_point).tobytes()

        def run() -> None:
            _core.maxpool2x2_quantize_f32_i8(planes, out, q.scale, q.zero_point, isa=isa)
    else:
        out = np.empty(expected.shape, np.float32)
        expected_bytes = expected.tobytes()

        def run() -> None:
            _core.maxpool2x2_f32_f32(planes, out, isa=isa)

    run()
    assert out.tobytes() == expected_bytes
    measure(record, "encode", shape, f"{spec.label}, kernel {isa}", run, isa=isa)


@each_shape
def test_encode_codec(record: Any, shape: Shape) -> None:
    x = feature_map(shape)
    q = quantization_of(x)
    out = np.empty(INT8.packed_nbytes(shape), np.uint8)
    packed = encode(x, INT8, q, out)
    assert (
        out.tobytes() == oracle.quantize(oracle.maxpool2x2(x[0]), q.scale, q.zero_point).tobytes()
    )
    isa = _core.isa()
    what = f"{INT8.label}, encode() {isa}"
    measure(record, "encode", shape, what, lambda: encode(x, INT8, q, out), isa=isa)
    assert packed.nbytes * 16 == x.nbytes


@each_shape
@each_format
def test_encode_torch(record: Any, shape: Shape, memory_format: torch.memory_format) -> None:
    x = feature_map(shape)
    q = quantization_of(x)
    tensor = torch.from_numpy(x).contiguous(memory_format=memory_format)

    def run() -> torch.Tensor:
        t = functional.max_pool2d(tensor, 2, ceil_mode=True).div_(q.scale)
        return t.round_().add_(q.zero_point).clamp_(-128, 127).to(torch.int8)

    expected = oracle.quantize(oracle.maxpool2x2(x[0]), q.scale, q.zero_point)
    # A division instead of a product with the reciprocal may move a tie by one step.
    assert np.abs(run()[0].numpy().astype(int) - expected).max() <= 1
    layout = "NCHW" if memory_format is torch.contiguous_format else "channels_last"
    measure(record, "encode", shape, f"{INT8.label}, torch {layout}", run, isa="torch")


# --- decode


@each_shape
def test_decode_fill(record: Any, shape: Shape) -> None:
    out = np.empty(shape, np.float32)
    measure(record, "decode", shape, "ndarray.fill", lambda: out.fill(1.5), reference=True, isa="-")


def packed_of(shape: Shape, spec: TransferSpec) -> Packed:
    x = feature_map(shape)
    return encode(x, spec, quantization_of(x) if spec == INT8 else None)


@each_shape
@each_isa
@pytest.mark.parametrize("spec", [INT8, PAPER], ids=lambda spec: spec.label)
def test_decode_kernel(record: Any, shape: Shape, isa: str, spec: TransferSpec) -> None:
    packed = packed_of(shape, spec)
    payload = np.frombuffer(packed.payload, np.int8 if spec == INT8 else np.float32)
    pooled: npt.NDArray[Any] = payload.reshape(spec.packed_shape(shape)[1:])
    out = np.empty(shape[1:], np.float32)
    q = packed.quantization
    if q is not None:
        values = oracle.dequantize(pooled, q.scale, q.zero_point)
        scale, zero_point = q.scale, q.zero_point

        def run() -> None:
            _core.dequantize_upsample2x_i8_f32(pooled, out, scale, zero_point, isa=isa)
    else:
        values = pooled

        def run() -> None:
            _core.upsample2x_f32_f32(pooled, out, isa=isa)

    run()
    assert out.tobytes() == oracle.upsample2x(values, *shape[2:]).tobytes()
    measure(record, "decode", shape, f"{spec.label}, kernel {isa}", run, isa=isa)


@each_shape
def test_decode_codec(record: Any, shape: Shape) -> None:
    packed = packed_of(shape, INT8)
    out = np.empty(shape, np.float32)
    assert np.array_equal(decode(packed, out), decode(packed))
    isa = _core.isa()
    what = f"{INT8.label}, decode() {isa}"
    measure(record, "decode", shape, what, lambda: decode(packed, out), isa=isa)


@each_shape
@each_format
def test_decode_torch(record: Any, shape: Shape, memory_format: torch.memory_format) -> None:
    packed = packed_of(shape, INT8)
    q = packed.quantization
    assert q is not None
    pooled = np.frombuffer(packed.payload, np.int8).reshape(INT8.packed_shape(shape))
    tensor = torch.from_numpy(pooled).contiguous(memory_format=memory_format)

    def run() -> torch.Tensor:
        t = tensor.to(torch.float32).sub_(q.zero_point).mul_(q.scale)
        return functional.interpolate(t, scale_factor=2, mode="nearest")

    assert np.array_equal(run().numpy(), decode(packed))
    layout = "NCHW" if memory_format is torch.contiguous_format else "channels_last"
    measure(record, "decode", shape, f"{INT8.label}, torch {layout}", run, isa="torch")
