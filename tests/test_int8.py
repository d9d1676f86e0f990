"""Device slices in int8: written, trained with, verified, deployed, and planned with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx as onnx_format
import pytest
import torch
from conftest import TEXTURES
from processes import run_here
from profiles import written
from torch import nn
from torch.utils.data import TensorDataset

import scissionlite as sl
from scissionlite.errors import PlanError, PrepareError
from scissionlite.manifest import Precision
from scissionlite.preprocessor import inserter
from scissionlite.preprocessor.batches import make_batch
from scissionlite.preprocessor.data import ImageFolder
from scissionlite.preprocessor.quantized import Int8Slice, Int8Slices
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.preprocessor.teacher import Teacher
from scissionlite.runtimes import load_slice, onnx
from scissionlite.scissiontl.plans import MeasuredAccuracy
from scissionlite.scissiontl.profile import SliceProfile
from scissionlite.transfer_layer.names import spec_named

OURS = sl.Plan(kind="split", slicing_point="1", spec=sl.TransferSpec(), device_precision="int8")
SPLIT = sl.Plan(kind="split", slicing_point="1", spec=sl.TransferSpec())


@pytest.fixture(scope="module")
def bundle(
    small_graph: sl.Graph, textures: Path, tmp_path_factory: pytest.TempPathFactory
) -> sl.Bundle:
    """The plan in int8, and a variant that cuts later."""
    return sl.prepare(
        small_graph,
        OURS,
        train=textures / "train",
        validate=textures / "test",
        out=tmp_path_factory.mktemp("out") / "bundle",
        preprocessing=TEXTURES,
        recipe=Recipe(epochs=4, batch_size=16, learning_rate=3e-3),
        variants=[sl.Plan(kind="split", slicing_point="2", spec=sl.TransferSpec(pool=1))],
    )


def _tiny(path: Path, plan: sl.Plan, model: nn.Module | None = None, **more: object) -> sl.Bundle:
    """A bundle of an untrained network."""
    torch.manual_seed(0)
    model = model or nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Flatten()
    )
    data = TensorDataset(torch.rand(6, 3, 8, 8), torch.zeros(6))
    graph = sl.capture(model.eval(), torch.zeros(1, 3, 8, 8), name="tiny")
    arguments = {"unlabelled": data, "recipe": Recipe(epochs=0), "device_precision": "int8"} | more
    return sl.prepare(graph, plan, out=path, **arguments)  # type: ignore[arg-type]


def _weight_types(file: Path) -> set[str]:
    """The types of an ONNX file's tensors with two dimensions or more."""
    tensors = onnx_format.load(file).graph.initializer
    return {onnx_format.TensorProto.DataType.Name(t.data_type) for t in tensors if len(t.dims) > 1}


def test_the_devices_slices_are_int8_and_the_edges_are_not(bundle: sl.Bundle) -> None:
    manifest = sl.Bundle.load(bundle.path).manifest
    assert manifest.device_precision == "int8"
    assert set(manifest.slices) == {"device", "device-2", "network", "edge", "edge-2"}
    for role, (file,) in manifest.slices.items():
        of_edge = role.startswith("edge")
        assert (file.runtime, file.precision) == (
            ("torchscript", "float32") if of_edge else ("onnx", "int8")
        )
        if not of_edge:
            assert _weight_types(bundle.slice_path(role)) == {"INT8"}


def test_accuracy_holds_in_int8_and_so_does_the_fallbacks(bundle: sl.Bundle) -> None:
    manifest = bundle.manifest
    for accuracy in (manifest.accuracy, manifest.variants[0].accuracy, manifest.local_accuracy):
        assert accuracy is not None
        assert accuracy.before > 0.7  # chance is 0.17
        assert accuracy.after >= accuracy.before - 0.07  # three images of 48
    own = MeasuredAccuracy.of(
        bundle, sl.profile(_graph_of(bundle), repetitions=1, slices=0, int8=False)
    )
    assert [(each.kind, each.device_precision) for each in own] == [
        ("local", "float32"),
        ("local", "int8"),
        ("split", "int8"),
    ]


