"""The option by which commands name a link."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scissionlite.cli.usage import usage_errors
from scissionlite.errors import PlanError
from scissionlite.scissiontl.link import PRESETS, Link, LinkTable, read_links

PAPER_LINK = "58.8Mbit/27.4ms"
"""The link of the paper's measurements (ScissionTL's published benchmark data)."""

LinkOption = Annotated[
    str,
    typer.Option(
        metavar="LINK",
        help="The link: UPLOAD/RTT such as 4Mbit/60ms, UPLOAD/RTT/DOWNLOAD, a preset "
        f"({', '.join(PRESETS)}), or a CSV file of links as `scissionlite probe --out` writes it.",
    ),
]


def parse_links(text: str) -> Link | LinkTable:
    """Read a ``--link`` option: one link, or the links of a CSV file by source and destination.

    Raises
    ------
    typer.BadParameter
        If it is neither.
    """
    path = Path(text)
    with usage_errors(PlanError):
        if path.suffix.lower() == ".csv" or path.is_file():
            return read_links(path)
        return Link.parse(text)


def parse_link(text: str) -> Link:
    """Read a ``--link`` option that must name one link; a CSV file may hold only one.

    Raises
    ------
    typer.BadParameter
        If it names no link, or several.
    """
    found = parse_links(text)
    if isinstance(found, Link):
        return found
    if len(found) != 1:
        raise typer.BadParameter(f"{text} holds {len(found)} links, here one is needed")
    return next(iter(found.values()))
