"""The search for the fastest plan that holds: what it finds, and in how many tries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scissionlite.preprocessor.search import FloorSearch, front


def found(drops: list[float | None], likely: float, limit: float) -> tuple[int | None, list[int]]:
    """The plan that a search finds where plans hold up to a drop, and the places it tried."""
    search = FloorSearch(drops, likely)
    tried: list[int] = []
    while (place := search.next()) is not None:
        assert place not in tried
        assert len(tried) < search.left + len(tried) + 1
        tried.append(place)
        drop = drops[place]
        search.tell(place, held=drop is None or drop <= limit)
    return search.found, tried


DROPS = st.lists(st.floats(0, 1), unique=True, min_size=1, max_size=40).map(
    lambda values: sorted(values, reverse=True)
)


@given(drops=DROPS, likely=st.floats(0, 1), limit=st.floats(0, 1))
def test_the_fastest_that_holds_is_found_in_few_tries(
    drops: list[float], likely: float, limit: float
) -> None:
    best, tried = found([*drops], likely, limit)
    assert best == next((i for i, drop in enumerate(drops) if drop <= limit), None)
    assert len(tried) <= 2 * (len(drops).bit_length() + 1)


def test_a_good_guess_needs_two_tries() -> None:
    drops: list[float | None] = [0.9, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    # The guess holds, and the next faster plan fails.
    assert found(drops, likely=0.45, limit=0.45) == (3, [3, 2])
    # Everything holds: the steps to faster plans double.
    assert found(drops, likely=0.0, limit=1.0) == (0, [7, 6, 4, 0])
    # Nothing but the last holds.
    assert found(drops, likely=1.0, limit=0.0) == (7, [0, 1, 3, 7, 5, 6])


def test_without_predictions_plans_are_tried_in_order() -> None:
    search = FloorSearch([None, 0.3, None], likely=0.0)
    assert search.next() == 0
    search.tell(0, held=False)
    assert search.next() == 1
    search.tell(1, held=True)
    assert (search.next(), search.found) == (None, 1)


@pytest.mark.parametrize(
    ("drops", "kept"),
    [
        ([0.3, 0.5, 0.3, 0.1, 0.1, 0.0, 0.0], [0, 3, 5]),
        ([None, 0.3, None, 0.4, 0.0], [0, 1, 2, 4]),
        ([], []),
    ],
)
def test_plans_that_lose_as_much_as_a_faster_one_are_left_out(
    drops: list[float | None], kept: list[int]
) -> None:
    assert front(drops) == kept
