"""Splitter: writes the two slices, checked against the network that they came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.data import Dataset

from scissionlite.bundle import Role, SliceFile, file_sha256
from scissionlite.errors import PrepareError
from scissionlite.images import ImageFormat, Preprocessing, image_decode, image_encode
from scissionlite.preprocessor.data import ImageFolder, Sample, as_inputs
from scissionlite.preprocessor.inserter import SlicedNetwork
from scissionlite.runtimes import Slice, load_slice, runtime_module
from scissionlite.transfer_layer import decode, encode
from scissionlite.values import flat

Inference = Callable[..., tuple[npt.NDArray[np.float32], ...]]


def check_runtimes(runtimes: Sequence[str]) -> None:
    """Check that slices can be written for some runtimes, before hours of training.

    Raises
    ------
    PrepareError
        If none are given, or one more than once.
    RuntimeUnavailableError
        If a runtime is unknown, or what it needs is not installed.
    """
    if isinstance(runtimes, str) or not runtimes or len(set(runtimes)) < len(runtimes):
        raise PrepareError(
            f"runtimes= is a sequence of different ones, such as ('torchscript', 'onnx'), not "
            f"{runtimes!r}"
        )
    for runtime in runtimes:
        runtime_module(runtime).check_export()


def export_slices(
    modules: dict[Role, tuple[nn.Module, tuple[torch.Tensor, ...]]],
    runtimes: Sequence[str],
    folder: Path,
    *,
    dynamic_batch: bool = False,
) -> dict[Role, tuple[SliceFile, ...]]:
    """Export modules for some runtimes into a folder; every runtime folds their batch norms.

    Parameters
    ----------
    modules
        Role to the module and an example of its inputs.
    runtimes
        Names of runtimes, in the order of preference.
    folder
        Where to write, each as ``ROLE`` with the runtime's suffix.
    dynamic_batch
        Whether the slices must run on other batch sizes than the example's.

    Raises
    ------
    RuntimeUnavailableError
        If a runtime is unknown, or what it needs is not installed.
    PrepareError
        If a runtime cannot take a module.
    """
    slices: dict[Role, tuple[SliceFile, ...]] = {}
    for role, (module, example) in modules.items():
        files: list[SliceFile] = []
        for runtime in runtimes:
            exporter = runtime_module(runtime)
            path = folder / f"{role}{exporter.SUFFIX}"
            exporter.export(module, example, path, dynamic_batch=dynamic_batch)
            files.append(SliceFile(path.name, runtime, file_sha256(path), path.stat().st_size))
        slices[role] = tuple(files)
    return slices


def load_exported(
    slices: dict[Role, tuple[SliceFile, ...]], role: Role, runtime: str, folder: Path
) -> Slice:
    """Load what :func:`export_slices` has just written."""
    (file,) = (file.file for file in slices[role] if file.runtime == runtime)
    return load_slice(folder / file, runtime)


def joined(
    network: SlicedNetwork,
    slices: dict[Role, tuple[SliceFile, ...]],
    runtime: str,
    folder: Path,
) -> Inference:
    """The exported slices with the real codec between them, in this process, without sockets."""
    device = load_exported(slices, "device", runtime, folder)
    edge = load_exported(slices, "edge", runtime, folder)
    ends = [(layer.device.spec, layer.device.quantization) for layer in network.layers]

    def inference(*inputs: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], ...]:
        packed = (encode(x, *end) for x, end in zip(device(*inputs), ends, strict=True))
        return edge(*(decode(each, layout="nchw") for each in packed))

    return inference


def verify(
    network: nn.Module, exported: Inference, example: tuple[torch.Tensor, ...], runtime: str
) -> None:
    """Check that slices exported for a runtime answer what the trained network answers.

    Raises
    ------
    PrepareError
        If they do not: a runtime that computes something else must not be deployed.
    """
    with torch.inference_mode():
        expected = flat(network(*example))
    answers = exported(*(x.numpy() for x in example))
    # Convolutions sum in another order once batch norms are folded into them; where that moves a
    # value over a rounding border of int8, a code differs by one, hence the tolerance.
    for answer, wanted in zip(answers, expected, strict=True):
        tolerance = 0.05 * float(wanted.abs().max()) + 1e-3
        worst = float(np.abs(answer - wanted.numpy()).max())
        if not worst <= tolerance:
            raise PrepareError(
                f"the {runtime} slices do not answer what the network answers (off by {worst:.3g} "
                f"where {tolerance:.3g} is tolerated): this runtime cannot run this network "
                "faithfully, prepare it without"
            )


def accuracy(inference: Inference, data: Dataset[Sample]) -> tuple[float, int]:
    """Share of right answers of exported slices, one sample at a time, and how many samples."""
    right = total = 0
    for x, label in _samples(data):
        answer = inference(*(part.numpy()[None] for part in as_inputs(x)))[0]
        right += int(answer.argmax()) == int(label)
        total += 1
    return _share(right, total)


def image_accuracy(
    inference: Inference,
    data: ImageFolder,
    preprocessing: Preprocessing,
    image_format: ImageFormat,
    quality: int | None,
) -> tuple[float, int]:
    """Share of right answers on images sent in a format, and how many images."""
    right = 0
    for index, (_, label) in enumerate(data.files):
        sent = image_encode(data.frame(index), image_format, quality)
        frame = image_decode(sent, image_format, preprocessing.frame_shape)
        right += int(inference(preprocessing.tensor(frame))[0].argmax()) == label
    return _share(right, len(data.files))


def _samples(data: Dataset[Sample]) -> list[Sample]:
    indexable = cast("list[Sample]", data)
    return [indexable[i] for i in range(len(indexable))]


def _share(right: int, total: int) -> tuple[float, int]:
    if not total:
        raise PrepareError("the validation data set is empty")
    return right / total, total
