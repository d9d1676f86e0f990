"""Sinks: where the rows of ``run`` go."""

from __future__ import annotations

import os
from collections import deque
from typing import Protocol

import msgspec

from scissionlite.cli.output import kilobytes, milliseconds, print_json, print_table
from scissionlite.cli.run.live_line import MakeRoom
from scissionlite.cli.run.results import Failure, ImageAnswer, Row, Summary

COLUMNS = ("image", "answer", "confidence (%)", "latency (ms)", "sent (kB)", "answered by")


class Sink(Protocol):
    """Takes rows as they come."""

    has_summary: bool
    """Whether the sink prints the summary."""

    @property
    def trouble(self) -> str:
        """A few words for the live line; empty if all is well."""

    def write(self, row: Row) -> None:
        """Take a row; of one thread."""

    def finish(self, summary: Summary) -> str | None:
        """Take the end; returns why rows were lost, None if none were."""

    def close(self) -> None:
        """Give back what the sink has opened; may follow :meth:`write` at once."""


class _Printed:
    """A sink that opens nothing and loses nothing."""

    has_summary = True
    trouble = ""

    def close(self) -> None:
        """Do nothing."""


class Table(_Printed):
    """A table at the end.

    Parameters
    ----------
    newest
        Keep only so many rows, the newest; None keeps all.
    """

    def __init__(self, newest: int | None = None) -> None:
        self._rows: deque[Row] = deque(maxlen=newest)

    def write(self, row: Row) -> None:
        """Keep a row."""
        self._rows.append(row)

    def finish(self, summary: Summary) -> None:
        """Print the rows and the summary."""
        title = f"{summary.answers:,} answers"
        folders = {os.path.dirname(row.image) for row in self._rows}  # noqa: PTH120 - of a text
        folder = folders.pop() if len(folders) == 1 else ""
        if folder:
            title += f" in {folder}"
        rows = [_cells(row, folder) for row in self._rows]
        if len(rows) < summary.answers + summary.unread + summary.failed:
            title += f" (the newest {len(rows)} are shown)"
        print_table(title, COLUMNS, rows, caption=summary.text)


class JsonDocument(_Printed):
    """One JSON document at the end."""

    def __init__(self) -> None:
        self._answers: list[ImageAnswer] = []
        self._failures: list[Failure] = []

    def write(self, row: Row) -> None:
        """Keep a row."""
        if isinstance(row, Failure):
            self._failures.append(row)
        else:
            self._answers.append(row)

    def finish(self, summary: Summary) -> None:
        """Print the document."""
        print_json(
            {
                "answers": self._answers,
                "unread": [each for each in self._failures if each.unread],
                "failed": [each for each in self._failures if not each.unread],
                "summary": summary,
            }
        )


class JsonLines(_Printed):
    """A JSON object on a line of the output stream for each row, as it comes.

    Parameters
    ----------
    make_room
        Clears the live line while a line is printed.
    """

    has_summary = False

    def __init__(self, make_room: MakeRoom) -> None:
        self._make_room = make_room

    def write(self, row: Row) -> None:
        """Print a row, and flush."""
        with self._make_room():
            print(msgspec.json.encode(row).decode(), flush=True)

    def finish(self, summary: Summary) -> None:
        """Do nothing: every row is printed."""


def _cells(row: Row, folder: str) -> list[str]:
    """A row of the table; its image without the folder that all of them are in."""
    name = row.image.removeprefix(folder).lstrip("/") if folder else row.image
    if row.frame is not None:
        name += f" {row.frame}"
    if isinstance(row, Failure):
        return [name, row.kind, "", "", "", ""]
    return [
        name,
        row.label,
        "" if row.confidence is None else f"{row.confidence:.1%}",
        milliseconds(row.latency),
        kilobytes(row.bytes_sent),
        row.where,
    ]
