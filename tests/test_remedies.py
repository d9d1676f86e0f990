"""What a refusal says to do works, and none passes on what torch asks its users to do."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import scissionlite as sl
from scissionlite.errors import CaptureError, PrepareError, first_line

REPORTS = re.compile(r"file an issue|open an issue|report a bug|github\.com/pytorch", re.IGNORECASE)


def answers(graph: sl.Graph, x: torch.Tensor) -> list[torch.Tensor]:
    """The answers of the network cut at each of its slicing points."""
    assert graph.slicing_points
    with torch.no_grad():
        return [tail(head(x)) for head, tail in map(graph.split, graph.slicing_points)]


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_a_legacy_weight_norm_is_taken_off_or_replaced() -> None:
    torch.manual_seed(0)
    first, x = nn.Conv2d(3, 4, 3, bias=False), torch.randn(1, 3, 8, 8)
    weight = first.weight.detach().clone()
    nn.utils.weight_norm(first)
    model = nn.Sequential(first, nn.ReLU(), nn.Conv2d(4, 4, 3))
    expected = model(x).detach()
    with pytest.raises(CaptureError, match=r"remove_weight_norm\(\)") as refused:
        sl.capture(model, x)
    assert not REPORTS.search(str(refused.value))
    nn.utils.remove_weight_norm(first)
    for answer in answers(sl.capture(model, x), x):
        torch.testing.assert_close(answer, expected)
    # The other way that the message names.
    model[0] = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3, bias=False))
    with torch.no_grad():
        model[0].weight = weight
    for answer in answers(sl.capture(model, x), x):
        torch.testing.assert_close(answer, expected)


class _QueriesFirst(nn.Module):
    """A head as DETR's: queries without a batch, before the images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.classes = nn.Conv2d(3, 16, 8, stride=8), nn.Linear(16, 4)
        self.decoder = nn.TransformerDecoderLayer(16, 2, 32, batch_first=True)

    def forward(self, queries: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        memory = self.stem(images).flatten(2).transpose(1, 2)
        every = queries[None].expand(images.shape[0], -1, -1)
        answer: torch.Tensor = self.classes(self.decoder(every, memory))
        return answer


class _HoldsQueries(nn.Module):
    """The wrapper that the message asks for."""

    def __init__(self, model: nn.Module, queries: torch.Tensor) -> None:
        super().__init__()
        self.model, self.queries = model, nn.Parameter(queries)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.model(self.queries, images)
        return answer


def test_queries_that_stand_first_are_held_by_a_wrapper() -> None:
    torch.manual_seed(0)
    model, queries, images = _QueriesFirst().eval(), torch.randn(5, 16), torch.randn(1, 3, 32, 32)
    graph = sl.capture(model, (queries, images), max_tensors=2)
    said = (
        r"first dimension, as it is that of queries \(5, 16\), but not of images .*Wrap the model"
    )
    with pytest.raises(CaptureError, match=said):
        graph.point("stem")
    wrapped = sl.capture(_HoldsQueries(model, queries), images)
    assert wrapped.dynamic_batch
    assert wrapped.point("model.decoder").crossing[0].shape == (1, 5, 16)
    x = torch.randn(2, 3, 32, 32)
    for answer in answers(wrapped, x):
        torch.testing.assert_close(answer, model(queries, x).detach())


class _Recurrent(nn.Module):
    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)
        self.gru, self.time = nn.GRU(8, 8, batch_first=batch_first), int(batch_first)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states = self.gru(self.first(x))[0]
        answer: torch.Tensor = self.last(states.select(self.time, -1))
        return answer


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of nn.GRU's own code
def test_a_network_with_time_first_becomes_batch_first(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, ours = _Recurrent(batch_first=False).eval(), _Recurrent(batch_first=True).eval()
    plan = sl.Plan(
        kind="split", slicing_point="first", spec=sl.TransferSpec(pool=1, dtype="float32")
    )
    options = {"out": tmp_path / "bundle", "max_batch": 4}
    graph = sl.capture(model, torch.randn(7, 2, 8))
    with pytest.raises(PrepareError, match=r"batch as their first dimension: .*batch_first=True"):
        sl.prepare(graph, plan, **options)  # type: ignore[arg-type]
    ours.load_state_dict(model.state_dict())
    graph = sl.capture(ours, torch.randn(1, 7, 8))
    assert sl.prepare(graph, plan, **options).manifest.max_batch == 4  # type: ignore[arg-type]
    x = torch.randn(3, 7, 8)
    for answer in answers(graph, x):
        torch.testing.assert_close(answer, model(x.transpose(0, 1)).detach())


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("x INTERNAL ASSERT FAILED at y:1, please report a bug to PyTorch. Got None", "Got None"),
        ("It failed. Please file an issue at https://github.com/pytorch/pytorch/issues", "failed."),
        ("No rule for z. If anything else, file an issue on github and we may help.", "for z."),
        ("No rule for z. Otherwise, please file an issue on github.", "for z."),
        ("Only leaves. If so, see https://github.com/pytorch/pytorch/pull/103001.", "leaves."),
        ("mat1 and mat2 cannot be multiplied (1x2 and 3x4)", "(1x2 and 3x4)"),
        ("Please file an issue.", "RuntimeError"),
    ],
)
def test_what_torch_asks_to_report_is_left_out(text: str, left: str) -> None:
    line = first_line(RuntimeError(f"{text}\nsecond line"))
    assert line.endswith(left)
    assert not REPORTS.search(line)


class _Object:
    """Something that torch.load refuses, with a long advice."""


def test_a_checkpoint_that_torch_refuses_is_told_in_our_words(tmp_path: Path) -> None:
    torch.save(_Object(), tmp_path / "checkpoint.pt")
    with pytest.raises(pickle.UnpicklingError, match="`weights_only` set to `False`"):
        torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    with pytest.raises(PrepareError, match="is not a checkpoint") as refused:
        sl.prepare(
            sl.capture(network, torch.zeros(1, 3, 8, 8)),
            sl.Plan(kind="split", slicing_point="1", spec=sl.TransferSpec()),
            train=TensorDataset(torch.randn(8, 3, 8, 8), torch.arange(8) % 2),
            recipe=sl.Recipe(epochs=1, batch_size=4),
            checkpoint=tmp_path / "checkpoint.pt",
            out=tmp_path / "bundle",
        )
    assert not re.search("issue|weights_only", str(refused.value))
