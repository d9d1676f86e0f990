"""A device process with several ways to answer, which take turns.

The machine's speed drifts, by a fifth within minutes where others share it. So the ways to run a
network are not measured one after the other: one process holds them all, and is told for each
request which way is to answer which picture. Run it with ``python -m
scissionlite.demo.device_process``; :func:`.processes.device_process` does, and
:func:`serve_turns` is its loop, which benchmarks use with more kinds of ways.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from scissionlite.bundle import Bundle
from scissionlite.errors import BundleError
from scissionlite.offloader import Answer, Device

Frame = npt.NDArray[np.uint8]


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle, and the daemon that answers with it; a local bundle has none.

    ``slowdown`` is as the Device's, and ``threads`` and ``runtime`` are, too.
    """

    name: str
    bundle: str
    connect: str | None = None
    control: str | None = None
    slowdown: float = 1.0
    threads: int | None = 1
    runtime: str | None = None


class Setup(msgspec.Struct, frozen=True):
    """The start of a device process: its ways, and image files."""

    ways: tuple[Way, ...]
    images: tuple[str, ...]


class Turn(msgspec.Struct, frozen=True):
    """A way's turn: which images it answers, and how many at once."""

    way: str
    images: tuple[int, ...]
    in_flight: int = 1


class Answered(msgspec.Struct, frozen=True):
    """One answer: seconds from frame to answer and of its stages, bytes sent, and where."""

    latency: float
    timings: dict[str, float]
    sent_bytes: int
    where: str


class Turned(msgspec.Struct, frozen=True):
    """A turn's answers, and the seconds from its first request to its last answer."""

    answers: tuple[Answered, ...]
    seconds: float


class Answering(Protocol):
    """A way that answers one frame, or several at once."""

    def answer(self, images: Sequence[int], in_flight: int) -> list[Answered]:
        """Answer some of the images."""
        ...


class DeviceWay:
    """A Device and its frames."""

    def __init__(self, device: Device, frames: Sequence[Frame]) -> None:
        self._device = device
        self._frames = frames

    def answer(self, images: Sequence[int], in_flight: int) -> list[Answered]:
        """Answer some of the images, at most ``in_flight`` at the same time."""
        answers: list[Answer] = []
        under_way: deque[Future[Answer]] = deque()
        for image in images:
            if len(under_way) == in_flight:
                answers.append(under_way.popleft().result())
            under_way.append(self._device.submit(self._frames[image]))
        answers += [each.result() for each in under_way]
        return [Answered(a.latency, a.timings, a.bytes_sent, a.where) for a in answers]


def open_way(way: Way, images: Sequence[str], stack: ExitStack) -> DeviceWay:
    """Open a bundle's device; the stack closes it.

    Raises
    ------
    BundleError
        If the bundle has no preprocessing.
    """
    bundle = Bundle.load(Path(way.bundle))
    preprocessing = bundle.manifest.preprocessing
    if preprocessing is None:
        raise BundleError(f"{way.bundle} has no preprocessing, so it cannot read images")
    device = Device(
        bundle,
        way.connect,
        control=way.control,
        slowdown=way.slowdown,
        threads=way.threads,
        runtime=way.runtime,
        deadline=120.0,
    )
    stack.enter_context(device)
    if way.connect is not None:
        device.connect()
    return DeviceWay(device, [preprocessing.frame(Path(image)) for image in images])


def serve_turns(ways: Mapping[str, Answering]) -> None:
    """Take turns as the lines of the standard input say, until it ends."""
    _write({"ready": sorted(ways)})
    for line in sys.stdin.buffer:
        turn = msgspec.json.decode(line, type=Turn)
        started = time.perf_counter()
        answers = ways[turn.way].answer(turn.images, turn.in_flight)
        _write(Turned(tuple(answers), time.perf_counter() - started))


def _write(message: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    """Run the process: the first line of the standard input is its setup."""
    setup = msgspec.json.decode(sys.stdin.buffer.readline(), type=Setup)
    with ExitStack() as stack:
        serve_turns({way.name: open_way(way, setup.images, stack) for way in setup.ways})


if __name__ == "__main__":
    main()
