"""Capture: the graph is the model, whatever the model writes in place, or capture refuses it."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from torch import nn

import scissionlite as sl
from scissionlite.errors import CaptureError
from scissionlite.graph.analysis import flat, multiplications
from scissionlite.models import load_model

SHAPE = (4, 6, 6)  # of every tensor of the networks here, without the batch
RANDOM_NETWORKS = int(os.environ.get("SCISSIONLITE_RANDOM_NETWORKS", "40"))


def convolution() -> nn.Module:
    return nn.Conv2d(SHAPE[0], SHAPE[0], 3, padding=1)


def assert_the_graph_is_the_model(
    model: nn.Module, graph: sl.Graph, *, batches: tuple[int, ...] = (1, 3)
) -> None:
    """Compare the graph, and its slices at each slicing point, with the untouched model."""
    generator = torch.Generator().manual_seed(11)
    for batch in batches if graph.dynamic_batch else graph.example[0].shape[:1]:
        for scale in (0.3, 1.0, 20.0):
            x = scale * torch.randn(batch, *SHAPE, generator=generator)
            with torch.no_grad():
                expected = flat(model(x.clone()))
                seen = x.clone()
                answers = [flat(graph.module(seen))]
                for device_slice, edge_slice in map(graph.split, graph.slicing_points):
                    crossing = flat(device_slice(seen))
                    kept = [tensor.clone() for tensor in crossing]
                    answers.append(flat(edge_slice(*crossing)))
                    assert all(map(torch.equal, crossing, kept)), "a slice wrote into its input"
            assert torch.equal(seen, x), "the graph wrote into its input"
            for answer in answers:
                torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-4 * scale)


class _InPlaceUnused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.relu = convolution(), convolution(), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        self.relu(y)
        answer: torch.Tensor = self.second(y)
        return answer


class _Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = convolution()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x.mul_(3.0)
        answer: torch.Tensor = self.conv(x)
        return answer


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = convolution(), convolution()
        self.branch = nn.Sequential(nn.ReLU(inplace=True), convolution())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        answer: torch.Tensor = self.last(x + self.branch(x))
        return answer


class _ClampedInput(_Scaled):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.clamp_(0, 1)
        answer: torch.Tensor = self.conv(x)
        return answer


class _AliasAdded(_Residual):
    """``y += 1`` also changes the other name of the same tensor."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = kept = self.stem(x)
        y += 1
        answer: torch.Tensor = self.last(y) * kept
        return answer


class _ViewWritten(_Residual):
    """The tensor itself is read after a write to a view of it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        y[:, 0].mul_(2)
        y[:, 2:] = 0.5
        answer: torch.Tensor = self.last(y)
        return answer


class _ViewRead(_Residual):
    """A view that was made before is read after a write to the tensor."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        view = y.transpose(2, 3)
        nn.functional.relu(y, True)
        answer: torch.Tensor = self.last(view)
        return answer


