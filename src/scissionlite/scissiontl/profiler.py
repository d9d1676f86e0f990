"""ScissionTL's benchmark: every block, slice, codec and image format, measured on this host.

:mod:`.timing` times blocks and slices, :mod:`.codecs` what crosses, :mod:`.leakage` has the privacy
figure; docs/profile-format.md describes what comes out.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import Progress

from scissionlite import _core
from scissionlite.bundle import Bundle, CrossingTensor, Manifest, SlicingPointInfo
from scissionlite.errors import ProfileError
from scissionlite.graph.analysis import flat
from scissionlite.graph.graph import Graph
from scissionlite.graph.tensors import TensorInfo
from scissionlite.images import JPEG_QUALITY, Preprocessing
from scissionlite.offloader import Device, EdgeServer
from scissionlite.runtimes import PACKAGES, RUNTIMES, keep_memory
from scissionlite.runtimes.export import export_slices
from scissionlite.scissiontl.codecs import natural_noise, time_codecs, time_images
from scissionlite.scissiontl.leakage import correlation_of_distances, pairwise_distances
from scissionlite.scissiontl.profile import (
    BlockProfile,
    Host,
    ImageProfile,
    OffloadProfile,
    Profile,
    TransferProfile,
    cpu_name,
)
from scissionlite.scissiontl.timing import (
    Runner,
    crossings,
    promising,
    time_blocks,
    time_bottlenecks,
    time_slices,
)
from scissionlite.transfer_layer import TransferSpec

MIN_IMAGES = 16
"""Fewest images on which leakage is measured: with fewer its estimate says little."""

_MOST_IMAGES = 48  # for leakage
_SIZED_IMAGES = 4  # on which bytes behind an entropy stage are measured
_PAUSE = 0.02  # seconds between requests, in which both machines wait, as they do on a link
_OFFLOAD_SHAPES = ((1, 16, 8, 8), (1, 16, 128, 128))


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
    progress: Progress | None = None,
) -> Profile:
    """Measure a network on this host.

    Blocks and slices run as they are deployed: exported for the runtime, loaded, called with
    arrays. The blocks run one after the other, as in an inference, with a time stamp between them,
    in turn with the uncut network, and the medians are kept. At the most promising slicing points
    the actual slices are built and timed. The codecs run on what really crosses.

    Parameters
    ----------
    graph
        The captured network; its example's batch is the batch that is measured.
    name
        What to call this machine; its host name unless given.
    runtime
        What runs blocks and slices: "torchscript", "onnx" or "aotinductor", which compiles each of
        them for some ten seconds or more.
    threads
        Threads of an inference; None leaves the runtime's default.
    images
        Frames, uint8 ``(height, width, channels)``: the codecs are measured on what crosses for
        them, images to the edge on themselves, and with at least 16 of them the leakage at every
        slicing point. Without any, images to the edge are measured on noise with a photograph's
        1/f spectrum (Field, 1987), and the profile says so.
    preprocessing
        How a frame becomes the network's input; ImageNet's unless given.
    jpeg_qualities
        Of JPEG to the edge, each 1 to 95.
    repetitions, warm_up
        How often to measure, and how often to run before.
    slices
        At how many slicing points, at most, slices are built and timed; None is all of them.
    progress
        A rich progress display to report to.

    Raises
    ------
    ProfileError
        If the runtime is unknown or cannot take a block, or the images have another size than the
        network's input.
    """
    if runtime not in RUNTIMES:
        raise ProfileError(f"no runtime {runtime!r}: there are {', '.join(sorted(RUNTIMES))}")
    if repetitions < 1 or warm_up < 0 or (slices is not None and slices < 0):
        raise ProfileError("repetitions must be 1 or more, warm_up and slices 0 or more")
    if threads is not None:
        torch.set_num_threads(threads)
    keep_memory()  # as wherever slices run
    frames, source, preprocessing = _frames(graph, images, preprocessing)
    chosen = promising(graph.slicing_points, slices)
    steps = 2 * len(graph.blocks) + repetitions + warm_up + 2 * len(chosen) + 2
    report = _reporter(progress, steps)
    sized = [_as_input(graph, preprocessing, frame) for frame in images[:_SIZED_IMAGES]]
    crossing = [crossings(graph, inputs) for inputs in sized or [graph.example]]
    with tempfile.TemporaryDirectory(prefix="scissionlite-") as scratch:
        runner = Runner(runtime, threads, Path(scratch))
        latencies, network_latency = time_blocks(
            graph, runner, crossing[0], repetitions, warm_up, report
        )
        measured = time_slices(graph, runner, crossing[0], chosen, repetitions, warm_up, report)
        bottlenecks = time_bottlenecks(graph, runner, chosen, repetitions, report)
    transfers: list[TransferProfile] = []
    for point in graph.slicing_points:
        tensors = zip(*(each[point.index + 1] for each in crossing), strict=True)
        maps = [[x.numpy() for x in tensor] for tensor in tensors]
        transfers += time_codecs(point.index, maps, repetitions)
        transfers += [each for each in bottlenecks if each.block == point.index]
        report()
    sent: list[ImageProfile] = []
    preprocess = 0.0
    if frames and preprocessing is not None:
        sent, preprocess = time_images(frames, preprocessing, jpeg_qualities, source, repetitions)
    report()
    leakages = _leakages(graph, images, preprocessing)
    offload = _time_offloader(runtime, threads, repetitions)
    report()
    return Profile(
        name=name or platform.node() or "this host",
        model=graph.name,
        runtime=runtime,
        host=Host(
            machine=platform.machine(),
            cpu=cpu_name(),
            isa=_core.isa(),
            threads=torch.get_num_threads() if threads is None else threads,
            versions={
                "python": platform.python_version(),
                PACKAGES[runtime]: version(PACKAGES[runtime]),
            },
        ),
        inputs=graph.inputs,
        outputs=graph.outputs,
        blocks=_blocks(graph, latencies, leakages),
        transfers=tuple(transfers),
        slices=tuple(measured),
        images=tuple(sent),
        preprocess=preprocess,
        network_latency=network_latency,
        offload=offload,
    )


def _blocks(
    graph: Graph, latencies: Sequence[float], leakages: Sequence[float | None]
) -> tuple[BlockProfile, ...]:
    told = []
    for block, latency in zip(graph.blocks, latencies, strict=True):
        last = block.index == len(graph.slicing_points)
        point = None if last else graph.slicing_points[block.index]
        told.append(
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
    return tuple(told)


def _frames(
    graph: Graph,
    images: Sequence[npt.NDArray[np.uint8]],
    preprocessing: Preprocessing | None,
) -> tuple[list[npt.NDArray[np.uint8]], str, Preprocessing | None]:
    """Frames to measure images to the edge on, whose they are, and how they become inputs."""
    shape = graph.inputs[0].shape
    if len(graph.inputs) != 1 or len(shape) != 4 or shape[0] != 1 or shape[1] not in (1, 3):
        if len(images):
            shapes = ", ".join(str(tensor.shape) for tensor in graph.inputs)
            raise ProfileError(f"images were given, but the network's input {shapes} is no image")
        return [], "", None
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
        return list(images), f"{len(images)} images", preprocessing
    noise = [natural_noise(height, width, channels, seed) for seed in range(8)]
    return noise, "noise with a 1/f spectrum, no images given", preprocessing


def _as_input(
    graph: Graph, preprocessing: Preprocessing | None, frame: npt.NDArray[np.uint8]
) -> tuple[torch.Tensor, ...]:
    assert preprocessing is not None  # _frames has checked that the input is an image
    return (torch.from_numpy(preprocessing.tensor(frame)),)


def _leakages(
    graph: Graph,
    images: Sequence[npt.NDArray[np.uint8]],
    preprocessing: Preprocessing | None,
) -> list[float | None]:
    """Distance correlation between input and what crosses, at every slicing point."""
    count = len(graph.slicing_points)
    if len(images) < MIN_IMAGES:
        return [None] * count
    entering = [_as_input(graph, preprocessing, frame) for frame in images[:_MOST_IMAGES]]
    inputs = pairwise_distances(np.stack([x[0].numpy() for x in entering]))
    leakages: list[float | None] = []
    with torch.inference_mode():
        # Block by block, so that what crosses at one slicing point is all that is kept.
        for block in graph.block_modules()[:count]:
            entering = [tuple(flat(block(*tensors))) for tensors in entering]
            squares = np.zeros_like(inputs)
            for tensor in zip(*entering, strict=True):
                squares += pairwise_distances(np.stack([x.numpy() for x in tensor])) ** 2
            leakages.append(correlation_of_distances(inputs, np.sqrt(squares)))
    return leakages


class _Corner(torch.nn.Module):
    """Answers one value of each channel: an edge slice that costs nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, 0, 0].contiguous()


