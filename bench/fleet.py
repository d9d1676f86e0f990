"""A fleet's plan, its simulation, and 64 real devices beside their simulation.

    python -m bench.fleet               # both
    python -m bench.fleet plan          # 200 devices, 5 edges; and 100,000 devices for an hour
    python -m bench.fleet real          # 64 devices and one daemon on this machine

Both profile EfficientNet-Lite0 here, on one thread, with noise in the place of images. In ``real``,
profiling and the devices take turns, so that the machine's drift hits both alike, and the
simulation has the profile of all turns. How much the times vary is measured before, with one
device that asks alone. The devices ask at random times (Poisson), each at the rate given by
``--load``, the share of its time that the daemon's one worker works. Profile and devices run on the
first core, the daemon on the second, where there are two.

Each part writes its figures into docs/fleet.md when it is done, so that none is lost when the other
fails. With fewer devices, turns or seconds than usual it only prints them, unless ``--document``
names a copy.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import TensorDataset

import scissionlite as sl
from bench.documents import circumstances, load_before, write_between
from bench.end_to_end.machine import on_core, pin_to_core
from scissionlite.demo.processes import Running
from scissionlite.fleet.assignment import Assignment, Share, assign, each_alone
from scissionlite.fleet.inventory import Devices, EdgeMachine, Inventory
from scissionlite.fleet.options import options_of
from scissionlite.fleet.simulation import Outcome, simulate
from scissionlite.models import load_model
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.scissiontl.profiler import Profiler

MODEL = "scissionlite.models:efficientnet_lite0_imagenet"
SIZE = 128
LOOPBACK = sl.Link(rtt=1e-4, bandwidth=1e10)
HOUR = 3600.0
PROCESSES = 2  # with the real devices
FIRST_ROUNDS, ROUNDS = 8, 2  # of the profile: before anything else, and in each turn
DEVICES, TURNS, SECONDS = 64, 16, 96.0  # real ones, and how long they ask
ALONE = 200  # requests of one device alone
START = 300.0  # seconds for a process to start, or to answer
SERVE = ("--bind", "tcp://127.0.0.1:*", "--threads", "1", "--batch", "1", "--json")

Floats = npt.NDArray[np.float32]


def graph_of() -> sl.Graph:
    """Capture the network."""
    torch.manual_seed(0)
    return sl.capture(load_model(MODEL), torch.zeros(1, 3, SIZE, SIZE), name="lite0")


def profiler_of(graph: sl.Graph) -> Profiler:
    """What profiles it, on one thread."""
    preprocessing = sl.Preprocessing(size=(SIZE, SIZE))
    return Profiler(
        graph, name="here", threads=1, preprocessing=preprocessing, slices=6, int8=False
    )


# --- a plant -------------------------------------------------------------------------------------


def plant(profile: sl.Profile, devices: int = 1, slower: int = 1) -> Inventory:
    """200 devices in 8 groups and 5 edges; or times as many devices, that ask so much slower."""
    groups = tuple(
        Devices(
            name=f"line{i}",
            profile="here",
            count=25 * devices,
            rate=(1.0 + i % 4) / slower,
            deadline=1.0,
            slowdown=(5.3, 10.0, 20.0, 40.0)[i // 2],
        )
        for i in range(8)
    )
    edges = tuple(
        EdgeMachine(name=f"box{i}", profile="here", workers=(1, 1, 2, 2, 4)[i] * devices // slower)
        for i in range(5)
    )
    links = {
        (d.name, e.name): (sl.Link(0.004 + 0.004 * abs(i / 2 - j), (20e6, 58.8e6)[i % 2]), False)
        for (i, d), (j, e) in itertools.product(enumerate(groups), enumerate(edges))
    }
    profiles = {d.name: profile.slowed(d.slowdown) for d in groups}
    return Inventory(
        devices=groups,
        edges=edges,
        links=links,
        profiles=profiles | {e.name: profile for e in edges},
        constraints=sl.Constraints(min_device_blocks=1),  # no raw image leaves a device
    )


def show_plan(profile: sl.Profile, hour: float) -> str:
    """Plan 200 devices, compare with each alone, and play 100,000 devices for some seconds."""
    inventory = plant(profile)
    start = time.perf_counter()
    together = assign(inventory)
    seconds = time.perf_counter() - start
    assert together.bound is not None
    alone = each_alone(inventory)
    played = [simulate(inventory, each, 600.0) for each in (together, alone)]
    large = plant(profile, devices=500, slower=10)
    start = time.perf_counter()
    planned = assign(large)
    between = time.perf_counter()
    outcome = simulate(large, planned, hour)
    lasted = time.perf_counter() - between
    requests = sum(group.requests for group in outcome.groups)
    loads = [
        f"| {name} | {100 * load:.0f}% | {100 * alone.loads[name]:.0f}% |"
        for name, load in together.loads.items()
    ]
    return f"""
