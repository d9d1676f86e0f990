"""Rate in the loss: the estimate against the coder's bytes, the density, and targets reached."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from msgspec import structs
from torch import nn
from torch.utils.data import TensorDataset

import scissionlite as sl
from scissionlite.errors import PrepareError
from scissionlite.manifest import Training
from scissionlite.preprocessor import checkpoint, trainer
from scissionlite.preprocessor.entropy_fitting import entropy_tables
from scissionlite.preprocessor.inserter import SlicedNetwork, insert
from scissionlite.preprocessor.teacher import Teacher
from scissionlite.transfer_layer import table_fitting
from scissionlite.transfer_layer.code_density import CodeDensity
from scissionlite.transfer_layer.layers import Scales

LEARNED = sl.TransferSpec(pool_kind="learned", pool=2, reduction=2, entropy="ans")
PLAIN = sl.TransferSpec(entropy="ans", granularity="channel")
QUICK = sl.Recipe(epochs=4, batch_size=16, learning_rate=2e-3)
SPECS = pytest.mark.parametrize("spec", [LEARNED, PLAIN], ids=["learned", "plain"])


@pytest.fixture(scope="module")
def graph() -> sl.Graph:
    torch.manual_seed(1)
    first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    rest = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    network = nn.Sequential(first, rest, head).eval()
    return sl.capture(network, torch.zeros(1, 3, 16, 16), name="tiny")


class Images(TensorDataset):
    """Smooth images, noise at a quarter of the resolution enlarged; their features are cached."""

    augment = True

    def __init__(self, count: int = 160, *, mirrored: bool = False) -> None:
        coarse = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        x = nn.functional.interpolate(coarse, (16, 16), mode="bilinear")
        super().__init__(x.flip(-1) if mirrored else x, torch.arange(count) % 4)

    def side(self, mirrored: bool) -> Images:
        return Images(len(self), mirrored=mirrored)


class Trained(NamedTuple):
    network: SlicedNetwork
    training: Training
    sent: float
    """Mean bytes that the codec makes of an input."""


def trained(
    graph: sl.Graph,
    spec: sl.TransferSpec,
    recipe: sl.Recipe,
    *,
    teacher: bool = True,
    saved: Path | None = None,
) -> Trained:
    data = Images()
    x = data.tensors[0]
    torch.manual_seed(0)
    network = insert(graph, "0", spec, calibration=[(x,)], recipe=recipe)
    training = trainer.train(
        network,
        data,
        recipe,
        teacher=Teacher(graph, "0") if teacher else None,
        labelled=not teacher,
        checkpoint=saved,
    )
    (tables,) = entropy_tables(network, [(x,)])
    (layer,) = network.layers
    sizes = []
    with torch.no_grad():
        for each in x[:64]:
            (features,) = network.features(each[None])
            made = layer.encoder(features).numpy()
            packed = sl.encode(made, layer.spec.packing, layer.quantization, tables=tables)
            sizes.append(packed.nbytes)
    return Trained(network, training, float(np.mean(sizes)))


@pytest.fixture(autouse=True)
def tables_by_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tables by neighbours: training estimates the bytes of tables by channel."""
    monkeypatch.setattr(table_fitting, "_WORTH", 1.0)


@SPECS
def test_the_estimate_is_what_the_coder_makes(graph: sl.Graph, spec: sl.TransferSpec) -> None:
    recipe = structs.replace(QUICK, epochs=8)
    without = trained(graph, spec, recipe)
    assert (without.training.rate, without.training.estimated_bytes) == (0, None)
    with_rate = trained(graph, spec, structs.replace(recipe, rate=0.3), teacher=spec.learned)
    assert with_rate.training.rate == pytest.approx(0.3)
    assert with_rate.training.estimated_bytes == pytest.approx(with_rate.sent, rel=0.03)
    assert with_rate.sent < 0.95 * without.sent


