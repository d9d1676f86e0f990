"""Runs a cell: starts its processes, and gives every contender a turn in each round."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import scissionlite as sl
from bench.end_to_end import device_process, machine, networks
from bench.end_to_end.claims import DEVICE_STAGES
from bench.end_to_end.contenders import (
    ALTERNATES,
    JPEG,
    JPEG_ONNX,
    LOCAL,
    LOCAL_ONNX,
    OURS,
    OURS_ONNX,
    PIPELINED,
    SCISSION,
    WEBP,
    WEBP_QUALITY,
    Contender,
)
from bench.end_to_end.links import linked
from bench.end_to_end.networks import Known
from bench.end_to_end.prepared import Prepared, note, timed
from bench.end_to_end.records import Cell, Measured
from scissionlite.demo.device_process import Answered, Turn, Turned, Way
from scissionlite.demo.processes import DeviceProcess, daemon
from scissionlite.errors import ScissionLiteError

LONGEST = {"contenders": 6.0, "claims": 20.0}
"""Seconds: a contender whose request is predicted to take longer is not run; by kind of cell."""
DOMINATED = 4.0
"""A contender that is predicted to take so many times as long as the fastest is not run."""
NEVER_DOMINATED = (LOCAL, LOCAL_ONNX, SCISSION, OURS, OURS_ONNX, *ALTERNATES, JPEG, JPEG_ONNX)
"""But these are: the claims are about them."""
WARM_UP = 2.0
"""Seconds: a contender that takes longer has no request that is not counted."""
LEAST_ROUNDS, MOST_ROUNDS = 3, 40
BURST = 8
"""Requests of a turn of the pipelined contender."""


def run_cell(
    prepared: Prepared,
    link_name: str,
    link: sl.Link,
    slowdown: float,
    chosen: Sequence[Contender],
    kind: str = "contenders",
) -> Cell:
    """Measure the contenders of a cell in turns."""
    load = os.getloadavg()[0]
    skipped = {name: why for name, why in too_long(chosen, kind).items() if why}
    folders: dict[str, Path] = {}
    for c in chosen:
        if c.name not in skipped:
            try:
                folders[c.name] = prepared.bundle(c.plan, c.runtime)
            except ScissionLiteError as error:  # the others do not depend on it
                note(f"{prepared.name}: {c.name} cannot be prepared: {error}")
                skipped[c.name] = "cannot be prepared"
    running = [c for c in chosen if c.name in folders]
    with ExitStack() as stack:
        with timed(f"{prepared.name}: start of {len(running)} contenders"):
            device, edges = _start(stack, prepared, link, slowdown, running, folders)
        with timed(f"{prepared.name}: turns"):
            turns = _take_turns(
                device, edges, running, prepared.setting.seconds, len(prepared.files)
            )
    measured = tuple(
        _measured(c, turns.get(c.name, []), link, prepared.known, skipped.get(c.name, ""))
        for c in chosen
    )
    return Cell(
        kind=kind,
        network=prepared.name,
        link=link_name,
        rtt=link.rtt,
        bandwidth=link.bandwidth,
        slowdown=slowdown,
        bound=_uncut_on_edge(measured, prepared.profile) + link.rtt,
        measured=measured,
        link_kind=prepared.setting.link_kind,
        machine=machine.description(),
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "onnxruntime", "grpcio", "pillow")},
        },
        load=load,
        date=time.strftime("%Y-%m-%d %H:%M"),
        command=prepared.setting.command,
        size=prepared.size,
        weights=prepared.weights,
    )


def _uncut_on_edge(measured: Sequence[Measured], profile: sl.Profile) -> float:
    """Seconds of the uncut network on the edge, which runs it for images: of the faster runtime."""
    runs = [m.timings["edge_run"] for m in measured if m.raw_image and "edge_run" in m.timings]
    return min(runs, default=profile.network_latency)


def too_long(chosen: Sequence[Contender], kind: str) -> dict[str, str]:
    """Why each contender is not run; empty where it is.

    WebP is predicted as JPEG of its quality, of which it has fewer bytes.
    """
    longest = LONGEST.get(kind, LONGEST["contenders"])
    seconds = {c.name: c.plan.predicted.latency for c in chosen}
    never = {*NEVER_DOMINATED, *(c.name for c in chosen if c.in_flight > 1)}
    if WEBP in seconds:
        seconds[WEBP] = seconds.get(JPEG, seconds[WEBP])
    for c in chosen:
        if c.in_flight > 1:
            seconds[c.name] = max(seconds[c.name], BURST * c.plan.predicted.bottleneck)
    fastest = min(seconds.values(), default=0.0)
    dominated = fastest * DOMINATED if kind == "contenders" else longest
    limits = {name: longest if name in never else min(dominated, longest) for name in seconds}
    return {n: f"predicted {s:.2g} s" if s > limits[n] else "" for n, s in seconds.items()}


def _start(
    stack: ExitStack,
    prepared: Prepared,
    link: sl.Link,
    slowdown: float,
    running: Sequence[Contender],
    folders: Mapping[str, Path],
) -> tuple[DeviceProcess, list[int]]:
    """Start the edges, the link and the device; returns the device and the edges' numbers."""
    served = sorted({str(folders[c.name]) for c in running if c.transport == "scissionlite"})
    over_grpc = sorted({str(folders[c.name]) for c in running if c.transport == "grpc"})
    serve = ["-m", "scissionlite", "serve", *served, "--bind", "tcp://127.0.0.1:*"]
    edge = stack.enter_context(daemon([*serve, "--threads", "1", "--json"], machine.on_core(1)))
    ports = [int(edge[key].rpartition(":")[2]) for key in ("endpoint", "control_endpoint")]
    edges = [edge["pid"]]
    if over_grpc:
        peer = daemon(["-m", "bench.end_to_end.grpc_edge", *over_grpc], machine.on_core(1))
        started = stack.enter_context(peer)
        ports.append(started["port"])
        edges.append(started["pid"])
    behind = stack.enter_context(linked(link, ports, prepared.setting.link_kind))
    addresses = [f"{behind.host}:{port}" for port in behind.ports]
    ways, grpc_ways = [], []
    for c in running:
        folder = str(folders[c.name])
        if c.transport == "grpc":
            grpc_ways.append(
                device_process.GrpcWay(
                    name=c.name,
                    bundle=folder,
                    number=over_grpc.index(folder),
                    address=addresses[2],
                    slowdown=slowdown,
                    webp_quality=None if c.split else WEBP_QUALITY,
                )
            )
        elif c.name != PIPELINED:  # the same device as ours
            remote = c.transport == "scissionlite"
            ways.append(
                Way(
                    name=c.name,
                    bundle=folder,
                    connect=f"tcp://{addresses[0]}" if remote else None,
                    control=f"tcp://{addresses[1]}" if remote else None,
                    slowdown=slowdown,
                    runtime=c.runtime if c.runtime == "onnx" and not remote else None,
                )
            )
    setup = device_process.Setup(tuple(ways), tuple(grpc_ways), tuple(map(str, prepared.files)))
    process = DeviceProcess(setup, behind.within, "bench.end_to_end.device_process")
    return stack.enter_context(process), edges