class _Counted(_Residual):
    """A static model that asks for the batch size in Python's way."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        answer: torch.Tensor = self.last(y.view(len(y), *SHAPE))
        return answer


@torch.fx.wrap
def _add_to_part(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x[:, 1:] += 0.5 * y[:, 1:]  # computed before: x and y may share memory
    return x


class _WrappedWriter(_Residual):
    """A function that torch.fx keeps whole writes to its argument (torchvision's MViT)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        z = y.sigmoid()
        _add_to_part(z, y)
        answer: torch.Tensor = self.last(_add_to_part(z * 1, y) + z)
        return answer


class _BatchInBranch(_Residual):
    """Control flow on the batch size holds for the example's alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        if x.shape[0] > 2:
            y = 2 * y
        answer: torch.Tensor = self.last(y)
        return answer


_OF_BATCH: dict[str, Callable[[int], int]] = {
    "threshold": lambda n: n > 8,
    "one value": lambda n: n == 7,
    "quotient": lambda n: n // 5,
    "remainder": lambda n: n % 5,
    "odd": lambda n: n | 1,
}


class _Factor(_Residual):
    """The batch size changes the answer, as a number or in a branch."""

    def __init__(self, kind: str, *, branch: bool) -> None:
        super().__init__()
        self.function, self.branches = _OF_BATCH[kind], branch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        factor = self.function(x.shape[0])
        if self.branches and factor > 0:
            factor = 5
        answer: torch.Tensor = self.last(self.stem(x) * factor)
        return answer


@pytest.mark.parametrize("branch", [False, True], ids=["number", "branch"])
@pytest.mark.parametrize("kind", _OF_BATCH)
def test_what_depends_on_the_batch_size_follows_it(kind: str, branch: bool) -> None:
    torch.manual_seed(6)
    model = _Factor(kind, branch=branch).eval()
    graph = sl.capture(model, torch.randn(1, *SHAPE))
    assert graph.dynamic_batch != (branch and kind != "odd")
    assert_the_graph_is_the_model(model, graph, batches=(1, 2, 5, 6, 7, 9, 12))


@pytest.mark.parametrize("zeros", [True, False], ids=["zeros", "random"])
@pytest.mark.parametrize(
    "build",
    [
        _InPlaceUnused,
        _Scaled,
        _Residual,
        _ClampedInput,
        _AliasAdded,
        _ViewWritten,
        _ViewRead,
        _Counted,
        _WrappedWriter,
        _BatchInBranch,
    ],
)
def test_in_place_operations_are_captured(build: Callable[[], nn.Module], zeros: bool) -> None:
    torch.manual_seed(5)
    model = build().eval()
    example = torch.zeros(1, *SHAPE) if zeros else torch.randn(1, *SHAPE)
    kept = example.clone()
    graph = sl.capture(model, example)
    assert torch.equal(example, kept), "capture wrote into the example"
    assert_the_graph_is_the_model(model, graph)


def test_a_large_batch_is_tried_without_its_memory() -> None:
    # 4,098 of these inputs are 69 GB.
    model = nn.Sequential(nn.Conv2d(1, 2, 64, stride=64), nn.ReLU()).eval()
    assert sl.capture(model, torch.zeros(1, 1, 2048, 2048)).dynamic_batch


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_as_before(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    try:
        sl.capture(_Scaled(), torch.zeros(1, *SHAPE))
        assert gc.isenabled() == enabled
        with pytest.raises(CaptureError):
            sl.capture(_Scaled(), torch.zeros(1, 1, 1, 1))
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_a_line_of_torchvision_is_no_line_of_torch() -> None:
    with pytest.raises(CaptureError, match=r"torchvision/models/squeezenet\.py:\d+, in forward"):
        sl.capture(load_model("torchvision:squeezenet1_1"), torch.zeros(1, 5, 64, 64))


def test_capture_tells_its_steps() -> None:
    steps: list[str] = []
    sl.capture(_BatchInBranch(), torch.zeros(1, *SHAPE), on_step=steps.append)
    assert steps == [
        "running the model",
        "tracing with torch.fx",
        "tracing with torch.export",
        "tracing with torch.export for the example's batch size alone",
        *("finding slicing points", "comparing with the model"),
    ]


class _NumberOfValues(_Scaled):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.conv(x / x.abs().max().item())  # the line that prevents it
        return answer


class _NumberInBranch(_Scaled):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return torch.where(y > float(y.mean()), y, -y)


class _Counter(_Scaled):
    """Answers something else at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert isinstance(self.calls, torch.Tensor)
        self.calls.add_(1)
        answer: torch.Tensor = self.conv(x) + self.calls
        return answer


class _Remembers(_Scaled):
    """Keeps something between calls, outside its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, torch.Tensor] = {}


class _KeepsItsFirstScale(_Remembers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if "scale" not in self.kept:
            self.kept["scale"] = 1 + x.abs().max()
        answer: torch.Tensor = self.conv(x) * self.kept["scale"]
        return answer


class _KeepsItsLargest(_Remembers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept["most"] = torch.maximum(self.kept.get("most", torch.ones(())), x.abs().max())
        answer: torch.Tensor = self.conv(x) * self.kept["most"]
        return answer


class _KeepsItsFirstFrame(_Remembers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.conv(x - self.kept.setdefault("frame", x[:1].clone()))
        return answer


class _CountsInPython(_Scaled):
    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        answer: torch.Tensor = self.conv(x) + self.calls
        return answer


class _KeepsPositions(_Remembers):
    """What it keeps depends on the shape alone, as the position encodings of transformers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if "positions" not in self.kept:
            self.kept["positions"] = torch.linspace(-1, 1, x.shape[-1])
        answer: torch.Tensor = self.conv(x) + self.kept["positions"]
        return answer


def test_what_a_model_keeps_of_the_shape_of_its_input_is_captured() -> None:
    model = _KeepsPositions().eval()
    assert_the_graph_is_the_model(model, sl.capture(model, torch.zeros(1, *SHAPE)))


def test_nothing_of_a_refused_network_is_printed_but_the_error(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """torch.export logs its whole graph where a number depends on values."""
    log = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    handler = logging.StreamHandler()
    log.addHandler(handler)
    try:
        with pytest.raises(CaptureError):
            sl.capture(_NumberInBranch(), torch.zeros(1, *SHAPE))
    finally:
        log.removeHandler(handler)
    assert capfd.readouterr() == ("", "")
    assert log.level == logging.NOTSET


@dataclass
class _Boxed:
    value: torch.Tensor


class _AnswersDataclass(_Scaled):
    def forward(self, x: torch.Tensor) -> _Boxed:  # type: ignore[override]  # that is the point
        return _Boxed(self.conv(x))


def _with_gradients() -> nn.Module:
    model = _Scaled()
    model.kept = model.conv(torch.zeros(1, *SHAPE))
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (_NumberOfValues, r"depends on the values of a tensor: .*the line that prevents it"),
        (_NumberInBranch, r"(depends on the values|data-dependent)"),
        (_Counter, r"changes its own state"),
        (_CountsInPython, r"keep state between calls"),
        (_KeepsItsFirstScale, r"keep state between calls"),
        (_KeepsItsLargest, r"keep state between calls"),
        (_KeepsItsFirstFrame, r"keep state between calls"),
        (_AnswersDataclass, r"answers a _Boxed: wrap the model"),
        (_with_gradients, r"cannot be copied.*detach\(\) that tensor"),
        (lambda: _Scaled().to("meta"), r"without values.*model\.to_empty"),
    ],
)
@pytest.mark.parametrize("zeros", [True, False], ids=["zeros", "random"])
def test_a_model_that_cannot_be_captured_is_refused(
    build: Callable[[], nn.Module], message: str, zeros: bool
) -> None:
    example = torch.zeros(1, *SHAPE) if zeros else torch.randn(1, *SHAPE)
    with pytest.raises(CaptureError, match=message):
        sl.capture(build(), example)


