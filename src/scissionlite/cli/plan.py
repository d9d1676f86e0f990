"""``scissionlite plan``: rank every way to run a network over a link."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from scissionlite.atomic_folder import atomic_file
from scissionlite.bundle import Bundle
from scissionlite.cli.link_options import PAPER_LINK, LinkOption, parse_links
from scissionlite.cli.output import JsonOption, kilobytes, milliseconds, print_json, print_table
from scissionlite.cli.output_paths import output_file
from scissionlite.cli.struct_options import FieldOptions, struct_options
from scissionlite.scissiontl.constraints import Constraints
from scissionlite.scissiontl.link import Link
from scissionlite.scissiontl.planner import Objective, pareto
from scissionlite.scissiontl.planner import plan as rank
from scissionlite.scissiontl.plans import MeasuredAccuracy, Plan
from scissionlite.scissiontl.profile import Profile

SlowdownOption = Annotated[
    float,
    typer.Option(
        help="Imagine the device this many times slower than measured.", min=1, max=10_000
    ),
]


def _profiles(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel="More machines", show_default=False)


ObjectiveOption = Annotated[
    Objective, typer.Option(help="What to rank by; throughput is that of pipelined requests.")
]
ParetoOption = Annotated[
    bool, typer.Option("--pareto", help="Only plans that no other beats in latency and bytes.")
]
PowerOption = Annotated[
    float | None,
    typer.Option(help="Watts of the device at work, for its energy.", min=1e-6, max=1e6),
]
AccuracyOption = Annotated[
    list[Path],
    typer.Option(help="Bundle whose accuracy was measured; may be given several times."),
]
LearnedOption = Annotated[
    bool,
    typer.Option(
        "--learned",
        help="Learned Transfer Layers and shallow encoders, too, that nobody has trained yet.",
    ),
]
TopOption = Annotated[int, typer.Option(help="How many plans to print; 0 prints all.", min=0)]
ReportOption = Annotated[Path | None, output_file("Write an HTML page with figures and table.")]
FigureOption = Annotated[
    Path | None,
    output_file("Write latency by slicing point as a PNG or SVG.", suffixes=(".png", ".svg")),
]

_NO_CONSTRAINTS = Constraints()
ConstraintsOptions = Annotated[
    Constraints,
    FieldOptions(
        "Constraints: limits",
        several="Constraints: places and machines (each may be given several times)",
    ),
]


@struct_options
def plan(
    device: Annotated[Path, typer.Argument(help="Profile of the device (JSON).")],
    edge: Annotated[Path, typer.Argument(help="Profile of the edge machine (JSON).")],
    link: LinkOption = PAPER_LINK,
    slowdown: SlowdownOption = 1.0,
    objective: ObjectiveOption = "latency",
    only_pareto: ParetoOption = False,
    power: PowerOption = None,
    accuracy: AccuracyOption = [],  # noqa: B006 - typer reads it and never changes it
    learned: LearnedOption = False,
    more_device: Annotated[list[Path], _profiles("Profile of another device.")] = [],  # noqa: B006
    more_edge: Annotated[list[Path], _profiles("Profile of another edge machine.")] = [],  # noqa: B006
    cloud: Annotated[list[Path], _profiles("Profile of a third tier.")] = [],  # noqa: B006
    constraints: ConstraintsOptions = _NO_CONSTRAINTS,
    top: TopOption = 15,
    report: ReportOption = None,
    figure: FigureOption = None,
    json: JsonOption = False,
) -> None:
    """Rank local, images to the edge, and every slicing point and Transfer Layer."""
    devices = [Profile.load(path).slowed(slowdown) for path in (device, *more_device)]
    edges = [Profile.load(path) for path in (edge, *more_edge)]
    clouds = [Profile.load(path) for path in cloud]
    links = parse_links(link)
    ranked = partial(
        rank,
        devices,
        edges,
        links,
        objective=objective,
        accuracies=[
            each for path in accuracy for each in MeasuredAccuracy.of(Bundle.load(path), devices[0])
        ],
        power=power,
        cloud=clouds,
        learned=learned,
    )
    plans = ranked(constraints=constraints)
    link_text = str(links) if isinstance(links, Link) else f"links of {link}"
    machines = [*devices, *edges, *clouds]
    _draw(report, figure, plans, ranked, machines, link_text, constraints)
    front = pareto(plans) if only_pareto else plans
    shown = list(front[: top or None])
    if json:
        print_json([{"latency": p.predicted.latency, "plan": p} for p in shown])
        return
    if not only_pareto:
        # The best plan of each kind, in float32 and in int8, is shown, however far down it ranks,
        # for comparison.
        shown += _first_of_each_kind(plans, shown)
    title = f"Plans for {link_text}" + (f", device {slowdown:g}x slower" if slowdown != 1 else "")
    caption = f"{len(plans)} plans satisfy the constraints."
    if only_pareto:
        caption += f" {len(front)} of them are beaten by none in latency and bytes."
    if any(p.spec is not None and p.spec.entropy for p in shown):
        notes = dict.fromkeys(each.entropy_note for each in devices if each.entropy_note)
        caption += "".join(f" {note}" for note in notes)
    for path in (report, figure):
        caption += f" Written: {path}." if path is not None else ""
    _print(title, shown, plans, several=len(machines) > 2, caption=caption)


def _draw(
    report: Path | None,
    figure: Path | None,
    plans: Sequence[Plan],
    ranked: Callable[..., list[Plan]],
    machines: Sequence[Profile],
    link: str,
    constraints: Constraints,
) -> None:
    """Write the report and the figure, where they are asked for."""
    if report is None and figure is None:
        return
    every = ranked()
    private = constraints.privacy
    best_private = None if private is None else ranked(constraints=private)[0]
    if figure is not None:
        from scissionlite.scissiontl.figures import split_figure

        with atomic_file(figure) as file:
            split_figure(every, best_private).savefig(file, dpi=130)
    if report is not None:
        from scissionlite.scissiontl.report import write_report

        write_report(
            report,
            plans,
            machines,
            link,
            constraints=constraints,
            every=every,
            best_private=best_private,
        )


def _first_of_each_kind(plans: Sequence[Plan], shown: Sequence[Plan]) -> list[Plan]:
    seen = {(p.kind, p.device_precision) for p in shown}
    missing: dict[tuple[str, str], Plan] = {}
    for each in plans:
        kind = (each.kind, each.device_precision)
        if kind not in seen:
            missing.setdefault(kind, each)
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
        "drop (points)": any(c.drop for c in predictions),  # what loses nothing tells nothing
        "accuracy (%)": any(p.accuracy is not None for p in shown),
        "energy (mJ)": any(c.energy is not None for c in predictions),
    }
    rows = []
    columns: list[str] = []
    for each in shown:
        cost = each.predicted
        cells = {
            "rank": str(plans.index(each) + 1),
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
            "drop (points)": "" if cost.drop is None else f"{cost.drop * 100:.1f}",
            "accuracy (%)": "" if each.accuracy is None else f"{each.accuracy * 100:.2f}",
            "energy (mJ)": "" if cost.energy is None else f"{cost.energy * 1e3:.1f}",
        }
        columns = [name for name in cells if optional.get(name, True)]
        rows.append([cells[name] for name in columns])
    if "drop (points)" in columns:
        caption += " The drop in accuracy is predicted, before training."
    print_table(title, columns, rows, caption=caption)
