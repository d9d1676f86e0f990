"""Output of the commands: tables for people, JSON for programs."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any, Literal

import msgspec
import typer
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scissionlite.cli.logs import logs_json

logger = logging.getLogger(__name__)


class _ErrorConsole(Console):
    """The error stream, which nothing depends on: a daemon serves on if its log has no room."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print; what cannot be written is lost, as with a line of the log."""
        with suppress(OSError):
            super().print(*objects, **options)


error_console = _ErrorConsole(stderr=True, soft_wrap=True)
"""Errors and progress go here, so that the output stream holds only the answer."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def print_error(message: str) -> None:
    """Print a failure as one line on the error stream."""
    if logs_json():
        logger.error("%s", printable(message))
        return
    _print_line("error:", "bold red", message)


def print_warning(message: str) -> None:
    """Print a warning as one line on the error stream."""
    _print_line("warning:", "bold yellow", message)


def print_note(message: str) -> None:
    """Print a line of news on the error stream."""
    error_console.print(printable(message), markup=False, highlight=False)


@contextmanager
def warnings_of_the_log() -> Iterator[None]:
    """Print what the library logs inside, as lines that a live line makes room for."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            print_warning(record.getMessage())

    logger, handler = logging.getLogger("scissionlite"), Handler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _print_line(kind: str, style: str, message: str) -> None:
    # In one piece: a live line may follow what is printed.
    line = Text.assemble((kind, style), " ", printable(message))
    error_console.print(line, highlight=False)


def printable(text: str) -> str:
    r"""Text with the bytes of file names that are not UTF-8 written as ``\xe9``.

    Python holds such bytes in a form that neither a terminal nor JSON can take.
    """
    return os.fsencode(text).decode(errors="backslashreplace")


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Show warnings that arise inside without the place in the code that Python would show."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print_warning(str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def print_json(value: Any) -> None:
    """Print a value (structs included) as one JSON document."""
    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=1).decode())


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str | None = None
) -> None:
    """Print a table; where the terminal is too narrow for it, a few lines for each row.

    Nothing is cut off. Columns that hold figures alone are set to the right and never folded; a
    name such as "latency (ms)" gives their unit.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)  # into a pipe or a file there is no width to keep to
    table = [_Column(name, [printable(row[i]) for row in rows]) for i, name in enumerate(columns)]
    # Text, not str: rich would take "[torch]" in a str for markup.
    head = Text(printable(title), "table.title")
    foot = Text(printable(caption), "table.caption") if caption else None
    names = [column.name for column in table]
    if _grid_width(names, table, console.width) > console.width:
        names = [column.folded_name for column in table]
    if _grid_width(names, table, _NARROWEST_TEXT) <= console.width:
        console.print(_grid(names, table, head, foot))
        return
    console.print(head)
    for line in _paragraphs(table, console.width):
        console.print(line)
    if foot is not None:
        console.print(foot)


_NARROWEST_TEXT = 16
"""Characters to which a column of texts may be folded."""

_GAP = 3
"""Spaces between two values on a line, and between two columns of a grid."""


class _Column:
    """A column of a table, and whether it holds figures."""

    def __init__(self, name: str, cells: list[str]) -> None:
        self.name, self.cells = name, cells
        self.figures = any(cells) and all(re.fullmatch(r"[\d.,+\-%| ]*", cell) for cell in cells)

    @property
    def folded_name(self) -> str:
        """The name on several lines, for figures; rich itself folds the names of texts."""
        return self.name.replace(" ", "\n") if self.figures else self.name

    def pairs(self) -> list[str]:
        """The name, the value and the unit in every row, all of one width."""
        name, _, unit = self.name.removesuffix(")").partition(" (")
        widest = max(map(cell_len, self.cells), default=0)
        pairs = []
        for cell in self.cells:
            gap = " " * (widest - cell_len(cell or "-"))
            value = f"{gap}{cell or '-'}" if self.figures else f"{cell or '-'}{gap}"
            pairs.append(" ".join(filter(None, (name, value, unit if cell else ""))))
        longest = max(map(cell_len, pairs), default=0)
        return [set_cell_size(pair, longest) for pair in pairs]


def _grid_width(names: Sequence[str], table: Sequence[_Column], text: int) -> int:
    """Characters that a grid takes where texts take at most ``text`` of them."""
    width = 1
    for name, column in zip(names, table, strict=True):
        longest = max(map(cell_len, (*name.split("\n"), *column.cells)))
        width += _GAP + (longest if column.figures else min(longest, text))
    return width


def _grid(
    names: Sequence[str], columns: Sequence[_Column], title: Text, caption: Text | None
) -> Table:
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for name, column in zip(names, columns, strict=True):
        justify: Literal["left", "right"] = "right" if column.figures else "left"
        # On a narrow terminal a long text is folded, not cut.
        table.add_column(Text(name), justify=justify, no_wrap=column.figures, overflow="fold")
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(Text, row))
    return table


def _paragraphs(columns: Sequence[_Column], width: int) -> Iterator[Text]:
    """Each row as a line of its texts, and below it lines of its figures, all with names."""
    first_text = next((i for i, column in enumerate(columns) if not column.figures), 0)
    heads = [c for i, c in enumerate(columns) if not c.figures or i < first_text]
    figures = [c for i, c in enumerate(columns) if c.figures and i > first_text]
    for head, below in zip(_in_places(heads, width), _in_places(figures, width - 2), strict=False):
        yield from (Text(line, "bold", overflow="fold") for line in head)
        yield from (Text(f"  {line}", overflow="fold") for line in below)


def _in_places(columns: Sequence[_Column], width: int) -> Iterator[list[str]]:
    """The lines of each row, with as many values in a line as fit, below those of other rows."""
    pairs = [column.pairs() for column in columns]
    rows = list(zip(*pairs, strict=True))
    widths = [cell_len(pair) for pair in rows[0]] if rows else []
    for count in range(len(widths), 0, -1):
        places = [max(widths[i::count]) for i in range(count)]
        if sum(places) + _GAP * (count - 1) <= width:
            break
    for row in rows:
        padded = [set_cell_size(pair, places[i % count]) for i, pair in enumerate(row)]
        lines = [padded[i : i + count] for i in range(0, len(row), count)]
        yield [(" " * _GAP).join(line).rstrip() for line in lines]


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds, with about three digits."""
    value = seconds * 1e3
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def kilobytes(nbytes: int) -> str:
    """Bytes as kB (1000 bytes)."""
    return f"{nbytes / 1e3:.2f}" if nbytes < 1e4 else f"{nbytes / 1e3:.1f}"
