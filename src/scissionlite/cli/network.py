"""The options by which several commands name a neural network, its input, or a link."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scissionlite.errors import PlanError
from scissionlite.images import Preprocessing
from scissionlite.scissiontl.link import PRESETS, Link, Links, read_links

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
        max=16,
    ),
]
ThreadsOption = Annotated[int | None, typer.Option(help="Threads of an inference.", min=1)]

PAPER_NETWORK = "58.8Mbit/27.4ms"
"""The network of the paper's measurements (ScissionTL's published benchmark data)."""

LINK_HELP = (
    "UPLOAD/RTT such as 4Mbit/60ms, UPLOAD/RTT/DOWNLOAD, a typical network "
    f"({', '.join(PRESETS)}), or a CSV file of links as `scissionlite probe --out` writes it."
)
LinkOption = Annotated[str, typer.Option(metavar="LINK", help=f"The network link: {LINK_HELP}")]


def parse_links(text: str) -> Link | Links:
    """Read a ``--link`` option: one link, or those of a CSV file by source and destination.

    What is wrong with it is wrong usage.
    """
    path = Path(text)
    try:
        if path.suffix.lower() == ".csv" or path.is_file():
            return read_links(path)
        return Link.parse(text)
    except PlanError as error:
        raise typer.BadParameter(str(error)) from error


def parse_link(text: str) -> Link:
    """Read a ``--link`` option that must name one link; a CSV file may hold just one."""
    found = parse_links(text)
    if isinstance(found, Link):
        return found
    if len(found) != 1:
        raise typer.BadParameter(f"{text} holds {len(found)} links, here one is needed")
    return next(iter(found.values()))


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
