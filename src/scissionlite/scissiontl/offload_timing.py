"""Times the Offloader itself: its share of a request beside computing, packing and the link."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch

from scissionlite.bundle import Bundle
from scissionlite.graph.tensors import TensorInfo
from scissionlite.manifest import CrossingTensor, Manifest, SlicingPointInfo
from scissionlite.offloader import Device, EdgeServer
from scissionlite.runtimes.export import export_slices
from scissionlite.scissiontl.profile import OffloadProfile
from scissionlite.scissiontl.turns import pause
from scissionlite.transfer_layer import TransferSpec

_SHAPES = ((1, 16, 8, 8), (1, 16, 128, 128))  # of a short and of a long request
_COMPUTED = ("device_slice", "encode", "edge_decode", "edge_run")  # parts of a request's timings


class OffloadTurns:
    """The Offloader over loopback, with slices that compute next to nothing; a context manager.

    Parameters
    ----------
    runtime, threads
        Of the slices.
    """

    def __init__(self, runtime: str, threads: int | None) -> None:
        self._runtime = runtime
        self._threads = threads
        self._stack = ExitStack()
        self._devices: list[Device] = []
        self.forget()

    def __enter__(self) -> OffloadTurns:
        with ExitStack() as stack:
            for shape in _SHAPES:
                scratch = stack.enter_context(TemporaryDirectory(prefix="scissionlite-"))
                bundle = _empty_bundle(Path(scratch), shape, self._runtime)
                edge = stack.enter_context(
                    EdgeServer(bundle, "tcp://127.0.0.1:*", threads=self._threads)
                )
                device = Device(
                    bundle, edge.endpoint, control=edge.control_endpoint, threads=self._threads
                )
                self._devices.append(stack.enter_context(device))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def forget(self) -> None:
        """Forget all samples."""
        self._overheads: tuple[list[float], ...] = tuple([] for _ in _SHAPES)

    def turn(self, number: int) -> None:
        """Send a short and a long request, each after a pause."""
        for shape, device, overheads in zip(_SHAPES, self._devices, self._overheads, strict=True):
            x = np.zeros(shape, np.float32)
            pause()
            answer = device.submit(x).result()
            overheads.append(answer.latency - sum(answer.timings[each] for each in _COMPUTED))

    @property
    def profile(self) -> OffloadProfile:
        """Half of what device and edge add to a request together on this host.

        That is for a short request, and for every further byte.
        """
        seconds = [median(overheads) / 2 for overheads in self._overheads]
        sizes = [4 * math.prod(shape) for shape in _SHAPES]
        byte = max(seconds[1] - seconds[0], 0.0) / (sizes[1] - sizes[0])
        return OffloadProfile(request=max(seconds[0] - byte * sizes[0], 0.0), byte=byte)


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
