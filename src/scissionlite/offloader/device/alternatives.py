"""Who else answers a request when the connection of its edge is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scissionlite.offloader.device.connection import EdgeConnection
    from scissionlite.offloader.device.messages import Request


class Alternatives:
    """The other edges, and the fallback; common to a device's connections.

    Parameters
    ----------
    fallback
        Whether there is one. Requests that no edge takes are given up at once then.

    Attributes
    ----------
    fallback : bool
        The same.
    edges : list of EdgeConnection
        The connections, in the order of preference.
    """

    def __init__(self, *, fallback: bool) -> None:
        self.fallback = fallback
        self.edges: list[EdgeConnection] = []

    @property
    def several(self) -> bool:
        """Whether another edge may take a request, now or later."""
        return len(self.edges) > 1

    def take_over(self, request: Request) -> bool:
        """Give a lost request to the first edge that is there and has credit; False if none is."""
        return self.several and any(each.take_over(request) for each in self.edges)
