"""``scissionlite fleet``: plan every device of a plant at once, and play its requests."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from scissionlite.cli.output import JsonOption, milliseconds, print_json, print_table
from scissionlite.fleet.assignment import Assignment, assign, each_alone
from scissionlite.fleet.inventory import Inventory
from scissionlite.fleet.simulation import Outcome, simulate


def fleet(
    inventory: Annotated[
        Path,
        typer.Argument(help="TOML file of the devices, edges and links.", show_default=False),
    ],
    most_busy: Annotated[
        float,
        typer.Option(
            help="Share of its time that an edge machine or a shared link may work.",
            min=0.01,
            max=0.99,
        ),
    ] = 0.8,
    simulate_seconds: Annotated[
        float | None,
        typer.Option(
            "--simulate",
            metavar="SECONDS",
            help="Play the requests of so many seconds of plant time, with the file's outages.",
            min=1.0,
            max=1e7,
            show_default="none",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the simulated arrivals.", min=0)] = 0,
    time_limit: Annotated[
        float, typer.Option(help="Seconds for the solver.", min=0.1, max=86_400)
    ] = 10.0,
    json: JsonOption = False,
) -> None:
    """Choose where every device cuts and which edge serves it, under the edges' capacity."""
    plant = Inventory.load(inventory)
    together = assign(plant, most_busy=most_busy, seconds=time_limit)
    alone = each_alone(plant)
    outcomes = []
    if simulate_seconds is not None:
        outcomes = [
            simulate(plant, each, simulate_seconds, seed=seed) for each in (together, alone)
        ]
    if json:
        print_json(_document(plant, together, alone, outcomes))
        return
    _print_assignment(plant, together, alone)
    for name, outcome in zip(("As planned", "Each device alone"), outcomes, strict=False):
        _print_outcome(name, outcome)


def _document(
    plant: Inventory, together: Assignment, alone: Assignment, outcomes: list[Outcome]
) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name, each in (("planned", together), ("alone", alone)):
        document[name] = {
            "latency": each.latency if math.isfinite(each.latency) else None,
            "bound": each.bound,
            "loads": each.loads,
            "shares": [
                {
                    "devices": plant.devices[share.option.group].name,
                    "count": share.count,
                    "edge": share.option.edge,
                    "plan": share.option.plan,
                    "latency": share.option.latency,
                }
                for share in each.shares
            ],
        }
    for name, outcome in zip(("planned", "alone"), outcomes, strict=False):
        document[name]["simulated"] = outcome
    return document


def _print_assignment(plant: Inventory, together: Assignment, alone: Assignment) -> None:
    rows = []
    for share in together.shares:
        option, group = share.option, plant.devices[share.option.group]
        rows.append(
            [
                *(group.name, str(share.count), option.edge or "-", option.plan.place),
                *(option.plan.label, milliseconds(option.latency)),
            ]
        )
    caption = f"Mean latency with waiting: {milliseconds(together.latency)} ms"
    if together.bound is not None:
        caption += f" (no plan has less than {milliseconds(together.bound)} ms)"
    caption += ". If each device chose alone: "
    overloaded = [name for name, load in alone.loads.items() if load >= 1]
    caption += (
        f"no end to the waiting, since {', '.join(overloaded)} would be overloaded."
        if overloaded
        else f"{milliseconds(alone.latency)} ms."
    )
    columns = ("devices", "count", "edge", "cut after", "sent", "latency (ms)")
    print_table("The fleet's plan", columns, rows, caption=caption)
    loads = [
        [name, f"{100 * load:.0f}", f"{100 * alone.loads.get(name, 0.0):.0f}"]
        for name, load in together.loads.items()
        if " > " not in name or max(load, alone.loads.get(name, 0.0)) > 0
    ]
    print_table("Load", ("edge or shared link", "planned (%)", "each alone (%)"), loads)


def _print_outcome(name: str, outcome: Outcome) -> None:
    rows = [
        [
            *(group.name, str(group.requests)),
            *(f"{100 * share:.2f}" for share in (group.at_edge, group.local, group.lost)),
            f"{100 * group.late:.2f}",
            *("" if math.isnan(q) else milliseconds(q) for q in (group.p50, group.p95, group.p99)),
        ]
        for group in outcome.groups
    ]
    columns = (
        *("devices", "requests", "edge (%)", "local (%)", "lost (%)", "late (%)"),
        *("median (ms)", "p95 (ms)", "p99 (ms)"),
    )
    at_work = {place: share for place, share in outcome.busy.items() if share}
    busy = ", ".join(f"{place} {100 * share:.0f}%" for place, share in at_work.items())
    mean = "none" if math.isnan(outcome.mean) else f"{milliseconds(outcome.mean)} ms"
    print_table(
        f"{name}: {outcome.seconds:g} s of plant time",
        columns,
        rows,
        caption=f"Mean latency {mean}; {100 * outcome.late:.2f}% late or lost. At work: {busy}.",
    )
