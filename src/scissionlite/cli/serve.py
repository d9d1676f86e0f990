"""``scissionlite serve``: the edge daemon."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer

from scissionlite.bundle import Bundle
from scissionlite.cli.config_file import ConfigOption
from scissionlite.cli.key_options import (
    KeyOption,
    NextEdgeKeysOption,
    NextKeyOption,
    TrustOption,
    edge_keys,
    keys_of_edges,
)
from scissionlite.cli.link_options import endpoint_to_bind, endpoints_to_connect, page_address
from scissionlite.cli.logs import LogFormatOption, LogLevelOption, logs_json, set_up_logging
from scissionlite.cli.model_options import SliceRuntimeOption, ThreadsOption
from scissionlite.cli.output import JsonOption, error_console, print_table
from scissionlite.cli.struct_options import FieldOptions, struct_options
from scissionlite.cli.systemd import edge_unit, notify, print_unit_file, watchdog
from scissionlite.cli.usage import usage_errors
from scissionlite.offloader import EdgeKeys, EdgeLimits, EdgeServer
from scissionlite.offloader.edge.engines.ray_options import RayOptions
from scissionlite.offloader.wire.control import StatsReply
from scissionlite.signals import leave_at_once

if TYPE_CHECKING:
    from scissionlite.offloader.edge.engines.engine import Engine

logger = logging.getLogger(__name__)

_DEFAULTS = EdgeLimits()
_RAY = RayOptions()


@struct_options
def serve(
    bundle: Annotated[
        list[Path],
        typer.Argument(
            help="The folders of the bundles. Without any, only probes and profiles are answered.",
            show_default=False,
        ),
    ] = [],  # noqa: B006 - typer reads it and never changes it
    bind: Annotated[
        str,
        typer.Option(
            help="Tensor endpoint to listen on; port * is any free one. tcp://0.0.0.0:5555 listens "
            "on every network, and needs --key and --authorized.",
            callback=endpoint_to_bind,
        ),
    ] = "tcp://127.0.0.1:5555",
    control: Annotated[
        str | None,
        typer.Option(
            help="Control endpoint to listen on.",
            show_default="the next port",
            callback=endpoint_to_bind,
        ),
    ] = None,
    threads: ThreadsOption = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Requests that are worked on at once; with another engine, calls under way.",
            min=1,
            max=1024,
            show_default="1; with --next or triton, 16; with ray, 8 or twice its replicas",
        ),
    ] = None,
    engine: Annotated[
        Literal["local", "ray", "triton"],
        typer.Option(
            help="Where the slices run: here, in replicas of Ray Serve, or in a Triton server."
        ),
    ] = "local",
    url: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="With --engine triton: the server's gRPC port.",
            show_default="none",
        ),
    ] = None,
    next: Annotated[
        list[str],
        typer.Option(
            help="Of bundles with three tiers, run the middle slice, and have the next edge's "
            "daemon at this tensor endpoint answer; without, the last slice is run. May be "
            "repeated: requests go to the first that is there.",
            show_default="none",
            callback=endpoints_to_connect,
        ),
    ] = [],  # noqa: B006 - typer reads it and never changes it
    next_control: Annotated[
        list[str],
        typer.Option(
            help="Its control endpoint; one for each --next.",
            show_default="the next port",
            callback=endpoints_to_connect,
        ),
    ] = [],  # noqa: B006
    next_key: NextKeyOption = None,
    next_edge_key: NextEdgeKeysOption = [],  # noqa: B006
    runtime: SliceRuntimeOption = None,
    processor: Annotated[
        Literal["cpu", "cuda"],
        typer.Option(help="'cuda' decodes and runs TorchScript slices on a GPU."),
    ] = "cpu",
    name: Annotated[
        str | None,
        typer.Option(help="The daemon's name for devices.", show_default="the host's name"),
    ] = None,
    limits: Annotated[EdgeLimits, FieldOptions("Limits")] = _DEFAULTS,
    ray: Annotated[RayOptions, FieldOptions("Ray")] = _RAY,
    key: KeyOption = None,
    authorized: Annotated[
        Path | None,
        typer.Option(
            help="File of the public keys that may use the daemon, as `scissionlite keys "
            "authorize` writes it. It is read again when it changes."
        ),
    ] = None,
    admin: Annotated[
        Path | None,
        typer.Option(
            help="File of the public keys, of those, that may load and drop bundles with "
            "`scissionlite bundles`. The slices of a bundle are programs."
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Listen on networks without keys, for everybody there."),
    ] = False,
    watch: Annotated[
        Path | None,
        typer.Option(
            help="Folder whose folders are bundles: serve them, too, and load, replace and drop "
            "them as they change. SIGHUP looks at once."
        ),
    ] = None,
    trust: TrustOption = None,
    profile_models: Annotated[
        list[str],
        typer.Option(
            metavar="GLOB",
            help="Allow profiles of models with such names, as 'torchvision:*'. The code that a "
            "name imports is run, and inference is slower meanwhile. May be repeated.",
            show_default="none",
        ),
    ] = [],  # noqa: B006 - typer reads it and never changes it
    config: ConfigOption = None,
    page: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST]:PORT",
            help="Serve the status page, metrics (/metrics), liveness (/healthz) and readiness "
            "(/readyz) over HTTP. Without a host, only this machine reaches them.",
            callback=page_address,
            show_default="none",
        ),
    ] = None,
    log_format: LogFormatOption = "text",
    log_level: LogLevelOption = "info",
    print_unit: Annotated[
        bool,
        typer.Option(
            "--print-unit",
            help="Print a unit file for systemd, for this installation and for --config and "
            "--key, and exit.",
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Serve bundles until SIGTERM or SIGINT (Ctrl-C); SIGHUP reads keys and --watch again."""
    if print_unit:
        print_unit_file(edge_unit(config, key))
        return
    leave_at_once()
    set_up_logging(log_format, log_level)
    keys = edge_keys(key, authorized, admin)
    next_keys = keys_of_edges(next_key, next_edge_key, next, "next-")
    with usage_errors():
        server = EdgeServer(
            bundle,
            bind,
            control=control,
            threads=threads,
            workers=workers,
            engine=_engine(engine, ray, url),
            next=next or None,
            next_control=next_control or None,
            next_keys=next_keys,
            runtime=runtime,
            processor=processor,
            limits=limits,
            name=name,
            profile_models=profile_models,
            keys=keys,
            insecure=insecure,
            watch=watch,
            trust=trust,
            page=page,
        )
    server.start()

    def stop(*_: object) -> None:
        notify("STOPPING=1")
        server.stop()

    def reload(*_: object) -> None:
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        server.reload()
        notify("READY=1")

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    signal.signal(signal.SIGHUP, reload)
    _print_ready(server, keys, json)
    notify("READY=1", f"STATUS=Serving on {server.endpoint}")
    with watchdog(lambda: server.alive):
        server.serve_forever()
    _print_closed(server.stats(), json)
    if server.working:
        # Python's own exit would end the thread amid a runtime's code, which aborts the process.
        sys.stdout.flush()
        os._exit(0)


