"""Timing of blocks and slices as they are deployed: exported, loaded and run by their runtime."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from scissionlite.errors import CodecError, ProfileError, first_line
from scissionlite.graph.analysis import flat, multiplications
from scissionlite.graph.graph import Graph, SlicingPoint
from scissionlite.runtimes import Slice, load_slice, onnx_int8, runtime_module
from scissionlite.scissiontl.codecs import LEARNED, median_time, time_packing
from scissionlite.scissiontl.profile import SliceProfile, TransferProfile
from scissionlite.transfer_layer.learned import bottleneck
from scissionlite.transfer_layer.spec import ENCODER_SHARE

Tensors = tuple[npt.NDArray[Any], ...]


class Rounds(msgspec.Struct, frozen=True):
    """How often something is measured.

    Attributes
    ----------
    count, warm_up
        Number of measurements, and of runs before the first.
    report
        Called after every step, for a progress bar.
    """

    count: int
    warm_up: int
    report: Callable[[], None]


class Runner:
    """Compiles modules for a runtime and loads them.

    Parameters
    ----------
    runtime
        One of :data:`scissionlite.runtimes.RUNTIMES`.
    threads
        Threads of an inference; None for the runtime's default.
    folder
        Folder of the compiled modules; the caller removes it.
    """

    def __init__(self, runtime: str, threads: int | None, folder: Path) -> None:
        self._runtime = runtime
        self._exporter = runtime_module(runtime)
        self._threads = threads
        self._folder = folder
        self._count = 0

    def int8(
        self, name: str, module: nn.Module, calibration: Sequence[tuple[torch.Tensor, ...]]
    ) -> Slice:
        """Quantize a module to int8 for ONNX Runtime, and load it.

        Raises
        ------
        ProfileError
            If that is not possible; the message begins with ``name``.
        """
        self._count += 1
        path = self._folder / f"{self._count}.onnx"
        try:
            arrays = [tuple(x.numpy() for x in inputs) for inputs in calibration]
            onnx_int8.export_int8(module, calibration[0], path, arrays)
            return load_slice(path, "onnx", self._threads)
        except Exception as error:
            raise ProfileError(f"{name} cannot be made int8: {first_line(error)}") from error
        finally:
            path.unlink(missing_ok=True)

    def compiled(self, name: str, module: nn.Module, example: Sequence[torch.Tensor]) -> Slice:
        """Compile and load a module.

        Raises
        ------
        ProfileError
            If the runtime cannot compile it; the message begins with ``name``.
        """
        self._count += 1
        path = self._folder / f"{self._count}{self._exporter.SUFFIX}"
        try:
            self._exporter.export(module, tuple(example), path)
            return load_slice(path, self._runtime, self._threads)
        except Exception as error:
            raise ProfileError(
                f"{name} cannot be compiled for {self._runtime}: {first_line(error)}"
            ) from error
        finally:
            path.unlink(missing_ok=True)


def entering_tensors(
    graph: Graph, inputs: Sequence[torch.Tensor]
) -> list[tuple[torch.Tensor, ...]]:
    """The tensors that enter each block, beginning with the network's inputs."""
    entering: list[tuple[torch.Tensor, ...]] = [tuple(inputs)]
    with torch.inference_mode():
        for block in graph.block_modules()[:-1]:
            entering.append(tuple(x.contiguous() for x in flat(block(*entering[-1]))))
    # Out of inference mode, so that they can be traced with.
    return [tuple(x.clone() for x in tensors) for tensors in entering]


def time_blocks(
    graph: Graph,
    runner: Runner,
    entering: Sequence[tuple[torch.Tensor, ...]],
    rounds: Rounds,
    int8: Slice | None = None,
) -> tuple[list[float], float, float | None]:
    """Median seconds of each block, of the uncut network, and of the uncut network in int8.

    The blocks run one after the other, as in an inference, with a time stamp between them. They
    take turns with the uncut networks.
    """
    blocks = []
    for block, module, example in zip(graph.blocks, graph.block_modules(), entering, strict=True):
        blocks.append(runner.compiled(f"the block {block.name}", module, example))
        rounds.report()
    networks = [runner.compiled("the network", graph.module, entering[0])]
    networks += [] if int8 is None else [int8]
    inputs: Tensors = tuple(x.numpy() for x in entering[0])
    times: list[list[float]] = []
    totals: list[list[float]] = [[] for _ in networks]
    for _ in range(rounds.warm_up + rounds.count):
        for network, own in zip(networks, totals, strict=True):
            started = time.perf_counter()
            network(*inputs)
            own.append(time.perf_counter() - started)
        values: Tensors = inputs
        stamps = [time.perf_counter()]
        for run in blocks:
            values = run(*values)
            stamps.append(time.perf_counter())
        times.append([b - a for a, b in itertools.pairwise(stamps)])
        rounds.report()
    measured = zip(*times[rounds.warm_up :], strict=True)
    whole, *rest = (median(own[rounds.warm_up :]) for own in totals)
    return [median(t) for t in measured], whole, rest[0] if rest else None


