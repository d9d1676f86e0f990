"""The Trainer: labels or none, scales, tasks, patience, and going on after a crash."""

from __future__ import annotations

import copy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from conftest import TEXTURES
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from networks import small_network
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import scissionlite as sl
from scissionlite.errors import PrepareError
from scissionlite.graph.analysis import flat
from scissionlite.preprocessor import feature_cache, inserter, trainer
from scissionlite.preprocessor.checkpoint import Checkpoint
from scissionlite.preprocessor.data import (
    ImageFolder,
    Photographs,
    Sample,
    augmented,
    input_batches,
)
from scissionlite.preprocessor.metrics import IGNORED
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.preprocessor.scoring import evaluate
from scissionlite.preprocessor.tasks import CLASSIFICATION, SEGMENTATION, Task
from scissionlite.preprocessor.teacher import Teacher
from scissionlite.preprocessor.training_setup import set_up
from scissionlite.transfer_layer.calibration import calibrate
from scissionlite.transfer_layer.layers import TransferLayer

OURS = sl.TransferSpec()
QUICK = Recipe(epochs=2, batch_size=16)


def sliced(graph: sl.Graph, textures: Path, recipe: Recipe = QUICK) -> inserter.SlicedNetwork:
    loader = DataLoader(ImageFolder(textures / "train", TEXTURES), 16)
    batches = input_batches(loader)
    return inserter.insert(graph, "1", OURS, calibration=batches, recipe=recipe)


def test_bare_photographs_teach_as_well(
    small_graph: sl.Graph, textures: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare" / "deep"
    bare.mkdir(parents=True)
    for number, file in enumerate(sorted((textures / "train").rglob("*.jpg"))):
        (bare / f"{number}.jpg").symlink_to(file)
    plan = sl.Plan(kind="split", slicing_point="1", spec=OURS)
    scores = {}
    for epochs in (0, 6):
        bundle = sl.prepare(
            small_graph,
            plan,
            unlabelled=tmp_path / "bare",
            validate=textures / "test",
            out=tmp_path / "b",
            preprocessing=TEXTURES,
            recipe=Recipe(epochs=epochs, batch_size=16, learning_rate=3e-3),
        )
        assert bundle.manifest.accuracy is not None
        scores[epochs] = bundle.manifest.accuracy
    trained = bundle.manifest.training
    assert trained is not None
    assert (trained.labels, trained.distillation) == (False, 1.0)
    assert scores[6].after > scores[0].after
    assert scores[6].after >= scores[6].before - 0.07  # three images of 48
    with pytest.raises(PrepareError, match="train= or unlabelled="):
        sl.prepare(small_graph, plan, train=textures, unlabelled=textures, out=tmp_path / "c")
    with pytest.raises(PrepareError, match="only the uncut network to learn from"):
        trainer.train(small_network(), Photographs(bare, TEXTURES), labelled=False)


def test_the_cache_holds_what_the_networks_answer(small_graph: sl.Graph, textures: Path) -> None:
    network = sliced(small_graph, textures).eval()
    teacher = Teacher(small_graph, "1")
    photographs = ImageFolder(textures / "train", TEXTURES, augment=True)
    part = Subset(photographs, [3, 50, 7])
    cache = feature_cache.cache_features(network, teacher, part, torch.device("cpu"))
    assert cache is not None
    seen = set()
    for _ in range(20):
        sample = cache[1]
        assert (sample.inputs, sample.teacher_features) == ([], [])
        assert sample.target == photographs.files[50][1]
        for mirrored in (False, True):
            x, _ = photographs.side(mirrored)[50]
            assert isinstance(x, torch.Tensor)
            with torch.no_grad():
                whole = small_graph.module(x[None])[0]
                own = network.device_slice(x[None])[0]
            if torch.allclose(sample.features[0], own, atol=1e-5):
                (output,) = sample.teacher_outputs
                torch.testing.assert_close(output, whole, rtol=1e-3, atol=1e-4)
                seen.add(mirrored)
    assert seen == {False, True}
    other = torch.utils.data.TensorDataset(torch.zeros(4, 3, 64, 64), torch.zeros(4))
    assert feature_cache.cache_features(network, teacher, other, torch.device("cpu")) is None
    few = feature_cache.cache_features(network, teacher, part, torch.device("cpu"), max_bytes=1000)
    assert few is None


@pytest.mark.long
@pytest.mark.parametrize("with_teacher", [True, False])
def test_the_teacher_is_cached_where_the_device_slice_learns(
    with_teacher: bool, small_graph: sl.Graph, textures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(epochs=2, batch_size=16, train_device_slice=True)
    photographs = ImageFolder(textures / "train", TEXTURES)
    weights = []
    for share in (1.0, 0.0):
        monkeypatch.setattr(feature_cache, "_MEMORY_SHARE", share)
        network = sliced(small_graph, textures, recipe)
        before = copy.deepcopy(network.device_slice.state_dict())
        teacher = Teacher(small_graph, "1") if with_teacher else None
        processor = torch.device("cpu")
        cache = feature_cache.cache_features(network.eval(), teacher, photographs, processor)
        assert (cache is not None) == bool(share)
        if cache is not None:
            x, _ = photographs[5]
            assert isinstance(x, torch.Tensor)
            sample = cache[5]
            assert torch.equal(sample.inputs[0], x)
            assert sample.features == []
            assert len(sample.teacher_features) == with_teacher
            with torch.no_grad():
                answers = [small_graph.split("1")[0](x[None])[0], small_graph.module(x[None])[0]]
            expected = answers if with_teacher else []
            actual = [*sample.teacher_features, *sample.teacher_outputs]
            for found, answer in zip(actual, expected, strict=True):
                torch.testing.assert_close(found, answer, rtol=1e-3, atol=1e-4)
        trainer.train(network, photographs, recipe, teacher=teacher)
        after = network.device_slice.state_dict()
        assert any(not torch.equal(after[name], before[name]) for name in before)
        weights.append(network.state_dict())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0.02, atol=0.005)


class Pictures(Dataset[Sample]):
    """A user's own data: random pictures, and targets that are pictures mirrored with them."""

    mirrored: bool | None = False

    def __len__(self) -> int:
        return 8

    @property
    def augment(self) -> bool:
        return self.mirrored is None

    def side(self, mirrored: bool | None) -> Pictures:
        view = copy.copy(self)
        view.mirrored = mirrored
        return view

    def __getitem__(self, index: int) -> Sample:
        x = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(index))
        mirrored = bool(torch.rand(()) < 0.5) if self.mirrored is None else self.mirrored
        x = x.flip(2) if mirrored else x
        return x, (x[0] > 0).long()


