"""``scissionlite prepare``: insert the Transfer Layer, retrain, split, write a bundle."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from scissionlite.bundle import MAX_BATCH
from scissionlite.cli.inspect import inspect
from scissionlite.cli.network import (
    PAPER_NETWORK,
    ClassesOption,
    LinkOption,
    MaxTensorsOption,
    ModelArgument,
    SizeOption,
    WeightsOption,
    capture_model,
    parse_link,
    preprocessing_for,
)
from scissionlite.cli.output import JsonOption
from scissionlite.cli.plan import SlowdownOption
from scissionlite.errors import CodecError
from scissionlite.scissiontl.planner import JPEG_QUALITY, Plan
from scissionlite.scissiontl.planner import plan as rank
from scissionlite.scissiontl.profile import Profile
from scissionlite.transfer_layer import TransferSpec


class Codec(str, Enum):
    """What crosses the link."""

    INT8 = "int8"
    PAPER = "paper"
    FLOAT32 = "float32"
    JPEG = "jpeg"
    PNG = "png"
    UINT8 = "uint8"
    LOCAL = "local"


_SPECS = {
    Codec.INT8: TransferSpec(),
    Codec.PAPER: TransferSpec.paper(),
    Codec.FLOAT32: TransferSpec.float32_split(),
}


_PANEL = "Transfer Layer, with --at: changes to what --codec is"

PoolOption = Annotated[
    int | None, typer.Option(help="Window and stride: 1 (none), 2 or 4.", rich_help_panel=_PANEL)
]
PoolKindOption = Annotated[str | None, typer.Option(help="max or average.", rich_help_panel=_PANEL)]
DtypeOption = Annotated[
    str | None, typer.Option(help="float32, float16, int8 or int4.", rich_help_panel=_PANEL)
]
GranularityOption = Annotated[
    str | None,
    typer.Option(help="One scale for the tensor or for each channel.", rich_help_panel=_PANEL),
]
SchemeOption = Annotated[
    str | None, typer.Option(help="affine or symmetric.", rich_help_panel=_PANEL)
]
UpsampleOption = Annotated[
    str | None, typer.Option(help="nearest or bilinear.", rich_help_panel=_PANEL)
]
LayoutOption = Annotated[
    str | None, typer.Option(help="Of the payload: nchw or nhwc.", rich_help_panel=_PANEL)
]
EntropyOption = Annotated[
    str | None, typer.Option(help="Lossless second stage: zstd.", rich_help_panel=_PANEL)
]
EntropyLevelOption = Annotated[
    int | None, typer.Option(help="1 (fastest) to 19.", rich_help_panel=_PANEL)
]


class RuntimeChoice(str, Enum):  # typer takes no list of literals
    """What the slices are written for."""

    TORCHSCRIPT = "torchscript"
    ONNX = "onnx"
    AOTINDUCTOR = "aotinductor"


def prepare(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="Folder of the bundle to write.")],
    size: SizeOption = 224,
    num_classes: ClassesOption = None,
    weights: WeightsOption = None,
    train: Annotated[
        Path | None,
        typer.Option(help="Training photographs: TRAIN/CLASS/*.jpg.", exists=True, file_okay=False),
    ] = None,
    validate: Annotated[
        Path | None,
        typer.Option(help="Photographs to measure accuracy on.", exists=True, file_okay=False),
    ] = None,
    at: Annotated[
        str | None, typer.Option(help="Slicing point, by the name that `plan` prints.")
    ] = None,
    codec: Annotated[Codec, typer.Option(help="What crosses, with --at; an image; or local.")] = (
        Codec.INT8
    ),
    pool: PoolOption = None,
    pool_kind: PoolKindOption = None,
    dtype: DtypeOption = None,
    granularity: GranularityOption = None,
    scheme: SchemeOption = None,
    upsample: UpsampleOption = None,
    layout: LayoutOption = None,
    entropy: EntropyOption = None,
    entropy_level: EntropyLevelOption = None,
    device_profile: Annotated[
        Path | None, typer.Option(help="Instead of --at: profile of the device,")
    ] = None,
    edge_profile: Annotated[Path | None, typer.Option(help="and of the edge: best plan.")] = None,
    link: LinkOption = PAPER_NETWORK,
    slowdown: SlowdownOption = 1.0,
    runtime: Annotated[
        list[RuntimeChoice],
        typer.Option(
            help="What the slices are written for; may be repeated, best first: devices take what "
            "they can run. aotinductor compiles for processors like this machine's."
        ),
    ] = [RuntimeChoice.TORCHSCRIPT],  # noqa: B006 - typer reads it and never changes it
    epochs: Annotated[int, typer.Option(help="Of retraining; 0 only calibrates.", min=0)] = 3,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    learning_rate: Annotated[float, typer.Option(help="Peak of the schedule.")] = 5e-4,
    seed: Annotated[int, typer.Option()] = 0,
    train_device_slice: Annotated[
        bool, typer.Option("--train-device-slice", help="Let the device slice learn too.")
    ] = False,
    max_tensors: MaxTensorsOption = 1,
    max_batch: Annotated[
        int, typer.Option(help="Most inputs that one request may hold.", min=1, max=MAX_BATCH)
    ] = 1,
    local_fallback: Annotated[
        bool, typer.Option(help="Put the uncut network in the bundle too.")
    ] = True,
    json: JsonOption = False,
) -> None:
    """Prepare a bundle for a plan: the slices, retrained with the Transfer Layer in between."""
    from scissionlite.preprocessor import prepare as carry_out

    changes = {
        "pool": pool,
        "pool_kind": pool_kind,
        "dtype": dtype,
        "granularity": granularity,
        "scheme": scheme,
        "upsample": upsample,
        "layout": layout,
        "entropy": entropy,
        "entropy_level": entropy_level,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    chosen = _choose(at, codec, given, device_profile, edge_profile, link, slowdown)
    if num_classes is None and train is not None:
        num_classes = sum(1 for entry in train.iterdir() if entry.is_dir())
    graph = capture_model(
        model, size=size, num_classes=num_classes, weights=weights, max_tensors=max_tensors
    )
    bundle = carry_out(
        graph,
        chosen,
        train=train,
        validate=validate,
        out=out,
        preprocessing=preprocessing_for(size),
        runtimes=[choice.value for choice in runtime],
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        train_device_slice=train_device_slice,
        local_fallback=local_fallback,
        max_batch=max_batch,
        progress=not json,
    )
    inspect(bundle.path, json=json)


def _choose(
    at: str | None,
    codec: Codec,
    changes: dict[str, str | int],
    device_profile: Path | None,
    edge_profile: Path | None,
    link: str,
    slowdown: float,
) -> Plan:
    if changes and (at is None or codec not in _SPECS):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in changes)
        raise typer.BadParameter(f"{options}: only with --at and a codec that has a Transfer Layer")
    if device_profile is not None and edge_profile is not None and at is None:
        device = Profile.load(device_profile).slowed(slowdown)
        return rank(device, Profile.load(edge_profile), parse_link(link))[0]
    if device_profile is not None or edge_profile is not None:
        raise typer.BadParameter("--device-profile and --edge-profile go together, without --at")
    if codec is Codec.JPEG:
        return Plan(kind="image", image_format="jpeg", jpeg_quality=JPEG_QUALITY)
    if codec in (Codec.PNG, Codec.UINT8):
        return Plan(kind="image", image_format=codec.value)
    if codec is Codec.LOCAL:
        return Plan(kind="local")
    if at is None:
        raise typer.BadParameter("say where to cut with --at, or give both profiles")
    try:
        spec = msgspec.structs.replace(_SPECS[codec], **changes)
    except CodecError as error:
        raise typer.BadParameter(str(error)) from error
    return Plan(kind="split", slicing_point=at, spec=spec)
