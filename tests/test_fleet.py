"""A fleet's inventory and assignment, against formulas, brute force and by hand."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plants import DEVICE, EDGE, FAST, group, plant, split, taken
from processes import run_here
from profiles import written

import scissionlite as sl
from scissionlite.errors import PlanError
from scissionlite.fleet.assignment import Share, assign, each_alone
from scissionlite.fleet.inventory import Devices, EdgeMachine, Inventory, Outage
from scissionlite.fleet.options import options_of
from scissionlite.fleet.queueing import erlang_c, waiting
from scissionlite.fleet.simulation import simulate
from scissionlite.fleet.station import Requests, Station

# --- the inventory -------------------------------------------------------------------------------

INVENTORY = """
[[devices]]
name = "line"
profile = "device.json"
count = 10
rate = 2
deadline = 0.5
[[edges]]
name = "box"
profile = "edge.json"
[[links]]
from = "line"
to = "box"
link = "20Mbit/10ms"
"""


@pytest.fixture
def inventory_file(tmp_path: Path) -> Callable[[str], Path]:
    written("device", DEVICE).save(tmp_path / "device.json")
    written("edge", EDGE).save(tmp_path / "edge.json")

    def write(text: str) -> Path:
        (tmp_path / "plant.toml").write_text(text)
        return tmp_path / "plant.toml"

    return write


def test_an_inventory_is_read(inventory_file: Callable[[str], Path]) -> None:
    found = Inventory.load(
        inventory_file(
            INVENTORY.replace("deadline = 0.5", "deadline = 0.5\nslowdown = 2")
            + '[[outages]]\nedge = "box"\nstart = 1\nend = 2\n'
            + "[constraints]\nmin_device_blocks = 1\n"
        )
    )
    assert found.devices == (
        Devices(name="line", profile="device.json", count=10, rate=2, deadline=0.5, slowdown=2),
    )
    assert found.links == {("line", "box"): (sl.Link(0.010, 20e6), False)}
    assert found.outages == (Outage(edge="box", start=1, end=2),)
    assert found.constraints == sl.Constraints(min_device_blocks=1)
    assert found.profiles["line"].blocks[0].latency == 2 * DEVICE[0]
    assert found.profiles["box"].blocks[0].latency == EDGE[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("count = 10", "count = 0"), "devices 1, count: Expected 'int' >= 1"),
        (("rate = 2", 'rate = "often"'), "devices 1, rate: Expected 'float', got 'str'"),
        (("rate = 2", "rate = 2\nspeed = 3"), "devices 1: Table contains unknown field 'speed'"),
        (("deadline = 0.5\n", ""), "devices 1: Table missing required field 'deadline'"),
        (("[[edges]]", "[[machines]]"), "Table contains unknown field 'machines'"),
        (('to = "box"', 'to = "bax"'), "links: no edges are named 'bax'; there are box"),
        (('from = "line"', 'from = "l"'), "links: no devices are named 'l'; there are line"),
        (("20Mbit/10ms", "fast"), "'fast' is no link: write RATE/RTT"),
        (('name = "box"', 'name = "line"'), "two devices or edges are named 'line'"),
        (("", '[[outages]]\nedge = "x"\nstart = 1\nend = 2\n'), "outages: no edges are named 'x'"),
        (("", '[[outages]]\nedge = "box"\nstart = 2\nend = 1\n'), "ends at 1, before it starts"),
        (("", "[constraints]\nmax_laziness = 1\n"), "constraints: there is no 'max_laziness'"),
        (("", "[constraints]\nmax_leakage = 2\n"), "constraints: "),
        (("[[links]]", "[[links]"), "is not TOML: "),
    ],
)
def test_what_is_wrong_with_an_inventory_is_named(
    inventory_file: Callable[[str], Path], change: tuple[str, str], message: str
) -> None:
    old, new = change
    path = inventory_file(INVENTORY.replace(old, new, 1) if old else INVENTORY + new)
    with pytest.raises(PlanError) as raised:
        Inventory.load(path)
    assert str(raised.value).startswith(str(path))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value).removeprefix(str(path))


def test_a_link_is_given_once(inventory_file: Callable[[str], Path]) -> None:
    link = INVENTORY[INVENTORY.index("[[links]]") :]
    with pytest.raises(PlanError, match="two links join line and box"):
        Inventory.load(inventory_file(INVENTORY + link))
    with pytest.raises(PlanError, match=r"nowhere.toml cannot be read: No such file"):
        Inventory.load("nowhere.toml")


# --- options and the queue -----------------------------------------------------------------------


def test_options_keep_deadline_constraints_and_the_devices_time() -> None:
    found = options_of(plant())
    assert {each.edge for each in found} == {"box", None}
    fast = options_of(plant((group(deadline=0.07),)))
    assert fast
    assert all(each.plan.predicted.latency <= 0.07 for each in fast)
    private = options_of(plant(constraints=sl.Constraints(min_device_blocks=2)))
    assert {each.plan.slicing_point for each in private} == {"b1", None}
    busy = options_of(plant((group(rate=10.0),)))  # 0.15 s on the device is too long
    assert None not in {each.edge for each in busy}
    with pytest.raises(PlanError, match=r"the devices line have no plan: at box, .*max_latency"):
        options_of(plant((group(deadline=0.001),)))
    with pytest.raises(PlanError, match="have no plan: no link begins there"):
        options_of(plant(links={}))
    with pytest.raises(PlanError, match="no plan leaves its devices time for 1000 requests"):
        options_of(plant((group(rate=1000.0),)))


def test_waiting_is_erlangs_and_pollaczek_khinchines() -> None:
    assert erlang_c(0.5, 1) == pytest.approx(0.5)
    assert erlang_c(1.0, 2) == pytest.approx(1 / 3)  # textbooks: 2 servers, 1 erlang
    assert waiting(0.5, 1) == pytest.approx(0.5**2 / (2 * 0.5))
    assert waiting(1.0, 2) == pytest.approx(0.5 * (1 / 3) * 1.0 / (2 - 1), rel=0.1)
    assert waiting(0.0, 3) == 0.0
    assert waiting(3.0, 3) == math.inf


def served(station: Station, arrivals: np.ndarray, work: float, latest: float = np.inf) -> Any:
    count = len(arrivals)
    station.add(
        Requests(
            arrivals,
            np.full(count, work),
            arrivals + latest,
            arrivals,
            np.zeros(count, dtype=np.int64),
            np.zeros(count, dtype=np.int64),
        )
    )
    return station.serve(np.inf)


@pytest.mark.parametrize(("servers", "load", "within"), [(1, 0.7, 0.05), (4, 3.2, 0.06)])
def test_a_station_waits_as_the_formulas_say(servers: int, load: float, within: float) -> None:
    rng = np.random.default_rng(1)
    arrivals = np.cumsum(rng.exponential(1 / load, 400_000))
    done, ends = served(Station(servers), arrivals, 1.0)
    waited = float((ends - done.arrival - 1.0).mean())
    assert waited == pytest.approx(waiting(load, servers) / load, rel=within)


def test_a_station_is_first_in_first_out_and_drops_what_is_late() -> None:
    station = Station(1)
    _, ends = served(station, np.array([3.0, 0.0, 0.5]), 2.0, latest=1.0)
    # In order of arrival: 0 ends at 2; 0.5 would start at 2, past 1.5; 3 ends at 5.
    assert ends.tolist() == [2.0, np.inf, 5.0]
    assert station.worked == 4.0
    _, ends = served(Station(2), np.array([0.0, 0.1, 0.2]), 1.0)
    assert ends.tolist() == [1.0, 1.1, 2.0]
    _, ends = served(Station(1, [(1.5, 3.0)]), np.array([0.0, 1.0, 2.0, 3.5]), 1.0)
    assert ends.tolist() == [1.0, np.inf, np.inf, 4.5]
    # What it held when it went away is not worked off when it is back.
    station = Station(1, [(1.5, 3.0)])
    _, ends = served(station, np.array([*np.linspace(0, 0.9, 20), 10.0]), 1.0)
    assert ends[0] == 1.0
    assert ends[-1] == 11.0
    assert np.isinf(ends[1:-1]).all()
    assert station.worked == 1.0 + 0.5 + 1.0


def test_a_station_keeps_what_comes_later() -> None:
    station = Station(1)
    rng = np.random.default_rng(3)
    arrivals = np.sort(rng.uniform(0, 100, 500))
    _, whole = served(Station(1), arrivals, 0.15)
    parts = []
    zeros = np.zeros(500, dtype=np.int64)
    station.add(
        Requests(arrivals, np.full(500, 0.15), np.full(500, np.inf), arrivals, zeros, zeros)
    )
    for until in (30.0, 30.5, 80.0, np.inf):
        parts.append(station.serve(until)[1])
    np.testing.assert_array_equal(np.concatenate(parts), whole)


# --- the assignment ------------------------------------------------------------------------------


def by_brute_force(inventory: Inventory, most_busy: float) -> float:
    """The least mean latency of all assignments."""
    options = options_of(inventory)
    groups = range(len(inventory.devices))
    own = [[i for i, each in enumerate(options) if each.group == g] for g in groups]

    def divisions(total: int, parts: int) -> list[tuple[int, ...]]:
        return [
            each for each in itertools.product(range(total + 1), repeat=parts) if sum(each) == total
        ]

    best = math.inf
    rates = [each.rate for each in inventory.devices]
    every = [divisions(inventory.devices[g].count, len(own[g])) for g in groups]
    for choice in itertools.product(*every):
        cost, loads = 0.0, dict.fromkeys((e.name for e in inventory.edges), 0.0)
        for g in groups:
            for i, count in zip(own[g], choice[g], strict=True):
                option = options[i]
                cost += count * rates[g] * option.latency
                if option.edge is not None:
                    loads[option.edge] += count * rates[g] * option.service
        for each in inventory.edges:
            if loads[each.name] > most_busy * each.workers + 1e-9:
                cost = math.inf
                break
            cost += waiting(loads[each.name], each.workers)
        best = min(best, cost)
    return best / sum(g.count * g.rate for g in inventory.devices)


@settings(max_examples=15)
@given(
    counts=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    rates=st.lists(st.floats(2.0, 12.0), min_size=2, max_size=2),
    slowdowns=st.lists(st.floats(1.0, 4.0), min_size=2, max_size=2),
    workers=st.integers(1, 2),
)
def test_the_assignment_is_the_best_of_all(
    counts: list[int], rates: list[float], slowdowns: list[float], workers: int
) -> None:
    devices = tuple(
        group(f"line{i}", count=count, rate=rates[i], slowdown=slowdowns[i], deadline=2.0)
        for i, count in enumerate(counts)
    )
    edges = tuple(EdgeMachine(name=f"box{i}", profile="edge.json", workers=workers) for i in (0, 1))
    inventory = plant(
        devices,
        edges,
        # Few options, so that all assignments can be tried.
        constraints=sl.Constraints(slicing_points=("b0",)),
    )
    try:
        expected = by_brute_force(inventory, 0.8)
    except PlanError:
        with pytest.raises(PlanError):
            assign(inventory)
        return
    if math.isinf(expected):
        with pytest.raises(PlanError, match=r"the devices need at least|cannot serve all"):
            assign(inventory)
        return
    found = assign(inventory)
    assert found.bound is not None
    assert found.bound <= expected * (1 + 1e-6)
    assert expected * (1 - 1e-6) <= found.latency <= expected * 1.005
    for g, each in enumerate(devices):
        assert sum(s.count for s in found.shares if s.option.group == g) == each.count
    assert max(found.loads.values()) <= 0.8 + 1e-6


def test_together_is_better_than_each_alone() -> None:
    devices = (group(count=60, rate=2.0, deadline=2.0),)
    edges = tuple(EdgeMachine(name=name, profile="edge.json") for name in ("near", "far"))
    links = {("line", "near"): (FAST, False), ("line", "far"): (sl.Link(0.03, 20e6), False)}
    inventory = plant(devices, edges, links=links)
    alone, together = each_alone(inventory), assign(inventory)
    assert {share.option.edge for share in alone.shares} == {"near"}
    assert alone.loads["near"] > 1
    assert alone.latency == math.inf
    assert {"near", "far"} <= {share.option.edge for share in together.shares}
    assert together.latency < 0.3
    outcomes = [simulate(inventory, each, 120.0) for each in (together, alone)]
    assert outcomes[0].mean < outcomes[1].mean / 2
    assert outcomes[0].late < outcomes[1].late or outcomes[1].late == 0.0


def test_a_shared_link_is_no_wider_than_it_is() -> None:
    devices = (group(count=40, rate=1.0, deadline=5.0),)
    one = plant(devices, links={("line", "box"): (sl.Link(0.01, 200e3), False)})
    shared = plant(devices, links={("line", "box"): (sl.Link(0.01, 200e3), True)})
    assert split(shared).shared > 0
    found = assign(shared)
    assert found.loads["line > box"] <= 0.8 + 1e-9
    assert "line > box" not in assign(one).loads
    narrow = plant(devices, links={("line", "box"): (sl.Link(0.01, 60e3), True)})
    at_edge = [
        sum(s.count for s in assign(each).shares if s.option.edge) for each in (narrow, shared)
    ]
    assert 0 < at_edge[0] < at_edge[1]
    # Its queue is simulated, too: M/D/1. The edge has little to do.
    option = split(narrow)
    count = int(0.7 / option.shared)
    busy = msgspec.structs.replace(narrow, devices=(group(count=count, deadline=50.0),))
    outcome = simulate(busy, taken(busy, Share(option, count)), 4000.0)
    load = count * option.shared
    expected = option.latency + waiting(load, 1) * option.shared / load
    assert outcome.busy["line > box"] == pytest.approx(load, rel=0.03)
    assert outcome.mean == pytest.approx(expected, rel=0.05)


def test_edges_that_are_too_weak_are_said_to_be() -> None:
    inventory = plant((group(count=100, rate=1.0, slowdown=5.0, deadline=0.5),))
    with pytest.raises(PlanError, match=r"need at least .* workers .* which have 0.8 at 80%"):
        assign(inventory)


# --- the command ---------------------------------------------------------------------------------


def test_the_command_plans_and_simulates(inventory_file: Callable[[str], Path]) -> None:
    path = inventory_file(INVENTORY)
    done = run_here("fleet", path, "--simulate", "30", "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    planned = document["planned"]
    assert sum(share["count"] for share in planned["shares"]) == 10
    assert planned["bound"] <= planned["latency"]
    assert planned["simulated"]["groups"][0]["requests"] > 400
    assert document["alone"]["loads"].keys() == {"box"}
    table = run_here("fleet", path, "--simulate", "30").stdout
    for expected in (
        "The fleet's plan",
        "line",
        "box",
        "Load",
        "As planned: 30 s",
        "Each device al",
    ):
        assert expected in table
    failed = run_here("fleet", inventory_file(INVENTORY.replace("count = 10", "count = 0")))
    assert failed.exit_code == 1
