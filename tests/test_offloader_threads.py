"""Between an I/O thread and the others: credit under its lock, and the one waker.

Time-outs here only guard against hangs; no outcome depends on how fast the machine is.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import zmq
from peers import LOCAL, LONG, Frames, device_of

from scissionlite.bundle import Bundle
from scissionlite.errors import (
    BundleMismatchError,
    DeadlineExceededError,
    EdgeUnavailableError,
    OffloadError,
)
from scissionlite.offloader import EdgeServer
from scissionlite.offloader.device.credit import Credit
from scissionlite.offloader.message_sockets import message_socket
from scissionlite.offloader.socket_inputs import SocketInputs
from scissionlite.offloader.waker import Waker
from scissionlite.offloader.wire.endpoints import Endpoints

Background = Callable[..., Future[Any]]
LONG_MS = int(1000 * LONG)
OPEN_FILES = Path("/proc/self/fd")


def new_credit() -> Credit:
    return Credit(Endpoints("tcp://edge:5555", "tcp://edge:5556"))


def in_time() -> tuple[float, float]:
    """Times to connect and to get credit by that do not come in a test."""
    return time.monotonic() + LONG, time.monotonic() + LONG


def is_waiting(future: Future[Any]) -> bool:
    time.sleep(0.02)  # one that does not wait is done by then, or the test is only weaker
    return not future.done()


def test_credit_is_granted_with_the_connection_and_comes_back(background: Background) -> None:
    credit = new_credit()
    first = background(credit.reserve, *in_time())
    assert is_waiting(first)
    credit.grant(2)
    first.result(LONG / 2)
    assert credit.connected
    credit.reserve(*in_time())
    third = background(credit.reserve, *in_time())
    assert is_waiting(third)
    credit.release()
    third.result(LONG / 2)
    fourth = background(credit.reserve, *in_time())
    assert is_waiting(fourth)
    credit.grant(3)  # a restarted edge may allow more
    fourth.result(LONG / 2)


def test_no_more_than_the_credit_are_unanswered_whatever_the_threads_do(
    background: Background,
) -> None:
    credit = new_credit()
    credit.grant(3)
    lock = threading.Lock()
    unanswered = most = 0

    def use() -> None:
        nonlocal unanswered, most
        for _ in range(50):
            credit.reserve(*in_time())
            with lock:
                unanswered += 1
                most = max(most, unanswered)
            time.sleep(0)
            with lock:
                unanswered -= 1
            credit.release()

    for done in [background(use) for _ in range(8)]:
        done.result(LONG / 2)
    assert (unanswered, most <= 3) == (0, True)


def test_without_credit_or_connection_the_error_says_which() -> None:
    credit = new_credit()
    now = time.monotonic()
    with pytest.raises(EdgeUnavailableError, match=r"edge:5555 \(control tcp://edge:5556\): no an"):
        credit.reserve(now, now + LONG)
    credit.grant(1)
    credit.reserve(now, now)  # there is credit: nothing to wait for
    with pytest.raises(DeadlineExceededError, match="all 1 requests that tcp://edge:5555 allows"):
        credit.reserve(now + LONG, now)
    credit.withdraw("the cable was pulled")
    assert not credit.connected
    assert credit.trouble == "the cable was pulled"
    with pytest.raises(EdgeUnavailableError, match="the cable was pulled"):
        credit.reserve(now, now + LONG)


def test_a_lost_connection_makes_callers_wait_for_the_next(background: Background) -> None:
    credit = new_credit()
    credit.grant(1)
    credit.withdraw("lost")
    waiting = background(credit.reserve, *in_time())
    assert is_waiting(waiting)
    credit.grant(1)
    waiting.result(LONG / 2)


def test_a_refusal_ends_every_wait_until_credit_is_granted(background: Background) -> None:
    credit = new_credit()
    waiting = background(credit.reserve, *in_time())
    assert is_waiting(waiting)
    credit.withdraw("another bundle", BundleMismatchError("refused"))
    with pytest.raises(BundleMismatchError, match="refused"):
        waiting.result(LONG / 2)
    credit.withdraw("lost")  # the connection of the refusal
    with pytest.raises(BundleMismatchError, match="refused"):
        credit.reserve(*in_time())
    credit.grant(1)
    credit.reserve(*in_time())


def test_closing_ends_every_wait_for_good(background: Background) -> None:
    credit = new_credit()
    waiting = [background(credit.reserve, *in_time()) for _ in range(3)]
    assert all(map(is_waiting, waiting))
    credit.close(OffloadError("was closed"))
    for each in waiting:
        with pytest.raises(OffloadError, match="was closed"):
            each.result(LONG / 2)
    credit.grant(1)
    with pytest.raises(OffloadError, match="was closed"):
        credit.reserve(*in_time())


@pytest.fixture
def waker() -> Any:
    made = Waker()
    yield made
    made.close()


def test_a_wake_up_ends_the_wait_under_way(waker: Waker, background: Background) -> None:
    waiting = background(waker.wait, select.poll(), LONG_MS)
    assert is_waiting(waiting)
    waker.wake()
    waiting.result(LONG / 2)


def test_a_wake_up_before_the_wait_is_not_lost_and_several_are_one(
    waker: Waker, background: Background
) -> None:
    poller = select.poll()
    for _ in range(3):
        waker.wake()
    background(waker.wait, poller, LONG_MS).result(LONG / 2)
    waiting = background(waker.wait, poller, LONG_MS)
    assert is_waiting(waiting)
    waker.wake()
    waiting.result(LONG / 2)


def test_a_message_ends_the_wait_too_and_keeps_the_wake_up(
    waker: Waker, sockets: Callable[[int], zmq.Socket[bytes]], background: Background
) -> None:
    receiver, sender = sockets(zmq.PAIR), sockets(zmq.PAIR)
    receiver.bind("inproc://waker")
    sender.connect("inproc://waker")
    inputs = SocketInputs()
    messages = message_socket(receiver)
    inputs.add(messages)
    assert inputs.receive(messages) == []
    sender.send(b"message")
    inputs.wait(waker, LONG_MS)
    assert inputs.receive(messages) == [b"message"]
    assert inputs.receive(messages) == []
    waker.wake()
    inputs.wait(waker, LONG_MS)
    start = time.monotonic()
    inputs.wait(waker, 50)  # nothing there: the wake-up was taken
    assert time.monotonic() - start >= 0.04


def test_a_message_that_a_send_took_notice_of_is_read(
    sockets: Callable[[int], zmq.Socket[bytes]],
) -> None:
    here, there = sockets(zmq.PAIR), sockets(zmq.PAIR)
    here.bind("inproc://used")
    there.connect("inproc://used")
    inputs = SocketInputs()
    messages = message_socket(here)
    inputs.add(messages)
    for number in range(50):
        assert inputs.receive(messages) == []
        there.send(b"%d" % number)
        time.sleep(0.004)  # libzmq looks for news at a send only every few milliseconds
        here.send(b"a send that takes notice")
        there.recv()
        inputs.used(messages)
        assert inputs.may_read(messages)
        assert inputs.receive(messages) == [b"%d" % number]


def test_each_loop_is_woken_for_each_thing_to_do(
    tiny_bundle: Bundle, frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = Waker.wait
    # Without their time-outs, a loop that is not woken up does nothing more.
    monkeypatch.setattr(Waker, "wait", lambda self, poller, _: wait(self, poller, LONG_MS))
    with EdgeServer(tiny_bundle, LOCAL) as edge, device_of(edge, tiny_bundle) as device:
        device.connect(LONG / 2)
        for frame in frames[:3]:
            assert device.submit(frame).result(LONG / 2).where == "edge"


def test_a_waker_frees_its_descriptor() -> None:
    before = len(list(OPEN_FILES.iterdir()))
    for _ in range(5):
        made = Waker()
        made.close()
        made.close()
    assert len(list(OPEN_FILES.iterdir())) == before
