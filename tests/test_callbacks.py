"""Callbacks of a device's futures: they may submit, infer, close, fail and block.

Time-outs here only guard against hangs; no outcome depends on how fast the machine is.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from conftest import OUTPUT, BundleFactory
from peers import LOCAL, LONG, NOWHERE, Frames, HandmadeEdge, Sockets, device_of, in_one_process

from scissionlite.bundle import Bundle
from scissionlite.errors import DeadlineExceededError, OffloadError
from scissionlite.offloader import Answer, Device, EdgeServer
from scissionlite.offloader.device.side import DeviceSide, LocalSide
from scissionlite.offloader.wire import control

pytestmark = pytest.mark.usefixtures("no_threads_left")

Background = Callable[..., Future[Any]]
ANSWER = np.zeros(OUTPUT, np.float32)


@pytest.fixture
def computing_threads(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the threads in which a slice of a device ran."""
    names: set[str] = set()

    def recorded(run: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            names.add(threading.current_thread().name)
            return run(*arguments)

        return call

    monkeypatch.setattr(DeviceSide, "make_request", recorded(DeviceSide.make_request))
    monkeypatch.setattr(LocalSide, "answer", recorded(LocalSide.answer))
    return names


@pytest.mark.parametrize("fallback", [None, "local"])
def test_a_callback_submits_and_infers_as_any_other_thread_does(
    tiny_bundle: Bundle, frames: Frames, fallback: str | None, computing_threads: set[str]
) -> None:
    expected = [in_one_process(tiny_bundle, frame) for frame in frames]
    computing_threads.clear()
    finished: Future[Any] = Future()
    answers: list[Answer] = []

    def go_on(done: Future[Answer]) -> None:
        try:
            answers.append(done.result())
            if len(answers) == len(frames):
                finished.set_result(device.infer(frames[0]))
            else:
                device.submit(frames[len(answers)]).add_done_callback(go_on)
        except Exception as error:
            finished.set_exception(error)

    with (
        EdgeServer(tiny_bundle, LOCAL) as edge,
        device_of(edge, tiny_bundle, fallback=fallback) as device,
    ):
        device.submit(frames[0]).add_done_callback(go_on)
        np.testing.assert_array_equal(finished.result(LONG), expected[0])
    for answer, output in zip(answers, expected, strict=True):
        assert answer.where == "edge"
        np.testing.assert_array_equal(answer.output, output)
    assert "scissionlite-device" not in computing_threads


def test_a_request_of_a_callback_is_in_flight_beside_others(
    tiny_bundle: Bundle, frames: Frames, sockets: Sockets, background: Background
) -> None:
    edge = HandmadeEdge(sockets, tiny_bundle)
    inner: Future[Future[Answer]] = Future()
    with device_of(edge, tiny_bundle) as device:
        submitting = background(device.submit, frames[0])
        edge.greet()
        first = edge.request()
        outer = submitting.result(LONG)
        other = device.submit(frames[1])
        second = edge.request()
        outer.add_done_callback(lambda _: inner.set_result(device.submit(frames[2])))
        edge.answer(first, ANSWER)
        third = edge.request()  # before the answer to the second
        edge.answer(third, ANSWER)
        assert inner.result(LONG).result(LONG).where == "edge"
        assert not other.done()
        edge.answer(second, ANSWER)
        other.result(LONG)


def test_without_the_edge_callbacks_compute_in_their_own_thread_and_do_not_nest(
    tiny_bundle: Bundle, frames: Frames, computing_threads: set[str]
) -> None:
    finished: Future[int] = Future()
    count = 0

    def again(done: Future[Answer]) -> None:
        nonlocal count
        count += 1
        if (
            done.exception() is not None or count == 300
        ):  # of several calls each, more than Python's stack has
            finished.set_result(count)
        else:
            device.submit(frames[0]).add_done_callback(again)

    with Device(tiny_bundle, NOWHERE, fallback="local", deadline=0.1) as device:
        device.submit(frames[0]).add_done_callback(again)
        assert finished.result(LONG) == 300
    assert "scissionlite-device" not in computing_threads


def test_the_fallback_of_a_lost_request_runs_in_no_io_thread(
    tiny_bundle: Bundle,
    frames: Frames,
    sockets: Sockets,
    background: Background,
    computing_threads: set[str],
) -> None:
    edge = HandmadeEdge(sockets, tiny_bundle)
    inner: Future[Answer] = Future()

    def submit_again(_: object) -> None:
        again = device.submit(frames[1])
        again.add_done_callback(lambda done: inner.set_result(done.result()))

    with device_of(edge, tiny_bundle, fallback="local") as device:
        submitting = background(device.submit, frames[0])
        device_id = edge.greet()
        edge.request()
        future = submitting.result(LONG)
        future.add_done_callback(submit_again)
        edge.send(device_id, control.Goodbye())
        assert future.result(LONG).where == "local"
        assert inner.result(LONG).where == "local"
    assert "scissionlite-fallback_0" in computing_threads
    assert "scissionlite-device" not in computing_threads


def test_a_callback_that_blocks_delays_neither_heartbeats_nor_answers_nor_deadlines(
    tiny_bundle: Bundle, frames: Frames, sockets: Sockets, background: Background
) -> None:
    edge = HandmadeEdge(sockets, tiny_bundle)
    entered, leave = threading.Event(), threading.Event()

    def block(_: object) -> None:
        entered.set()
        assert leave.wait(LONG)

    with device_of(edge, tiny_bundle) as device:
        submitting = background(device.submit, frames[0])
        edge.greet(heartbeat=1.0)
        future = submitting.result(LONG)
        future.add_done_callback(block)
        edge.answer(edge.request(), ANSWER)
        assert entered.wait(LONG)
        edge.wait_for(control.Ping)
        answered = device.submit(frames[1])
        edge.answer(edge.request(), ANSWER)
        assert answered.result(LONG).where == "edge"
        with pytest.raises(DeadlineExceededError):
            device.submit(frames[2], deadline=0.1).result(LONG)
        assert not leave.is_set()
        leave.set()


def test_a_callback_closes_the_device(
    tiny_bundle: Bundle, frames: Frames, sockets: Sockets, background: Background
) -> None:
    edge = HandmadeEdge(sockets, tiny_bundle)
    closed = threading.Event()

    def close(_: object) -> None:
        device.close()
        with pytest.raises(OffloadError, match="was closed"):
            device.submit(frames[0])
        closed.set()

    device = device_of(edge, tiny_bundle, fallback="local")
    submitting = background(device.submit, frames[0])
    device_id = edge.greet()
    first = edge.request()
    unanswered = device.submit(frames[1])
    submitting.result(LONG).add_done_callback(close)
    edge.answer(first, ANSWER)
    with pytest.raises(OffloadError, match="was closed"):
        unanswered.result(LONG)
    assert closed.wait(LONG)
    assert edge.wait_for(control.Goodbye) == device_id
    device.close()


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_callback_that_raises_is_logged_and_the_next_ones_run(
    tiny_bundle: Bundle,
    frames: Frames,
    sockets: Sockets,
    background: Background,
    caplog: pytest.LogCaptureFixture,
    kind: type[BaseException],
) -> None:
    edge = HandmadeEdge(sockets, tiny_bundle)
    called: list[str] = []

    def fail(_: object) -> None:
        raise kind("on purpose")

    with caplog.at_level(logging.ERROR), device_of(edge, tiny_bundle) as device:
        submitting = background(device.submit, frames[0])
        edge.greet()
        request = edge.request()
        future = submitting.result(LONG)
        future.add_done_callback(fail)
        future.add_done_callback(lambda _: called.append("next"))
        edge.answer(request, ANSWER)
        future.result(LONG)
        again = background(device.infer, frames[1])
        edge.answer(edge.request(), ANSWER)
        again.result(LONG)
    assert called == ["next"]  # before close() returned
    assert "callback failed" in caplog.text
    assert "on purpose" in caplog.text


def test_a_done_future_calls_back_at_once_and_after_closing_too(
    make_bundle: BundleFactory, frames: Frames
) -> None:
    called: list[str] = []
    with Device(make_bundle("local")) as device:
        future = device.submit(frames[0])
        future.add_done_callback(lambda _: called.append("open"))
        assert called == ["open"]
    future.add_done_callback(lambda _: called.append("closed"))
    assert called == ["open", "closed"]


def test_asyncio_awaits_a_future(tiny_bundle: Bundle, frames: Frames) -> None:
    async def infer(device: Device) -> list[Answer]:
        futures = [asyncio.wrap_future(device.submit(frame)) for frame in frames[:4]]
        return await asyncio.wait_for(asyncio.gather(*futures), LONG)

    with EdgeServer(tiny_bundle, LOCAL) as edge, device_of(edge, tiny_bundle) as device:
        answers = asyncio.run(infer(device))
    for answer, frame in zip(answers, frames, strict=False):
        np.testing.assert_array_equal(answer.output, in_one_process(tiny_bundle, frame))
