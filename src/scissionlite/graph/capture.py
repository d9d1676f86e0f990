"""Capture: from an ordinary PyTorch model to a :class:`scissionlite.Graph`."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from scissionlite.errors import CaptureError, first_line
from scissionlite.graph.arguments import Example, bind_arguments
from scissionlite.graph.graph import Graph
from scissionlite.graph.reference import Reference
from scissionlite.graph.tracing import FIXED_BATCH, TRACERS
from scissionlite.graph.user_code import line_of_error


def capture(
    model: nn.Module,
    example: Example,
    *,
    name: str | None = None,
    max_tensors: int = 1,
    on_step: Callable[[str], object] | None = None,
) -> Graph:
    """Capture a model and find its blocks and slicing points.

    Symbolic tracing (torch.fx) comes first: it keeps the modules, so that the network trains as
    before. If it fails, torch.export follows: it also takes control flow that depends on shapes.

    Parameters
    ----------
    model
        Any module whose inputs and outputs are tensors, alone or in tuples, lists and dicts. A copy
        is captured, in evaluation mode; the model itself is not changed.
    example
        An input, batch first; for several inputs a tuple of arguments, or a dict of arguments by
        name. Shapes and bytes in the graph are those of this input. Its height and width are fixed.
    name
        Name of the model; the name of its class by default.
    max_tensors
        Most tensors that may cross at a slicing point. 1 gives the paper's slicing points; U-Net's
        skips and a detector's neck need more.
    on_step
        Called with a few words at the start of each step, to show progress.

    Raises
    ------
    CaptureError
        If neither way captures the model, or the captured graph computes something else; the
        message names the line of the model's code that prevents it.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(
            f"a {type(model).__name__} cannot be captured: give an ordinary torch.nn.Module "
            "(TorchScript modules no longer have the Python code that is traced)"
        )
    name = name or type(model).__name__
    with _without_collection():
        return _captured(model, example, name, max_tensors, on_step or _tell_nobody)


def _captured(
    model: nn.Module,
    example: Example,
    name: str,
    max_tensors: int,
    tell: Callable[[str], object],
) -> Graph:
    """Capture a model by the first tracer whose graph is the model."""
    tell("running the model")
    own = _copied(model, name)
    bound = bind_arguments(own, example)
    reference = Reference(name, own, bound)
    first = reference.example
    failures: list[str] = []
    for how, trace in TRACERS.items():
        try:
            tell(f"tracing with {how}")
            traced = trace(own, bound, tuple(first.inputs.values()))
            tell("finding slicing points")
            graph = Graph(
                name,
                traced,
                tuple(first.inputs.values()),
                input_names=tuple(first.inputs),
                output_names=tuple(first.outputs),
                output_kind=first.kind,
                max_tensors=max_tensors,
                any_batch=how != FIXED_BATCH,
            )
            tell("comparing with the model")
            wrong = reference.difference(graph)
        except CaptureError as error:
            failures.append(f"{how}: {error}")
        except Exception as error:
            failures.append(f"{how}: {first_line(error)}\n    at {line_of_error(error)}")
        else:
            if wrong is None:
                return graph
            failures.append(f"{how}: {wrong}")
    raise CaptureError(
        f"{name} cannot be captured.\n  " + "\n  ".join(failures) + "\n  Control flow must not "
        "depend on the values of tensors: move it out of forward(), or use torch.where"
    )


@contextmanager
def _without_collection() -> Iterator[None]:
    """Pause Python's garbage collection.

    Copies of modules, and nodes, are many objects that live. The collector walks over them, and
    over all that torch has imported, again and again: half of the time of tracing.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _tell_nobody(step: str) -> None:
    """Show no progress."""


def _copied(model: nn.Module, name: str) -> nn.Module:
    """A copy of a model in evaluation mode."""
    tensors = (*model.parameters(), *model.buffers())
    if any(tensor.is_meta for tensor in tensors):
        raise CaptureError(
            f"{name} has weights without values (on the meta device): load them first, with "
            "model.to_empty(device='cpu') and model.load_state_dict(...)"
        )
    try:
        return copy.deepcopy(model).eval()
    except Exception as error:
        raise CaptureError(
            f"{name} cannot be copied: {first_line(error)}. It holds a tensor that was computed "
            "with gradients, or another thing that copy.deepcopy() refuses: detach() that tensor, "
            "or take off torch.nn.utils.weight_norm with torch.nn.utils.remove_weight_norm() "
            "(torch.nn.utils.parametrizations.weight_norm can be copied)"
        ) from error
