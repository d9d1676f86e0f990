"""The sweep over networks: its rows, its records, and that it notices a wrong answer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sweep import BEGIN, ROOT, networks, read
from sweep_network import check
from torch import fx, nn

import scissionlite as sl
from scissionlite.preprocessor import pipeline


class _Small(nn.Module):
    """Two convolutions and a classifier; some of its weights are zeros at first, as in timm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 4, 3, stride=8), nn.Conv2d(4, 4, 3)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 5)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.body(self.stem(x)))
        answer: torch.Tensor = self.head(torch.relu(x).mean((2, 3)))
        return answer


class _Constant(_Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x * 0)


def crashes() -> nn.Module:
    """A network whose process ends before it is built."""
    os._exit(3)


SMALL, CONSTANT = (f"{__name__}:{each.__name__}" for each in (_Small, _Constant))


def test_a_network_is_checked_from_capture_to_bundle() -> None:
    stages: list[str] = []
    record = check(SMALL, lambda each: stages.append(each.stage))
    assert (record.reason, record.equal) == ("", True)
    assert record.input == (1, 3, 96, 96)
    assert record.batch == 2
    assert record.cuts[0] == "stem"
    assert len(record.cuts) == record.points == 5
    assert record.transfer == sl.TransferSpec().label
    assert stages == ["build", "capture", *(f"cut {cut}" for cut in record.cuts), "prepare"]


def _scaled_edge(original: Callable[..., Any]) -> Callable[..., Any]:
    """``Graph.split`` with an edge slice whose classifier answers one percent too much."""

    def split(graph: sl.Graph, point: Any) -> tuple[fx.GraphModule, fx.GraphModule]:
        device_slice, edge_slice = original(graph, point)
        (output,) = (node for node in edge_slice.graph.nodes if node.op == "output")
        with edge_slice.graph.inserting_before(output):
            output.args = (edge_slice.graph.call_function(torch.mul, (output.args[0], 1.01)),)
        edge_slice.recompile()
        return device_slice, edge_slice

    return split


def _scaled_fallback(original: Callable[..., Any]) -> Callable[..., Any]:
    """``pipeline._modules`` with an uncut network whose classifier has other biases."""

    def modules(*arguments: Any, **options: Any) -> Any:
        made = original(*arguments, **options)
        with torch.no_grad():
            made["network"][0].head.bias.mul_(1.1)
        return made

    return modules


@pytest.mark.parametrize(
    ("place", "name", "fault", "stage"),
    [
        (sl.Graph, "split", _scaled_edge, "cut stem"),
        (pipeline, "_modules", _scaled_fallback, "prepare"),
    ],
)
def test_a_wrong_answer_is_noticed(
    place: Any,
    name: str,
    fault: Callable[..., Any],
    stage: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(place, name, fault(getattr(place, name)))
    record = check(SMALL)
    assert not record.equal
    assert record.stage == stage
    assert "off by" in record.reason


def test_a_vision_transformer_is_checked() -> None:
    record = check("timm:test_vit")  # torch.export captures it
    assert (record.reason, record.batch, len(record.cuts)) == ("", 2, 8)


def test_a_network_that_answers_always_the_same_shows_nothing() -> None:
    record = check(CONSTANT)
    assert not record.equal
    assert "two inputs have the same output" in record.reason


def test_a_sweep_writes_records_and_a_table(tmp_path: Path) -> None:
    document = tmp_path / "models.md"
    document.write_text(f"# By hand\n\n{BEGIN}\n\nold\n")
    names = ["torchvision:squeezenet1_1", "timm:no_such_network", f"{__name__}:crashes"]
    subprocess.run(
        [
            *(sys.executable, "-m", "tests.sweep", *names),
            *("--out", str(tmp_path), "--document", str(document)),
        ],
        cwd=ROOT,
        check=True,
        timeout=300,  # a guard against hangs, never a measure
    )
    records = read(tmp_path / "records.jsonl")
    assert {name: (record.stage, record.reason[:33]) for name, record in records.items()} == {
        names[0]: ("done", ""),
        names[1]: ("build", "timm:no_such_network cannot be bu"),
        names[2]: ("build", "the process ended with exit code "),
    }
    text = document.read_text()
    assert text.startswith(f"# By hand\n\n{BEGIN}\n\n1 of ")
    assert "old" not in text
    assert "| torchvision:squeezenet1_1 | 1 x 3 x 96 x 96 | 1.2 |" in text


def test_the_document_counts_its_rows() -> None:
    results = (ROOT / "docs" / "models.md").read_text().partition(BEGIN)[2].strip()
    counts, *rows = (line for line in results.splitlines() if re.match(r"\d|\| t", line))
    names = [row.split(" | ")[0].removeprefix("| ") for row in rows]
    assert names == [name for name in networks() if name in names]
    equal = sum(row.split(" | ")[-2] == "equal" for row in rows)
    assert counts.startswith(f"{len(rows)} of {len(networks())} networks were checked")
    assert f" {equal} of them answered equally" in counts
