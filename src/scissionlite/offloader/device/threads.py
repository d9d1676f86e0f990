"""The threads of a Device, and how they end: closed, dropped, or left to the parent by a fork."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from scissionlite.offloader.device.futures import AnswerFuture, CallbackThread

if TYPE_CHECKING:
    from scissionlite.offloader.device.edges import Edges


class DeviceThreads:
    """A device's threads, each started when it is first needed, and what they share.

    It does not know its Device, so that one that is dropped can be freed. In a forked child, where
    none of the threads is, all of it is made anew.

    Parameters
    ----------
    connect
        Makes the connections to the edges; None for a device without an edge.

    Attributes
    ----------
    edges : Edges or None
        With an I/O thread each.
    fallback : concurrent.futures.ThreadPoolExecutor
        One thread, for local answers to what the edge did not answer.
    callbacks : CallbackThread
        Of the device's futures.
    compute : threading.Lock
        Held by the inference that computes on the device.
    unanswered : weakref.WeakSet of AnswerFuture
        Futures that are not done.
    tried : bool
        Whether a connection was waited for.
    closed : bool
        Whether the device was closed.
    """

    def __init__(self, connect: Callable[[], Edges] | None) -> None:
        self._connect = connect
        self.closed = False
        self._prepare()
        _DEVICES.add(self)

    def _prepare(self) -> None:
        self.edges = None if self._connect is None else self._connect()
        self.fallback = ThreadPoolExecutor(1, thread_name_prefix="scissionlite-fallback")
        self.callbacks = CallbackThread()
        self.compute = threading.Lock()
        self.unanswered: weakref.WeakSet[AnswerFuture[Any]] = weakref.WeakSet()
        self.tried = False

    def close(self) -> None:
        """End every future that is not done, and every thread; may be called again.

        A callback may call it. Otherwise it waits for the callbacks under way.
        """
        self.closed = True
        if self.edges is not None:
            self.edges.close()
        self.fallback.shutdown(wait=True, cancel_futures=True)
        self.callbacks.close()

    def drop(self) -> None:
        """End the threads of a device that is freed without :meth:`close`, and warn.

        The garbage collector may call it in any thread, at any place: it takes no lock and waits
        for nothing. The fallback's thread ends by itself when its executor is freed.
        """
        if self.closed:
            return
        self.callbacks.stop()
        if self.edges is not None and self.edges.started:
            self.edges.stop()
            warnings.warn(
                f"a Device for {self.edges.endpoint} was not closed: use "
                "`with sl.Device(...) as device:`, or call device.close()",
                ResourceWarning,
                stacklevel=2,
            )

    def move_to_child(self) -> None:
        """Begin anew in a forked child; the threads go on in the parent.

        What they share may be locked here for ever, so nothing of it is used again.
        """
        # Never freed: the descriptors of its sockets are the parent's, too.
        _LEFT_TO_PARENT.append(self.edges)
        self.callbacks.abandon()
        for future in list(self.unanswered):
            future.abandon()
        self._prepare()
        if self.closed:
            self.close()


_DEVICES: weakref.WeakSet[DeviceThreads] = weakref.WeakSet()
_LEFT_TO_PARENT: list[object] = []


def _after_fork() -> None:
    """Move every device to a forked child, in its only thread."""
    for each in list(_DEVICES):
        each.move_to_child()


os.register_at_fork(after_in_child=_after_fork)
