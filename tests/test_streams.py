"""Streams: always the newest frame, in order, and everything ends.

Time-outs here only guard against hangs; no outcome depends on how fast the machine is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import OUTPUT
from peers import (
    LOCAL,
    LONG,
    NOWHERE,
    Frames,
    HandmadeEdge,
    Sockets,
    device_of,
    in_one_process,
)

from scissionlite.bundle import Bundle
from scissionlite.errors import EdgeUnavailableError, OffloadError
from scissionlite.offloader import Answer, Device, EdgeServer

pytestmark = pytest.mark.usefixtures("no_threads_left")

Background = Callable[..., Future[Any]]


class Camera:
    """A source whose frames come when the test says so."""

    def __init__(self) -> None:
        self._frames: SimpleQueue[Any] = SimpleQueue()
        self._read: SimpleQueue[None] = SimpleQueue()
        self.closed = threading.Event()

    def show(self, *frames: Any) -> None:
        """Show frames, and wait until they were read."""
        for frame in frames:
            self._frames.put(frame)
        for _ in frames:
            self._read.get(timeout=LONG)

    def end(self, error: Exception | None = None) -> None:
        """End, perhaps with an error."""
        self._frames.put(error)

    def frames(self) -> Iterator[Any]:
        try:
            while (frame := self._frames.get(timeout=LONG)) is not None:
                if isinstance(frame, Exception):
                    raise frame
                yield frame
                self._read.put(None)  # it is asked for the next one: this one is in its place
        finally:
            self.closed.set()


def answer_of(outcome: tuple[int, Answer | Exception]) -> tuple[int, npt.NDArray[np.float32]]:
    number, answer = outcome
    assert isinstance(answer, Answer)
    return number, answer.output


def test_every_answer_is_to_its_frame_and_the_last_frame_is_answered(
    tiny_bundle: Bundle, frames: Frames
) -> None:
    expected = [in_one_process(tiny_bundle, frame) for frame in frames]
    with EdgeServer(tiny_bundle, LOCAL) as edge, device_of(edge, tiny_bundle) as device:
        stream = device.stream(frames[i % 12] for i in range(200))
        numbers = []
        for outcome in stream:
            number, output = answer_of(outcome)
            np.testing.assert_array_equal(output, expected[number % 12])
            numbers.append(number)
        assert numbers == sorted(set(numbers))
        assert numbers[-1] == 199
        assert len(numbers) + stream.dropped == 200
        assert list(stream) == []  # it stays at its end


def test_only_the_newest_frame_waits_while_others_are_under_way(
    tiny_bundle: Bundle, frames: Frames, sockets: Sockets, background: Background
) -> None:
    edge, camera = HandmadeEdge(sockets, tiny_bundle), Camera()
    with device_of(edge, tiny_bundle) as device:
        with device.stream(camera.frames(), in_flight=2) as stream:
            first = background(next, stream)
            camera.show(frames[0])
            edge.greet()
            requests = [edge.request()]
            camera.show(frames[1])
            requests.append(edge.request())
            camera.show(*frames[2:6])
            assert stream.dropped == 3
            edge.answer(requests[1], np.full(OUTPUT, 1, np.float32))  # not its turn
            edge.answer(requests[0], np.full(OUTPUT, 0, np.float32))
            assert answer_of(first.result(LONG))[0] == 0
            number, output = answer_of(next(stream))
            assert (number, output[0, 0]) == (1, 1.0)
            third = background(next, stream)
            edge.answer(edge.request(), np.full(OUTPUT, 5, np.float32))
            assert answer_of(third.result(LONG))[0] == 5
            assert stream.dropped == 3
        camera.end()
        assert camera.closed.wait(LONG)


def test_a_source_that_writes_into_the_same_memory_gets_its_own_answers(
    tiny_bundle: Bundle, frames: Frames, sockets: Sockets, background: Background
) -> None:
    camera, memory = Camera(), frames[0].copy()
    with (
        Device(tiny_bundle, fallback="local") as device,
        device.stream(camera.frames()) as stream,
    ):
        camera_started = background(next, stream)
        camera.show(memory)
        np.testing.assert_array_equal(
            answer_of(camera_started.result(LONG))[1], device.infer(frames[0])
        )
        memory[:] = frames[1]
        camera.show(memory)
        memory[:] = 0
        camera.end()
        np.testing.assert_array_equal(answer_of(next(stream))[1], device.infer(frames[1]))


@pytest.mark.parametrize("how", ["break", "close", "with", "drop"])
def test_a_stream_that_is_left_closes_its_source_and_thread(
    tiny_bundle: Bundle, frames: Frames, how: str
) -> None:
    closed = threading.Event()

    def endless() -> Iterator[Any]:
        try:
            while True:
                yield frames[0]
                time.sleep(0.001)
        finally:
            closed.set()

    with Device(tiny_bundle, fallback="local") as device:
        if how == "break":
            for _, answer in device.stream(endless()):
                assert isinstance(answer, Answer)
                break
        elif how == "with":
            with device.stream(endless()) as stream:
                next(stream)
        else:
            stream = device.stream(endless())
            next(stream)
            if how == "close":
                stream.close()
                stream.close()
                with pytest.raises(StopIteration):
                    next(stream)
            del stream
        assert closed.wait(LONG)


def test_an_exception_of_the_source_surfaces_after_the_answers_before_it(
    tiny_bundle: Bundle, frames: Frames
) -> None:
    def broken() -> Iterator[Any]:
        yield frames[0]
        raise OSError("the cable was pulled")

    with Device(tiny_bundle, fallback="local") as device:
        stream = device.stream(broken())
        assert answer_of(next(stream))[0] == 0
        with pytest.raises(OSError, match="cable"):
            next(stream)
        with pytest.raises(TypeError, match="not iterable"):
            next(device.stream(5))  # type: ignore[arg-type]


def test_a_frame_without_an_answer_is_an_exception_and_the_next_one_goes_on(
    tiny_bundle: Bundle, frames: Frames, background: Background
) -> None:
    camera = Camera()
    with (
        Device(tiny_bundle, fallback="local") as device,
        device.stream(camera.frames()) as stream,
    ):
        for number, frame in enumerate([frames[0], frames[0][:5], "no frame", frames[1]]):
            outcome = background(next, stream)
            camera.show(frame)
            assert outcome.result(LONG)[0] == number
            assert isinstance(outcome.result()[1], Answer if number in (0, 3) else ValueError)
        camera.end()
    with Device(tiny_bundle, NOWHERE, deadline=0.1) as device:
        ((number, error),) = device.stream([frames[0]])
        assert number == 0
        assert isinstance(error, EdgeUnavailableError)


def test_a_closed_device_ends_its_streams(
    tiny_bundle: Bundle, frames: Frames, sockets: Sockets, background: Background
) -> None:
    edge, camera = HandmadeEdge(sockets, tiny_bundle), Camera()
    device = device_of(edge, tiny_bundle)
    stream = device.stream(camera.frames())
    waiting = background(next, stream)
    camera.show(frames[0])
    edge.greet()
    edge.request()
    device.close()
    camera.end()
    with pytest.raises(OffloadError, match="was closed"):
        waiting.result(LONG)
    with pytest.raises(OffloadError, match="was closed"):
        next(device.stream([frames[0]]))


def test_several_threads_stream_through_one_device(
    tiny_bundle: Bundle, frames: Frames, background: Background
) -> None:
    expected = [in_one_process(tiny_bundle, frame) for frame in frames]

    def use(device: Device, offset: int) -> int:
        count = 0
        for outcome in device.stream(frames[(i + offset) % 12] for i in range(50)):
            number, output = answer_of(outcome)
            np.testing.assert_array_equal(output, expected[(number + offset) % 12])
            count += 1
        return count

    with EdgeServer(tiny_bundle, LOCAL) as edge, device_of(edge, tiny_bundle) as device:
        counts = [background(use, device, offset) for offset in range(4)]
        assert min(count.result(LONG) for count in counts) >= 1


@pytest.mark.parametrize(
    ("options", "match"), [({"in_flight": 0}, "at least 1"), ({"deadline": 0}, "above 0")]
)
def test_a_stream_out_of_range_is_a_value_error(
    tiny_bundle: Bundle, options: dict[str, Any], match: str
) -> None:
    with (
        Device(tiny_bundle, fallback="local") as device,
        pytest.raises(ValueError, match=match),
    ):
        device.stream([], **options)
