"""A command's options from a TOML file: ``scissionlite serve --config edge.toml``.

The command's own options are the list of keys: an option ``--bind`` is the key ``bind``, and the
options of a panel of its help (the fields of a struct, see :mod:`.struct_options`) are a table with
the panel's name, as ``[limits]``. What the command line says, wins.
"""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, Union, get_args, get_origin

import typer

from scissionlite.cli.usage import Context
from scissionlite.toml_file import read_toml

_NOT_IN_FILES = {"config", "help", "print_unit"}

_TYPES: dict[type, tuple[type | tuple[type, ...], str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    str: (str, "text in quotes"),
    Path: (str, "a path in quotes"),
}
"""The type of an option: what a TOML file has for it, and its name for people."""


class Key(NamedTuple):
    """A key of a command's file.

    Attributes
    ----------
    parameter
        The command's parameter, of typer.
    type
        Of its value, or of each of its values.
    choices
        The values that are allowed, if they are a list.
    several
        Whether it is a list of values.
    """

    parameter: Any
    type: type
    choices: tuple[str, ...]
    several: bool

    @classmethod
    def of(cls, parameter: Any, annotation: Any) -> Key:
        """Make the key of a parameter with the annotation of the command's function."""
        kind = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
        kinds = [each for each in get_args(kind) if each is not type(None)]
        if get_origin(kind) in (Union, types.UnionType):
            (kind,) = kinds
        several = get_origin(kind) in (list, tuple)
        kind = get_args(kind)[0] if several else kind
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        return cls(parameter, str if choices else kind, choices, several)

    @property
    def allowed(self) -> str:
        """The values that are allowed, in words."""
        text = _TYPES[self.type][1]
        if self.choices:
            text = "one of " + ", ".join(f'"{each}"' for each in self.choices)
        return f"a list, [...], each {text}" if self.several else text

    def takes(self, value: object) -> bool:
        """Whether a value, or one of several, has the type."""
        if isinstance(value, float) and not math.isfinite(value):
            return False
        right = isinstance(value, _TYPES[self.type][0])
        right = right and (not self.choices or value in self.choices)
        return right and isinstance(value, bool) == (self.type is bool)


Tables: TypeAlias = dict[str, dict[str, Key]]
"""For each table of a file ("" is its top): the keys."""


def keys_of(context: Context) -> Tables:
    """Return the keys that a command's file may have."""
    signature = inspect.signature(context.command.callback)
    tables: Tables = {"": {}}
    for parameter in context.command.params:
        if parameter.name in _NOT_IN_FILES:
            continue
        name = parameter.name
        if parameter.param_type_name == "option":
            name = next(each for each in parameter.opts if each.startswith("--"))[2:]
        table = (getattr(parameter, "rich_help_panel", None) or "").lower()
        annotation = signature.parameters[parameter.name].annotation
        tables.setdefault(table, {})[name] = Key.of(parameter, annotation)
    return tables


def read_config(path: Path, context: Context) -> dict[str, Any]:
    """Read a file; return the values of a command's parameters by name.

    Parameters
    ----------
    path
        The file. Relative paths in it are relative to its folder.
    context
        Of the command.

    Raises
    ------
    typer.BadParameter
        If it cannot be read, or has a key or a value that is not allowed.
    """
    try:
        document = read_toml(path)
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise typer.BadParameter(f"{path} is not TOML: {error}") from error
    values = {}
    for place, key, value in _entries(path, document, keys_of(context)):
        checked = _check(place, key, value, path.parent)
        try:
            key.parameter.process_value(context, checked)
        except typer.BadParameter as error:
            raise typer.BadParameter(f"{place}: {error.message}") from error
        values[key.parameter.name] = checked
    return values


def _entries(
    path: Path, document: Mapping[str, Any], tables: Tables
) -> Iterator[tuple[str, Key, Any]]:
    """Yield each key's place for messages, the key and its value."""
    for name, value in document.items():
        if name in tables and name and isinstance(value, dict):
            for inner, each in value.items():
                yield f"{path}: {name}.{inner}", _find(path, name, inner, tables), each
        else:
            yield f"{path}: {name}", _find(path, "", name, tables), value


def _find(path: Path, table: str, name: str, tables: Tables) -> Key:
    """Find a key in a table; a BadParameter, which says what is allowed, if it is not there."""
    if name in tables[table]:
        return tables[table][name]
    place = f"{path}: {table}.{name}" if table else f"{path}: {name}"
    homes = [each for each, keys in tables.items() if name in keys]
    if homes:
        home = f"in the table [{homes[0]}]" if homes[0] else "before the first table"
        raise typer.BadParameter(f"{place} is not known there: it stands {home}")
    if not table and name in tables:
        raise typer.BadParameter(f"{place} must be a table, [{name}]")
    import difflib  # takes long, and is for errors only

    known = sorted(tables[table])
    if not table:
        known += [f"[{each}]" for each in tables if each]
    near = difflib.get_close_matches(name.replace("_", "-"), known, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise typer.BadParameter(f"{place} is not known: {hint}There are {', '.join(known)}")


def _check(place: str, key: Key, value: Any, folder: Path) -> Any:
    """Return a value for an option; a BadParameter if it is of another type."""
    values = value if key.several and isinstance(value, list) else [value]
    if key.several != isinstance(value, list) or not all(map(key.takes, values)):
        raise typer.BadParameter(f"{place} = {value!r} must be {key.allowed}")
    if key.type is Path:
        values = [str(folder / each) for each in values]
    return values if key.several else values[0]


def _use_config(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        context.default_map = {**(context.default_map or {}), **read_config(path, context)}
    return path


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        help="TOML file with these options as keys. What the command line says, wins.",
        is_eager=True,  # before the options that it holds
        callback=_use_config,
        show_default="none",
    ),
]
