"""Answers for asyncio: the loop waits for credit and answers, and no thread waits with it.

Only the computation on the device needs a thread: the one that also makes local answers, since a
device computes one inference at a time. This module is imported with the first such call, so that
asyncio is not imported where it is not used.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from concurrent.futures import Future
from typing import Any, TypeAlias

from scissionlite.errors import DeadlineExceededError, OffloadError
from scissionlite.offloader.device.adaptation import LOCAL
from scissionlite.offloader.device.answering import Answering
from scissionlite.offloader.device.answers import Answer, Inference
from scissionlite.offloader.device.connection import EdgeConnection
from scissionlite.offloader.device.edges import Edges
from scissionlite.offloader.device.newest_frame import FrameReader, NewestFrame
from scissionlite.offloader.device.streams import Outcome, outcome_of

SubmitAsync: TypeAlias = Callable[[Any], "asyncio.Task[Answer]"]


async def answer_async(answering: Answering, work: Inference) -> Answer:
    """Answer one input; parameters and errors as :meth:`.Device.submit_async`."""
    edges = work.threads.edges
    if edges is None or work.choice == LOCAL:
        await _compute(work, answering.answer_locally, work)
    else:
        try:
            await _send(answering, work, await _reserve(edges, work))
        except OffloadError:
            if answering.is_local:
                answered = await _compute(work, answering.fall_back, work)
            else:
                answered = answering.fall_back(work)
            if not answered:
                raise
    return await asyncio.wrap_future(work.future)


async def _reserve(edges: Edges, work: Inference) -> EdgeConnection:
    """Wait for an edge and for credit there, as :meth:`.Edges.reserve`."""
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()

    def watcher() -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(changed.set)

    with edges.watch(watcher):
        try:
            while isinstance(found := edges.try_reserve(work.connect_by, work.edge_expires), float):
                with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                    await asyncio.wait_for(changed.wait(), found)
                changed.clear()
        finally:
            work.threads.tried = True
    return found


async def _send(answering: Answering, work: Inference, connection: EdgeConnection) -> None:
    def give_back(job: Future[Any]) -> None:
        if job.cancelled():  # before it began
            connection.release()

    left = max(work.edge_expires - time.monotonic(), 0.0)
    await _compute(work, answering.send, work, connection, seconds=left, when_done=give_back)


async def _compute(
    work: Inference,
    function: Callable[..., Any],
    *arguments: Any,
    seconds: float | None = None,
    when_done: Callable[[Future[Any]], None] | None = None,
) -> Any:
    """Call a function in the thread that computes, if it can begin within so many seconds."""
    try:
        job = work.threads.fallback.submit(function, *arguments)
    except RuntimeError:  # closed meanwhile
        raise OffloadError("the device was closed") from None
    if when_done is not None:
        job.add_done_callback(when_done)
    waiting = asyncio.wrap_future(job)
    try:
        await asyncio.wait({waiting}, timeout=seconds)
        if not waiting.done() and job.cancel():
            raise DeadlineExceededError("other inferences kept the device busy")
        return await waiting
    except asyncio.CancelledError:
        if job.cancelled() and work.threads.closed:
            raise OffloadError("the device was closed") from None
        job.cancel()
        raise


class AsyncFrameStream(AsyncIterator[Outcome]):
    """Iterates over the answers; made by :meth:`.Device.stream_async`.

    An asynchronous context manager: leaving it closes it. A loop that is left by ``break`` closes
    it, too, at the loop's next turn.
    """

    def __init__(
        self,
        submit: SubmitAsync,
        is_closed: Callable[[], bool],
        frames: Iterable[Any] | AsyncIterable[Any],
        in_flight: int,
    ) -> None:
        if in_flight < 1:
            raise ValueError(f"in_flight must be at least 1, got {in_flight}")
        loop, self._changed = asyncio.get_running_loop(), asyncio.Event()
        changed = self._changed

        def notify() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(changed.set)

        self._newest = NewestFrame(notify)
        self._answers = _answers(submit, is_closed, frames, in_flight, self._newest, changed)

    async def __anext__(self) -> Outcome:
        return await self._answers.__anext__()

    async def __aenter__(self) -> AsyncFrameStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def dropped(self) -> int:
        """Frames that were not submitted, because a newer one came before there was room."""
        return self._newest.dropped

    async def aclose(self) -> None:
        """Read no more frames; answers under way are dropped. May be called again."""
        await self._answers.aclose()


async def _answers(
    submit: SubmitAsync,
    is_closed: Callable[[], bool],
    frames: Iterable[Any] | AsyncIterable[Any],
    in_flight: int,
    newest: NewestFrame,
    changed: asyncio.Event,
) -> AsyncGenerator[Outcome, None]:
    under_way: deque[tuple[int, asyncio.Task[Answer]]] = deque()
    stop_reading = _start_reading(frames, newest)
    try:
        while True:
            changed.clear()
            if len(under_way) < in_flight and (taken := newest.take()) is not None:
                task = submit(taken.frame)
                task.add_done_callback(lambda _: changed.set())
                under_way.append((taken.number, task))
            elif under_way and under_way[0][1].done():
                number, task = under_way.popleft()
                yield number, outcome_of(task, is_closed)
            elif newest.ended and not under_way:
                if newest.error is not None:
                    raise newest.error
                return
            else:
                await changed.wait()
    finally:
        for _, task in under_way:
            task.cancel()
        stop_reading()


def _start_reading(
    frames: Iterable[Any] | AsyncIterable[Any], newest: NewestFrame
) -> Callable[[], object]:
    """Read a source in a thread, or an asynchronous one in a task; return what ends that."""
    if isinstance(frames, AsyncIterable):
        return asyncio.ensure_future(_read(frames, newest)).cancel
    reader = FrameReader(frames, newest)
    return functools.partial(reader.close, seconds=0.0)  # the loop does not wait for a camera


async def _read(frames: AsyncIterable[Any], newest: NewestFrame) -> None:
    error: BaseException | None = None
    try:
        async for frame in frames:
            newest.put(frame)
            await asyncio.sleep(0)  # a source that never waits leaves the loop to the others
    except Exception as raised:
        error = raised
    finally:
        newest.end(error)
