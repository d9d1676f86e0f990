"""The options by which several commands name a network and its input."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scissionlite.images import Preprocessing

if TYPE_CHECKING:
    from scissionlite.graph import Graph

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
ThreadsOption = Annotated[int | None, typer.Option(help="Threads of an inference.", min=1)]


def capture_model(model: str, *, size: int, num_classes: int | None, weights: Path | None) -> Graph:
    """Load and capture a model for RGB images of ``size`` x ``size`` pixels."""
    import torch

    from scissionlite.models import load_model
    from scissionlite.tracing import capture

    module = load_model(model, num_classes=num_classes, weights=weights)
    return capture(module, torch.zeros(1, 3, size, size), name=model)


def preprocessing_for(size: int) -> Preprocessing:
    """ImageNet's normalization at a size: the command line's preprocessing."""
    return Preprocessing(size=(size, size))