class Taken(NamedTuple):
    """A turn that was taken: its answers, and the CPU seconds of the edges."""

    turned: Turned
    edge_cpu: float


def _take_turns(
    device: DeviceProcess,
    edges: Iterable[int],
    running: Sequence[Contender],
    seconds: float,
    images: int,
) -> dict[str, list[Taken]]:
    """Give each contender a turn in every round; the first one of a round changes."""
    edges = list(edges)
    for c in running:
        if c.in_flight == 1 and c.plan.predicted.latency < WARM_UP:
            device.take(Turn(c.name, (0,)))
    taken: dict[str, list[Taken]] = {c.name: [] for c in running}
    started = time.monotonic()
    for number in range(MOST_ROUNDS):
        if number >= LEAST_ROUNDS and time.monotonic() - started > seconds:
            break
        first = number % max(len(running), 1)
        for c in (*running[first:], *running[:first]):
            count = BURST if c.in_flight > 1 else 1
            if c.in_flight > 1 and number % 2:
                continue  # a burst takes as long as several requests
            which = tuple((number + i) % images for i in range(count))
            name = c.name if c.in_flight == 1 else c.name.partition(",")[0]
            before = sum(machine.cpu_seconds(pid) for pid in edges)
            turned = device.take(Turn(name, which, c.in_flight))
            after = sum(machine.cpu_seconds(pid) for pid in edges)
            taken[c.name].append(Taken(turned, after - before))
    return taken


def _measured(
    contender: Contender, taken: Sequence[Taken], link: sl.Link, known: Known | None, skipped: str
) -> Measured:
    plan, predicted = contender.plan, contender.plan.predicted
    answers: list[Answered] = [a for each in taken for a in each.turned.answers]
    figures: dict[str, Any] = {}
    if answers:
        stages: dict[str, list[float]] = {}
        for answer in answers:
            for stage, value in answer.timings.items():
                stages.setdefault(stage, []).append(value)
        sent = sum(a.sent_bytes for a in answers) / len(answers)
        device = sum(sum(a.timings.get(stage, 0.0) for stage in DEVICE_STAGES) for a in answers)
        cpu = device / len(answers)
        figures = {
            "latencies": tuple(a.latency for a in answers),
            "timings": {stage: median(values) for stage, values in stages.items()},
            "throughput": median(len(t.turned.answers) / t.turned.seconds for t in taken),
            "sent_bytes": sent,
            "device_cpu": cpu,
            "edge_cpu": sum(each.edge_cpu for each in taken) / len(answers),
            "energy": machine.energy(cpu, sent, link.bandwidth),
        }
    webp = contender.transport == "grpc" and not contender.split
    return Measured(
        name=contender.name,
        what="WebP-75 image" if webp else plan.label,
        place=plan.place,
        raw_image=contender.raw_image,
        split=contender.split,
        leakage=predicted.leakage,
        predicted=predicted.latency if contender.predicted else None,
        parts={
            "device": predicted.device_time,
            "encode": predicted.encode_time,
            "transfer": predicted.transfer_time + predicted.offload_time,
            "decode": predicted.decode_time,
            "edge": predicted.edge_time,
        }
        if contender.predicted
        else {},
        skipped=skipped,
        device_memory=predicted.device_memory,
        accuracy=None if webp else networks.accuracy_of(known, plan),
        **figures,
    )
