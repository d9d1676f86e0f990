"""Turns: everything that a profile holds is timed once a round, as a request meets it.

A request comes after a pause, finds caches that other code has used since, and brings other data
than the one before. A hot loop over one input is up to twice as fast: the input stays in the cache,
and the processor learns the branches of a coder for this input. So every part of a profile takes
its turn in every round, after a pause where a request has one, with the next of several inputs. A
drift of the machine then meets all parts alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Protocol, TypeVar

PAUSE = 0.01
"""Seconds of a pause, in which a device waits for its link or for the next frame."""

Result = TypeVar("Result")


class Samples:
    """Seconds of one action, a sample for each of its turns."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def time(self, action: Callable[[], Result]) -> Result:
        """Run an action and keep its seconds; returns what it returns."""
        started = time.perf_counter()
        result = action()
        self.seconds.append(time.perf_counter() - started)
        return result

    @property
    def median(self) -> float:
        """Median seconds."""
        return median(self.seconds)


class Part(Protocol):
    """Something that takes its turns: blocks, the slices of a slicing point, codecs, ..."""

    def turn(self, number: int) -> None:
        """Time everything once; ``number`` of the turn chooses the input."""
        ...

    def forget(self) -> None:
        """Forget all samples: those were warm-up."""
        ...


def take_turns(
    parts: Sequence[Part], first: int, rounds: int, report: Callable[[], None] = lambda: None
) -> None:
    """Give each part a turn in every round; ``first`` is the number of the first round."""
    for number in range(first, first + rounds):
        for part in parts:
            part.turn(number)
        report()


def pause() -> None:
    """Wait as long as a device waits between two stages of its work."""
    time.sleep(PAUSE)
