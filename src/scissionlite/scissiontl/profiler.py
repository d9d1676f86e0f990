"""The profiler: every block, slice, codec and image format of a network, measured on this host.

:mod:`.timing` times blocks and slices, :mod:`.codecs` packing, :mod:`.offload_timing` the
Offloader; :mod:`.leakage` has the privacy figure. docs/profile-format.md describes the result.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from rich.progress import Progress

from scissionlite import _core
from scissionlite.errors import ProfileError, RuntimeUnavailableError
from scissionlite.graph.analysis import flat
from scissionlite.graph.graph import Graph
from scissionlite.images import JPEG_QUALITY, Preprocessing
from scissionlite.runtimes import PACKAGES, RUNTIMES, Slice, keep_memory
from scissionlite.runtimes.onnx_int8 import check_quantize
from scissionlite.scissiontl.codecs import natural_noise, time_codecs, time_images
from scissionlite.scissiontl.leakage import correlation_of_distances, pairwise_distances
from scissionlite.scissiontl.offload_timing import time_offloader
from scissionlite.scissiontl.profile import (
    BlockProfile,
    CodecInputs,
    Host,
    ImageProfile,
    Profile,
    TransferProfile,
    cpu_name,
)
from scissionlite.scissiontl.timing import (
    Rounds,
    Runner,
    entering_tensors,
    promising,
    time_blocks,
    time_bottlenecks,
    time_slices,
)

MIN_IMAGES = 16
"""Fewest images with which leakage is measured: with fewer its estimate says little."""

_MOST_IMAGES = 48  # for leakage
_SIZED_IMAGES = 4  # with which bytes behind an entropy stage are measured


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
    They take turns with the uncut network, and medians are kept. At the most promising slicing
    points the slices themselves are built and timed. The codecs run on the tensors that cross.

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
        with them, and from 16 frames on the leakage at every slicing point. Without any, both are
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
        Most slicing points at which slices are built and timed; None for all of them.
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
    _check_request(runtime, repetitions, warm_up, slices)
    if threads is not None:
        torch.set_num_threads(threads)
    keep_memory()  # as wherever slices run
    frames = _frames(graph, images, preprocessing)
    points = promising(graph.slicing_points, slices)
    steps = 2 * len(graph.blocks) + repetitions + warm_up + 2 * len(points) + 2
    rounds = Rounds(repetitions, warm_up, _reporter(progress, steps))
    codec_inputs, sized = _codec_inputs(graph, frames, given=len(images) > 0)
    entering = [entering_tensors(graph, inputs) for inputs in sized]
    with tempfile.TemporaryDirectory(prefix="scissionlite-") as scratch:
        runner = Runner(runtime, threads, Path(scratch))
        quantized = _quantized(graph, runner, sized, wanted=int8)
        block_times, network_time, int8_time = time_blocks(
            graph, runner, entering[0], rounds, quantized
        )
        measured_slices = time_slices(
            graph, runner, entering[0], points, rounds, () if quantized is None else sized
        )
        learned = time_bottlenecks(graph, runner, points, rounds)
    transfers = _time_transfers(graph, entering, learned, rounds)
    sent_images, preprocess = frames.time(jpeg_qualities, repetitions)
    rounds.report()
    leakages = _leakages(graph, frames.inputs(images[:_MOST_IMAGES]))
    offload = time_offloader(runtime, threads, repetitions)
    rounds.report()
    return Profile(
        name=name or platform.node() or "this host",
        model=graph.name,
        runtime=runtime,
        host=_host(runtime, threads),
        inputs=graph.inputs,
        outputs=graph.outputs,
        blocks=_blocks(graph, block_times, leakages),
        transfers=tuple(transfers),
        codec_inputs=codec_inputs,
        slices=tuple(measured_slices),
        images=tuple(sent_images),
        preprocess=preprocess,
        network_latency=network_time,
        network_latency_int8=int8_time,
        offload=offload,
    )


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


def _check_request(runtime: str, repetitions: int, warm_up: int, slices: int | None) -> None:
    if runtime not in RUNTIMES:
        raise ProfileError(f"no runtime {runtime!r}: there are {', '.join(sorted(RUNTIMES))}")
    if repetitions < 1 or warm_up < 0 or (slices is not None and slices < 0):
        raise ProfileError("repetitions must be 1 or more, warm_up and slices 0 or more")


def _host(runtime: str, threads: int | None) -> Host:
    package = PACKAGES[runtime]
    return Host(
        machine=platform.machine(),
        cpu=cpu_name(),
        isa=_core.isa(),
        threads=torch.get_num_threads() if threads is None else threads,
        versions={"python": platform.python_version(), package: version(package)},
    )


def _time_transfers(
    graph: Graph,
    entering: Sequence[Sequence[tuple[torch.Tensor, ...]]],
    learned: Sequence[TransferProfile],
    rounds: Rounds,
) -> list[TransferProfile]:
    """Every codec at every slicing point; the learned Transfer Layers come after the others."""
    transfers: list[TransferProfile] = []
    for point in graph.slicing_points:
        tensors = zip(*(each[point.index + 1] for each in entering), strict=True)
        maps = [[x.numpy() for x in tensor] for tensor in tensors]
        transfers += time_codecs(point.index, maps, rounds.count)
        transfers += [each for each in learned if each.block == point.index]
        rounds.report()
    return transfers


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


class _Frames(msgspec.Struct, frozen=True):
    """The frames with which sending images is measured; none where the input is no image.

    ``source`` says in the profile where they come from.
    """

    frames: Sequence[npt.NDArray[np.uint8]] = ()
    source: str = ""
    preprocessing: Preprocessing | None = None

    def inputs(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[tuple[torch.Tensor, ...]]:
        """The network's inputs for some images."""
        if self.preprocessing is None:
            return []
        return [(torch.from_numpy(self.preprocessing.tensor(image)),) for image in images]

    def time(
        self, jpeg_qualities: Sequence[int], repetitions: int
    ) -> tuple[list[ImageProfile], float]:
        """Every way to send the input as an image, and the seconds of preprocessing."""
        if self.preprocessing is None:
            return [], 0.0
        return time_images(
            self.frames, self.preprocessing, jpeg_qualities, self.source, repetitions
        )


