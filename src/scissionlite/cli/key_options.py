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
EdgeKeysOption = Annotated[
    list[Path],
    typer.Option(
        help="With --key: file of the edge daemon's public key, its .pub; one for all daemons, or "
        "one for each --connect.",
        show_default=False,
    ),
]
NextKeyOption = Annotated[
    Path | None,
    typer.Option(help="With --next: file of this machine's secret key for that link."),
]
NextEdgeKeysOption = Annotated[
    list[Path],
    typer.Option(
        help="With --next-key: file of the next edge's public key, its .pub; one for all, or one "
        "for each --next.",
        show_default=False,
    ),
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


def keys_of_edges(
    key: Path | None, edge_keys: list[Path], connect: list[str], prefix: str = ""
) -> DeviceKeys | list[DeviceKeys] | None:
    """Read the keys of a device for one or several edge daemons; None without the options.

    ``prefix`` is that of the options' names.
    """
    if (key is None) != (not edge_keys):
        raise typer.BadParameter(f"--{prefix}key and --{prefix}edge-key go together")
    if key is None:
        return None
    if len(edge_keys) == 1:
        return DeviceKeys(key, edge_keys[0])
    if len(edge_keys) != len(connect):
        each = "--next" if prefix else "--connect"
        raise typer.BadParameter(f"give one --{prefix}edge-key, or one for each {each}")
    return [DeviceKeys(key, edge_key) for edge_key in edge_keys]


def edge_keys(key: Path | None, authorized: Path | None, admin: Path | None) -> EdgeKeys | None:
    """Read the keys of an edge daemon; None without the options."""
    if (key is None) != (authorized is None):
        raise typer.BadParameter("--key and --authorized go together")
    if key is None or authorized is None:
        if admin is not None:
            raise typer.BadParameter("--admin goes together with --key and --authorized")
        return None
    return EdgeKeys(key, authorized, admin)