def _time_offloader(runtime: str, threads: int | None, repetitions: int) -> OffloadProfile:
    """What the Offloader takes of a request beside all computing, over loopback, for one side.

    Half of what device and edge take together on this host: for a short request, and for every
    further byte.
    """
    seconds, sizes = [], []
    for shape in _OFFLOAD_SHAPES:
        with tempfile.TemporaryDirectory(prefix="scissionlite-") as scratch:
            bundle = _empty_bundle(Path(scratch), shape, runtime)
            x = np.zeros(shape, np.float32)
            rest = []
            with (
                EdgeServer(bundle, "tcp://127.0.0.1:*", threads=threads) as edge,
                Device(
                    bundle, edge.endpoint, control=edge.control_endpoint, threads=threads
                ) as device,
            ):
                device.infer(x)
                for _ in range(repetitions):
                    time.sleep(_PAUSE)
                    answer = device.submit(x).result()
                    computed = ("device_slice", "encode", "edge_decode", "edge_run")
                    rest.append(answer.latency - sum(answer.timings[each] for each in computed))
        seconds.append(median(rest) / 2)
        sizes.append(x.nbytes)
    byte = max(seconds[1] - seconds[0], 0.0) / (sizes[1] - sizes[0])
    return OffloadProfile(request=max(seconds[0] - byte * sizes[0], 0.0), byte=byte)


def _empty_bundle(folder: Path, shape: tuple[int, ...], runtime: str) -> Bundle:
    """A bundle whose slices do next to nothing, with float32 of a shape between them."""
    example = (torch.zeros(shape),)
    slices = export_slices(
        {"device": (torch.nn.ReLU(), example), "edge": (_Corner(), example)}, (runtime,), folder
    )
    spec = TransferSpec.float32_split()
    manifest = Manifest(
        kind="split",
        model="nothing",
        inputs=(TensorInfo("input", shape),),
        outputs=(TensorInfo("output", shape[:2]),),
        slices=slices,
        slicing_point=SlicingPointInfo(0, "0", "1"),
        crossing=(CrossingTensor("x", shape, transfer=spec),),
        transfer=spec,
    )
    files = {file.file: folder / file.file for (file,) in slices.values()}
    return Bundle.write(folder / "bundle", manifest, files)


def _reporter(progress: Progress | None, steps: int) -> Callable[[], None]:
    if progress is None:
        return lambda: None
    task = progress.add_task("profiling", total=steps, status="")
    return lambda: progress.advance(task)