class _TimeFirst(_Residual):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sequence = self.stem(x).permute(2, 0, 1, 3).relu()
        answer: torch.Tensor = self.last(sequence.permute(1, 2, 0, 3))
        return answer


class _Doubles(_Residual):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        halves = self.stem(x).double().relu().to(torch.bfloat16).sigmoid()
        answer: torch.Tensor = self.last(halves.float())
        return answer


@pytest.mark.parametrize(("build", "names"), [(_TimeFirst, 2), (_Doubles, 2)])
def test_only_float32_tensors_whose_first_dimension_is_the_batch_cross(
    build: Callable[[], nn.Module], names: int
) -> None:
    model = build().eval()
    graph = sl.capture(model, torch.randn(1, *SHAPE))
    assert len(graph.slicing_points) == names
    for point in graph.slicing_points:
        assert point.crossing[0].dtype == "float32"
        assert point.crossing[0].shape[0] == 1
    assert_the_graph_is_the_model(model, graph)


@pytest.mark.parametrize(
    "parametrize", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm]
)
def test_parametrized_weights_are_captured_and_counted(
    parametrize: Callable[[nn.Module], nn.Module],
) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(parametrize(convolution()), nn.ReLU(), convolution()).eval()
    graph = sl.capture(model, torch.randn(1, *SHAPE))
    assert_the_graph_is_the_model(model, graph)
    device_slice, _ = graph.split(graph.slicing_points[0])
    expected = SHAPE[0] ** 2 * 9 * SHAPE[1] * SHAPE[2]
    assert multiplications(device_slice, graph.example) >= expected


