"""The decoder of torch operations answers as the core does, bit for bit.

On the CPU, and on a GPU whenever there is one: the code is the same.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from bundles import Toy, write_bundle
from hypothesis import given
from hypothesis import strategies as st
from specs import SEEDS, SHAPES, feature_map, quantization_for, specs
from torch import nn

import scissionlite as sl
from scissionlite.bundle import Bundle
from scissionlite.errors import CodecError, RuntimeUnavailableError
from scissionlite.offloader.device.side import DeviceSide
from scissionlite.offloader.edge.gpu import GpuDecoder
from scissionlite.offloader.edge.metrics import BundleMetrics, Traffic
from scissionlite.offloader.edge.schedule import Job
from scissionlite.offloader.edge.served import Served
from scissionlite.offloader.edge.side import EdgeSide
from scissionlite.offloader.stopwatch import Stopwatch
from scissionlite.runtimes import load_slice
from scissionlite.transfer_layer.torch_decoder import TorchDecoder

PROCESSORS = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def bits(array: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Zeros of different signs are different."""
    return np.ascontiguousarray(array).view(np.uint32)


@pytest.mark.parametrize("processor", PROCESSORS)
@given(
    spec=specs(),
    shape=SHAPES,
    seed=SEEDS,
    spread=st.floats(1e-3, 1e3),
    low=st.floats(-1e3, 0),
    high=st.floats(0, 1e3),
)
def test_the_decoder_is_bit_identical_to_the_core(
    processor: str,
    spec: sl.TransferSpec,
    shape: tuple[int, ...],
    seed: int,
    spread: float,
    low: float,
    high: float,
) -> None:
    quantization = quantization_for(spec, shape[-3], low, high)
    packed = sl.encode(feature_map(shape, seed, spread), spec, quantization)
    decoder = TorchDecoder(spec, quantization, processor)
    decoded = decoder(packed.payload, shape, packed.entropy_coded)
    assert decoded.is_contiguous()
    assert decoded.device.type == processor
    np.testing.assert_array_equal(bits(decoded.cpu().numpy()), bits(sl.decode(packed)))


def test_what_the_core_refuses_is_refused() -> None:
    spec = sl.TransferSpec()
    packed = sl.encode(feature_map((1, 2, 6, 6)), spec)
    decoder = TorchDecoder(spec, packed.quantization, "cpu")
    with pytest.raises(CodecError, match="exactly 18"):
        decoder(bytes(packed.payload)[:-1], packed.shape)
    with pytest.raises(CodecError, match="is not"):
        decoder(packed.payload, packed.shape, entropy_coded=True)
    with pytest.raises(CodecError, match="does not go with"):
        TorchDecoder(spec, None, "cpu")
    zstd = sl.TransferSpec(entropy="zstd")
    with pytest.raises(CodecError):
        TorchDecoder(zstd, packed.quantization, "cpu")(b"not zstd", packed.shape, True)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    shape = (1, 4, 8, 8)
    network = nn.Sequential(nn.Conv2d(4, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 5))
    return write_bundle(
        Toy("for a GPU", nn.ReLU(), network, shape, shape, (1, 5)),
        tmp_path_factory.mktemp("gpu"),
        transfer=sl.TransferSpec(dtype="int4", entropy="ans"),
        quantization=sl.Quantization(0.1, 0),
        max_batch=4,
    )


def jobs_of(bundle: Bundle) -> list[Job]:
    side = DeviceSide(bundle)
    jobs = []
    for number, batch in enumerate([1, 2, 1]):
        x = feature_map((batch, 4, 8, 8), number)
        tensors, payloads = side.make_request((x,), Stopwatch())
        views = [memoryview(payload) for payload in payloads]
        served = Served(EdgeSide(bundle), BundleMetrics(bundle, Traffic()))
        device_id = b"\1" * 16
        jobs.append(Job(served, device_id, number, tensors, views, batch, 0.0, math.inf))
    return jobs


@pytest.mark.parametrize("processor", PROCESSORS)
def test_an_edge_answers_the_same_where_torch_decodes(bundle: Bundle, processor: str) -> None:
    side, other = EdgeSide(bundle), EdgeSide(bundle, processor=processor)
    gpu = GpuDecoder(processor)
    other._decode_tensor, other._join = gpu.decode, gpu.join  # on the CPU, too
    jobs = jobs_of(bundle)
    for several in (jobs, jobs[1:2]):
        (expected_run,), (actual_run,) = side.finish(several), other.finish(several)
        for expected, actual in zip(expected_run, actual_run, strict=True):
            assert actual.reason == ""
            for one, two in zip(expected.frames[1:], actual.frames[1:], strict=True):
                first, second = (np.frombuffer(frame, np.float32) for frame in (one, two))
                np.testing.assert_allclose(second, first, rtol=1e-5, atol=1e-6)
                if processor == "cpu":
                    assert bytes(one) == bytes(two)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_message_says_what_to_do(bundle: Bundle) -> None:
    with pytest.raises(RuntimeUnavailableError, match=r"no GPU can be used.*--processor cpu"):
        EdgeSide(bundle, processor="cuda")
    with pytest.raises(RuntimeUnavailableError, match="onnx runs slices on the CPU"):
        load_slice(Path("slice.onnx"), "onnx", processor="cuda")
