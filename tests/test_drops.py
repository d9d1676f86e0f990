"""Predicted accuracy drops: what is measured, what a profile holds, and what plans show."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from conftest import TEXTURES
from profiles import JPEG, written
from torch import nn
from typer.testing import CliRunner

import scissionlite as sl
from scissionlite.cli import app
from scissionlite.preprocessor.data import sample_frames
from scissionlite.preprocessor.inserter import insert
from scissionlite.scissiontl.cost import codec_drops
from scissionlite.scissiontl.drops import DropMeter, answer_distance, drop_of, losses_of

HARSH = sl.TransferSpec(pool=4, dtype="int4")
LEARNED = sl.TransferSpec(pool=2, pool_kind="learned", reduction=4)
INT8 = sl.TransferSpec(pool=1)
LINK = sl.Link(0.01, 1e7)

Inputs = list[tuple[torch.Tensor, ...]]


@pytest.fixture(scope="module")
def inputs(textures: Path) -> Inputs:
    """Twenty photographs, which are a batch of 16 and one of 4."""
    frames = sample_frames(textures / "train", TEXTURES, count=20)
    return [(torch.from_numpy(TEXTURES.tensor(frame)),) for frame in frames]


def distance(network: nn.Module, graph: sl.Graph, inputs: Inputs) -> float:
    """Mean Kullback-Leibler divergence of two networks' classes, one photograph at a time."""
    total = 0.0
    with torch.no_grad():
        for each in inputs:
            own, reference = network(*each).softmax(1), graph.module(*each).softmax(1)
            total += float((reference * (reference / own).log()).sum())
    return total / len(inputs)


@pytest.mark.parametrize("spec", [INT8, HARSH, LEARNED], ids=lambda spec: spec.name)
def test_a_drop_is_the_distance_with_the_untrained_transfer_layer(
    spec: sl.TransferSpec, small_graph: sl.Graph, inputs: Inputs
) -> None:
    point = small_graph.slicing_points[2]
    measured = DropMeter(small_graph, inputs).at(point, [spec])
    network = insert(small_graph, point, spec, calibration=inputs).eval()
    expected = 1 - np.exp(-distance(network, small_graph, inputs))
    assert measured[spec] == pytest.approx(expected, abs=1e-5)


def test_what_loses_more_is_predicted_to_cost_more(small_graph: sl.Graph, inputs: Inputs) -> None:
    meter = DropMeter(small_graph, inputs)
    coded = msgspec.structs.replace(HARSH, entropy="zstd")
    specs = [sl.TransferSpec.float32_split(), INT8, sl.TransferSpec(), HARSH, coded]
    drops = [meter.at(small_graph.slicing_points[0], specs)[spec] for spec in specs]
    assert drops[0] == 0
    assert 0 < drops[1] < drops[2] < drops[3] == drops[4] <= 1
    # A Transfer Layer that no tensor can have is left out.
    last = small_graph.slicing_points[-1]
    assert len(last.crossing[0].shape) == 2
    assert list(meter.at(last, [INT8, HARSH])) == [INT8]


def test_an_answer_that_is_no_class_has_a_relative_error() -> None:
    reference = [torch.tensor([[1.0], [3.0]])]  # variance 1
    assert answer_distance([reference[0] + 0.5], reference) == pytest.approx(0.25)
    boxes = [torch.arange(24.0).reshape(2, 3, 4)]
    assert answer_distance(boxes, boxes) == 0
    sure = [torch.tensor([[9.0, -9.0]])]
    assert answer_distance([-sure[0]], sure) == pytest.approx(18, abs=1e-3)
    assert drop_of(18) == pytest.approx(1)
    assert drop_of(math.log(2)) == pytest.approx(0.5)
    assert drop_of(0) == drop_of(-1e-9) == 0  # a divergence of equal answers may round below 0


