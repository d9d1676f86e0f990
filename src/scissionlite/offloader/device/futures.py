"""Futures of a device's answers, and the one thread that runs their callbacks."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar
from weakref import WeakSet

from scissionlite.errors import OffloadError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class CallbackThread:
    """Runs the callbacks of a device's futures, one after the other, in a thread of its own.

    A callback may take as long as it likes, and may use its device: no other work of the device is
    done in this thread. It starts with the first callback.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._abandoned = False
        self._running = threading.local()
        # Under the lock:
        self._thread: threading.Thread | None = None
        self._ended = False

    @property
    def in_callback(self) -> bool:
        """Whether a callback calls this."""
        return getattr(self._running, "now", False)

    def call(self, callback: Callable[[Any], object], future: Future[Any]) -> None:
        """Have a callback called with its future; once the thread has ended, call it here."""
        if self._abandoned:
            return
        call = functools.partial(self.call_here, callback, future)
        with self._lock:
            if not self._ended:
                if self._thread is None:
                    # A daemon thread: a callback that blocks must not keep Python from exiting.
                    self._thread = threading.Thread(
                        target=self._run, name="scissionlite-callbacks", daemon=True
                    )
                    self._thread.start()
                self._calls.put(call)
                return
        call()

    def call_here(self, callback: Callable[[Any], object], future: Future[Any]) -> None:
        """Call a callback with its future, in the caller's thread."""
        self._running.now = True
        try:
            callback(future)
        finally:
            self._running.now = False

    def stop(self) -> None:
        """End the thread after the callbacks that wait; a finalizer may call it (no lock)."""
        self._calls.put(None)

    def close(self) -> None:
        """End the thread after the callbacks that wait, and wait for it, unless this is one."""
        self.stop()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def abandon(self) -> None:
        """Call no more: this process was forked, and the callbacks are called in its parent."""
        self._abandoned = True

    def _run(self) -> None:
        stopping = False
        while True:
            with self._lock:
                if stopping and self._calls.empty():
                    self._ended = True
                    return
            call = self._calls.get()
            if call is None:
                stopping = True
                continue
            try:
                call()
            except BaseException:  # SystemExit too: it must not end this thread
                logger.exception("a future's callback failed")


class AnswerFuture(Future[T]):
    """A future whose callbacks run in a device's callback thread.

    A callback that is added when the future is done is called at once, as
    :class:`concurrent.futures.Future` promises; only one that is added by a callback waits its
    turn, so that callbacks which submit and add themselves again do not nest.

    Parameters
    ----------
    callbacks
        Runs the callbacks.
    unanswered
        Holds the future until it is done.
    """

    def __init__(self, callbacks: CallbackThread, unanswered: WeakSet[AnswerFuture[T]]) -> None:
        super().__init__()
        self._callbacks = callbacks
        unanswered.add(self)
        super().add_done_callback(unanswered.discard)  # type: ignore[arg-type]  # called with self

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Have ``fn`` called with this future when it is done."""
        callbacks = self._callbacks
        at_once = self.done() and not callbacks.in_callback
        call = callbacks.call_here if at_once else callbacks.call
        super().add_done_callback(functools.partial(call, fn))

    def __await__(self) -> Generator[Any, None, T]:
        """Wait for the answer in a coroutine, as for an asyncio future."""
        import asyncio  # only who awaits needs it

        return asyncio.wrap_future(self).__await__()

    def abandon(self) -> None:
        """End the future in a forked child: its answer goes to the parent."""
        # Another thread may have held these when the process was forked, and is not here.
        self._condition = threading.Condition()
        self._waiters = []
        if not self.done():
            self.set_exception(
                OffloadError(
                    "this process was forked while the request was under way: its parent has the "
                    "answer, submit it again here"
                )
            )
