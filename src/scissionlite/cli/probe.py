"""``scissionlite probe``: measure the link to a running edge daemon."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from scissionlite.cli.key_options import EdgeKeyOption, KeyOption, device_keys
from scissionlite.cli.link_options import endpoint_to_connect
from scissionlite.cli.output import JsonOption, milliseconds, print_json, print_table
from scissionlite.cli.output_paths import output_file
from scissionlite.cli.usage import usage_errors
from scissionlite.offloader import Timeouts
from scissionlite.scissiontl.link import read_links, write_links
from scissionlite.scissiontl.probe import Estimate
from scissionlite.scissiontl.probe import probe as measure


def probe(
    connect: Annotated[
        str,
        typer.Argument(
            help="Tensor endpoint of the daemon: tcp://edge:5555.", callback=endpoint_to_connect
        ),
    ],
    control: Annotated[
        str | None,
        typer.Option(
            help="Its control endpoint.", show_default="the next port", callback=endpoint_to_connect
        ),
    ] = None,
    key: KeyOption = None,
    edge_key: EdgeKeyOption = None,
    seconds: Annotated[float, typer.Option(help="Seconds to measure.", min=0.1, max=3600)] = 5.0,
    timeout: Annotated[
        float, typer.Option(help="Seconds to wait for one answer.", min=0.1, max=3600)
    ] = 10.0,
    out: Annotated[
        Path | None,
        output_file("Write the link into this CSV file, which may hold others already."),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Its name there for this machine.", show_default="host name")
    ] = None,
    destination: Annotated[
        str | None, typer.Option(help="And for the edge.", show_default="the daemon's name")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Measure round trip and rates to an edge daemon, through the sockets that tensors use."""
    links = read_links(out) if out is not None and out.exists() else {}
    with usage_errors():
        measured = measure(
            connect,
            control,
            seconds=seconds,
            timeouts=Timeouts(answer=timeout),
            keys=device_keys(key, edge_key),
        )
    names = (source or platform.node() or "here", destination or measured.edge or "edge")
    if out is not None:
        links[names] = measured.link
        write_links(out, links)
    if json:
        print_json({"measurement": measured, "link": measured.link})
        return
    print_table(
        f"{names[0]} to {measured.edge} ({connect}): {measured.link}",
        ["", "measured", "interval", "confidence (%)"],
        [
            ["round trip (ms), median", *_row(measured.rtt, milliseconds)],
            ["round trip (ms), p95", *_row(measured.rtt_p95, milliseconds)],
            ["upload (Mbit/s)", *_row(measured.upload, _megabits)],
            ["download (Mbit/s)", *_row(measured.download, _megabits)],
        ],
        caption=f"{measured.round_trips} round trips, {measured.transfers} transfers of up to "
        f"{measured.largest} bytes in {measured.seconds:.1f} s."
        + (f" Written to {out} as {names[0]},{names[1]}." if out else ""),
    )


def _row(estimate: Estimate, unit: Callable[[float], str]) -> list[str]:
    return [
        unit(estimate.value),
        f"{unit(estimate.low)} to {unit(estimate.high)}",
        f"{100 * estimate.confidence:.0f}",
    ]


def _megabits(rate: float) -> str:
    return f"{rate / 1e6:.4g}" if rate < 1e9 else f"{rate / 1e6:.0f}"