def test_own_data_are_cached_with_their_targets(small_graph: sl.Graph, textures: Path) -> None:
    network = sliced(small_graph, textures).eval()
    teacher = Teacher(small_graph, "1")
    data = augmented(Pictures())  # as the Trainer takes any data
    assert isinstance(data, Pictures)
    assert data.augment
    cache = feature_cache.cache_features(network, teacher, data, torch.device("cpu"))
    assert cache is not None
    assert len(cache) == 8
    sides = set()
    for _ in range(20):
        sample = cache[5]
        for mirrored in (False, True):
            x, expected = data.side(mirrored)[5]
            assert isinstance(x, torch.Tensor)
            if torch.equal(sample.target, expected):
                with torch.no_grad():
                    own = network.device_slice(x[None])[0]
                    whole = small_graph.module(x[None])[0]
                torch.testing.assert_close(sample.features[0], own, rtol=1e-3, atol=1e-4)
                (output,) = sample.teacher_outputs
                torch.testing.assert_close(output, whole, rtol=1e-3, atol=1e-4)
                sides.add(mirrored)
    assert sides == {False, True}


def test_hints_are_what_crosses_behind_the_cut(small_graph: sl.Graph) -> None:
    x = torch.randn(2, 3, 64, 64)
    names = [point.name for point in small_graph.slicing_points]
    for point in ("0", "1", "3.2"):
        teacher = Teacher(small_graph, point)
        with torch.no_grad():
            crossing = teacher.device_slice(x)
            (answer,), hints = teacher.answer(flat(crossing))
            torch.testing.assert_close(answer, small_graph.module(x))
            # Every hint is what crosses at a slicing point behind the cut.
            behind = small_graph.slicing_points[names.index(point) + 1 :]
            later = [small_graph.between(point, other)(crossing) for other in behind]
        assert len(hints) == len(teacher.hint_nodes)
        for hint in hints:
            assert hint.ndim == 4
            assert any(hint.shape == other.shape and torch.equal(hint, other) for other in later)
        assert bool(hints) == (point != "3.2")  # only vectors cross behind it


def test_scales_are_learned_and_settled(small_graph: sl.Graph, textures: Path) -> None:
    data = ImageFolder(textures / "train", TEXTURES)
    scales = {}
    for learns in (False, True):
        recipe = Recipe(epochs=1, batch_size=16, learn_scales=learns)
        network = sliced(small_graph, textures, recipe)
        before = network.layers[0].quantization
        trainer.train(network, data, recipe)
        after = network.layers[0].quantization
        assert before is not None
        assert after is not None
        assert after.zero_point == before.zero_point
        assert (after.scale != before.scale) == learns
        assert not network.transfer_layers.state_dict()  # constants again
        scales[learns] = after.scale
    assert scales[True] == pytest.approx(scales[False], rel=0.2)


