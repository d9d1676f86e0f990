"""ScissionTL's benchmark: every block, codec and image step, measured on this host."""

from __future__ import annotations

import itertools
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import Progress

from scissionlite import _core
from scissionlite.errors import ProfileError
from scissionlite.graph import Graph
from scissionlite.images import Preprocessing, jpeg_decode, jpeg_encode
from scissionlite.runtimes import keep_memory, torchscript
from scissionlite.scissiontl.planner import JPEG_QUALITY
from scissionlite.scissiontl.profile import (
    BlockProfile,
    Host,
    ImageProfile,
    Profile,
    TensorProfile,
    TransferProfile,
)
from scissionlite.transfer_layer import Quantization, TransferSpec, decode, encode

CODECS = (TransferSpec.float32_split(), TransferSpec.paper(), TransferSpec())
"""What may stand at a slicing point: Scission's float32, the paper's TL, and ours."""


def profile(
    graph: Graph,
    *,
    name: str | None = None,
    runtime: str = "torchscript",
    threads: int | None = None,
    images: Sequence[npt.NDArray[np.uint8]] = (),
    jpeg_quality: int = JPEG_QUALITY,
    repetitions: int = 20,
    warm_up: int = 3,
    progress: Progress | None = None,
) -> Profile:
    """Measure a network on this host.

    The blocks run one after the other, as in an inference, with a time stamp between them; this
    is repeated, in turn with the uncut network, and the medians are kept. The codecs run on what
    really crosses for the example input.

    Parameters
    ----------
    graph
        The captured network; its example's batch is the batch that is measured.
    name
        What to call this machine; its host name unless given.
    runtime
        What runs the blocks. This version measures "torchscript".
    threads
        Threads of an inference; None leaves torch's own default.
    images
        Frames, uint8 ``(height, width, channels)``, on which JPEG to the edge is measured. Without
        any, it is measured on noise with a photograph's 1/f spectrum (Field, 1987), and the profile
        says so.
    jpeg_quality
        Of JPEG to the edge, 1 to 95.
    repetitions, warm_up
        How often to measure, and how often to run before.
    progress
        A rich progress display to report to.

    Raises
    ------
    ProfileError
        If the runtime is not one that can be profiled, or the images have another size than the
        network's input.
    """
    if runtime != "torchscript":
        raise ProfileError(f"this version profiles the torchscript runtime, not {runtime!r}")
    if repetitions < 1 or warm_up < 0:
        raise ProfileError("repetitions must be 1 or more, warm_up 0 or more")
    if threads is not None:
        torch.set_num_threads(threads)
    keep_memory()  # as wherever slices run
    report = _reporter(progress, repetitions + warm_up + len(graph.slicing_points))
    latencies, network_latency, crossing = _time_blocks(graph, repetitions, warm_up, report)
    borders = [
        *((p.name, p.after, p.before, p.shape, p.nbytes) for p in graph.slicing_points),
        (graph.blocks[-1].name, graph.blocks[-1].name, "", graph.output_shape, 0),
    ]
    transfers: list[TransferProfile] = []
    for index, tensor in enumerate(crossing):
        transfers += _time_codecs(index, tensor, repetitions)
        report()
    image, preprocess = _time_image(graph, images, jpeg_quality, repetitions)
    return Profile(
        name=name or platform.node() or "this host",
        model=graph.name,
        runtime=runtime,
        host=Host(
            machine=platform.machine(),
            cpu=cpu_name(),
            isa=_core.isa(),
            threads=torch.get_num_threads(),
            versions={"python": platform.python_version(), "torch": str(torch.__version__)},
        ),
        inputs=(TensorProfile("input", tuple(graph.example.shape)),),
        outputs=(TensorProfile("output", graph.output_shape),),
        blocks=tuple(
            BlockProfile(
                name=block_name,
                after=after,
                before=before,
                latency=latency,
                crossing=(TensorProfile(after, shape),) if nbytes else (),
            )
            for (block_name, after, before, shape, nbytes), latency in zip(
                borders, latencies, strict=True
            )
        ),
        transfers=tuple(transfers),
        images=() if image is None else (image,),
        preprocess=preprocess,
        network_latency=network_latency,
    )


