"""The fields of a settings struct: type, range, choices, default and description.

A struct such as :class:`scissionlite.Recipe` states each setting once: its type with its range
(``Annotated[int, msgspec.Meta(ge=0)]``) or its choices (a ``Literal``), its default, and its
description in the docstring. The struct's own check and the command line's options read them here.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
import types
import typing
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from scissionlite.errors import ScissionLiteError


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """One field of a struct.

    Attributes
    ----------
    name
        The field's name.
    type
        ``int``, ``float``, ``bool``, ``str``, a ``Literal`` or ``tuple[str, ...]``; what the
        annotation says beside None and the range.
    optional
        Whether it may be None.
    low, high
        Range of a number, both included; None where there is no limit.
    description
        Its text in the docstring, as plain text; empty if there is none.
    """

    name: str
    type: Any
    optional: bool
    low: float | None
    high: float | None
    description: str

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a ``Literal``; empty for another type."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    @property
    def summary(self) -> str:
        """The first sentence of the description."""
        return re.split(r"(?<=\.)\s", self.description, maxsplit=1)[0]


@functools.cache
def struct_fields(struct: type[msgspec.Struct]) -> tuple[Field, ...]:
    """The fields of a struct, in order."""
    texts = _docstring_texts(struct)
    fields = []
    for info in msgspec.structs.fields(struct):
        kinds = [each for each in _union_members(info.type) if each is not type(None)]
        kind, low, high = _without_range(kinds[0])
        fields.append(
            Field(
                name=info.name,
                type=kind,
                optional=len(kinds) < len(_union_members(info.type)),
                low=low,
                high=high,
                description=texts.get(info.name, ""),
            )
        )
    return tuple(fields)


def check_fields(struct: msgspec.Struct, error: type[ScissionLiteError]) -> None:
    """Check that every number is in its field's range, and every choice is one of the choices.

    Raises
    ------
    ScissionLiteError
        Of the class ``error``, for the first value that is not.
    """
    for field in struct_fields(type(struct)):
        value = getattr(struct, field.name)
        if value is None and field.optional:
            continue
        if field.choices and value not in field.choices:
            allowed = ", ".join(field.choices)
        elif field.type in (int, float) and not _in_range(value, field):
            allowed = _range_text(field)
        else:
            continue
        raise error(f"{type(struct).__name__}: {field.name}={value!r} must be {allowed}")


def _in_range(value: float, field: Field) -> bool:
    low = -math.inf if field.low is None else field.low
    high = math.inf if field.high is None else field.high
    return low <= value <= high  # not for NaN


def _range_text(field: Field) -> str:
    if field.low is None or field.high is None:
        return f"{field.low:g} or more" if field.high is None else f"{field.high:g} or less"
    return f"{field.low:g} to {field.high:g}"


def _union_members(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) in (typing.Union, types.UnionType):
        return get_args(annotation)
    return (annotation,)


def _without_range(annotation: Any) -> tuple[Any, float | None, float | None]:
    """A type without its ``Annotated``, and the range that stood there."""
    if get_origin(annotation) is not Annotated:
        return annotation, None, None
    kind, *metas = get_args(annotation)
    (meta,) = (each for each in metas if isinstance(each, msgspec.Meta))
    return kind, meta.ge, meta.le


def _docstring_texts(struct: type[msgspec.Struct]) -> dict[str, str]:
    """Field name to its text in the docstring's section "Parameters" (numpydoc)."""
    docstring = inspect.cleandoc(struct.__doc__ or "")
    found = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[^\n]*\n-+\n|\Z)", docstring, re.M | re.S)
    texts: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", found[1].strip() if found else ""):
        names, _, text = entry.partition("\n")
        for name in names.partition(" : ")[0].split(", "):
            texts[name] = _plain(text)
    return texts


def _plain(text: str) -> str:
    """Text without the marks of reStructuredText."""
    without_roles = re.sub(r":\w+:`[~.]?([^`]*)`", r"\1", " ".join(text.split()))
    return without_roles.replace("`", "")
