"""The check of one network of the sweep, from capture to a bundle; :mod:`sweep` runs many.

The weights are random, from a fixed seed. Untrained networks would hide faults: many begin
with residual branches scaled by zero, and with classifiers of zeros. So what is constant is drawn
anew, and batch norms take the statistics of random inputs (:func:`build`).
"""

from __future__ import annotations

import copy
import gc
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
from scissionlite.errors import ScissionLiteError, first_line
from scissionlite.graph.analysis import flat
from scissionlite.graph.arguments import named_leaves
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

ROUNDINGS = 2
"""Where that is exceeded, this many times the network's own rounding is added: each of the two
answers may be as far from the exact one."""

TRIES = 5
"""Inputs that are drawn, one after the other, if float32 alone makes a difference of ``TOLERANCE``:
such an input shows nothing."""

STATISTICS = 16
"""Random inputs that batch norms take their statistics of. With four, some channels have nearly no
variance, and a deep network amplifies rounding to any size."""

SAMPLES = 4
"""Random inputs that a network with a Transfer Layer is retrained on, for one epoch."""

MOST_TRAINED = 500_000_000
"""Weights of the largest network that is retrained. Training takes fifteen times the memory of the
weights, twice over; larger networks are prepared as they are (``--epochs 0``)."""


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
    rounding
        Where an input was drawn again, since rounding alone made a difference of ``TOLERANCE``.
    input, batch, parameters
        Shape of the example, the largest batch that was checked, and number of weights.
    capture_seconds, seconds
        CPU seconds of ``sl.capture``, and of everything.
    points, tensors
        Number of slicing points, and how many tensors may cross there.
    cuts
        Names of those where the network was cut and answered as the untouched model.
    prepared_at, transfer
        The slicing point of the retrained bundle, and its Transfer Layer.
    commit
        What was checked.
    """

    network: str
    stage: str = "build"
    reason: str = ""
    rounding: str = ""
    input: tuple[int, ...] = ()
    batch: int = 0
    parameters: int = 0
    capture_seconds: float = 0.0
    seconds: float = 0.0
    points: int = 0
    tensors: int = 1
    cuts: tuple[str, ...] = ()
    prepared_at: str = ""
    transfer: str = ""
    commit: str = ""

    @property
    def equal(self) -> bool:
        """Whether every answer was equal."""
        return self.stage == "done" and not self.reason


class DifferentError(Exception):
    """Two answers that should be equal are not, or there are none to compare."""


class SensitiveError(DifferentError):
    """Two answers differ, and so do two runs of the same network: the input shows nothing."""


def check(name: str, report: Callable[[Record], None] = lambda record: None) -> Record:
    """Check a network: capture, cut, prepare, and compare the answers with the untouched model's.

    ``report`` is called whenever a stage begins.
    """
    record = Record(network=name)
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


def versions() -> str:
    """The packages that a network is checked with."""
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
    if not graph.slicing_points:
        record.tensors = 2
        graph = sl.capture(model, example, name=record.network, max_tensors=record.tensors)
    record.points = len(graph.slicing_points)
    record.batch = 2 if graph.dynamic_batch else 1
    if not graph.slicing_points:
        raise DifferentError("captured, but nowhere do one or two tensors cross")

    for point in spread(graph.slicing_points, CUTS):
        begin(f"cut {point.name}")
        _check_cut(untouched, graph, point, record)
        record.cuts += (point.name,)

    begin("prepare")
    spec, point = prepared_point(graph)
    record.prepared_at, record.transfer = point.name, spec.label
    if record.parameters > MOST_TRAINED:
        record.transfer += ", not retrained"
    with tempfile.TemporaryDirectory(prefix="scissionlite-sweep-") as scratch:
        _check_prepared(untouched, graph, point, spec, record, Path(scratch) / "bundle")


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
        inputs = random_inputs((STATISTICS, 3, size, size), seed=1)
        try:
            _take_statistics(model, inputs)
            outputs = tensors_of(model, [inputs[:2]])
        except Exception as error:  # whatever a network raises on a size that it was not made for
            failures.append(f"{size}: {type(error).__name__}: {first_line(error)}")
            continue
        for first, second in outputs:
            # Comparing answers would show little where all inputs have the same one.
            if not (first - second).abs().max() > 10 * TOLERANCE * first.abs().max():
                raise DifferentError("two inputs have the same answer, or one that is not finite")
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
        tensors_of(model, [inputs])
    finally:
        model.eval()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def random_inputs(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Normally distributed pixels around a random colour.

    Of pixels without a colour a transformer sees little more than the mean: it is the same in all.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(shape, generator=generator)
    return noise + torch.randn((*shape[:2], 1, 1), generator=generator)


def spread(points: Sequence[sl.SlicingPoint], count: int) -> list[sl.SlicingPoint]:
    """Up to ``count`` points, evenly spread, the first and the last among them."""
    positions = np.linspace(0, len(points) - 1, min(count, len(points))).round().astype(int)
    return [points[i] for i in positions]


def prepared_point(graph: sl.Graph) -> tuple[sl.TransferSpec, sl.SlicingPoint]:
    """The Transfer Layer to prepare, and the middle one of the points where it is valid."""
    for spec in TRANSFERS:
        valid = [
            point
            for point in graph.slicing_points
            if all(spec.valid_for(tensor.shape) for tensor in point.crossing)
        ]
        if valid:
            return spec, valid[len(valid) // 2]
    raise AssertionError("packing without pooling is valid for every tensor")


def _check_cut(
    untouched: nn.Module, graph: sl.Graph, point: sl.SlicingPoint, record: Record
) -> None:
    """Cut in two: the slices answer as the untouched model."""
    device_slice, edge_slice = graph.split(point)

    def check_on(inputs: torch.Tensor, where: str) -> None:
        with torch.no_grad():
            answers = [x.numpy() for x in flat(edge_slice(*flat(device_slice(inputs))))]
        compare(answers, untouched, [inputs], where)

    _on_fresh_inputs(record, graph, 3, check_on)


def _on_fresh_inputs(
    record: Record, graph: sl.Graph, seed: int, check_on: Callable[[torch.Tensor, str], None]
) -> None:
    """Check on inputs of each batch size; on others, where the network itself is not exact."""
    for size in sorted({1, record.batch}):
        shape, where = (size, *graph.example[0].shape[1:]), f"batch of {size}"
        for attempt in range(TRIES):
            try:
                check_on(random_inputs(shape, seed + size + 100 * attempt), where)
                break
            except SensitiveError as error:
                if attempt == TRIES - 1:
                    raise
                record.rounding = str(error)


def _check_prepared(
    untouched: nn.Module,
    graph: sl.Graph,
    point: sl.SlicingPoint,
    spec: sl.TransferSpec,
    record: Record,
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
    epochs = 1 if record.parameters <= MOST_TRAINED else 0
    recipe = sl.Recipe(epochs=epochs, batch_size=2, learning_rate=1e-4)
    bundle = sl.prepare(
        graph,
        sl.Plan(kind="split", slicing_point=point.name, spec=spec),
        unlabelled=data,
        out=out,
        task=task,
        recipe=recipe,
        max_batch=record.batch,
    )
    gc.collect()  # what the first training leaves in cycles, before the second one
    order = torch.Generator().manual_seed(recipe.seed)
    calibration = input_batches(loader_of(data, recipe.batch_size, generator=order))
    network = insert(graph, point, spec, calibration=calibration, recipe=recipe)
    if epochs:
        teacher = Teacher(graph, point)
        trainer.train(network, data, recipe, task=task, teacher=teacher, labelled=False)
    else:
        network.settle()
    fallback = load_slice(bundle.slice_path("network"), "torchscript")

    def check_on(inputs: torch.Tensor, where: str) -> None:
        _check_transfer(network, bundle, inputs, where)
        compare(fallback(inputs.numpy()), untouched, [inputs], f"{where}: fallback")

    _on_fresh_inputs(record, graph, 6, check_on)


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
    features = device(inputs.numpy())
    compare(features, network.device_slice, [inputs], f"{where}: device slice")
    arrived = [
        sl.decode(sl.encode(x, tensor.transfer, tensor.quantization), layout="nchw")
        for x, tensor in zip(features, bundle.manifest.crossing, strict=True)
    ]
    with torch.no_grad():
        pooled = network.transfer([torch.from_numpy(x) for x in features])
    if not all(map(np.array_equal, pooled, arrived)):
        raise DifferentError(f"{where}: the codec is not the Transfer Layer, bit for bit")
    sent = [torch.from_numpy(x) for x in arrived]
    compare(edge(*arrived), network.edge_slice, sent, f"{where}: edge slice")


def compare(
    answers: Sequence[npt.NDArray[np.float32]],
    network: nn.Module,
    inputs: Sequence[torch.Tensor],
    where: str,
) -> None:
    """Raise DifferentError unless some answers are those of a network in this process.

    Raises
    ------
    SensitiveError
        If they differ, and rounding alone makes a difference of ``TOLERANCE``.
    """
    expected = tensors_of(network, inputs)
    if len(answers) != len(expected):
        raise DifferentError(f"{where}: {len(answers)} tensors, not {len(expected)}")
    for i, (answer, right) in enumerate(zip(answers, expected, strict=True)):
        if answer.shape != tuple(right.shape):
            raise DifferentError(f"{where}: shape {answer.shape}, not {tuple(right.shape)}")
        largest = float(right.abs().max())
        worst = float(np.abs(answer - right.numpy()).max())
        if worst <= TOLERANCE * largest:
            continue
        own = rounding(network, inputs)[i]
        if own > TOLERANCE * largest:
            raise SensitiveError(
                f"{where}: off by {worst / largest:.1%}, and the untouched network in float32 is "
                f"off by {own / largest:.1%} from float64"
            )
        if not worst <= TOLERANCE * largest + ROUNDINGS * own:
            raise DifferentError(
                f"{where}: off by {worst:.3g}, and the largest value is {largest:.3g}; the "
                f"network's own rounding is {own:.3g}"
            )


def rounding(network: nn.Module, inputs: Sequence[torch.Tensor]) -> list[float]:
    """How far the answers of a network in float32 are from those in float64, at most.

    A network with random weights may amplify a difference in the last bit to any size. One run may
    be exact by chance, so there is a second one, with the last bit of every input changed.
    """
    exact = tensors_of(copy.deepcopy(network).double(), [x.double() for x in inputs])
    changed = [x.nextafter(torch.tensor(torch.inf)) for x in inputs]
    runs = [tensors_of(network, each) for each in (inputs, changed)]
    return [
        max(float((run[i] - right).abs().max()) for run in runs) for i, right in enumerate(exact)
    ]


def tensors_of(network: nn.Module, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors that a network answers to copies of some inputs, without gradients."""
    with torch.no_grad():
        return [x for _, x in named_leaves(network(*(x.clone() for x in inputs)))]
