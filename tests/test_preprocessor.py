"""Inserter, Trainer and Splitter, from a trained network to a bundle that answers as it did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TEXTURES
from networks import small_network
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import scissionlite as sl
from scissionlite.errors import BundleError, PrepareError, RuntimeUnavailableError
from scissionlite.preprocessor import inserter, splitter, trainer
from scissionlite.preprocessor.choosing import choose
from scissionlite.preprocessor.data import ImageFolder, input_batches
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.preprocessor.splitter import AccuracyWarning
from scissionlite.runtimes import load_slice
from scissionlite.runtimes.export import load_exported

SIZE = TEXTURES.size[0]
CALIBRATE = Recipe(epochs=0)
OURS = sl.Plan(kind="split", slicing_point="1", spec=sl.TransferSpec())


@pytest.fixture(scope="module")
def bundle(
    small_graph: sl.Graph, textures: Path, tmp_path_factory: pytest.TempPathFactory
) -> sl.Bundle:
    return sl.prepare(
        small_graph,
        OURS,
        train=textures / "train",
        validate=textures / "test",
        out=tmp_path_factory.mktemp("out") / "bundle",
        preprocessing=TEXTURES,
        recipe=Recipe(epochs=6, batch_size=16, learning_rate=3e-3),
    )


def test_the_bundle_says_what_it_is(bundle: sl.Bundle, small_graph: sl.Graph) -> None:
    manifest = sl.Bundle.load(bundle.path).manifest
    assert (manifest.kind, manifest.model, manifest.transfer) == ("split", "small", OURS.spec)
    assert manifest.slicing_point is not None
    assert manifest.slicing_point.after == "1"
    (crossing,) = manifest.crossing
    assert crossing.shape == (1, 16, SIZE // 2, SIZE // 2)
    assert crossing.quantization is not None
    assert manifest.classes[0] == "crazing"
    assert manifest.preprocessing == TEXTURES
    assert set(manifest.slices) == {"device", "edge", "network"}
    assert set(manifest.versions) == {"scissionlite", "torch", "python"}
    assert manifest.training is not None
    assert (manifest.training.epochs, manifest.training.device_slice_trained) == (6, False)


def test_retraining_regains_what_the_transfer_layer_lost(
    bundle: sl.Bundle, small_graph: sl.Graph, textures: Path, tmp_path: Path
) -> None:
    with pytest.warns(AccuracyWarning, match=r"the accuracy fell from .*% to .*%"):
        untrained = sl.prepare(
            small_graph,
            OURS,
            train=textures / "train",
            validate=textures / "test",
            out=tmp_path / "b",
            preprocessing=TEXTURES,
            recipe=CALIBRATE,
        )
    without, with_ = untrained.manifest.accuracy, bundle.manifest.accuracy
    assert without is not None
    assert with_ is not None
    assert with_.before == without.before > 0.7  # chance is 0.17
    assert with_.after >= with_.before - 0.06  # three images of 48
    assert with_.after > without.after
    assert untrained.manifest.training is None


def test_the_slices_answer_as_their_manifest_says(bundle: sl.Bundle, textures: Path) -> None:
    manifest = bundle.manifest
    device = load_slice(bundle.slice_path("device"), "torchscript")
    edge = load_slice(bundle.slice_path("edge"), "torchscript")
    right = 0
    data = ImageFolder(textures / "test", TEXTURES)
    for index, (_, label) in enumerate(data.files):
        (crossing,) = device(TEXTURES.tensor(data.frame(index)))
        (tensor,) = manifest.crossing
        packed = sl.encode(crossing, tensor.transfer, tensor.quantization)
        assert packed.nbytes * 16 == crossing.nbytes
        right += int(edge(sl.decode(packed))[0].argmax()) == label
    assert manifest.accuracy is not None
    assert right / len(data) == manifest.accuracy.after


def test_the_device_slice_keeps_its_weights_unless_asked(
    small_graph: sl.Graph, textures: Path, tmp_path: Path
) -> None:
    data = ImageFolder(textures / "train", TEXTURES)
    for asked in (False, True):
        sliced = _insert(small_graph, data, train_device_slice=asked)
        before = {name: t.clone() for name, t in sliced.state_dict().items()}
        trainer.train(sliced, data, Recipe(epochs=1))
        changed = {n for n, t in sliced.state_dict().items() if not torch.equal(before[n], t)}
        assert any(name.startswith("edge_slice") for name in changed)
        assert any(name.startswith("device_slice") for name in changed) == asked


def test_gradients_reach_the_device_slice_through_the_quantization(
    small_graph: sl.Graph, textures: Path
) -> None:
    data = ImageFolder(textures / "train", TEXTURES)
    sliced = _insert(small_graph, data, train_device_slice=True)
    x = torch.from_numpy(TEXTURES.tensor(data.frame(0)))
    torch.as_tensor(sliced(x)).sum().backward()
    gradients = [p.grad for p in sliced.device_slice.parameters()]
    assert all(g is not None and bool(g.abs().sum() > 0) for g in gradients)


def test_the_same_seed_gives_the_same_network(
    small_graph: sl.Graph, textures: Path, tmp_path: Path
) -> None:
    def prepared(name: str, seed: int) -> dict[str, str]:
        made = sl.prepare(
            small_graph,
            OURS,
            train=textures / "train",
            out=tmp_path / name,
            preprocessing=TEXTURES,
            recipe=Recipe(epochs=1, seed=seed),
        )
        edge = load_slice(made.slice_path("edge"), "torchscript")
        answer = edge(np.ones((1, 16, SIZE // 2, SIZE // 2), np.float32))
        return {"answer": repr(answer), "scale": repr(made.manifest.crossing)}

    first = prepared("a", 1)
    assert prepared("b", 1) == first
    assert prepared("c", 2) != first


def test_a_float32_split_is_the_network_itself_and_needs_no_data(
    small_graph: sl.Graph, tmp_path: Path
) -> None:
    plan = sl.Plan(kind="split", slicing_point="0", spec=sl.TransferSpec.float32_split())
    made = sl.prepare(small_graph, plan, out=tmp_path / "b", local_fallback=False)
    assert set(made.manifest.slices) == {"device", "edge"}
    x = np.random.default_rng(0).normal(size=(1, 3, SIZE, SIZE)).astype(np.float32)
    device = load_slice(made.slice_path("device"), "torchscript")
    edge = load_slice(made.slice_path("edge"), "torchscript")
    with torch.inference_mode():
        expected = small_graph.module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(edge(*device(x))[0], expected, rtol=1e-3, atol=1e-4)


def test_images_and_local_plans_are_prepared_too(
    small_graph: sl.Graph, textures: Path, tmp_path: Path
) -> None:
    afters = {}
    for plan in (sl.Plan(kind="local"), sl.Plan(kind="image", image_format="jpeg", jpeg_quality=5)):
        made = sl.prepare(
            small_graph,
            plan,
            validate=textures / "test",
            out=tmp_path / plan.kind,
            preprocessing=TEXTURES,
        )
        assert set(made.manifest.slices) == {"network"}
        assert made.manifest.accuracy is not None
        afters[plan.kind] = made.manifest.accuracy
    assert afters["local"].after == afters["local"].before
    assert afters["image"].after != afters["image"].before  # quality 5 shows
    assert afters["local"].sent_bytes == 0
    assert afters["image"].sent_bytes > 0


@pytest.mark.long
def test_a_bundle_for_every_runtime_answers_the_same(small_graph: sl.Graph, tmp_path: Path) -> None:
    plan = sl.Plan(kind="split", slicing_point="1", spec=sl.TransferSpec.float32_split())
    runtimes = ("onnx", "aotinductor", "torchscript")
    made = sl.prepare(
        small_graph, plan, out=tmp_path / "b", runtimes=runtimes, local_fallback=False, max_batch=2
    )
    assert made.runtimes("device") == made.runtimes("edge") == runtimes
    assert made.slice_path("device") == made.slice_path("device", "onnx")
    assert {path.name for path in made.path.iterdir()} == {
        "manifest.json",
        *("device.onnx", "device.pt2", "device.pt", "edge.onnx", "edge.pt2", "edge.pt"),
    }
    x = np.random.default_rng(0).normal(size=(2, 3, SIZE, SIZE)).astype(np.float32)
    with torch.inference_mode():
        expected = small_graph.module(torch.from_numpy(x)).numpy()
    for runtime in runtimes:
        with (
            # Device and edge need not take the same.
            sl.EdgeServer(made, "tcp://127.0.0.1:*", runtime=runtime, threads=1) as edge,
            sl.Device(
                made, edge.endpoint, control=edge.control_endpoint, runtime="onnx", threads=1
            ) as device,
        ):
            np.testing.assert_allclose(device.infer(x), expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(BundleError, match="no device slice for tvm, only for onnx, aotinductor, t"):
        made.slice_path("device", "tvm")


def test_what_answers_something_else_is_not_deployed(small_graph: sl.Graph, tmp_path: Path) -> None:
    other = sl.capture(small_network(), small_graph.example, name="untrained")
    sl.prepare(other, sl.Plan(kind="local"), out=tmp_path / "b", runtimes=("onnx",))
    slices = sl.Bundle.load(tmp_path / "b").manifest.slices
    wrong = load_exported(slices, "network", "onnx", tmp_path / "b")
    x = (torch.randn(1, 3, SIZE, SIZE),)
    splitter.verify(other.module, wrong, x, "onnx")
    with pytest.raises(PrepareError, match=r"the onnx slices do not answer .* prepare it without"):
        splitter.verify(small_graph.module, wrong, x, "onnx")


@pytest.mark.parametrize(("off", "deployed"), [(0.1, True), (2.0, False)])
def test_codes_that_differ_by_rounding_are_no_other_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: float, deployed: bool
) -> None:
    """The device's runtime adds a little: codes on a border differ by one, others by none."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 5))
    torch.manual_seed(3)
    graph = sl.capture(model.eval(), torch.rand(1, 3, 8, 8), name="few codes")
    spec = sl.TransferSpec(pool=4, dtype="int4")
    plan = sl.Plan(kind="split", slicing_point="1", spec=spec)
    data = TensorDataset(torch.rand(16, 3, 8, 8), torch.zeros(16))
    verified: list[Any] = []
    verify = splitter.verify
    monkeypatch.setattr(splitter, "verify", lambda *these: verified.append(these))
    made = sl.prepare(graph, plan, unlabelled=data, out=tmp_path / "b", recipe=Recipe(epochs=0))
    network, inference, *_ = verified[0]
    (device,) = inference._device
    quantization = made.manifest.crossing[0].quantization
    assert quantization is not None
    step = quantization.groups[0][0]
    inference._device = [lambda x: tuple(y + np.float32(off * step) for y in device(x))]
    changed = 0
    for _ in range(200):
        x = (torch.rand(1, 3, 8, 8),)
        arrived = inference.arrived(x[0].numpy())[0]
        own = network.transfer(network.features(*x))[0].numpy()
        changed += not np.array_equal(arrived, own)
        if deployed:
            verify(network, inference, x, "torchscript")
        elif not np.array_equal(arrived, own):
            with pytest.raises(PrepareError, match="do not answer what the network answers"):
                verify(network, inference, x, "torchscript")
    assert changed > 20


