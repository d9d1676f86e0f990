"""``scissionlite plan``: rank every way to run a network over a link."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scissionlite.cli.network import PAPER_NETWORK, LinkOption, parse_link
from scissionlite.cli.output import JsonOption, kilobytes, milliseconds, print_json, print_table
from scissionlite.scissiontl.planner import Constraints
from scissionlite.scissiontl.planner import plan as rank
from scissionlite.scissiontl.profile import Profile

SlowdownOption = Annotated[
    float, typer.Option(help="Imagine the device this many times slower than measured.", min=1.0)
]


def plan(
    device: Annotated[Path, typer.Argument(help="Profile of the device (JSON).")],
    edge: Annotated[Path, typer.Argument(help="Profile of the edge machine (JSON).")],
    link: LinkOption = PAPER_NETWORK,
    slowdown: SlowdownOption = 1.0,
    max_latency: Annotated[float | None, typer.Option(help="Seconds.")] = None,
    max_device_time: Annotated[float | None, typer.Option(help="Seconds.")] = None,
    max_upload: Annotated[int | None, typer.Option(help="Bytes of a request.")] = None,
    min_device_blocks: Annotated[
        int | None, typer.Option(help="Blocks that must run on the device, for privacy.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many plans to print; 0 prints all.", min=0)] = 15,
    json: JsonOption = False,
) -> None:
    """Rank local, JPEG to the edge, and every slicing point and Transfer Layer, by latency."""
    network = parse_link(link)
    plans = rank(
        Profile.load(device).slowed(slowdown),
        Profile.load(edge),
        network,
        constraints=Constraints(
            max_latency=max_latency,
            max_device_time=max_device_time,
            max_upload=max_upload,
            min_device_blocks=min_device_blocks,
        ),
    )
    shown = plans[: top or None]
    if json:
        print_json([{"latency": p.predicted.latency, "plan": p} for p in shown])
        return
    # What splitting is compared with is shown, however far down it ranks.
    shown += [p for p in plans if p.kind != "split" and p not in shown]
    print_table(
        f"Plans for {network}" + (f", device {slowdown:g}x slower" if slowdown != 1 else ""),
        [
            "rank (#)",
            "slicing point",
            "what crosses",
            "latency (ms)",
            "device (ms)",
            "encode (ms)",
            "transfer (ms)",
            "decode (ms)",
            "edge (ms)",
            "sent (kB)",
        ],
        [
            [
                str(plans.index(p) + 1),
                p.slicing_point or "-",
                p.label,
                milliseconds(p.predicted.latency),
                milliseconds(p.predicted.device_time),
                milliseconds(p.predicted.encode_time),
                milliseconds(p.predicted.transfer_time),
                milliseconds(p.predicted.decode_time),
                milliseconds(p.predicted.edge_time),
                kilobytes(p.predicted.sent_bytes),
            ]
            for p in shown
        ],
        caption=f"{len(plans)} plans satisfy the constraints.",
    )
