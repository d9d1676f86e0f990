"""The profiler: every block, slice, codec and image format of a network, measured on this host.

:mod:`.timing` times blocks and slices, :mod:`.codecs` packing, :mod:`.offload_timing` the Offloader
in turns (:mod:`.turns`), :mod:`.encoders` shallow encoders. :mod:`.leakage` has the privacy figure,
:mod:`.drops` the accuracy that codecs cost before training. docs/profile-format.md describes the
result.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from rich.progress import Progress

from scissionlite import _core
from scissionlite.errors import ProfileError, RuntimeUnavailableError
from scissionlite.graph.graph import Graph, SlicingPoint
from scissionlite.images import JPEG_QUALITY, Preprocessing
from scissionlite.runtimes import PACKAGES, RUNTIMES, Slice, keep_memory
from scissionlite.runtimes.onnx_int8 import check_quantize
from scissionlite.scissiontl.codecs import (
    Codec,
    ImageFormatTurns,
    codecs_after,
    image_formats,
)
from scissionlite.scissiontl.drops import MOST_IMAGES, measured_drops
from scissionlite.scissiontl.encoders import EncoderTurns, shallow_encoders
from scissionlite.scissiontl.inputs import codec_inputs, measured_frames
from scissionlite.scissiontl.leakage import leakages
from scissionlite.scissiontl.offload_timing import OffloadTurns
from scissionlite.scissiontl.profile import (
    BlockProfile,
    Host,
    Profile,
    cpu_name,
)
from scissionlite.scissiontl.timing import (
    Blocks,
    Bottleneck,
    Runner,
    Slices,
    beside_slices,
    bottlenecks,
    entering_tensors,
    promising,
)
from scissionlite.scissiontl.turns import Part, take_turns

_LEAKAGE_IMAGES = 48  # at most
_MOST_WEIGHTS = 2 << 30  # bytes of slices that are in memory at the same time


def profile(
    graph: Graph,
    *,
    name: str | None = None,
    runtime: str = "torchscript",
    threads: int | None = None,
    images: Sequence[npt.NDArray[np.uint8]] = (),
    preprocessing: Preprocessing | None = None,
    jpeg_qualities: Sequence[int] = (JPEG_QUALITY,),
    repetitions: int = 20,
    warm_up: int = 3,
    slices: int | None = 12,
    int8: bool | None = None,
    progress: Progress | None = None,
) -> Profile:
    """Measure a network on this host.

    Blocks and slices run as they are deployed: exported for the runtime, loaded, called with
    arrays. The blocks run one after the other, as in an inference, with a time stamp between them.
    At the most promising slicing points the slices themselves are built and timed, and at an image
    the shallow encoders. The codecs run
    on the tensors that cross. All of these take turns, as a request meets them (:mod:`.turns`), and
    medians are kept.

    Parameters
    ----------
    graph
        The captured network; its example's batch is the batch that is measured.
    name
        Name of this machine; its host name by default.
    runtime
        The runtime of blocks and slices: "torchscript", "onnx" or "aotinductor". The last compiles
        each of them, which takes ten seconds or more each.
    threads
        Threads of an inference; None leaves the runtime's default.
    images
        Frames, uint8 ``(height, width, channels)``. Images to the edge and the codecs are measured
        with them; from 16 frames on also the leakage at every slicing point, and what accuracy
        codecs cost before training. Without any, both are
        measured with noise that has the 1/f spectrum of photographs (Field, 1987), and the profile
        says so (``codec_inputs``). Where the network's input is no image, codecs are measured with
        the example, or with noise where all its values are the same.
    preprocessing
        How a frame becomes the network's input; ImageNet's by default.
    jpeg_qualities
        Qualities of JPEG to the edge, each 1 to 95.
    repetitions, warm_up
        Number of measurements, and of runs before the first.
    slices
        Most slicing points at which slices are built and timed; None for all of them. With 0 there
        are no shallow encoders either.
    int8
        Measure the uncut network and these device slices in int8, too, run by ONNX Runtime. None
        leaves them out where the packages for it are missing or the network cannot be quantized.
    progress
        A rich progress display to report to.

    Raises
    ------
    ProfileError
        If the runtime is unknown or cannot take a block, or the images have another size than the
        network's input, or the network is to be measured in int8 and cannot be.
    RuntimeUnavailableError
        If it is to be measured in int8, and a package for it is missing.
    """
    _check_request(repetitions, warm_up)
    with Profiler(
        graph,
        name=name,
        runtime=runtime,
        threads=threads,
        images=images,
        preprocessing=preprocessing,
        jpeg_qualities=jpeg_qualities,
        slices=slices,
        int8=int8,
        rounds=warm_up + repetitions,
        progress=progress,
    ) as profiler:
        profiler.measure(warm_up)
        profiler.forget()
        profiler.measure(repetitions)
        return profiler.profile()


class _Parts(NamedTuple):
    """The parts that take turns; the slices in groups that fit into memory together."""

    blocks: Blocks
    groups: Sequence[Sequence[Slices]]
    learned: Sequence[Bottleneck]
    codecs: Sequence[Codec]
    images: Sequence[ImageFormatTurns]
    encoders: Sequence[EncoderTurns]
    offload: OffloadTurns

    @property
    def slices(self) -> list[Slices]:
        """The slices of all groups."""
        return [each for group in self.groups for each in group]

    @property
    def others(self) -> list[Part]:
        """All parts but the slices."""
        turns: list[Part] = [self.blocks, *self.images, *self.encoders, *self.learned]
        return [*turns, *self.codecs, self.offload]


class Profiler:
    """The parts of a network's profile, which take turns; a context manager.

    ``rounds`` are as many as a progress display is told to expect; the other parameters and errors
    are those of :func:`profile`.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        name: str | None = None,
        runtime: str = "torchscript",
        threads: int | None = None,
        images: Sequence[npt.NDArray[np.uint8]] = (),
        preprocessing: Preprocessing | None = None,
        jpeg_qualities: Sequence[int] = (JPEG_QUALITY,),
        slices: int | None = 12,
        int8: bool | None = None,
        rounds: int = 0,
        progress: Progress | None = None,
    ) -> None:
        _check_parts(runtime, slices)
        if threads is not None:
            torch.set_num_threads(threads)
        keep_memory()  # as wherever slices run
        self._graph = graph
        self._name = name
        self._runtime = runtime
        self._threads = threads
        frames = measured_frames(graph, images, preprocessing)
        points = promising(graph.slicing_points, slices)
        groups = _groups(graph, points)
        # AOTInductor would compile the parts between the points for minutes.
        before = {} if runtime == "aotinductor" else {b.index: a for a, b in pairwise(points)}
        steps = 2 * len(graph.blocks) + 2 * len(points) + rounds * len(groups)
        self._report = _reporter(progress, steps)
        self._inputs, sized = codec_inputs(graph, frames, given=len(images) > 0)
        entering = [entering_tensors(graph, inputs) for inputs in sized]
        self._leakages = leakages(graph, frames.inputs(images[:_LEAKAGE_IMAGES]))
        self._number = 0
        self._stack = ExitStack()
        with ExitStack() as stack:
            scratch = stack.enter_context(TemporaryDirectory(prefix="scissionlite-"))
            runner = Runner(runtime, threads, Path(scratch))
            quantized = _quantized(graph, runner, sized, wanted=int8)
            preprocess, in_int8 = frames.preprocess, quantized is not None
            blocks = Blocks(graph, runner, entering, preprocess, quantized, self._report)
            shown = msgspec.structs.replace(frames, frames=images[:MOST_IMAGES])
            seen = [] if slices == 0 else frames.inputs(frames.frames[:_LEAKAGE_IMAGES])
            encoders = shallow_encoders(graph, runner, seen, preprocess)
            layers = {spec: each.layer for each in encoders for spec in each.specs}
            self._drops = measured_drops(graph, shown, points, jpeg_qualities, quantized, layers)
            self._parts = _Parts(
                blocks,
                [
                    [
                        Slices(graph, runner, p, entering, preprocess, before.get(p.index), in_int8)
                        for p in group
                    ]
                    for group in groups
                ],
                [each for point in points for each in bottlenecks(graph, runner, point)],
                _codecs(graph, entering, self._report),
                image_formats(frames.frames, jpeg_qualities, frames.source),
                encoders,
                stack.enter_context(OffloadTurns(runtime, threads)),
            )
            if len(groups) == 1:
                self._load(self._parts.groups[0])
            self._stack = stack.pop_all()

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self, rounds: int) -> None:
        """Give every part its turn in so many rounds more.

        Slices that do not fit into memory together take their turns one group after the other.
        """
        parts, several = self._parts, len(self._parts.groups) > 1
        for index, group in enumerate(parts.groups):
            if several:
                self._load(group)
            own: list[Part] = [*group, *(parts.others if index == 0 else ())]
            take_turns(own, self._number, rounds, self._report)
            for each in group if several else ():
                each.unload()
        self._number += rounds

    def forget(self) -> None:
        """Forget what was measured so far: it was warm-up."""
        for part in (*self._parts.slices, *self._parts.others):
            part.forget()

    def profile(self) -> Profile:
        """The medians of what was measured so far."""
        graph, parts = self._graph, self._parts
        # The learned Transfer Layers of a slicing point come after the others.
        measured = [each.profile for each in parts.codecs]
        measured += [each.profile for each in parts.learned]
        transfers = beside_slices(sorted(measured, key=lambda each: each.block), parts.slices)
        profile = Profile(
            name=self._name or platform.node() or "this host",
            model=graph.name,
            runtime=self._runtime,
            host=_host(self._runtime, self._threads),
            inputs=graph.inputs,
            outputs=graph.outputs,
            blocks=_blocks(graph, parts.blocks.latencies, self._leakages),
            transfers=tuple(transfers),
            encoders=tuple(each for turns in parts.encoders for each in turns.profiles),
            codec_inputs=self._inputs,
            slices=tuple(each.profile for each in parts.slices),
            images=tuple(each.profile for each in parts.images),
            preprocess=parts.blocks.preprocess,
            network_latency=parts.blocks.network,
            network_latency_int8=parts.blocks.network_int8,
            offload=parts.offload.profile,
        )
        return self._drops.added_to(profile)

    def _load(self, group: Sequence[Slices]) -> None:
        for each in group:
            each.load()
            self._report()