def _frames(
    graph: Graph,
    images: Sequence[npt.NDArray[np.uint8]],
    preprocessing: Preprocessing | None,
) -> _Frames:
    """Check the images; where there are none, make noise that compresses as photographs do."""
    shape = graph.inputs[0].shape
    if len(graph.inputs) != 1 or len(shape) != 4 or shape[0] != 1 or shape[1] not in (1, 3):
        if len(images):
            shapes = ", ".join(str(tensor.shape) for tensor in graph.inputs)
            raise ProfileError(f"images were given, but the network's input {shapes} is no image")
        return _Frames()
    channels, height, width = shape[1:]
    if preprocessing is None:
        preprocessing = (
            Preprocessing(size=(height, width))
            if channels == 3
            else Preprocessing(size=(height, width), mean=(0.5,), std=(0.5,))
        )
    for frame in images:
        if frame.shape != (height, width, channels) or frame.dtype != np.uint8:
            raise ProfileError(
                f"an image is {frame.dtype} of shape {frame.shape}, the network's input needs "
                f"uint8 of shape {(height, width, channels)}"
            )
    if len(images):
        return _Frames(images, f"{len(images)} images", preprocessing)
    noise = [natural_noise(height, width, channels, seed) for seed in range(8)]
    return _Frames(noise, "noise with a 1/f spectrum, no images given", preprocessing)


def _codec_inputs(
    graph: Graph, frames: _Frames, *, given: bool
) -> tuple[CodecInputs, list[tuple[torch.Tensor, ...]]]:
    """Choose the network's inputs with which blocks and codecs are measured, and say which."""
    if inputs := frames.inputs(frames.frames[:_SIZED_IMAGES]):
        return ("images" if given else "noise"), inputs
    if not any(map(_constant, graph.example)):
        return "example", [graph.example]
    # zstd would pack what follows from one value into next to nothing.
    return "noise", [
        tuple(
            _noise(x, 1000 * seed + i) if _constant(x) else x
            for i, x in enumerate(graph.example, len(graph.example))
        )
        for seed in range(_SIZED_IMAGES)
    ]


def _constant(x: torch.Tensor) -> bool:
    return x.is_floating_point() and x.numel() > 1 and bool((x == x.flatten()[0]).all())


def _noise(x: torch.Tensor, seed: int) -> torch.Tensor:
    """Noise of a tensor's shape: planes with a 1/f spectrum, or random numbers without planes."""
    if x.ndim < 3:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)
    height, width = x.shape[-2:]
    planes = [natural_noise(height, width, 1, seed + i) for i in range(x.shape[:-2].numel())]
    return ((torch.from_numpy(np.stack(planes)).to(x.dtype) - 128) / 50).reshape(x.shape)


def _leakages(graph: Graph, inputs: Sequence[tuple[torch.Tensor, ...]]) -> list[float | None]:
    """Distance correlation of the input and what crosses, at every slicing point.

    None everywhere if there are too few inputs.
    """
    count = len(graph.slicing_points)
    if len(inputs) < MIN_IMAGES:
        return [None] * count
    input_distances = pairwise_distances(np.stack([x[0].numpy() for x in inputs]))
    entering = list(inputs)
    leakages: list[float | None] = []
    with torch.inference_mode():
        # Block by block, so that only the tensors of one slicing point are kept.
        for block in graph.block_modules()[:count]:
            entering = [tuple(flat(block(*tensors))) for tensors in entering]
            squares = np.zeros_like(input_distances)
            for tensor in zip(*entering, strict=True):
                squares += pairwise_distances(np.stack([x.numpy() for x in tensor])) ** 2
            leakages.append(correlation_of_distances(input_distances, np.sqrt(squares)))
    return leakages


def _reporter(progress: Progress | None, steps: int) -> Callable[[], None]:
    if progress is None:
        return lambda: None
    task = progress.add_task("profiling", total=steps, status="")
    return lambda: progress.advance(task)
