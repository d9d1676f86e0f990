"""Cuts where several tensors cross, and batches, from the Preprocessor to the answer."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from networks import Detector, UNet
from peers import LOCAL, LONG, Frames, HandmadeDevice, Sockets, device_of, payload_for
from torch import nn
from torch.utils.data import Dataset

import scissionlite as sl
from scissionlite.errors import CaptureError, PrepareError
from scissionlite.graph.analysis import flat
from scissionlite.offloader import EdgeServer
from scissionlite.offloader.device.side import DeviceSide
from scissionlite.offloader.edge.side import EdgeSide
from scissionlite.offloader.stopwatch import Stopwatch
from scissionlite.offloader.wire import control
from scissionlite.preprocessor.data import Sample, input_batches
from scissionlite.preprocessor.inserter import insert
from scissionlite.preprocessor.recipe import Recipe

SHAPE = (3, 13, 18)
SPEC = sl.TransferSpec(granularity="channel", entropy="ans")


class Noise(Dataset[Sample]):
    """Inputs of some shapes, all different, with a label that nothing looks at."""

    def __init__(self, *shapes: tuple[int, ...]) -> None:
        self.shapes = shapes

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Sample:
        generator = torch.Generator().manual_seed(index)
        inputs = tuple(torch.randn(shape, generator=generator) for shape in self.shapes)
        return (inputs[0] if len(inputs) == 1 else inputs), 0


@pytest.fixture(scope="module")
def unet() -> sl.Graph:
    torch.manual_seed(0)
    return sl.capture(UNet(), torch.zeros(1, *SHAPE), name="unet", max_tensors=5)


def widest(graph: sl.Graph) -> sl.SlicingPoint:
    return max(graph.slicing_points, key=lambda point: len(point.crossing))


@pytest.fixture(scope="module")
def bundle(unet: sl.Graph, tmp_path_factory: pytest.TempPathFactory) -> sl.Bundle:
    return sl.prepare(
        unet,
        sl.Plan(kind="split", slicing_point=widest(unet).name, spec=SPEC),
        train=Noise(SHAPE),
        recipe=Recipe(epochs=0),
        out=tmp_path_factory.mktemp("unet") / "bundle",
        max_batch=3,
    )


def test_each_tensor_has_its_own_transfer_layer(bundle: sl.Bundle, unet: sl.Graph) -> None:
    manifest = sl.Bundle.load(bundle.path).manifest
    assert manifest.transfer == SPEC
    assert [t.shape for t in manifest.crossing] == [t.shape for t in widest(unet).crossing]
    assert len(manifest.crossing) == 5
    for tensor in manifest.crossing:
        assert tensor.quantization is not None
        if len(tensor.shape) == 4:
            assert tensor.transfer == SPEC
            assert tensor.quantization.channels == tensor.shape[1]
        else:  # pooled over height and width already: nothing to pool, no channels
            assert tensor.shape == (1, 8)
            plain = msgspec.structs.replace(SPEC, pool=1, granularity="tensor")
            assert tensor.transfer == plain
    assert {len(tensor.shape) for tensor in manifest.crossing} == {2, 4}


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_several_tensors_cross_the_wire_bit_for_bit(bundle: sl.Bundle, batch: int) -> None:
    x = np.random.default_rng(batch).normal(size=(batch, *SHAPE)).astype(np.float32)
    headers, payloads = DeviceSide(bundle).make_request((x,), Stopwatch())
    expected = EdgeSide(bundle).answer(headers, [memoryview(p) for p in payloads], Stopwatch())
    with EdgeServer(bundle, LOCAL) as edge, device_of(edge, bundle) as device:
        answer = device.submit(x).result(LONG)
        assert answer.where == "edge"
        assert answer.bytes_sent == sum(map(len, payloads))
        assert set(answer.output) == {"mask", "coarse"}
        for actual, expected_output in zip(answer.output.values(), expected, strict=True):
            np.testing.assert_array_equal(actual, expected_output)
        assert answer.output["mask"].shape == (batch, 4, *SHAPE[1:])


def test_a_batch_is_answered_as_its_parts(bundle: sl.Bundle) -> None:
    x = np.random.default_rng(5).normal(size=(3, *SHAPE)).astype(np.float32)
    with EdgeServer(bundle, LOCAL) as edge, device_of(edge, bundle, fallback="local") as device:
        together = device.infer(x)
        apart = [device.infer(x[i : i + 1]) for i in range(3)]
        for name, array in together.items():
            parts = np.concatenate([answer[name] for answer in apart])
            np.testing.assert_allclose(array, parts, rtol=1e-4, atol=1e-5)
        for wrong in (x[:0], np.concatenate([x, x]), x[0]):
            with pytest.raises(ValueError, match=r"batch 1 to 3"):
                device.infer(wrong)


def test_the_local_fallback_answers_in_the_same_form(bundle: sl.Bundle) -> None:
    x = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    with sl.Device(bundle, fallback="local") as device:
        output = device.infer(x)
    assert {name: array.shape for name, array in output.items()} == {
        "mask": (2, 4, *SHAPE[1:]),
        "coarse": (2, 8),
    }


def test_requests_with_other_tensors_than_the_manifests_are_refused(
    bundle: sl.Bundle, sockets: Sockets
) -> None:
    x = np.zeros((1, *SHAPE), np.float32)
    headers, payloads = DeviceSide(bundle).make_request((x,), Stopwatch())
    three = np.zeros((3, *SHAPE), np.float32)
    batches, many = DeviceSide(bundle).make_request((three,), Stopwatch())
    with EdgeServer(bundle, LOCAL) as edge, device_of(edge, bundle) as good:
        device = HandmadeDevice(sockets, bundle, edge.endpoint, edge.control_endpoint)
        device.hello()
        wrong = [
            (headers[:3], payloads[:3]),
            (headers[::-1], payloads[::-1]),
            ((*headers[:4], batches[4]), [*payloads[:4], many[4]]),
        ]
        for number, (tensors, parts) in enumerate(wrong):
            device.send(*device.request_of(number, tensors, parts))
            failed, _ = device.receive()
            assert isinstance(failed, control.Failed)
            assert failed.code == "malformed"
            assert failed.message.startswith("TensorMismatchError")
        assert edge.stats().rejected == {"TensorMismatchError": 3}
        assert set(good.infer(x)) == {"mask", "coarse"}


@pytest.mark.parametrize("runtime", ["torchscript", "onnx"])
def test_several_inputs_and_outputs(runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = Detector().eval()
    example = {"image": torch.zeros(1, 3, 24, 24), "vector": torch.zeros(1, 5)}
    graph = sl.capture(model, example, max_tensors=4)
    made = sl.prepare(
        graph,
        sl.Plan(kind="split", slicing_point="body.1", spec=sl.TransferSpec.float32_split()),
        out=tmp_path / "bundle",
        runtimes=(runtime,),
        max_batch=2,
    )
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 3, 24, 24)).astype(np.float32)
    vector = rng.normal(size=(2, 5)).astype(np.float32)
    inputs = {"image": torch.from_numpy(image), "vector": torch.from_numpy(vector)}
    with torch.inference_mode():
        expected = [tensor.numpy() for tensor in model(inputs)]
    with EdgeServer(made, LOCAL) as edge, device_of(edge, made) as device:
        for x in ((image, vector), {"inputs.image": image, "inputs.vector": vector}):
            answer = device.infer(x)
            assert isinstance(answer, tuple)
            for actual, expected_output in zip(answer, expected, strict=True):
                np.testing.assert_allclose(actual, expected_output, rtol=1e-3, atol=1e-4)
        wrong: list[Any] = [image, (image,), (vector, image), (image, vector[:1]), {"image": image}]
        for x in wrong:
            with pytest.raises(ValueError, match=r"inputs\.image float32 of shape"):
                device.infer(x)


def test_every_transfer_layer_of_a_cut_is_trained_with(unet: sl.Graph) -> None:
    loader = torch.utils.data.DataLoader(Noise(SHAPE), 4)
    network = insert(
        unet,
        widest(unet),
        SPEC,
        calibration=input_batches(loader),
        recipe=Recipe(train_device_slice=True),
    )
    assert len(network.layers) == 5
    sum(answer.sum() for answer in flat(network(torch.randn(2, *SHAPE)))).backward()
    for part in (network.device_slice, network.edge_slice):
        assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in part.parameters())


def test_a_batch_needs_a_network_that_takes_it(unet: sl.Graph, tmp_path: Path) -> None:
    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.relu().view(1, -1) * 2

    graph = sl.capture(Fixed(), torch.randn(1, 4))
    with pytest.raises(PrepareError, match="does not run on other batch sizes"):
        sl.prepare(graph, sl.Plan(kind="local"), out=tmp_path / "b", max_batch=2)
    with pytest.raises(PrepareError, match="max_batch must be 1 to"):
        sl.prepare(unet, sl.Plan(kind="local"), out=tmp_path / "b", max_batch=0)
    plan = sl.Plan(kind="split", slicing_point="nowhere", spec=SPEC)
    with pytest.raises(CaptureError, match="has no slicing point"):
        sl.prepare(unet, plan, out=tmp_path / "b", max_batch=2)


@pytest.mark.parametrize("image_format", ["uint8", "png"])
def test_frames_reach_the_edge_without_loss(
    make_bundle: Any, frames: Frames, image_format: str
) -> None:
    bundle = make_bundle("image", image_format=image_format)
    with sl.Device(bundle, fallback="local") as device:
        expected = [device.infer(frame) for frame in frames[:3]]
    with EdgeServer(bundle, LOCAL) as edge, device_of(edge, bundle) as device:
        for frame, output in zip(frames, expected, strict=False):
            answer = device.submit(frame).result(LONG)
            np.testing.assert_array_equal(answer.output, output)
            assert answer.bytes_sent == len(payload_for(bundle, frame)[1])
            assert image_format == "png" or answer.bytes_sent == frame.nbytes


class _WritesToItsInput(nn.Module):
    """Writes to its input, and answers it beside the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.clamp_(0, 1)
        return self.last(self.first(x)), x