def _groups(graph: Graph, points: Sequence[SlicingPoint]) -> list[list[SlicingPoint]]:
    """Divide the slicing points so that the slices of a group fit into memory together."""
    weights = sum(block.weight_bytes for block in graph.blocks)
    most = max(_MOST_WEIGHTS // max(weights, 1), 1)
    return [list(points[i : i + most]) for i in range(0, len(points), most)] or [[]]


def _quantized(
    graph: Graph,
    runner: Runner,
    calibration: Sequence[tuple[torch.Tensor, ...]],
    *,
    wanted: bool | None,
) -> Slice | None:
    """The uncut network in int8; None where it is not wanted, or not possible and not demanded."""
    if wanted is False:
        return None
    try:
        check_quantize()
        return runner.int8("the network", graph.module, calibration)
    except (ProfileError, RuntimeUnavailableError):
        if wanted:
            raise
        return None


def _check_request(repetitions: int, warm_up: int) -> None:
    if repetitions < 1 or warm_up < 0:
        raise ProfileError("repetitions must be 1 or more, warm_up 0 or more")


def _check_parts(runtime: str, slices: int | None) -> None:
    if runtime not in RUNTIMES:
        raise ProfileError(f"no runtime {runtime!r}: there are {', '.join(sorted(RUNTIMES))}")
    if slices is not None and slices < 0:
        raise ProfileError("slices must be 0 or more")


def _host(runtime: str, threads: int | None) -> Host:
    package = PACKAGES[runtime]
    return Host(
        machine=platform.machine(),
        cpu=cpu_name(),
        isa=_core.isa(),
        threads=torch.get_num_threads() if threads is None else threads,
        versions={"python": platform.python_version(), package: version(package)},
    )


def _codecs(
    graph: Graph,
    entering: Sequence[Sequence[tuple[torch.Tensor, ...]]],
    report: Callable[[], None],
) -> list[Codec]:
    """Every codec at every slicing point."""
    found: list[Codec] = []
    for point in graph.slicing_points:
        tensors = zip(*(each[point.index + 1] for each in entering), strict=True)
        found += codecs_after(point.index, [[x.numpy() for x in tensor] for tensor in tensors])
        report()
    return found


def _blocks(
    graph: Graph, latencies: Sequence[float], leakages: Sequence[float | None]
) -> tuple[BlockProfile, ...]:
    blocks = []
    for block, latency in zip(graph.blocks, latencies, strict=True):
        last = block.index == len(graph.slicing_points)
        point = None if last else graph.slicing_points[block.index]
        blocks.append(
            BlockProfile(
                name=block.name,
                after=point.after if point else block.name,
                before=point.before if point else "",
                latency=latency,
                crossing=point.crossing if point else (),
                layers=block.layers,
                weight_bytes=block.weight_bytes,
                peak_bytes=block.peak_bytes,
                leakage=None if last else leakages[block.index],
            )
        )
    return tuple(blocks)


def _reporter(progress: Progress | None, steps: int) -> Callable[[], None]:
    if progress is None:
        return lambda: None
    task = progress.add_task("profiling", total=steps, status="")
    return lambda: progress.advance(task)
