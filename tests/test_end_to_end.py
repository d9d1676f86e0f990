"""The main job on real photographs: train, slice, retrain, and answer from two processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import Process
from torch.utils.data import Subset

import scissionlite as sl
from scissionlite.demo.link_emulator import LinkEmulator
from scissionlite.models import load_model
from scissionlite.preprocessor import trainer
from scissionlite.preprocessor.data import ImageFolder
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.runtimes import load_slice

PREPROCESSING = sl.Preprocessing(size=(96, 96))
# What two minutes allow; docs/tutorial.md has the figures of the whole data set at full size.
TRAINED, TESTED = 4, 6

pytestmark = pytest.mark.long  # a training on photographs of steel


@pytest.fixture(scope="module")
def steel(shared_data: Path) -> Path:
    return shared_data / "neu-surface-defects"


@pytest.fixture(scope="module")
def graph(steel: Path) -> sl.Graph:
    """EfficientNet-Lite0, trained for a moment on every fourth photograph."""
    torch.manual_seed(0)
    network = load_model("scissionlite.models:efficientnet_lite0_imagenet", num_classes=6)
    data = ImageFolder(steel / "train", PREPROCESSING, augment=True)
    part = Subset(data, range(0, len(data), TRAINED))
    trainer.train(network, part, Recipe(epochs=4, batch_size=16, learning_rate=2e-3))
    return sl.capture(network, torch.zeros(1, 3, 96, 96), name="lite0")


@pytest.fixture(scope="module")
def bundle(graph: sl.Graph, steel: Path, tmp_path_factory: pytest.TempPathFactory) -> sl.Bundle:
    train = ImageFolder(steel / "train", PREPROCESSING, augment=True)
    test = ImageFolder(steel / "test", PREPROCESSING)
    return sl.prepare(
        graph,
        sl.Plan(kind="split", slicing_point="blocks.1", spec=sl.TransferSpec()),
        train=Subset(train, range(0, len(train), TRAINED)),
        validate=Subset(test, range(0, len(test), TESTED)),
        preprocessing=PREPROCESSING,
        out=tmp_path_factory.mktemp("steel") / "bundle",
        recipe=Recipe(epochs=3, batch_size=16, learning_rate=2e-3),
    )


def test_accuracy_survives_sixteen_times_fewer_bytes(bundle: sl.Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.accuracy is not None
    assert manifest.sent_bytes * 16 == manifest.crossing_bytes
    assert manifest.accuracy.samples == 89
    assert manifest.accuracy.before >= 0.95  # chance is 0.17
    assert manifest.accuracy.after >= manifest.accuracy.before - 0.035  # three photographs of 89


@pytest.mark.parametrize(
    "spec",
    [
        sl.TransferSpec(4, "average", "int4", "channel", "nhwc", "ans", "symmetric", "bilinear"),
        sl.TransferSpec(dtype="float16"),
    ],
    ids=["int4", "float16"],
)
def test_two_processes_answer_so_with_any_transfer_layer(
    graph: sl.Graph,
    steel: Path,
    tmp_path: Path,
    start_process: Callable[..., Process],
    spec: sl.TransferSpec,
) -> None:
    train = ImageFolder(steel / "train", PREPROCESSING, augment=True)
    made = sl.prepare(
        graph,
        sl.Plan(kind="split", slicing_point="blocks.1", spec=spec),
        train=Subset(train, range(0, len(train), 16)),
        preprocessing=PREPROCESSING,
        out=tmp_path / "bundle",
        recipe=Recipe(epochs=0),
        local_fallback=False,
    )
    _answer_in_two_processes_and_in_one(made, steel, start_process)


def test_two_processes_answer_as_the_same_slices_in_one(
    bundle: sl.Bundle, steel: Path, start_process: Callable[..., Process]
) -> None:
    _answer_in_two_processes_and_in_one(bundle, steel, start_process)


def _answer_in_two_processes_and_in_one(
    bundle: sl.Bundle, steel: Path, start_process: Callable[..., Process]
) -> None:
    files = sorted((steel / "test").glob("*/*_1*.jpg"))[::12]
    assert len(files) >= 10
    edge = start_process(
        *("scissionlite", "serve", str(bundle.path), "--bind", "tcp://127.0.0.1:*"),
        *("--threads", "1", "--json"),
    ).read_json()
    ports = [int(edge[key].rpartition(":")[2]) for key in ("endpoint", "control_endpoint")]
    forwards = [(0, "127.0.0.1", port) for port in ports]
    with LinkEmulator(forwards, rtt=0.010, bandwidth=50e6) as link:
        tensors, control = (f"tcp://127.0.0.1:{port}" for port in link.ports)
        with sl.Device(bundle, tensors, control=control, deadline=60, threads=1) as device:
            frames = [PREPROCESSING.frame(file) for file in files]
            futures = [device.submit(frame) for frame in frames]
            answers = [future.result(60) for future in futures]
        printed = _run(
            bundle, files, "--connect", tensors, "--control", control, "--deadline", "60"
        )

    torch.set_num_threads(1)  # as both processes: another number may sum in another order
    device_slice = load_slice(bundle.slice_path("device"), "torchscript")
    edge_slice = load_slice(bundle.slice_path("edge"), "torchscript")
    (tensor,) = bundle.manifest.crossing
    for i, (frame, answer) in enumerate(zip(frames, answers, strict=True)):
        (features,) = device_slice(PREPROCESSING.tensor(frame))
        packed = sl.encode(features, tensor.transfer, tensor.quantization, tables=tensor.tables)
        (expected,) = edge_slice(sl.decode(packed, layout="nchw"))
        assert answer.where == "edge"
        np.testing.assert_array_equal(answer.output, expected)
        row = printed["answers"][i]
        assert row["where"] == "edge"
        assert row["class_index"] == expected.argmax()
        names = bundle.manifest.classes
        assert row["class_name"] == (names[row["class_index"]] if names else None)
        assert row["bytes_sent"] == packed.nbytes
        assert row["latency"] >= 0.010  # no answer is faster than the link's round trip


def test_the_local_fallback_answers_when_there_is_no_edge(
    bundle: sl.Bundle, steel: Path, free_port: Callable[[], int]
) -> None:
    files = sorted((steel / "test" / "patches").glob("*.jpg"))[:2]
    nowhere = f"tcp://127.0.0.1:{free_port()}"
    printed = _run(bundle, files, "--connect", nowhere, "--deadline", "0.5", "--fallback", "local")
    assert {row["where"] for row in printed["answers"]} == {"local"}
    network = load_slice(bundle.slice_path("network"), "torchscript")
    for file, row in zip(files, printed["answers"], strict=True):
        assert (
            row["class_index"]
            == network(PREPROCESSING.tensor(PREPROCESSING.frame(file)))[0].argmax()
        )
        assert row["bytes_sent"] == 0

    failed = _command(bundle, files, "--connect", nowhere, "--deadline", "0.5")
    assert failed.returncode == 1
    assert "EdgeUnavailableError" in failed.stderr
    assert nowhere in failed.stderr
    assert "Traceback" not in failed.stderr


def _run(bundle: sl.Bundle, files: list[Path], *options: str) -> dict[str, Any]:
    done = _command(bundle, files, *options)
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def _command(
    bundle: sl.Bundle, files: list[Path], *options: str
) -> subprocess.CompletedProcess[str]:
    images = [str(file) for file in files]
    command = ["run", str(bundle.path), *images, *options, "--threads", "1", "--json"]
    return subprocess.run(
        [sys.executable, "-m", "scissionlite", *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,  # a guard against hangs, never a measure
    )
