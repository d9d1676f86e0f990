"""A fleet's plan, its simulation, and 64 real devices beside their simulation.

    python -m bench.fleet plan          # 200 devices, 5 edges; and 100,000 devices for an hour
    python -m bench.fleet real          # 64 devices and one daemon on this machine, 2 minutes

Both profile EfficientNet-Lite0 here, on one thread, with noise in the place of images. ``real``
profiles, measures and profiles again, and simulates with the mean of the two profiles, so that the
machine's drift hits both alike. Its devices ask at random times (Poisson), each at the rate given
by ``--load``, the share of its time that the daemon's one worker works.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch.utils.data import TensorDataset

import scissionlite as sl
from scissionlite.demo.processes import Running
from scissionlite.fleet.assignment import Assignment, Share, assign, each_alone
from scissionlite.fleet.inventory import Devices, EdgeMachine, Inventory
from scissionlite.fleet.options import options_of
from scissionlite.fleet.simulation import Outcome, simulate
from scissionlite.models import load_model
from scissionlite.preprocessor.recipe import Recipe

MODEL = "scissionlite.models:efficientnet_lite0_imagenet"
SIZE = 128
LOOPBACK = sl.Link(rtt=1e-4, bandwidth=1e10)
HOUR = 3600.0
PROCESSES = 2  # with the real devices


def graph_of() -> sl.Graph:
    """Capture the network."""
    torch.manual_seed(0)
    return sl.capture(load_model(MODEL), torch.zeros(1, 3, SIZE, SIZE), name="lite0")


def profile_of(graph: sl.Graph) -> sl.Profile:
    """Profile it on one thread."""
    preprocessing = sl.Preprocessing(size=(SIZE, SIZE))
    return sl.profile(
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


def show_plan(profile: sl.Profile) -> None:
    """Plan 200 devices, compare with each alone, and play 100,000 devices for an hour."""
    inventory = plant(profile)
    start = time.perf_counter()
    together = assign(inventory)
    seconds = time.perf_counter() - start
    assert together.bound is not None
    print(f"plan of 200 devices and 5 edges: {seconds:.2f} s, {len(together.shares)} shares")
    print(
        f"mean latency {1e3 * together.latency:.2f} ms, at most "
        f"{100 * (together.latency / together.bound - 1):.3f}% over the solver's bound"
    )
    alone = each_alone(inventory)
    print("loads planned:", {name: round(load, 2) for name, load in together.loads.items()})
    print("loads, each alone:", {name: round(load, 2) for name, load in alone.loads.items()})
    print("| 600 s simulated | mean | late or lost |")
    print("| --- | --- | --- |")
    for name, each in (("planned together", together), ("each device alone", alone)):
        outcome = simulate(inventory, each, 600.0)
        print(f"| {name} | {1e3 * outcome.mean:.1f} ms | {100 * outcome.late:.2f}% |")
    large = plant(profile, devices=500, slower=10)
    start = time.perf_counter()
    together = assign(large)
    planned = time.perf_counter()
    outcome = simulate(large, together, HOUR)
    requests = sum(group.requests for group in outcome.groups)
    print(
        f"100,000 devices: planned in {planned - start:.1f} s; an hour, {requests:,} requests, in "
        f"{time.perf_counter() - planned:.0f} s: mean {1e3 * outcome.mean:.1f} ms, "
        f"{100 * outcome.late:.3f}% late or lost"
    )


# --- real devices --------------------------------------------------------------------------------


def one_group(profile: sl.Profile, rate: float, count: int) -> Inventory:
    """The devices and the daemon of this machine."""
    return Inventory(
        devices=(
            Devices(
                name="devices",
                profile="here",
                count=count,
                rate=rate,
                deadline=30.0,
                fallback="raise",
            ),
        ),
        edges=(EdgeMachine(name="edge", profile="here"),),
        links={("devices", "edge"): (LOOPBACK, False)},
        profiles={"devices": profile, "edge": profile},
    )


def predicted(profile: sl.Profile, point: str, rate: float, count: int) -> Outcome:
    """Simulate them, all cut at one slicing point with 2x2 int8."""
    inventory = one_group(profile, rate, count)
    plans = sl.plan(profile, profile, LOOPBACK)
    (taken,) = (p for p in plans if p.slicing_point == point and p.spec == sl.TransferSpec())
    option = msgspec.structs.replace(options_of(inventory)[0], plan=taken, edge="edge")
    assignment = Assignment(shares=(Share(option, count),), latency=0.0, loads={})
    return simulate(inventory, assignment, 600.0)


def show_real(count: int, seconds: float, load: float) -> None:
    """Measure the devices, and simulate them with what was profiled before and after."""
    graph = graph_of()
    first = profile_of(graph)
    plans = sl.plan(first, first, LOOPBACK)
    ours = [p for p in plans if p.spec == sl.TransferSpec()]
    # An early cut: the edge has the most to do, and the devices' share is small.
    taken = min(ours, key=lambda p: p.predicted.device_stage)
    assert taken.slicing_point is not None
    work = taken.predicted.decode_time + taken.predicted.edge_time
    rate = load / work / count
    with tempfile.TemporaryDirectory() as folder:
        bundle = sl.prepare(
            graph,
            taken,
            unlabelled=TensorDataset(torch.randn(8, 3, SIZE, SIZE), torch.zeros(8)),
            out=Path(folder) / "bundle",
            recipe=Recipe(epochs=0),
            local_fallback=False,
        )
        latencies = measure(bundle, count, seconds, rate)
    second = profile_of(graph)
    print(
        f"{count} devices, {rate:.2f} requests a second each, cut after {taken.slicing_point}, "
        f"{seconds:g} s, {len(latencies)} requests, worker busy {100 * load:.0f}% as planned"
    )
    print("| | median, ms | p95, ms | mean, ms |")
    print("| --- | --- | --- | --- |")
    quantiles = [*np.quantile(latencies, (0.5, 0.95)), np.mean(latencies)]
    print("| measured | " + " | ".join(f"{1e3 * each:.2f}" for each in quantiles) + " |")
    both = []
    for name, profile in (("before", first), ("after", second)):
        outcome = predicted(profile, taken.slicing_point, rate, count)
        group = outcome.groups[0]
        both.append([group.p50, group.p95, outcome.mean])
        said = " | ".join(f"{1e3 * each:.2f}" for each in both[-1])
        print(f"| simulated with the profile {name} | {said} |")
    errors = [100 * (a / b - 1) for a, b in zip(np.mean(both, axis=0), quantiles, strict=True)]
    print("| mean of the two, error | " + " | ".join(f"{each:+.1f}%" for each in errors) + " |")


def measure(bundle: sl.Bundle, count: int, seconds: float, rate: float) -> list[float]:
    """Run the daemon and the devices; return the seconds of every request."""
    serve = ["-m", "scissionlite", "serve", str(bundle.path), "--bind", "tcp://127.0.0.1:*"]
    with Running([*serve, "--threads", "1", "--batch", "1", "--json"]) as daemon:
        ready = daemon.read(60.0)
        where = [str(bundle.path), ready["endpoint"], ready["control_endpoint"]]
        devices = [
            Running(["-m", "bench.fleet", "devices", *where, str(count // PROCESSES), str(i)])
            for i in range(PROCESSES)
        ]
        latencies: list[float] = []
        try:
            for each in devices:
                each.__enter__()
                each.read(120.0)
            for each in devices:
                each.write({"seconds": seconds, "rate": rate})
            for each in devices:
                latencies += each.read(seconds + 120.0)["latencies"]
        finally:
            for each in devices:
                each.__exit__(None, None, None)
    return latencies


def be_devices(folder: str, endpoint: str, control: str, count: int, seed: int) -> None:
    """Be some devices, each in a thread; the rest of a line is the run's seconds and rate."""
    torch.set_num_threads(1)
    bundle = sl.Bundle.load(folder)
    frame = np.random.default_rng(seed).standard_normal(bundle.manifest.inputs[0].shape)
    x = frame.astype(np.float32)
    devices = [
        sl.Device(bundle, endpoint, control=control, deadline=30.0, threads=1) for _ in range(count)
    ]
    for device in devices:
        device.infer(x)
    print(json.dumps({"ready": True}), flush=True)
    request = json.loads(sys.stdin.readline())
    latencies: list[float] = []
    lock = threading.Lock()
    end = time.monotonic() + request["seconds"]

    def use(device: sl.Device, number: int) -> None:
        chance = random.Random(1000 * seed + number)
        due = time.monotonic() + chance.expovariate(request["rate"])
        own = []
        while due < end:
            time.sleep(max(0.0, due - time.monotonic()))
            start = time.perf_counter()
            device.infer(x)
            own.append(time.perf_counter() - start)
            due += chance.expovariate(request["rate"])
        with lock:
            latencies.extend(own)

    threads = [threading.Thread(target=use, args=each[::-1]) for each in enumerate(devices)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for device in devices:
        device.close()
    print(json.dumps({"latencies": latencies}), flush=True)


def main(arguments: list[str]) -> None:
    """Run a part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    plan = parts.add_parser("plan")
    plan.add_argument("--profile", type=Path, help="of an earlier run, instead of a new one")
    real = parts.add_parser("real")
    real.add_argument("--devices", type=int, default=64)
    real.add_argument("--seconds", type=float, default=60.0)
    real.add_argument("--load", type=float, default=0.3)
    devices = parts.add_parser("devices")
    for name, kind in (("folder", str), ("endpoint", str), ("control", str)):
        devices.add_argument(name, type=kind)
    for name in ("count", "seed"):
        devices.add_argument(name, type=int)
    options: Any = parser.parse_args(arguments)
    if options.part == "plan":
        given = options.profile
        show_plan(profile_of(graph_of()) if given is None else sl.Profile.load(given))
    elif options.part == "real":
        show_real(options.devices, options.seconds, options.load)
    else:
        be_devices(options.folder, options.endpoint, options.control, options.count, options.seed)


if __name__ == "__main__":
    main(sys.argv[1:])
