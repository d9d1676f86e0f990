"""Frames of ZeroMQ messages: read up to a number, and thrown away from there on.

libzmq delivers a message of several frames only whole, and has no limit on their number. Reading
a frame costs Python a microsecond or more, so what is over the limit is thrown away by the core.
"""

from __future__ import annotations

import ctypes
import functools

import zmq
from zmq.backend.cython import _zmq  # its file has, or has loaded, libzmq

from scissionlite._core import discard_frames

_SLICE = 20_000  # frames thrown away at a time, a few milliseconds
_NAMES = ("zmq_msg_init", "zmq_msg_recv", "zmq_msg_more", "zmq_msg_close")


class FrameReader:
    """Reads messages of a socket, at most so many frames of each. Of the socket's thread.

    Parameters
    ----------
    socket
        The socket.
    most
        Frames of a message that are returned; the others are thrown away.
    """

    def __init__(self, socket: zmq.Socket[bytes], most: int) -> None:
        self._socket = socket
        self._most = most
        self._unfinished = False
        library = ctypes.CDLL(_zmq.__file__)
        init, receive, more, close = (_address(library, name) for name in _NAMES)
        self._discard_frames = functools.partial(
            discard_frames, init, receive, more, close, socket.underlying
        )

    def is_busy(self) -> bool:
        """Tell whether frames of the last message are still to be thrown away."""
        return self._unfinished

    def discard(self) -> None:
        """Throw away frames of the last message, for a few milliseconds at most."""
        self._unfinished = not self._discard_frames(_SLICE)

    def read(self) -> list[zmq.Frame]:
        """Read a message, without copying or waiting; empty if there is none yet.

        A message that has too many frames keeps the socket busy: :meth:`discard` the rest of it
        before the next one is read.
        """
        frames: list[zmq.Frame] = []
        try:
            while len(frames) < self._most:
                frames.append(self._socket.recv(zmq.NOBLOCK, copy=False))
                if not frames[-1].more:
                    return frames
        except zmq.Again:
            return []
        self._unfinished = True
        return frames


def _address(library: ctypes.CDLL, name: str) -> int:
    address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    assert address is not None
    return address