def promising(points: Sequence[SlicingPoint], most: int | None) -> list[SlicingPoint]:
    """Slicing points where fewer bytes cross than at every earlier one.

    The others send as much and leave more work to the device. If there are more than ``most``, an
    even choice of them is returned, with the first and the last. None keeps all slicing points.
    """
    if most is None:
        return list(points)
    front: list[SlicingPoint] = []
    for point in points:
        if not front or point.nbytes < front[-1].nbytes:
            front.append(point)
    if len(front) <= most:
        return front
    chosen = np.linspace(0, len(front) - 1, most).round().astype(int).tolist()
    return [front[i] for i in dict.fromkeys(chosen)]


def time_slices(
    graph: Graph,
    runner: Runner,
    entering: Sequence[tuple[torch.Tensor, ...]],
    points: Iterable[SlicingPoint],
    rounds: Rounds,
    calibration: Sequence[tuple[torch.Tensor, ...]] = (),
) -> list[SliceProfile]:
    """Median seconds of the slices of some slicing points; device and edge slice take turns.

    With calibration inputs of the network, so does the device slice in int8.
    """
    measured = []
    for point in points:
        examples = (entering[0], entering[point.index + 1])
        names = (f"the device slice of {point.name}", f"the edge slice of {point.name}")
        modules = graph.split(point)
        parts = zip(names, modules, examples, strict=True)
        runs = [runner.compiled(*part) for part in parts]
        inputs = [tuple(x.numpy() for x in example) for example in examples]
        if calibration:
            runs.append(runner.int8(names[0], modules[0], calibration))
            inputs.append(inputs[0])
        times: list[list[float]] = []
        for _ in range(rounds.warm_up + rounds.count):
            stamps = [time.perf_counter()]
            for run, values in zip(runs, inputs, strict=True):
                run(*values)
                stamps.append(time.perf_counter())
            times.append([b - a for a, b in itertools.pairwise(stamps)])
        medians = [median(each) for each in zip(*times[rounds.warm_up :], strict=True)]
        measured.append(SliceProfile(point.index, *medians))
        rounds.report()
    return measured


def time_bottlenecks(
    graph: Graph,
    runner: Runner,
    points: Iterable[SlicingPoint],
    rounds: Rounds,
) -> list[TransferProfile]:
    """Time learned Transfer Layers where one tensor crosses: bottleneck and packing together.

    They are not trained, since their weights do not change their time. A bottleneck that would add
    too many multiplications to the device slice is left out.
    """
    measured = []
    for point in points:
        rounds.report()
        shape = point.crossing[0].shape
        budget = ENCODER_SHARE * multiplications(graph.split(point)[0], graph.example)
        for spec in LEARNED:
            if len(point.crossing) > 1 or not spec.valid_for(shape):
                continue
            try:
                halves = bottleneck(spec, shape, most_multiplications=budget)
            except CodecError:
                continue
            features = torch.randn(shape)
            with torch.no_grad():
                reduced = halves[0](features)
            runs = [
                runner.compiled(f"{spec.label} after {point.name}", half.eval(), (x,))
                for half, x in zip(halves, (features, reduced), strict=True)
            ]
            times = []
            for run, x in zip(runs, (features.numpy(), reduced.numpy()), strict=True):
                times.append(median_time(partial(run, x), rounds.count))
            packing = time_packing(spec.packing, [reduced.numpy()], rounds.count)
            encode, decode = times[0] + packing.encode, times[1] + packing.decode
            measured.append(
                TransferProfile(point.index, spec, encode, decode, spec.packed_nbytes(shape))
            )
    return measured
