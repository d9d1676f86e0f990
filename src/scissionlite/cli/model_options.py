"""The options by which several commands name a neural network, its input and its runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scissionlite.graph.tensors import MAX_TENSORS
from scissionlite.images import Preprocessing
from scissionlite.runtimes import RuntimeName

if TYPE_CHECKING:
    from scissionlite.graph.graph import Graph

ModelArgument = Annotated[
    str,
    typer.Argument(
        help="torchvision:NAME, timm:NAME, package.module:factory, or a .pt2 file.",
        show_default=False,
    ),
]
SizeOption = Annotated[int, typer.Option(help="Height and width of the input, in pixels.", min=8)]
WeightsOption = Annotated[
    Path | None, typer.Option(help="File with the network's state dict.", exists=True)
]
ClassesOption = Annotated[
    int | None, typer.Option("--num-classes", help="Number of classes of the network.", min=2)
]
MaxTensorsOption = Annotated[
    int,
    typer.Option(
        help="Most tensors that may cross at a slicing point; networks with skips need more.",
        min=1,
        max=MAX_TENSORS,
    ),
]
ThreadsOption = Annotated[int | None, typer.Option(help="Threads of an inference.", min=1)]
SliceRuntimeOption = Annotated[
    RuntimeName | None,
    typer.Option(
        help="Which of the bundle's runtimes runs the slices.", show_default="the first that can"
    ),
]


def capture_model(
    model: str,
    *,
    size: int,
    num_classes: int | None,
    weights: Path | None,
    max_tensors: int = 1,
) -> Graph:
    """Load and capture a model for RGB images of ``size`` x ``size`` pixels."""
    import torch

    from scissionlite.graph.capture import capture
    from scissionlite.models import load_model

    module = load_model(model, num_classes=num_classes, weights=weights)
    return capture(module, torch.zeros(1, 3, size, size), name=model, max_tensors=max_tensors)


def preprocessing_for(size: int) -> Preprocessing:
    """ImageNet's normalization at a size: the command line's preprocessing."""
    return Preprocessing(size=(size, size))
