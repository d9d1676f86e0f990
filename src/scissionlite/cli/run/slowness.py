"""Whether the device has become slower than at its start, by the timings of its answers."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Final

from scissionlite.cli.run.results import ImageAnswer
from scissionlite.processor import SYSFS, slowdowns

ANSWERS: Final = 50
"""Answers whose median is compared."""

TIMES_SLOWER: Final = 1.5
"""How much slower the device must have become to be told."""

_STAGES = ("device_slice", "local_run")


class Slowness:
    """Compares the device's own time with that of its first answers, and tells of it once.

    Parameters
    ----------
    sysfs
        Where the kernel says what it does with the processor.
    """

    def __init__(self, sysfs: Path = SYSFS) -> None:
        self._sysfs = sysfs
        self._told = False
        # By stage and variant, which compute different things: the first median, the newest times.
        self._first: dict[tuple[str, str | None], float] = {}
        self._newest: dict[tuple[str, str | None], list[float]] = {}

    def add(self, answer: ImageAnswer) -> str | None:
        """Take an answer; return what to tell, the one time that there is something."""
        for stage in _STAGES:
            if self._told or stage not in answer.timings:
                continue
            key = (stage, answer.variant)
            newest = self._newest.setdefault(key, [])
            newest.append(answer.timings[stage])
            if len(newest) < ANSWERS:
                continue
            now = median(newest)
            newest.clear()
            first = self._first.setdefault(key, now)
            if now > TIMES_SLOWER * first:
                self._told = True
                return self._words(stage, first, now)
        return None

    def _words(self, stage: str, first: float, now: float) -> str:
        part = "the device slice" if stage == "device_slice" else "the network"
        reasons = slowdowns(self._sysfs)
        why = (
            f"The processor is slowed down: {'; '.join(reasons)}"
            if reasons
            else "Linux does not say that the processor is slowed down, so another program may "
            "take its time"
        )
        return (
            f"{part} takes {1e3 * now:.1f} ms here, {now / first:.1f} times as long as at the "
            f"start. {why}"
        )
