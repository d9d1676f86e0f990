"""Many devices at once, each with inputs of its own, and every answer checked.

``python -m many_devices BUNDLE ENDPOINT CONTROL FIRST COUNT SECONDS [DEADLINE]`` runs ``COUNT``
devices in threads of one process, one thread each. It writes a line when all are connected, waits
for a line, asks for so many seconds, and writes a :class:`Tally` as JSON. Several endpoints are
joined by commas: each device prefers the next one, and uses the others when that is lost.
"""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from scissionlite.bundle import Bundle
from scissionlite.errors import OffloadError
from scissionlite.offloader import Device
from scissionlite.offloader.device.side import DeviceSide
from scissionlite.offloader.edge.side import EdgeSide
from scissionlite.offloader.stopwatch import Stopwatch

INPUTS = 8  # of each device
IN_FLIGHT = 2  # requests of each device
LONG = 60.0  # seconds of a deadline; nothing is to wait so long
SAME = 1e-5  # difference from the expected answer; a batch may sum in another order


class Tally(msgspec.Struct):
    """What became of the requests of some devices."""

    asked: int = 0
    right: int = 0
    wrong: int = 0
    failed: int = 0
    latest: float = -LONG  # seconds after its deadline at which a request ended
    latencies: list[float] = []  # seconds

    def add(self, other: Tally) -> None:
        """Add another's."""
        self.asked += other.asked
        self.right += other.right
        self.wrong += other.wrong
        self.failed += other.failed
        self.latest = max(self.latest, other.latest)
        self.latencies = self.latencies + other.latencies


class Inputs:
    """The inputs of one device, unlike those of any other, and the answer to each."""

    def __init__(self, bundle: Bundle, sides: tuple[DeviceSide, EdgeSide], number: int) -> None:
        device, edge = sides
        generator = np.random.default_rng(number)
        shape = bundle.manifest.inputs[0].shape
        self.frames = [
            # Of a mean of its own, so that the answers of all devices differ.
            (generator.standard_normal(shape) + generator.uniform(-2, 2)).astype(np.float32)
            for _ in range(INPUTS)
        ]
        self.answers: list[npt.NDArray[np.float32]] = []
        for frame in self.frames:
            tensors, payloads = device.make_request((frame,), Stopwatch())
            views = [memoryview(payload) for payload in payloads]
            self.answers.append(edge.answer(tensors, views, Stopwatch())[0])


def use(device: Device, inputs: Inputs, until: float, deadline: float = LONG) -> Tally:
    """Keep some requests of a device under way, and check every answer."""
    tally = Tally()
    under_way: list[tuple[int, float, Any]] = []
    for asked in count():
        if time.monotonic() < until:
            number = asked % INPUTS
            tally.asked += 1
            try:
                begun = time.monotonic()
                under_way.append((number, begun, device.submit(inputs.frames[number])))
            except OffloadError:
                tally.failed += 1
            if len(under_way) < IN_FLIGHT:
                continue
        if not under_way:
            return tally
        number, begun, future = under_way.pop(0)
        try:
            answer = future.result(2 * LONG)
        except OffloadError:
            tally.failed += 1
            tally.latest = max(tally.latest, time.monotonic() - begun - deadline)
            continue
        tally.latest = max(tally.latest, answer.latency - deadline)
        tally.latencies.append(answer.latency)
        if np.abs(answer.output - inputs.answers[number]).max() <= SAME:
            tally.right += 1
        else:
            tally.wrong += 1
    return tally


def main() -> None:
    """Be some of the devices."""
    path, endpoint, control, first, number, seconds = sys.argv[1:7]
    deadline = float(sys.argv[7]) if sys.argv[7:] else LONG
    edges = list(zip(endpoint.split(","), control.split(","), strict=True))
    bundle = Bundle.load(path)
    sides = (DeviceSide(bundle, 1), EdgeSide(bundle, 1))
    inputs = [Inputs(bundle, sides, each) for each in range(int(first), int(first) + int(number))]
    devices = []
    for each in range(int(first), int(first) + int(number)):
        turn = each % len(edges)
        endpoints, controls = zip(*edges[turn:], *edges[:turn], strict=True)
        name = f"device-{each}"
        device = Device(
            bundle, endpoints, control=controls, deadline=deadline, threads=1, name=name
        )
        devices.append(device)
    for device in devices:
        device.connect(LONG)
    print(flush=True)
    sys.stdin.readline()
    until = time.monotonic() + float(seconds)
    tally = Tally()
    with ThreadPoolExecutor(len(devices)) as threads:
        several = len(devices)
        for one in threads.map(use, devices, inputs, [until] * several, [deadline] * several):
            tally.add(one)
    for device in devices:
        device.close()
    assert threading.active_count() == 1
    print(msgspec.json.encode(tally).decode(), flush=True)


if __name__ == "__main__":
    main()
