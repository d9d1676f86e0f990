"""Faults of an edge, and of the way to it, amid traffic: a real daemon behind an emulated link.

``python -m faults BUNDLE ENDPOINT CONTROL`` is a device that keeps requests under way until it is
killed; it writes a line once the first is answered.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
from peers import LOCAL, LONG, Frames, in_one_process
from processes import Process

from scissionlite.bundle import Bundle
from scissionlite.demo.link_emulator import LinkEmulator
from scissionlite.errors import OffloadError
from scissionlite.offloader import Device
from scissionlite.offloader.device.side import LocalSide
from scissionlite.offloader.stopwatch import Stopwatch

BANDWIDTH = 10e6  # bit/s of the link; 7200 bytes take 6 ms
TENSORS = 0  # index of the tensor port's forward
CALLERS = 4  # threads that use one device


class Site:
    """A daemon's process and the link to it."""

    edge: Process
    link: LinkEmulator

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._endpoints = [LOCAL, LOCAL]
        self.start_edge()

    def _new_link(self) -> LinkEmulator:
        ports = [int(endpoint.rpartition(":")[2]) for endpoint in self._endpoints]
        forwards = [(0, "127.0.0.1", port) for port in ports]
        return LinkEmulator(forwards, rtt=0.001, bandwidth=BANDWIDTH)

    def start_edge(self) -> None:
        """Start the daemon; once more on the same ports."""
        tensors, control = self._endpoints
        bound = ["--bind", tensors, "--control", control]
        self.edge = Process("scissionlite", "serve", str(self.bundle.path), *bound, "--json")
        ready = self.edge.read_json()
        self._endpoints = [ready["endpoint"], ready["control_endpoint"]]

    @contextlib.contextmanager
    def device(self, **options: Any) -> Iterator[Device]:
        """Make a device at the other end of a new link."""
        with self._new_link() as self.link:
            tensors, control = (f"tcp://127.0.0.1:{port}" for port in self.link.ports)
            with Device(self.bundle, tensors, control=control, threads=1, **options) as device:
                yield device

    def close(self) -> None:
        """End the daemon."""
        self.edge.kill()


@contextlib.contextmanager
def edge_killed(site: Site) -> Iterator[None]:
    """Kill the daemon, and start it again."""
    site.edge.kill()
    yield
    site.start_edge()


@contextlib.contextmanager
def edge_stopped(site: Site) -> Iterator[None]:
    """Stop the daemon's process, and let it go on."""
    site.edge.send_signal(signal.SIGSTOP)
    yield
    site.edge.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def link_cut(site: Site) -> Iterator[None]:
    """Cut the link, and restore it."""
    site.link.cut()
    yield
    site.link.restore()


@contextlib.contextmanager
def link_slowed(site: Site) -> Iterator[None]:
    """Slow the link 50 times."""
    site.link.set_bandwidth(BANDWIDTH / 50)
    yield
    site.link.set_bandwidth(BANDWIDTH)


@contextlib.contextmanager
def tensors_swallowed(site: Site) -> Iterator[None]:
    """Swallow what is sent to the tensor port, while the control port lives."""
    site.link.swallow(TENSORS)
    yield
    site.link.mend()


@contextlib.contextmanager
def only_small_passes(site: Site) -> Iterator[None]:
    """Pass small segments to the tensor port only: a path-MTU hole."""
    site.link.pass_small(TENSORS, 1400)
    yield
    site.link.mend()


Fault = Callable[[Site], AbstractContextManager[None]]
FAULTS: tuple[Fault, ...] = (
    *(edge_killed, edge_stopped, link_cut, link_slowed),
    *(tensors_swallowed, only_small_passes),
)


class Outcome(NamedTuple):
    """How a request ended: when it began, who answered or which error it was, and its seconds."""

    began: float
    end: str
    seconds: float


class Traffic:
    """Threads that ask one device again and again, and check every answer."""

    def __init__(self, device: Device, frames: Frames, deadline: float) -> None:
        self._device, self._frames, self._deadline = device, frames, deadline
        local = LocalSide(device.bundle)
        self._expected = {
            "edge": [in_one_process(device.bundle, frame) for frame in frames],
            "local": [local.answer((frame,), Stopwatch())[0] for frame in frames],
        }
        self.outcomes: list[Outcome] = []
        self._ended = threading.Event()
        self._threads = ThreadPoolExecutor(CALLERS)
        self._callers = [self._threads.submit(self._ask, number) for number in range(CALLERS)]

    def wait_for(self, end: str, count: int = 1) -> None:
        """Wait for so many requests that begin now or later and end so."""
        now, until = time.monotonic(), time.monotonic() + LONG
        while sum(each.began >= now and each.end == end for each in self.outcomes) < count:
            assert time.monotonic() < until, f"no request ended as {end!r} for {LONG:g} s"
            assert not any(caller.done() for caller in self._callers), "an answer was wrong"
            time.sleep(0.02)

    def end(self) -> list[Outcome]:
        """End it; the outcomes of all requests."""
        self._ended.set()
        self._threads.shutdown()
        asked = sum(caller.result(LONG) for caller in self._callers)
        assert asked == len(self.outcomes)
        return self.outcomes

    def _ask(self, caller: int) -> int:
        """Ask until the end; how many requests there were."""
        asked = 0
        while not self._ended.is_set():
            number = (asked * CALLERS + caller) % len(self._frames)
            asked += 1
            began = time.monotonic()
            try:
                answer = self._device.submit(self._frames[number], self._deadline).result(LONG)
                end: str = answer.where
                np.testing.assert_array_equal(answer.output, self._expected[end][number])
            except OffloadError as error:
                end = type(error).__name__
            self.outcomes.append(Outcome(began, end, time.monotonic() - began))
            time.sleep(0.02)
        return asked


def requests_amid(
    site: Site, fault: Fault, frames: Frames, *, seconds: float, deadline: float, fallback: str
) -> list[Outcome]:
    """Ask before, during and after a fault, until the edge answers again; all outcomes."""
    with site.device(fallback=fallback, deadline=deadline) as device:
        device.connect(LONG)
        traffic = Traffic(device, frames, deadline)
        try:
            traffic.wait_for("edge", 2 * CALLERS)
            with fault(site):
                time.sleep(seconds)
            traffic.wait_for("edge", 2 * CALLERS)
        finally:
            outcomes = traffic.end()
    return outcomes


def main() -> None:
    """Be a device that keeps as many requests under way as it may."""
    bundle, endpoint, control = sys.argv[1:]
    x = np.zeros((32, 32, 3), np.uint8)
    with Device(bundle, endpoint, control=control, deadline=LONG) as device:
        device.infer(x)
        print(flush=True)
        while True:
            device.submit(x)


if __name__ == "__main__":
    main()
