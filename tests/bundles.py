"""Bundles of toy networks, which tests and benchmarks write."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from torch import nn

from scissionlite.bundle import Bundle
from scissionlite.graph.tensors import TensorInfo
from scissionlite.images import ImageFormat, Preprocessing
from scissionlite.manifest import CrossingTensor, Kind, Manifest, Role, SlicingPointInfo
from scissionlite.runtimes import RuntimeName
from scissionlite.runtimes.export import export_slices
from scissionlite.transfer_layer import (
    EntropyTables,
    Quantization,
    TransferSpec,
    encode,
    fit_tables,
)


class Toy(NamedTuple):
    """A network of two blocks, and the shapes of its input, of what crosses, and of its output."""

    model: str
    device: nn.Module
    edge: nn.Module
    input: tuple[int, ...]
    crossing: tuple[int, ...]
    output: tuple[int, ...]


def tables_for(
    toy: Toy, spec: TransferSpec, quantization: Quantization | None
) -> EntropyTables | None:
    """Entropy tables for what a toy makes of noise, where the spec needs tables."""
    if spec.entropy != "ans":
        return None
    plain = msgspec.structs.replace(spec, entropy=None)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        maps = [toy.device(2 * torch.randn(toy.input, generator=generator)) for _ in range(4)]
    return fit_tables(encode(x.numpy(), plain, quantization) for x in maps)


def write_bundle(
    toy: Toy,
    folder: Path,
    kind: Kind = "split",
    *,
    transfer: TransferSpec,
    quantization: Quantization | None,
    max_batch: int = 1,
    image_format: ImageFormat | None = None,
    preprocessing: Preprocessing | None = None,
    classes: tuple[str, ...] = (),
    runtime: RuntimeName = "torchscript",
    dynamic_batch: bool | None = None,
) -> Bundle:
    """Write a bundle of a toy, with slices for one runtime, into ``folder / "bundle"``.

    It holds the whole network and, of the kind "split", the two slices. They take the batches that
    the manifest promises, unless ``dynamic_batch`` says otherwise.
    """
    split = kind == "split"
    whole = nn.Sequential(toy.device, toy.edge).eval()
    example = (torch.zeros(toy.input),)
    modules: dict[Role, tuple[nn.Module, tuple[torch.Tensor, ...]]] = {"network": (whole, example)}
    if split:
        modules |= {
            "device": (toy.device, example),
            "edge": (toy.edge, (torch.zeros(toy.crossing),)),
        }
    dynamic = max_batch > 1 if dynamic_batch is None else dynamic_batch
    slices = export_slices(modules, (runtime,), folder, dynamic_batch=dynamic)
    crossing = CrossingTensor(
        "x",
        toy.crossing,
        transfer=transfer,
        quantization=quantization,
        tables=tables_for(toy, transfer, quantization) if split else None,
    )
    manifest = Manifest(
        kind=kind,
        model=toy.model,
        inputs=(TensorInfo("input", toy.input),),
        outputs=(TensorInfo("output", toy.output),),
        max_batch=max_batch,
        slices=slices,
        slicing_point=SlicingPointInfo(0, "0", "1") if split else None,
        crossing=(crossing,) if split else (),
        transfer=transfer if split else None,
        image_format=image_format if kind == "image" else None,
        jpeg_quality=90 if image_format == "jpeg" else None,
        preprocessing=preprocessing,
        classes=classes,
    )
    files = {file.file: folder / file.file for (file,) in slices.values()}
    return Bundle.write(folder / "bundle", manifest, files)
