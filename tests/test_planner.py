"""Predictions, constraints and ranking."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from conftest import BundleFactory
from hypothesis import given
from profiles import JPEG, SPECS, written

import scissionlite as sl
from scissionlite.errors import PlanError, ProfileError
from scissionlite.graph.tensors import TensorInfo
from scissionlite.manifest import Accuracy, NextHop
from scissionlite.scissiontl.cost import Machine, Prediction, int8_slice_times, slice_times
from scissionlite.scissiontl.planner import Objective, pareto
from scissionlite.scissiontl.plans import MeasuredAccuracy, SecondCut
from scissionlite.scissiontl.profile import (
    BlockProfile,
    ImageProfile,
    OffloadProfile,
    SliceProfile,
    TransferProfile,
)

LINK = sl.Link(rtt=0.010, bandwidth=8e6)  # 1 byte a microsecond
EDGE = (0.001, 0.002, 0.003)


def by_key(plans: list[sl.Plan]) -> dict[tuple[Any, ...], sl.Plan]:
    return {(p.kind, p.slicing_point, p.spec): p for p in plans}


def test_the_cost_model_is_scissions_sum_and_what_the_offloader_takes() -> None:
    answer = (TensorInfo("output", (1, 250)),)
    device = written(images=(JPEG,), outputs=answer, offload=OffloadProfile(0.0003, 1e-8))
    edge = written("edge", EDGE, images=(JPEG,), offload=OffloadProfile(0.0002, 2e-8))
    plans = by_key(sl.plan(device, edge, LINK))
    assert len(plans) == 2 + 2 * 3

    assert plans["local", None, None].predicted.latency == pytest.approx(0.060 + 0.002)
    # encode + rtt + 2000 bytes + 1000 of answer + decode + preprocess + the network on the edge
    jpeg = 0.003 + 0.010 + 0.002 + 0.001 + 0.004 + 0.002 + 0.006 + 0.0005 + 2000 * 3e-8
    assert plans["image", None, None].predicted.latency == pytest.approx(jpeg)
    for spec, nbytes in zip(SPECS, (4096, 1024, 256), strict=True):
        cost = plans["split", "b1", spec].predicted
        parts = 0.002 + 0.030 + 0.001 + 0.010 + nbytes * 1e-6 + 0.001 + 0.0005 + 0.003
        assert cost.latency == pytest.approx(parts + 0.0005 + nbytes * 3e-8)
        assert (cost.sent_bytes, cost.device_blocks, cost.edge_blocks) == (nbytes, 2, 1)
        assert (cost.device_layers, cost.device_memory) == (4, 2 * 1000 + 4096)
        assert cost.leakage == 0.5
        stages = (0.002 + 0.030 + 0.001, nbytes * 1e-6, 0.0005 + 0.003)
        assert cost.throughput == pytest.approx(1 / max(stages))


def test_answers_come_back_at_the_download_rate() -> None:
    device = written(outputs=(TensorInfo("output", (1, 250)),))
    link = sl.Link(rtt=0.010, bandwidth=8e6, download=16e6)
    cost = by_key(sl.plan(device, written("edge"), link))["split", "b0", SPECS[2]].predicted
    assert cost.transfer_time == pytest.approx(0.010 + 256e-6 + 500e-6)


def test_measured_slices_come_before_sums_of_blocks() -> None:
    slices = (SliceProfile(1, device=0.015, edge=0.060),)  # the blocks sum to 0.030 and 0.090
    profile = written(latencies=(0.01, 0.02, 0.04, 0.05), slices=slices, network_latency=0.096)
    device, edge = slice_times(profile)
    assert device[1] == pytest.approx(0.015)
    assert edge[1] == pytest.approx(0.060)
    # A third of the first slice's blocks, and four ninths of those behind it.
    assert device[0] == pytest.approx(0.015 / 3)
    assert device[2] == pytest.approx(0.015 + (0.096 - 0.015) * 4 / 9)
    assert edge[0] == pytest.approx(0.096 - (0.096 - 0.060) / 3)
    assert edge[2] == pytest.approx(0.060 * 5 / 9)


def test_a_long_block_between_measured_slices_takes_its_share_of_their_difference() -> None:
    # DenseNet-169's: the first slice is compiled to a third of its blocks' sum, the next is not.
    slices = (
        SliceProfile(0, device=0.004, edge=0.123, device_int8=0.002),
        SliceProfile(2, device=0.049, edge=0.082, device_int8=0.042),
    )
    profile = written(
        latencies=(0.012, 0.034, 0.006, 0.1),
        slices=slices,
        network_latency=0.129,
        network_latency_int8=0.1,
    )
    device, edge = slice_times(profile)
    assert device == pytest.approx([0.004, 0.004 + 0.045 * 34 / 40, 0.049])
    assert edge == pytest.approx([0.123, 0.123 - 0.041 * 34 / 40, 0.082])
    assert int8_slice_times(profile) == pytest.approx([0.002, 0.002 + 0.040 * 34 / 40, 0.042])


def test_blocks_are_scaled_to_what_the_fused_network_takes() -> None:
    device, edge = slice_times(written(network_latency=0.030))  # the blocks sum to 0.060
    assert device == pytest.approx([0.005, 0.015])
    assert edge == pytest.approx([0.025, 0.015])


def test_plans_come_fastest_first_and_the_best_depends_on_the_link() -> None:
    image = msgspec.structs.replace(JPEG, nbytes=3000)
    device = written(images=(image,)).slowed(5)
    edge = written("edge", EDGE, images=(image,))

    def best(rtt: float, bandwidth: float) -> sl.Plan:
        plans = sl.plan(device, edge, sl.Link(rtt, bandwidth))
        latencies = [p.predicted.latency for p in plans]
        assert latencies == sorted(latencies)
        return plans[0]

    assert best(0.5, 1e6).kind == "local"
    assert best(0.001, 1e9).kind == "image"
    thin = best(0.001, 0.2e6)
    assert (thin.kind, thin.spec) == ("split", sl.TransferSpec())


@pytest.mark.parametrize(
    ("objective", "value"),
    [
        ("latency", lambda c: c.latency),
        ("throughput", lambda c: -c.throughput),
        ("bytes", lambda c: c.sent_bytes),
        ("device_time", lambda c: c.device_stage),
        ("energy", lambda c: c.energy),
        ("leakage", lambda c: c.leakage),
    ],
)
def test_plans_are_ranked_by_any_objective(objective: Objective, value: Any) -> None:
    device, edge = written(images=(JPEG,)), written("edge", EDGE, images=(JPEG,))
    plans = sl.plan(device, edge, LINK, objective=objective, power=5.0)
    values = [(value(p.predicted), p.predicted.latency) for p in plans]
    assert values == sorted(values)
    assert all(p.predicted.energy == pytest.approx(5 * p.predicted.device_stage) for p in plans)


def test_energy_needs_a_power() -> None:
    with pytest.raises(PlanError, match="needs the device's power: power=WATTS"):
        sl.plan(written(), written("edge"), LINK, objective="energy")
    with pytest.raises(PlanError, match="power of -1 W"):
        sl.plan(written(), written("edge"), LINK, power=-1)


COSTS = st.builds(
    Prediction,
    device_time=st.integers(0, 4).map(float),
    sent_bytes=st.integers(0, 4),
    leakage=st.none() | st.integers(0, 3).map(float),
    device_blocks=st.just(1),
)


@given(costs=st.lists(COSTS, max_size=12))
def test_the_pareto_front_holds_just_what_nothing_beats(costs: list[Prediction]) -> None:
    plans = [sl.Plan(kind="local", prediction=cost) for cost in costs]
    front = pareto(plans, ("latency", "bytes", "leakage"))

    def values(plan: sl.Plan) -> tuple[float, ...]:
        cost = plan.predicted
        return (cost.latency, cost.sent_bytes, math.inf if cost.leakage is None else cost.leakage)

    def beaten(plan: sl.Plan) -> bool:
        return any(
            all(a <= b for a, b in zip(values(other), values(plan), strict=True))
            and values(other) != values(plan)
            for other in plans
        )

    assert front == [plan for plan in plans if not beaten(plan)]


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        ({"max_upload": 300}, {("local", None), ("split", "b0"), ("split", "b1")}),
        ({"max_upload": 100}, {("local", None)}),
        ({"min_device_blocks": 2}, {("local", None), ("split", "b1")}),
        ({"min_device_layers": 4}, {("local", None), ("split", "b1")}),
        ({"max_device_time": 0.03}, {("image", None), ("split", "b0")}),
        ({"max_edge_time": 0.004}, {("local", None), ("split", "b1")}),
        ({"max_device_share": 0.2}, {("image", None)}),
        ({"max_edge_share": 0.1}, {("local", None), ("split", "b1")}),
        ({"max_device_memory": 5096}, {("image", None), ("split", "b0")}),
        ({"max_leakage": 0.6}, {("local", None), ("split", "b1")}),
        ({"max_energy": 0.01}, {("image", None)}),
        ({"min_throughput": 80.0}, {("image", None)}),
        ({"max_latency": 0.03}, {("image", None), ("split", "b0")}),
        ({"on_device": ("stage1",)}, {("local", None), ("split", "b1")}),
        ({"on_device": ("b0",)}, {("local", None), ("split", "b0"), ("split", "b1")}),
        ({"not_on_device": ("stage1.conv",)}, {("image", None), ("split", "b0")}),
        ({"on_edge": ("stage1",)}, {("image", None), ("split", "b0")}),
        ({"not_on_edge": ("stage1",)}, {("local", None), ("split", "b1")}),
        ({"slicing_points": ("b1",)}, {("split", "b1")}),
        ({"avoid_slicing_points": ("b1",)}, {("local", None), ("image", None), ("split", "b0")}),
        ({"machines": ("edge",)}, {("image", None), ("split", "b0"), ("split", "b1")}),
        ({"avoid_machines": ("edge",)}, {("local", None)}),
    ],
)
def test_constraints_leave_what_keeps_them(
    limits: dict[str, Any], left: set[tuple[str, str | None]]
) -> None:
    device, edge = written("pi", images=(JPEG,)), written("edge", EDGE, images=(JPEG,))
    plans = sl.plan(device, edge, LINK, constraints=sl.Constraints(**limits), power=1.0)
    assert {(p.kind, p.slicing_point) for p in plans} == left


def test_the_privacy_constraints_are_known_as_such() -> None:
    limits = sl.Constraints(max_upload=5, max_leakage=0.5, min_device_layers=2)
    assert limits.privacy == sl.Constraints(max_leakage=0.5, min_device_layers=2)
    assert sl.Constraints(max_upload=5).privacy is None


def test_memory_is_weights_and_the_most_feature_maps_at_once() -> None:
    machine = Machine(written())
    assert machine.device_memory == [1000 + 4096, 2000 + 4096, 3000 + 4096]
    assert machine.edge_memory == [2000 + 4096, 1000 + 4096, 0]


def test_an_infeasible_request_says_which_constraint_excludes_what() -> None:
    limits = sl.Constraints(max_latency=1e-6, max_upload=1000, avoid_machines=("edge",))
    with pytest.raises(PlanError) as caught:
        sl.plan(written(), written("edge", EDGE), LINK, constraints=limits)
    message = str(caught.value)
    assert "max_latency=1e-06 excludes 7 of 7 (the least of all is 0.028756)" in message
    assert "max_upload=1000 excludes 4 of 7 (the least of all is 0)" in message
    assert "avoid_machines=['edge'] excludes 6 of 7" in message
    unmeasured = written(leakages=(None, None))
    strict = sl.Constraints(max_leakage=0.5, not_on_device=("b1",))
    with pytest.raises(PlanError, match=r"max_leakage=0\.5 excludes 6 of 7"):
        sl.plan(unmeasured, written("edge"), LINK, constraints=strict)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"on_device": ("stage7",)}, "no layer, module or block is named 'stage7'; .*stage0"),
        ({"slicing_points": ("b2",)}, "no slicing point is named 'b2'; did you mean b"),
        ({"machines": ("egde",)}, "no machine is named 'egde'; did you mean edge"),
    ],
)
def test_unknown_names_are_reported_with_similar_ones(limits: Any, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        sl.plan(written(), written("edge"), LINK, constraints=sl.Constraints(**limits))


def test_the_best_of_several_machines_is_found_over_their_own_links() -> None:
    devices = [written("pi"), written("gateway").slowed(0.5)]
    edges = [written("near", EDGE), written("far", (1e-4, 2e-4, 3e-4))]
    links = {
        ("pi", "near"): sl.Link(0.001, 1e9),
        ("pi", "far"): sl.Link(0.5, 1e6),
        (devices[1].name, "near"): sl.Link(0.2, 1e6),
    }
    plans = sl.plan(devices, edges, links)
    pairs = {p.machines for p in plans}
    gateway = devices[1].name
    assert pairs == {("pi",), (gateway,), ("pi", "near"), ("pi", "far"), (gateway, "near")}
    assert plans[0].machines == ("pi", "near")
    only = sl.plan(devices, edges, links, constraints=sl.Constraints(machines=("far",)))
    assert {p.machines for p in only} == {("pi", "far")}
    with pytest.raises(PlanError, match="no link joins the machines"):
        sl.plan(written("x"), written("y"), links)


def test_a_third_tier_adds_a_second_hop() -> None:
    device, edge, cloud = written("d"), written("e", EDGE), written("c", (1e-4, 2e-4, 3e-4))
    links = {
        ("d", "e"): LINK,
        ("e", "c"): sl.Link(rtt=0.020, bandwidth=80e6),
        ("d", "c"): sl.Link(rtt=0.030, bandwidth=4e6),
    }
    plans = sl.plan(device, edge, links, cloud=cloud)
    assert {p.machines for p in plans} == {("d",), ("d", "e"), ("d", "c"), ("d", "e", "c")}
    (through,) = [p for p in plans if p.second is not None]
    assert through.slicing_point == "b0"
    assert through.second is not None
    assert (through.second.slicing_point, through.second.spec) == ("b1", sl.TransferSpec())
    cost = through.predicted
    first = 0.002 + 0.010 + 0.001 + 0.010 + 256e-6 + 0.0005 + 0.002
    second = 0.001 + 0.020 + 25.6e-6 + 0.0005 + 3e-4
    assert cost.latency == pytest.approx(first + second)
    assert (cost.device_blocks, cost.edge_blocks, cost.relayed_bytes) == (1, 1, 256)
    on_edge = sl.plan(device, edge, links, cloud=cloud, constraints=sl.Constraints(on_edge=("b1",)))
    # Whatever machine runs all the rest is the edge of a plan of two tiers.
    assert {p.machines for p in on_edge} == {("d", "e"), ("d", "c"), ("d", "e", "c")}
    limited = sl.plan(device, edge, links, cloud=cloud, constraints=sl.Constraints(max_upload=100))
    assert {p.machines for p in limited} == {("d",)}


def test_a_middle_slice_is_made_of_measured_parts() -> None:
    latencies = (0.010, 0.020, 0.030, 0.040, 0.050)
    # Between the cuts behind b0 and b3 a part was measured, which takes two thirds of its blocks.
    slices = (SliceProfile(0, 0.008, 0.1), SliceProfile(3, 0.07, 0.045, part=0.060))
    edge = written("e", latencies, slices=slices)
    links = {("d", "e"): LINK, ("e", "c"): LINK}
    plans = sl.plan(written("d", latencies), edge, links, cloud=written("c", latencies))
    middle = {
        (p.slicing_point, p.second.slicing_point): p.predicted.edge_time for p in plans if p.second
    }
    assert middle["b0", "b3"] == pytest.approx(0.060)
    assert middle["b1", "b2"] == pytest.approx(0.060 * 30 / 90)
    assert middle["b0", "b1"] == pytest.approx(0.060 * 20 / 90)
    # A profile without parts: sums of blocks, as the whole network fuses them.
    plain = written("e", latencies, network_latency=0.075)
    plans = sl.plan(written("d", latencies), plain, links, cloud=written("c", latencies))
    (through,) = {p.predicted.edge_time for p in plans if p.second and p.predicted.edge_blocks == 3}
    assert through == pytest.approx(0.090 / 2)


def test_accuracies_are_attached_and_have_a_floor() -> None:
    known = [
        MeasuredAccuracy(kind="local", accuracy=0.99),
        MeasuredAccuracy(kind="split", slicing_point="b0", spec=SPECS[2], accuracy=0.90),
        MeasuredAccuracy(kind="split", slicing_point="b1", spec=SPECS[2], accuracy=0.98),
    ]
    png = ImageProfile(format="png", encode=0.001, decode=0.001, nbytes=5000, source="by hand")
    device, edge = written(images=(JPEG, png)), written("edge", EDGE, images=(JPEG, png))
    plans = sl.plan(device, edge, LINK, accuracies=known)
    accuracies = {(p.kind, p.slicing_point, p.spec, p.image_format): p.accuracy for p in plans}
    assert (
        accuracies["local", None, None, None] == accuracies["split", "b1", SPECS[0], None] == 0.99
    )
    assert accuracies["image", None, None, "png"] == 0.99  # nothing is lost
    assert accuracies["split", "b0", SPECS[2], None] == 0.90
    assert accuracies["split", "b0", SPECS[1], None] is None
    assert accuracies["image", None, None, "jpeg"] is None
    floor = sl.Constraints(min_accuracy=0.95)
    kept = by_key(sl.plan(device, edge, LINK, accuracies=known, constraints=floor))
    assert ("split", "b0", SPECS[2]) not in kept
    assert ("split", "b1", SPECS[2]) in kept
    assert ("split", "b0", SPECS[1]) in kept  # nobody measured it


def test_learned_transfer_layers_are_offered_where_one_was_trained() -> None:
    spec = sl.TransferSpec(pool_kind="learned", pool=2, reduction=4)
    transfers = tuple(TransferProfile(i, spec, 0.002, 0.001, 64) for i in (0, 1))
    device = written(transfers=(*written().transfers, *transfers))
    edge = written("edge", EDGE, transfers=device.transfers)
    trained = MeasuredAccuracy(kind="split", slicing_point="b1", spec=spec, accuracy=0.97)

    def offered(**options: Any) -> list[tuple[str | None, float | None]]:
        plans = sl.plan(device, edge, LINK, **options)
        return [(p.slicing_point, p.accuracy) for p in plans if p.spec == spec]

    assert offered() == []
    assert offered(accuracies=[trained]) == [("b1", 0.97)]
    assert sorted(point or "" for point, _ in offered(learned=True)) == ["b0", "b1"]


def test_a_bundle_tells_its_accuracy(make_bundle: BundleFactory) -> None:
    bundle = make_bundle()
    with pytest.raises(PlanError, match="tells no accuracy"):
        MeasuredAccuracy.of(bundle, written())
    bundle.manifest = msgspec.structs.replace(bundle.manifest, accuracy=Accuracy(0.9, 0.8, 50))
    with pytest.raises(PlanError, match="not of the same network"):
        MeasuredAccuracy.of(bundle, written())
    block = BlockProfile(
        name="stem",
        after="0",
        latency=1.0,
        crossing=(TensorInfo("x", bundle.manifest.crossing[0].shape),),
    )
    profile = written(blocks=(block, block))
    uncut, own = MeasuredAccuracy.of(bundle, profile)
    assert (uncut.kind, uncut.accuracy) == ("local", 0.9)
    assert (own.slicing_point, own.spec, own.accuracy) == ("stem", sl.TransferSpec(), 0.8)
    assert own.second is None
    # With three tiers it is that of both cuts together.
    point = bundle.manifest.slicing_point
    assert point is not None
    hop = NextHop(slicing_point=point, crossing=bundle.manifest.crossing, transfer=SPECS[1])
    slices = bundle.manifest.slices
    bundle.manifest = msgspec.structs.replace(
        bundle.manifest, version=8, next_hop=hop, slices=slices | {"cloud": slices["edge"]}
    )
    _, own = MeasuredAccuracy.of(bundle, profile)
    assert own.second == SecondCut("stem", SPECS[1])


def test_an_accuracy_of_three_tiers_is_not_that_of_two() -> None:
    cloud = written("cloud", EDGE)
    measured = MeasuredAccuracy(
        kind="split",
        slicing_point="b0",
        spec=SPECS[2],
        second=SecondCut("b1", SPECS[2]),
        accuracy=0.8,
    )
    uncut = MeasuredAccuracy(kind="local", accuracy=0.99)
    plans = sl.plan(
        written(), written("edge", EDGE), LINK, cloud=cloud, accuracies=[measured, uncut]
    )
    assert {p.accuracy for p in plans if p.second == measured.second} >= {0.8}
    for each in plans:
        if each.kind != "split":
            continue
        specs = [each.spec] if each.second is None else [each.spec, each.second.spec]
        if (each.slicing_point, each.spec, each.second) == ("b0", SPECS[2], measured.second):
            assert each.accuracy == 0.8
        else:  # nobody measured it; float32 loses nothing
            assert each.accuracy == (0.99 if set(specs) == {SPECS[0]} else None)


def test_profiles_of_different_networks_are_refused() -> None:
    with pytest.raises(ProfileError, match="model of machine is net, of edge other"):
        sl.plan(written(), written("edge", model="other"), LINK)
    with pytest.raises(ProfileError, match="blocks of machine"):
        sl.plan(written(), written("edge", (0.1, 0.1)), LINK)
    with pytest.raises(PlanError, match="no objective 'speed'"):
        sl.plan(written(), written("edge"), LINK, objective="speed")  # type: ignore[arg-type]


def test_a_plan_written_by_hand_is_checked_and_has_no_prediction() -> None:
    by_hand = sl.Plan(kind="split", slicing_point="b0", spec=sl.TransferSpec())
    with pytest.raises(PlanError, match="written by hand"):
        _ = by_hand.predicted
    for wrong in (
        {"kind": "split"},
        {"kind": "local", "image_format": "png"},
        {"kind": "image"},
        {"kind": "image", "image_format": "jpeg"},
        {"kind": "image", "image_format": "png", "jpeg_quality": 75},
    ):
        with pytest.raises(PlanError, match=r"plan has|goes with"):
            sl.Plan(**wrong)


def test_labels_say_what_crosses() -> None:
    assert sl.Plan(kind="local").label == "nothing (local)"
    jpeg = sl.Plan(kind="image", image_format="jpeg", jpeg_quality=60)
    assert (jpeg.label, jpeg.place) == ("JPEG-60 image", "-")
    assert sl.Plan(kind="image", image_format="uint8").label == "raw image"


def test_a_limit_is_a_number_from_zero_on() -> None:
    with pytest.raises(PlanError, match="Constraints: max_latency=-1 must be 0 or more"):
        sl.Constraints(max_latency=-1)
    with pytest.raises(PlanError, match="Constraints: max_energy=nan must be 0 or more"):
        sl.Constraints(max_energy=math.nan)
    assert sl.Constraints(max_latency=math.inf).active() == {"max_latency": math.inf}
