"""Faults of an emulated link that drop no connection: it looks alive, and its bytes do not arrive.

Both are seen in the field. A middlebox that has forgotten a connection takes its bytes for ever. A
path whose MTU is smaller than the sender believes, and whose routers do not say so, passes small
segments and drops every large one, so that TCP repeats the first large one until it gives up.
"""

from __future__ import annotations

import asyncio


class PathFault:
    """The fault of one direction of a forwarded port, common to its connections. Of one loop.

    A connection that lost bytes never gets them back: once swallowed, always swallowed. One that
    stalled goes on when the path is mended, as TCP does.
    """

    def __init__(self) -> None:
        self._swallows = False
        self._largest: int | None = None
        self._mended = asyncio.Event()

    def swallow(self) -> None:
        """Read the bytes of every connection, and drop them."""
        self._swallows = True

    def pass_small(self, largest: int) -> None:
        """Pass writes of at most ``largest`` bytes; a larger one stalls its connection."""
        self._largest = largest
        self._mended.clear()

    def mend(self) -> None:
        """Pass everything again."""
        self._swallows, self._largest = False, None
        self._mended.set()

    def filter(self) -> ConnectionFault:
        """Make what a new connection passes its bytes through."""
        return ConnectionFault(self)

    def _stalls(self, nbytes: int) -> bool:
        return self._largest is not None and nbytes > self._largest


class ConnectionFault:
    """The fault of one direction of one connection."""

    def __init__(self, path: PathFault) -> None:
        self._path = path
        self._lost_bytes = False

    def read_size(self, usual: int) -> int:
        """Bytes to read at once: enough to tell a small write from a large one."""
        return usual if self._path._largest is None else max(usual, self._path._largest + 1)

    async def passes(self, data: bytes) -> bool:
        """Wait until bytes may go on; False if they never will."""
        while data and self._path._stalls(len(data)):
            await self._path._mended.wait()
        self._lost_bytes |= bool(data) and self._path._swallows
        return not (data and self._lost_bytes)
