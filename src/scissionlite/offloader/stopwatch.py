"""The times of a request's stages, on the device and at the edge."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Time stages, and stretch them to emulate a slower machine.

    Parameters
    ----------
    slowdown
        Wait after each stage until it has taken this many times as long; 1 does not wait.
    """

    def __init__(self, slowdown: float = 1.0) -> None:
        self._slowdown = slowdown
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block, stretched, to the stage's."""
        start = time.monotonic()
        yield
        if self._slowdown > 1:
            # Not one long sleep: a processor that idles runs the next stage slower, and that would
            # be multiplied in turn. A sleep of zero keeps it awake and lets other threads run.
            until = start + self._slowdown * (time.monotonic() - start)
            while time.monotonic() < until:
                time.sleep(0)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
