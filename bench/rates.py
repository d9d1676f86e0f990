"""Bytes against accuracy of one slicing point: `levels`, and bytes in the loss, side by side.

    python -m bench.rates lite0 --cut blocks.3 --levels 24 8 4 --target-bytes 120 60 30

`bench.accuracy run` prepares a bundle for each record and scores its exported slices. That takes
minutes a training. Here the features of photographs are computed once for all trainings, and the
trained network is scored in torch, which computes the same values; the bytes are the real coder's.
A line of JSON for each training goes to `--out`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import msgspec
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import scissionlite as sl
from bench.accuracy.networks import NETWORKS, load
from bench.accuracy.photographs import DATA
from scissionlite.preprocessor import feature_cache, trainer, training_setup
from scissionlite.preprocessor.data import ImageFolder, Sample
from scissionlite.preprocessor.feature_cache import FeatureCache
from scissionlite.preprocessor.inserter import SlicedNetwork, insert
from scissionlite.preprocessor.teacher import Teacher

CALIBRATION = 512


class Point(msgspec.Struct, kw_only=True):
    """One training: what was asked, and what came of it."""

    network: str
    cut: str
    levels: int | None
    target_bytes: int | None
    epochs: int
    seed: int
    sent_bytes: float
    estimated_bytes: float | None
    weight: float
    accuracy: float
    seconds: float


class Trainings:
    """Trainings at one slicing point, with the features of all photographs kept.

    Parameters
    ----------
    name, cut
        Network and slicing point.
    data, out
        The project's shared/data, and the folder with the trained networks.
    """

    def __init__(self, name: str, cut: str, data: Path, out: Path) -> None:
        self.name, self.cut = name, cut
        entry = NETWORKS[name]
        example = torch.zeros(1, 3, *entry.preprocessing.size)
        self.graph = sl.capture(load(name, out), example, name=entry.model)
        self.photographs = ImageFolder(
            data / "neu-surface-defects/train", entry.preprocessing, augment=True
        )
        self._device_slice = self.graph.split(self.graph.point(cut))[0]
        with torch.no_grad():
            plain: Any = self.photographs.side(False)
            order = torch.randperm(len(plain), generator=torch.Generator().manual_seed(0))
            self.calibration = torch.stack([plain[int(i)][0] for i in order[:CALIBRATION]])
            tests = DataLoader(cast("Dataset[Sample]", entry.test(data)), batch_size=32)
            tested = [(self._device_slice(x), y) for x, y in tests]
        self.features = torch.cat([x for x, _ in tested])
        self.labels = torch.cat([y for _, y in tested])
        self._cache: FeatureCache | None = None

    def train(self, spec: sl.TransferSpec, recipe: sl.Recipe) -> Point:
        """Train once."""
        started = time.perf_counter()
        torch.manual_seed(recipe.seed)
        batches = [(each,) for each in self.calibration.split(32)]
        network = insert(self.graph, self.cut, spec, calibration=batches, recipe=recipe)
        with patch.object(training_setup, "cache_features", self._cached):
            made = trainer.train(
                network, self.photographs, recipe, teacher=Teacher(self.graph, self.cut)
            )
        sent, accuracy = self._score(network)
        return Point(
            network=self.name,
            cut=self.cut,
            levels=spec.levels,
            target_bytes=recipe.target_bytes,
            epochs=recipe.epochs,
            seed=recipe.seed,
            sent_bytes=round(sent, 1),
            estimated_bytes=made.estimated_bytes,
            weight=round(made.rate, 4),
            accuracy=round(accuracy, 4),
            seconds=round(time.perf_counter() - started, 1),
        )

    def _cached(self, *arguments: Any, **options: Any) -> FeatureCache | None:
        if self._cache is None:
            self._cache = feature_cache.cache_features(*arguments, **options)
        return self._cache

    def _score(self, network: SlicedNetwork) -> tuple[float, float]:
        """Mean bytes of a test photograph, and the accuracy on them."""
        (layer,) = network.layers
        with torch.no_grad():
            fitted = self._device_slice(self.calibration)
            tables = sl.fit_tables(
                sl.encode(
                    layer.encoder(x).numpy(),
                    msgspec.structs.replace(layer.spec.packing, entropy=None),
                    layer.quantization,
                )
                for x in fitted.split(32)
            )
            sizes = [
                sl.encode(
                    layer.encoder(x[None]).numpy(),
                    layer.spec.packing,
                    layer.quantization,
                    tables=tables,
                ).nbytes
                for x in self.features
            ]
            answers = network.answer([self.features])
        assert isinstance(answers, torch.Tensor)
        right = (answers.argmax(1) == self.labels).double().mean()
        return float(np.mean(sizes)), float(right)


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    options = argparse.ArgumentParser(prog="python -m bench.rates")
    options.add_argument("name", choices=["lite0", "resnet18"])
    options.add_argument("--cut", required=True)
    options.add_argument("--levels", type=int, nargs="*", default=[])
    options.add_argument("--target-bytes", type=int, nargs="*", default=[])
    options.add_argument("--plain", action="store_true", help="2x2 maximum, not learned")
    options.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    options.add_argument("--epochs", type=int, default=4)
    options.add_argument("--data", type=Path, default=DATA)
    options.add_argument("--networks", type=Path, default=Path("build/accuracy"))
    options.add_argument("--out", type=Path, default=Path("build/rates.jsonl"))
    return options


def main() -> None:
    given = parser().parse_args()
    torch.set_num_threads(1)
    trainings = Trainings(given.name, given.cut, given.data, given.networks)
    plain, learned = sl.TransferSpec(), sl.TransferSpec(pool_kind="learned", pool=2, reduction=4)
    spec = msgspec.structs.replace(plain if given.plain else learned, entropy="ans")
    for seed in given.seeds:
        asked = [(levels, None) for levels in given.levels]
        for levels, target in [*asked, *((None, target) for target in given.target_bytes)]:
            recipe = sl.Recipe(epochs=given.epochs, seed=seed, target_bytes=target)
            point = trainings.train(msgspec.structs.replace(spec, levels=levels), recipe)
            given.out.parent.mkdir(parents=True, exist_ok=True)
            with given.out.open("ab") as file:
                file.write(msgspec.json.encode(point) + b"\n")
            print(point, flush=True)


if __name__ == "__main__":
    main()
