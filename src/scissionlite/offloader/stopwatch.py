"""The times of a request's stages, on the device and at the edge."""

from __future__ import annotations

import time


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

        self._name = ""
        self._started = 0.0

    def stage(self, name: str) -> Stopwatch:
        """Add the time of the block, stretched, to the stage's: ``with watch.stage(name):``.

        Stages do not nest. A block that raises has no time.
        """
        self._name = name
        return self

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        start = self._started
        if self._slowdown > 1:
            # Not one long sleep: a processor that idles runs the next stage slower, and that would
            # be multiplied in turn. A sleep of zero keeps it awake and lets other threads run.
            until = start + self._slowdown * (time.monotonic() - start)
            while time.monotonic() < until:
                time.sleep(0)
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + time.monotonic() - start