@SPECS
def test_a_target_is_reached(graph: sl.Graph, spec: sl.TransferSpec) -> None:
    recipe = structs.replace(QUICK, epochs=12, target_bytes=80)
    training, sent = trained(graph, spec, recipe)[1:]
    assert training.estimated_bytes == pytest.approx(80, rel=0.06)
    assert sent == pytest.approx(80, rel=0.08)


def test_the_bundle_tells_weight_and_bytes(graph: sl.Graph, tmp_path: Path) -> None:
    bundle = sl.prepare(
        graph,
        sl.Plan(kind="split", slicing_point="0", spec=LEARNED),
        unlabelled=Images(),
        validate=Images(),
        out=tmp_path / "bundle",
        recipe=structs.replace(QUICK, target_bytes=60),
    )
    training, accuracy = bundle.manifest.training, bundle.manifest.accuracy
    assert training is not None
    assert accuracy is not None
    assert training.rate > 0
    assert training.estimated_bytes == pytest.approx(accuracy.sent_bytes, rel=0.03)


def test_the_weight_goes_on_after_an_interruption(
    graph: sl.Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = structs.replace(QUICK, epochs=2, target_bytes=60)
    whole = trained(graph, LEARNED, recipe)
    save = checkpoint.Checkpoint.save

    def save_and_stop(self: checkpoint.Checkpoint, state: checkpoint.TrainingState) -> None:
        save(self, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.Checkpoint, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        trained(graph, LEARNED, recipe, saved=tmp_path / "saved")
    monkeypatch.undo()
    resumed = trained(graph, LEARNED, recipe, saved=tmp_path / "saved")
    assert resumed.training.rate == whole.training.rate
    for a, b in zip(
        whole.network.state_dict().values(), resumed.network.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


def densities() -> Iterator[tuple[Scales, CodeDensity]]:
    """Densities of int4 codes with one scale, and with one for each channel."""
    torch.manual_seed(0)
    codes = torch.randint(-8, 8, (4, 3, 5, 5)).float()
    for quantization in (
        sl.Quantization(0.3, 2),
        sl.Quantization((0.3, 0.1, 0.5), (2, -8, 0)),
    ):
        scales = Scales(quantization, learned=True)
        yield scales, CodeDensity("int4", codes, scales)


def test_the_codes_of_a_channel_have_all_of_the_mass() -> None:
    for scales, density in densities():
        every = torch.arange(-8, 8).float()
        bits = torch.stack([density(code.expand(1, 3, 1, 1), scales) for code in every])
        torch.testing.assert_close((2**-bits).sum(0), torch.ones(3), rtol=1e-4, atol=0)


def test_larger_steps_take_fewer_bits() -> None:
    for scales, density in densities():
        values = torch.randn(16, 3, 5, 5)
        assert scales.log_scale is not None
        codes = torch.clamp(values / scales.steps()[0] + scales.zero_point, -7.4, 6.4)
        density(codes, scales).sum().backward()
        for p in density.parameters():
            assert p.grad is not None
            assert torch.isfinite(p.grad).all()
        assert scales.log_scale.grad is not None
        assert float(scales.log_scale.grad.max()) < 0


def test_the_encoder_alone_makes_bytes_fewer(graph: sl.Graph) -> None:
    fixed = structs.replace(QUICK, epochs=8, learn_scales=False)
    without = trained(graph, LEARNED, fixed)
    with_rate = trained(graph, LEARNED, structs.replace(fixed, rate=10))
    assert with_rate.network.layers[0].quantization == without.network.layers[0].quantization
    assert with_rate.sent < 0.95 * without.sent


def test_what_has_no_rate_is_refused(graph: sl.Graph) -> None:
    with pytest.raises(PrepareError, match="need int8 or int4"):
        trained(graph, sl.TransferSpec(dtype="float16"), structs.replace(QUICK, rate=0.1))
    fixed = structs.replace(QUICK, target_bytes=50, learn_scales=False)
    with pytest.raises(PrepareError, match="change nothing"):
        trained(graph, sl.TransferSpec(), fixed)
    with pytest.raises(PrepareError, match="patience"):
        trained(graph, LEARNED, structs.replace(QUICK, target_bytes=50, patience=1))
