"""Arguments and answers of a model: nested dicts, tuples and lists as tensors with names."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from scissionlite.errors import CaptureError
from scissionlite.graph.tensors import OutputKind

Example: TypeAlias = torch.Tensor | Sequence[Any] | Mapping[str, Any]
"""One tensor, a sequence of positional arguments, or keyword arguments by name."""


def named_leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values in nested dicts, tuples and lists, each with its dotted path; None is skipped."""
    parts: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, (tuple, list)):
        parts = zip(getattr(value, "_fields", range(len(value))), value, strict=True)
    else:
        if value is not None:
            yield name, value
        return
    for key, part in parts:
        yield from named_leaves(part, f"{name}.{key}" if name else str(key))


def map_leaves(value: Any, function: Any) -> Any:
    """The same nested dicts, tuples and lists with every tensor replaced."""
    if isinstance(value, Mapping):
        return {key: map_leaves(part, function) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(map_leaves(part, function) for part in value)
    return None if value is None else function(value)


def bind_arguments(model: nn.Module, example: Example) -> inspect.BoundArguments:
    """The model's arguments by name, in the order of its signature."""
    signature = inspect.signature(model.forward)
    if isinstance(example, Mapping) and set(example) <= set(signature.parameters):
        arguments, named = (), dict(example)
    else:
        # A dict of other names is one argument that is a dict.
        arguments = tuple(example) if isinstance(example, (tuple, list)) else (example,)
        named = {}
    try:
        bound = signature.bind(*arguments, **named)
    except TypeError as error:
        raise CaptureError(
            f"the example does not fit {type(model).__name__}.forward{signature}: {error}; give "
            "one tensor, a tuple of arguments, or a dict of arguments by name"
        ) from error
    leaves = dict(named_leaves(bound.arguments))
    for leaf, value in leaves.items():
        if not isinstance(value, torch.Tensor) or value.dtype not in (torch.float32, torch.int64):
            kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            raise CaptureError(
                f"the example's {leaf} is {kind}: an example is made of float32 (or int64) "
                "tensors, batch first"
            )
    if not leaves:
        raise CaptureError("the example holds no tensor")
    return bound


def named_outputs(name: str, answer: Any) -> tuple[dict[str, torch.Tensor], OutputKind]:
    """The tensors of the model's answer by name, and how it holds them."""
    kind: OutputKind
    if isinstance(answer, torch.Tensor):
        found, kind = {"output": answer}, "tensor"
    elif not isinstance(answer, (Mapping, tuple, list)):
        raise CaptureError(
            f"{name} answers a {type(answer).__name__}: wrap the model so that it returns float32 "
            "tensors, alone or in tuples, lists and dicts"
        )
    else:
        found = dict(named_leaves(answer))
        nested = any(isinstance(part, (Mapping, tuple, list)) for part in _parts(answer))
        kind = "tuple" if isinstance(answer, (tuple, list)) and not nested else "dict"
    for path, value in found.items():
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
            what = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            raise CaptureError(
                f"{name} answers {what} in {path or 'its output'}: wrap the model so that it "
                "returns float32 tensors, alone or in tuples, lists and dicts"
            )
    if not found:
        raise CaptureError(f"{name} answers no tensor")
    return found, kind


def _parts(answer: Any) -> Iterable[Any]:
    return answer.values() if isinstance(answer, Mapping) else answer
