"""Time of planning after profiling: resnet50 with every Transfer Layer and image format."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import scissionlite as sl
from scissionlite.models import load_model
from scissionlite.scissiontl.codecs import CODECS
from scissionlite.scissiontl.planner import pareto

LINK = sl.Link(rtt=0.0274, bandwidth=58.8e6)


@pytest.fixture(scope="module")
def profile() -> sl.Profile:
    torch.manual_seed(0)
    model = load_model("torchvision:resnet50")
    graph = sl.capture(model, torch.zeros(1, 3, 224, 224), name="resnet50")
    return sl.profile(graph, name="here", repetitions=1, warm_up=1, slices=4, threads=1)


def check(plans: list[sl.Plan], profile: sl.Profile) -> None:
    assert {p.spec for p in plans} - {None} == set(CODECS)
    assert {p.slicing_point for p in plans} - {None} == {b.name for b in profile.blocks[:-1]}
    latencies = [p.predicted.latency for p in plans]
    assert latencies == sorted(latencies)


def test_plan(record: Any, profile: sl.Profile) -> None:
    device = profile.slowed(5.3)
    plans = sl.plan(device, profile, LINK)
    check(plans, profile)
    record.group = "planning resnet50"
    record.extra_info.update(what=f"{len(plans)} plans, two tiers")
    record(sl.plan, device, profile, LINK)


def test_plan_with_constraints(record: Any, profile: sl.Profile) -> None:
    device = profile.slowed(5.3)
    limits = sl.Constraints(max_upload=100_000, min_device_layers=4, not_on_edge=("layer1.0",))
    plans = sl.plan(device, profile, LINK, constraints=limits)
    assert all(p.predicted.sent_bytes <= 100_000 for p in plans)
    record.group = "planning resnet50"
    record.extra_info.update(what=f"{len(plans)} plans left by three constraints")
    record(lambda: sl.plan(device, profile, LINK, constraints=limits))


def test_plan_with_a_third_tier(record: Any, profile: sl.Profile) -> None:
    device, cloud = profile.slowed(5.3), profile.slowed(0.2)
    plans = sl.plan(device, profile, LINK, cloud=cloud)
    assert any(p.second is not None for p in plans)
    record.group = "planning resnet50"
    record.extra_info.update(what=f"{len(plans)} plans, three tiers")
    record(lambda: sl.plan(device, profile, LINK, cloud=cloud))


def test_pareto(record: Any, profile: sl.Profile) -> None:
    plans = sl.plan(profile.slowed(5.3), profile, LINK)
    front = pareto(plans)
    assert front[0] is plans[0]
    record.group = "planning resnet50"
    record.extra_info.update(what=f"the front of {len(plans)} plans")
    record(pareto, plans)
