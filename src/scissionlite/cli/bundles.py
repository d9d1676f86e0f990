"""``scissionlite bundles``: list, load and drop the bundles of a running edge daemon."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from scissionlite.cli.key_options import EdgeKeyOption, KeyOption, device_keys
from scissionlite.cli.link_options import endpoint_to_connect
from scissionlite.cli.output import JsonOption, print_json, print_table
from scissionlite.cli.usage import usage_errors
from scissionlite.offloader import Timeouts
from scissionlite.offloader.device.edge_client import EdgeClient
from scissionlite.offloader.wire.control import (
    BundlesReply,
    DropBundle,
    ListBundles,
    LoadBundle,
    ServedBundle,
)

_SHORTEST = 4  # characters of an id


def bundles(
    action: Annotated[Literal["list", "load", "drop"], typer.Argument(help="What to do.")] = "list",
    what: Annotated[
        str,
        typer.Argument(
            help="To load: the bundle's folder on the daemon's machine. To drop: the bundle's id, "
            "or its beginning.",
            show_default=False,
        ),
    ] = "",
    connect: Annotated[
        str,
        typer.Option(help="Tensor endpoint of the daemon.", callback=endpoint_to_connect),
    ] = "tcp://127.0.0.1:5555",
    control: Annotated[
        str | None,
        typer.Option(
            help="Its control endpoint.", show_default="the next port", callback=endpoint_to_connect
        ),
    ] = None,
    replaces: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="With load: drop this bundle in the same step.",
            show_default="none",
        ),
    ] = None,
    key: KeyOption = None,
    edge_key: EdgeKeyOption = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds to wait for an answer.", min=0.1, max=3600)
    ] = 10.0,
    load_seconds: Annotated[
        float, typer.Option(help="Seconds that loading may take.", min=0.1, max=3600)
    ] = 600.0,
    json: JsonOption = False,
) -> None:
    """List the bundles of an edge daemon; load or drop one, where `serve --admin` allows it."""
    if (action == "list") != (what == ""):
        raise typer.BadParameter("give one thing to load or drop, and nothing to list")
    if action == "load" and not Path(what).is_absolute():
        raise typer.BadParameter(f"{what} must be an absolute path, on the daemon's machine")
    if replaces is not None and action != "load":
        raise typer.BadParameter("--replaces goes together with load")
    with (
        usage_errors(),
        EdgeClient(
            connect, control, Timeouts(answer=timeout), device_keys(key, edge_key)
        ) as client,
    ):
        client.send(ListBundles(0))
        served = client.wait_for(BundlesReply, 0, seconds=timeout)[0].bundles
        if action == "load":
            old = None if replaces is None else _find(replaces, served)
            client.send(LoadBundle(1, str(Path(what)), old))
            served = client.wait_for(BundlesReply, 1, seconds=load_seconds)[0].bundles
        elif action == "drop":
            client.send(DropBundle(1, _find(what, served)))
            served = client.wait_for(BundlesReply, 1, seconds=timeout)[0].bundles
    if json:
        print_json(served)
        return
    print_table(
        f"Served by {client.edge} ({connect})",
        ["bundle", "model", "kind", "since", "requests"],
        [
            [each.id[:12], each.model, each.kind, _moment(each.since), str(each.requests)]
            for each in served
        ],
    )


def _find(beginning: str, served: list[ServedBundle]) -> str:
    """Find the id of a served bundle by its beginning."""
    found = [each.id for each in served if each.id.startswith(beginning.lower())]
    if len(beginning) < _SHORTEST or len(found) != 1:
        ids = ", ".join(each.id[:12] for each in served) or "none"
        raise typer.BadParameter(
            f"{beginning!r} is not the beginning of one bundle's id, {_SHORTEST} characters or "
            f"more: the daemon serves {ids}"
        )
    return found[0]


def _moment(seconds: float) -> str:
    local = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).astimezone()
    return local.strftime("%Y-%m-%d %H:%M:%S")
