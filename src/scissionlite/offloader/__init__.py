"""The Offloader runs the slices: :class:`Device` on the device, :class:`EdgeServer` at the edge.

Imports without torch; slices load their runtime when they are opened. docs/wire-format.md says
what the two send each other.
"""

from scissionlite.offloader.device import Answer, Device
from scissionlite.offloader.edge import EdgeServer

__all__ = ["Answer", "Device", "EdgeServer"]
