"""The Offloader runs the slices: :class:`Device` on the device, :class:`EdgeServer` at the edge.

A frame's way; the leader is the one thread that waits at the sockets (``device.connection``,
``edge.threads``); ``wire`` has the formats; nothing imports torch:

| thread                  | calls                                                              |
| ----------------------- | ------------------------------------------------------------------ |
| caller of Device.submit | check_inputs, Edges.reserve, DeviceSide.make_request: a Request    |
| the same                | DeviceLoop.add: Request -> wire.pack -> frames on PUSH             |
| leader at the edge      | EdgeLoop.step: PULL -> wire.unpack -> Schedule: a Job              |
| the same                | Computation.finish: Job -> Done; EdgeLoop.finish: frames on ROUTER |
| leader on the device    | DeviceLoop.serve: DEALER -> wire.unpack -> Reply -> Answer         |
| scissionlite-fallback   | LocalSide.answer -> Answer, when the edge gave none                |
| scissionlite-callbacks  | AnswerFuture: the callbacks of users                               |
| scissionlite-frames     | FrameReader: a stream's frames, of which the newest waits          |
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scissionlite.offloader.device.answers import Answer
    from scissionlite.offloader.device.device import Device
    from scissionlite.offloader.device.link_meter import LinkEstimate
    from scissionlite.offloader.edge.server import EdgeServer
    from scissionlite.offloader.limits import EdgeLimits, Timeouts
    from scissionlite.offloader.link_keys import DeviceKeys, EdgeKeys

# Each side is imported when it is first used: a device does not need the edge's.
_HOMES = {
    "Answer": "device.answers",
    "Device": "device.device",
    "DeviceKeys": "link_keys",
    "EdgeKeys": "link_keys",
    "EdgeLimits": "limits",
    "EdgeServer": "edge.server",
    "LinkEstimate": "device.link_meter",
    "Timeouts": "limits",
}

__all__ = [
    "Answer",
    "Device",
    "DeviceKeys",
    "EdgeKeys",
    "EdgeLimits",
    "EdgeServer",
    "LinkEstimate",
    "Timeouts",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'scissionlite.offloader' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"scissionlite.offloader.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
