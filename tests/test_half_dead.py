"""A link whose control port lives while its tensor port does not pass what the device sends.

The daemon is a process of its own behind the link emulator. Deadlines are the issue's; other times
only guard against hangs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import OUTPUT, BundleFactory
from peers import LOCAL, LONG, Frames, HandmadeEdge, Sockets, device_of, in_one_process
from processes import Process

from scissionlite.bundle import Bundle
from scissionlite.demo.link_emulator import LinkEmulator
from scissionlite.offloader import Device, EdgeServer
from scissionlite.offloader.device.link_meter import LinkMeter
from scissionlite.offloader.device.tensor_path import FIRST_PROBE_ID, TensorPath
from scissionlite.offloader.edge.side import EdgeSide
from scissionlite.transfer_layer import TransferSpec

pytestmark = [pytest.mark.usefixtures("no_threads_left"), pytest.mark.long]

TENSORS, CONTROL = 0, 1
DEADLINE = 5.0
QUICK = 2.0  # seconds that a local answer of the tiny network surely takes less than


class Edge(NamedTuple):
    """A link to the daemon's process, and its bundle."""

    link: LinkEmulator
    bundle: Bundle

    def device(self, **options: Any) -> Device:
        """Make a device behind the link."""
        tensors, control = (f"tcp://127.0.0.1:{port}" for port in self.link.ports)
        return Device(self.bundle, tensors, control=control, **options)


@pytest.fixture(scope="module")
def daemon(make_bundle: BundleFactory) -> Iterator[tuple[Bundle, list[int]]]:
    """A daemon's process: its bundle, whose requests have 7200 bytes, and its ports."""
    bundle = make_bundle(transfer=TransferSpec.float32_split(), runtime="onnx")
    process = Process("scissionlite", "serve", str(bundle.path), "--bind", LOCAL, "--json")
    try:
        ready = process.read_json()
        endpoints = (ready["endpoint"], ready["control_endpoint"])
        yield bundle, [int(endpoint.rsplit(":", 1)[1]) for endpoint in endpoints]
    finally:
        process.kill()


@pytest.fixture
def edge(daemon: tuple[Bundle, list[int]]) -> Iterator[Edge]:
    """The daemon behind a fast link."""
    with emulated(daemon[1], bandwidth=1e9) as link:
        yield Edge(link, daemon[0])


def emulated(ports: Sequence[int], bandwidth: float) -> LinkEmulator:
    return LinkEmulator([(0, "127.0.0.1", port) for port in ports], 0.001, bandwidth)


def swallow(link: LinkEmulator) -> None:
    link.swallow(TENSORS)


def pass_small(link: LinkEmulator) -> None:
    link.pass_small(TENSORS, 1400)


def swallow_answers(link: LinkEmulator) -> None:
    link.swallow(CONTROL, down=True)


@pytest.mark.parametrize("fault", [swallow, pass_small, swallow_answers])
def test_one_request_takes_long_and_the_others_are_local_at_once_until_the_link_is_mended(
    edge: Edge, frames: Frames, fault: Callable[[LinkEmulator], None]
) -> None:
    with edge.device(fallback="local", deadline=DEADLINE) as device:
        assert device.submit(frames[0]).result(LONG).where == "edge"
        fault(edge.link)
        answers = [device.submit(frames[i % 12]).result(LONG) for i in range(16)]
        assert [answer.where for answer in answers] == ["local"] * 16
        latencies = sorted(answer.latency for answer in answers)
        assert latencies[-1] < DEADLINE + 0.1
        assert latencies[-2] < QUICK
        edge.link.mend()
        until = time.monotonic() + LONG
        while device.submit(frames[0]).result(LONG).where != "edge":
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.mark.parametrize("fault", [swallow, pass_small])
def test_without_a_fallback_a_request_is_sent_again_over_new_sockets(
    edge: Edge, frames: Frames, fault: Callable[[LinkEmulator], None]
) -> None:
    with edge.device(deadline=LONG) as device:
        device.connect()
        fault(edge.link)
        futures = [device.submit(frame) for frame in frames[:4]]
        time.sleep(0.3)
        edge.link.mend()  # a connection whose bytes were swallowed stays dead, new ones live
        for future, frame in zip(futures, frames, strict=False):
            expected = in_one_process(edge.bundle, frame)
            np.testing.assert_array_equal(future.result(LONG).output, expected)


