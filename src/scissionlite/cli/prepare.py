"""``scissionlite prepare``: insert the Transfer Layer, retrain, split, write a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from scissionlite.cli.output import JsonOption, error_console, milliseconds, print_table
from scissionlite.cli.plan import SlowdownOption
from scissionlite.errors import CodecError
from scissionlite.images import JPEG_QUALITY
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.scissiontl.link import Link
from scissionlite.scissiontl.planner import plan as rank
from scissionlite.scissiontl.plans import Plan
from scissionlite.scissiontl.profile import Profile
from scissionlite.transfer_layer import TransferSpec

if TYPE_CHECKING:
    from scissionlite.graph.graph import Graph
    from scissionlite.preprocessor.choosing import Attempt


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
PoolKindOption = Annotated[
    str | None, typer.Option(help="max, average or learned.", rich_help_panel=_PANEL)
]
ReductionOption = Annotated[
    int | None,
    typer.Option(
        help="With --pool-kind learned: how many times fewer channels, 1 to 16.",
        rich_help_panel=_PANEL,
    ),
]
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
LevelsOption = Annotated[
    int | None,
    typer.Option(
        help="Of int8 and int4: how many codes the range takes; fewer send less with --entropy "
        "zstd.",
        rich_help_panel=_PANEL,
    ),
]
EntropyOption = Annotated[
    str | None, typer.Option(help="Lossless second stage: zstd.", rich_help_panel=_PANEL)
]
EntropyLevelOption = Annotated[
    int | None, typer.Option(help="1 (fastest) to 19.", rich_help_panel=_PANEL)
]


_TRAINING = "Training"

_DEFAULT = Recipe()


def _training(said: str, **options: Any) -> Any:
    return typer.Option(help=said, rich_help_panel=_TRAINING, **options)


class CalibrationChoice(str, Enum):
    """How scales are found."""

    RANGE = "range"
    PERCENTILE = "percentile"
    MSE = "mse"


class ProcessorChoice(str, Enum):
    """Where to train."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


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
    unlabelled: Annotated[
        Path | None,
        typer.Option(
            help="Or photographs without labels, in any folders: the uncut network teaches.",
            exists=True,
            file_okay=False,
        ),
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
    reduction: ReductionOption = None,
    levels: LevelsOption = None,
    accuracy_drop: Annotated[
        float | None,
        typer.Option(
            help="Instead of --at: points of accuracy that may be lost. Prepares the most "
            "promising plans in order of predicted latency, and keeps the first that holds.",
            min=0,
            max=100,
        ),
    ] = None,
    tries: Annotated[int, typer.Option(help="Most plans to train for it.", min=0)] = 5,
    device_profile: Annotated[
        Path | None, typer.Option(help="Instead of --at: profile of the device,")
    ] = None,
    edge_profile: Annotated[
        Path | None,
        typer.Option(
            help="and of the edge: best plan. (With --accuracy-drop this machine is profiled for "
            "both unless they are given.)"
        ),
    ] = None,
    link: LinkOption = PAPER_NETWORK,
    slowdown: SlowdownOption = 1.0,
    runtime: Annotated[
        list[RuntimeChoice],
        typer.Option(
            help="What the slices are written for; may be repeated, best first: devices take what "
            "they can run. aotinductor compiles for processors like this machine's."
        ),
    ] = [RuntimeChoice.TORCHSCRIPT],  # noqa: B006 - typer reads it and never changes it
    epochs: Annotated[int, _training("0 only calibrates.", min=0)] = _DEFAULT.epochs,
    batch_size: Annotated[int, _training("Photographs a step.", min=1)] = _DEFAULT.batch_size,
    learning_rate: Annotated[float, _training("Peak of the schedule.")] = _DEFAULT.learning_rate,
    seed: Annotated[int, _training("Of order, augmentation and split.")] = _DEFAULT.seed,
    distillation: Annotated[
        float, _training("Share of the loss that compares with the uncut network.", min=0, max=1)
    ] = _DEFAULT.distillation,
    calibration: Annotated[
        CalibrationChoice, _training("How scales are found.")
    ] = CalibrationChoice.MSE,
    learn_scales: Annotated[
        bool, _training("Let the scales learn with the weights.")
    ] = _DEFAULT.learn_scales,
    patience: Annotated[
        int | None,
        _training("Stop after so many epochs without a better score on a split.", min=1),
    ] = _DEFAULT.patience,
    train_device_slice: Annotated[
        bool, _training("Let the device slice learn too.")
    ] = _DEFAULT.train_device_slice,
    train_edge_slice: Annotated[
        bool, _training("Let the edge slice learn; without it only what stands between does.")
    ] = _DEFAULT.train_edge_slice,
    processor: Annotated[ProcessorChoice, _training("Where to train.")] = ProcessorChoice.AUTO,
    checkpoint: Annotated[
        Path | None,
        _training(
            "File from which an interrupted training goes on when the command is given again; "
            "one beside --out unless given."
        ),
    ] = None,
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
    from scissionlite.preprocessor.choosing import choose
    from scissionlite.preprocessor.pipeline import prepare as carry_out

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
        "reduction": reduction,
        "levels": levels,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    if accuracy_drop is not None and (at is not None or given or validate is None):
        raise typer.BadParameter(
            "--accuracy-drop chooses slicing point and Transfer Layer itself, and needs --validate"
        )
    if accuracy_drop is not None and checkpoint is not None:
        raise typer.BadParameter("--checkpoint is one training's; --accuracy-drop has several")
    chosen = None
    if accuracy_drop is None:
        chosen = _choose(at, codec, given, device_profile, edge_profile, link, slowdown)
    if num_classes is None and train is not None:
        num_classes = sum(1 for entry in train.iterdir() if entry.is_dir())
    graph = capture_model(
        model, size=size, num_classes=num_classes, weights=weights, max_tensors=max_tensors
    )
    options: dict[str, Any] = {
        "train": train,
        "unlabelled": unlabelled,
        "validate": validate,
        "out": out,
        "preprocessing": preprocessing_for(size),
        "recipe": Recipe(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            distillation=distillation,
            calibration=calibration.value,
            learn_scales=learn_scales,
            patience=patience,
            train_device_slice=train_device_slice,
            train_edge_slice=train_edge_slice,
            processor=processor.value,
        ),
        "runtimes": [choice.value for choice in runtime],
        "local_fallback": local_fallback,
        "max_batch": max_batch,
        "progress": not json,
    }
    try:
        if chosen is not None:
            bundle = carry_out(graph, chosen, checkpoint=checkpoint, **options)
        else:
            assert accuracy_drop is not None
            profiles = _profiles(graph, device_profile, edge_profile, runtime[0].value)
            device = profiles[0].slowed(slowdown)
            plans = rank(device, profiles[1], parse_link(link), learned=True)
            choice = choose(
                graph,
                plans,
                accuracy_drop=accuracy_drop / 100,
                tries=tries,
                on_try=_tell,
                **options,
            )
            bundle = choice.bundle
            if not json:
                _print_attempts(choice.attempts, parse_link(link))
    except KeyboardInterrupt:
        error_console.print("Interrupted: the same command goes on after the last whole epoch.")
        raise
    inspect(bundle.path, json=json)


def _profiles(
    graph: Graph, device: Path | None, edge: Path | None, runtime: str
) -> tuple[Profile, Profile]:
    """The two profiles, or one of this machine for both."""
    from scissionlite.scissiontl.profiler import profile

    if device is not None and edge is not None:
        return Profile.load(device), Profile.load(edge)
    if device is not None or edge is not None:
        raise typer.BadParameter("--device-profile and --edge-profile go together")
    error_console.print("Profiling the network on this machine, which stands for both ...")
    measured = profile(graph, runtime=runtime)
    return measured, measured


def _tell(plan: Plan) -> None:
    error_console.print(
        f"Trying {plan.label} at {plan.place}, predicted {milliseconds(plan.predicted.latency)} ms",
        markup=False,
        highlight=False,
    )


def _print_attempts(attempts: Sequence[Attempt], link: Link) -> None:
    rows = [
        [
            str(number),
            attempt.plan.place,
            attempt.plan.label,
            milliseconds(attempt.plan.predicted.latency),
            f"{attempt.accuracy.sent_bytes / 1e3:.2f}",
            f"{attempt.accuracy.after * 100:.2f}",
            f"{(attempt.accuracy.after - attempt.accuracy.before) * 100:+.2f}",
            f"{attempt.seconds:.0f}",
            "kept" if attempt.held else "",
        ]
        for number, attempt in enumerate(attempts, 1)
    ]
    columns = ["try (#)", "slicing point", "what crosses", "predicted (ms)", "sent (kB)"]
    columns += [f"{attempts[0].accuracy.metric} (%)", "change (points)", "took (s)", ""]
    print_table(f"Tried for {link}", columns, rows)


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
