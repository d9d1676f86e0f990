"""Training on data that are hard to train on: batches of one, no length, another data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from conftest import TEXTURES
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    default_collate,
)

import scissionlite as sl
from scissionlite.demo.textures import write_dataset
from scissionlite.errors import PrepareError
from scissionlite.preprocessor import trainer
from scissionlite.preprocessor.checkpoint import data_digest
from scissionlite.preprocessor.data import ImageFolder, Photographs, class_weights
from scissionlite.preprocessor.inserter import insert
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.preprocessor.teacher import Teacher

OURS = sl.TransferSpec()


def network(norm: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), norm or nn.BatchNorm1d(8), nn.Linear(8, 2)]
    if isinstance(norm, (nn.BatchNorm2d, nn.InstanceNorm2d)):
        head[1:3] = [norm, nn.Flatten()]
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *head)


def samples(count: int) -> TensorDataset:
    torch.manual_seed(1)
    return TensorDataset(torch.randn(count, 3, 8, 8), torch.arange(count) % 2)


def prepare(data: Any, out: Path, model: nn.Module | None = None, **options: Any) -> sl.Bundle:
    graph = sl.capture((model or network()).eval(), torch.zeros(1, 3, 8, 8), name="net")
    labelled = options.pop("labelled", True)
    plan = sl.Plan(kind="split", slicing_point="1", spec=options.pop("spec", OURS))
    return sl.prepare(
        graph,
        plan,
        **{"train" if labelled else "unlabelled": data},
        out=out,
        recipe=Recipe(**{"epochs": 2, "batch_size": 4, **options}),
    )


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d(8)], ids=["1d", "2d on 1x1"])
def test_a_last_batch_of_one_is_left_out(
    norm: nn.Module | None, labelled: bool, tmp_path: Path
) -> None:
    loader = DataLoader(samples(9), 4)  # 4, 4 and 1
    bundle = prepare(loader, tmp_path / "b", network(norm), labelled=labelled)
    assert bundle.manifest.training is not None
    assert bundle.manifest.training.epochs == 2


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (samples(1), {}),
        (samples(6), {"batch_size": 1}),
        (DataLoader(samples(6), 1), {}),
        (samples(1), {"labelled": False}),
    ],
    ids=["one sample", "batch_size=1", "a loader of ones", "one sample without labels"],
)
def test_batches_of_one_alone_are_refused(
    data: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(PrepareError, match="every batch is too small for the network's normali"):
        prepare(data, tmp_path / "b", **options)
    # Without a norm that needs two values, or without training it, one is enough.
    prepare(data, tmp_path / "b", network(nn.LayerNorm(8)), **options)
    prepare(data, tmp_path / "b", train_edge_slice=False, **options)


def test_a_norm_without_pixels_is_refused(tmp_path: Path) -> None:
    norm = nn.InstanceNorm2d(8, track_running_stats=True)
    with pytest.raises(PrepareError, match="more than 1 spatial element"):
        prepare(samples(8), tmp_path / "b", network(norm))


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(samples(8))


class Unsized(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return samples(8)[index]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (Endless(), "no length or no order"),
        (Unsized(), "no length or no order"),
        (iter(samples(8)), "no length or no order"),
        (DataLoader(Endless(), 4), "must have a length"),
        (DataLoader(samples(0), 4), "is empty"),
    ],
    ids=["iterable", "no len", "an iterator", "a loader of an iterable", "an empty loader"],
)
def test_data_that_cannot_be_trained_on_are_refused(data: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match=said):
        prepare(data, tmp_path / "b")


class Spectral(nn.Module):
    """A filter on the spectrum (GFNet, arXiv 2107.00645): a 4-D weight, used as complex."""

    def __init__(self, *, inside: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8, 5, 2) if inside else torch.randn(1, 8, 8, 2))
        self.inside = inside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.inside:
            spectrum = torch.fft.rfft2(x) * torch.view_as_complex(self.weight)
            filtered: torch.Tensor = torch.fft.irfft2(spectrum, s=(8, 8))
            return filtered
        return x * torch.view_as_complex(self.weight).abs()


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("train_device_slice", [True, False])
@pytest.mark.parametrize("point", ["0", "2"])
def test_a_weight_used_as_complex_is_trained(
    point: str, train_device_slice: bool, labelled: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), Spectral(inside=True), nn.ReLU(), nn.Flatten(),
        nn.Linear(512, 2),
    ).eval()  # fmt: skip
    graph = sl.capture(model, torch.zeros(1, 3, 8, 8), name="spectral")
    data = samples(12)
    recipe = Recipe(
        epochs=2, batch_size=4, train_device_slice=train_device_slice, patience=2, holdout=0.3
    )

    sliced = insert(graph, point, OURS, calibration=[(data.tensors[0],)], recipe=recipe)
    teacher = Teacher(graph, point)
    trained = trainer.train(sliced, data, recipe, teacher=teacher, labelled=labelled)
    assert trained.epochs == 2
    assert torch.isfinite(torch.as_tensor(sliced(data.tensors[0]))).all()


def test_a_network_used_as_complex_learns_without_a_teacher() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Spectral(inside=False), nn.Flatten(), nn.Linear(512, 2))
    x = torch.randn(12, 8, 8, 8)
    trainer.train(model, TensorDataset(x, torch.arange(12) % 2), Recipe(epochs=2, batch_size=4))
    assert torch.isfinite(model(x)).all()


class Noisy(Dataset[Any]):
    """Other numbers whenever it is read."""

    def __init__(self, label: int = 0) -> None:
        self.random, self.label = torch.Generator(), label

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Any:
        return torch.randn(3, 8, 8, generator=self.random), self.label


def test_the_digest_of_data_tells_them_apart(textures: Path, tmp_path: Path) -> None:
    x = torch.randn(40, 3, 4, 4)
    y = torch.arange(40) % 2
    first = TensorDataset(x, y)
    gray = msgspec.structs.replace(TEXTURES, mean=(0.5,), std=(0.5,))
    different: list[Any] = [
        first,
        TensorDataset(x + 1, y),
        TensorDataset(x, 1 - y),
        TensorDataset(x.flip(0), y),
        Subset(first, range(39)),
        Subset(first, range(1, 40)),
        DataLoader(first, 4),
        DataLoader(first, 8),
        Noisy(),
        Noisy(label=1),
        ImageFolder(textures / "train", TEXTURES),
        ImageFolder(textures / "test", TEXTURES),
        ImageFolder(textures / "train", gray),
        Photographs(textures / "train", TEXTURES),
    ]
    digests = [data_digest(data) for data in different]
    assert len(set(digests)) == len(digests)
    # The same data have the same digest, also where samples are random.
    torch.rand(3)
    assert digests == [data_digest(data) for data in different]
    assert data_digest(TensorDataset(x.clone(), y.clone())) == digests[0]
    # A folder's place plays no part.
    (tmp_path / "moved").symlink_to(textures / "train")
    assert data_digest(ImageFolder(tmp_path / "moved", TEXTURES)) == digests[10]


def test_a_checkpoint_of_other_data_of_the_same_length_is_refused(tmp_path: Path) -> None:
    """A float32 Transfer Layer has no scales, so the networks to train are the same."""

    class StoppedError(Exception):
        pass

    class Interrupted(TensorDataset):
        reads = 0

        def __getitem__(self, index: int) -> Any:
            Interrupted.reads += 1
            if Interrupted.reads > 150:
                raise StoppedError
            return self.tensors[0][index], self.tensors[1][index]

    x, y = samples(20).tensors
    paper = sl.TransferSpec.paper()
    with pytest.raises(StoppedError):
        prepare(Interrupted(x, y), tmp_path / "b", spec=paper, epochs=50)
    assert (tmp_path / ".b.checkpoint").exists()
    with pytest.raises(PrepareError, match="checkpoint of another training"):
        prepare(TensorDataset(x, 1 - y), tmp_path / "b", spec=paper, epochs=50)
    Interrupted.reads = -10_000
    prepare(Interrupted(x, y), tmp_path / "b", spec=paper, epochs=50)


class Rare(Dataset[Any]):
    """100 samples, 10 of class 1; never changing, so that their features are cached."""

    augment = False

    def side(self, mirrored: bool | None) -> Rare:
        return self

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        x = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(index))
        return x, int(index % 10 == 0)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("balanced", [True, False])
def test_classes_are_drawn_equally_often(balanced: bool, cached: bool, tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    def loss(answer: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.append(target)
        return nn.functional.cross_entropy(answer, target)

    task = replace(sl.CLASSIFICATION, loss=loss)
    data = Rare() if cached else TensorDataset(*default_collate([Rare()[i] for i in range(100)]))
    graph = sl.capture(network().eval(), torch.zeros(1, 3, 8, 8), name="net")
    recipe = Recipe(epochs=4, batch_size=10, balanced=balanced, patience=None)
    plan = sl.Plan(kind="split", slicing_point="1", spec=OURS)
    sl.prepare(graph, plan, train=data, task=task, out=tmp_path / "b", recipe=recipe)
    labels = torch.cat(seen)
    assert len(labels) >= 400
    # Of 400 draws, 200 are expected, with a standard deviation of 10; or 40, exactly.
    assert (labels[-400:] == 1).sum() == pytest.approx(200 if balanced else 40, abs=50 * balanced)


def test_weights_of_samples_make_classes_equal(tmp_path: Path) -> None:
    write_dataset(tmp_path, train=4, test=2)
    rare = next((tmp_path / "train").iterdir())
    for file in sorted(rare.iterdir())[1:]:
        file.unlink()
    data = ImageFolder(tmp_path / "train", TEXTURES)
    for each in (data, Subset(data, range(2, len(data)))):
        weights = class_weights(each)
        labels = torch.tensor(
            [data.files[i][1] for i in getattr(each, "indices", range(len(data)))]
        )
        sums = torch.zeros(6, dtype=torch.float64).index_add(0, labels, weights)
        assert set(sums.tolist()) <= {0.0, 1.0}


def test_what_cannot_be_drawn_equally_often_is_said(tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match="needs labels: give train="):
        prepare(samples(8), tmp_path / "b", labelled=False, balanced=True)
    with pytest.raises(PrepareError, match="a DataLoader has its own order"):
        prepare(DataLoader(samples(8), 4), tmp_path / "b", balanced=True)
    pixels = TensorDataset(torch.randn(8, 3, 8, 8), torch.zeros(8, 8, 8, dtype=torch.int64))
    with pytest.raises(PrepareError, match="only samples with the label of a class"):
        class_weights(pixels)
