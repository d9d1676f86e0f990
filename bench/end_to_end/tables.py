"""The tables of the report, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.end_to_end.claims import (
    Claim,
    choice_lost,
    fair,
    fastest,
    ratio,
    why_lost,
)
from bench.end_to_end.contenders import OURS
from bench.end_to_end.records import Cell, Measured


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def claims_table(found: Sequence[Claim]) -> list[str]:
    """Each claim, and whether it was reached."""
    words = {True: "reached", False: "**not reached**", None: "cannot be said"}
    rows = [[claim.asked, words[claim.reached], claim.found] for claim in found]
    return table(["claim", "", "measured"], rows)


def winners(cells: Sequence[Cell]) -> list[str]:
    """For each network and link the fastest way, ours, and what the planner's choice loses."""
    rows = []
    for c in cells:
        best, ours = fastest(fair(c)), c.get(OURS)
        lost = choice_lost(c)
        rows.append(
            [
                c.network,
                c.link,
                f"{best.name}, {ms(best.median)}",
                "not run" if ours is None else f"{ms(ours.median)}: {ours.what} at {ours.place}",
                "" if ours is None or best is ours else why_lost(c),
                "" if ours is None else ratio(_rival(c), ours),
                ms(c.bound),
                "" if lost is None else f"{lost:.1%}",
            ]
        )
    header = ["network", "link", "fastest, ms", "ours, ms", "lost in", "best other / ours"]
    return table([*header, "zero-byte bound, ms", "planner's choice loses"], rows)


def _rival(cell: Cell) -> Measured:
    return fastest([m for m in fair(cell) if not m.name.startswith(OURS)] or cell.ran)


def latencies(cells: Sequence[Cell]) -> list[str]:
    """Median and 95th percentile of every contender of one network, by link."""
    names = list(dict.fromkeys(m.name for c in cells for m in c.measured))
    rows = []
    for name in names:
        row = [name]
        for c in cells:
            each = next((m for m in c.measured if m.name == name), None)
            if each is None:
                row.append("-")
            else:
                row.append(f"{ms(each.median)} ({ms(each.p95)})" if each.ran else each.skipped)
        rows.append(row)
    return table(["median (p95), ms", *(c.link for c in cells)], rows)


def costs(cell: Cell) -> list[str]:
    """Everything else of the contenders in one cell."""
    rows = [
        [
            m.name,
            m.what if m.place == "-" else f"{m.what} at {m.place}",
            f"{m.throughput:.1f}",
            f"{m.sent_bytes:.0f}",
            "" if m.accuracy is None else f"{m.accuracy:.2%}",
            "" if m.leakage is None else f"{m.leakage:.2f}",
            ms(m.device_cpu),
            f"{m.energy * 1e3:.0f}",
            f"{m.device_memory / 1e6:.1f}",
            ms(m.edge_cpu),
            "" if m.predicted is None else f"{m.predicted / m.median - 1:+.1%}",
        ]
        for m in cell.measured
        if m.ran
    ]
    header = ["contender", "sends", "answers/s", "bytes", "accuracy", "leakage", "device, ms"]
    header += ["energy, mJ", "device memory, MB", "edge CPU, ms", "prediction's error"]
    return table(header, rows)


def ms(seconds: float) -> str:
    """Seconds as milliseconds."""
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