**A plan.** 200 devices in 8 groups, 5 edges: {seconds:.1f} s (bar: 10 s). Its predicted mean
latency is {1e3 * together.latency:.2f} ms,
{100 * (together.latency / together.bound - 1):.3f}% over the solver's bound (bar: 2%).

| 600 s of plant time, simulated | mean latency | late or lost |
| --- | --- | --- |
| planned together | {1e3 * played[0].mean:.1f} ms | {100 * played[0].late:.2f}% |
| each device alone | {1e3 * played[1].mean:.1f} ms | {100 * played[1].late:.2f}% |

So planned together, the mean latency is **{played[1].mean / played[0].mean:.2f} times** lower than
if each device chose alone. The edges' loads:

| edge | planned together | each device alone |
| --- | --- | --- |
{chr(10).join(loads)}

**A large plant.** 100,000 devices were planned in {between - start:.1f} s. {hour:,.0f} s of plant
time, {requests:,} requests, were simulated in **{lasted:.0f} s** (bar: 300 s for an hour): mean
latency {1e3 * outcome.mean:.1f} ms, {100 * outcome.late:.3f}% late or lost.
"""


# --- real devices --------------------------------------------------------------------------------


def one_group(
    profile: sl.Profile, rate: float, count: int, variation: tuple[float, float]
) -> Inventory:
    """The devices and the daemon of this machine; the variation of each one's times."""
    return Inventory(
        devices=(
            Devices(
                name="devices",
                profile="here",
                count=count,
                rate=rate,
                deadline=30.0,
                fallback="raise",
                variation=variation[0],
            ),
        ),
        edges=(EdgeMachine(name="edge", profile="here", variation=variation[1]),),
        links={("devices", "edge"): (LOOPBACK, False)},
        profiles={"devices": profile, "edge": profile},
    )


def predicted(
    profile: sl.Profile, point: str, rate: float, count: int, variation: tuple[float, float]
) -> Outcome:
    """Simulate them, all cut at one slicing point with 2x2 int8."""
    inventory = one_group(profile, rate, count, variation)
    plans = sl.plan(profile, profile, LOOPBACK)
    (taken,) = (p for p in plans if p.slicing_point == point and p.spec == sl.TransferSpec())
    option = msgspec.structs.replace(options_of(inventory)[0], plan=taken, edge="edge")
    assignment = Assignment(shares=(Share(option, count),), latency=0.0, loads={})
    return simulate(inventory, assignment, 600.0)


