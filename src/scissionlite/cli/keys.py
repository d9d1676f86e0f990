"""``scissionlite keys`` and ``scissionlite sign``: key pairs, who is authorised, signed bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scissionlite.bundle import Bundle
from scissionlite.cli.output import JsonOption, error_console, print_json, print_table
from scissionlite.cli.usage import Command
from scissionlite.keys import authorized as authorized_file
from scissionlite.keys.files import (
    PUBLIC_SUFFIX,
    PublicKey,
    make_key_pair,
    read_public,
    read_secret,
)

_HELP = "Make key pairs, and say which devices may use an edge daemon."
keys = typer.Typer(
    name="keys",
    help=_HELP,
    short_help=_HELP,  # or else typer shortens it in the reference of commands
    no_args_is_help=True,
    rich_markup_mode=None,
)

AuthorizedArgument = Annotated[
    Path, typer.Argument(help="File of authorised keys, which `serve --authorized` reads.")
]


@keys.command(cls=Command)
def make(
    path: Annotated[
        Path, typer.Argument(help="The secret file to write; the public key goes to PATH.pub.")
    ],
    signing: Annotated[
        bool, typer.Option("--signing", help="A key that signs bundles, not one for a link.")
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the machine or person.", show_default="the file's name"),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Make a key pair: a secret file that only its owner can read, and its public key."""
    public = make_key_pair(path, "signing" if signing else "link", name)
    error_console.print(
        f"The secret key is in {path}, and stays on this machine. The public key is in "
        f"{path}{PUBLIC_SUFFIX}:",
        markup=False,
        highlight=False,
    )
    _print(public, json)


@keys.command(cls=Command)
def show(
    path: Annotated[Path, typer.Argument(help="A secret or a public key file.")],
    json: JsonOption = False,
) -> None:
    """Show the public key of a secret or a public key file."""
    public = path.suffix == PUBLIC_SUFFIX
    _print(read_public(path) if public else read_secret(path).public, json)


@keys.command(cls=Command)
def authorize(
    authorized: AuthorizedArgument,
    public: Annotated[Path, typer.Argument(help="The public key (.pub) of a device.")],
) -> None:
    """Let a device use the edge daemons that read this file; they need no restart."""
    key = read_public(public, "link")
    authorized_file.authorize(authorized, key)
    typer.echo(f"{authorized} authorises {key.name}")


@keys.command(cls=Command)
def revoke(
    authorized: AuthorizedArgument,
    which: Annotated[str, typer.Argument(metavar="NAME|KEY", help="Its name, or the key itself.")],
) -> None:
    """Refuse a device from now on, also on the connection that it has; needs no restart."""
    key = authorized_file.revoke(authorized, which)
    typer.echo(f"{authorized} no longer authorises {key.name}")


@keys.command(name="list", cls=Command)
def list_keys(authorized: AuthorizedArgument, json: JsonOption = False) -> None:
    """List the authorised keys."""
    found = authorized_file.read_keys(authorized, "link")
    if json:
        print_json(found)
    else:
        print_table(f"{authorized}", ["name", "key"], [[key.name, key.key] for key in found])


def sign(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    key: Annotated[
        Path, typer.Argument(help="A secret signing key (`scissionlite keys make --signing`).")
    ],
) -> None:
    """Sign a bundle, after checking every slice; `serve` and `run --trust` check the signature."""
    signer = Bundle.load(bundle).sign(key)
    typer.echo(f"{bundle} is signed by {signer.name}")


def _print(public: PublicKey, json: bool) -> None:
    if json:
        print_json(public)
    else:
        typer.echo(public.line)
