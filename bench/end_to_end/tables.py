"""The tables of the report, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bench.end_to_end.claims import (
    OURS_OF_ANY_RULE,
    Claim,
    choice_lost,
    fair,
    fastest,
    ours_of,
    private,
    ratio,
    why_lost,
)
from bench.end_to_end.contenders import OURS_ONNX
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
    """For each network and link who is the fastest, with any image sent and with none, and ours."""
    rows = []
    for c in cells:
        best, ours, lost = fastest(fair(c)), ours_of(c), choice_lost(c)
        row = [c.network, c.link, _with_ms(best), _with_ms(fastest(private(c)))]
        if ours is None:
            row += ["not run", "", "", ""]
        else:
            row += [
                f"{ours.what} at {ours.place}, {_runtime(ours)}{ms(ours.median)}",
                *(_rivals_ratio(c, rivals) for rivals in (fair, private)),
                "" if best is ours else why_lost(c),
            ]
        rows.append([*row, ms(c.bound), "" if lost is None else f"{lost:.1%}"])
    header = ["network", "link", "fastest, ms", "fastest without the image, ms", "ours, ms"]
    header += ["best other / ours", "best other without the image / ours", "lost in"]
    return table([*header, "zero-byte bound, ms", "planner's choice loses"], rows)


def _runtime(ours: Measured) -> str:
    return "ONNX Runtime, " if ours.name == OURS_ONNX else ""


def _with_ms(measured: Measured) -> str:
    return f"{measured.name}, {ms(measured.median)}"


def _rivals_ratio(cell: Cell, rivals: Callable[[Cell], list[Measured]]) -> str:
    """The fastest other one of a rule to ours of that rule."""
    measured, ours = rivals(cell), ours_of(cell, rivals)
    others = [m for m in measured if m.name not in OURS_OF_ANY_RULE]
    return "" if ours is None or not others else ratio(fastest(others), ours)


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
