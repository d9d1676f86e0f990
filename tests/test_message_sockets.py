"""Whole messages of a socket by the core: what goes in comes out, and nothing is lent for ever."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from scissionlite._core import MessageSocket
from scissionlite.offloader.message_sockets import message_socket

LONG = 10.0
SIZES = [0, 1, 33, 1 << 16, (1 << 16) - 1, 3 << 20]

Pair = tuple[zmq.Socket[bytes], zmq.Socket[bytes]]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with zmq.Context() as context, context.socket(zmq.PULL) as pull:
        port = pull.bind_to_random_port("tcp://127.0.0.1")
        with context.socket(zmq.PUSH) as push:
            push.linger = 0
            push.connect(f"tcp://127.0.0.1:{port}")
            yield push, pull


@pytest.fixture
def local_pair(tmp_path: Path) -> Iterator[Pair]:
    """Connected by ``ipc://``, where the kernel drops nothing of a connection that is muted."""
    with zmq.Context() as context, context.socket(zmq.PULL) as pull:
        pull.bind(f"ipc://{tmp_path}/pull")
        with context.socket(zmq.PUSH) as push:
            push.linger = 0
            push.connect(f"ipc://{tmp_path}/pull")
            yield push, pull


def address_of(each: zmq.Socket[bytes]) -> str:
    address = each.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(address, bytes)
    return address.rstrip(b"\0").decode()


def received(messages: MessageSocket) -> tuple[list[memoryview], int, str]:
    end = time.monotonic() + LONG
    while not (found := messages.receive())[0]:
        assert time.monotonic() < end
        time.sleep(0.001)
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_what_is_sent_is_received_whole(pair: Pair) -> None:
    push, pull = map(message_socket, pair)
    frames = [bytes([i % 251]) * size for i, size in enumerate(SIZES)]
    assert push.send([frames[0], bytearray(frames[1]), *(memoryview(each) for each in frames[2:])])
    assert push.send([b"next"])
    found, _, sender = received(pull)
    assert found == frames
    assert sender == ""
    assert received(pull)[0] == [b"next"]
    assert pull.receive() == ([], -1, "")
    # The frames own their memory.
    pull.close()
    assert bytes(found[-1]) == frames[-1]


def test_the_sender_is_named(pair: Pair) -> None:
    push, pull = message_socket(pair[0]), message_socket(pair[1], 2, "Peer-Address")
    assert push.send([b"one", b"two"])
    frames, descriptor, sender = received(pull)
    assert frames == [b"one", b"two"]
    assert sender == "127.0.0.1"
    assert descriptor >= 0


def test_frames_over_the_limit_are_thrown_away(pair: Pair) -> None:
    push, pull = message_socket(pair[0]), message_socket(pair[1], 2)
    assert push.send([b"%d" % i for i in range(30_000)])
    assert push.send([b"next"])
    assert received(pull)[0] == [b"0", b"1"]
    assert pull.busy
    assert pull.receive()[0] == []
    assert pull.busy  # some thousands at a time
    assert received(pull)[0] == [b"next"]
    assert not pull.busy


def test_a_muted_connection_is_not_read_and_its_messages_are_counted(local_pair: Pair) -> None:
    push, pull = message_socket(local_pair[0]), message_socket(local_pair[1], 2)
    with zmq.Context() as context, context.socket(zmq.PUSH) as other:
        other.connect(address_of(local_pair[1]))
        assert push.send([b"first"])
        _, descriptor, _ = received(pull)
        pull.mute(descriptor)
        pull.mute(1 << 20)  # which is nobody's
        for _ in range(600):
            assert push.send([b"12", b"345"])
        assert push.send([b"%d" % i for i in range(10)])  # of which two frames are read
        other.send(b"from another")
        assert received(pull)[0] == [b"from another"]
        thrown: list[tuple[int, int, int, int]] = []

        def count() -> bool:
            assert pull.receive()[0] == []
            thrown.extend(pull.thrown())
            return sum(each[1] for each in thrown) == 601 and not pull.busy

        wait_for(count)
        assert {each[0] for each in thrown} == {descriptor}
        assert [sum(each[i] for each in thrown) for i in (2, 3)] == [1202, 600 * 5 + 2]
        pull.unmute()
        assert push.send([b"again"])
        assert received(pull)[0] == [b"again"]


