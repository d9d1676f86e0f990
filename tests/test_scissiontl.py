"""Profiles, links and plans."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

import scissionlite as sl
from scissionlite import _core
from scissionlite.errors import PlanError, ProfileError
from scissionlite.scissiontl.profile import BlockProfile, Host, ImageProfile, TransferProfile

SPECS = (sl.TransferSpec.float32_split(), sl.TransferSpec.paper(), sl.TransferSpec())


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


@pytest.fixture(scope="module")
def measured() -> sl.Profile:
    graph = sl.capture(network(), torch.zeros(1, 3, 32, 32), name="small")
    return sl.profile(graph, name="here", repetitions=5)


def written(
    name: str = "machine",
    latencies: tuple[float, ...] = (0.010, 0.020, 0.030),
    image: ImageProfile | None = None,
    model: str = "net",
) -> sl.Profile:
    """A profile written by hand: three blocks, two slicing points of 16x8x8."""
    blocks = tuple(
        BlockProfile(f"b{i}", f"b{i}", f"b{i + 1}", latency, (1, 16, 8, 8), 4096)
        for i, latency in enumerate(latencies)
    )
    transfers = tuple(
        TransferProfile(i, spec, 0.001, 0.0005, spec.packed_nbytes((1, 16, 8, 8)))
        for i in range(len(latencies) - 1)
        for spec in SPECS
    )
    return sl.Profile(
        name=name,
        model=model,
        runtime="torchscript",
        host=Host("x86_64", "by hand", "scalar", 1, {}),
        input_shape=(1, 3, 32, 32),
        blocks=blocks,
        transfers=transfers,
        image=image,
        preprocess=0.002,
        network_latency=sum(latencies),
    )


def test_a_profile_has_every_block_and_codec(measured: sl.Profile) -> None:
    assert [b.name for b in measured.blocks] == ["0", "1", "2", "3", "4", "5"]
    assert all(b.latency > 0 for b in measured.blocks)
    assert measured.network_latency > 0
    assert measured.blocks[1].output_shape == (1, 8, 32, 32)
    assert measured.blocks[1].output_bytes == 32768
    codecs = {(t.block, t.spec): t for t in measured.transfers}
    # Float32 anywhere; Transfer Layers only where there is something to pool.
    assert {block for block, spec in codecs if spec == SPECS[0]} == {0, 1, 2, 3, 4}
    assert {block for block, spec in codecs if spec == SPECS[2]} == {0, 1, 2}
    assert [codecs[1, spec].nbytes for spec in SPECS] == [32768, 8192, 2048]
    assert all(t.encode > 0 and t.decode > 0 for t in measured.transfers)
    assert measured.image is not None
    assert measured.image.nbytes > 0
    assert "no images given" in measured.image.source
    assert measured.host.isa in _core.available_isas()


def test_images_given_are_measured() -> None:
    graph = sl.capture(network(), torch.zeros(1, 3, 16, 16))
    flat = [np.zeros((16, 16, 3), np.uint8)] * 3
    rough = [np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8) for i in range(3)]
    sizes = []
    for images in (flat, rough):
        image = sl.profile(graph, images=images, repetitions=1).image
        assert image is not None
        assert image.source == "3 images"
        sizes.append(image.nbytes)
    assert sizes[0] < sizes[1]
    with pytest.raises(ProfileError, match=r"needs uint8 of shape \(16, 16, 3\)"):
        sl.profile(graph, images=[np.zeros((8, 8, 3), np.uint8)], repetitions=1)


def test_profiles_are_json_files(measured: sl.Profile, tmp_path: Path) -> None:
    measured.save(tmp_path / "p.json")
    assert sl.Profile.load(tmp_path / "p.json") == measured
    with pytest.raises(ProfileError, match="cannot be read"):
        sl.Profile.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"format": "scissionlite-profile", "version": 1}')
    with pytest.raises(ProfileError, match=r"bad\.json is not a profile: .*missing required"):
        sl.Profile.load(tmp_path / "bad.json")
    msgspec.structs.replace(measured, version=99).save(tmp_path / "new.json")
    with pytest.raises(ProfileError, match="format 99"):
        sl.Profile.load(tmp_path / "new.json")


def test_unknown_runtimes_and_counts_are_refused() -> None:
    graph = sl.capture(network(), torch.zeros(1, 3, 16, 16))
    with pytest.raises(ProfileError, match="not 'tvm'"):
        sl.profile(graph, runtime="tvm")
    with pytest.raises(ProfileError, match="repetitions"):
        sl.profile(graph, repetitions=0)


def test_the_cost_model_is_scissions_sum() -> None:
    image = ImageProfile(75, 0.003, 0.004, 2000, "by hand")
    device, edge = written(image=image), written("edge", (0.001, 0.002, 0.003), image=image)
    link = sl.Link(rtt=0.010, bandwidth=8e6)  # 1 byte a microsecond
    plans = {(p.kind, p.slicing_point, p.spec): p.predicted for p in sl.plan(device, edge, link)}
    assert len(plans) == 2 + 2 * 3

    assert plans["local", None, None].latency == pytest.approx(0.060 + 0.002)
    # encode + rtt + 2000 bytes + decode + preprocess + the whole network on the edge
    jpeg = 0.003 + 0.010 + 0.002 + 0.004 + 0.002 + 0.006
    assert plans["image", None, None].latency == pytest.approx(jpeg)
    for spec, nbytes in zip(SPECS, (4096, 1024, 256), strict=True):
        prediction = plans["split", "b1", spec]
        parts = 0.002 + 0.030 + 0.001 + 0.010 + nbytes * 1e-6 + 0.0005 + 0.003
        assert prediction.latency == pytest.approx(parts)
        assert (prediction.sent_bytes, prediction.device_blocks) == (nbytes, 2)


def test_blocks_are_scaled_to_what_the_fused_network_takes() -> None:
    device = msgspec.structs.replace(written(), network_latency=0.030)  # the blocks sum to 0.060
    plans = sl.plan(device, written("edge"), sl.Link(0, 1e12))
    at_b0 = next(p for p in plans if p.slicing_point == "b0" and p.spec == SPECS[2])
    assert at_b0.predicted.device_time == pytest.approx(0.002 + 0.005)


def test_plans_come_fastest_first_and_the_best_depends_on_the_link() -> None:
    image = ImageProfile(75, 0.003, 0.004, 3000, "by hand")
    device = written(image=image).slowed(5)
    edge = written("edge", (0.001, 0.002, 0.003), image=image)

    def best(rtt: float, bandwidth: float) -> sl.Plan:
        plans = sl.plan(device, edge, sl.Link(rtt, bandwidth))
        latencies = [p.predicted.latency for p in plans]
        assert latencies == sorted(latencies)
        return plans[0]

    assert best(0.5, 1e6).kind == "local"
    assert best(0.001, 1e9).kind == "image"
    thin = best(0.001, 0.2e6)
    assert (thin.kind, thin.spec) == ("split", sl.TransferSpec())


def test_constraints_exclude_and_an_infeasible_request_says_which() -> None:
    device, edge = written().slowed(2), written("edge")
    link = sl.Link(0.01, 1e6)
    plans = sl.plan(device, edge, link, constraints=sl.Constraints(max_upload=300))
    assert {p.predicted.sent_bytes for p in plans} == {0, 256}
    plans = sl.plan(device, edge, link, constraints=sl.Constraints(min_device_blocks=2))
    assert {p.slicing_point for p in plans} == {None, "b1"}
    plans = sl.plan(device, edge, link, constraints=sl.Constraints(max_device_time=0.03))
    assert {p.slicing_point for p in plans} == {"b0"}
    limits = sl.Constraints(max_latency=1e-6, max_upload=1000)
    with pytest.raises(PlanError, match=r"max_latency=1e-06 excludes 7 of 7; max_upload=1000 ex"):
        sl.plan(device, edge, link, constraints=limits)


def test_profiles_of_different_networks_are_refused() -> None:
    with pytest.raises(ProfileError, match="model of machine is net, of edge other"):
        sl.plan(written(), written("edge", model="other"), sl.Link(0.01, 1e6))
    with pytest.raises(ProfileError, match="blocks of machine"):
        sl.plan(written(), written("edge", (0.1, 0.1)), sl.Link(0.01, 1e6))


def test_a_plan_written_by_hand_is_checked_and_has_no_prediction() -> None:
    by_hand = sl.Plan(kind="split", slicing_point="b0", spec=sl.TransferSpec())
    with pytest.raises(PlanError, match="written by hand"):
        _ = by_hand.predicted
    for wrong in ({"kind": "split"}, {"kind": "local", "jpeg_quality": 75}, {"kind": "image"}):
        with pytest.raises(PlanError, match="plan has"):
            sl.Plan(**wrong)
