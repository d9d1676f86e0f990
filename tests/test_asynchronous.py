"""Answers for asyncio: no thread waits with a task, and a cancelled task leaves nothing behind.

Time-outs here only guard against hangs; no outcome depends on how fast the machine is.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import numpy as np
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
from processes import Process

from scissionlite.bundle import Bundle
from scissionlite.errors import DeadlineExceededError, EdgeUnavailableError, OffloadError
from scissionlite.offloader import Answer, Device, EdgeServer
from scissionlite.offloader.device.side import LocalSide
from scissionlite.offloader.stopwatch import Stopwatch

pytestmark = pytest.mark.usefixtures("no_threads_left")

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, LONG))


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function of the other side, which blocks."""
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


def test_many_tasks_get_their_own_answers_and_no_thread_waits_with_them(
    tiny_bundle: Bundle, frames: Frames
) -> None:
    expected = [in_one_process(tiny_bundle, frame) for frame in frames]

    async def infer(device: Device) -> tuple[list[Any], int]:
        tasks = [asyncio.ensure_future(device.infer_async(frames[i % 12])) for i in range(100)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        threads = [thread for thread in threading.enumerate() if thread.name.startswith("sciss")]
        return await asyncio.gather(*tasks), len(threads)

    with EdgeServer(tiny_bundle, LOCAL) as edge:
        before = threading.active_count()
        with device_of(edge, tiny_bundle) as device:
            outputs, threads = run(infer(device))
        assert threads <= 2 + 3  # the edge's; I/O, computation and callbacks
        assert threading.active_count() <= before + 1  # asyncio's own
    for number, output in enumerate(outputs):
        np.testing.assert_array_equal(output, expected[number % 12])


def test_a_future_may_be_awaited(tiny_bundle: Bundle, frames: Frames) -> None:
    async def infer(device: Device) -> Answer:
        return await device.submit(frames[0])

    with Device(tiny_bundle, fallback="local") as device:
        np.testing.assert_array_equal(run(infer(device)).output, device.infer(frames[0]))


def test_a_cancelled_task_gives_its_credit_back(
    tiny_bundle: Bundle, frames: Frames, sockets: Sockets
) -> None:
    edge = HandmadeEdge(sockets, tiny_bundle)
    output = np.arange(5, dtype=np.float32).reshape(OUTPUT)

    async def use(device: Device) -> None:
        sent = asyncio.ensure_future(device.submit_async(frames[0]))
        await in_thread(edge.greet, 1)
        request = await in_thread(edge.request)
        waiting = [asyncio.ensure_future(device.submit_async(frame)) for frame in frames[1:4]]
        await asyncio.sleep(0.05)
        for task in (sent, *waiting[:2]):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert not waiting[2].done()
        edge.answer(request, output)  # of the task that was cancelled: its credit is free
        edge.answer(await in_thread(edge.request), output)
        np.testing.assert_array_equal((await waiting[2]).output, output)
        again = asyncio.ensure_future(device.submit_async(frames[4]))
        edge.answer(await in_thread(edge.request), output)
        assert (await again).where == "edge"

    with device_of(edge, tiny_bundle) as device:
        run(use(device))


def test_a_task_that_is_cancelled_before_its_turn_to_compute_gives_its_credit_back(
    tiny_bundle: Bundle, frames: Frames
) -> None:
    async def use(device: Device) -> None:
        await device.submit_async(frames[0])
        computing = device._threads.fallback  # kept busy, so that nothing else begins there
        held = threading.Event()
        computing.submit(held.wait, LONG)
        tasks = [asyncio.ensure_future(device.submit_async(frames[0])) for _ in range(8)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        late = asyncio.ensure_future(device.submit_async(frames[0], deadline=0.1))
        with pytest.raises(DeadlineExceededError, match="kept the device busy"):
            await late
        held.set()
        answers = await asyncio.gather(*(device.submit_async(frame) for frame in frames))
        assert len(answers) == 12

    with EdgeServer(tiny_bundle, LOCAL) as edge, device_of(edge, tiny_bundle) as device:
        run(use(device))


@pytest.mark.parametrize("fallback", ["raise", "local"])
def test_deadlines_hold_while_another_task_has_all_the_credit(
    tiny_bundle: Bundle, frames: Frames, sockets: Sockets, fallback: Any
) -> None:
    edge = HandmadeEdge(sockets, tiny_bundle)
    (local,) = LocalSide(tiny_bundle).answer((frames[1],), Stopwatch())

    async def use(device: Device) -> None:
        first = asyncio.ensure_future(device.submit_async(frames[0]))
        await in_thread(edge.greet, 1)
        request = await in_thread(edge.request)
        second = asyncio.ensure_future(device.submit_async(frames[0]))  # waits long for credit
        start = time.monotonic()
        third = device.submit_async(frames[1], deadline=0.2)
        if fallback == "raise":
            with pytest.raises(DeadlineExceededError, match="all 1 requests"):
                await third
        else:
            np.testing.assert_array_equal((await third).output, local)
        assert time.monotonic() - start < LONG / 2
        assert not second.done()
        edge.answer(request, np.zeros(OUTPUT, np.float32))
        edge.answer(await in_thread(edge.request), np.zeros(OUTPUT, np.float32))
        await asyncio.gather(first, second)

    with device_of(edge, tiny_bundle, fallback=fallback) as device:
        run(use(device))


def test_errors_and_fallbacks_are_those_of_submit(tiny_bundle: Bundle, frames: Frames) -> None:
    async def use(device: Device, x: Any) -> Answer:
        return await device.submit_async(x)

    with Device(tiny_bundle, NOWHERE, deadline=0.1) as device:
        with pytest.raises(EdgeUnavailableError, match="scissionlite serve"):
            run(use(device, frames[0]))
        with pytest.raises(ValueError, match="float32"):
            run(use(device, frames[0][:5]))
    with pytest.raises(OffloadError, match="was closed"):
        run(use(device, frames[0]))
    with Device(tiny_bundle, NOWHERE, fallback="local", deadline=0.1) as device:
        assert run(use(device, frames[0])).where == "local"
    with Device(tiny_bundle, fallback="local") as device:
        assert run(use(device, frames[0])).where == "local"


def test_closing_ends_what_is_awaited(
    tiny_bundle: Bundle, frames: Frames, sockets: Sockets
) -> None:
    edge = HandmadeEdge(sockets, tiny_bundle)

    async def use(device: Device) -> list[Any]:
        tasks = [asyncio.ensure_future(device.submit_async(frame)) for frame in frames[:4]]
        await in_thread(edge.greet, 2)
        await in_thread(edge.request)
        await in_thread(device.close)
        return await asyncio.gather(*tasks, return_exceptions=True)

    outcomes = run(use(device_of(edge, tiny_bundle)))
    assert [type(outcome) for outcome in outcomes] == [OffloadError] * 4


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_stream_answers_the_last_frame_and_counts_those_it_dropped(
    tiny_bundle: Bundle, frames: Frames, asynchronous: bool
) -> None:
    expected = [in_one_process(tiny_bundle, frame) for frame in frames]

    async def source() -> AsyncIterator[Any]:
        for i in range(100):
            yield frames[i % 12]

    async def use(device: Device) -> None:
        source_ = source() if asynchronous else [frames[i % 12] for i in range(100)]
        numbers = []
        async with device.stream_async(source_) as stream:
            async for number, answer in stream:
                assert isinstance(answer, Answer)
                np.testing.assert_array_equal(answer.output, expected[number % 12])
                numbers.append(number)
        assert numbers == sorted(set(numbers))
        assert numbers[-1] == 99
        assert len(numbers) + stream.dropped == 100

    with EdgeServer(tiny_bundle, LOCAL) as edge, device_of(edge, tiny_bundle) as device:
        run(use(device))


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_stream_that_is_left_closes_its_source(
    tiny_bundle: Bundle, frames: Frames, asynchronous: bool
) -> None:
    closed = threading.Event()

    async def endless() -> AsyncIterator[Any]:
        try:
            while True:
                yield frames[0]
                await asyncio.sleep(0.001)
        finally:
            closed.set()

    def blocking() -> Any:
        try:
            while True:
                yield frames[0]
                time.sleep(0.001)
        finally:
            closed.set()

    async def use(device: Device) -> None:
        async for _, answer in device.stream_async(endless() if asynchronous else blocking()):
            assert isinstance(answer, Answer)
            break
        await in_thread(closed.wait, LONG)
        assert closed.is_set()

    with Device(tiny_bundle, fallback="local") as device:
        run(use(device))


def test_exceptions_of_a_source_and_of_a_frame(tiny_bundle: Bundle, frames: Frames) -> None:
    async def broken() -> AsyncIterator[Any]:
        yield frames[0][:5]
        await asyncio.sleep(0.1)
        yield frames[0]
        raise OSError("the cable was pulled")

    async def use(device: Device) -> None:
        stream = device.stream_async(broken())
        number, error = await stream.__anext__()
        assert (number, type(error)) == (0, ValueError)
        assert isinstance((await stream.__anext__())[1], Answer)
        with pytest.raises(OSError, match="cable"):
            await stream.__anext__()
        with pytest.raises(ValueError, match="at least 1"):
            device.stream_async([], in_flight=0)

    with Device(tiny_bundle, fallback="local") as device:
        run(use(device))


def test_whoever_does_not_use_asyncio_does_not_import_it(
    onnx_bundle: Bundle, start_process: Callable[..., Process]
) -> None:
    with EdgeServer(onnx_bundle, LOCAL) as edge:
        process = start_process(
            "asyncio_importer", str(onnx_bundle.path), edge.endpoint, edge.control_endpoint
        )
        assert process.read_json() == {"imported": False, "answers": 2}