def test_slices_that_are_frozen_keep_weights_and_statistics(
    small_graph: sl.Graph, textures: Path
) -> None:
    data = ImageFolder(textures / "train", TEXTURES)
    spec = sl.TransferSpec(pool_kind="learned", pool=2, reduction=4)
    recipe = Recipe(epochs=1, batch_size=16, train_edge_slice=False)
    batches = input_batches(DataLoader(data, 16))
    network = inserter.insert(small_graph, "1", spec, calibration=batches, recipe=recipe)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    teacher = Teacher(small_graph, "1")
    trainer.train(network, data, recipe, teacher=teacher)
    after = network.state_dict()
    changed = {name for name, t in after.items() if not torch.equal(t, before[name])}
    assert changed == {n for n, _ in network.transfer_layers.named_parameters("transfer_layers")}
    frozen = sliced(small_graph, textures, Recipe(train_edge_slice=False, learn_scales=False))
    with pytest.raises(PrepareError, match="nothing to train: 0 trainable parameters"):
        trainer.train(frozen, data, QUICK)


def test_patience_stops_and_the_best_epoch_is_kept(small_graph: sl.Graph, textures: Path) -> None:
    data = ImageFolder(textures / "train", TEXTURES)
    recipe = Recipe(epochs=30, batch_size=64, learning_rate=1e-12, patience=2, holdout=0.2)
    record = trainer.train(sliced(small_graph, textures, recipe), data, recipe)
    # Nothing is learned at this rate: batch statistics settle in a few epochs, if at all.
    assert 3 <= record.epochs < 30
    with pytest.raises(PrepareError, match="a DataLoader cannot be split"):
        trainer.train(small_network(), DataLoader(data, 16), recipe)
    with pytest.raises(PrepareError, match="2 samples cannot be split"):
        trainer.train(small_network(), Subset(data, [0, 1]), recipe)


TRAINING = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, {tests!r})
from conftest import TEXTURES
from networks import small_network
from scissionlite.preprocessor import trainer
from scissionlite.preprocessor.data import ImageFolder
from scissionlite.preprocessor.recipe import Recipe
torch.set_num_threads(1)
data = ImageFolder(Path({train!r}), TEXTURES)
trainer.train(small_network(), data, Recipe(epochs={epochs}, batch_size=16),
              checkpoint=Path({checkpoint!r}))
"""


@pytest.mark.long
def test_a_killed_training_goes_on_as_if_nothing_had_happened(
    textures: Path, tmp_path: Path
) -> None:
    epochs = 5
    checkpoint = tmp_path / "training.checkpoint"
    source = TRAINING.format(
        tests=str(Path(__file__).parent),
        train=str(textures / "train"),
        checkpoint=str(checkpoint),
        epochs=epochs,
    )
    process = subprocess.Popen([sys.executable, "-c", source])
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    data = ImageFolder(textures / "train", TEXTURES)
    recipe = Recipe(epochs=epochs, batch_size=16)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        resumed, whole = small_network(), small_network()
        trainer.train(resumed, data, recipe, checkpoint=checkpoint)
        trainer.train(whole, data, recipe)
    finally:
        torch.set_num_threads(threads)
    assert not checkpoint.exists()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


class Interrupted(Dataset[Any]):
    """Raises KeyboardInterrupt, as Ctrl-C does, after so many samples."""

    def __init__(self, data: ImageFolder, after: int) -> None:
        self.data, self.left = data, after

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.data[index]


def test_an_interrupted_training_has_less_left_to_do(textures: Path, tmp_path: Path) -> None:
    data = ImageFolder(textures / "train", TEXTURES)
    recipe = Recipe(epochs=3, batch_size=16)
    checkpoint = tmp_path / "c"
    with pytest.raises(KeyboardInterrupt):
        trainer.train(
            small_network(), Interrupted(data, 2 * len(data)), recipe, checkpoint=checkpoint
        )
    # Two epochs, batch statistics, a first look, and 64 samples that the digest of the data reads
    # twice: enough for what is left, not for everything.
    rest = Interrupted(data, 3 * len(data) + 16 + 2 * 64)
    network = small_network()
    record = trainer.train(network, rest, recipe, checkpoint=checkpoint)
    assert record.epochs == 3
    # Gradients are as large as the weights, and are needed no more.
    assert all(weight.grad is None for weight in network.parameters())


def test_a_checkpoint_on_a_full_disk_is_an_error_that_says_so(textures: Path) -> None:
    data = ImageFolder(textures / "train", TEXTURES)
    network = small_network()
    _, state = set_up(network, data, QUICK, CLASSIFICATION, None, labelled=True)
    full = Path("/dev/full")
    with pytest.raises(OSError, match="No space left") as raised:
        Checkpoint(full, "a training", network).save(state)
    assert raised.value.filename == str(full)


def test_foreign_and_broken_checkpoints_are_refused(textures: Path, tmp_path: Path) -> None:
    data = ImageFolder(textures / "train", TEXTURES)
    checkpoint = tmp_path / "c"
    with pytest.raises(KeyboardInterrupt):
        trainer.train(
            small_network(), Interrupted(data, 2 * len(data)), QUICK, checkpoint=checkpoint
        )
    assert checkpoint.exists()
    for recipe, network in (
        (Recipe(epochs=2, batch_size=16, seed=9), small_network()),
        (QUICK, nn.Sequential(small_network(), nn.Linear(6, 6))),
    ):
        with pytest.raises(PrepareError, match="the checkpoint of another training"):
            trainer.train(network, data, recipe, checkpoint=checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(PrepareError, match="is not a checkpoint, or not a whole one"):
        trainer.train(small_network(), data, QUICK, checkpoint=checkpoint)


class Halves(Dataset[Any]):
    """Images with a bright half; a pixel's class is whether it lies there, some do not count."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        generator = np.random.default_rng(index)
        x = generator.normal(0, 0.3, (3, 16, 16)).astype(np.float32)
        label = np.zeros((16, 16), np.int64)
        label[:, 8:] = 1
        if index % 2:
            label = 1 - label
        x += label[None] - 0.5
        label[0] = IGNORED
        return torch.from_numpy(x), torch.from_numpy(label)