# Each step of a random network: reads one or two earlier tensors, and may write to one.
_STEPS: dict[str, Callable[[_Random, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "conv": lambda net, a, b: net.shared(a),
    "norm": lambda net, a, b: net.norm(a),
    "relu module": lambda net, a, b: net.relu(a),
    "relu module, unused": lambda net, a, b: (net.relu(a), b)[1],
    "relu function": lambda net, a, b: nn.functional.relu(a, inplace=True),
    "relu_": lambda net, a, b: torch.relu_(a),
    "branch": lambda net, a, b: a + net.branch(a),
    "dropout": lambda net, a, b: net.dropout(a),
    "identity": lambda net, a, b: net.identity(a),
    "mul_": lambda net, a, b: a.mul_(0.5),
    "add_": lambda net, a, b: a.add_(b, alpha=0.25),
    "clamp_, unused": lambda net, a, b: (a.clamp_(-0.5, 0.5), b)[1],
    "copy_": lambda net, a, b: a.copy_(b.tanh()),
    "+=": lambda net, a, b: _augmented(a, b),
    "add": lambda net, a, b: a + b,
    "clone": lambda net, a, b: a.clone(),
    "alias": lambda net, a, b: a,
    "view": lambda net, a, b: a.view(a.shape),
    "transposed": lambda net, a, b: a.transpose(2, 3),
    "part written": lambda net, a, b: (a[:, :2].mul_(2.0), a)[1],
    "part set": lambda net, a, b: _part_set(a, b),
    "chunks": lambda net, a, b: torch.cat(a.chunk(2, 1)[::-1], 1),
    "chunk written": lambda net, a, b: (a.chunk(2, 1)[0].neg_(), a)[1],
    "scaled by a shape": lambda net, a, b: a * (1.0 / a.shape[1]),
    "scaled by its batch": lambda net, a, b: a / a.size(0),
    "scaled by a value": lambda net, a, b: a / (1.0 + a.abs().max().item()),
    "scaled by means": lambda net, a, b: a * b.mean((2, 3), keepdim=True),
    "detached": lambda net, a, b: a.detach(),
    "wrapped function writes": lambda net, a, b: _add_to_part(a, b),
    "wrapped function writes, unused": lambda net, a, b: (_add_to_part(a, b), a)[1],
    "turned in place": lambda net, a, b: a.clone().transpose_(2, 3),
    "masked in place": lambda net, a, b: a.masked_fill_(b > 0.5, 0.25),
    "row added": lambda net, a, b: (a[:, :, 0].add_(1.0), a)[1],
    "scaled by a quotient of its batch": lambda net, a, b: a * (1 + b.shape[0] // 4),
    "zeros of its batch": lambda net, a, b: a + torch.zeros(a.shape[0], 1, 1, 1),
    "more for a large value": lambda net, a, b: a * 2 if a.mean() > 0.1 else a,
    "more for a large batch": lambda net, a, b: a * 2 if b.shape[0] > 4 else a,
}


def _augmented(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a += 0.5 * b
    return a


def _part_set(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a[:, 1] = b[:, 0] * 0.5
    return a


class _Random(nn.Module):
    """A network of random steps over the tensors that earlier steps made."""

    def __init__(self, steps: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.stem: nn.Module = convolution()
        self.shared: nn.Module = convolution()
        self.norm: nn.Module = nn.BatchNorm2d(SHAPE[0])
        self.relu: nn.Module = nn.ReLU(inplace=True)
        self.branch: nn.Module = nn.Sequential(nn.ReLU(inplace=True), convolution())
        self.dropout: nn.Module = nn.Dropout(0.5, inplace=True)
        self.identity: nn.Module = nn.Identity()
        self.steps = steps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tensors = [x, self.stem(x)]
        for name, first, second in self.steps:
            # Counted from the end, so that networks are deep rather than wide.
            a, b = tensors[-1 - first % len(tensors)], tensors[-1 - second % len(tensors)]
            tensors.append(_STEPS[name](self, a, b))
        answer: torch.Tensor = self.shared(tensors[-1]) + tensors[len(tensors) // 2].mean()
        return answer


_REFUSED_FOR_A_REASON = ("values of a tensor", "data-dependent", "does not run on the example")


@settings(
    max_examples=RANDOM_NETWORKS,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(sorted(_STEPS)), st.integers(0, 4), st.integers(0, 4)),
        min_size=1,
        max_size=8,
    ),
    zeros=st.booleans(),
    batch=st.integers(1, 2),
)
def test_no_random_network_is_captured_as_another(
    steps: list[tuple[str, int, int]], zeros: bool, batch: int
) -> None:
    torch.manual_seed(1)
    model = _Random(steps).eval()
    nn.init.normal_(model.norm.running_mean, std=0.3)  # type: ignore[arg-type]  # a tensor
    example = torch.zeros(batch, *SHAPE) if zeros else torch.randn(batch, *SHAPE)
    kept = example.clone()
    try:
        graph = sl.capture(model, example)
    except CaptureError as error:
        reasons = [reason for reason in _REFUSED_FOR_A_REASON if reason in str(error)]
        if not reasons:
            raise
        event(f"refused: {reasons[-1]}")
        return
    event("captured for any batch" if graph.dynamic_batch else "captured for one batch")
    assert torch.equal(example, kept), "capture wrote into the example"
    assert_the_graph_is_the_model(model, graph, batches=(1, 5))
