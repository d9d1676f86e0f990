"""Output of the commands: tables for people, JSON for programs."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scissionlite.cli.logs import logs_json

logger = logging.getLogger(__name__)

error_console = Console(stderr=True, soft_wrap=True)
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
    """Print a table; columns whose name ends in "(…)" hold figures and are set to the right."""
    # Text, not str: rich would take "[torch]" in a str for markup.
    table = Table(
        title=Text(printable(title), "table.title"),
        caption=Text(printable(caption), "table.caption") if caption else None,
        title_justify="left",
        caption_justify="left",
    )
    for column in columns:
        # On a narrow terminal a long name is folded, not cut.
        justify: Literal["left", "right"] = "right" if column.endswith(")") else "left"
        table.add_column(column, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    # Into a pipe or a file there is no width to keep to.
    console = Console()
    (console if console.is_terminal else Console(width=150)).print(table)


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds, with about three digits."""
    value = seconds * 1e3
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def kilobytes(nbytes: int) -> str:
    """Bytes as kB (1000 bytes)."""
    return f"{nbytes / 1e3:.2f}" if nbytes < 1e4 else f"{nbytes / 1e3:.1f}"
