"""The command line, ``scissionlite``: one file per command.

    options -> struct_options -> Recipe, Constraints, ... -> the command -> output: table or JSON

``model_options``, ``link_options`` and ``key_options`` hold the options that several commands
share; ``plan_choice`` finds the plan that ``prepare`` carries out. No command imports torch before
it needs it. ``serve`` is a daemon, with ``config_file``, ``logs`` and ``systemd``.

Exit codes: 0 done; 1 failed, with one line on the error stream; 2 wrong usage. ``usage`` says both
in words of the shell. ``output_paths`` checks what is to be written before any work.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from scissionlite import __version__
from scissionlite.cli.bundles import bundles
from scissionlite.cli.demo import demo
from scissionlite.cli.doctor import doctor
from scissionlite.cli.export import export
from scissionlite.cli.fleet import fleet
from scissionlite.cli.inspect import inspect
from scissionlite.cli.keys import keys, sign
from scissionlite.cli.plan import plan
from scissionlite.cli.prepare import prepare
from scissionlite.cli.probe import probe
from scissionlite.cli.profile import profile
from scissionlite.cli.run import run
from scissionlite.cli.serve import serve
from scissionlite.cli.usage import Command

app = typer.Typer(
    help="Split DNN inference between a device and an edge machine, with a Transfer Layer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich cuts the names of options in a terminal of 80 columns
)
_COMMANDS = (
    *(profile, probe, plan, fleet, prepare, inspect, sign, export),
    *(serve, bundles, run, demo, doctor),
)
for command in _COMMANDS:
    app.command(cls=Command)(command)
app.add_typer(keys)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"scissionlite {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What the terminal's encoding cannot show, such as a file's name, is escaped.
            stream.reconfigure(errors="backslashreplace")
    app()
