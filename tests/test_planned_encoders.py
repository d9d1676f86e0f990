"""Shallow encoders in profiles and plans: what is measured, what is predicted, what is offered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from conftest import TEXTURES
from msgspec import structs
from profiles import written
from torch import nn

import scissionlite as sl
from scissionlite.errors import PlanError
from scissionlite.preprocessor.choosing import LossyTransfer, choose
from scissionlite.preprocessor.data import sample_frames
from scissionlite.preprocessor.inserter import insert
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.scissiontl.drops import answer_distance, drop_of
from scissionlite.scissiontl.encoders import ENCODERS
from scissionlite.scissiontl.figures import split_figure
from scissionlite.scissiontl.importance import importance
from scissionlite.scissiontl.leakage import distance_correlation
from scissionlite.scissiontl.profile import EncoderProfile

LINK = sl.Link(0.01, 1e6)
TINY, SMALL, BASE = map(sl.TransferSpec.shallow_encoder, ("tiny", "small", "base"))


def by_spec(profile: sl.Profile) -> dict[sl.TransferSpec, EncoderProfile]:
    return {each.spec: each for each in profile.encoders}


def at_image(plans: list[sl.Plan]) -> list[sl.Plan]:
    return [each for each in plans if each.slicing_point == "input"]


def test_every_size_is_measured_with_every_entropy_coder(measured_textures: sl.Profile) -> None:
    found = by_spec(measured_textures)
    assert list(found) == list(ENCODERS)
    assert {spec.encoder for spec in found} == {"tiny", "small", "base"}
    for spec, each in found.items():
        assert min(each.encoder, each.encode, each.decode, each.decoder) > 0
        plain = spec.packed_nbytes(measured_textures.inputs[0].shape)
        assert each.nbytes == plain if spec.entropy is None else 0 < each.nbytes < plain
    for spec in (TINY, SMALL, BASE):
        alike = [found[structs.replace(spec, entropy=coder)] for coder in (None, "zstd", "ans")]
        # The halves, and what is lost, do not depend on the coder.
        assert len({(e.encoder, e.decoder, e.leakage, e.drop) for e in alike}) == 1
    assert found[TINY].nbytes < found[SMALL].nbytes  # the textures have no more to send


def test_leakage_and_drop_are_those_of_the_encoder_that_training_starts_from(
    measured_textures: sl.Profile, small_graph: sl.Graph, textures: Path
) -> None:
    frames = sample_frames(textures / "train", TEXTURES, count=16)
    x = torch.cat([torch.from_numpy(TEXTURES.tensor(frame)) for frame in frames])
    network = insert(small_graph, "input", TINY, calibration=[(x,)])
    (layer,) = network.layers
    with torch.no_grad():
        received = layer.edge(layer.send(x), ())
        distance = answer_distance([network.eval()(x)], [small_graph.module(x)])
    tiny = by_spec(measured_textures)[TINY]
    assert tiny.leakage == pytest.approx(distance_correlation(x.numpy(), received.numpy()), 1e-5)
    assert tiny.drop == pytest.approx(drop_of(distance), rel=1e-3)
    drops = [by_spec(measured_textures)[spec].drop for spec in (TINY, SMALL, BASE)]
    assert drops == sorted(drops, key=lambda drop: -float(drop or 0))


def test_profiles_with_encoders_are_stored_and_slowed_and_older_ones_are_read(
    measured_textures: sl.Profile,
) -> None:
    assert sl.Profile.parse(measured_textures.json()) == measured_textures
    slow, tiny = measured_textures.slowed(8), by_spec(measured_textures)[TINY]
    expected = {name: getattr(tiny, name) * 8 for name in ("encoder", "encode", "decode")}
    assert by_spec(slow)[TINY] == structs.replace(tiny, decoder=tiny.decoder * 8, **expected)
    fields: dict[str, Any] = msgspec.json.decode(measured_textures.json())
    del fields["encoders"]
    old = sl.Profile.parse(msgspec.json.encode(fields))
    assert old.encoders == ()
    for device, edge in ((old, measured_textures), (measured_textures, old)):
        assert not at_image(sl.plan(device, edge, LINK, learned=True))


def encoding(spec: sl.TransferSpec = TINY, **more: Any) -> EncoderProfile:
    times = {"encoder": 0.004, "encode": 0.002, "decode": 0.0005, "decoder": 0.007}
    return EncoderProfile(spec=spec, nbytes=500, **(times | more))


def test_a_plan_adds_up_the_encoder_the_link_and_the_whole_network() -> None:
    device = written("pi", encoders=(encoding(leakage=0.75, drop=0.5),), network_latency_int8=0.02)
    edge = written("edge", encoders=(encoding(encoder=9.0, decode=0.001, decoder=0.003),))
    (plan,) = at_image(sl.plan(device, edge, LINK, learned=True, power=2.0))
    cost = plan.predicted
    assert (plan.kind, plan.spec, plan.device_precision) == ("split", TINY, "float32")
    assert plan.machines == ("pi", "edge")
    assert cost.device_time == pytest.approx(device.preprocess + 0.004)
    assert (cost.encode_time, cost.decode_time) == (0.002, 0.001)
    assert cost.edge_time == pytest.approx(0.003 + edge.network_latency)
    assert cost.transfer_time == LINK.transfer_time(500, device.answer_bytes)
    assert (cost.sent_bytes, cost.device_blocks, cost.edge_blocks) == (500, 0, 3)
    assert (cost.leakage, cost.drop) == (0.75, 0.5)
    assert cost.energy == pytest.approx(2 * cost.device_stage)
    # An image keeps its own leakage; an edge's drop stands in for a device's that has none.
    bare = written("pi", encoders=(encoding(),))
    other = written("edge", encoders=(encoding(drop=0.25),))
    (plan,) = at_image(sl.plan(bare, other, LINK, learned=True))
    assert (plan.predicted.leakage, plan.predicted.drop) == (None, 0.25)


def test_constraints_know_the_image_as_a_slicing_point() -> None:
    device = written("pi", encoders=(encoding(leakage=0.75),))
    edge = written("edge", encoders=(encoding(),))

    def plans(**limits: Any) -> list[sl.Plan]:
        limited = sl.Constraints(**limits)
        return sl.plan(device, edge, LINK, learned=True, constraints=limited)

    assert {each.slicing_point for each in plans(slicing_points=("input",))} == {"input"}
    assert not at_image(plans(avoid_slicing_points=("input",)))
    assert not at_image(plans(max_leakage=0.7))
    assert at_image(plans(max_leakage=0.8))
    assert not at_image(plans(on_device=("b0",)))
    assert at_image(plans(on_edge=("b0",)))
    with pytest.raises(PlanError, match="excludes"):
        sl.plan(device, edge, LINK, constraints=sl.Constraints(slicing_points=("input",)))


def test_the_figure_shows_an_encoder_that_is_best() -> None:
    device = written("pi", encoders=(encoding(),)).slowed(20)
    plans = sl.plan(device, written("edge", encoders=(encoding(),)), LINK, learned=True)
    assert plans[0].slicing_point == "input"
    (axes,) = split_figure(plans).axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["input", "b0", "b1"]
    assert plans[0].label in " ".join(map(str, axes.get_legend_handles_labels()[1]))


def test_an_encoder_is_chosen_by_accuracy_but_not_in_int8(
    small_graph: sl.Graph, textures: Path, tmp_path: Path
) -> None:
    plans = [
        sl.Plan(kind="split", slicing_point="input", spec=spec)
        for spec in (TINY, structs.replace(TINY, entropy="zstd"), BASE)
    ]
    options: dict[str, Any] = {
        "unlabelled": textures / "train",
        "validate": textures / "test",
        "preprocessing": TEXTURES,
        "recipe": Recipe(epochs=0),
        "out": tmp_path / "bundle",
    }
    choice = choose(small_graph, plans, accuracy_drop=1.0, **options)
    assert choice.bundle.manifest.transfer == TINY
    tried: list[sl.Plan] = []
    choice = choose(
        small_graph,
        [*plans, sl.Plan(kind="local")],
        accuracy_drop=1.0,
        device_precision="int8",
        on_try=lambda outlook: tried.append(outlook.plan),
        **options,
    )
    assert [each.kind for each in tried] == ["local"]
    losses = {
        spec: LossyTransfer.of(
            small_graph, sl.Plan(kind="split", slicing_point="input", spec=spec), False
        )
        for spec in (TINY, BASE)
    }
    tiny, base = losses[TINY], losses[BASE]
    assert tiny is not None
    assert base is not None
    assert tiny.as_harsh_as(base)
    assert not base.as_harsh_as(tiny)


class Answer(nn.Module):
    """Says which quarter of the image is brightest: no gradient goes through that."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(x.mean(1), 2).flatten(1)
        return nn.functional.one_hot(pooled.argmax(1), 4).float()


def test_a_network_without_a_gradient_has_encoders_too() -> None:
    x = torch.randn(2, 3, 16, 16)
    filters = torch.randn(5, 3, 8, 8)
    assert np.allclose(importance(Answer(), x, filters), 1)


def test_without_slices_or_an_image_there_are_no_encoders() -> None:
    options: dict[str, Any] = {"repetitions": 1, "warm_up": 0, "int8": False}
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    for graph, slices in (
        (sl.capture(model, torch.randn(1, 5, 4)), 1),
        (sl.capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.zeros(1, 3, 16, 16)), 0),
    ):
        assert sl.profile(graph, slices=slices, **options).encoders == ()
