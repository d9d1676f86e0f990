"""The harness's own ways: trained bundles, shallow encoders, and which contenders are run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from bench.end_to_end import claims, networks
from bench.end_to_end.contenders import (
    ALTERNATES,
    JPEG,
    JPEG_ONNX,
    LOCAL,
    OURS,
    OURS_ENCODER,
    OURS_ONNX,
    OURS_SPLIT,
    PIPELINED,
    SCISSION,
    WEBP,
    Contender,
    contenders,
)
from bench.end_to_end.prepared import write_part
from bench.end_to_end.records import Cell, Measured
from bench.end_to_end.run import too_long
from bench.end_to_end.trained import Trained, trained_ways, with_trained
from profiles import JPEG as JPEG_IMAGE
from profiles import written
from torch.utils.data import TensorDataset

import scissionlite as sl
from scissionlite.scissiontl.profile import EncoderProfile, ImageProfile

LINK = sl.Link(0.01, 1e6)
TINY = sl.TransferSpec.shallow_encoder("tiny")
KEPT = {("input", TINY)}
PNG = ImageProfile(format="png", encode=0.01, decode=0.01, nbytes=90_000, source="by hand")

CELL = Cell(
    kind="contenders",
    network="resnet50",
    link="a link",
    rtt=0.05,
    bandwidth=1e6,
    slowdown=5.3,
    bound=0.1,
    measured=(),
    link_kind="relay",
    machine="a machine",
    versions={},
    load=0.5,
    date="2026-01-01 00:00",
    command="python -m bench.end_to_end",
)


def profile(encoder: float = 0.0001) -> sl.Profile:
    """A profile with a shallow encoder of some seconds."""
    times = {"encoder": encoder, "encode": 0.0001, "decode": 0.0001, "decoder": 0.0001}
    own = EncoderProfile(spec=TINY, nbytes=500, **times)
    return written(encoders=(own,), images=(JPEG_IMAGE, PNG))


def by_name(seconds: float = 0.0001, **more: Any) -> dict[str, Contender]:
    return {each.name: each for each in contenders(profile(seconds), LINK, 5.3, None, **more)}


def test_an_encoder_is_ours_where_it_is_trained_and_the_fastest() -> None:
    found = by_name(kept=KEPT)
    for name in (OURS, OURS_ONNX, PIPELINED):
        assert found[name].plan.slicing_point == "input"
        assert found[name].split
        assert not found[name].raw_image
    assert found[OURS_SPLIT].plan.spec == sl.TransferSpec()
    assert found[OURS_SPLIT].runtime == "onnx"
    assert OURS_ENCODER not in found
    # The rivals are splits of the network.
    assert found[SCISSION].plan.slicing_point != "input"


def test_an_encoder_has_its_own_row_where_a_split_is_faster() -> None:
    found = by_name(5.0, kept=KEPT)
    assert found[OURS].plan.spec == sl.TransferSpec()
    assert found[OURS_ENCODER].plan.spec == TINY
    assert OURS_SPLIT not in found


def test_what_nobody_trained_is_not_offered() -> None:
    found = by_name()
    assert found[OURS].plan.spec == sl.TransferSpec()
    assert not {*ALTERNATES} & found.keys()


def test_the_jpeg_that_keeps_the_accuracy_has_both_runtimes() -> None:
    """Where JPEG-75 is not accurate, another quality must not lose for its runtime."""
    finer = msgspec.structs.replace(JPEG_IMAGE, quality=90)
    whole = msgspec.structs.replace(profile(), images=(JPEG_IMAGE, finer, PNG))
    known = networks.Known(0.9, {}, {75: 0.88, 90: 0.9})
    names = [each.name for each in contenders(whole, LINK, 5.3, known)]
    assert JPEG_ONNX in names
    assert "JPEG-90 to the edge, ONNX Runtime" in names
    without = [each.name for each in contenders(whole, LINK, 5.3, None)]
    assert "JPEG-90 to the edge, ONNX Runtime" not in without


@pytest.fixture(scope="module")
def encoder_bundle(tmp_path_factory: pytest.TempPathFactory) -> sl.Bundle:
    """A tiny network with a shallow encoder, kept as `bench.accuracy run --keep` keeps it."""
    torch.manual_seed(0)
    graph = sl.capture(networks.tiny(), torch.zeros(1, 3, 32, 32), name="tiny")
    x = torch.randn(16, 3, 32, 32)
    with torch.no_grad():
        labels = graph.module(x).argmax(1)
    data = TensorDataset(x, labels)
    folder = tmp_path_factory.mktemp("accuracy")
    (folder / "bundles/net").mkdir(parents=True)
    return sl.prepare(
        graph,
        sl.Plan(kind="split", slicing_point="input", spec=TINY),
        unlabelled=data,
        validate=data,
        recipe=sl.Recipe(epochs=0),
        out=folder / "bundles/net/input, tiny",
        runtimes=("torchscript", "onnx"),
        local_fallback=False,
    )


def test_a_kept_bundle_counts_if_it_keeps_the_accuracy(encoder_bundle: sl.Bundle) -> None:
    folder, accuracy = encoder_bundle.path.parents[2], encoder_bundle.manifest.accuracy
    assert accuracy is not None
    lower = msgspec.structs.replace(accuracy, before=1.0, after=1.0 - 2 * networks.FLOOR)
    higher = msgspec.structs.replace(accuracy, before=1.0, after=1.0 - networks.FLOOR / 2)
    (folder / "bundles/other").mkdir()
    for changed, kept in ((lower, False), (higher, True)):
        path = folder / "bundles/other/input, tiny"
        write_part(encoder_bundle, "torchscript", path, accuracy=changed)
        ways = trained_ways(folder, "other", profile())
        assert [each.way for each in ways] == ([("input", TINY)] if kept else [])
    assert not trained_ways(folder, "none", profile())


def test_a_profile_gets_the_bytes_and_the_leakage_of_the_training(
    encoder_bundle: sl.Bundle,
) -> None:
    way = Trained(encoder_bundle, "input", TINY, 0.9, 123)
    inputs = np.random.default_rng(0).normal(size=(16, 3, 32, 32)).astype(np.float32)
    (own,) = with_trained(profile(), [way], inputs).encoders
    assert (own.spec, own.nbytes, own.encoder) == (TINY, 123, 0.0001)
    assert own.leakage is not None
    assert 0 < own.leakage <= 1
    finer = msgspec.structs.replace(TINY, levels=128)
    both = [way._replace(spec=finer, sent_bytes=456), way]
    few = with_trained(profile(), both, inputs[:4]).encoders
    assert [(e.spec, e.nbytes, e.leakage) for e in few] == [(finer, 456, None), (TINY, 123, None)]


def test_a_learned_layer_is_timed_by_a_codec_of_as_many_elements() -> None:
    learned = sl.TransferSpec(pool_kind="learned", pool=2, reduction=4, levels=24, entropy="ans")
    bare = msgspec.structs.replace(learned, levels=None, entropy=None)
    as_many, coded = sl.TransferSpec(pool=4), sl.TransferSpec(pool=4, entropy="ans")
    plain = written()
    own = type(plain.transfers[0])
    times = [(bare, 0.01, 0.02), (as_many, 0.001, 0.002), (coded, 0.004, 0.006)]
    more = tuple(own(0, spec, encode, decode, 999) for spec, encode, decode in times)
    whole = msgspec.structs.replace(plain, transfers=(*plain.transfers, *more))
    way = Trained(None, "b0", learned, 0.9, 77)  # type: ignore[arg-type]  # no file is read
    last = with_trained(whole, [way], np.zeros((0,), np.float32)).transfers[-1]
    assert (last.block, last.spec, last.nbytes) == (0, learned, 77)
    assert last.encode == pytest.approx(0.013)
    assert last.decode == pytest.approx(0.024)
    # Without what it is timed by, it is not planned.
    assert with_trained(plain, [way], np.zeros((0,), np.float32)) == plain


def test_a_part_of_a_bundle_has_the_slices_of_one_runtime(
    encoder_bundle: sl.Bundle, tmp_path: Path
) -> None:
    for runtime in ("torchscript", "onnx"):
        write_part(encoder_bundle, runtime, tmp_path / runtime)
        part = sl.Bundle.load(tmp_path / runtime)
        assert {part.runtimes(role) for role in ("device", "edge")} == {(runtime,)}
        assert part.manifest.crossing == encoder_bundle.manifest.crossing


def test_what_is_dominated_is_not_run_but_for_what_the_claims_need() -> None:
    slow = sl.Link(0.001, 0.1e6)
    chosen = contenders(profile(), slow, 5.3, None, kept=KEPT)
    reasons = too_long(chosen, "contenders")
    assert list(reasons) == [each.name for each in chosen]
    seconds = {each.name: each.plan.predicted.latency for each in chosen}
    assert seconds["PNG to the edge"] > 6
    assert reasons["PNG to the edge"].startswith("predicted 7.")
    assert not reasons[WEBP]  # its bytes are JPEG's, though its bundle is PNG's
    assert not reasons[LOCAL]
    assert not reasons[JPEG]
    assert not reasons[OURS]
    assert not reasons[PIPELINED]  # eight at once take longer, and are not slower
    assert not any(too_long(chosen, "claims")[n] for n in seconds if seconds[n] < 6)


def test_the_floor_is_half_a_point_below_the_uncut_network() -> None:
    """A split that training made better than the uncut network does not shut out its rivals."""

    def way(name: str, accuracy: float) -> Measured:
        return Measured(
            name=name,
            what=name,
            place="-",
            raw_image=name == JPEG,
            split=name == OURS,
            latencies=(0.1, 0.1, 0.1),
            accuracy=accuracy,
        )

    measured = (way(LOCAL, 0.90), way(OURS, 0.95), way(JPEG, 0.897), way("JPEG-50", 0.85))
    one = msgspec.structs.replace(CELL, measured=(*measured, way(OURS_ENCODER, 0.9)))
    assert [m.name for m in claims.fair(one)] == [LOCAL, OURS, JPEG]


def test_what_an_encoder_sends_is_the_image_under_the_rule_of_privacy() -> None:
    def way(name: str, seconds: float, place: str) -> Measured:
        return Measured(
            name=name,
            what=name,
            place=place,
            raw_image=False,
            split=name != LOCAL,
            latencies=(seconds,) * 3,
            timings={"transfer": seconds},
            leakage=1.0 if place == "input" else 0.5,
        )

    def found(*ways: Measured) -> tuple[claims.Claim, claims.Claim]:
        one = msgspec.structs.replace(CELL, measured=ways)
        return claims.privacy_rule([one]), claims.slow_links([one])

    local, encoder = way(LOCAL, 0.3, "-"), way(OURS, 0.1, "input")
    privacy, slow = found(local, encoder, way(OURS_SPLIT, 0.2, "layer1"))
    assert privacy.reached
    assert "leakage of ours at most 0.50" in privacy.found
    assert slow.reached
    privacy, slow = found(local, encoder, way(OURS_SPLIT, 0.4, "layer1"))
    assert privacy.reached is False
    assert "resnet50 to local, TorchScript by 33% at 1" in privacy.found
    assert slow.reached  # there the encoder counts
    privacy, _ = found(local, encoder)
    assert privacy.reached is False
    assert "by not run at 1" in privacy.found
