"""Choosing the fastest plan that holds a floor: the plans tried, skipped, kept and reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TEXTURES

import scissionlite as sl
from scissionlite.errors import PrepareError
from scissionlite.preprocessor import trainer
from scissionlite.preprocessor.choosing import Choice, choose
from scissionlite.preprocessor.data import ImageFolder, input_batches, loader_of
from scissionlite.preprocessor.floor import BelowFloorError, Floor
from scissionlite.preprocessor.inserter import insert
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.preprocessor.scoring import score_uncut
from scissionlite.preprocessor.tasks import CLASSIFICATION
from scissionlite.preprocessor.training_time import TryTimes
from scissionlite.progress import duration
from scissionlite.scissiontl.cost import Prediction

CALIBRATED = Recipe(epochs=0)
HARSH = sl.TransferSpec(pool=4, dtype="int4")


MILD = sl.TransferSpec(pool=1)


def split(point: str, spec: sl.TransferSpec, drop: float | None = None) -> sl.Plan:
    prediction = None if drop is None else Prediction(device_time=0.0, device_blocks=1, drop=drop)
    return sl.Plan(kind="split", slicing_point=point, spec=spec, prediction=prediction)


Choosing = Callable[..., Choice]


@pytest.fixture
def tried(small_graph: sl.Graph, textures: Path, tmp_path: Path) -> tuple[list[str], Choosing]:
    """The list of plans that were tried, and a function that chooses among plans."""
    seen: list[str] = []

    def run(
        plans: list[sl.Plan], drop: float, tries: int = 5, recipe: Recipe = CALIBRATED
    ) -> Choice:
        return choose(
            small_graph,
            plans,
            accuracy_drop=drop,
            tries=tries,
            train=textures / "train",
            validate=textures / "test",
            preprocessing=TEXTURES,
            out=tmp_path / "bundle",
            recipe=recipe,
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


def test_predicted_drops_lead_to_the_plan(
    tried: tuple[list[str], Choosing], tmp_path: Path
) -> None:
    """The first try is the fastest that is likely to hold, the next one a faster one."""
    seen, run = tried
    plans = [
        split("0", sl.TransferSpec(pool=4), 0.9),
        split("0", HARSH, 0.9),  # as slow or slower, and loses as much
        split("1", HARSH, 0.6),
        split("1", MILD, 0.001),
        split("2", MILD, 0.001),
        sl.Plan(kind="local", prediction=Prediction(device_time=1.0, device_blocks=9, drop=0.0)),
    ]
    choice = run(plans, 0.05)
    assert seen == ["1 int8", "1 TL 4x4 int4"]
    assert [attempt.held for attempt in choice.attempts] == [True, False]
    assert sl.Bundle.load(tmp_path / "bundle").id == choice.bundle.id
    assert choice.bundle.manifest.transfer == MILD
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    # Without a try to train, only what is predicted to need none is tried.
    seen.clear()
    choice = run(plans, 0.05, tries=0)
    assert seen == ["1 int8"]
    # What was predicted for another precision is no prediction.
    assert choice.attempts[0].plan.device_precision == "float32"


def test_what_holds_when_it_is_calibrated_is_not_trained(tried: tuple[list[str], Choosing]) -> None:
    _, run = tried
    choice = run([split("1", MILD)], 0.05, recipe=Recipe(epochs=2, batch_size=16))
    (attempt,) = choice.attempts
    assert (attempt.held, attempt.epochs, attempt.stopped) == (True, 0, False)
    assert choice.bundle.manifest.training is None


def test_a_training_that_cannot_hold_is_stopped(
    tried: tuple[list[str], Choosing], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With such a learning rate nothing is learned, so the first look says it."""
    monkeypatch.setattr("scissionlite.preprocessor.floor.MOST_GAIN", ((0.125, 0.0),))
    seen, run = tried
    learns_nothing = Recipe(epochs=8, batch_size=60, learning_rate=1e-12, learn_scales=False)
    choice = run([split("0", HARSH), split("1", MILD)], 0.0, recipe=learns_nothing)
    stopped, held = choice.attempts
    assert (stopped.stopped, stopped.epochs, stopped.sent_bytes) == (True, 1, None)
    assert stopped.after < stopped.before
    assert held.held
    assert seen == ["0 TL 4x4 int4", "1 int8"]
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]  # no checkpoint either


def test_a_floor_does_not_change_what_is_learned(small_graph: sl.Graph, textures: Path) -> None:
    """A training that is looked at ends with the weights of one that is not."""
    test = ImageFolder(textures / "test", TEXTURES)
    recipe = Recipe(epochs=2, batch_size=60)
    states = []
    for floor in (None, Floor(test, CLASSIFICATION, least=0.0)):
        data = ImageFolder(textures / "train", TEXTURES)
        batches = input_batches(loader_of(data, 32))
        network = insert(small_graph, "1", sl.TransferSpec(), calibration=batches, recipe=recipe)
        trainer.train(network, data, recipe, floor=floor)
        states.append(network.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_when_a_floor_is_looked_at_and_what_it_allows(
    small_graph: sl.Graph, textures: Path
) -> None:
    test = ImageFolder(textures / "test", TEXTURES)
    score = score_uncut(small_graph, test, CLASSIFICATION)
    floor = Floor(test, CLASSIFICATION, least=score + 0.04)
    assert [epoch for epoch in range(1, 9) if floor.looks(epoch, 8)] == [1, 2, 4]
    assert [epoch for epoch in range(1, 4) if floor.looks(epoch, 3)] == [1, 2]
    assert not Floor(test, CLASSIFICATION, least=score + 0.001).holds(small_graph.module)
    assert Floor(test, CLASSIFICATION, least=score).holds(small_graph.module)
    floor.check(small_graph.module, 2, 8)
    with pytest.raises(BelowFloorError, match=r"after epoch 4 the score is .* the training was"):
        floor.check(small_graph.module, 4, 8)


def test_a_try_is_predicted_to_take_longer_where_it_trains_more(
    small_graph: sl.Graph, textures: Path
) -> None:
    train, test = (ImageFolder(textures / name, TEXTURES) for name in ("train", "test"))
    times = TryTimes.measured(small_graph, train, test, Recipe())
    assert times is not None
    early, late = split("0", MILD), split("2", MILD)
    seconds = times.seconds(early, Recipe(epochs=8))
    assert 0 < times.seconds(early, CALIBRATED) < times.seconds(early, Recipe(epochs=2)) < seconds
    assert times.seconds(late, Recipe(epochs=8)) < seconds  # less of the network learns
    assert times.seconds(sl.Plan(kind="local"), Recipe()) < seconds
    assert times.train == len(train) == 240


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (8.4, "8 s"), (44, "40 s"), (170, "3 min"), (9000, "2.5 h")],
)
def test_a_duration_promises_no_more_than_is_known(seconds: float, text: str) -> None:
    assert duration(seconds) == text
