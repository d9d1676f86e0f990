"""The options of ``scissionlite prepare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from scissionlite.cli.output_paths import output_bundle, output_file
from scissionlite.cli.plan_choice import Codec, encoder_source, variant_name
from scissionlite.cli.struct_options import Changes, FieldOptions
from scissionlite.manifest import MAX_BATCH, Precision
from scissionlite.preprocessor.classes import MetricName
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.runtimes import RuntimeName
from scissionlite.scissiontl.constraints import Constraints
from scissionlite.transfer_layer import TransferSpec


def _runtime(text: str) -> str:
    if text not in get_args(RuntimeName):
        raise typer.BadParameter(f"{text!r} is none of {', '.join(get_args(RuntimeName))}")
    return text


def _photographs(text: str) -> Any:
    return typer.Option(help=text, exists=True, file_okay=False)


_TRAINING = "Training"
DEFAULT_RECIPE = Recipe()
NO_CHANGES = Changes[TransferSpec]()
NO_CONSTRAINTS = Constraints()

OutOption = Annotated[Path, output_bundle("Folder of the bundle to write.")]
TrainOption = Annotated[Path | None, _photographs("Training photographs: TRAIN/CLASS/*.jpg.")]
UnlabelledOption = Annotated[
    Path | None,
    _photographs(
        "Instead of --train: photographs without labels, in any folders. The uncut network is the "
        "teacher."
    ),
]
ValidateOption = Annotated[Path | None, _photographs("Photographs to measure accuracy on.")]
MetricOption = Annotated[
    MetricName,
    typer.Option(
        help="How the network is scored. balanced-accuracy and macro-f1 weigh every class alike. "
        "With miou it is a segmentation network, and the folders of --train and --validate hold "
        "images/NAME.jpg and masks/NAME.png."
    ),
]
ClassesFileOption = Annotated[
    Path | None,
    typer.Option(
        "--classes",
        help="File with the names of the classes, one in each line, in the order of the network's "
        "outputs. By default they are the names of the class folders, sorted as text.",
        exists=True,
        dir_okay=False,
    ),
]
AtOption = Annotated[
    str | None, typer.Option(help="Slicing point, by the name that `plan` prints.")
]
CodecOption = Annotated[
    Codec,
    typer.Option(
        help="What crosses. With --at a Transfer Layer: int8 (2x2 pooling and int8; without "
        "pooling: --pool 1), paper (2x2 pooling, float32) or float32 (all of it, without loss). "
        "Else an image (jpeg, png, uint8), or nothing (local)."
    ),
]
TransferOptions = Annotated[
    Changes[TransferSpec],
    FieldOptions(
        "Transfer Layer, with --at or --encoder: changes to what --codec is", without=("encoder",)
    ),
]
EncoderOption = Annotated[
    str | None,
    typer.Option(
        parser=encoder_source,
        metavar="<tiny|small|base|bundle>",
        help="Instead of --at: the device runs none of the network, but a shallow encoder of this "
        "size, from the image to coefficients. Or a bundle's encoder, kept as it is: then only "
        "what the edge runs is trained.",
        show_default=False,
    ),
]
VariantOption = Annotated[
    # typer takes no list of structs.
    list[str],
    typer.Option(
        parser=variant_name,
        metavar="<Transfer Layer[@slicing point]>",
        help="A further variant for the device to change to, such as pool4-int8, int8-zstd, "
        "float16 or pool4-int4@layer2; may be repeated. It cuts where --at does or later.",
        show_default=False,
    ),
]
ThenOption = Annotated[
    str | None,
    typer.Option(
        parser=variant_name,
        metavar="<Transfer Layer@slicing point>",
        help="With --at: cut a second time there, between the edge and a next edge, as "
        "pool1-int8@layer3 (`serve --next`).",
        show_default="none",
    ),
]
AccuracyDropOption = Annotated[
    float | None,
    typer.Option(
        help="Instead of --at: points of accuracy that may be lost. Prepares the most promising "
        "plans in order of predicted latency, and keeps the first that holds.",
        min=0,
        max=100,
    ),
]
TriesOption = Annotated[int, typer.Option(help="Most plans to train for --accuracy-drop.", min=0)]
DeviceProfileOption = Annotated[
    Path | None,
    typer.Option(help="Instead of --at, with --edge-profile: the best plan for this device."),
]
EdgeProfileOption = Annotated[
    Path | None,
    typer.Option(
        help="Profile of the edge machine, with --device-profile. With --accuracy-drop and neither "
        "of them, this machine is profiled for both."
    ),
]
CloudProfileOption = Annotated[
    Path | None,
    typer.Option(
        help="Profile of the edge's next edge, with the other two: plans with three tiers, too."
    ),
]
LearnedOption = Annotated[
    bool,
    typer.Option(
        "--learned",
        help="With the profiles: the best plan may have a learned Transfer Layer or a shallow "
        "encoder, which is then trained.",
    ),
]
RuntimeOption = Annotated[
    # typer takes no list of literals.
    list[str],
    typer.Option(
        parser=_runtime,
        metavar=f"<{'|'.join(get_args(RuntimeName))}>",
        help="What the slices are written for; may be repeated, best first: devices take the first "
        "that they can run. aotinductor compiles for processors like this machine's.",
    ),
]
DevicePrecisionOption = Annotated[
    Precision | None,
    typer.Option(
        help="Numbers in which the device computes. In int8 its slices and the local fallback are "
        "quantized with the training photographs, ONNX Runtime runs them, and the edge slice "
        "learns to work with them.",
        show_default="the plan's; float32 with --at",
    ),
]
RecipeOptions = Annotated[Recipe, FieldOptions(_TRAINING)]
CheckpointOption = Annotated[
    Path | None,
    output_file(
        "File from which an interrupted training goes on when the command is given again.",
        show_default="beside --out",
        rich_help_panel=_TRAINING,
    ),
]
MaxBatchOption = Annotated[
    int, typer.Option(help="Most inputs that one request may hold.", min=1, max=MAX_BATCH)
]
LocalFallbackOption = Annotated[bool, typer.Option(help="Put the uncut network in the bundle too.")]
ConstraintsOptions = Annotated[
    Constraints,
    FieldOptions(
        "Constraints of the plans to choose among, as those of `plan`",
        several="Constraints: places and machines (each may be given several times)",
        # The first is an option of its own here, the second what is to be found out.
        without=("device_precision", "min_accuracy"),
    ),
]
