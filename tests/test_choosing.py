"""Choosing the fastest plan that holds a floor: the plans tried, skipped, kept and reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TEXTURES

import scissionlite as sl
from scissionlite.errors import PrepareError
from scissionlite.preprocessor.choosing import Choice, choose
from scissionlite.preprocessor.recipe import Recipe

HARSH = sl.TransferSpec(pool=4, dtype="int4")


def split(point: str, spec: sl.TransferSpec) -> sl.Plan:
    return sl.Plan(kind="split", slicing_point=point, spec=spec)


Choosing = Callable[..., Choice]


@pytest.fixture
def tried(small_graph: sl.Graph, textures: Path, tmp_path: Path) -> tuple[list[str], Choosing]:
    """The list of plans that were tried, and a function that chooses among plans."""
    seen: list[str] = []

    def run(plans: list[sl.Plan], drop: float, tries: int = 5) -> Choice:
        return choose(
            small_graph,
            plans,
            accuracy_drop=drop,
            tries=tries,
            train=textures / "train",
            validate=textures / "test",
            preprocessing=TEXTURES,
            out=tmp_path / "bundle",
            recipe=Recipe(epochs=0),
            on_try=lambda outlook: seen.append(f"{outlook.plan.place} {outlook.plan.label}"),
        )

    return seen, run


def test_the_first_that_holds_is_kept(tried: tuple[list[str], Choosing], tmp_path: Path) -> None:
    seen, run = tried
    plans = [
        split("0", HARSH),
        split("0", sl.TransferSpec(pool=4, dtype="int4", entropy="zstd")),  # loses as much
        split("0", sl.TransferSpec(pool=4, levels=9, entropy="zstd")),  # fewer codes than int4
        split("0.1", HARSH),  # the same shape crosses
        split("1", sl.TransferSpec(pool=1)),
        split("2", sl.TransferSpec(pool=1)),
    ]
    choice = run(plans, 0.05)
    assert seen == ["0 TL 4x4 int4", "1 int8"]
    assert [a.held for a in choice.attempts] == [False, True]
    assert choice.attempts[0].after < choice.attempts[0].before - 0.05
    loaded = sl.Bundle.load(tmp_path / "bundle")
    assert loaded.id == choice.bundle.id
    assert loaded.manifest.slicing_point is not None
    assert loaded.manifest.slicing_point.after == "1"
    assert loaded.manifest.accuracy is not None
    assert loaded.manifest.accuracy.after == choice.attempts[1].after
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]  # nothing of the tries is left


def test_running_locally_always_holds(tried: tuple[list[str], Choosing]) -> None:
    seen, run = tried
    plans = [split("0", HARSH), split("1", HARSH), split("2", HARSH), sl.Plan(kind="local")]
    choice = run(plans, 0.0, 2)
    assert seen == ["0 TL 4x4 int4", "1 TL 4x4 int4", "- nothing (local)"]
    assert choice.bundle.manifest.kind == "local"


def test_where_nothing_holds_every_score_is_told(
    tried: tuple[list[str], Choosing], tmp_path: Path
) -> None:
    _, run = tried
    with pytest.raises(PrepareError, match=r"no plan holds .*: TL 4x4 int4 at 0: \d+\.\d+%\."):
        run([split("0", HARSH)], 0.0)
    assert not list(tmp_path.iterdir())
    with pytest.raises(PrepareError, match="accuracy_drop=5 must be 0 to 1"):
        run([split("0", HARSH)], 5)
