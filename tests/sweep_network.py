"""The check of one network of the sweep, from capture to a bundle; :mod:`sweep` runs many.

The weights are random, from a fixed seed. Untrained networks would hide faults: many begin
with residual branches scaled by zero, and with classifiers of zeros. So what is constant is drawn
anew, and batch norms take the statistics of random inputs (:func:`build`).
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.data import TensorDataset

import scissionlite as sl
from scissionlite.errors import ScissionLiteError
from scissionlite.graph.analysis import flat
from scissionlite.graph.arguments import named_outputs
from scissionlite.models import load_model
from scissionlite.preprocessor import trainer
from scissionlite.preprocessor.data import input_batches, loader_of
from scissionlite.preprocessor.inserter import SlicedNetwork, insert
from scissionlite.preprocessor.teacher import Teacher
from scissionlite.runtimes import load_slice

CUTS = 8
"""Slicing points at which a network is cut, evenly spread over all of them."""

SIZES = (96, 128, 160, 192, 224, 240, 256, 299, 320, 384, 448, 512, 768, 1024)
"""Heights and widths of the input; a network is checked at the smallest that it takes."""

TRANSFERS = (sl.TransferSpec(pool=2), sl.TransferSpec(pool=1))
"""Transfer Layers: the first that is valid at a slicing point is prepared, both in int8."""

TOLERANCE = 1e-3
"""Largest difference of two answers, as a share of the largest value: folded batch norms and
another order of summation."""

SAMPLES = 4
"""Random inputs that a network with a Transfer Layer is retrained on, for one epoch."""


# More than 12 attributes: each is a fact of a row of the table.
class Record(msgspec.Struct, kw_only=True):
    """The result of one network.

    Attributes
    ----------
    network
        Its name, as the command line takes it.
    stage
        The stage that was last begun; "done" at the end.
    reason
        Why it is refused, or where an answer differs; empty where everything is equal.
    input, batch, parameters
        Shape of the example, the largest batch that was checked, and number of weights.
    capture_seconds, seconds
        CPU seconds of ``sl.capture``, and of everything.
    points
        Number of slicing points.
    cuts
        Names of those where the network was cut and answered as the untouched model.
    prepared_at, transfer
        The slicing point of the retrained bundle, and its Transfer Layer.
    commit, versions
        What was checked, and with which packages.
    """

    network: str
    stage: str = "build"
    reason: str = ""
    input: tuple[int, ...] = ()
    batch: int = 0
    parameters: int = 0
    capture_seconds: float = 0.0
    seconds: float = 0.0
    points: int = 0
    cuts: tuple[str, ...] = ()
    prepared_at: str = ""
    transfer: str = ""
    commit: str = ""
    versions: str = ""

    @property
    def equal(self) -> bool:
        """Whether every answer was equal."""
        return self.stage == "done" and not self.reason


class DifferentError(Exception):
    """Two answers that should be equal are not, or there are none to compare."""


def check(name: str, report: Callable[[Record], None] = lambda record: None) -> Record:
    """Check a network: capture, cut, prepare, and compare the answers with the untouched model's.

    ``report`` is called whenever a stage begins.
    """
    record = Record(network=name, versions=_versions())
    started = time.process_time()
    try:
        _check(record, report)
        record.stage = "done"
    except (ScissionLiteError, DifferentError) as error:
        record.reason = str(error)
    except Exception as error:  # a fault: the product's own errors are ScissionLiteErrors
        record.reason = f"{type(error).__name__}: {error}"
    record.seconds = round(time.process_time() - started, 1)
    return record


def _versions() -> str:
    packages = ("torch", "torchvision", "timm")
    return ", ".join(f"{package} {metadata.version(package)}" for package in packages)


def _check(record: Record, report: Callable[[Record], None]) -> None:
    def begin(stage: str) -> None:
        record.stage = stage
        report(record)

    begin("build")
    model, example = build(record.network)
    record.parameters = sum(p.numel() for p in model.parameters())
    record.input = tuple(example.shape)
    untouched = copy.deepcopy(model)

    begin("capture")
    started = time.process_time()
    graph = sl.capture(model, example, name=record.network)
    record.capture_seconds = round(time.process_time() - started, 2)
    record.points = len(graph.slicing_points)
    record.batch = 2 if graph.dynamic_batch else 1
    if not graph.slicing_points:
        raise DifferentError("captured, but nowhere does a single tensor cross")

    for point in spread(graph.slicing_points, CUTS):
        begin(f"cut {point.name}")
        _check_cut(untouched, graph, point, record.batch)
        record.cuts += (point.name,)

    begin("prepare")
    spec, point = prepared_point(graph)
    record.prepared_at, record.transfer = point.name, spec.label
    with tempfile.TemporaryDirectory(prefix="scissionlite-sweep-") as scratch:
        _check_prepared(untouched, graph, point, spec, record.batch, Path(scratch) / "bundle")


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network with weights from a fixed seed, and an example of the smallest input it takes.

    Constant weights are drawn anew, since zeros and layer scales of 1e-6 switch branches off. Batch
    norms take their statistics from random inputs, as in training.
    """
    torch.manual_seed(0)
    model = load_model(name)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim and weight.numel() > 1 and bool((weight == weight.flatten()[0]).all()):
                if weight.ndim > 1 and min(weight.shape[:2]) > 1:
                    nn.init.kaiming_normal_(weight)
                else:
                    centre = 1.0 if bool(weight.flatten()[0] != 0) else 0.0
                    nn.init.uniform_(weight, centre - 0.3, centre + 0.3)
    failures = []
    for size in SIZES:
        inputs = random_inputs((SAMPLES, 3, size, size), seed=1)
        try:
            _take_statistics(model, inputs)
            outputs, _ = named_outputs(name, answer_of(model, inputs[:2]))
        except Exception as error:  # whatever a network raises on a size that it was not made for
            failures.append(f"{size}: {type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        for path, (first, second) in outputs.items():
            # Comparing answers would show little where all inputs have the same one.
            if not (first - second).abs().max() > 10 * TOLERANCE * first.abs().max():
                raise DifferentError(f"two inputs have the same {path}, or one that is not finite")
        return model, random_inputs((1, 3, size, size), seed=2)
    raise DifferentError(f"takes no input (1, 3, size, size): {failures[-1]}")


def _take_statistics(model: nn.Module, inputs: torch.Tensor) -> None:
    """Give batch norms the statistics of some inputs; the rest stays in evaluation mode."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    try:
        answer_of(model, inputs)
    finally:
        model.eval()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def random_inputs(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Normally distributed inputs."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def answer_of(model: nn.Module, inputs: torch.Tensor) -> object:
    """The answer of a model to a copy of some inputs, without gradients."""
    with torch.no_grad():
        return model(inputs.clone())


def spread(points: Sequence[sl.SlicingPoint], count: int) -> list[sl.SlicingPoint]:
    """Up to ``count`` points, evenly spread, the first and the last among them."""
    positions = np.linspace(0, len(points) - 1, min(count, len(points))).round().astype(int)
    return [points[i] for i in positions]


def prepared_point(graph: sl.Graph) -> tuple[sl.TransferSpec, sl.SlicingPoint]:
    """The Transfer Layer to prepare, and the middle one of the points where it is valid."""
    for spec in TRANSFERS:
        valid = [p for p in graph.slicing_points if spec.valid_for(p.crossing[0].shape)]
        if valid:
            return spec, valid[len(valid) // 2]
    raise AssertionError("packing without pooling is valid for every tensor")


def _check_cut(untouched: nn.Module, graph: sl.Graph, point: sl.SlicingPoint, batch: int) -> None:
    """Cut in two: the slices answer as the untouched model."""
    device_slice, edge_slice = graph.split(point)
    for seed, size in enumerate(sorted({1, batch}), start=3):
        inputs = random_inputs((size, *graph.example[0].shape[1:]), seed)
        with torch.no_grad():
            answers = [x.numpy() for x in flat(edge_slice(*flat(device_slice(inputs))))]
        compare(answers, untouched_answers(untouched, inputs), f"batch of {size}")


def untouched_answers(model: nn.Module, inputs: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that a model answers, in the order of the graph's outputs."""
    return list(named_outputs(type(model).__name__, answer_of(model, inputs))[0].values())


def _check_prepared(
    untouched: nn.Module,
    graph: sl.Graph,
    point: sl.SlicingPoint,
    spec: sl.TransferSpec,
    batch: int,
    out: Path,
) -> None:
    """Retrain with a Transfer Layer: the bundle's slices answer as the network in this process.

    The network is trained twice from one seed: by ``sl.prepare``, and here. The bundle's fallback
    answers as the untouched model.
    """
    inputs = random_inputs((SAMPLES, *graph.example[0].shape[1:]), seed=5)
    data = TensorDataset(inputs, torch.zeros(SAMPLES, dtype=torch.int64))
    shape = graph.outputs[0].shape
    task = sl.SEGMENTATION if len(shape) == 4 else sl.CLASSIFICATION
    recipe = sl.Recipe(epochs=1, batch_size=2, learning_rate=1e-4)
    bundle = sl.prepare(
        graph,
        sl.Plan(kind="split", slicing_point=point.name, spec=spec),
        unlabelled=data,
        out=out,
        task=task,
        recipe=recipe,
        max_batch=batch,
    )
    order = torch.Generator().manual_seed(recipe.seed)
    calibration = input_batches(loader_of(data, recipe.batch_size, generator=order))
    network = insert(graph, point, spec, calibration=calibration, recipe=recipe)
    teacher = Teacher(graph, point)
    trainer.train(network, data, recipe, task=task, teacher=teacher, labelled=False)
    fallback = load_slice(bundle.slice_path("network"), "torchscript")
    for seed, size in enumerate(sorted({1, batch}), start=6):
        fresh = random_inputs((size, *inputs.shape[1:]), seed)
        _check_transfer(network, bundle, fresh, f"batch of {size}")
        expected = untouched_answers(untouched, fresh)
        compare(fallback(fresh.numpy()), expected, f"batch of {size}: fallback")


def _check_transfer(
    network: SlicedNetwork, bundle: sl.Bundle, inputs: torch.Tensor, where: str
) -> None:
    """Compare device slice, Transfer Layer and edge slice, each on what the one before answered.

    The whole would need a wide tolerance: where rounding moves a feature over a border of int8, a
    code differs by one.
    """
    device, edge = (
        load_slice(bundle.slice_path(role), "torchscript") for role in ("device", "edge")
    )
    (layer,), (tensor,) = network.layers, bundle.manifest.crossing
    (features,) = device(inputs.numpy())
    arrived = sl.decode(sl.encode(features, tensor.transfer, tensor.quantization), layout="nchw")
    with torch.no_grad():
        compare([features], network.features(inputs), f"{where}: device slice")
        if not np.array_equal(layer(torch.from_numpy(features)).numpy(), arrived):
            raise DifferentError(f"{where}: the codec is not the Transfer Layer, bit for bit")
        expected = flat(network.edge_slice(torch.from_numpy(arrived)))
    compare(edge(arrived), expected, f"{where}: edge slice")


def compare(
    answers: Sequence[npt.NDArray[np.float32]], expected: Sequence[torch.Tensor], where: str
) -> None:
    """Raise DifferentError unless two answers are equal."""
    if len(answers) != len(expected):
        raise DifferentError(f"{where}: {len(answers)} tensors, not {len(expected)}")
    for answer, right in zip(answers, expected, strict=True):
        if answer.shape != tuple(right.shape):
            raise DifferentError(f"{where}: shape {answer.shape}, not {tuple(right.shape)}")
        largest = float(right.abs().max())
        worst = float(np.abs(answer - right.numpy()).max())
        if not worst <= TOLERANCE * largest:
            raise DifferentError(
                f"{where}: off by {worst:.3g}, and the largest value is {largest:.3g}"
            )
