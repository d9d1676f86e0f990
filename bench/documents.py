"""Writes what a benchmark measured into a document, between two marks."""

from __future__ import annotations

import os
import time
from pathlib import Path

from bench.end_to_end.machine import description

DOCS = Path(__file__).parents[1] / "docs"


def write_between(document: str | Path, command: str, text: str) -> None:
    """Replace what a command wrote the last time into a document of docs/, or into a copy of it.

    Raises
    ------
    ValueError
        If the document has no marks of the command.
    """
    path = DOCS / document if isinstance(document, str) else document
    begin, end = f"<!-- {command} writes what follows -->\n", f"<!-- end of {command} -->\n"
    before, found, rest = path.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"{path} has no {begin.strip()} and {end.strip()}")
    path.write_text(f"{before}{begin}\n{text.strip()}\n\n{end}{after}")


def circumstances(load: float) -> str:
    """Where and when it was measured; ``load`` is the machine's mean load before it began."""
    busy = "nothing else ran" if load < 0.5 else "while other work ran"
    today = time.strftime("%Y-%m-%d")
    return f"{description()}, {today}, {busy} (load {load:.1f} before it began)"


def load_before() -> float:
    """The machine's mean load of the last minute."""
    return os.getloadavg()[0]