def show_real(
    graph: sl.Graph, profiler: Profiler, count: int, turns: int, seconds: float, load: float
) -> str:
    """Measure the devices while the profiler has its turns, and simulate them."""
    first = profiler.profile()
    plans = sl.plan(first, first, LOOPBACK)
    ours = [p for p in plans if p.spec == sl.TransferSpec()]
    # An early cut: the edge has the most to do, and the devices' share is small.
    taken = min(ours, key=lambda p: p.predicted.device_stage)
    assert taken.slicing_point is not None
    work = taken.predicted.decode_time + taken.predicted.edge_time
    rate = load / work / count
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bundle = sl.prepare(
            graph,
            taken,
            unlabelled=TensorDataset(torch.randn(8, 3, SIZE, SIZE), torch.zeros(8)),
            out=Path(folder) / "bundle",
            recipe=Recipe(epochs=0),
            local_fallback=False,
        )
        devices = stack.enter_context(RealDevices(bundle, count))
        variation = devices.variation()
        latencies: list[float] = []
        profiler.forget()
        for _ in range(turns):
            profiler.measure(ROUNDS)
            latencies += devices.ask(seconds / turns, rate)
        profiler.measure(ROUNDS)
    outcome = predicted(profiler.profile(), taken.slicing_point, rate, count, variation)
    group = outcome.groups[0]
    simulated = [group.p50, group.p95, outcome.mean]
    measured = [*np.quantile(latencies, (0.5, 0.95)), np.mean(latencies)]
    rows = [
        "| " + " | ".join([name, *(f"{1e3 * each:.2f}" for each in values)]) + " |"
        for name, values in (("measured, ms", measured), ("simulated, ms", simulated))
    ]
    errors = [f"{100 * (a / b - 1):+.1f}%" for a, b in zip(simulated, measured, strict=True)]
    return f"""
**{count} real devices.** {PROCESSES} processes have them, and a daemon of its own answers, with one
worker. Each asks {rate:.2f} times a second at random, so that the worker is busy {100 * load:.0f}%
of its time; cut after `{taken.slicing_point}`, 2x2 int8; {len(latencies):,} requests.
Alone, the times of a device and of the edge vary by {variation[0]:.2f} and {variation[1]:.2f}
(standard deviation over mean), and so they do in the simulation. Bar: within 15%.

| | median | p95 | mean |
| --- | --- | --- | --- |
{chr(10).join(rows)}
| error | {" | ".join(errors)} |
"""