def test_a_profile_with_photographs_has_the_drops(
    measured_textures: sl.Profile, tmp_path: Path
) -> None:
    measured = measured_textures
    timed = {each.block for each in measured.slices}
    assert len(timed) == 2
    known = [t for t in measured.transfers if t.drop is not None]
    assert {t.block for t in known} == timed
    assert any(t.spec.learned for t in known)
    assert all(0 <= t.drop <= 1 for t in known if t.drop is not None)
    # Those that lose the same have the same drop, whatever the coder.
    by_loss: dict[object, set[float | None]] = {}
    for each in known:
        by_loss.setdefault((each.block, losses_of(each.spec)), set()).add(each.drop)
    assert all(len(drops) == 1 for drops in by_loss.values())
    drops = {image.format: image.drop for image in measured.images}
    assert drops["uint8"] == drops["png"] == 0
    assert drops["jpeg"] is not None
    assert 0 < drops["jpeg"] < 0.5
    assert measured.network_drop_int8 is not None
    assert 0 < measured.network_drop_int8 < 0.5
    measured.save(tmp_path / "profile.json")
    assert sl.Profile.load(tmp_path / "profile.json") == measured
    # A profile that is older than the fields is read.
    old = msgspec.json.decode(measured.json())
    for each in (*old["transfers"], *old["images"]):
        del each["drop"]
    del old["network_drop_int8"]
    read = sl.Profile.parse(msgspec.json.encode(old))
    assert {t.drop for t in read.transfers} == {None}
    assert sl.plan(read, read, LINK)[0].predicted.drop in (None, 0.0)


def test_every_plan_of_a_profile_with_drops_shows_one(
    measured_textures: sl.Profile, tmp_path: Path
) -> None:
    measured = measured_textures
    plans = sl.plan(measured, measured, LINK, learned=True)
    assert all(each.predicted.drop is not None for each in plans)
    assert {each.kind for each in plans} == {"local", "image", "split"}
    local = {p.device_precision: p.predicted.drop for p in plans if p.kind == "local"}
    assert local == {"float32": 0.0, "int8": measured.network_drop_int8}
    path = tmp_path / "profile.json"
    measured.save(path)
    shown = CliRunner().invoke(app, ["plan", str(path), str(path), "--top", "3"])
    assert shown.exit_code == 0
    assert "before training" in " ".join(shown.stdout.split())
    unmeasured = tmp_path / "unmeasured.json"
    written().save(unmeasured)
    shown = CliRunner().invoke(app, ["plan", str(unmeasured), str(unmeasured)])
    assert "drop" not in shown.stdout


def test_drops_are_interpolated_and_added_up() -> None:
    spec = sl.TransferSpec()
    profile = written(latencies=(0.01,) * 5)

    def with_drop(known: dict[int, float]) -> sl.Profile:
        transfers = tuple(
            msgspec.structs.replace(t, drop=known.get(t.block) if t.spec == spec else None)
            for t in profile.transfers
        )
        return msgspec.structs.replace(
            profile,
            transfers=transfers,
            images=(msgspec.structs.replace(JPEG, drop=0.125),),
            network_latency_int8=0.02,
            network_drop_int8=0.25,
        )

    first = with_drop({1: 0.5, 3: 0.25})
    assert codec_drops(first) == {(0, spec): 0.5, (1, spec): 0.5, (2, spec): 0.375, (3, spec): 0.25}
    plans = sl.plan(first, first, LINK)
    drops = {
        (p.kind, p.slicing_point, p.device_precision): p.predicted.drop
        for p in plans
        if p.spec in (None, spec)
    }
    assert drops["split", "b2", "float32"] == 0.375
    assert drops["split", "b2", "int8"] == 0.625
    assert drops["image", None, "float32"] == 0.125
    assert all(p.predicted.drop is None for p in plans if p.spec not in (None, spec))
    # Where the device's profile has none, the edge's are taken.
    bare = written("bare", latencies=(0.01,) * 5)
    other = sl.plan(bare, first, LINK, constraints=sl.Constraints(slicing_points=("b3",)))
    assert {p.spec: p.predicted.drop for p in other}[spec] == 0.25
    # With three tiers those of both cuts are added up.
    tiers = sl.plan(
        first,
        msgspec.structs.replace(first, name="edge"),
        LINK,
        cloud=[msgspec.structs.replace(first, name="cloud")],
    )
    both = [p for p in tiers if p.second is not None and p.spec == p.second.spec == spec]
    assert both
    at = {f"b{i}": drop for i, drop in enumerate((0.5, 0.5, 0.375, 0.25))}
    for each in both:
        assert each.second is not None
        assert each.predicted.drop == at[str(each.slicing_point)] + at[each.second.slicing_point]
