"""The hierarchy of errors is the one drawn at the top of errors.py."""

from __future__ import annotations

import inspect
import re

from scissionlite import errors


def bases(error: type[object]) -> tuple[str, ...]:
    return tuple(base.__name__ for base in error.__bases__)


def test_the_tree_at_the_top_shows_every_class_with_its_bases() -> None:
    assert errors.__doc__ is not None
    drawn: dict[str, tuple[str, ...]] = {}
    path: list[str] = []
    for indent, name, builtin in re.findall(r"^( *)\* (\w+)(?: \((\w+)\))?$", errors.__doc__, re.M):
        del path[len(indent) // 2 :]
        drawn[name] = tuple(filter(None, (path[-1] if path else "Exception", builtin)))
        path.append(name)
    defined = {
        name: bases(error)
        for name, error in inspect.getmembers(errors, inspect.isclass)
        if error.__module__ == errors.__name__
    }
    assert drawn == defined
