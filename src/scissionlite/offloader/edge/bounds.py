"""Bounds of a daemon's connections, from its limits: how many, and how much each may hold."""

from __future__ import annotations

import logging
import resource
from pathlib import Path

import msgspec

from scissionlite.manifest import Manifest
from scissionlite.offloader import wire
from scissionlite.offloader.bundle_tensors import largest_request, largest_result, max_payload
from scissionlite.offloader.limits import MAX_CLIENTS, EdgeLimits
from scissionlite.offloader.wire import control

logger = logging.getLogger(__name__)

_SLACK_BYTES = 1 << 16  # over the largest valid one, so that a near miss is named, not cut off
_FRAME_BYTES = 64  # most bytes that a frame adds to its own on the wire, encrypted
_SPARE_ANSWERS = 1 << 22  # bytes, for what is no answer: downloads of probes, a profile
_SPARE_CONNECTIONS = 32  # for devices that come back before the end of their last ones is known
_RESERVE = 24  # descriptors for anything else than connections: files, a profiler's process


class Bounds(msgspec.Struct, frozen=True):
    """Most that the connections may hold, in bytes where nothing else is said.

    Attributes
    ----------
    connections : int
        Connections at once, of both sockets.
    frame : int
        One frame.
    messages : int
        Messages of a connection that libzmq reads ahead.
    message : int
        A message that has not ended.
    answers : int
        Answers that a peer has not taken.
    memory : int
        Memory that all messages that have not ended may use together; and the same for the
        answers that were not taken.
    """

    connections: int
    frame: int
    messages: int
    message: int
    answers: int
    memory: int

    @property
    def backlog(self) -> int:
        """Most that a connection may hold while the daemon has no time to read."""
        return (self.messages + 2) * self.message


def bounds_of(limits: EdgeLimits, manifest: Manifest | None) -> Bounds:
    """Derive the bounds from a daemon's limits and its bundle; raises the limit of descriptors."""
    probe = control.MAX_PROBE_BYTES
    frame = max(probe, wire.MAX_HEADER_BYTES, 0 if manifest is None else max_payload(manifest))
    message = max(probe, 0 if manifest is None else largest_request(manifest))
    answer = 0 if manifest is None else largest_result(manifest)
    return Bounds(
        connections=_room_for(2 * (limits.devices + MAX_CLIENTS) + _SPARE_CONNECTIONS),
        frame=frame + _SLACK_BYTES,
        messages=2 * limits.credit,
        message=message + wire.MAX_TENSORS * _FRAME_BYTES + _SLACK_BYTES,
        answers=(limits.credit + 1) * answer + _SPARE_ANSWERS,
        memory=limits.memory << 20,
    )


def _room_for(connections: int) -> int:
    """Raise the soft limit of descriptors as far as needed and allowed; return what fits."""
    used = len(list(Path("/proc/self/fd").iterdir()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = used + connections + _RESERVE
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return connections
    room = max(2, soft - used - _RESERVE)
    logger.warning(
        "this process may open %d files, so it takes %d connections, two for each device, and "
        "refuses more: raise its hard limit of open files (ulimit -Hn, LimitNOFILE=) to %d for "
        "all that --devices allows",
        soft,
        room,
        needed,
    )
    return room
