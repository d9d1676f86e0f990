"""The sweep over networks: its rows, its records, and that it notices a wrong answer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sweep import BEGIN, COLUMNS, ROOT, answered_equally, main, networks, read, report, row
from sweep_network import (
    DifferentError,
    Record,
    SensitiveError,
    check,
    compare,
    rounding,
    tensors_of,
    versions,
)
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


class _TwoBranches(nn.Module):
    """Two branches that meet in the last operation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Sequential(nn.Conv2d(3, 4, 3, stride=stride), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
            for stride in (4, 8)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.add(self.first(x).flatten(1), self.second(x).flatten(1))


class _Rounding(nn.Module):
    """Rounds its input in float32, to a step that depends on a number, and not in float64."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.number) - self.number


def crashes() -> nn.Module:
    """A network whose process ends before it is built."""
    os._exit(3)


SMALL, CONSTANT, TWO_BRANCHES = (
    f"{__name__}:{each.__name__}" for each in (_Small, _Constant, _TwoBranches)
)


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


def test_where_two_tensors_cross_everywhere_two_are_cut() -> None:
    record = check(TWO_BRANCHES)
    assert (record.reason, record.tensors) == ("", 2)
    assert len(record.cuts) == record.points > 0
    assert f" | {record.points} (max_tensors=2) | " in row(record)


def test_a_difference_is_held_to_the_networks_own_rounding() -> None:
    network, x = _Rounding(1e4), torch.linspace(0.1, 0.9, 50)  # to multiples of 1/1024
    (answer,), (own,) = tensors_of(network, [x]), rounding(network, [x])
    assert 0.0004 < own < 1 / 2048
    compare([answer.numpy()], network, [x], "itself")
    compare([answer.numpy() + np.float32(0.0015)], network, [x], "with twice its rounding")
    with pytest.raises(
        DifferentError, match=r"wrong: off by 0\.002.*; the network's own"
    ) as raised:
        compare([answer.numpy() + np.float32(0.0025)], network, [x], "wrong")
    assert not isinstance(raised.value, SensitiveError)


def test_an_input_on_which_float32_is_not_exact_shows_nothing() -> None:
    network, x = _Rounding(1e5), torch.linspace(0.1, 0.9, 50)
    compare([tensors_of(network, [x])[0].numpy()], network, [x], "itself")
    with pytest.raises(SensitiveError, match=r"exact: off by 0\.4%, and the untouched network"):
        compare([x.numpy()], network, [x], "exact")


def test_another_input_is_drawn_where_rounding_hides_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    roundings = iter([1.0])
    monkeypatch.setattr(sl.Graph, "split", _scaled_edge(sl.Graph.split))
    monkeypatch.setattr("sweep_network.rounding", lambda *network: [next(roundings, 0.0)])
    record = check(SMALL)
    assert re.match(r"batch of 1: off by 1\.0%, and the untouched network", record.rounding)
    assert (record.stage, record.equal) == ("cut stem", False), "the next input showed the fault"
    sensitive = Record(network="sensitive", stage="done", rounding=record.rounding)
    assert answered_equally(row(sensitive))


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
    """``pipeline.modules_of`` with an uncut network whose classifier has other biases."""

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
        (pipeline, "modules_of", _scaled_fallback, "prepare"),
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
    assert "two inputs have the same answer" in record.reason


def sweep(document: Path, *arguments: str) -> list[str]:
    """Run a sweep in a process of its own; the rows that it prints."""
    finished = subprocess.run(
        [sys.executable, "-m", "tests.sweep", *arguments, "--document", str(document)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,  # a guard against hangs, never a measure
    )
    return finished.stdout.splitlines()


@pytest.mark.long
def test_a_sweep_writes_a_table(tmp_path: Path) -> None:
    document = tmp_path / "models.md"
    document.write_text(f"# By hand\n\n{BEGIN}\n\nold\n")
    small, unknown, crashing = sweep(
        document, "torchvision:squeezenet1_1", "timm:no_such_network", f"{__name__}:crashes"
    )
    assert small.startswith("| torchvision:squeezenet1_1 | 1 x 3 x 96 x 96 | 1.2 |")
    assert answered_equally(small)
    assert "| build: timm:no_such_network cannot be built" in unknown
    assert "| build: the process ended with exit code 3 |" in crashing
    text = document.read_text()
    assert text.startswith(f"# By hand\n\n{BEGIN}\n\n1 of ")
    assert "old" not in text
    assert f"\n{small}\n" in text


def _row(name: str, result: str) -> str:
    return "| " + " | ".join([name, *["x"] * (len(COLUMNS) - 3), result, "1234567"]) + " |"


def test_a_sweep_goes_on_from_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "models.md"
    first, second, third = names = networks()[:3]
    rows = {first: _row(first, "equal"), second: _row(second, "capture: a \\| b")}
    document.write_text(f"# By hand\n\n{BEGIN}\n\n{report(rows)}")
    monkeypatch.setattr("sweep.networks", lambda: names)
    monkeypatch.setattr("sweep.run", lambda name, **limits: Record(network=name, stage="done"))

    def swept(*arguments: str) -> list[str]:
        main([*arguments, "--document", str(document)])
        return [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()]

    assert swept() == [f"| {third}"]
    text = document.read_text()
    assert all(row in text for row in rows.values()), "a row that was there is kept"
    assert text.startswith(f"# By hand\n\n{BEGIN}\n\n3 of 3 networks")
    assert " 2 of them answered equally" in text
    assert swept() == []
    assert swept("--refused") == [f"| {second}"]
    assert swept(first) == [f"| {first}"]
    document.write_text(document.read_text().replace(versions(), "torch 1.0"))
    assert len(swept()) == 3, "rows of other versions do not count"


def test_the_document_counts_its_rows() -> None:
    text = (ROOT / "docs" / "models.md").read_text()
    rows = read(text)
    if not rows:
        pytest.skip("the table is of other versions of torch, torchvision or timm")
    assert list(rows) == [name for name in networks() if name in rows]
    assert text.endswith(f"{BEGIN}\n\n{report(rows)}")
