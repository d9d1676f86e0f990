"""The simulation of a fleet: queues by their formulas, absences, fallbacks, all by hand."""

from __future__ import annotations

import msgspec
import pytest
from plants import DEVICE, FAST, group, plant, split, taken

import scissionlite as sl
from scissionlite.fleet.assignment import Share, assign
from scissionlite.fleet.inventory import Drops, EdgeMachine, Inventory, Outage
from scissionlite.fleet.options import Option
from scissionlite.fleet.queueing import waiting
from scissionlite.fleet.routes import BACK, NOTICED
from scissionlite.fleet.simulation import simulate


def test_a_lone_device_waits_for_nobody() -> None:
    inventory = plant((group(count=1, arrivals="periodic"),))
    option = split(inventory)
    outcome = simulate(inventory, taken(inventory, Share(option, 1)), 100.0)
    (line,) = outcome.groups
    assert (line.requests, line.at_edge, line.late) == (100, 1.0, 0.0)
    predicted = option.plan.predicted.latency
    assert (line.p50, line.p99) == pytest.approx((predicted, predicted), rel=1e-4)
    assert outcome.busy["box"] == pytest.approx(option.service, rel=1e-6)


@pytest.mark.parametrize(("workers", "load"), [(1, 0.6), (3, 2.0)])
def test_many_devices_wait_as_the_formula_says(workers: int, load: float) -> None:
    edges = (EdgeMachine(name="box", profile="edge.json", workers=workers),)
    option = split(plant(edges=edges))
    count = 500
    devices = (group(count=count, rate=load / option.service / count, deadline=100.0),)
    inventory = plant(devices, edges)
    option = split(inventory)
    outcome = simulate(inventory, taken(inventory, Share(option, count)), 1000.0)
    expected = option.plan.predicted.latency + waiting(load, workers) * option.service / load
    assert outcome.mean == pytest.approx(expected, rel=0.03)
    assert outcome.busy["box"] == pytest.approx(load / workers, rel=0.03)


def test_the_same_seed_gives_the_same_outcome() -> None:
    inventory = plant()
    assignment = assign(inventory)
    outcomes = [simulate(inventory, assignment, 90.0, seed=seed) for seed in (1, 1, 2)]
    assert outcomes[0] == outcomes[1] != outcomes[2]


COUNT = 10  # devices, whose edge works half of its time


@pytest.mark.parametrize("fallback", ["local", "edge", "raise"])
@pytest.mark.parametrize("cause", ["machine", "link"])
def test_an_edge_that_is_away(fallback: str, cause: str) -> None:
    devices = (group(count=COUNT, rate=2.0, arrivals="periodic", deadline=3.0, fallback=fallback),)
    edges = tuple(EdgeMachine(name=name, profile="edge.json") for name in ("box", "other"))
    start, end = 20.0, 30.0
    outage = Outage(edge="box", start=start, end=end, devices="line" if cause == "link" else None)
    inventory = plant(devices, edges, outages=(outage,))
    option = msgspec.structs.replace(split(inventory), edge="box")
    outcome = simulate(inventory, taken(inventory, Share(option, COUNT)), 60.0)
    (line,) = outcome.groups
    assert line.requests == COUNT * 2 * 60
    away = COUNT * 2 * (end - start + BACK) / line.requests
    first = COUNT / line.requests  # each device's first request in the outage
    local = DEVICE[0] + DEVICE[1] + DEVICE[2]
    if fallback == "raise":
        assert line.lost == pytest.approx(away, rel=0.05)
        assert line.late == line.lost
    elif fallback == "local":
        assert line.local == pytest.approx(away, rel=0.05)
        assert line.late == 0.0  # a deadline of 3 s leaves time to notice, and to compute
        assert line.p95 == pytest.approx(local, rel=0.02)
    else:
        assert line.at_edge == pytest.approx(1 - first, abs=0.006)
        worked = option.service * COUNT * 2 * (end - start) / 60
        assert outcome.busy["other"] == pytest.approx(worked, rel=0.1)
    assert NOTICED + local < 3.0


def test_another_edge_is_asked_over_its_own_link() -> None:
    devices = (group(count=2, rate=0.5, arrivals="periodic", deadline=9.0, fallback="edge"),)
    edges = tuple(EdgeMachine(name=name, profile="edge.json") for name in ("box", "other"))
    slow = sl.Link(rtt=0.010, bandwidth=100e3)
    links = {("line", "box"): (FAST, False), ("line", "other"): (slow, False)}
    away = (Outage(edge="box", start=2.0, end=1e6),)
    inventory = plant(devices, edges, links=links, outages=away)
    option = msgspec.structs.replace(split(inventory), edge="box")
    outcome = simulate(inventory, taken(inventory, Share(option, 2)), 400.0)
    predicted = option.plan.predicted
    more = predicted.sent_bytes * 8 * (1 / slow.bandwidth - 1 / FAST.bandwidth)
    answer = inventory.profiles["line"].answer_bytes * 8 * (1 / slow.bandwidth - 1 / FAST.bandwidth)
    assert outcome.groups[0].p50 == pytest.approx(predicted.latency + more + answer, rel=1e-3)


def overloaded(count: int) -> tuple[Inventory, Option]:
    """Devices that together ask for four times what the edge can do."""
    devices = (group(count=count, rate=200 / count, deadline=0.4, fallback="local"),)
    inventory = plant(devices)
    return inventory, split(inventory)


