"""``scissionlite demo``: the whole flow on one machine, with a table of what it gained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from scissionlite.cli.link_options import PAPER_LINK, parse_link
from scissionlite.cli.model_options import ModelRequest, WeightsOption
from scissionlite.cli.output import (
    JsonOption,
    error_console,
    kilobytes,
    milliseconds,
    print_json,
    print_table,
    warnings_in_one_line,
)
from scissionlite.cli.output_paths import output_folder
from scissionlite.errors import PrepareError

if TYPE_CHECKING:
    from scissionlite.demo.comparison import Row

DEFAULT_MODEL = "scissionlite.models:efficientnet_lite0_imagenet"

PAPER_SLOWDOWN = 5.3
"""How many times slower the device is than the edge, by default.

The ratio of DenseNet-169's published block times, summed: 0.389 s on a Jetson TX2 and 0.074 s on
the edge machine "ampere" (ScissionTL's published benchmark data).
"""


DataOption = Annotated[
    Path | None,
    typer.Option(
        help="Photographs: DATA/train/CLASS/*.jpg and DATA/test/CLASS/*.jpg. Without it, generated "
        "textures.",
        exists=True,
        file_okay=False,
    ),
]
LinksOption = Annotated[
    list[str],
    typer.Option(
        metavar="RATE/RTT", help="Emulated link; may be given several times, for one after another."
    ),
]


def demo(
    data: DataOption = None,
    model: Annotated[str, typer.Option(help="Any model name, as for `profile`.")] = DEFAULT_MODEL,
    weights: WeightsOption = None,
    size: Annotated[
        int, typer.Option(help="Height and width of the input, in pixels.", min=8)
    ] = 128,
    link: LinksOption = [PAPER_LINK],  # noqa: B006 - typer reads it and never changes it
    slowdown: Annotated[
        float,
        typer.Option(
            help="Emulate a device this many times slower; 1 for none.", min=1, max=10_000
        ),
    ] = PAPER_SLOWDOWN,
    at: Annotated[
        str | None,
        typer.Option(help="Cut all splits at this slicing point; by default each at its best."),
    ] = None,
    network_epochs: Annotated[
        int,
        typer.Option(
            help="Epochs of training the network itself, without --weights.", min=1, max=10_000
        ),
    ] = 3,
    epochs: Annotated[
        int, typer.Option(help="Epochs of retraining with each TL.", min=1, max=10_000)
    ] = 2,
    images: Annotated[int, typer.Option(help="Test images to time each way on.", min=1)] = 40,
    seed: Annotated[
        int, typer.Option(help="Seed of data set and training.", min=0, max=2**31 - 1)
    ] = 0,
    out: Annotated[Path, output_folder("Folder for all that is made.")] = Path("scissionlite-demo"),
    json: JsonOption = False,
) -> None:
    """Profile, slice, retrain, split, and run over an emulated link: the whole job at once."""
    from scissionlite.demo import figure
    from scissionlite.demo.comparison import verdict
    from scissionlite.demo.flow import Demo

    links = [parse_link(text) for text in link]
    out.mkdir(parents=True, exist_ok=True)
    console = error_console if json else Console()
    flow = Demo(out, console, size=size, seed=seed, slowdown=slowdown, progress=not json)
    folder = data or flow.write_textures()
    for part in ("train", "test"):
        if not (folder / part).is_dir():
            raise PrepareError(f"{folder} has no folder {part!r}: expected {folder}/{part}/CLASS/*")
    _, settings = ModelRequest(model=model, size=size).load()
    flow.open_data(folder, settings.preprocessing)
    flow.load_network(model, weights, network_epochs)
    flow.profile()
    with warnings_in_one_line():
        rows = flow.compare(links, at=at, epochs=epochs, images=images)
    if json:
        print_json(rows)
    else:
        for own in _by_link(rows):
            _print(own, slowdown)
            for sentence in verdict(own):
                console.print(sentence, highlight=False, soft_wrap=True)
    title = f"{model.rpartition(':')[2]} at {size}x{size}"
    if slowdown != 1:
        title += f", device emulated {slowdown:g} times slower than the edge"
    figure.draw(rows, title, out / "comparison.png")
    console.print(f"Figure: {out / 'comparison.png'}   Bundles: {out / 'bundles'}", soft_wrap=True)


def _by_link(rows: list[Row]) -> list[list[Row]]:
    links = list(dict.fromkeys(row.link for row in rows))
    return [[row for row in rows if row.link == link] for link in links]


def _print(rows: list[Row], slowdown: float) -> None:
    fastest = min(row.median for row in rows)
    print_table(
        f"\n{rows[0].link}, {rows[0].images} images"
        + (f", device emulated {slowdown:g}x slower" if slowdown != 1 else ""),
        [
            "configuration",
            "slicing point",
            "median (ms)",
            "p95 (ms)",
            "predicted (ms)",
            "sent (kB)",
            "accuracy (%)",
            "",
        ],
        [
            [
                row.configuration,
                row.slicing_point or "-",
                milliseconds(row.median),
                milliseconds(row.p95),
                milliseconds(row.predicted),
                kilobytes(row.sent_bytes),
                f"{row.accuracy * 100:.2f}",
                "fastest" if row.median == fastest else "",
            ]
            for row in rows
        ],
    )
