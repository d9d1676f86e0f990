"""Scores after each epoch of a training, from which the margin of a floor is taken.

    python -m bench.curves lite0 --cut blocks.3 --transfer pool=2 --recipe epochs=8

One line in docs/accuracy/curves.jsonl for each training. The network is scored on the test
photographs as :mod:`scissionlite.preprocessor.floor` scores it: after an epoch, with its batch
statistics measured again. The weights at the end are those of a training that is not looked at.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from torch import nn
from torch.utils.data import Dataset

import scissionlite as sl
from bench.accuracy.__main__ import recipe_of, transfer_of
from bench.accuracy.networks import NETWORKS, load
from bench.accuracy.photographs import DATA, steel
from scissionlite.preprocessor import trainer
from scissionlite.preprocessor.data import Sample, input_batches, loader_of
from scissionlite.preprocessor.floor import Floor
from scissionlite.preprocessor.inserter import insert
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.preprocessor.scoring import evaluate
from scissionlite.preprocessor.teacher import Teacher

CURVES = Path("docs/accuracy/curves.jsonl")


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """Scores of the uncut network, of the calibrated one, and after each epoch, 0 to 1."""

    network: str
    cut: str
    transfer: str
    epochs: int
    seed: int
    uncut: float
    scores: tuple[float, ...]


@dataclass(frozen=True)
class _Recorder(Floor):
    """A floor that is always looked at, and stops nothing."""

    scores: list[float] = field(default_factory=list)

    def looks(self, epoch: int, epochs: int) -> bool:
        return True

    def check(self, network: nn.Module, epoch: int, epochs: int) -> None:
        self.scores.append(evaluate(network, self.data, task=self.task))
        print(epoch, f"{self.scores[-1]:.4f}", flush=True)


def curve(name: str, cut: str, spec: sl.TransferSpec, recipe: Recipe) -> Curve:
    """Train once, and score after each epoch."""
    entry = NETWORKS[name]
    network = load(name, Path("build/accuracy"))
    graph = sl.capture(network, torch.zeros(1, 3, *entry.preprocessing.size), name=entry.model)
    data: Any = steel(DATA, "train")
    test = cast("Dataset[Sample]", entry.test(DATA))
    order = torch.Generator().manual_seed(recipe.seed)
    loader = loader_of(data, recipe.batch_size, generator=order)
    sliced = insert(graph, cut, spec, calibration=input_batches(loader), recipe=recipe)
    recorder = _Recorder(test, entry.task, 0.0)
    recorder.scores.append(evaluate(sliced, test, task=entry.task))
    trainer.train(
        sliced, data, recipe, task=entry.task, teacher=Teacher(graph, cut), floor=recorder
    )
    return Curve(
        network=name,
        cut=cut,
        transfer=spec.label,
        epochs=recipe.epochs,
        seed=recipe.seed,
        uncut=evaluate(graph.module, test, task=entry.task),
        scores=tuple(round(score, 4) for score in recorder.scores),
    )


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    whole = argparse.ArgumentParser(prog="python -m bench.curves")
    whole.add_argument("network", choices=["lite0", "resnet18", "resnet50", "mobilenet_v2"])
    whole.add_argument("--cut", required=True)
    whole.add_argument("--transfer", nargs="+", type=transfer_of, required=True)
    whole.add_argument("--recipe", type=recipe_of, default=Recipe())
    return whole


def main() -> None:
    options = parser().parse_args()
    torch.set_num_threads(1)
    for spec in options.transfer:
        found = curve(options.network, options.cut, spec, options.recipe)
        with CURVES.open("ab") as file:
            file.write(msgspec.json.encode(found) + b"\n")
        print(found, flush=True)


if __name__ == "__main__":
    main()