def _graph_of(bundle: sl.Bundle) -> sl.Graph:
    from networks import small_network

    size = bundle.manifest.inputs[0].shape
    return sl.capture(small_network().eval(), torch.zeros(size), name="small")


def test_a_device_and_its_fallback_answer_in_int8(bundle: sl.Bundle, textures: Path) -> None:
    """Over real sockets, and without an edge: both as the slices themselves."""
    data = ImageFolder(textures / "test", TEXTURES)
    frames = [data.frame(i) for i in range(0, len(data), 6)]
    inputs = [TEXTURES.tensor(frame) for frame in frames]
    device = load_slice(bundle.slice_path("device"), "onnx")
    edge = load_slice(bundle.slice_path("edge"), "torchscript")
    local = load_slice(bundle.slice_path("network"), "onnx")
    (tensor,) = bundle.manifest.crossing
    with (
        sl.EdgeServer(bundle, bind="tcp://127.0.0.1:*") as server,
        sl.Device(
            bundle, connect=server.endpoint, control=server.control_endpoint, adapt=False
        ) as connected,
    ):
        for frame, x in zip(frames, inputs, strict=True):
            packed = sl.encode(device(x)[0], tensor.transfer, tensor.quantization)
            (expected,) = edge(sl.decode(packed))
            np.testing.assert_allclose(connected.infer(frame), expected, atol=1e-4)
    with sl.Device(bundle, fallback="local") as alone:
        for frame, x in zip(frames, inputs, strict=True):
            np.testing.assert_allclose(alone.infer(frame), local(x)[0], atol=1e-5)


def test_the_edge_slice_learns_from_what_the_int8_slice_really_makes(
    small_graph: sl.Graph, textures: Path, tmp_path: Path
) -> None:
    data = ImageFolder(textures / "train", TEXTURES)
    slices = Int8Slices(small_graph, data, Recipe(), tmp_path, dynamic_batch=False)
    cut = small_graph.point("1").index
    slices.write_device_slices([cut], ["device"])
    x = torch.stack([torch.as_tensor(data[i][0]) for i in (0, 50, 100)])
    network = inserter.insert(
        small_graph,
        "1",
        sl.TransferSpec(),
        calibration=[(x,)],
        int8_device_slice=slices.device_slice(cut),
    )
    teacher = Teacher(small_graph, "1").eval()
    batch = make_batch(network, teacher, [x], None)
    device = load_slice(tmp_path / "device.onnx", "onnx")
    expected = np.concatenate([device(each[None].numpy())[0] for each in x])
    np.testing.assert_array_equal(batch.features[0].numpy(), expected)
    with torch.no_grad():
        exact = small_graph.split("1")[0](x)
        torch.testing.assert_close(batch.teacher_outputs[0], small_graph.module(x))
    torch.testing.assert_close(batch.teacher_features[0], exact)
    assert not torch.equal(batch.features[0], exact)
    assert (batch.features[0] - exact).abs().max() < 0.05 * exact.abs().max()


def test_a_learned_transfer_layer_stays_float32_behind_an_int8_slice(tmp_path: Path) -> None:
    plan = sl.Plan(
        kind="split",
        slicing_point="2",
        spec=spec_named("learned-int8-reduction2"),
    )
    made = _tiny(tmp_path / "b", plan, recipe=Recipe(epochs=1, batch_size=2, encoder_share=10))
    assert _weight_types(made.slice_path("device")) == {"INT8", "FLOAT"}
    (features,) = load_slice(made.slice_path("device"), "onnx")(np.ones((1, 3, 8, 8), np.float32))
    assert features.shape == made.manifest.crossing[0].shape == (1, 4, 4, 4)


