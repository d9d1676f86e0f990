"""Classes: their names, from folders or a file, in the order of the network's outputs; no torch."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from scissionlite.errors import PrepareError
from scissionlite.image_files import is_hidden

MetricName: TypeAlias = Literal["accuracy", "balanced-accuracy", "macro-f1", "miou"]
"""What is measured of a network that answers classes (:data:`.metrics.METRICS`)."""

_SHOWN = 12
"""Most names that a message shows."""


class ClassFolders(NamedTuple):
    """The class folders of a data set in ImageFolder layout.

    Attributes
    ----------
    places
        The folders of each class, in the order of torchvision's ImageFolder: sorted as text. A
        class has several only if their names differ in nothing but their Unicode form.
    hidden
        How many folders were left out, because they are hidden.
    """

    places: dict[str, list[Path]]
    hidden: int


def same_form(name: str) -> str:
    """A name in the one Unicode form (NFC) in which names are compared.

    Systems write the same letter in different forms: macOS an e and its accent, others one letter.
    """
    return unicodedata.normalize("NFC", name)


def class_folders(root: Path) -> ClassFolders:
    """Find the class folders in a folder; hidden ones are left out, links are followed.

    Raises
    ------
    PrepareError
        If the folder cannot be read, a link in it leads nowhere, or a name is not UTF-8.
    """
    places: dict[str, list[Path]] = {}
    hidden = 0
    try:
        entries = sorted(root.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        raise PrepareError(f"the folder {root} cannot be read: {error.strerror}") from error
    for entry in entries:
        if entry.is_symlink() and not entry.exists() and not is_hidden(entry.name):
            raise PrepareError(f"{entry} is a link to something that is not there")
        if not entry.is_dir():
            continue
        if is_hidden(entry.name):
            hidden += 1
            continue
        try:
            entry.name.encode()
        except UnicodeEncodeError as error:  # the bundle's manifest could not hold it
            raise PrepareError(
                f"the name of the class folder {str(entry)!r} is not UTF-8: rename it"
            ) from error
        places.setdefault(same_form(entry.name), []).append(entry)
    return ClassFolders(places, hidden)


def read_class_names(file: Path) -> tuple[str, ...]:
    """Read the names of classes from a text file, one in each line.

    Raises
    ------
    PrepareError
        If it cannot be read, is empty or not UTF-8, or a name is missing or there twice.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise PrepareError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PrepareError(f"{file} is not a text in UTF-8: save it as one") from error
    names = [line.strip() for line in text.rstrip().split("\n")]
    for number, name in enumerate(names, 1):
        if not name:
            raise PrepareError(
                f"{file}, line {number} is empty: each line names a class, in the order of the "
                "network's outputs"
            )
    return checked_names(names, str(file))


def checked_names(names: Iterable[str], source: str) -> tuple[str, ...]:
    """Bring names to one Unicode form, and check that all are different.

    Raises
    ------
    PrepareError
        If there is no name, or one is there twice.
    """
    if isinstance(names, str):
        raise PrepareError(f"{source} is one text, {names!r}: give a list of names")
    checked = tuple(map(same_form, names))
    twice = sorted({name for name in checked if checked.count(name) > 1})
    if twice or not checked:
        raise PrepareError(
            f"{source} names a class twice: {shown(twice)}" if twice else f"{source} names no class"
        )
    return checked


def unknown_names(names: Iterable[str], classes: Collection[str]) -> str:
    """A text of the names that are none of the classes; empty if all are.

    A name that differs from a class only in case or in spaces is shown with it.
    """
    alike = {name.strip().casefold(): name for name in classes}
    texts = []
    for name in names:
        if name not in classes:
            near = alike.get(name.strip().casefold())
            texts.append(repr(name) if near is None else f"{name!r} (there is a class {near!r})")
    return ", ".join(texts)


def shown(names: Collection[str]) -> str:
    """Names for a message; of many, the first."""
    text = ", ".join(list(names)[:_SHOWN])
    return text if len(names) <= _SHOWN else f"{text}, and {len(names) - _SHOWN} more"
