"""Devices share an edge's queue: credit is a promise that fits it, and a busy edge is asked again.

Time-outs here only guard against hangs; no outcome depends on how fast the machine is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from conftest import OUTPUT
from peers import (
    LOCAL,
    LONG,
    Frames,
    HandmadeDevice,
    HandmadeEdge,
    Sockets,
    device_of,
    in_one_process,
    payload_for,
)

from scissionlite.bundle import Bundle
from scissionlite.errors import DeadlineExceededError, EdgeBusyError
from scissionlite.offloader import EdgeLimits, EdgeServer
from scissionlite.offloader.wire import control

pytestmark = pytest.mark.usefixtures("no_threads_left")


def credits_of(device: HandmadeDevice) -> list[int]:
    """The credits granted to a device until now, in order."""
    device.send_control(control.Ping(1))
    granted = []
    while not isinstance(message := device.receive()[0], control.Pong):
        assert isinstance(message, control.Welcome | control.Grant)
        granted.append(message.credit)
    return granted


@pytest.mark.parametrize(
    ("credit", "queue", "shares"),
    [(8, 16, [8, 8, 5, 4, 3, 2]), (3, 16, [3, 3, 3, 3, 3, 2]), (8, 4, [4, 2, 1, 1, 1, 1])],
)
def test_each_device_is_promised_its_share_of_the_queue(
    tiny_bundle: Bundle, sockets: Sockets, credit: int, queue: int, shares: list[int]
) -> None:
    limits = EdgeLimits(credit=credit, queue=queue, heartbeat=60)
    with EdgeServer(tiny_bundle, LOCAL, limits=limits) as edge:
        devices = []
        for share in shares:
            devices.append(
                HandmadeDevice(sockets, tiny_bundle, edge.endpoint, edge.control_endpoint)
            )
            welcome = devices[-1].hello()
            assert isinstance(welcome, control.Welcome)
            assert welcome.credit == share
        first, second, *others = devices
        assert credits_of(first) == [now for then, now in itertools.pairwise(shares) if then != now]
        for device in others:
            device.send_control(control.Goodbye())
            device.stats()
        assert [*credits_of(second)][-1] == shares[1]
        assert credits_of(first)[-1] == shares[1]
        # One that says Hello once more is told the same as the others.
        again = second.hello()
        assert isinstance(again, control.Welcome)
        assert again.credit == shares[1]


def test_devices_that_keep_to_their_credit_are_never_turned_away(
    tiny_bundle: Bundle, frames: Frames, background: Callable[..., Future[Any]]
) -> None:
    expected = [in_one_process(tiny_bundle, frame) for frame in frames]
    with EdgeServer(tiny_bundle, LOCAL) as edge, ExitStack() as opened:
        devices = [opened.enter_context(device_of(edge, tiny_bundle)) for _ in range(16)]
        for device in devices:
            device.connect()
        for device in devices:  # whatever credit was granted before an answer is known with it
            np.testing.assert_array_equal(device.infer(frames[0]), expected[0])

        def use(several: list[Any]) -> None:
            under_way = [
                (number % 12, each.submit(frames[number % 12]))
                for number in range(24)
                for each in several
            ]
            for number, future in under_way:
                np.testing.assert_array_equal(future.result(LONG).output, expected[number])

        for done in [background(use, devices[start::8]) for start in range(8)]:
            done.result(LONG)
        stats = edge.stats()
    assert (stats.busy, stats.failed, stats.served) == (0, 0, 16 * 25)


def test_a_smaller_credit_holds_from_then_on(
    tiny_bundle: Bundle, frames: Frames, sockets: Sockets, background: Callable[..., Future[Any]]
) -> None:
    edge = HandmadeEdge(sockets, tiny_bundle)
    with device_of(edge, tiny_bundle) as device:
        submitted = [background(device.submit, frame) for frame in frames[:6]]
        device_id = edge.greet(credit=2)
        requests = [edge.request(), edge.request()]
        edge.send(device_id, control.Grant(1))
        zeros = np.zeros(OUTPUT, np.float32)
        edge.answer(requests.pop(), zeros)
        edge.answer(requests.pop(), zeros)
        third = edge.request()
        assert edge.next_request(seconds=0.3) is None
        edge.send(device_id, control.Grant(5))
        for request in (third, edge.request(), edge.request(), edge.request()):
            edge.answer(request, zeros)
        for each in submitted:
            each.result(LONG).result(LONG)


def test_a_busy_edge_is_asked_again(
    tiny_bundle: Bundle, frames: Frames, sockets: Sockets, background: Callable[..., Future[Any]]
) -> None:
    edge = HandmadeEdge(sockets, tiny_bundle)
    with device_of(edge, tiny_bundle) as device:
        inferring = background(device.infer, frames[0])
        device_id = edge.greet()
        first = edge.request()
        for _ in range(3):
            edge.send(device_id, control.Failed(first.request_id, "busy", "many wait"))
            again = edge.request()
            assert again.request_id == first.request_id
            assert again.deadline_ms < first.deadline_ms
        edge.answer(again, np.zeros(OUTPUT, np.float32))
        inferring.result(LONG)


@pytest.mark.parametrize("fallback", [None, "local"])
def test_an_edge_that_is_busy_until_the_deadline_has_an_error_of_its_own(
    tiny_bundle: Bundle,
    frames: Frames,
    sockets: Sockets,
    background: Callable[..., Future[Any]],
    fallback: str | None,
) -> None:
    edge = HandmadeEdge(sockets, tiny_bundle)
    with device_of(edge, tiny_bundle, fallback=fallback) as device:
        submitting = background(device.submit, frames[0], 1.0)
        device_id = edge.greet()
        while (request := edge.next_request(seconds=1.5)) is not None:
            edge.send(device_id, control.Failed(request.request_id, "busy", "many wait"))
        future = submitting.result(LONG)
        if fallback is None:
            with pytest.raises(EdgeBusyError, match=r"turned the request away \d+ times"):
                future.result(LONG)
            assert issubclass(EdgeBusyError, DeadlineExceededError)
        else:
            assert future.result(LONG).where == "local"


def test_requests_over_a_queue_that_others_fill_are_answered_in_the_end(
    tiny_bundle: Bundle, frames: Frames, sockets: Sockets
) -> None:
    expected = in_one_process(tiny_bundle, frames[0])
    tensor, payload = payload_for(tiny_bundle, frames[0])
    with (
        EdgeServer(tiny_bundle, LOCAL, limits=EdgeLimits(queue=2)) as edge,
        device_of(edge, tiny_bundle) as device,
    ):
        greedy = HandmadeDevice(sockets, tiny_bundle, edge.endpoint, edge.control_endpoint)
        assert isinstance(greedy.hello(), control.Welcome)
        for number in range(300):  # far more than its credit
            greedy.send(*greedy.request(number, tensor, payload))
        for _ in range(5):
            np.testing.assert_array_equal(device.infer(frames[0]), expected)
        assert edge.stats().busy > 0