@pytest.mark.long
@pytest.mark.parametrize("runtimes", [("onnx",), ("torchscript", "onnx")])
def test_other_batch_sizes_and_runtimes(tmp_path: Path, runtimes: tuple[str, ...]) -> None:
    made = _tiny(tmp_path / "b", SPLIT, max_batch=3, runtimes=runtimes)
    assert made.runtimes("edge") == runtimes
    assert made.runtimes("device") == ("onnx",)
    device = load_slice(made.slice_path("device"), "onnx")
    x = np.random.default_rng(0).random((3, 3, 8, 8), np.float32)
    alone = np.concatenate([device(x[i : i + 1])[0] for i in range(3)])
    np.testing.assert_allclose(device(x)[0], alone, atol=1e-6)


def test_a_slice_of_two_inputs_runs_any_number(tmp_path: Path) -> None:
    """As a module of the network in training, whose last batch is smaller."""
    made = _tiny(tmp_path / "b", sl.Plan(kind="local"), max_batch=2)
    x = torch.rand(5, 3, 8, 8)
    whole, pairs = (Int8Slice(made.slice_path("network"), batch)(x) for batch in (5, 2))
    torch.testing.assert_close(pairs, whole)


def test_int8_does_not_saturate_on_a_processor_without_vnni(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large weights and inputs: the option for such processors changes nothing but the kernels."""
    model = nn.Sequential(nn.Conv2d(16, 16, 3, bias=False), nn.Flatten())
    nn.init.uniform_(next(model.parameters()), 0.9, 1.0)
    data = TensorDataset(torch.rand(8, 16, 8, 8), torch.zeros(8))
    graph = sl.capture(model.eval(), torch.zeros(1, 16, 8, 8))
    made = sl.prepare(
        graph,
        sl.Plan(kind="local", device_precision="int8"),
        unlabelled=data,
        out=tmp_path / "b",
    )
    x = np.ones((1, 16, 8, 8), np.float32)
    (expected,) = onnx.load(made.slice_path("network"), literal=True)(x)
    # Without the option, a processor that has no VNNI saturates: on it, both are the same.
    for saturates in (onnx._int8_saturates(), True):
        monkeypatch.setattr(onnx, "_int8_saturates", lambda value=saturates: value)
        (answer,) = onnx.load(made.slice_path("network"))(x)
        np.testing.assert_allclose(answer, expected, rtol=0.01)


class _NoProduct(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x).flatten(1)


class _NotInOnnx(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = torch.special.bessel_j0(self.conv(x)).flatten(1)
        return answer


@pytest.mark.parametrize(
    ("plan", "more", "message"),
    [
        (SPLIT, {"recipe": Recipe(train_device_slice=True)}, "does not learn"),
        (SPLIT, {"unlabelled": None}, "needs training data, for the ranges"),
        (sl.Plan(kind="local"), {"model": _NoProduct()}, "network slice .* faster in int8"),
        (sl.Plan(kind="local"), {"model": _NotInOnnx()}, "cannot be made int8: ONNX cannot take"),
    ],
)
def test_what_cannot_be_int8_is_said(
    plan: sl.Plan, more: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(PrepareError, match=message):
        _tiny(tmp_path / "b", plan, **more)  # type: ignore[arg-type]
    assert not (tmp_path / "b").exists()


def test_an_image_plan_has_nothing_to_be_int8(tmp_path: Path) -> None:
    plan = sl.Plan(kind="image", image_format="png")
    with pytest.raises(PlanError, match="computes nothing that could be in int8"):
        _tiny(tmp_path / "b", plan)


def _profiles() -> tuple[sl.Profile, sl.Profile]:
    """A device that is twice as fast in int8 at its first slicing point, three times as a whole."""
    device = written(
        "pi", slices=(SliceProfile(0, 0.010, 0.050, 0.005),), network_latency_int8=0.020
    )
    return device, written("edge", (0.001, 0.002, 0.003))


def test_int8_is_planned_with_wherever_it_was_measured() -> None:
    device, edge = _profiles()
    plans = sl.plan(device, edge, sl.Link(0.001, 1e8))
    local = {p.device_precision: p for p in plans if p.kind == "local"}
    assert local["int8"].predicted.device_time == pytest.approx(0.022)
    assert local["float32"].predicted.device_time == pytest.approx(0.062)
    assert local["int8"].label == "nothing (local, int8)"
    assert local["int8"].predicted.device_memory == local["float32"].predicted.device_memory // 4
    times: dict[tuple[str | None, Precision], float] = {
        (p.slicing_point, p.device_precision): p.predicted.device_time
        for p in plans
        if p.spec == sl.TransferSpec()
    }
    assert times["b0", "int8"] == pytest.approx(0.002 + 0.005)
    # Two fifths of what the whole network takes more than the slice up to b0.
    assert times["b1", "int8"] == pytest.approx(0.002 + 0.005 + 0.015 * 2 / 5)
    assert plans[0].device_precision == "int8"
    assert plans[0].place.endswith(", int8")
    only = sl.plan(
        device,
        edge,
        sl.Link(0.001, 1e8),
        constraints=sl.Constraints(device_precision="float32"),
    )
    assert {p.device_precision for p in only} == {"float32"}
    assert only == [p for p in plans if p.device_precision == "float32"]


def test_an_accuracy_belongs_to_its_precision() -> None:
    device, edge = _profiles()
    known = [
        MeasuredAccuracy(kind="local", accuracy=0.99),
        MeasuredAccuracy(kind="local", device_precision="int8", accuracy=0.98),
    ]
    plans = sl.plan(device, edge, sl.Link(0.001, 1e8), accuracies=known)
    lossless = sl.TransferSpec.float32_split()
    found = {
        (p.kind, p.device_precision): p.accuracy
        for p in plans
        if p.kind == "local" or p.spec == lossless
    }
    # A float32 split behind an int8 slice does not answer as the uncut network.
    assert found == {
        ("local", "float32"): 0.99,
        ("local", "int8"): 0.98,
        ("split", "float32"): 0.99,
        ("split", "int8"): None,
    }


@pytest.mark.long
def test_a_profile_measures_int8_where_it_can() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())
    graph = sl.capture(model.eval(), torch.zeros(1, 3, 16, 16))
    found = sl.profile(graph, repetitions=2, warm_up=0, slices=1)
    assert found.network_latency_int8 is not None
    assert [each.device_int8 is not None for each in found.slices] == [True]
    again = sl.Profile.parse(found.json())
    assert again == found
    without = sl.profile(graph, repetitions=1, warm_up=0, slices=0, int8=False)
    assert without.network_latency_int8 is None
    cannot = sl.capture(_NoProduct(), torch.zeros(1, 3, 4, 4))
    assert sl.profile(cannot, repetitions=1, slices=0).network_latency_int8 is None
    with pytest.raises(sl.ScissionLiteError, match="the network cannot be made int8: nothing"):
        sl.profile(cannot, repetitions=1, slices=0, int8=True)


def test_the_commands_show_and_follow_int8(bundle: sl.Bundle, tmp_path: Path) -> None:
    device, edge = _profiles()
    device.save(tmp_path / "pi.json")
    edge.save(tmp_path / "edge.json")
    # 1 ms and a slow link: a frame in float32 takes 62 ms on the device.
    table = printed("plan", tmp_path / "pi.json", tmp_path / "edge.json", "--link", "1Mbit/1ms")
    assert "nothing (local, int8)" in table
    assert "nothing (local)" in table
    shown = printed("inspect", bundle.path)
    assert "device.onnx, onnx, int8" in shown
    assert "edge.pt, torchscript, float32" in shown
    assert "local fallback" in shown
    listed = json.loads(printed("inspect", bundle.path, "--json"))
    assert listed["manifest"]["slices"]["device"][0]["precision"] == "int8"


def printed(*arguments: object) -> str:
    done = run_here(*arguments, COLUMNS="200")
    assert done.exit_code == 0, done.output
    return done.output
