"""Timing of blocks and slices as they are deployed: exported, loaded and run by their runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from scissionlite.scissiontl.codecs import LEARNED, REFERENCE, Packing
from scissionlite.scissiontl.profile import SliceProfile, TransferProfile
from scissionlite.scissiontl.turns import Samples, pause
from scissionlite.transfer_layer.learned import bottleneck
from scissionlite.transfer_layer.spec import ENCODER_SHARE, TransferSpec

Tensors = tuple[npt.NDArray[Any], ...]


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


class Blocks:
    """Blocks, the uncut network and preprocessing; in int8 the uncut network, too.

    The blocks run one after the other, as in an inference, with a time stamp between them.

    Parameters
    ----------
    graph
        The network.
    runner
        Compiles it.
    entering
        The tensors that enter each block, of each of several inputs.
    preprocess
        Of each input: makes it from its frame; none where the input is no image.
    int8
        The uncut network in int8, or None.
    report
        Called for each block that is compiled.
    """

    def __init__(
        self,
        graph: Graph,
        runner: Runner,
        entering: Sequence[Sequence[tuple[torch.Tensor, ...]]],
        preprocess: Sequence[Callable[[], object]],
        int8: Slice | None,
        report: Callable[[], None],
    ) -> None:
        self._blocks = []
        modules = zip(graph.blocks, graph.block_modules(), entering[0], strict=True)
        for block, module, example in modules:
            self._blocks.append(runner.compiled(f"the block {block.name}", module, example))
            report()
        self._networks = [runner.compiled("the network", graph.module, entering[0][0])]
        self._networks += [] if int8 is None else [int8]
        self._inputs: list[Tensors] = [tuple(x.numpy() for x in each[0]) for each in entering]
        self._preprocess = preprocess
        self.forget()

    def forget(self) -> None:
        """Forget all samples."""
        self._block_samples = [Samples() for _ in self._blocks]
        self._network_samples = [Samples() for _ in self._networks]
        self._preprocess_samples = Samples()

    def turn(self, number: int) -> None:
        """Time the network and its blocks, each after a pause."""
        inputs = self._inputs[number % len(self._inputs)]
        for network, samples in zip(self._networks, self._network_samples, strict=True):
            pause()
            if self._preprocess:
                self._preprocess_samples.time(self._preprocess[number % len(self._preprocess)])
            samples.time(partial(network, *inputs))
        pause()
        values: Tensors = inputs
        for run, samples in zip(self._blocks, self._block_samples, strict=True):
            values = samples.time(partial(run, *values))

    @property
    def latencies(self) -> list[float]:
        """Median seconds of each block."""
        return [samples.median for samples in self._block_samples]

    @property
    def network(self) -> float:
        """Median seconds of the uncut network."""
        return self._network_samples[0].median

    @property
    def network_int8(self) -> float | None:
        """Median seconds of the uncut network in int8; None where it is not measured."""
        return self._network_samples[1].median if len(self._networks) > 1 else None

    @property
    def preprocess(self) -> float:
        """Median seconds from frame to input tensor; 0 where the input is no image."""
        return self._preprocess_samples.median if self._preprocess else 0.0


class Slices:
    """The device and the edge slice of a slicing point; in int8 the device slice, too.

    Parameters
    ----------
    graph
        The network.
    runner
        Compiles it.
    point
        The slicing point.
    entering
        The tensors that enter each block, of each of several inputs.
    preprocess
        As for :class:`Blocks`: a device slice runs behind it, in a request.
    after
        The slicing point from which a part up to this one is measured, too, or None. The middle
        slices of three tiers are made of such parts.
    int8
        Whether the device slice is measured in int8, too.
    """

    def __init__(
        self,
        graph: Graph,
        runner: Runner,
        point: SlicingPoint,
        entering: Sequence[Sequence[tuple[torch.Tensor, ...]]],
        preprocess: Sequence[Callable[[], object]],
        after: SlicingPoint | None,
        int8: bool,
    ) -> None:
        self._graph, self._runner, self._after = graph, runner, after
        self._entering = entering
        self._preprocess, self._int8 = preprocess, int8
        self._runs: list[Slice] = []
        self._inputs: list[list[Tensors]] = []
        tensors = zip(*(each[point.index + 1] for each in entering), strict=True)
        maps = [[x.numpy() for x in tensor] for tensor in tensors]
        self._packings = [Packing(REFERENCE.adapted_to(m[0].shape), m) for m in maps]
        self.point = point
        self.forget()

    def load(self) -> None:
        """Compile and load the slices.

        Raises
        ------
        ProfileError
            If the runtime cannot compile one of them.
        """
        at = self.point.index + 1
        names = [f"the {side} slice of {self.point.name}" for side in ("device", "edge")]
        modules = self._graph.split(self.point)
        first = self._entering[0]
        examples = (first[0], first[at])
        self._runs = [
            self._runner.compiled(*part) for part in zip(names, modules, examples, strict=True)
        ]
        before = [tuple(x.numpy() for x in each[0]) for each in self._entering]
        after = [tuple(x.numpy() for x in each[at]) for each in self._entering]
        self._inputs = [before, after]
        if self._int8:
            calibration = [each[0] for each in self._entering]
            self._runs.append(self._runner.int8(names[0], modules[0], calibration))
            self._inputs.append(before)
        if self._after is not None:
            start, module = self._after.index + 1, self._graph.between(self._after, self.point)
            name = f"the part from {self._after.name} to {self.point.name}"
            self._runs.append(self._runner.compiled(name, module, first[start]))
            self._inputs.append([tuple(x.numpy() for x in each[start]) for each in self._entering])

    def unload(self) -> None:
        """Give up the slices and their memory; the samples stay."""
        self._runs, self._inputs = [], []

    def forget(self) -> None:
        """Forget all samples."""
        self._samples = [Samples() for _ in range(2 + self._int8 + (self._after is not None))]
        for packing in self._packings:
            packing.forget()

    def turn(self, number: int) -> None:
        """Time each slice after a pause, and packing behind and before them."""
        which = number % len(self._entering)
        device, edge, *others = zip(self._runs, self._inputs, self._samples, strict=True)
        int8 = others[: int(self._int8)]
        for run, inputs, samples in others[len(int8) :]:
            pause()
            samples.time(partial(run, *inputs[which]))
        for run, inputs, samples in (device, *int8):
            pause()
            if self._preprocess:
                self._preprocess[number % len(self._preprocess)]()
            samples.time(partial(run, *inputs[which]))
            packed = [packing.encode(which) for packing in self._packings]
        pause()
        for packing, each in zip(self._packings, packed, strict=True):
            packing.decode(each)
        run, inputs, samples = edge
        samples.time(partial(run, *inputs[which]))

    @property
    def packing(self) -> tuple[float, float]:
        """Median seconds of the reference codec, behind the device and before the edge slice."""
        costs = [packing.profile for packing in self._packings]
        return sum(cost.encode for cost in costs), sum(cost.decode for cost in costs)

    @property
    def profile(self) -> SliceProfile:
        """Median seconds of the slices."""
        device, edge, *others = (samples.median for samples in self._samples)
        int8 = others.pop(0) if self._int8 else None
        return SliceProfile(self.point.index, device, edge, int8, others[0] if others else None)


class Bottleneck:
    """A learned Transfer Layer at a slicing point: its two halves, and packing between them.

    It is not trained, since its weights do not change its time.
    """

    def __init__(
        self, runner: Runner, point: SlicingPoint, spec: TransferSpec, halves: tuple[nn.Module, ...]
    ) -> None:
        self.block = point.index
        self._spec = spec
        self._shape = point.crossing[0].shape
        features = torch.randn(self._shape)
        with torch.no_grad():
            reduced = halves[0](features)
        self._runs = [
            runner.compiled(f"{spec.label} after {point.name}", half.eval(), (x,))
            for half, x in zip(halves, (features, reduced), strict=True)
        ]
        self._features, self._reduced = features.numpy(), reduced.numpy()
        self._packing = Packing(spec.packing, [self._reduced])
        self.forget()

    def forget(self) -> None:
        """Forget all samples."""
        self._samples = [Samples() for _ in self._runs]
        self._packing.forget()

    def turn(self, number: int) -> None:
        """Time both halves and packing."""
        reduce, expand = self._runs
        self._samples[0].time(partial(reduce, self._features))
        self._packing.turn(number)
        self._samples[1].time(partial(expand, self._reduced))

    @property
    def profile(self) -> TransferProfile:
        """Bottleneck and packing together."""
        reduce, expand = (samples.median for samples in self._samples)
        packing = self._packing.profile
        return TransferProfile(
            self.block,
            self._spec,
            reduce + packing.encode,
            expand + packing.decode,
            self._spec.packed_nbytes(self._shape),
        )


def bottlenecks(graph: Graph, runner: Runner, point: SlicingPoint) -> Iterator[Bottleneck]:
    """Make the learned Transfer Layers of a slicing point where one tensor crosses.

    A bottleneck that would add too many multiplications to the device slice is left out.
    """
    shape = point.crossing[0].shape
    budget = ENCODER_SHARE * multiplications(graph.split(point)[0], graph.example)
    for spec in LEARNED:
        if len(point.crossing) > 1 or not spec.valid_for(shape):
            continue
        try:
            halves = bottleneck(spec, shape, most_multiplications=budget)
        except CodecError:
            continue
        yield Bottleneck(runner, point, spec, halves)


def beside_slices(
    transfers: Sequence[TransferProfile], slices: Sequence[Slices]
) -> list[TransferProfile]:
    """Add to each codec what it takes longer beside a slice than among other codecs."""
    among = {t.block: t for t in transfers if t.spec == REFERENCE}
    more = [
        (beside.packing[0] - alone.encode, beside.packing[1] - alone.decode)
        for beside in slices
        if (alone := among.get(beside.point.index)) is not None
    ]
    if not more:
        return list(transfers)
    encode, decode = (max(median(each), 0.0) for each in zip(*more, strict=True))
    replace = msgspec.structs.replace
    return [replace(t, encode=t.encode + encode, decode=t.decode + decode) for t in transfers]
