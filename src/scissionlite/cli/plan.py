"""``scissionlite plan``: rank every way to run a network over a link."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from scissionlite.bundle import Bundle
from scissionlite.cli.network import PAPER_NETWORK, LinkOption, parse_links
from scissionlite.cli.output import JsonOption, kilobytes, milliseconds, print_json, print_table
from scissionlite.scissiontl.constraints import Constraints
from scissionlite.scissiontl.planner import Objective, pareto
from scissionlite.scissiontl.planner import plan as rank
from scissionlite.scissiontl.plans import MeasuredAccuracy, Plan
from scissionlite.scissiontl.profile import Profile

SlowdownOption = Annotated[
    float, typer.Option(help="Imagine the device this many times slower than measured.", min=1.0)
]

_MACHINES = "More machines"
_LIMITS = "Constraints: limits"
_PLACES = "Constraints: places and machines (each may be given several times)"


def _limit(text: str, name: str | None = None) -> Any:
    return typer.Option(*([name] if name else []), help=text, min=0, rich_help_panel=_LIMITS)


def _names(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel=_PLACES, show_default=False)


def _profiles(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel=_MACHINES, show_default=False)


def plan(
    device: Annotated[Path, typer.Argument(help="Profile of the device (JSON).")],
    edge: Annotated[Path, typer.Argument(help="Profile of the edge machine (JSON).")],
    link: LinkOption = PAPER_NETWORK,
    slowdown: SlowdownOption = 1.0,
    objective: Annotated[
        Objective, typer.Option(help="What to rank by; throughput is that of pipelined requests.")
    ] = "latency",
    only_pareto: Annotated[
        bool, typer.Option("--pareto", help="Only plans that none beats in latency and bytes.")
    ] = False,
    power: Annotated[
        float | None, typer.Option(help="Watts of the device at work, for its energy.")
    ] = None,
    accuracy: Annotated[
        list[Path],
        typer.Option(help="Bundle whose measured accuracy is known; may be given several times."),
    ] = [],  # noqa: B006 - typer reads it and never changes it
    more_device: Annotated[list[Path], _profiles("Profile of another device.")] = [],  # noqa: B006
    more_edge: Annotated[list[Path], _profiles("Profile of another edge machine.")] = [],  # noqa: B006
    cloud: Annotated[list[Path], _profiles("Profile of a third tier.")] = [],  # noqa: B006
    max_latency: Annotated[float | None, _limit("Seconds from frame to answer.")] = None,
    max_device_time: Annotated[float | None, _limit("Seconds of work on the device.")] = None,
    max_edge_time: Annotated[float | None, _limit("Seconds of work on the edge.")] = None,
    max_device_share: Annotated[float | None, _limit("Of the latency, 0 to 1.")] = None,
    max_edge_share: Annotated[float | None, _limit("Of the latency, 0 to 1.")] = None,
    max_upload: Annotated[int | None, _limit("Bytes of a request.")] = None,
    max_device_memory: Annotated[int | None, _limit("Bytes of weights and feature maps.")] = None,
    max_energy: Annotated[float | None, _limit("Joules on the device.")] = None,
    max_leakage: Annotated[
        float | None, _limit("Distance correlation of input and what is sent, 0 to 1.")
    ] = None,
    min_throughput: Annotated[float | None, _limit("Requests a second, pipelined.")] = None,
    min_accuracy: Annotated[float | None, _limit("0 to 1, where it was measured.")] = None,
    min_device_blocks: Annotated[
        int | None, _limit("Blocks that must run on the device, for privacy.")
    ] = None,
    min_device_layers: Annotated[
        int | None, _limit("Layers that must run on the device, for privacy.")
    ] = None,
    on_device: Annotated[list[str], _names("Layer, module or block on the device.")] = [],  # noqa: B006
    not_on_device: Annotated[list[str], _names("... not on the device.")] = [],  # noqa: B006
    on_edge: Annotated[list[str], _names("... on the edge.")] = [],  # noqa: B006
    not_on_edge: Annotated[list[str], _names("... not on the edge.")] = [],  # noqa: B006
    slicing_point: Annotated[list[str], _names("Cut at one of these.")] = [],  # noqa: B006
    avoid_slicing_point: Annotated[list[str], _names("Do not cut here.")] = [],  # noqa: B006
    machine: Annotated[list[str], _names("Machine to use.")] = [],  # noqa: B006
    avoid_machine: Annotated[list[str], _names("Machine not to use.")] = [],  # noqa: B006
    top: Annotated[int, typer.Option(help="How many plans to print; 0 prints all.", min=0)] = 15,
    report: Annotated[
        Path | None, typer.Option(help="Write an HTML page with figures and table.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Write latency by slicing point as a PNG or SVG.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Rank local, images to the edge, and every slicing point and Transfer Layer."""
    devices = [Profile.load(path).slowed(slowdown) for path in (device, *more_device)]
    edges = [Profile.load(path) for path in (edge, *more_edge)]
    clouds = [Profile.load(path) for path in cloud]
    links = parse_links(link)
    known = [
        each for path in accuracy for each in MeasuredAccuracy.of(Bundle.load(path), devices[0])
    ]
    constraints = Constraints(
        max_latency=max_latency,
        max_device_time=max_device_time,
        max_edge_time=max_edge_time,
        max_device_share=max_device_share,
        max_edge_share=max_edge_share,
        max_upload=max_upload,
        max_device_memory=max_device_memory,
        max_energy=max_energy,
        max_leakage=max_leakage,
        min_throughput=min_throughput,
        min_accuracy=min_accuracy,
        min_device_blocks=min_device_blocks,
        min_device_layers=min_device_layers,
        on_device=tuple(on_device),
        not_on_device=tuple(not_on_device),
        on_edge=tuple(on_edge),
        not_on_edge=tuple(not_on_edge),
        slicing_points=tuple(slicing_point),
        avoid_slicing_points=tuple(avoid_slicing_point),
        machines=tuple(machine),
        avoid_machines=tuple(avoid_machine),
    )

    def ranked(kept: Constraints) -> list[Plan]:
        return rank(
            devices,
            edges,
            links,
            constraints=kept,
            objective=objective,
            accuracies=known,
            power=power,
            cloud=clouds,
        )

    plans = ranked(constraints)
    told = str(links) if not isinstance(links, dict) else f"links of {link}"
    if report is not None or figure is not None:
        machines = [*devices, *edges, *clouds]
        every = ranked(Constraints())
        private = ranked(constraints.privacy)[0] if constraints.privacy is not None else None
        if figure is not None:
            from scissionlite.scissiontl.figures import split_figure

            split_figure(every, private).savefig(figure, dpi=130)
        if report is not None:
            from scissionlite.scissiontl.report import write_report

            write_report(
                report,
                plans,
                machines,
                told,
                constraints=constraints,
                every=every,
                best_private=private,
            )
    front = pareto(plans) if only_pareto else plans
    shown = list(front[: top or None])
    if json:
        print_json([{"latency": p.predicted.latency, "plan": p} for p in shown])
        return
    if not only_pareto:
        # What splitting is compared with is shown, however far down it ranks.
        shown += _first_of_each_kind(plans, shown)
    title = f"Plans for {told}" + (f", device {slowdown:g}x slower" if slowdown != 1 else "")
    caption = f"{len(plans)} plans satisfy the constraints."
    if only_pareto:
        caption += f" {len(front)} of them are beaten by none in latency and bytes."
    for path in (report, figure):
        caption += f" Written: {path}." if path is not None else ""
    several = len(devices) + len(edges) + len(clouds) > 2
    _print(title, shown, plans, several=several, caption=caption)


