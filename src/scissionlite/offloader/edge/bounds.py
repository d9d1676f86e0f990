"""Bounds of a daemon's connections, from its limits: how many, and how much each may hold."""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterable
from pathlib import Path

import msgspec

from scissionlite.errors import OffloadError
from scissionlite.manifest import Manifest
from scissionlite.offloader import wire
from scissionlite.offloader.bundle_tensors import largest_request, largest_result, max_payload
from scissionlite.offloader.limits import MAX_CLIENTS, EdgeLimits
from scissionlite.offloader.wire import control

logger = logging.getLogger(__name__)

_SLACK_BYTES = 1 << 16  # over the largest valid one, so that a near miss is named, not cut off
_FRAME_BYTES = 64  # most bytes that a frame adds to its own on the wire, encrypted
_MESSAGE_SLACK = wire.MAX_TENSORS * _FRAME_BYTES + _SLACK_BYTES
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
        One frame. It stays the same while the daemon runs: libzmq asks for it only at the start.
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

    def including(self, manifest: Manifest) -> Bounds:
        """Make room for the requests and results of one more bundle.

        Raises
        ------
        OffloadError
            If its requests are larger than any that the daemon takes.
        """
        if (payload := max_payload(manifest)) + _SLACK_BYTES > self.frame:
            raise OffloadError(
                f"the payloads of {manifest.model} may have {payload} bytes, more than this daemon "
                f"takes ({self.frame - _SLACK_BYTES}): start it with this bundle, or with a larger "
                "payload="
            )
        largest = largest_request(manifest) + _MESSAGE_SLACK
        answers = (self.messages // 2 + 1) * largest_result(manifest) + _SPARE_ANSWERS
        return msgspec.structs.replace(
            self,
            message=max(self.message, largest),
            answers=max(self.answers, answers),
        )


def bounds_of(limits: EdgeLimits, manifests: Iterable[Manifest]) -> Bounds:
    """Derive the bounds from a daemon's limits and bundles; raises the limit of descriptors."""
    manifests = list(manifests)
    frame = max(control.MAX_PROBE_BYTES, wire.MAX_HEADER_BYTES, limits.payload << 20)
    bounds = Bounds(
        connections=_room_for(2 * (limits.devices + MAX_CLIENTS) + _SPARE_CONNECTIONS),
        frame=max([frame, *map(max_payload, manifests)]) + _SLACK_BYTES,
        messages=2 * limits.credit,
        message=control.MAX_PROBE_BYTES + _MESSAGE_SLACK,
        answers=_SPARE_ANSWERS,
        memory=limits.memory << 20,
    )
    for manifest in manifests:
        bounds = bounds.including(manifest)
    return bounds


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
