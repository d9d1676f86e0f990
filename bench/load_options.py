"""Options with which slices are loaded: which of them make a device slice faster, and how equal.

    python -m bench.load_options --threads 1 2

For each network's device slice and each number of threads, slices that were exported once are
loaded with each option, and run in turn: the figures are ratios within one run. "1.10" means that
the median run takes 1/1.10 of the time of the same file with the first option of its runtime. It
is CPU time for one thread, and the clock's for more. The first ONNX slice runs behind TorchScript
ones, with a colder cache. Differences are the largest of any output, as a share of the largest
value. Loading is the time to load and for the first run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch

import scissionlite as sl
from scissionlite.models import load_model
from scissionlite.runtimes import keep_memory, onnx, onnx_int8, torchscript

SLICES = {
    "timm:efficientnet_lite0": "blocks.2",
    "torchvision:resnet50": "layer2",
    "torchvision:mobilenet_v2": "features.6",
    "torchvision:mobilenet_v3_small": "features.4",
    "torchvision:resnet18": "layer2",
}
"""Networks, and the slicing point at which each is cut."""

SIZE = 128

Array = np.ndarray[Any, Any]
Run = Callable[[Array], Array]


class Option(NamedTuple):
    """One way to load a slice's file: the runtime's name, the option's, and how."""

    runtime: str
    name: str
    load: Callable[[Path, int], Run]


def _torchscript(change: Callable[[Any], Any]) -> Callable[[Path, int], Run]:
    def load(path: Path, threads: int) -> Run:
        torch.set_num_threads(threads)
        slice_ = torchscript.TorchScriptSlice(change(torch.jit.load(str(path))))
        return lambda x: slice_(x)[0]

    return load


def _onnx(change: Callable[[Any], None] = lambda options: None) -> Callable[[Path, int], Run]:
    def load(path: Path, threads: int) -> Run:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        change(options)
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        slice_ = onnx.OnnxSlice(session)
        return lambda x: slice_(x)[0]

    return load


def _entry(name: str, value: str) -> Callable[[Any], None]:
    return lambda options: options.add_session_config_entry(name, value)


def _set(**values: object) -> Callable[[Any], None]:
    def change(options: Any) -> None:
        for name, value in values.items():
            setattr(options, name, value)

    return change


_LEVELS = onnxruntime.GraphOptimizationLevel

OPTIONS = (
    Option("torchscript", "as saved (frozen)", _torchscript(lambda module: module)),
    Option("torchscript", "optimize_for_inference", _torchscript(torch.jit.optimize_for_inference)),
    Option("onnx", "ONNX Runtime's defaults", _onnx()),
    Option("onnx", "no spinning", _onnx(_entry("session.intra_op.allow_spinning", "0"))),
    Option("onnx", "no arena", _onnx(_set(enable_cpu_mem_arena=False))),
    Option("onnx", "no memory pattern", _onnx(_set(enable_mem_pattern=False))),
    Option(
        "onnx", "level extended", _onnx(_set(graph_optimization_level=_LEVELS.ORT_ENABLE_EXTENDED))
    ),
    Option("onnx", "denormals are zero", _onnx(_entry("session.set_denormal_as_zero", "1"))),
    Option("onnx int8", "ONNX Runtime's defaults", _onnx()),
    Option("onnx int8", "no spinning", _onnx(_entry("session.intra_op.allow_spinning", "0"))),
    Option(
        "onnx int8",
        "level extended",
        _onnx(_set(graph_optimization_level=_LEVELS.ORT_ENABLE_EXTENDED)),
    ),
    Option("onnx int8", "for no VNNI", _onnx(_entry("session.x64quantprecision", "1"))),
)


class Measured(NamedTuple):
    """Seconds of a run and of loading, and the difference from the first option's answer."""

    run: float
    load: float
    difference: float


def measure(folder: Path, x: Array, threads: int, rounds: int) -> dict[Option, Measured]:
    """Load every option's file, and run all of them in turn."""
    files = {"torchscript": "slice.pt", "onnx": "slice.onnx", "onnx int8": "int8.onnx"}
    runs, loads, answers = {}, {}, {}
    for option in OPTIONS:
        started = time.perf_counter()
        run = runs[option] = option.load(folder / files[option.runtime], threads)
        run(x)
        loads[option] = time.perf_counter() - started
        answers[option] = run(x)
    # One thread's CPU time is disturbed less by other processes.
    clock = time.thread_time if threads == 1 else time.perf_counter
    times: dict[Option, list[float]] = {option: [] for option in OPTIONS}
    for i in range(rounds + 5):
        for option, run in runs.items():
            started = clock()
            run(x)
            if i >= 5:
                times[option].append(clock() - started)
    found = {}
    for option in OPTIONS:
        first = next(answers[each] for each in OPTIONS if each.runtime == option.runtime)
        difference = float(np.abs(answers[option] - first).max() / np.abs(first).max())
        found[option] = Measured(median(times[option]), loads[option], difference)
    return found


def export(model: str, cut: str, folder: Path) -> Array:
    """Write the device slice's files; return an input."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, SIZE, SIZE)
    device, _ = sl.capture(load_model(model).eval(), x).split(cut)
    torchscript.export(device, (x,), folder / "slice.pt")
    onnx.export(device, (x,), folder / "slice.onnx")
    calibration = [(torch.randn_like(x).numpy(),) for _ in range(4)]
    onnx_int8.quantize(folder / "slice.onnx", folder / "int8.onnx", calibration)
    return x.numpy()


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    made = argparse.ArgumentParser()
    made.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    made.add_argument("--rounds", type=int, default=40)
    return made


def main() -> None:
    arguments = parser().parse_args()
    keep_memory()
    table: dict[tuple[Option, int], list[Measured]] = {}
    for model, cut in SLICES.items():
        with tempfile.TemporaryDirectory() as folder:
            x = export(model, cut, Path(folder))
            for threads in arguments.threads:
                measured = measure(Path(folder), x, threads, arguments.rounds)
                for option, each in measured.items():
                    table.setdefault((option, threads), []).append(each)
    names = [f"{model.partition(':')[2]} to {cut}" for model, cut in SLICES.items()]
    print(f"| runtime | option | threads | {' | '.join(names)} | difference | loading, s |")
    print(f"| --- | --- | --- | {' | '.join('---' for _ in names)} | --- | --- |")
    for (option, threads), row in table.items():
        first = next(each for each in OPTIONS if each.runtime == option.runtime)
        base = table[first, threads]
        if option == first:
            cells = [f"{each.run * 1e3:.2f} ms" for each in row]
        else:
            cells = [f"{b.run / each.run:.2f}" for b, each in zip(base, row, strict=True)]
        worst = max(each.difference for each in row)
        loading = sum(each.load for each in row) / len(row)
        print(
            f"| {option.runtime} | {option.name} | {threads} | {' | '.join(cells)} "
            f"| {worst:.1g} | {loading:.2f} |"
        )


if __name__ == "__main__":
    main()