def segmenter() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 2, 1),
    )


def test_a_segmentation_network_is_prepared(tmp_path: Path) -> None:
    data = Halves()
    network = segmenter()
    trainer.train(
        network, data, Recipe(epochs=8, batch_size=8, learning_rate=1e-2), task=SEGMENTATION
    )
    graph = sl.capture(network, torch.zeros(1, 3, 16, 16), name="segmenter")
    bundle = sl.prepare(
        graph,
        sl.Plan(kind="split", slicing_point="2", spec=OURS),
        train=data,
        validate=data,
        task=SEGMENTATION,
        out=tmp_path / "b",
        recipe=Recipe(epochs=4, batch_size=8, learning_rate=1e-2),
    )
    accuracy = bundle.manifest.accuracy
    assert accuracy is not None
    assert accuracy.metric == "mIoU"
    assert accuracy.before > 0.95
    assert accuracy.after > 0.85  # borders in the middle of a window are lost


@given(
    truth=hnp.arrays(np.int64, (2, 4, 5), elements=st.sampled_from([0, 1, 2, IGNORED])),
    answer=hnp.arrays(np.int64, (2, 4, 5), elements=st.integers(0, 2)),
)
def test_mean_iou_is_that_of_its_definition(truth: Any, answer: Any) -> None:
    counted = truth != IGNORED
    ious = []
    for c in range(3):
        union = ((truth == c) | (answer == c)) & counted
        if union.any():
            ious.append(((truth == c) & (answer == c) & counted).sum() / union.sum())
    logits = torch.nn.functional.one_hot(torch.from_numpy(answer), 3).permute(0, 3, 1, 2).float()
    target = torch.from_numpy(truth)
    first, second = (SEGMENTATION.tally(logits[i : i + 1], target[i : i + 1]) for i in (0, 1))
    if ious:
        assert SEGMENTATION.score(first + second) == pytest.approx(np.mean(ious))


def test_a_loss_and_metric_of_ones_own(tmp_path: Path) -> None:
    torch.manual_seed(1)
    x = torch.randn(40, 3, 8, 8)
    y = x.mean((1, 2, 3))[:, None] * 10
    data = DataLoader(torch.utils.data.TensorDataset(x, y), 8)
    task = Task.of(
        lambda answer, target: (answer - target).square().mean(),
        lambda answer, target: -float((answer - target).abs().mean()),
        name="mean brightness",
    )
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 1),
    )
    untrained = evaluate(network, data, task=task)
    trainer.train(network, data, Recipe(epochs=30, learning_rate=2e-2), task=task)
    trained = evaluate(network, data, task=task)
    assert trained > untrained / 2
    bundle = sl.prepare(
        sl.capture(network, torch.zeros(1, 3, 8, 8), name="brightness"),
        sl.Plan(kind="split", slicing_point="1", spec=OURS),
        train=data,
        validate=data,
        task=task,
        out=tmp_path / "b",
        recipe=Recipe(epochs=3),
    )
    assert bundle.manifest.accuracy is not None
    assert bundle.manifest.accuracy.samples == 40
    assert bundle.manifest.accuracy.before == pytest.approx(trained)