def cpu_name() -> str:
    """The processor's name, as /proc/cpuinfo tells it, or the machine's architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware"):
            return value.strip()
    return platform.machine()


def _time_blocks(
    graph: Graph, repetitions: int, warm_up: int, report: Callable[[], None]
) -> tuple[list[float], float, list[npt.NDArray[np.float32]]]:
    example = graph.example
    network = torchscript.compile_module(graph.module, example)
    blocks = []
    crossing = []
    x = example
    for module in graph.block_modules():
        blocks.append(torchscript.compile_module(module, x))
        with torch.inference_mode():
            x = module(x)
        crossing.append(x.contiguous().numpy())
    times: list[list[float]] = []
    totals: list[float] = []
    with torch.inference_mode():
        for _ in range(warm_up + repetitions):
            started = time.perf_counter()
            network(example)
            totals.append(time.perf_counter() - started)
            x = example
            stamps = [time.perf_counter()]
            for block in blocks:
                x = block(x)
                stamps.append(time.perf_counter())
            times.append([b - a for a, b in itertools.pairwise(stamps)])
            report()
    measured = zip(*times[warm_up:], strict=True)
    return [median(t) for t in measured], median(totals[warm_up:]), crossing[:-1]


def _time_codecs(
    index: int, tensor: npt.NDArray[np.float32], repetitions: int
) -> list[TransferProfile]:
    results = []
    for spec in CODECS:
        if not spec.valid_for(tensor.shape):
            continue
        quantization = None
        if spec.quantized:  # deployed, the scale is calibrated beforehand: not measured
            quantization = Quantization.from_range(float(tensor.min()), float(tensor.max()))
        packed = encode(tensor, spec, quantization)
        results.append(
            TransferProfile(
                block=index,
                spec=spec,
                encode=_median_time(partial(encode, tensor, spec, quantization), repetitions),
                decode=_median_time(partial(decode, packed), repetitions),
                nbytes=packed.nbytes,
            )
        )
    return results


def _time_image(
    graph: Graph, images: Sequence[npt.NDArray[np.uint8]], quality: int, repetitions: int
) -> tuple[ImageProfile | None, float]:
    shape = tuple(graph.example.shape)
    if len(shape) != 4 or shape[0] != 1 or shape[1] not in (1, 3):
        if images:
            raise ProfileError(f"images were given, but the network's input {shape} is no image")
        return None, 0.0
    channels, height, width = shape[1:]
    source = f"{len(images)} images" if images else "noise with a 1/f spectrum, no images given"
    frames = list(images) or [_natural_noise(height, width, channels, seed) for seed in range(8)]
    for frame in frames:
        if frame.shape != (height, width, channels) or frame.dtype != np.uint8:
            raise ProfileError(
                f"an image is {frame.dtype} of shape {frame.shape}, the network's input needs "
                f"uint8 of shape {(height, width, channels)}"
            )
    encoded = [jpeg_encode(frame, quality) for frame in frames]
    cases = list(zip(frames, encoded, strict=True))
    per_channel = (0.5,) * channels
    preprocessing = Preprocessing(size=(height, width), mean=per_channel, std=per_channel)
    return (
        ImageProfile(
            quality=quality,
            encode=median(
                _median_time(partial(jpeg_encode, frame, quality), repetitions)
                for frame, _ in cases
            ),
            decode=median(
                _median_time(partial(jpeg_decode, data, (height, width, channels)), repetitions)
                for _, data in cases
            ),
            nbytes=round(sum(map(len, encoded)) / len(encoded)),
            source=source,
        ),
        _median_time(partial(preprocessing.tensor, frames[0]), repetitions),
    )


def _natural_noise(height: int, width: int, channels: int, seed: int) -> npt.NDArray[np.uint8]:
    """A frame whose amplitude spectrum falls as 1/f, as photographs' do (Field, 1987)."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    frequency[0, 0] = 1.0
    spectrum = np.fft.fft2(rng.standard_normal((height, width))) / frequency
    image = np.fft.ifft2(spectrum).real
    image = np.clip(128 + 50 * (image - image.mean()) / image.std(), 0, 255).astype(np.uint8)
    return np.repeat(image[:, :, None], channels, axis=2)


def _median_time(action: Callable[[], object], repetitions: int) -> float:
    action()
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return median(times)


def _reporter(progress: Progress | None, steps: int) -> Callable[[], None]:
    if progress is None:
        return lambda: None
    task = progress.add_task("profiling", total=steps, status="")
    return lambda: progress.advance(task)
