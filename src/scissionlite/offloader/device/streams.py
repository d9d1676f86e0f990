"""Answers to the frames of a source that does not wait, such as a camera: always the newest."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from scissionlite.errors import OffloadError, ScissionLiteError
from scissionlite.offloader.device.answers import Answer
from scissionlite.offloader.device.newest_frame import FrameReader, NewestFrame

if TYPE_CHECKING:
    import asyncio

Outcome: TypeAlias = "tuple[int, Answer | Exception]"
"""A frame's number in the source, from 0, and its answer or why there is none."""

Submit: TypeAlias = Callable[[Any], "Future[Answer]"]


class FrameStream(Iterator[Outcome]):
    """Iterates over the answers; made by :meth:`.Device.stream`. A context manager.

    Use it in one thread at a time. Dropping it, as ``break`` does in ``for ... in
    device.stream(...)``, closes it.
    """

    def __init__(
        self,
        submit: Submit,
        is_closed: Callable[[], bool],
        frames: Iterable[Any],
        in_flight: int,
    ) -> None:
        if in_flight < 1:
            raise ValueError(f"in_flight must be at least 1, got {in_flight}")
        changed = threading.Condition()
        self._process = os.getpid()
        self._newest = NewestFrame(lambda: _notify(changed))
        self._answers = _answers(submit, is_closed, frames, in_flight, self._newest, changed)

    def __next__(self) -> Outcome:
        if os.getpid() != self._process:
            raise OffloadError(
                "this process was forked after the stream was made: its parent reads the frames, "
                "make another stream here"
            )
        return next(self._answers)

    def __enter__(self) -> FrameStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def dropped(self) -> int:
        """Frames that were not submitted, because a newer one came before there was room."""
        return self._newest.dropped

    def close(self) -> None:
        """Read no more frames; answers under way are dropped. May be called again."""
        self._answers.close()


def outcome_of(
    future: Future[Answer] | asyncio.Task[Answer], is_closed: Callable[[], bool]
) -> Answer | Exception:
    """Return the answer of a future or task that is done, or its exception; raise "closed"."""
    error = future.exception()
    if error is None:
        return future.result()
    if is_closed() or not isinstance(error, Exception):
        raise error
    return error


def _answers(
    submit: Submit,
    is_closed: Callable[[], bool],
    frames: Iterable[Any],
    in_flight: int,
    newest: NewestFrame,
    changed: threading.Condition,
) -> Generator[Outcome, None, None]:
    # It does not know its FrameStream, so that one that is dropped is freed, and this with it.
    under_way: deque[tuple[int, Future[Answer]]] = deque()
    reader = FrameReader(frames, newest)
    try:
        while True:
            if len(under_way) < in_flight and (taken := newest.take()) is not None:
                future = _submit(submit, is_closed, taken.frame)
                future.add_done_callback(lambda _: _notify(changed))
                under_way.append((taken.number, future))
            elif under_way and under_way[0][1].done():
                number, future = under_way.popleft()
                yield number, outcome_of(future, is_closed)
            elif newest.ended and not under_way:
                if newest.error is not None:
                    raise newest.error
                return
            else:
                with changed:
                    changed.wait_for(
                        lambda: (
                            (under_way and under_way[0][1].done())
                            or (len(under_way) < in_flight and newest.waits)
                            or (newest.ended and not under_way)
                        )
                    )
    finally:
        reader.close()


def _submit(submit: Submit, is_closed: Callable[[], bool], frame: Any) -> Future[Answer]:
    """Submit a frame; an error that concerns this frame alone ends its future."""
    try:
        return submit(frame)
    except (ScissionLiteError, ValueError) as error:
        if is_closed():
            raise
        failed: Future[Answer] = Future()
        failed.set_exception(error)
        return failed


def _notify(changed: threading.Condition) -> None:
    with changed:
        changed.notify_all()
