"""Futures of a device's answers, and the one thread that runs their callbacks."""

from __future__ import annotations

import functools
import logging
import math
import threading
import time
from collections import deque
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
        except Exception:  # as concurrent.futures does
            logger.exception("a future's callback failed")
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


class Condition(threading.Condition):
    """A condition whose lock an exception of a signal's handler does not leave locked.

    :class:`threading.Condition` enters its lock in Python code: the exception may come when the
    lock is held and the ``with`` block has not begun. Here ``with`` enters the lock itself.
    """

    _lock: threading.RLock

    @property
    def lock(self) -> threading.RLock:
        """The lock: entered itself, it costs no call of Python's."""
        return self._lock

    @property
    def __enter__(self) -> Callable[[], bool]:
        return self._lock.__enter__

    @property
    def __exit__(self) -> Callable[..., None]:
        return self._lock.__exit__


class ResumableFuture(Future[T]):
    """A future that can be ended again after a signal's handler raised an exception amid its end.

    :class:`concurrent.futures.Future` then swallows the exception, or loses callbacks. Here the
    exception is passed on. Whoever ended the future does it again, with the same outcome.
    """

    def __init__(self) -> None:
        super().__init__()
        self._condition = Condition()
        self._calls: deque[Callable[[Future[T]], object]] = deque()

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Have ``fn`` called with this future when it is done; at once if it is done."""
        with self._condition:
            if not self.done():
                self._calls.append(fn)
                return
        self._call_at_once(fn)

    def set_result(self, result: T) -> None:
        """End the future with a result, and call the callbacks."""
        if not self.done():
            super().set_result(result)
        self._finish()

    def set_exception(self, exception: BaseException | None) -> None:
        """End the future with an exception, and call the callbacks."""
        if not self.done():
            super().set_exception(exception)
        self._finish()

    def _finish(self) -> None:
        with self._condition:
            self._condition.notify_all()  # again, if the first time was interrupted
        while self._calls:
            self._call(self._calls[0])
            self._calls.popleft()

    def _call(self, fn: Callable[[Future[T]], object]) -> None:
        fn(self)

    def _call_at_once(self, fn: Callable[[Future[T]], object]) -> None:
        self._call(fn)


class AnswerFuture(ResumableFuture[T]):
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

    Attributes
    ----------
    lead : callable, optional
        Does the I/O that brings the answer, at most until a monotonic time, in the thread that
        waits for it: the answer comes without a switch of threads.
    """

    def __init__(self, callbacks: CallbackThread, unanswered: WeakSet[AnswerFuture[T]]) -> None:
        super().__init__()
        self._callbacks = callbacks
        self._unanswered = unanswered
        self.lead: Callable[[float], None] | None = None
        unanswered.add(self)

    def result(self, timeout: float | None = None) -> T:
        """Return the answer when it is there; as :meth:`concurrent.futures.Future.result`."""
        return super().result(self._wait(timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the error, if any; as :meth:`concurrent.futures.Future.exception`."""
        return super().exception(self._wait(timeout))

    def _wait(self, timeout: float | None) -> float | None:
        """Do the I/O for the answer here, if no other thread does; return the time left."""
        until = math.inf if timeout is None else time.monotonic() + timeout
        if self.lead is not None and not self.done():
            self.lead(until)
        return None if timeout is None else max(until - time.monotonic(), 0.0)

    def _finish(self) -> None:
        self.lead = None  # it refers to the device, which can be freed now
        self._unanswered.discard(self)
        super()._finish()

    def _call(self, fn: Callable[[Future[T]], object]) -> None:
        self._callbacks.call(fn, self)

    def _call_at_once(self, fn: Callable[[Future[T]], object]) -> None:
        callbacks = self._callbacks
        call = callbacks.call if callbacks.in_callback else callbacks.call_here
        call(fn, self)

    def __await__(self) -> Generator[Any, None, T]:
        """Wait for the answer in a coroutine, as for an asyncio future."""
        import asyncio  # only who awaits needs it

        return asyncio.wrap_future(self).__await__()

    def abandon(self) -> None:
        """End the future in a forked child: its answer goes to the parent."""
        # Another thread may have held these when the process was forked, and is not here.
        self._condition = Condition()
        self._waiters = []
        if not self.done():
            self.set_exception(
                OffloadError(
                    "this process was forked while the request was under way: its parent has the "
                    "answer, submit it again here"
                )
            )