class RealDevices:
    """A daemon and the processes of its devices; a context manager."""

    def __init__(self, bundle: sl.Bundle, count: int) -> None:
        self._bundle, self._count = bundle, count
        self._stack = ExitStack()
        self._processes: list[Running] = []

    def __enter__(self) -> RealDevices:
        serve = ["-m", "scissionlite", "serve", str(self._bundle.path), *SERVE]
        with ExitStack() as stack:
            daemon = stack.enter_context(Running(serve, on_core(1)))
            ready = daemon.read(START)
            where = [str(self._bundle.path), ready["endpoint"], ready["control_endpoint"]]
            count = str(self._count // PROCESSES)
            for number in range(PROCESSES):
                command = ["-m", "bench.fleet", "devices", *where, count, str(number)]
                self._processes.append(stack.enter_context(Running(command, on_core(0))))
            for each in self._processes:
                each.read(START)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def ask(self, seconds: float, rate: float) -> list[float]:
        """Have each ask at a rate for some seconds; return the seconds of every request."""
        for each in self._processes:
            each.write({"seconds": seconds, "rate": rate})
        return [
            latency
            for each in self._processes
            for latency in each.read(seconds + START)["latencies"]
        ]

    def variation(self) -> tuple[float, float]:
        """The coefficients of variation of a device's and of the edge's times, one device alone."""
        self._processes[0].write({"alone": ALONE})
        times = self._processes[0].read(START)
        device, edge = (np.array(times[each]) for each in ("device", "edge"))
        return float(device.std() / device.mean()), float(edge.std() / edge.mean())


def be_devices(folder: str, endpoint: str, control: str, count: int, seed: int) -> None:
    """Be some devices, each in a thread; obeys lines of :class:`RealDevices`."""
    torch.set_num_threads(1)
    bundle = sl.Bundle.load(folder)
    frame = np.random.default_rng(seed).standard_normal(bundle.manifest.inputs[0].shape)
    x = frame.astype(np.float32)
    with ExitStack() as stack:
        devices = [
            stack.enter_context(
                sl.Device(bundle, endpoint, control=control, deadline=30.0, threads=1)
            )
            for _ in range(count)
        ]
        for device in devices:
            device.infer(x)
        print(json.dumps({"ready": True}), flush=True)
        for number, line in enumerate(sys.stdin):
            request = json.loads(line)
            if "alone" in request:
                print(json.dumps(stages(devices[0], x, request["alone"])), flush=True)
                continue
            answer = ask(devices, x, request["seconds"], request["rate"], (seed, number))
            print(json.dumps({"latencies": answer}), flush=True)


def stages(device: sl.Device, x: Floats, times: int) -> dict[str, list[float]]:
    """The seconds that a device and its edge compute for each of some requests, with pauses."""
    found: dict[str, list[float]] = {"device": [], "edge": []}
    for _ in range(times):
        time.sleep(0.02)
        timings = device.submit(x).result().timings
        found["device"].append(timings["device_slice"] + timings["encode"])
        found["edge"].append(timings["edge_decode"] + timings["edge_run"])
    return found


def ask(
    devices: Sequence[sl.Device], x: Floats, seconds: float, rate: float, seed: tuple[int, int]
) -> list[float]:
    """Have each device ask at random times; return the seconds of every request."""
    end = time.monotonic() + seconds

    def use(device: sl.Device, number: int) -> list[float]:
        chance = random.Random(f"{seed} {number}")
        due = time.monotonic() + chance.expovariate(rate)
        own = []
        while due < end:
            time.sleep(max(0.0, due - time.monotonic()))
            # A frame that comes while the device is busy waits, as in the simulation.
            device.infer(x)
            own.append(time.monotonic() - due)
            due += chance.expovariate(rate)
        return own

    with ThreadPoolExecutor(len(devices)) as threads:
        every = threads.map(use, devices, range(len(devices)))  # one that fails ends all
        return [latency for own in every for latency in own]


def main(arguments: list[str]) -> None:
    """Run a part, or both."""
    if arguments[:1] == ["devices"]:
        folder, endpoint, control, count, seed = arguments[1:]
        be_devices(folder, endpoint, control, int(count), int(seed))
        return
    parser = argparse.ArgumentParser(prog="python -m bench.fleet", description=__doc__)
    parser.add_argument("part", nargs="?", choices=("plan", "real"), help="only this")
    parser.add_argument("--hour", type=float, default=HOUR, help="seconds of the 100,000 devices")
    parser.add_argument("--devices", type=int, default=DEVICES, help="real ones")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="in which they ask")
    parser.add_argument("--turns", type=int, default=TURNS, help="of the profile and the devices")
    parser.add_argument("--load", type=float, default=0.3, help="of the real daemon's worker")
    parser.add_argument("--document", type=Path, help="that has the marks; docs/fleet.md")
    options = parser.parse_args(arguments)
    load = load_before()
    torch.set_num_threads(1)
    pin_to_core(0)
    graph = graph_of()
    with profiler_of(graph) as profiler:
        profiler.measure(2)
        profiler.forget()
        profiler.measure(FIRST_ROUNDS)
        where = f"Measured on {circumstances(load)}, with the profile of {MODEL}, {SIZE} x {SIZE}."
        if options.part != "plan":
            given = (options.devices, options.turns, options.seconds)
            text = f"{where}\n{show_real(graph, profiler, *given, options.load)}"
            usual = all(a >= b for a, b in zip(given, (DEVICES, TURNS, SECONDS), strict=True))
            show("real", text, options.document, usual=usual)
        if options.part != "real":
            text = f"{where}\n{show_plan(profiler.profile(), options.hour)}"
            show("plan", text, options.document, usual=options.hour >= HOUR)


def show(part: str, text: str, document: Path | None, *, usual: bool) -> None:
    """Print the figures of a part, and write them into the document."""
    print(text, flush=True)
    if document is not None or usual:
        write_between(document or "fleet.md", f"python -m bench.fleet {part}", text)


if __name__ == "__main__":
    main(sys.argv[1:])
