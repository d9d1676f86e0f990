"""Times the Offloader itself: its share of a request beside computing, packing and the link."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from scissionlite.bundle import Bundle
from scissionlite.graph.tensors import TensorInfo
from scissionlite.manifest import CrossingTensor, Manifest, SlicingPointInfo
from scissionlite.offloader import Device, EdgeServer
from scissionlite.runtimes.export import export_slices
from scissionlite.scissiontl.profile import OffloadProfile
from scissionlite.transfer_layer import TransferSpec

_PAUSE = 0.02  # seconds between requests, in which both machines wait, as they do on a link
_SHAPES = ((1, 16, 8, 8), (1, 16, 128, 128))  # of a short and of a long request
_COMPUTED = ("device_slice", "encode", "edge_decode", "edge_run")  # parts of a request's timings


def time_offloader(runtime: str, threads: int | None, repetitions: int) -> OffloadProfile:
    """Time the Offloader over loopback, with slices that compute next to nothing.

    Returns
    -------
    OffloadProfile
        Half of what device and edge add to a request together on this host: for a short request,
        and for every further byte.
    """
    seconds, sizes = [], []
    for shape in _SHAPES:
        with tempfile.TemporaryDirectory(prefix="scissionlite-") as scratch:
            bundle = _empty_bundle(Path(scratch), shape, runtime)
            seconds.append(_median_overhead(bundle, shape, threads, repetitions) / 2)
        sizes.append(np.zeros(shape, np.float32).nbytes)
    byte = max(seconds[1] - seconds[0], 0.0) / (sizes[1] - sizes[0])
    return OffloadProfile(request=max(seconds[0] - byte * sizes[0], 0.0), byte=byte)


def _median_overhead(
    bundle: Bundle, shape: tuple[int, ...], threads: int | None, repetitions: int
) -> float:
    """Median seconds of a request that neither slice nor codec accounts for."""
    x = np.zeros(shape, np.float32)
    overheads = []
    with (
        EdgeServer(bundle, "tcp://127.0.0.1:*", threads=threads) as edge,
        Device(bundle, edge.endpoint, control=edge.control_endpoint, threads=threads) as device,
    ):
        device.infer(x)
        for _ in range(repetitions):
            time.sleep(_PAUSE)
            answer = device.submit(x).result()
            overheads.append(answer.latency - sum(answer.timings[each] for each in _COMPUTED))
    return median(overheads)


class _Corner(torch.nn.Module):
    """Answers one value of each channel: an edge slice that costs nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, 0, 0].contiguous()


def _empty_bundle(folder: Path, shape: tuple[int, ...], runtime: str) -> Bundle:
    """A bundle whose slices do next to nothing; a float32 tensor of a shape crosses."""
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
