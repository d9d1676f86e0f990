"""The search for the fastest plan that holds a floor, in few trainings. No torch.

Plans are in order of latency. Each has a predicted accuracy drop (:mod:`.drops`), and the search
relies on their order: where a plan holds, one that is predicted to lose less holds too, and where
one fails, one that is predicted to lose more fails too. So only the front is of interest, the
plans that lose less than every faster one, and every result rules out a part of it. The search
begins where the drop is likely to be just small enough, goes on from there with steps that double,
and then halves what is left.
"""

from __future__ import annotations

from collections.abc import Sequence

REMAINING = 0.01
"""Share of a predicted drop that is left after training, about: where the search begins.

Of the shares from 0.001 to 0.05 it needs the fewest trainings in ``python -m bench.floor_search``,
the same replay that docs/training.md shows, so that page flatters it. Where the guess is wrong, the
search takes some more steps.
"""


def front(drops: Sequence[float | None]) -> list[int]:
    """The places of the plans that are predicted to lose less than every faster one.

    Parameters
    ----------
    drops
        Of plans in order of latency. None where the drop is not known: such a plan stays.
    """
    kept = []
    least = float("inf")
    for place, drop in enumerate(drops):
        if drop is None or drop < least:
            kept.append(place)
            least = least if drop is None else drop
    return kept


class FloorSearch:
    """Which plan to try next, and what the results say about the others.

    Parameters
    ----------
    drops
        The predicted drops of plans in order of latency, each less than those before it. Where one
        is not known, plans are tried one after the other.
    likely
        The largest drop that is likely to hold.

    Attributes
    ----------
    found : int or None
        The fastest plan so far that held.
    """

    def __init__(self, drops: Sequence[float | None], likely: float) -> None:
        self._ordered = all(drop is not None for drop in drops)
        self._first, self._end = 0, len(drops)
        known = [drop for drop in drops if drop is not None]
        start = next((i for i, drop in enumerate(known) if drop <= likely), len(drops) - 1)
        self._start = start if self._ordered else 0
        self._step = 1
        self._failed = False
        self.found: int | None = None

    def next(self) -> int | None:
        """The place of the plan to try next; None at the end."""
        if self._first >= self._end:
            return None
        if not self._ordered:
            return self._first
        if self.found is None and not self._failed:
            return self._start
        if self.found is None:
            return min(self._first + self._step - 1, self._end - 1)
        if not self._failed:
            return max(self._end - self._step, self._first)
        return (self._first + self._end) // 2

    @property
    def left(self) -> int:
        """Most plans that are still tried."""
        count = self._end - self._first
        return 2 * count.bit_length() if self._ordered else count

    def tell(self, place: int, *, held: bool) -> None:
        """Take a result: what is slower than a plan that held is ruled out, else what is faster."""
        if self.found is not None or self._failed:
            self._step *= 2
        if held:
            self.found, self._end = place, place
        else:
            self._failed, self._first = True, place + 1
