"""Dynamic batching at the edge: who is run together, and that every answer goes to its asker.

Time-outs here only guard against hangs; no outcome depends on how fast the machine is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from bundles import Toy, write_bundle
from peers import LOCAL, LONG, device_of
from torch import nn

from scissionlite.bundle import Bundle
from scissionlite.errors import BundleError, EdgeExecutionError
from scissionlite.graph.tensors import TensorInfo
from scissionlite.offloader import Device, EdgeLimits, EdgeServer, slices
from scissionlite.offloader.edge import side as edge_side
from scissionlite.offloader.edge.batching import best_batch
from scissionlite.offloader.edge.metrics import BundleMetrics, Traffic
from scissionlite.offloader.edge.schedule import Done, Job, Schedule
from scissionlite.offloader.edge.served import Served
from scissionlite.offloader.edge.side import EdgeSide
from scissionlite.offloader.wire import Encoding, TensorHeader
from scissionlite.transfer_layer import Quantization, TransferSpec

pytestmark = pytest.mark.usefixtures("no_threads_left")

SHAPE, SCORES = (1, 4, 8, 8), (1, 4)
Array = npt.NDArray[np.float32]


class Mean(nn.Module):
    """An edge slice of which every sample's answer depends on that sample alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(
        Toy("mean", nn.ReLU(), Mean(), SHAPE, SHAPE, SCORES),
        tmp_path_factory.mktemp("mean"),
        transfer=TransferSpec(),
        quantization=Quantization(0.02, 0),
        max_batch=8,
    )


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Runs]:
    """The batches that the edge ran; the first one waits until it is told to go on."""
    made = _Runs(monkeypatch)
    yield made
    made.go_on.set()


class _Runs:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[list[int]] = []
        self.begun, self.go_on = threading.Event(), threading.Event()
        finish = EdgeSide.finish

        def record(side: EdgeSide, jobs: list[Job]) -> list[list[Done]]:
            self.batches.append([job.samples for job in jobs])
            self.begun.set()
            assert self.go_on.wait(LONG)
            return finish(side, jobs)

        monkeypatch.setattr(EdgeSide, "finish", record)
        monkeypatch.setattr(edge_side, "best_batch", lambda *arguments: arguments[2])


def sample(seed: int, batch: int = 1) -> Array:
    return np.random.default_rng(seed).random((batch, *SHAPE[1:]), dtype=np.float32)


def wait_until_queued(edge: EdgeServer, count: int) -> None:
    while edge._loop.metrics.schedule.waiting < count:
        time.sleep(0.005)


def answers_alone(bundle: Bundle, inputs: list[Array]) -> list[Array]:
    with (
        EdgeServer(bundle, LOCAL, limits=EdgeLimits(batch=1)) as edge,
        device_of(edge, bundle) as device,
    ):
        return [device.infer(x) for x in inputs]


def test_requests_that_wait_are_run_together_and_each_gets_its_own_answer(
    bundle: Bundle, runs: _Runs
) -> None:
    runs.go_on.set()
    inputs = [sample(seed, batch) for seed, batch in enumerate([1, 1, 3, 1, 2, 4, 1, 1, 1])]
    expected = answers_alone(bundle, inputs)
    runs.batches.clear()
    runs.go_on.clear()
    runs.begun.clear()
    with (
        EdgeServer(bundle, LOCAL, limits=EdgeLimits(batch=6, credit=16)) as edge,
        device_of(edge, bundle) as first,
        device_of(edge, bundle) as second,
    ):
        devices: list[Device] = [first, second]
        futures = [first.submit(inputs[0])]
        assert runs.begun.wait(LONG)
        futures += [devices[i % 2].submit(x) for i, x in enumerate(inputs[1:], start=1)]
        wait_until_queued(edge, len(inputs) - 1)
        runs.go_on.set()
        for future, answer in zip(futures, expected, strict=True):
            np.testing.assert_array_equal(future.result(LONG).output, answer)
    assert sum(map(sum, runs.batches)) == sum(len(x) for x in inputs)
    assert all(sum(batch) <= 6 for batch in runs.batches)
    assert max(map(len, runs.batches)) > 1


