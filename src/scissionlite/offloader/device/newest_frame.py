"""The newest frame of a source that does not wait, and the thread that reads the source."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np


class Frame(NamedTuple):
    """A frame and its number in the source, from 0."""

    number: int
    frame: Any


class NewestFrame:
    """A place for one frame: a newer one takes the place of one that nobody took.

    Parameters
    ----------
    changed
        Called after every change, in the thread that makes it.

    Attributes
    ----------
    dropped : int
        Frames that nobody took.
    error : BaseException or None
        That ended the source.
    """

    def __init__(self, changed: Callable[[], object]) -> None:
        self.dropped = 0
        self.error: BaseException | None = None
        self._changed = changed
        self._lock = threading.Lock()
        self._frame: Frame | None = None
        self._count = 0
        self._ended = False

    @property
    def waits(self) -> bool:
        """Whether there is a frame."""
        return self._frame is not None

    @property
    def ended(self) -> bool:
        """Whether the source has ended, and the last frame was taken."""
        with self._lock:
            return self._ended and self._frame is None

    def put(self, frame: Any) -> None:
        """Put the next frame here: a copy, since a source may write into the same memory again."""
        owned = _copy(frame)
        with self._lock:
            self.dropped += self._frame is not None
            self._frame = Frame(self._count, owned)
            self._count += 1
        self._changed()

    def take(self) -> Frame | None:
        """Take the frame, if there is one."""
        with self._lock:
            taken, self._frame = self._frame, None
        return taken

    def end(self, error: BaseException | None = None) -> None:
        """Say that no frame follows."""
        with self._lock:
            self._ended, self.error = True, error
        self._changed()


class FrameReader:
    """Reads a source in a thread of its own.

    It ends when the source does, or with the first frame after :meth:`close`. A source that is a
    generator is closed then, in that thread.

    Parameters
    ----------
    frames
        The source.
    newest
        Where its frames go.
    """

    def __init__(self, frames: Iterable[Any], newest: NewestFrame) -> None:
        self._closed = False
        # A daemon thread: a camera that blocks must not keep Python from exiting.
        self._thread = threading.Thread(
            target=self._read, args=(frames, newest), name="scissionlite-frames", daemon=True
        )
        self._thread.start()

    def close(self, seconds: float = 1.0) -> None:
        """Read no more; a source that blocks for longer than so many seconds is left to itself."""
        self._closed = True
        if self._thread is not threading.current_thread():
            self._thread.join(seconds)

    def _read(self, frames: Iterable[Any], newest: NewestFrame) -> None:
        error: BaseException | None = None
        source: Any = None
        try:
            source = iter(frames)
            for frame in source:
                if self._closed:
                    break
                newest.put(frame)
            if isinstance(source, Generator):
                source.close()
        except BaseException as raised:  # of the source; it surfaces where the answers are taken
            error = raised
        newest.end(error)


def _copy(frame: Any) -> Any:
    if isinstance(frame, np.ndarray):
        return frame.copy()
    if isinstance(frame, Mapping):
        return {name: _copy(value) for name, value in frame.items()}
    if isinstance(frame, (tuple, list)):
        return tuple(map(_copy, frame))
    return frame  # no input: submit says so