def test_a_late_answer_is_the_devices_own() -> None:
    local = sum(DEVICE)
    # Each asks once in two seconds: it has the time for a local run, and keeps the deadline.
    inventory, option = overloaded(400)
    outcome = simulate(inventory, taken(inventory, Share(option, 400)), 60.0)
    (line,) = outcome.groups
    assert line.local > 0.6
    # A local run begins 1.25 times its length before the deadline.
    assert line.p50 == pytest.approx(0.4 - 0.25 * local, rel=0.05)
    assert line.late < 0.1
    assert outcome.busy["box"] > 0.95


def test_a_local_run_takes_the_devices_time() -> None:
    # Each asks five times a second: its local runs, of 0.15 s, leave little time.
    inventory, option = overloaded(40)
    outcome = simulate(inventory, taken(inventory, Share(option, 40)), 60.0)
    (line,) = outcome.groups
    assert line.local > 0.3
    assert line.late > 0.2
    # An outage in which every request is answered locally: the queue M/D/1 of a device.
    devices = (group(count=200, rate=4.0, deadline=50.0, fallback="local"),)
    away = (Outage(edge="box", start=0.0, end=1e6),)
    inventory = plant(devices, outages=away)
    option = split(inventory)
    outcome = simulate(inventory, taken(inventory, Share(option, 200)), 100.0)
    expected = sum(DEVICE) + waiting(4.0 * sum(DEVICE), 1) / 4.0
    assert outcome.mean == pytest.approx(expected, rel=0.05)


def test_an_outage_of_the_other_link_is_noticed_too() -> None:
    devices = (group(count=4, rate=1.0, arrivals="periodic", deadline=9.0, fallback="edge"),)
    edges = tuple(EdgeMachine(name=name, profile="edge.json") for name in ("box", "other"))
    away = (
        Outage(edge="box", start=20.0, end=60.0),
        Outage(edge="other", start=30.0, end=50.0, devices="line"),
    )
    inventory = plant(devices, edges, outages=away)
    option = msgspec.structs.replace(split(inventory), edge="box")
    outcome = simulate(inventory, taken(inventory, Share(option, 4)), 100.0)
    (line,) = outcome.groups
    assert line.lost == 0
    # 20 s in which both are away, and the first request of each device in the first outage.
    assert line.local * line.requests == pytest.approx(4 * (20 + BACK) + 4, abs=5)
    assert outcome.busy["other"] * 100 == pytest.approx(4 * 20 * option.service, rel=0.15)


@pytest.mark.parametrize("shared", [False, True])
def test_links_that_drop_at_random(shared: bool) -> None:
    count, rate, seconds = 60, 1.0, 600.0
    devices = (group(count=count, rate=rate, deadline=9.0, fallback="raise"),)
    links = {("line", "box"): (sl.Link(0.010, 1e9), shared)}
    drops = {("line", "box"): Drops(between=20.0, seconds=5.0)}
    box = (EdgeMachine(name="box", profile="edge.json", workers=8),)
    inventory = plant(devices, box, links=links, drops=drops)
    option = split(inventory)
    outcome = simulate(inventory, taken(inventory, Share(option, count)), seconds)
    (line,) = outcome.groups
    # A fifth of the time; in drops of less than 1.26 s requests wait.
    assert line.lost == pytest.approx(0.2, abs=0.06 if shared else 0.03)
    short = msgspec.structs.replace(
        inventory, drops={("line", "box"): Drops(between=5.0, seconds=0.05)}
    )
    outcome = simulate(short, taken(short, Share(option, count)), seconds)
    assert outcome.groups[0].lost == 0
    usual = option.plan.predicted.latency
    assert outcome.groups[0].p50 == pytest.approx(usual, rel=0.1)
    assert outcome.groups[0].p99 > usual + BACK / 2


def test_times_that_vary_make_requests_wait_longer() -> None:
    count, load = 200, 0.6
    waited = []
    for variation in (0.0, 1.0):
        edges = (EdgeMachine(name="box", profile="edge.json", variation=variation),)
        option = split(plant(edges=edges))
        rate = load / option.service / count
        devices = (group(count=count, rate=rate, deadline=100.0, fallback="raise"),)
        inventory = plant(devices, edges)
        option = split(inventory)
        outcome = simulate(inventory, taken(inventory, Share(option, count)), 2000.0)
        waited.append(outcome.mean - option.plan.predicted.latency)
    # Pollaczek and Khinchine: 1 + the square of the coefficient of variation.
    assert waited[1] / waited[0] == pytest.approx(2.0, rel=0.08)
    devices = (group(count=50, arrivals="periodic", deadline=9.0, variation=0.3),)
    edges = (EdgeMachine(name="box", profile="edge.json", workers=50),)
    inventory = plant(devices, edges)
    option = split(inventory)
    outcome = simulate(inventory, taken(inventory, Share(option, 50)), 200.0)
    (line,) = outcome.groups
    stage = option.plan.predicted.device_stage
    assert outcome.mean == pytest.approx(option.plan.predicted.latency, rel=0.02)
    assert line.p95 - line.p50 == pytest.approx(1.7 * 0.3 * stage, rel=0.15)