def test_a_request_that_fails_does_not_take_those_beside_it_along(
    bundle: Bundle, runs: _Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = np.full(SHAPE, 2.0, np.float32)
    load = slices.open_slice

    def fragile(*arguments: Any) -> Any:
        loaded = load(*arguments)

        def run(*tensors: Array) -> Any:
            if any(part.min() > 1.5 for part in tensors[0]):
                raise FloatingPointError("poison")
            return loaded(*tensors)

        return run

    monkeypatch.setattr(edge_side, "open_slice", fragile)
    with EdgeServer(bundle, LOCAL) as edge, device_of(edge, bundle) as device:
        first = device.submit(sample(0))
        assert runs.begun.wait(LONG)
        inputs = [sample(1), poison, sample(2)]
        futures = [device.submit(x) for x in inputs]
        wait_until_queued(edge, 3)
        runs.go_on.set()
        first.result(LONG)
        with pytest.raises(EdgeExecutionError, match="poison"):
            futures[1].result(LONG)
        for i in (0, 2):
            assert futures[i].result(LONG).where == "edge"
    assert [1, 1, 1] in runs.batches


def test_with_a_delay_requests_wait_for_others_but_not_for_longer(
    bundle: Bundle, runs: _Runs
) -> None:
    runs.go_on.set()
    limits = EdgeLimits(batch=4, batch_delay=1.0)
    with EdgeServer(bundle, LOCAL, limits=limits) as edge, device_of(edge, bundle) as device:
        for future in [device.submit(sample(seed)) for seed in range(4)]:
            future.result(LONG)
        assert runs.batches == [[1, 1, 1, 1]]  # full, so it did not wait any longer
        assert device.submit(sample(9)).result(LONG).where == "edge"  # alone, after the delay
    assert runs.batches[1:] == [[1]]


def test_a_bundle_of_one_batch_size_is_run_one_by_one(
    tiny_bundle: Bundle, frames: Any, runs: _Runs
) -> None:
    with EdgeServer(tiny_bundle, LOCAL) as edge, device_of(edge, tiny_bundle) as device:
        futures = [device.submit(frame) for frame in frames[:4]]
        assert runs.begun.wait(LONG)
        wait_until_queued(edge, 3)
        runs.go_on.set()
        for each in futures:
            assert each.result(LONG).where == "edge"
    assert runs.batches == [[1]] * 4


@pytest.mark.parametrize(
    ("fixed", "each", "expected"),
    [
        (0.010, 0.0001, 16),  # a run costs the same however many samples it has
        (0.0, 0.010, 1),  # one sample keeps all cores busy
        (0.010, 0.006, 8),  # 58 ms for 8, 106 for 16: a gain of 9%
    ],
)
def test_the_best_batch_is_measured(fixed: float, each: float, expected: int) -> None:
    now = 0.0

    def run(*inputs: Array) -> tuple[Array, ...]:
        nonlocal now
        now += fixed + each * len(inputs[0])
        return inputs

    found = best_batch(run, [TensorInfo("x", (1, 2))], 16, clock=lambda: now)
    assert found == expected


def test_the_measurement_of_a_slow_slice_ends() -> None:
    now, calls = 0.0, 0

    def run(*inputs: Array) -> tuple[Array, ...]:
        nonlocal now, calls
        now += 5.0
        calls += 1
        return inputs

    assert best_batch(run, [TensorInfo("x", (1, 2))], 1024, clock=lambda: now) == 1
    assert calls == 1


def test_turns_go_on_where_a_batch_is_full(bundle: Bundle) -> None:
    served, other = (
        Served(EdgeSide(bundle, batch=6), BundleMetrics(bundle, Traffic())) for _ in range(2)
    )
    schedule = Schedule(EdgeLimits(credit=8))
    for name in (b"a", b"b"):
        schedule.greet(name, served, "", 0.0)
    header = TensorHeader(Encoding.FLOAT32, (3, 2), 24)
    for number in range(2):
        for name in (b"a", b"b"):
            assert schedule.add(Job(served, name, number, (header,), [], 3, float(number), 9.0))
    assert schedule.samples_of(served) == 12
    assert schedule.oldest == 0.0
    first = schedule.next()
    taken = [first, schedule.next(first, 3), schedule.next(first, 2)]
    assert [(job.device_id, job.request_id) for job in taken if job] == [(b"a", 0), (b"b", 0)]
    assert schedule.samples_of(served) == 6
    assert schedule.oldest == 1.0
    schedule.remove(b"a")
    assert schedule.samples_of(served) == 3
    # One with another bundle keeps its turn, before or behind those that are run together.
    schedule.greet(b"c", other, "", 0.0)
    schedule.greet(b"d", served, "", 0.0)
    for name, made_for in ((b"c", other), (b"d", served)):
        assert schedule.add(Job(made_for, name, 0, (header,), [], 3, 5.0, 9.0))
    first = schedule.next()
    taken = [first, schedule.next(first, 3), schedule.next(first, 3)]
    assert [job.device_id for job in taken if job] == [b"b", b"d"]
    assert schedule.head.device_id == b"c"
    assert schedule.samples_of(other) == 3


@pytest.mark.parametrize("batch", [1, 8])
def test_a_slice_that_takes_no_batches_is_named(tmp_path: Path, batch: int) -> None:
    bundle = write_bundle(
        Toy("mean", nn.ReLU(), Mean(), SHAPE, SHAPE, SCORES),
        tmp_path,
        transfer=TransferSpec(pool=1),
        quantization=Quantization(0.1, 0),
        max_batch=8,
        runtime="onnx",
        dynamic_batch=False,
    )
    if batch == 1:
        assert EdgeSide.open(bundle, batch=batch).batch == 1
        return
    with pytest.raises(BundleError, match=r"batches of 8, but .* more than 1 \(.*--batch 1"):
        EdgeSide.open(bundle, batch=batch)


def test_a_slice_that_does_not_take_its_inputs_is_named(tiny_bundle: Bundle) -> None:
    inputs = [TensorInfo("x", (1, 7, 3, 3))]
    with pytest.raises(BundleError, match=r"the edge slice does not take .* \[1, 7, 3, 3\]"):
        slices.open_slice(tiny_bundle, "edge", inputs, 1, None)