@pytest.mark.parametrize("fault", [swallow, pass_small])
def test_a_path_that_is_dead_from_the_start_is_found_by_the_first_request(
    edge: Edge, frames: Frames, fault: Callable[[LinkEmulator], None]
) -> None:
    with edge.device(fallback="local", deadline=2.0) as device:
        fault(edge.link)
        answers = [device.submit(frame).result(LONG) for frame in frames[:4]]
        assert [answer.where for answer in answers] == ["local"] * 4
        edge.link.mend()
        device.connect(LONG)
        assert device.submit(frames[0], LONG).result(LONG).where == "edge"


def test_a_slow_link_that_lives_is_not_called_dead(
    daemon: tuple[Bundle, list[int]], frames: Frames, caplog: pytest.LogCaptureFixture
) -> None:
    # 7200 bytes take 0.6 s, and eight requests wait for each other: longer than any patience.
    with (
        emulated(daemon[1], bandwidth=100e3) as link,
        Edge(link, daemon[0]).device(deadline=LONG) as device,
    ):
        device.connect()
        futures = [device.submit(frame) for frame in frames[:8]]
        for future in futures:
            future.result(LONG)
    assert "connecting again" not in caplog.text


def test_a_link_that_becomes_fifty_times_slower_is_used_again_at_its_new_speed(
    daemon: tuple[Bundle, list[int]], frames: Frames
) -> None:
    with (
        emulated(daemon[1], bandwidth=1e6) as link,
        Edge(link, daemon[0]).device(fallback="local", deadline=DEADLINE) as device,
    ):
        for frame in frames[:3]:
            assert device.submit(frame).result(LONG).where == "edge"
        link.set_bandwidth(20e3)  # 7200 bytes take 2.9 s
        until = time.monotonic() + LONG
        answers = [device.submit(frames[0]).result(LONG)]
        while answers[-1].where != "edge" or len(answers) < 2:
            assert time.monotonic() < until
            time.sleep(0.05)
            answers.append(device.submit(frames[0]).result(LONG))
        assert max(answer.latency for answer in answers) < DEADLINE + 0.1
        assert sum(answer.latency > QUICK for answer in answers) <= 2  # one lost, one from the edge


def test_a_queue_at_the_edge_is_not_a_dead_path(
    tiny_bundle: Bundle, frames: Frames, sockets: Sockets, background: Callable[..., Future[Any]]
) -> None:
    edge = HandmadeEdge(sockets, tiny_bundle)
    with device_of(edge, tiny_bundle, fallback="local", deadline=1.2) as device:
        connecting = background(device.connect, LONG)
        edge.greet()
        connecting.result(LONG)
        for frame in frames[:2]:  # each waits at the edge until its deadline
            assert device.submit(frame).result(LONG).where == "local"
            edge.request()
        future = device.submit(frames[0], LONG)
        edge.answer(edge.request(), np.zeros(OUTPUT, np.float32))
        assert future.result(LONG).where == "edge"  # over the same connection: no second Hello
    assert len(edge.probes) >= 3  # of the connection, and one for each request