def test_the_kernel_drops_what_a_muted_connection_brings_until_it_is_heard_again(
    pair: Pair,
) -> None:
    push, pull = map(message_socket, pair)
    assert push.send([b"first"])
    _, descriptor, _ = received(pull)
    pull.mute(descriptor)
    assert push.send([b"second"])
    with zmq.Context() as context, context.socket(zmq.PUSH) as other:
        other.connect(address_of(pair[1]))
        for _ in range(100):  # the others' connections are heard
            other.send(b"from another")
            assert received(pull)[0] == [b"from another"]
    assert pull.thrown() == []
    pull.unmute()
    assert received(pull)[0] == [b"second"]


def test_a_descriptor_that_is_anothers_by_now_is_not_muted(local_pair: Pair) -> None:
    push, pull = local_pair
    messages = message_socket(pull)
    address = address_of(pull)
    push.send(b"first")
    _, descriptor, _ = received(messages)
    messages.mute(descriptor)
    push.send(b"second")
    wait_for(lambda: messages.receive()[0] == [] and messages.thrown() != [])
    again, end = -1, time.monotonic() + LONG
    while again != descriptor:  # a connection's two ends take the two that its last one has left
        assert time.monotonic() < end
        push.disconnect(address)
        time.sleep(0.05)
        push.connect(address)
        push.send(b"third")
        frames, again, _ = received(messages)
        assert frames == [b"third"]
    assert messages.thrown() == []


def test_a_large_buffer_is_lent_until_it_is_sent(pair: Pair) -> None:
    push, pull = map(message_socket, pair)
    large, small = bytearray(1 << 20), bytearray(1 << 10)
    before = sys.getrefcount(large), sys.getrefcount(small)
    assert push.send([small, large])
    assert sys.getrefcount(small) == before[1]
    small.append(1)  # no view is left
    with pytest.raises(BufferError):
        large.append(1)
    assert received(pull)[0] == [bytes(1 << 10), bytes(1 << 20)]
    wait_for(lambda: pull.receive() == ([], -1, "") and sys.getrefcount(large) == before[0])
    large.append(1)


def test_what_is_no_buffer_leaves_no_half_message(pair: Pair) -> None:
    push, pull = map(message_socket, pair)
    with pytest.raises(TypeError):
        push.send([b"first", "no buffer"])  # type: ignore[list-item]
    with pytest.raises(BufferError):
        push.send([b"first", memoryview(b"not contiguous")[::2]])
    assert push.send([b"whole"])
    assert received(pull)[0] == [b"whole"]


def test_without_room_nothing_is_sent_within_the_sockets_time() -> None:
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.linger = push.sndtimeo = 0
        messages = message_socket(push)
        large = bytearray(1 << 20)
        assert not messages.send([large])
        push.sndtimeo = 50
        start = time.monotonic()
        assert not messages.send([large])
        assert time.monotonic() - start >= 0.04
        assert not messages.send([b"small"])  # frees what was given back
        large.append(1)


def test_errors_of_libzmq_are_those_of_pyzmq(pair: Pair) -> None:
    push, _ = pair
    messages = message_socket(push)
    with pytest.raises(zmq.ZMQError) as raised:
        messages.receive()
    assert raised.value.errno == zmq.ENOTSUP
    messages.close()
    for use in (messages.receive, lambda: messages.send([b""]), lambda: messages.events):
        with pytest.raises(zmq.ZMQError) as raised:
            use()
        assert raised.value.errno == zmq.ENOTSOCK
