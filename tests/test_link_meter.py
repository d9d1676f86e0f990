"""The link that a device measures by what it sends, against emulated links.

The emulator is never faster than it says, and a busy machine only slows it down, so the best of a
few tries decides.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch
from bundles import Toy, write_bundle
from peers import LOCAL, LONG, HandmadeEdge, Sockets, device_of
from torch import nn

from scissionlite.bundle import Bundle
from scissionlite.demo.link_emulator import LinkEmulator
from scissionlite.offloader import Device, EdgeServer, LinkEstimate
from scissionlite.offloader.device.link_meter import LinkMeter
from scissionlite.offloader.device.tensor_path import TensorPath
from scissionlite.offloader.wire import control
from scissionlite.transfer_layer import TransferSpec

SHAPE = (1, 1, 160, 160)  # as float32, 102,400 bytes
TOLERANCE = 0.25


class _Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A network that computes next to nothing, and sends 102,400 bytes."""
    toy = Toy("nothing", nn.ReLU(), _Mean(), SHAPE, SHAPE, (1, 1))
    folder = tmp_path_factory.mktemp("nothing")
    spec = TransferSpec.float32_split()
    return write_bundle(toy, folder, transfer=spec, quantization=None)


def measure(
    bundle: Bundle, rtt: float, bandwidth: float, requests: int, at_once: int
) -> LinkEstimate:
    """Measure an emulated link by some requests, of which so many are under way at once."""
    x = np.zeros(SHAPE, np.float32)
    with EdgeServer(bundle, LOCAL) as edge:
        ports = [
            int(endpoint.rsplit(":", 1)[1]) for endpoint in (edge.endpoint, edge.control_endpoint)
        ]
        with LinkEmulator([(0, "127.0.0.1", port) for port in ports], rtt, bandwidth) as link:
            tensors, control_endpoint = (f"tcp://127.0.0.1:{port}" for port in link.ports)
            with Device(bundle, tensors, control=control_endpoint, deadline=LONG) as device:
                device.connect()
                time.sleep(0.8)
                for _ in range(requests // at_once):
                    futures = [device.submit(x) for _ in range(at_once)]
                    for future in futures:
                        future.result(LONG)
                estimate = device.link
                assert estimate is not None
                return estimate


@pytest.mark.long
@pytest.mark.parametrize(
    ("bandwidth", "rtt", "requests", "at_once"),
    [
        (50e6, 0.01, 24, 1),
        (50e6, 0.01, 24, 4),
        (5e6, 0.03, 6, 1),
        (5e6, 0.02, 6, 3),
        (5e5, 0.02, 2, 2),
    ],
)
def test_an_emulated_link_is_measured_within_a_quarter(
    bundle: Bundle, bandwidth: float, rtt: float, requests: int, at_once: int
) -> None:
    for _ in range(5):
        estimate = measure(bundle, rtt, bandwidth, requests, at_once)
        assert estimate.samples >= requests
        assert estimate.age < LONG
        right = (
            abs(estimate.bandwidth / bandwidth - 1) < TOLERANCE,
            abs(estimate.rtt / rtt - 1) < TOLERANCE,
        )
        if all(right):
            return
    pytest.fail(f"{estimate} of a link of {bandwidth} bit/s and {rtt} s")


class Simulated:
    """A link that queues, and an edge; the meter sees only what a device sees."""

    def __init__(self, bandwidth: float, rtt: float, seed: int) -> None:
        self.meter = LinkMeter()
        self.bandwidth, self._rtt = bandwidth, rtt
        self._random = random.Random(seed)
        self.now = self._free_at = 0.0

    def ping(self) -> None:
        """Take a round trip on the idle link."""
        self.now = max(self.now, self._free_at) + 1.0
        self.meter.round_trip(self._rtt + self._noise(), idle=True)

    def send(self, nbytes: int, at_once: int) -> None:
        """Send requests of so many bytes at the same time, and wait for their answers."""
        self.now += 0.01
        for _ in range(at_once):
            self._free_at = max(self.now, self._free_at) + 8 * nbytes / self.bandwidth
            self.meter.transfer(nbytes, self.now, self._free_at + self._rtt + self._noise())
        self.now = self._free_at + self._rtt

    def error(self) -> float:
        """The factor by which the rate is wrong, at least 1."""
        estimate = self.meter.estimate()
        assert estimate is not None
        return math.exp(abs(math.log(estimate.bandwidth / self.bandwidth)))

    def _noise(self) -> float:
        return self._random.expovariate(1 / 0.0003)


@pytest.mark.parametrize("bandwidth", [50e6, 5e6, 5e5])
@pytest.mark.parametrize("rtt", [0.005, 0.03])
@pytest.mark.parametrize("at_once", [1, 8])
def test_requests_that_wait_for_each_other_do_not_disturb(
    bandwidth: float, rtt: float, at_once: int
) -> None:
    for seed in range(20):
        link = Simulated(bandwidth, rtt, seed)
        link.ping()
        for _ in range(4):
            link.send(50_000, at_once)
            link.ping()
        estimate = link.meter.estimate()
        assert estimate is not None
        assert link.error() < 1 + TOLERANCE
        assert estimate.rtt == pytest.approx(rtt, rel=TOLERANCE)


def test_a_link_that_changes_is_followed_as_quickly_up_as_down() -> None:
    link = Simulated(50e6, 0.01, 1)
    link.ping()
    for bandwidth in (50e6, 5e6, 0.5e6, 50e6):
        link.bandwidth = bandwidth
        for _ in range(12):
            link.send(50_000, 1)
        assert link.error() < 1 + TOLERANCE


def test_one_stall_does_not_change_the_rate_much() -> None:
    link = Simulated(50e6, 0.01, 1)
    link.ping()
    for _ in range(10):
        link.send(50_000, 1)
    link.meter.transfer(50_000, link.now, link.now + 1.0)  # 100 times as long
    link.now += 2.0
    assert link.error() < 2
    link.send(50_000, 1)
    link.send(50_000, 1)
    assert link.error() < 1.5


def test_nothing_is_known_before_it_is_measured_and_small_messages_say_no_rate() -> None:
    meter = LinkMeter()
    assert (meter.estimate(), meter.expected(1000)) == (None, None)
    meter.round_trip(0.01, idle=True)
    meter.transfer(100, 1.0, 1.02)
    assert meter.estimate() is None
    meter.transfer(10_000, 2.0, 2.11)
    estimate = meter.estimate()
    assert estimate is not None
    assert estimate.samples == 1
    assert estimate.bandwidth == pytest.approx(800e3)
    assert estimate.rtt == pytest.approx(0.01, rel=0.05)  # without the heartbeat's bytes
    assert meter.expected(10_000) == pytest.approx(0.11)
    meter.round_trip(0.5, idle=False)  # behind requests: says nothing
    assert meter.expected(10_000) == pytest.approx(0.11)
    meter.round_trip(0.008, idle=False)
    assert meter.expected(10_000) == pytest.approx(0.108)


def test_a_request_that_a_probe_follows_is_measured() -> None:
    """The probe's answer proves that the request has crossed: else the rate would stay for ever."""
    meter = LinkMeter()
    meter.round_trip(0.01, idle=True)
    path = TensorPath(meter, others=False)
    path.open(0.0)
    while (probe := path.probe_due(0.0, 1.0)) is not None:
        path.answered(probe[0], 0, 0.02, 0.0)
    first = meter.rate
    for number in range(8):
        now = 10.0 * number + 1
        path.request_sent(number, 65_536, now, 30.0)
        now = path.next_event
        probe = path.probe_due(now, 1.0)
        assert probe is not None
        back = 10.0 * number + 1 + 0.01 + 8 * (65_536 + probe[1]) / 0.5e6
        path.answered(probe[0], 0, back, 0.0)
        path.answered(number, 40, back + 0.01, 0.005)
    assert first > 1e6
    assert meter.rate == pytest.approx(0.5e6, rel=0.2)


def test_the_edge_is_told_once_of_a_rate_measured_before_the_round_trip_was(
    bundle: Bundle, sockets: Sockets, background: Callable[..., Future[Any]]
) -> None:
    """On a busy machine the first Pongs come late, after the Ping that would have told it."""
    edge, x = HandmadeEdge(sockets, bundle), np.zeros(SHAPE, np.float32)
    with device_of(edge, bundle) as device:
        answering = background(device.infer, x)
        edge.greet()
        edge.answer(edge.request(), np.zeros((1, 1), np.float32))
        answering.result(LONG)
        for _ in range(3):  # the last of them surely after the answer
            edge.wait_for(control.Ping)
        edge.answers_pings = True
        edge.wait_for(control.LinkReport)
        assert device.link is not None
        following = [edge.message() for _ in range(2)]
        assert all(isinstance(each, control.Ping) for each in following)
