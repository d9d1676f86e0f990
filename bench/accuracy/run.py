"""The runner: cut, insert, retrain, score, and write a record, for each cut, TL and seed.

It calls `prepare` as a user would. Scores and bytes are those in the bundle's manifest: of the
exported slices, with the real codec between them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import msgspec
import numpy as np
import torch
from torch.utils.data import Dataset

import scissionlite as sl
from bench.accuracy.networks import NETWORKS, load, training_mosaics
from bench.accuracy.photographs import ImageNetPhotographs
from bench.accuracy.records import RUNS, Run, Setting, append, read
from scissionlite.graph.graph import Graph
from scissionlite.manifest import Accuracy, Manifest
from scissionlite.preprocessor.data import Sample
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.preprocessor.scoring import evaluate
from scissionlite.scissiontl.profile import cpu_name

FOLDS = 5
BUNDLES = "bundles"
"""Folder of the bundles that are kept, beside the records: ``bundles/NETWORK/CUT, TL``."""


class Experiment(NamedTuple):
    """An experiment: every combination of cut, Transfer Layer and seed."""

    network: str
    cuts: tuple[str, ...]
    transfers: tuple[sl.TransferSpec, ...]
    seeds: tuple[int, ...]
    labels: bool
    recipe: Recipe
    command: str
    """The command line, for the records."""
    keep: bool = False
    """Keep the bundles of the last seed, with slices for both runtimes."""


class Fold(NamedTuple):
    """Data to train on, and other data to score on."""

    train: Path | Dataset[Sample]
    test: Dataset[Sample]
    before: float
    """The uncut network's score on the test data."""

    @property
    def size(self) -> int:
        """How many test samples there are."""
        return len(self.test)  # type: ignore[arg-type]  # torch's Dataset does not say that it can


def folds(name: str, data: Path, network: torch.nn.Module) -> list[Fold]:
    """Training and test data of a network.

    Of ImageNet there are only 100 photographs, in five folds of 20. For each fold, a network learns
    from the other 80 and is scored on these 20. So every photograph is tested once, and never by a
    network that was trained on it.
    """
    entry = NETWORKS[name]
    pairs: list[tuple[Path | Dataset[Sample], Dataset[Sample]]]
    if name == "imagenet":
        folder = data / "imagenet-sample-100"
        everything = set(range(len(ImageNetPhotographs(folder))))
        pairs = []
        for i in range(FOLDS):
            test = set(range(i, len(everything), FOLDS))
            rest = sorted(everything - test)
            pairs.append(
                (
                    ImageNetPhotographs(folder, rest, augment=True),
                    ImageNetPhotographs(folder, sorted(test)),
                )
            )
    else:
        tested = cast("Dataset[Sample]", entry.test(data))
        steel = data / "neu-surface-defects/train"
        pairs = [(training_mosaics(data) if name == "segmentation" else steel, tested)]
    return [Fold(*pair, evaluate(network, pair[1], task=entry.task)) for pair in pairs]


def run(experiment: Experiment, data: Path, out: Path) -> Iterator[Run]:
    """Run an experiment and append to ``out/runs.jsonl``; runs that are there are skipped.

    Yields
    ------
    Run
        Each record as it is written.
    """
    entry = NETWORKS[experiment.network]
    done = {(each.setting, each.recipe.seed) for each in read(out / RUNS, Run)}
    network = load(experiment.network, out)
    example = torch.zeros(1, 3, *entry.preprocessing.size)
    graph = sl.capture(network, example, name=entry.model)
    prepared: list[Fold] = []
    for cut in experiment.cuts:
        for spec in experiment.transfers:
            for seed in experiment.seeds:
                recipe = msgspec.structs.replace(experiment.recipe, seed=seed)
                unseeded = msgspec.structs.replace(recipe, seed=0)
                setting = Setting(experiment.network, cut, spec.label, experiment.labels, unseeded)
                if (setting, seed) in done:
                    continue
                prepared = prepared or folds(experiment.network, data, network)
                kept = kept_bundle(out, experiment.network, cut, spec) if experiment.keep else None
                record = _one(experiment, prepared, graph, cut, spec, recipe, kept)
                append(out / RUNS, record)
                yield record


def kept_bundle(out: Path, network: str, cut: str, spec: sl.TransferSpec) -> Path:
    """Folder of the bundle that an experiment keeps."""
    return out / BUNDLES / network / f"{cut}, {spec.label}".replace("/", " of ")


def _one(
    experiment: Experiment,
    prepared: Sequence[Fold],
    graph: Graph,
    cut: str,
    spec: sl.TransferSpec,
    recipe: Recipe,
    kept: Path | None,
) -> Run:
    task = NETWORKS[experiment.network].task
    untrained, trained, minutes = [], [], 0.0
    for fold in prepared:
        calibrated = msgspec.structs.replace(recipe, epochs=0)
        only = None if recipe.epochs else kept
        manifest = _prepare(experiment, fold, graph, cut, spec, calibrated, only)
        untrained.append(_scored(manifest))
        if recipe.epochs:
            started = time.perf_counter()
            manifest = _prepare(experiment, fold, graph, cut, spec, recipe, kept)
            minutes += (time.perf_counter() - started) / 60
        trained.append(_scored(manifest))
    weights = [fold.size for fold in prepared]
    return Run(
        network=experiment.network,
        cut=cut,
        transfer=spec.label,
        labels=experiment.labels,
        recipe=recipe,
        metric=task.metric,
        samples=sum(weights),
        float32_bytes=manifest.crossing_bytes,
        packed_bytes=manifest.sent_bytes,
        sent_bytes=_mean([a.sent_bytes for a in trained], weights),
        before=_mean([fold.before for fold in prepared], weights),
        untrained=_mean([a.after for a in untrained], weights),
        after=_mean([a.after for a in trained], weights),
        minutes=round(minutes, 2),
        threads=torch.get_num_threads(),
        cpu=cpu_name(),
        command=experiment.command,
    )


def _prepare(
    experiment: Experiment,
    fold: Fold,
    graph: Graph,
    cut: str,
    spec: sl.TransferSpec,
    recipe: Recipe,
    kept: Path | None = None,
) -> Manifest:
    entry = NETWORKS[experiment.network]
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="scissionlite-") as folder:
        bundle = sl.prepare(
            graph,
            sl.Plan(kind="split", slicing_point=cut, spec=spec),
            train=fold.train if experiment.labels else None,
            unlabelled=None if experiment.labels else fold.train,
            validate=fold.test,
            out=kept or Path(folder) / "bundle",
            runtimes=("torchscript",) if kept is None else ("torchscript", "onnx"),
            preprocessing=entry.preprocessing,
            task=entry.task,
            recipe=recipe,
            local_fallback=False,
            uncut_score=fold.before,
        )
    return bundle.manifest


def _scored(manifest: Manifest) -> Accuracy:
    assert manifest.accuracy is not None  # there were validation data
    return manifest.accuracy


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    return float(np.average(values, weights=weights))
