"""The untouched model as the reference of a captured network: it must answer the same.

The example alone would not do. It may be zeros, and the model may write into it. So the two are
compared on other inputs too, of three scales and another batch size, each time on copies. These
are answered by a copy of the model that has not seen the example, since a model may keep what it
computed from its first input.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from scissionlite.errors import CaptureError, first_line
from scissionlite.graph.analysis import CHECKED_SCALES, flat, varied_inputs
from scissionlite.graph.arguments import map_leaves, named_leaves, named_outputs
from scissionlite.graph.graph import Graph
from scissionlite.graph.tensors import OutputKind
from scissionlite.graph.user_code import line_of_error


@dataclass(frozen=True)
class Check:
    """Some inputs of the network, and how the model itself, untouched, answers them."""

    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]
    kind: OutputKind


class Reference:
    """The model itself, and the inputs on which captured graphs are compared with it."""

    def __init__(self, name: str, model: nn.Module, bound: inspect.BoundArguments) -> None:
        self._name, self._model, self._bound = name, model, bound
        weights: dict[int, object] = {id(weight): weight for weight in model.parameters()}
        self._other = copy.deepcopy(model, weights)  # shares the weights
        self.example = _answered_by(name, model, bound)

    def difference(self, graph: Graph) -> str | None:
        """Say in which way a graph answers something else than the model, if it does."""
        for check in self._of(graph):
            if (wrong := _difference(graph, check)) is None:
                continue
            again = self._answered(self._model, list(check.inputs.values()))
            if again is not None and _differing_output(again.outputs, check.outputs):
                return (
                    "the model answers the same input differently the second time, or after other "
                    "inputs; does it draw random numbers, or keep state between calls?"
                )
            return wrong
        return None

    def _of(self, graph: Graph) -> Iterator[Check]:
        yield self.example
        example = list(self.example.inputs.values())
        if graph.dynamic_batch:
            batch = max(3, len(example[0]) + 1)
            batched = self._answered(self._other, varied_inputs(example, CHECKED_SCALES, batch))
            single = self._answered(self._other, varied_inputs(example, (1.0,)))
            if batched is not None and single is not None:
                yield from (batched, single)
                return
        # The largest first: a model may keep the largest value that it has seen.
        scales = sorted(CHECKED_SCALES, reverse=True)
        inputs = (varied_inputs(example, (scale,)) for scale in scales)
        yield from filter(None, (self._answered(self._other, each) for each in inputs))

    def _answered(self, model: nn.Module, inputs: Sequence[torch.Tensor]) -> Check | None:
        """Some inputs as a check; None where the model itself does not take them."""
        values = iter(inputs)
        arguments = map_leaves(dict(self._bound.arguments), lambda _: next(values))
        bound = inspect.BoundArguments(self._bound.signature, arguments)
        try:
            return _answered_by(self._name, model, bound)
        except CaptureError:
            return None


def _answered_by(name: str, model: nn.Module, bound: inspect.BoundArguments) -> Check:
    """Ask the model itself; on copies, since a model may write into what it is given."""
    inputs = {path: x.clone() for path, x in named_leaves(bound.arguments)}
    copies = inspect.BoundArguments(
        bound.signature, map_leaves(dict(bound.arguments), torch.Tensor.clone)
    )
    try:
        with torch.no_grad():
            answer = model(*copies.args, **copies.kwargs)
    except Exception as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs.values())
        raise CaptureError(
            f"{name} does not run on the example of shape {shapes}.\n  {first_line(error)}\n    "
            f"at {line_of_error(error)}{_way_to_backbone(model)}"
        ) from error
    try:
        outputs, kind = named_outputs(name, answer)
    except CaptureError as error:
        raise CaptureError(f"{error}{_way_to_backbone(model)}") from error
    return Check(inputs, {path: x.clone() for path, x in outputs.items()}, kind)


def _way_to_backbone(model: nn.Module) -> str:
    """Say which part of a detector can be captured, if the model looks like one."""
    if not isinstance(getattr(model, "backbone", None), nn.Module):
        return ""
    return (
        "\n  If it is a detector, its end depends on values: capture model.backbone, with the head "
        "where it computes tensors only; docs/detectors.md has the recipe"
    )


def _difference(graph: Graph, check: Check) -> str | None:
    """Say in which way a graph answers something else than the model, if it does."""
    inputs = [x.clone() for x in check.inputs.values()]
    with torch.no_grad():
        answers = flat(graph.module(*inputs))
    if not all(map(torch.equal, inputs, check.inputs.values())):
        return "the captured graph writes into its input"
    if len(answers) != len(check.outputs):
        return f"the captured graph answers {len(answers)} tensors, not {len(check.outputs)}"
    found = dict(zip(check.outputs, answers, strict=True))
    path = _differing_output(found, check.outputs)
    return path and f"the captured graph answers something else than the model in {path}"


def _differing_output(
    answers: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> str | None:
    """The first output that differs by more than the order of summation explains."""
    for path, right in expected.items():
        answer = answers[path]
        finite = right[right.isfinite()].abs()
        scale = max(1.0, float(finite.max())) if finite.numel() else 1.0
        if answer.shape != right.shape or not torch.allclose(
            answer, right, rtol=1e-4, atol=1e-5 * scale, equal_nan=True
        ):
            return path
    return None
