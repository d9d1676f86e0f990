"""The options by which several commands name keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scissionlite.offloader import DeviceKeys, EdgeKeys

KeyOption = Annotated[
    Path | None,
    typer.Option(
        help="File of this machine's secret key (`scissionlite keys make`). Encrypts the link."
    ),
]
EdgeKeyOption = Annotated[
    Path | None,
    typer.Option(help="With --key: file of the edge daemon's public key, its .pub."),
]
TrustOption = Annotated[
    Path | None,
    typer.Option(
        help="File of public signing keys: refuse a bundle that none of them has signed "
        "(`scissionlite sign`)."
    ),
]


def device_keys(key: Path | None, edge_key: Path | None) -> DeviceKeys | None:
    """Read the keys of a device or an edge client; None without the options."""
    if (key is None) != (edge_key is None):
        raise typer.BadParameter("--key and --edge-key go together")
    return None if key is None or edge_key is None else DeviceKeys(key, edge_key)


def edge_keys(key: Path | None, authorized: Path | None) -> EdgeKeys | None:
    """Read the keys of an edge daemon; None without the options."""
    if (key is None) != (authorized is None):
        raise typer.BadParameter("--key and --authorized go together")
    return None if key is None or authorized is None else EdgeKeys(key, authorized)
