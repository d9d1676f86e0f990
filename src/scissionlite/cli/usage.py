"""Wrong usage: the one place that turns errors into usage errors (exit code 2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from scissionlite.errors import ScissionLiteError


@contextmanager
def usage_errors(kind: type[Exception] = ValueError) -> Iterator[None]:
    """Report errors that are raised inside as wrong usage of the command.

    Parameters
    ----------
    kind
        Which errors. By default plain ValueErrors: the library raises them for arguments that
        nobody can mean. A ScissionLiteError stays a failure (exit code 1) unless ``kind`` names
        it, as where an object is made from options alone.
    """
    try:
        yield
    except kind as error:
        if isinstance(error, ScissionLiteError) and not issubclass(kind, ScissionLiteError):
            raise
        raise typer.BadParameter(str(error)) from error