@pytest.mark.parametrize("where", ["edge", "local"])
def test_the_callers_array_is_its_own(where: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = _WritesToItsInput().eval()
    plan = sl.Plan(kind="local")
    if where == "edge":
        spec = sl.TransferSpec(pool=1, dtype="float32")
        plan = sl.Plan(kind="split", slicing_point="first", spec=spec)
    graph = sl.capture(model, torch.zeros(1, 6), max_tensors=2)
    bundle = sl.prepare(graph, plan, out=tmp_path / "bundle")
    whole = np.random.default_rng(0).normal(size=(1, 12)).astype(np.float32)
    frozen = whole[:, :6].copy()
    frozen.flags.writeable = False
    with contextlib.ExitStack() as stack:
        connect = control_endpoint = None
        if where == "edge":
            edge = stack.enter_context(sl.EdgeServer(bundle, "tcp://127.0.0.1:*", threads=1))
            connect, control_endpoint = edge.endpoint, edge.control_endpoint
        device = stack.enter_context(
            sl.Device(bundle, connect, control=control_endpoint, deadline=60)
        )
        for x in (whole[:, :6], whole[:, ::-2], frozen):
            kept = x.copy()
            with torch.no_grad():
                expected = [t.numpy() for t in model(torch.from_numpy(kept.copy()))]
            future = device.submit(x)
            np.testing.assert_array_equal(x, kept)
            if x.flags.writeable:
                x[...] = 9  # the caller's next frame
            answer = future.result()
            assert answer.where == where
            for output, correct in zip(answer.output, expected, strict=True):
                np.testing.assert_allclose(output, correct, atol=1e-5)
            if x.flags.writeable:
                x[...] = kept
