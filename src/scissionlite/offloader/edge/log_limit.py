"""Log lines that a peer can cause are limited: by peer, and in all."""

from __future__ import annotations

import logging
import time
from typing import Any

_INTERVAL = 60.0  # seconds between two lines of one kind about one peer
_MOST_LINES = 60  # of one kind in an interval, whoever they are about
_MOST_PEERS = 1024  # remembered at once


class LogLimit:
    """Writes to a logger, and leaves lines out that repeat; the next line says how many.

    A line has a kind and a peer. One peer causes at most one line of a kind per minute, and all
    peers together at most 60. Of one thread.

    Parameters
    ----------
    logger
        Writes the lines.
    interval
        Seconds between two lines of one kind about one peer.
    """

    def __init__(self, logger: logging.Logger, interval: float = _INTERVAL) -> None:
        self._logger = logger
        self._interval = interval
        self._next: dict[tuple[str, str], float] = {}  # when a line may be written again
        self._written: dict[str, tuple[float, int]] = {}  # of a kind: the interval's start, lines
        self._left_out: dict[str, int] = {}

    def warning(self, kind: str, about: str, text: str, *values: object, **extra: Any) -> None:
        """Write a warning, unless it repeats."""
        self.log(logging.WARNING, kind, about, text, *values, **extra)

    def info(self, kind: str, about: str, text: str, *values: object, **extra: Any) -> None:
        """Write a line of information, unless it repeats."""
        self.log(logging.INFO, kind, about, text, *values, **extra)

    def log(
        self, level: int, kind: str, about: str, text: str, *values: object, **extra: Any
    ) -> None:
        """Write a line, unless it repeats; ``extra`` are fields of the record."""
        now = time.monotonic()
        start, lines = self._written.get(kind, (now, 0))
        if now - start >= self._interval:
            start, lines = now, 0
        if lines >= _MOST_LINES or now < self._next.get((kind, about), 0.0):
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return
        if len(self._next) >= _MOST_PEERS:
            self._next = {key: at for key, at in self._next.items() if at > now}
        if len(self._next) < _MOST_PEERS:
            self._next[kind, about] = now + self._interval
        self._written[kind] = start, lines + 1
        if count := self._left_out.pop(kind, 0):
            text += f" ({count} lines like this one were left out)"
        self._logger.log(level, text, *values, extra=extra)
