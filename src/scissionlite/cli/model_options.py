"""The options by which several commands name a neural network, its input and its runtime."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec
import typer

from scissionlite.cli.output import error_console
from scissionlite.cli.usage import usage_errors
from scissionlite.graph.tensors import MAX_TENSORS
from scissionlite.images import Preprocessing
from scissionlite.runtimes import RuntimeName

if TYPE_CHECKING:
    from torch import nn

    from scissionlite.graph.graph import Graph

DEFAULT_SIZE = 224
"""Height and width of the input of a network that does not state them."""

ModelArgument = Annotated[
    str,
    typer.Argument(
        help="torchvision:NAME, timm:NAME, package.module:factory, or a .pt2 file.",
        show_default=False,
    ),
]
SizeOption = Annotated[
    int | None,
    typer.Option(
        help="Height and width of the input, in pixels; whole images are resized to it.",
        min=8,
        max=4096,
        show_default="size and crop that timm or torchvision state for the network, else 224",
    ),
]
ResizeOption = Annotated[
    int | None,
    typer.Option(
        help="Shorter side of an image before a central crop to the size.", min=8, max=8192
    ),
]
_NUMBERS = "X[,Y,Z]"
MeanOption = Annotated[
    str | None,
    typer.Option(
        metavar=_NUMBERS,
        help="Mean of pixels (0 to 1) by which images are normalized, for red, green and blue; "
        "one number makes images grayscale.",
        show_default="the one of timm or torchvision for the network, else ImageNet's",
    ),
]
StdOption = Annotated[
    str | None,
    typer.Option(metavar=_NUMBERS, help="Standard deviation, as --mean.", show_default="as --mean"),
]
BitsOption = Annotated[
    int | None,
    typer.Option(
        help="How many bits of 16-bit gray images the camera uses, from the lowest on.",
        min=8,
        max=16,
        show_default="16",
    ),
]
WeightsOption = Annotated[
    Path | None, typer.Option(help="File with the network's state dict.", exists=True)
]
ClassesOption = Annotated[
    int | None,
    typer.Option("--num-classes", help="Number of classes of the network.", min=2, max=1 << 20),
]
MaxTensorsOption = Annotated[
    int,
    typer.Option(
        help="Most tensors that may cross at a slicing point; networks with skips need more.",
        min=1,
        max=MAX_TENSORS,
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option(help="Threads of an inference.", min=1, max=1024)
]
SliceRuntimeOption = Annotated[
    RuntimeName | None,
    typer.Option(
        help="Which of the bundle's runtimes runs the slices.", show_default="the first that can"
    ),
]


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The options that name a network, its weights and how images become its input."""

    model: str
    num_classes: int | None = None
    weights: Path | None = None
    size: int | None = None
    resize: int | None = None
    mean: str | None = None
    std: str | None = None
    bits: int | None = None

    def load(self) -> tuple[nn.Module, InputSettings]:
        """Load the network, and find how images become its input.

        Raises
        ------
        typer.BadParameter
            If the options do not go together.
        ModelError
            As :func:`.load_model`.
        """
        from scissionlite.models import load_model, preprocessing_of

        given = {
            "mean": _numbers("--mean", self.mean),
            "std": _numbers("--std", self.std),
            "resize": self.resize,
            "bits": self.bits,
        }
        network = load_model(self.model, num_classes=self.num_classes, weights=self.weights)
        known = preprocessing_of(network, self.model)
        own = known or Preprocessing(size=(DEFAULT_SIZE, DEFAULT_SIZE))
        if self.size is not None:
            # How the makers crop is of their size.
            own = Preprocessing(size=(self.size, self.size), mean=own.mean, std=own.std)
        changes = {name: value for name, value in given.items() if value is not None}
        with usage_errors():
            preprocessing = msgspec.structs.replace(own, **changes)
        normalized = self.mean is not None and self.std is not None
        return network, InputSettings(preprocessing, known is not None or normalized)

    def capture(
        self, max_tensors: int = 1, *, progress: bool = False
    ) -> tuple[Graph, InputSettings]:
        """Load and capture the network, for one image; with a line of progress if asked.

        Raises
        ------
        typer.BadParameter, ModelError
            As :meth:`load`.
        CaptureError
            As :func:`.capture`.
        """
        import torch

        from scissionlite.graph.capture import capture
        from scissionlite.progress import progress_bar

        network, settings = self.load()
        height, width, channels = settings.preprocessing.frame_shape
        example = torch.zeros(1, channels, height, width)
        with progress_bar(progress) as bar:
            shown = bar.add_task(f"capturing {self.model}", total=None, status="")
            graph = capture(
                network,
                example,
                name=self.model,
                max_tensors=max_tensors,
                on_step=lambda step: bar.update(shown, status=step),
            )
        return graph, settings


class InputSettings(NamedTuple):
    """How images become a network's input.

    ``known`` is False where nobody has said how the network's images are normalized.
    """

    preprocessing: Preprocessing
    known: bool

    def print(self) -> None:
        """Say on the error stream how images are read."""
        used = self.preprocessing
        height, width = used.size
        text = f"Images: {used.interpolation} to "
        text += "" if used.resize is None else f"a shorter side of {used.resize}, then a crop of "
        text += f"{height}x{width}, mean {_joined(used.mean)}, std {_joined(used.std)}"
        if not self.known:
            text += (
                ". The network does not say how it was trained, so mean and std are ImageNet's: "
                "others are given by --mean and --std"
            )
        error_console.print(text + ".", markup=False, highlight=False)


def _joined(figures: Sequence[float]) -> str:
    return ",".join(f"{each:.4g}" for each in figures)


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """Read numbers with commas between them."""
    if text is None:
        return None
    try:
        numbers = tuple(float(each) for each in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        raise typer.BadParameter(
            f"{option} takes one or three numbers such as 0.5,0.5,0.5, got {text!r}"
        )
    return numbers
