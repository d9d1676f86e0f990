"""Leader and followers: which thread does the I/O, on the device and at the edge.

Time-outs here only guard against hangs; no outcome depends on how fast the machine is.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from peers import LOCAL, LONG, Frames, device_of, in_one_process

from scissionlite.bundle import Bundle
from scissionlite.offloader import Answer, EdgeServer
from scissionlite.offloader.device.loop import DeviceLoop
from scissionlite.offloader.device.messages import DeviceMessages
from scissionlite.offloader.edge.side import EdgeSide

pytestmark = pytest.mark.usefixtures("no_threads_left")

Background = Callable[..., Future[Any]]


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Lets the edge answer one request for each release."""
    semaphore = threading.Semaphore(0)
    finish = EdgeSide.finish

    def wait(*arguments: Any) -> Any:
        assert semaphore.acquire(timeout=LONG)
        return finish(*arguments)

    monkeypatch.setattr(EdgeSide, "finish", wait)
    return semaphore


def test_a_caller_that_waits_reads_its_answer_itself(
    tiny_bundle: Bundle,
    frames: Frames,
    gate: threading.Semaphore,
    background: Background,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caller = threading.current_thread()
    leads = threading.Event()
    read_by: list[threading.Thread] = []
    serve, read_reply = DeviceLoop.serve, DeviceMessages.read_reply

    def note_leader(*arguments: Any) -> None:
        if threading.current_thread() is caller:
            leads.set()
        serve(*arguments)

    def note_reader(*arguments: Any) -> Any:
        read_by.append(threading.current_thread())
        return read_reply(*arguments)

    def let_the_edge_answer() -> None:
        assert leads.wait(LONG)
        gate.release()

    monkeypatch.setattr(DeviceLoop, "serve", note_leader)
    monkeypatch.setattr(DeviceMessages, "read_reply", note_reader)
    with EdgeServer(tiny_bundle, LOCAL) as edge, device_of(edge, tiny_bundle) as device:
        for _ in range(3):
            leads.clear()
            released = background(let_the_edge_answer)
            device.infer(frames[0])
            released.result(LONG)
    assert read_by == [caller] * 3


def test_requests_are_answered_after_the_caller_that_led_has_gone(
    tiny_bundle: Bundle, frames: Frames, gate: threading.Semaphore
) -> None:
    answered: Future[Answer] = Future()
    with EdgeServer(tiny_bundle, LOCAL) as edge, device_of(edge, tiny_bundle) as device:
        first, second = device.submit(frames[0]), device.submit(frames[1])
        gate.release()
        first.result(LONG)  # leads
        second.add_done_callback(lambda done: answered.set_result(done.result()))
        gate.release()
        answer = answered.result(LONG)  # no caller waits for the future itself
        np.testing.assert_array_equal(answer.output, in_one_process(tiny_bundle, frames[1]))


def test_a_caller_leaves_at_its_own_time_out_and_another_takes_over(
    tiny_bundle: Bundle, frames: Frames, gate: threading.Semaphore, background: Background
) -> None:
    with EdgeServer(tiny_bundle, LOCAL) as edge, device_of(edge, tiny_bundle) as device:
        future = device.submit(frames[0])
        others = [background(future.result, LONG) for _ in range(3)]
        with pytest.raises(TimeoutError):
            future.result(0.05)
        assert not future.done()
        gate.release()
        for each in others:
            assert each.result(LONG).where == "edge"


class AlarmError(Exception):
    """What the tests' signal handler raises."""


# pyzmq swallows an exception that comes while a message is freed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_exceptions_of_signal_handlers_reach_the_caller_and_do_no_harm(
    tiny_bundle: Bundle, frames: Frames
) -> None:
    """An alarm at any place of the I/O that the main thread does for its own answer."""

    def raise_alarm(*_: object) -> None:
        raise AlarmError

    expected = in_one_process(tiny_bundle, frames[0])
    seen = 0
    before = signal.signal(signal.SIGALRM, raise_alarm)
    try:
        with EdgeServer(tiny_bundle, LOCAL) as edge, device_of(edge, tiny_bundle) as device:
            device.infer(frames[0])
            for i in range(200):
                future = device.submit(frames[0])
                with contextlib.suppress(AlarmError):  # it may come after the result, too
                    try:
                        signal.setitimer(signal.ITIMER_REAL, 0.00001 + 0.00001 * i)
                        future.result(LONG)
                    except AlarmError:
                        seen += 1
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                np.testing.assert_array_equal(future.result(LONG).output, expected)
            many = [device.submit(frames[0]) for _ in range(20)]  # more than the credit
            for each in many:
                np.testing.assert_array_equal(each.result(LONG).output, expected)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert seen > 0


def test_several_workers_work_at_once(
    tiny_bundle: Bundle, frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(3)
    finish = EdgeSide.finish

    def meet(*arguments: Any) -> Any:
        together.wait(LONG)
        return finish(*arguments)

    monkeypatch.setattr(EdgeSide, "finish", meet)
    with (
        EdgeServer(tiny_bundle, LOCAL, workers=3) as edge,
        device_of(edge, tiny_bundle) as device,
    ):
        futures = [device.submit(frame) for frame in frames[:3]]
        for frame, future in zip(frames, futures, strict=False):
            expected = in_one_process(tiny_bundle, frame)
            np.testing.assert_array_equal(future.result(LONG).output, expected)


def test_the_daemon_hears_its_devices_while_all_its_workers_work(
    tiny_bundle: Bundle, frames: Frames, gate: threading.Semaphore
) -> None:
    with (
        EdgeServer(tiny_bundle, LOCAL, workers=2) as edge,
        device_of(edge, tiny_bundle) as device,
        device_of(edge, tiny_bundle) as other,
    ):
        futures = [device.submit(frames[0]) for _ in range(2)]
        other.connect(LONG)
        assert edge.stats().devices == 2
        for _ in futures:
            gate.release()
        for each in futures:
            assert each.result(LONG).where == "edge"
