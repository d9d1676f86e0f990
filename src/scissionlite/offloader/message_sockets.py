"""Whole messages of ZeroMQ sockets: read and sent by the C++ core in one call each.

libzmq delivers a message of several frames only whole, and has no limit on their number. To Python
each frame, and each question to libzmq, costs microseconds. So the core reads a message at once,
and throws away what is over the frames that a valid one may have.
"""

from __future__ import annotations

import ctypes
from functools import cache

import zmq
from zmq.backend.cython import _zmq  # its file has, or has loaded, libzmq

from scissionlite._core import Frame, MessageSocket

_MOST_FRAMES = 32  # more than any valid message has


def message_socket(
    each: zmq.Socket[bytes], most: int = _MOST_FRAMES, sender: str = ""
) -> MessageSocket:
    """Read and send the messages of a socket; what this returns is to be closed before the socket.

    Parameters
    ----------
    each
        The socket.
    most
        Frames of a message that are returned.
    sender
        The property of a connection that names who sent a message.
    """
    return MessageSocket(_address, each.underlying, most, sender)


def property_of(frame: memoryview, name: str) -> str:
    """Return what libzmq knows of the connection that brought a frame; empty if it does not."""
    assert isinstance(frame.obj, Frame)
    return frame.obj.property(name)


@cache
def _address(name: str) -> int:
    address = ctypes.cast(getattr(ctypes.CDLL(_zmq.__file__), name), ctypes.c_void_p).value
    assert address is not None
    return address
