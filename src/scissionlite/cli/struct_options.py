"""Options made from the fields of a struct, so that only the struct states them.

A command marks a parameter with :class:`FieldOptions`, and :func:`struct_options` puts one option
per field in its place::

    @struct_options
    def plan(constraints: Annotated[Constraints, FieldOptions("Limits")] = Constraints()): ...

An option has its field's type, range, default, and the first sentence of its description. A field
that holds several names is an option in the singular that may be given several times:
``slicing_points`` is ``--slicing-point``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Generic, NamedTuple, Optional, TypeVar, get_args, get_origin

import msgspec
import typer

from scissionlite.cli.usage import usage_errors
from scissionlite.errors import ScissionLiteError
from scissionlite.fields import Field, struct_fields

S = TypeVar("S", bound=msgspec.Struct)


class FieldOptions(NamedTuple):
    """Marks a command's parameter whose fields are options.

    Attributes
    ----------
    panel
        Title of the options in the command's help.
    several
        Title of the options that may be given several times.
    without
        Fields that are no options: they keep their default.
    """

    panel: str
    several: str = ""
    without: tuple[str, ...] = ()


class Changes(Generic[S]):
    """Fields of a struct that were given as options, to be changed in another instance of it.

    A parameter ``Annotated[Changes[S], FieldOptions(...)]`` has an option per field of ``S``; one
    that is not given changes nothing.
    """

    def __init__(self, **fields: object) -> None:
        self._fields = fields

    @property
    def options(self) -> tuple[str, ...]:
        """The options that were given, as they are written."""
        return tuple(f"--{name.replace('_', '-')}" for name in self._fields)

    def apply(self, base: S) -> S:
        """The struct with the changes; a value that the struct refuses is wrong usage."""
        with usage_errors(ScissionLiteError):
            return msgspec.structs.replace(base, **self._fields)


def struct_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace every marked parameter of a command by one option per field."""
    signature = inspect.signature(command, eval_str=True)
    groups = {
        parameter.name: _Group(parameter, get_args(parameter.annotation)[1])
        for parameter in signature.parameters.values()
        if any(isinstance(each, FieldOptions) for each in get_args(parameter.annotation))
    }

    @functools.wraps(command)
    def with_structs(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group.collect(values)
        command(**values)

    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        own = groups[parameter.name].parameters if parameter.name in groups else [parameter]
        parameters += own
    # typer reads a command's signature and annotations.
    with_structs.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # inspect reads it
    with_structs.__annotations__ = {each.name: each.annotation for each in parameters}
    return with_structs


class _Group:
    """The options that stand for one parameter."""

    def __init__(self, parameter: inspect.Parameter, marker: FieldOptions) -> None:
        annotated = get_args(parameter.annotation)[0]
        self._changes = get_origin(annotated) is Changes
        self._struct = get_args(annotated)[0] if self._changes else annotated
        self._default = parameter.default
        self._marker = marker

    @property
    def parameters(self) -> Iterable[inspect.Parameter]:
        """One parameter of a typer command per field."""
        return [self._parameter(field) for field in self._fields()]

    def collect(self, values: dict[str, Any]) -> Any:
        """Take the fields' values out of a command's arguments, and make the struct of them."""
        fields = {}
        for field in self._fields():
            value = values.pop(_option_name(field))
            fields[field.name] = tuple(value) if _several(field) else value
        if self._changes:
            return Changes(**{name: value for name, value in fields.items() if value is not None})
        with usage_errors(), usage_errors(ScissionLiteError):
            return self._struct(**fields)

    def _fields(self) -> list[Field]:
        return [
            each for each in struct_fields(self._struct) if each.name not in self._marker.without
        ]

    def _parameter(self, field: Field) -> inspect.Parameter:
        several = _several(field)
        option = typer.Option(
            help=field.summary,
            min=field.low,
            max=field.high,
            rich_help_panel=self._marker.several if several else self._marker.panel,
            show_default=not several,
        )
        kind: Any = list[str] if several else field.type
        if field.optional or self._changes:
            kind = Optional[kind]  # noqa: UP045 - a type made at run time
        default: Any = None if self._changes else getattr(self._default, field.name)
        return inspect.Parameter(
            _option_name(field),
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=list(default) if several else default,
            annotation=Annotated[kind, option],
        )


def _several(field: Field) -> bool:
    return get_origin(field.type) is tuple


def _option_name(field: Field) -> str:
    return field.name.removesuffix("s") if _several(field) else field.name
