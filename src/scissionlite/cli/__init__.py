"""The command line, ``scissionlite``: one file per command.

    options -> struct_options -> Recipe, Constraints, ... -> the command -> output: table or JSON

``model_options`` and ``link_options`` hold the options that several commands share; ``plan_choice``
finds the plan that ``prepare`` carries out. No command imports torch before it needs it.

Exit codes: 0 done; 1 failed, with one line on the error stream (``main``); 2 wrong usage
(``usage``).
"""

from __future__ import annotations

import sys

import typer

from scissionlite.cli.demo import demo
from scissionlite.cli.doctor import doctor
from scissionlite.cli.inspect import inspect
from scissionlite.cli.output import print_error
from scissionlite.cli.plan import plan
from scissionlite.cli.prepare import prepare
from scissionlite.cli.probe import probe
from scissionlite.cli.profile import profile
from scissionlite.cli.run import run
from scissionlite.cli.serve import serve
from scissionlite.errors import ScissionLiteError

app = typer.Typer(
    help="Split DNN inference between a device and an edge machine, with a Transfer Layer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (profile, probe, plan, prepare, inspect, serve, run, demo, doctor):
    app.command()(command)


def main() -> None:
    """Run the command line and exit."""
    try:
        app()
    except ScissionLiteError as error:
        print_error(error)
        sys.exit(1)