class _BatchSize(nn.Module):
    """Uses the batch size in every way that models do."""

    def __init__(self, *, branch: bool) -> None:
        super().__init__()
        self.first, self.last, self.gru = nn.Linear(8, 8), nn.Linear(8, 8), nn.GRU(8, 8)
        self.token, self.branch = nn.Parameter(torch.randn(1, 1, 8)), branch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        if self.branch and y.shape[1] < 8:  # only torch.export follows it
            raise ValueError("too few features")
        n = x.shape[0]
        parts = [
            torch.zeros(n, 8),
            torch.ones((n, 8)),
            torch.full((n, 8), 0.5),
            y.new_zeros(n, 8),
            y.view(x.shape[0], -1),
            y * torch.arange(x.size(0))[:, None],
            self.token.expand(n, -1, -1)[:, 0],
            self.token.repeat(n, 1, 1)[:, 0],
            self.first(y.reshape(n * 2, 4).repeat(1, 2)).reshape(n, 16)[:, :8],
            torch.ones(n, n).tril() @ y,
        ]
        steps = torch.stack([*parts, y])
        state = torch.zeros(1, x.shape[0], 8)
        answer: torch.Tensor = self.last(self.gru(steps, state)[0].sum(0))
        return answer


FLOAT32_AFTER_FIRST = sl.Plan(
    kind="split", slicing_point="first", spec=sl.TransferSpec(pool=1, dtype="float32")
)


