"""Errors as a shell user reads them: the one place that says them in the command line's words.

The library's errors name an argument as ``name=`` or ``name=value``, after the name of its struct
if it is a field. :class:`Command` writes the option of that argument instead, in wrong usage (exit
code 2) and in failures (exit code 1).
"""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import typer
from typer.core import TyperCommand

from scissionlite.cli.output import print_error
from scissionlite.errors import ScissionLiteError

Context: TypeAlias = Any
"""A context of a command. Its class is click's or typer's own, which depends on typer's version."""

_EXTRAS = {
    "cv2": "camera",
    "google": "triton",
    "inotify_simple": "watch",
    "matplotlib": "demo",
    "onnx": "triton",
    "paho": "mqtt",
    "ray": "ray",
    "torch": "torch",
    "tritonclient": "triton",
}
"""The packages that commands import without asking, and the extras that install them."""

_ARGUMENT = re.compile(r"(?:\b[A-Z]\w*: )?(?<![\w./-])([a-z_]+)=(?:'([^']*)'|(?=([^\s:;,.)])?))")


class Command(TyperCommand):
    """A command whose errors speak of its options, and whose help shows their names whole."""

    def invoke(self, ctx: Context) -> Any:
        """Run the command; a failure is one line on the error stream, and exit code 1."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = self._with_options(error.message, ctx)
            raise
        except ScissionLiteError as error:
            print_error(f"{type(error).__name__}: {self._with_options(str(error), ctx)}")
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # the reader of the output went away; typer ends quietly
            print_error(_file_error(error))
        except ImportError as error:
            print_error(_missing_package(error))
        raise typer.Exit(1)

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Read the options; no number may be infinite or NaN, which pass every range."""
        rest: list[str] = super().parse_args(ctx, args)
        for parameter in self.params:
            value = ctx.params.get(parameter.name)
            if isinstance(value, float) and not math.isfinite(value):
                hint = f"'{parameter.opts[0]}'"
                raise typer.BadParameter(f"{value} is no number.", ctx=ctx, param_hint=hint)
        return rest

    def get_short_help_str(self, limit: int = 45) -> str:
        """Return the whole sentence for the list of commands, which wraps it."""
        return (self.help or "").partition("\n\n")[0].replace("\n", " ")

    def format_options(self, ctx: Context, formatter: Any) -> None:
        """Write the arguments, and the options under the titles of their panels."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
                title = getattr(parameter, "rich_help_panel", None) or kind
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def _with_options(self, message: str, ctx: Context) -> str:
        """Write the options of this command, or of another one, in the place of arguments."""
        options: dict[str, str] = {}
        for command in (*ctx.parent.command.commands.values(), self) if ctx.parent else (self,):
            for parameter in command.params:
                name = _written(parameter)
                options[parameter.name] = name
                options[f"{parameter.name}s"] = name  # a field of several names

        def written(found: re.Match[str]) -> str:
            option = options.get(found[1])
            if option is None:
                return found[0]
            return f"{option} {found[2] or ''}" if found[2] or found[3] else option

        return _ARGUMENT.sub(written, message)


def _written(parameter: Any) -> str:
    """A parameter as a shell user writes it: an option, or the name of an argument in capitals."""
    if parameter.param_type_name == "option":
        return str(parameter.opts[0])
    return str(parameter.name).upper()


def _missing_package(error: ImportError) -> str:
    package = (error.name or "").partition(".")[0]
    if package not in _EXTRAS:
        raise error
    extra = _EXTRAS[package]
    return f"this needs the package {package}: pip install 'scissionlite[{extra}]'"


def _file_error(error: OSError) -> str:
    reason = error.strerror or str(error)
    file = error.filename2 or error.filename  # of a copy, the second one is written
    return reason if file is None else f"{file}: {reason}"


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
