"""Device slices in int8: their speed beside float32's, and the accuracy that they leave.

    python -m bench.accuracy networks lite0 mobilenet_v2 resnet50     # the uncut networks, once
    python -m bench.int8_slices speed
    python -m bench.int8_slices accuracy lite0 mobilenet_v2 resnet50

Speed: the device slices of networks with random weights, exported as bundles have them, run in turn
on one thread. Figures are medians of the thread's CPU time, which other processes disturb less than
the clock. Accuracy: the networks of :mod:`bench.accuracy`, split with an int8 Transfer Layer and
retrained with the device slice in float32 and in int8; and the uncut network in int8. Scores
are those in the bundles' manifests, on the steel photographs of the test set.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Literal, cast

import torch
from torch.utils.data import Dataset

import scissionlite as sl
from bench.accuracy.networks import NETWORKS, load
from bench.accuracy.photographs import DATA
from scissionlite.manifest import Precision
from scissionlite.models import load_model
from scissionlite.preprocessor.data import Sample
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.preprocessor.scoring import evaluate
from scissionlite.runtimes import Slice, keep_memory, load_slice, onnx, torchscript
from scissionlite.runtimes.onnx_int8 import quantize

SLICES = {
    "timm:efficientnet_lite0": ("blocks.0", "blocks.1", "blocks.2", "blocks.3", "blocks.4"),
    "torchvision:resnet50": ("maxpool", "layer1", "layer2", "layer3"),
    "torchvision:mobilenet_v2": ("features.3", "features.6", "features.10", "features.13"),
}
CUTS = {"lite0": "blocks.2", "mobilenet_v2": "features.6", "resnet50": "layer2"}
"""Where each network is cut to measure accuracy."""

MODELS = {
    "lite0": "timm:efficientnet_lite0",
    "mobilenet_v2": "torchvision:mobilenet_v2",
    "resnet50": "torchvision:resnet50",
}
"""The models by the names of :mod:`bench.accuracy`."""


def slices(model: str, cut: str, size: int) -> tuple[dict[str, Slice], torch.Tensor]:
    """The device slice in each form, loaded for one thread, and an input."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, size, size)
    device, _ = sl.capture(load_model(model).eval(), x).split(cut)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        torchscript.export(device, (x,), folder / "slice.pt")
        onnx.export(device, (x,), folder / "slice.onnx")
        calibration = [(torch.randn_like(x).numpy(),) for _ in range(4)]
        quantize(folder / "slice.onnx", folder / "int8.onnx", calibration)
        files = {
            "TorchScript": ("slice.pt", "torchscript"),
            "ONNX": ("slice.onnx", "onnx"),
            "int8": ("int8.onnx", "onnx"),
        }
        return {name: load_slice(folder / f, runtime, 1) for name, (f, runtime) in files.items()}, x


def cpu_times(runs: dict[str, Slice], x: torch.Tensor, rounds: int) -> dict[str, float]:
    """Median CPU seconds of each slice's run; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 5):
        for name, run in runs.items():
            started = time.thread_time()
            run(x.numpy())
            if i >= 5:
                times[name].append(time.thread_time() - started)
    return {name: median(own) for name, own in times.items()}


def speed(size: int, rounds: int) -> None:
    """Print the table of speeds."""
    keep_memory()
    torch.set_num_threads(1)
    print("| device slice | TorchScript, ms | ONNX Runtime, ms | int8, ms | faster than both |")
    print("| --- | --- | --- | --- | --- |")
    for model, cuts in SLICES.items():
        for cut in cuts:
            times = cpu_times(*slices(model, cut, size), rounds)
            ours = times.pop("int8")
            cells = " | ".join(f"{each * 1e3:.2f}" for each in (*times.values(), ours))
            name = model.partition(":")[2]
            print(f"| {name} to {cut} | {cells} | {min(times.values()) / ours:.2f} |", flush=True)


def accuracy(name: str, epochs: int, pool: Literal[1, 2, 4], out: Path) -> None:
    """Print a network's row of the table of accuracies."""
    torch.set_num_threads(1)
    entry, cut = NETWORKS[name], CUTS[name]
    network = load(name, out)
    test = cast("Dataset[Sample]", entry.test(DATA))
    uncut = evaluate(network, test)
    graph = sl.capture(network, torch.zeros(1, 3, *entry.preprocessing.size), name=entry.model)
    spec = sl.TransferSpec(pool=pool, entropy="zstd")

    def prepared(precision: Precision, *, fallback: bool) -> sl.Bundle:
        with tempfile.TemporaryDirectory() as folder:
            return sl.prepare(
                graph,
                sl.Plan(kind="split", slicing_point=cut, spec=spec, device_precision=precision),
                train=DATA / "neu-surface-defects/train",
                validate=test,
                out=Path(folder) / "bundle",
                preprocessing=entry.preprocessing,
                recipe=Recipe(epochs=epochs),
                local_fallback=fallback,
                uncut_score=uncut,
            )

    float32 = prepared("float32", fallback=False).manifest.accuracy
    int8 = prepared("int8", fallback=True).manifest
    assert float32 is not None
    assert int8.accuracy is not None
    assert int8.local_accuracy is not None
    scores = [uncut, int8.local_accuracy.after, float32.after, int8.accuracy.after]
    cells = " | ".join(f"{score:.2%}" for score in scores)
    print(f"| {name} to {cut} | {spec.label} | {epochs} | {cells} |", flush=True)


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    made = argparse.ArgumentParser()
    commands = made.add_subparsers(dest="command", required=True)
    each = commands.add_parser("speed")
    each.add_argument("--size", type=int, default=128)
    each.add_argument("--rounds", type=int, default=60)
    each = commands.add_parser("accuracy")
    each.add_argument("names", nargs="+", choices=list(CUTS))
    each.add_argument("--epochs", type=int, default=4)
    each.add_argument("--pool", type=int, choices=[1, 2, 4], default=2)
    each.add_argument("--out", type=Path, default=Path("build/accuracy"))
    return made


def main() -> None:
    options = parser().parse_args()
    if options.command == "speed":
        speed(options.size, options.rounds)
        return
    columns = ("network", "Transfer Layer", "epochs", "uncut", "uncut in int8")
    print(f"| {' | '.join((*columns, 'split, float32', 'split, int8 device'))} |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for name in options.names:
        accuracy(name, options.epochs, options.pool, options.out)


if __name__ == "__main__":
    main()