@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(["int8", "int4"]),
    granularity=st.sampled_from(["tensor", "channel"]),
    pool=st.sampled_from([1, 2]),
)
def test_calibration_by_squared_error_has_the_least(
    seed: int, dtype: str, granularity: str, pool: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 6, 8, 8, generator=generator) ** 3
    spec = sl.TransferSpec(pool=pool, dtype=dtype, granularity=granularity)
    unpooled = sl.TransferSpec(pool=1, dtype=dtype, granularity=granularity)
    values = x if pool == 1 else nn.functional.max_pool2d(x, 2)
    errors = {}
    for method in ("range", "percentile", "mse"):
        found = calibrate(x, spec, method)
        errors[method] = float((TransferLayer(unpooled, found)(values) - values).square().mean())
    assert errors["mse"] <= errors["range"] * (1 + 1e-6)


def test_percentiles_do_not_mind_an_outlier() -> None:
    x = torch.rand(1, 1, 200, 200)
    x[0, 0, 0, 0] = 1e6
    spec = sl.TransferSpec(pool=1)
    scales = {m: calibrate(x, spec, m).scale for m in ("range", "percentile")}
    assert scales["range"] == pytest.approx(1e6 / 255, rel=1e-3)
    assert scales["percentile"] == pytest.approx(1 / 255, rel=1e-2)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
def test_levels_divide_the_range(granularity: str, scheme: str) -> None:
    """Steps are so much larger, and codes so much fewer; zero stays exact."""
    x = torch.randn(2, 3, 40, 40)
    spec = sl.TransferSpec(pool=1, granularity=granularity, scheme=scheme)
    whole = calibrate(x, spec, "range")
    coarse = calibrate(x, msgspec.structs.replace(spec, levels=16), "range")
    np.testing.assert_allclose(np.asarray(coarse.scale) / whole.scale, 255 / 15, rtol=1e-6)
    answers = TransferLayer(spec, coarse)(x)
    for group in answers.transpose(0, 1) if granularity == "channel" else [answers]:
        assert 14 <= len(group.unique()) <= 17
        assert (group == 0).any()
    error = (answers - x).abs().amax((0, 2, 3))
    assert (error <= torch.tensor(coarse.scale) * 0.501).all()


def test_the_least_error_is_sought_with_all_codes() -> None:
    """Levels then divide the range that was found: they do not make it smaller."""
    x = torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0, 0] = 12.0  # an outlier that no range of 16 codes should span
    spec = sl.TransferSpec(pool=1, dtype="int4")
    scales: dict[int | None, dict[str, Any]] = {}
    for levels in (None, 4):
        each = msgspec.structs.replace(spec, levels=levels)
        scales[levels] = {m: calibrate(x, each, m).scale for m in ("mse", "range")}
    assert scales[None]["mse"] < 0.7 * scales[None]["range"]
    for method in ("mse", "range"):
        assert scales[4][method] == pytest.approx(5 * scales[None][method], rel=1e-6)


def test_batch_statistics_are_means_over_the_data() -> None:
    """Not over the last few batches, as the running statistics are."""
    x = 5 + 3 * torch.randn(48, 3, 4, 4)
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 2))
    data = TensorDataset(x, torch.randint(2, (48,)))
    trainer.train(network, data, Recipe(epochs=1, batch_size=16))
    norm = network[0]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.momentum == 0.1
    torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3)))
    batches = torch.stack([part.var((0, 2, 3)) for part in x.split(16)]).mean(0)
    torch.testing.assert_close(norm.running_var, batches, rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"epochs": -1}, "epochs=-1 must be 0 to"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"distillation": 1.5}, "distillation=1.5 must be 0 to 1"),
        ({"calibration": "guess"}, "calibration='guess' must be range, percentile, mse"),
        ({"processor": "tpu"}, "processor='tpu' must be auto, cpu, cuda"),
    ],
)
def test_recipes_out_of_range_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(PrepareError, match=said):
        Recipe(**fields)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told() -> None:
    with pytest.raises(PrepareError, match="torch finds no GPU"):
        trainer.train(segmenter(), Halves(), Recipe(processor="cuda"), task=SEGMENTATION)