@pytest.mark.long
@pytest.mark.parametrize("branch", [False, True], ids=["torch.fx", "torch.export"])
def test_every_runtime_answers_every_batch_that_the_manifest_promises(
    branch: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = _BatchSize(branch=branch).eval()
    graph = sl.capture(model, torch.zeros(1, 8))
    runtimes = ("torchscript",) if branch else ("torchscript", "onnx")
    made = sl.prepare(
        graph, FLOAT32_AFTER_FIRST, out=tmp_path / "b", runtimes=runtimes, max_batch=4
    )
    for runtime in runtimes:
        device, edge, network = (
            load_exported(made.manifest.slices, role, runtime, made.path)
            for role in ("device", "edge", "network")
        )
        for batch in (1, 2, 3, 4):
            x = torch.randn(batch, 8)
            with torch.no_grad():
                expected = model(x).numpy()
            for answers in (edge(*device(x.numpy())), network(x.numpy())):
                np.testing.assert_allclose(answers[0], expected, atol=1e-4)


class _SplitsItsBatch(nn.Module):
    """Runs on every batch size, but in TorchScript only on the example's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        answer: torch.Tensor = self.last(torch.cat(y.split(1, 0)) / y.shape[0])
        return answer


@pytest.mark.long
@pytest.mark.parametrize("runtime", ["torchscript", "onnx"])
@pytest.mark.parametrize("plan", [FLOAT32_AFTER_FIRST, sl.Plan(kind="local")])
def test_a_batch_that_a_runtime_cannot_take_is_not_promised(
    plan: sl.Plan, runtime: str, tmp_path: Path
) -> None:
    graph = sl.capture(_SplitsItsBatch().eval(), torch.zeros(1, 8))
    assert graph.dynamic_batch
    with pytest.raises(PrepareError, match=r"batch") as refused:
        sl.prepare(graph, plan, out=tmp_path / "b", runtimes=(runtime,), max_batch=4)
    if runtime == "torchscript":
        assert "do not run on a batch of 2" in str(refused.value)
        assert "answer: torch.Tensor = self.last(torch.cat" in str(refused.value)
        assert "max_batch=1" in str(refused.value)
    sl.prepare(graph, plan, out=tmp_path / "b", runtimes=(runtime,))


class _Pairs(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, value: float, count: int = 40) -> None:
        self.value, self.count = value, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((3, SIZE, SIZE), self.value), index % 6


def test_any_torch_dataset_will_do(small_graph: sl.Graph, tmp_path: Path) -> None:
    data = TensorDataset(torch.randn(20, 3, SIZE, SIZE), torch.arange(20) % 6)
    made = sl.prepare(
        small_graph, OURS, train=data, validate=data, out=tmp_path / "b", recipe=Recipe(epochs=1)
    )
    assert made.manifest.accuracy is not None
    assert made.manifest.accuracy.samples == 20
    assert made.manifest.classes == ()


def test_what_is_wrong_is_told_and_no_bundle_is_left(
    small_graph: sl.Graph, textures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "b"
    flat = sl.Plan(kind="split", slicing_point="3.1", spec=sl.TransferSpec())
    with pytest.raises(PrepareError, match=r"cannot stand after 3\.1"):
        sl.prepare(small_graph, flat, train=_Pairs(0), out=out)
    with pytest.raises(PrepareError, match="give train="):
        sl.prepare(small_graph, OURS, out=out)
    with pytest.raises(PrepareError, match="give preprocessing"):
        sl.prepare(small_graph, OURS, train=textures / "train", out=out)
    with pytest.raises(PrepareError, match=r"holds no images: expected .*/CLASS/"):
        sl.prepare(small_graph, OURS, train=tmp_path, out=out, preprocessing=TEXTURES)
    with pytest.raises(PrepareError, match="NaN, infinities or nothing on the calibration"):
        sl.prepare(small_graph, OURS, train=_Pairs(float("nan")), out=out)
    with pytest.raises(PrepareError, match=r"nothing to train: .* 0 samples"):
        trainer.train(small_network(), _Pairs(0, count=0), Recipe(epochs=1))
    with pytest.raises(PrepareError, match=r"the loss became .* lower the learning rate"):
        trainer.train(small_network(), _Pairs(float("inf")), Recipe(epochs=1))
    with pytest.raises(RuntimeUnavailableError, match="unknown runtime 'tvm'"):
        sl.prepare(
            small_graph, OURS, train=_Pairs(0.5), out=out, recipe=CALIBRATE, runtimes=("tvm",)
        )
    for none in ((), "onnx", ("onnx", "onnx")):
        with pytest.raises(PrepareError, match=r"runtimes= is a sequence of different ones"):
            sl.prepare(
                small_graph, OURS, train=_Pairs(0.5), out=out, recipe=CALIBRATE, runtimes=none
            )
    assert not out.exists()


def test_different_classes_and_foreign_folders_are_refused(
    small_graph: sl.Graph, textures: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other" / "rust"
    other.mkdir(parents=True)
    (other / "1.jpg").write_bytes((textures / "test" / "crazing" / "0000.jpg").read_bytes())
    with pytest.raises(PrepareError, match=r"different classes: crazing, .* against rust"):
        sl.prepare(
            small_graph,
            OURS,
            train=textures / "train",
            validate=tmp_path / "other",
            out=tmp_path / "b",
            preprocessing=TEXTURES,
        )
    with pytest.raises(BundleError, match="is not a bundle"):
        sl.prepare(small_graph, OURS, train=_Pairs(0.5), out=tmp_path, recipe=CALIBRATE)


def _insert(
    small_graph: sl.Graph, data: ImageFolder, *, train_device_slice: bool
) -> inserter.SlicedNetwork:
    return inserter.insert(
        small_graph,
        "1",
        sl.TransferSpec(),
        calibration=input_batches(DataLoader(data, 16)),
        recipe=Recipe(train_device_slice=train_device_slice),
    )


class _OneAtATime(nn.Module):
    """Reads its batch size with len(), which Python makes a number of the example."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.head(self.stem(x).view(len(x), -1))
        return answer


def test_a_network_of_one_batch_size_is_trained_and_scored_with_it(tmp_path: Path) -> None:
    graph = sl.capture(_OneAtATime(), torch.randn(1, 3, 6, 6))
    assert not graph.dynamic_batch
    data = TensorDataset(torch.randn(4, 3, 6, 6), torch.arange(4))
    plan = sl.Plan(kind="split", slicing_point="stem", spec=sl.TransferSpec())

    def prepared(batch_size: int) -> sl.Bundle:
        recipe = Recipe(epochs=1, batch_size=batch_size)
        return sl.prepare(
            graph, plan, train=data, validate=data, out=tmp_path / "bundle", recipe=recipe
        )

    with pytest.raises(PrepareError, match=r"only on batches of 1.*--batch-size 1"):
        prepared(2)
    accuracy = prepared(1).manifest.accuracy
    assert accuracy is not None
    assert accuracy.samples == 4
    chosen = choose(
        graph, [sl.Plan(kind="local")], accuracy_drop=0, validate=data, out=tmp_path / "chosen"
    ).bundle.manifest.accuracy
    assert chosen is not None
    assert chosen.before == accuracy.before
