"""What the search, the floor and the predicted drops promise at their borders; encoders' features.

Each test here was written for a planted fault that no other test saw.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_rate import Images
from test_search import DROPS
from torch import nn

import scissionlite as sl
from scissionlite.errors import PrepareError
from scissionlite.preprocessor import trainer
from scissionlite.preprocessor.floor import floor_of
from scissionlite.preprocessor.inserter import insert
from scissionlite.preprocessor.search import FloorSearch
from scissionlite.preprocessor.tasks import CLASSIFICATION
from scissionlite.preprocessor.teacher import Teacher
from scissionlite.scissiontl.drops import DropMeter, Drops, answer_distance, losses_of
from scissionlite.scissiontl.drops import measured_drops as measure
from scissionlite.scissiontl.inputs import Frames

LEARNED = sl.TransferSpec(pool=2, pool_kind="learned", reduction=4)


@pytest.fixture(scope="module")
def graph() -> sl.Graph:
    """A network whose first layer costs hardly anything."""
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1, groups=1),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    return sl.capture(network.eval(), torch.zeros(1, 3, 16, 16), name="tiny")


def test_the_search_begins_with_a_drop_that_is_just_likely() -> None:
    assert FloorSearch([0.9, 0.5, 0.4], likely=0.5).next() == 1


@given(drops=DROPS, likely=st.floats(0, 1), limit=st.floats(0, 1))
def test_no_more_plans_are_tried_than_the_search_says(
    drops: list[float], likely: float, limit: float
) -> None:
    """Once it has a result of either kind; the time of all tries is told from this number."""
    search = FloorSearch([*drops], likely)
    promised: list[int] = []
    while (place := search.next()) is not None:
        promised.append(search.left)
        search.tell(place, held=drops[place] <= limit)
    assert search.left == 0
    assert all(len(promised) - done <= left for done, left in enumerate(promised))


def test_what_loses_the_same_and_what_does_not() -> None:
    plain = sl.TransferSpec()
    assert losses_of(sl.TransferSpec(dtype="float16", entropy="zstd")) == sl.TransferSpec.paper()
    assert losses_of(sl.TransferSpec(entropy="ans", layout="nhwc")) == plain
    assert losses_of(sl.TransferSpec(dtype="int4")) != plain
    assert losses_of(sl.TransferSpec(levels=32)) != plain


def test_three_dimensions_are_no_classes() -> None:
    boxes = [torch.arange(24.0).reshape(2, 3, 4)]
    spread = float(boxes[0].var(correction=0))
    assert answer_distance([boxes[0] + 2], boxes) == pytest.approx(4 / spread)


def test_a_learned_layer_that_costs_the_device_too_much_has_no_drop(graph: sl.Graph) -> None:
    meter = DropMeter(graph, [(torch.randn(1, 3, 16, 16),) for _ in range(4)])
    assert LEARNED not in meter.at(graph.slicing_points[0], [LEARNED])
    assert LEARNED in meter.at(graph.slicing_points[2], [LEARNED])


def test_with_few_photographs_nothing_is_predicted(graph: sl.Graph) -> None:
    preprocessing = sl.Preprocessing(size=(16, 16))
    rng = np.random.default_rng(0)
    photographs = [rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(16)]
    few, enough = (
        measure(graph, Frames(photographs[:n], "", preprocessing), [], [75], None, {})
        for n in (15, 16)
    )
    assert few == Drops()
    assert set(enough.images) == {("uint8", None), ("png", None), ("jpeg", 75)}


def test_a_floor_needs_data_and_scores_in_the_batches_that_the_network_takes(
    graph: sl.Graph,
) -> None:
    with pytest.raises(PrepareError, match="a floor needs data"):
        floor_of(graph, 0.5, None, CLASSIFICATION)
    assert floor_of(graph, None, None, CLASSIFICATION) is None

    class OneBatch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, 3 * 16 * 16)[:, :4]

    fixed = sl.capture(OneBatch(), torch.randn(2, 3, 16, 16))
    assert not fixed.dynamic_batch
    floor = floor_of(fixed, 0.0, Images(4), CLASSIFICATION)
    assert floor is not None
    assert floor.holds(fixed.module)


def test_an_encoder_learns_the_features_behind_the_cut(graph: sl.Graph) -> None:
    """Without labels and with the network frozen: it learns from hints and outputs alone."""
    spec = sl.TransferSpec.shallow_encoder("tiny", levels=4)
    data = Images(96)
    (x, _) = data.tensors
    torch.manual_seed(0)
    network = insert(graph, "input", spec, calibration=[(x,)])
    teacher = Teacher(graph, "input")
    assert teacher.hint_nodes

    def distance() -> float:
        with torch.no_grad():
            (arriving,) = network.eval().transfer([x])
            hints, wanted = (teacher.answer([each]).hints for each in (arriving, x))
        errors = [(a - b).square().mean() / b.var() for a, b in zip(hints, wanted, strict=True)]
        return float(torch.stack(errors).mean())

    before = distance()
    recipe = sl.Recipe(epochs=6, batch_size=16, learning_rate=5e-3, train_edge_slice=False)
    trainer.train(network, data, recipe, teacher=teacher, labelled=False)
    assert distance() < 0.8 * before
