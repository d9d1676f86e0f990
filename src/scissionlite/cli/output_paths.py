"""Options that name what a command writes: checked before the command begins its work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from scissionlite.atomic_folder import check_file_place, check_folder_place
from scissionlite.bundle import check_bundle_place
from scissionlite.cli.usage import usage_errors
from scissionlite.errors import BundleError


def output_file(text: str, *, suffixes: tuple[str, ...] = (), **settings: Any) -> Any:
    """Make an option for a file to write, with one of some suffixes.

    ``settings`` are those of ``typer.Option``.
    """

    def checked(file: Path | None) -> Path | None:
        if file is not None:
            if suffixes and file.suffix.lower() not in suffixes:
                expected = " or ".join(suffixes)
                raise typer.BadParameter(f"{file} must end in {expected}, not {file.suffix!r}")
            with _usage_errors(file):
                check_file_place(file)
        return file

    return typer.Option(help=text, callback=checked, **settings)


def output_folder(text: str) -> Any:
    """Make an option for a folder to write into."""
    return typer.Option(help=text, callback=_checked_folder)


def output_bundle(text: str) -> Any:
    """Make an option for the folder of a bundle, which is new or replaces an earlier bundle."""
    return typer.Option(help=text, callback=_checked_bundle)


def _checked_folder(folder: Path) -> Path:
    with _usage_errors(folder):
        check_folder_place(folder)
    return folder


def _checked_bundle(folder: Path) -> Path:
    with _usage_errors(folder):
        check_bundle_place(folder)
        check_folder_place(folder.resolve().parent)  # a bundle is written beside its place
    return folder


@contextmanager
def _usage_errors(path: Path) -> Iterator[None]:
    with usage_errors(BundleError):
        try:
            yield
        except OSError as error:
            place = "" if error.filename == str(path) else f"{error.filename}: "
            reason = f"{path} cannot be written ({place}{error.strerror})"
            raise typer.BadParameter(reason) from error
