"""A device without torch, and every pair of runtimes of device and edge, on real photographs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from networks import small_network
from peers import LOCAL, LONG, device_of, in_one_process

import scissionlite as sl
from scissionlite.errors import PrepareError
from scissionlite.runtimes import RuntimeName, runtime_module

PREPROCESSING = sl.Preprocessing(size=(64, 64))
PAIR: tuple[RuntimeName, ...] = ("onnx", "torchscript")

# Nothing can import torch, or what is installed only with it; each try is written to a file.
WITHOUT_TORCH = """
import sys, traceback
from importlib.abc import MetaPathFinder

ABSENT = {"torch", "torchvision", "timm", "onnx", "onnxscript", "safetensors"}
TRIED = sys.argv.pop(1)

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            with open(TRIED, "a") as tried:
                print(name, *traceback.format_stack()[:-1], sep="\\n", file=tried)
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""
COMMAND = f"{WITHOUT_TORCH}\nfrom scissionlite.cli import main; main()"
DEVICE = f"""{WITHOUT_TORCH}
import json
import scissionlite as sl

folder, connect, control, *photographs = sys.argv[1:]
bundle = sl.Bundle.load(folder)
edge = {{"connect": connect, "control": control}} if connect else {{}}
with sl.Device(bundle, **edge, fallback="local", deadline={LONG}) as device:
    futures = [device.submit(bundle.manifest.preprocessing.frame(each)) for each in photographs]
    answers = [future.result() for future in futures]
# What the command line needs is no part of sl.Device: a device can do without it.
assert not {{"typer", "rich", "click", "pydantic", "pygments"}} & set(sys.modules)
print(json.dumps([[answer.where, answer.output.tolist()] for answer in answers]))
"""


@pytest.fixture(scope="module")
def steel(shared_data: Path) -> Path:
    return shared_data / "neu-surface-defects" / "test"


@pytest.fixture(scope="module")
def photographs(steel: Path) -> list[Path]:
    """One of each class."""
    return [min(folder.iterdir()) for folder in sorted(steel.iterdir())]


def prepare(graph: sl.Graph, steel: Path, out: Path) -> sl.Bundle:
    return sl.prepare(
        graph,
        sl.Plan(kind="split", slicing_point="1", spec=sl.TransferSpec(entropy="zstd")),
        unlabelled=steel,
        preprocessing=PREPROCESSING,
        recipe=sl.Recipe(epochs=0),
        runtimes=PAIR,
        out=out,
    )


@pytest.fixture(scope="module")
def graph() -> sl.Graph:
    return sl.capture(small_network().eval(), torch.zeros(1, 3, 64, 64), name="small")


@pytest.fixture(scope="module")
def bundle(graph: sl.Graph, steel: Path, tmp_path_factory: pytest.TempPathFactory) -> sl.Bundle:
    """A bundle with slices of both runtimes, which `prepare` has verified on photographs."""
    return prepare(graph, steel, tmp_path_factory.mktemp("pair") / "bundle")


@pytest.fixture(scope="module")
def expected(bundle: sl.Bundle, photographs: list[Path]) -> list[npt.NDArray[np.float32]]:
    """What TorchScript's slices answer in one process."""
    return [
        in_one_process(bundle, PREPROCESSING.frame(each), "torchscript") for each in photographs
    ]


def check(answer: Any, expected: npt.NDArray[np.float32]) -> None:
    """A sum in another order may move a value over a border of int8: a code differs by one."""
    np.testing.assert_allclose(answer, expected, atol=0.02 * float(np.abs(expected).max()))


def without_torch(program: str, tmp_path: Path, *arguments: object) -> list[str]:
    """Run a program where torch cannot be imported, and nothing tries: its lines of output."""
    tried = tmp_path / "tried"
    done = subprocess.run(
        [sys.executable, "-c", program, tried, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert not tried.exists(), tried.read_text()
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("device_runtime", PAIR)
@pytest.mark.parametrize("edge_runtime", PAIR)
def test_device_and_edge_may_run_either_runtime(
    bundle: sl.Bundle,
    photographs: list[Path],
    expected: list[npt.NDArray[np.float32]],
    device_runtime: RuntimeName,
    edge_runtime: RuntimeName,
) -> None:
    with (
        sl.EdgeServer(bundle, LOCAL, runtime=edge_runtime) as edge,
        device_of(edge, bundle, runtime=device_runtime) as device,
    ):
        for photograph, correct in zip(photographs, expected, strict=True):
            answer = device.submit(PREPROCESSING.frame(photograph)).result(LONG)
            assert answer.where == "edge"
            check(answer.output, correct)


@pytest.mark.parametrize("edge_runtime", [*PAIR, None])
def test_a_device_never_imports_torch(
    bundle: sl.Bundle,
    photographs: list[Path],
    expected: list[npt.NDArray[np.float32]],
    edge_runtime: RuntimeName | None,
    tmp_path: Path,
) -> None:
    if edge_runtime is None:  # the uncut network, here
        with sl.Device(bundle, fallback="local", runtime="torchscript") as device:
            expected = [device.infer(PREPROCESSING.frame(each)) for each in photographs]
        lines = without_torch(DEVICE, tmp_path, bundle.path, "", "", *photographs)
    else:
        with sl.EdgeServer(bundle, LOCAL, runtime=edge_runtime) as edge:
            edges = (edge.endpoint, edge.control_endpoint)
            lines = without_torch(DEVICE, tmp_path, bundle.path, *edges, *photographs)
    answers = json.loads(lines[0])
    assert {where for where, _ in answers} == {"edge" if edge_runtime else "local"}
    for (_, output), correct in zip(answers, expected, strict=True):
        check(output, correct)


def test_the_commands_of_a_device_never_import_torch(
    bundle: sl.Bundle,
    photographs: list[Path],
    tmp_path: Path,
) -> None:
    command = ("run", bundle.path, *photographs, "--jsonl", "--deadline", LONG)
    with sl.EdgeServer(bundle, LOCAL, runtime="torchscript") as edge:
        edges = ("--connect", edge.endpoint, "--control", edge.control_endpoint)
        rows = without_torch(COMMAND, tmp_path, *command, *edges)
    assert [json.loads(row)["where"] for row in rows] == ["edge"] * len(photographs)
    rows = without_torch(COMMAND, tmp_path, *command, "--fallback", "local")
    assert [json.loads(row)["where"] for row in rows] == ["local"] * len(photographs)
    without_torch(COMMAND, tmp_path, "inspect", bundle.path)


@pytest.mark.long
def test_slices_that_answer_otherwise_on_any_photograph_are_not_written(
    graph: sl.Graph, steel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = runtime_module("onnx")
    answered = 0

    class WrongAtTheThird(onnx.OnnxSlice):  # type: ignore[name-defined,misc]
        """An edge slice that answers two photographs, and something else from then on."""

        def __call__(self, *inputs: Any) -> Any:
            nonlocal answered
            outputs = super().__call__(*inputs)
            answered += 1
            return tuple(output + (answered > 4) * 99 for output in outputs)

    monkeypatch.setattr(onnx, "OnnxSlice", WrongAtTheThird)
    with pytest.raises(PrepareError, match="the onnx slices do not answer what the network"):
        prepare(graph, steel, tmp_path / "bundle")
    assert answered > 4
    assert not (tmp_path / "bundle").exists()