def _engine(name: str, ray: RayOptions, url: str | None) -> Engine | None:
    """Make the engine of a name; None is the local one."""
    if name != "ray" and ray != _RAY:
        raise typer.BadParameter("the options of Ray need --engine ray")
    if (name == "triton") != (url is not None):
        raise typer.BadParameter("--engine triton and --url HOST:PORT go together")
    if url is not None:
        from scissionlite.offloader.edge.engines.triton import TritonEngine

        return TritonEngine(url)
    if name == "local":
        return None
    from scissionlite.offloader.edge.engines.ray import RayEngine  # takes seconds

    return RayEngine(ray)


def _print_ready(server: EdgeServer, keys: EdgeKeys | None, json: bool) -> None:
    ready = {
        "endpoint": server.endpoint,
        "control_endpoint": server.control_endpoint,
        "bundles": [
            {"id": each.id, "model": each.manifest.model, "kind": each.manifest.kind}
            for each in server.bundles
        ],
        "public_key": keys and keys.public,
        "page": server.page or None,
    }
    served = ", ".join(map(_described, server.bundles)) or "probes and profiles, no bundle,"
    to = "everybody who reaches it, unencrypted" if keys is None else "authorised keys"
    text = (
        f"Serving {served} on {server.endpoint}, control {server.control_endpoint}, to {to}. "
        + (f"Page: {server.page} " if server.page else "")
        + "Ctrl-C stops."
    )
    if json:
        typer.echo(msgspec.json.encode({"event": "ready", **ready}).decode())
    if logs_json():
        logger.info(text, extra=ready)
    elif not json:
        error_console.print(text, markup=False, highlight=False)


def _described(bundle: Bundle) -> str:
    manifest = bundle.manifest
    transfer = f", {manifest.transfer.label}" if manifest.transfer is not None else ""
    if manifest.next_hop is not None:
        transfer += f", then {manifest.next_hop.transfer.label}, tier 2"
    return f"{manifest.model} ({manifest.kind}{transfer}, bundle {bundle.id[:12]})"


def _print_closed(stats: StatsReply, json: bool) -> None:
    if json:
        # One line each, for programs that read them as they come.
        typer.echo(msgspec.json.encode({"event": "closed", "stats": stats}).decode())
        return
    rejected = ", ".join(f"{count} {kind}" for kind, count in stats.rejected.items())
    rows = [
        ["served", str(stats.served)],
        ["failed", str(stats.failed)],
        ["expired", str(stats.expired)],
        ["busy", str(stats.busy)],
        ["rejected", rejected or "0"],
    ]
    print_table(f"Served for {stats.uptime:.0f} s", ["requests", "count"], rows)