def _first_of_each_kind(plans: Sequence[Plan], shown: Sequence[Plan]) -> list[Plan]:
    seen = {p.kind for p in shown}
    missing: dict[str, Plan] = {}
    for each in plans:
        if each.kind not in seen:
            missing.setdefault(each.kind, each)
    return list(missing.values())


def _print(
    title: str, shown: Sequence[Plan], plans: Sequence[Plan], *, several: bool, caption: str
) -> None:
    predictions = [p.predicted for p in shown]
    tiers = any(p.second is not None for p in shown)
    optional = {
        "machines": several,
        "cloud (ms)": tiers,
        "leakage": any(c.leakage not in (None, 0.0, 1.0) for c in predictions),
        "accuracy (%)": any(p.accuracy is not None for p in shown),
        "energy (mJ)": any(c.energy is not None for c in predictions),
    }
    rows = []
    columns: list[str] = []
    for each in shown:
        cost = each.predicted
        cells = {
            "rank (#)": str(plans.index(each) + 1),
            "machines": " to ".join(each.machines),
            "slicing point": each.place,
            "what crosses": each.label,
            "latency (ms)": milliseconds(cost.latency),
            "device (ms)": milliseconds(cost.device_stage),
            "transfer (ms)": milliseconds(cost.transfer_time + cost.offload_time),
            "edge (ms)": milliseconds(cost.decode_time + cost.edge_time),
            "cloud (ms)": milliseconds(cost.relay_time + cost.cloud_time),
            "sent (kB)": kilobytes(cost.sent_bytes),
            "rate (1/s)": f"{cost.throughput:.3g}",
            "leakage": "" if cost.leakage is None else f"{cost.leakage:.2f}",
            "accuracy (%)": "" if each.accuracy is None else f"{each.accuracy * 100:.2f}",
            "energy (mJ)": "" if cost.energy is None else f"{cost.energy * 1e3:.1f}",
        }
        columns = [name for name in cells if optional.get(name, True)]
        rows.append([cells[name] for name in columns])
    print_table(title, columns, rows, caption=caption)