def test_an_edge_slice_that_takes_long_is_not_a_dead_path(
    tiny_bundle: Bundle,
    frames: Frames,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    answer = EdgeSide.answer

    def slow_answer(*arguments: Any) -> Any:
        time.sleep(1.6)  # longer than a probe has
        return answer(*arguments)

    monkeypatch.setattr(EdgeSide, "answer", slow_answer)
    with (
        EdgeServer(tiny_bundle, LOCAL) as edge,
        device_of(edge, tiny_bundle, fallback="local") as device,
    ):
        futures = [device.submit(frame) for frame in frames[:2]]
        assert {future.result(LONG).where for future in futures} == {"edge"}
    assert "connecting again" not in caplog.text


def test_idle_links_are_probed_and_a_lost_probe_opens_the_sockets_anew(
    tiny_bundle: Bundle, sockets: Sockets, background: Callable[..., Future[Any]]
) -> None:
    edge = HandmadeEdge(sockets, tiny_bundle)
    edge.answers_pings = True
    with device_of(edge, tiny_bundle) as device:
        connecting = background(device.connect, LONG)
        first = edge.greet(heartbeat=0.05)
        connecting.result(LONG)
        while len(edge.probes) < 3:
            time.sleep(0.01)
        edge.answers_probes = False
        assert edge.greet() != first


def test_what_was_lost_must_pass_before_the_path_is_good_again() -> None:
    path = TensorPath(LinkMeter(), others=True)
    path.open(0.0)
    assert prove(path, 0.0, 0.001) == [4096]
    path.request_sent(1, 200_000, 1.0, left=5.0)
    assert path.next_event == pytest.approx(1.25)
    _, nbytes = asked(path, 1.25)
    assert nbytes < 100
    assert path.lost(2.2) is None
    assert path.lost(2.3) is not None
    path.close(2.3)
    path.open(2.4)
    assert prove(path, 2.4, 0.001) == [4096, 8 * 4096, 200_000]
    path.request_sent(1, 200_000, 3.0, left=4.0)
    path.answered(1, 20, 3.1, 0.0)
    path.close(4.0)
    path.open(4.0)
    assert prove(path, 4.0, 0.001) == [4096]  # it is as good as any


def test_the_time_of_a_larger_probe_follows_from_the_one_before() -> None:
    path = TensorPath(LinkMeter(), others=True)
    path.open(0.0)
    prove(path, 0.0, 0.001)
    path.request_sent(1, 10 << 20, 1.0, left=3.0)
    path.close(3.0)
    path.open(3.0)
    sizes = prove(path, 3.0, 0.5)  # a link that became slow: 65 kbit/s
    assert sizes == [4096, 8 * 4096, 64 * 4096, 1 << 20]  # none was given up


def test_an_edge_that_sleeps_is_not_a_dead_path() -> None:
    path = TensorPath(LinkMeter(), others=False)
    path.open(0.0)
    prove(path, 0.0, 0.001)
    path.request_sent(1, 1000, 1.0, left=8.0)
    asked(path, 1.25)  # with a heartbeat
    path.edge_is_awake(0.5)  # of one that was sent before
    assert path.lost(9.0) is None
    assert path.next_event == math.inf
    path.edge_is_awake(1.25)
    assert path.lost(9.0) is not None


def test_an_answered_probe_proves_what_was_sent_before_it() -> None:
    path = TensorPath(LinkMeter(), others=True)
    path.open(0.0)
    prove(path, 0.0, 0.001)
    for request_id in range(4):
        path.request_sent(request_id, 1000, 1.0, left=8.0)
    path.answered(1, 20, 1.1, math.inf)  # the first was not answered, but has arrived
    probe_id, _ = asked(path, 1.25)
    path.request_sent(4, 1000, 1.26, left=0.1)
    path.answered(probe_id, 0, 1.3, 0.0)
    assert not path.idle  # the last one was sent after the probe
    assert path.lost(1.355) is None
    assert path.lost(1.361) is not None  # its deadline is over
    path.answered(4, 20, 1.4, 0.0)
    assert path.idle


def test_a_path_that_loses_every_request_is_tried_less_and_less_often() -> None:
    path = TensorPath(LinkMeter(), others=True)
    now, pauses = 0.0, []
    for request_id in range(7):
        path.open(now)
        pauses.append(path.next_event - now)
        now = path.next_event
        prove(path, now, 0.001)
        path.request_sent(request_id, 1000, now, left=1.0)
        now += 0.5
        assert path.lost(now) is not None
        path.close(now)
    assert pauses == pytest.approx([0, 0, 1, 2, 4, 8, 8])
    path.open(now)
    prove(path, path.next_event, 0.001)
    path.request_sent(9, 1000, now, left=1.0)
    path.answered(9, 20, now, 0.0)
    path.close(now)
    path.open(now)
    assert path.next_event == now


def asked(path: TensorPath, now: float) -> tuple[int, int]:
    probe = path.probe_due(now, heartbeat=1.0)
    assert probe is not None
    assert probe[0] >= FIRST_PROBE_ID
    assert path.probe_due(now, heartbeat=1.0) is None  # one at a time
    return probe


def prove(path: TensorPath, now: float, seconds: float) -> list[int]:
    """Answer the probes of a new connection, each 4096 bytes in so many seconds; their sizes."""
    sizes = []
    while not path.proven:
        probe_id, nbytes = asked(path, now)
        sizes.append(nbytes)
        now += seconds * nbytes / 4096
        assert path.lost(now) is None
        path.answered(probe_id, 0, now, 0.0)
    return sizes
