"""The options by which commands name a link, and the endpoints of a daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scissionlite.cli.usage import usage_errors
from scissionlite.errors import PlanError
from scissionlite.offloader.wire.endpoints import check_endpoint, control_endpoint
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


def endpoint_to_connect(text: str | None) -> str | None:
    """Check an option that holds an endpoint to connect to; its callback, which knows its name."""
    with usage_errors():
        return None if text is None else check_endpoint(text)


def endpoints_to_connect(texts: Any) -> list[str]:
    """Check an option that holds endpoints to connect to; its callback.

    ``texts`` is a list of str. With that annotation, typer breaks down on Python 3.10.
    """
    with usage_errors():
        return [check_endpoint(text) for text in texts]


def endpoint_to_bind(text: str | None) -> str | None:
    """Check an option that holds an endpoint to listen on; its callback."""
    if text is not None and not text.endswith(":65535"):  # of which no control port follows
        with usage_errors():
            control_endpoint(text)
    return text


def page_address(text: str | None) -> str | None:
    """Check an option that holds an address for the daemon's page; its callback."""
    from scissionlite.offloader.edge.page_address import PageAddress  # a device does not need it

    if text is not None:
        with usage_errors():
            PageAddress.parse(text)
    return text


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
