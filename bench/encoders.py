"""Shallow encoders at the image against JPEG: bytes, accuracy, and the device's time.

    python -m bench.encoders jpeg lite0_200 --scales 1 0.5 --qualities 75 10
    python -m bench.encoders run lite0_200 --size tiny --levels 64 16          # not trained
    python -m bench.encoders run lite0_200 --size tiny --target-bytes 600 --epochs 3
    python -m bench.encoders time lite0_200 --size tiny --levels 16 --runtime onnx

`lite0_200` is trained by ``python -m bench.accuracy networks lite0_200``. A line of JSON for each
measurement goes to `--out`. Trained networks are scored in torch, which computes what the exported
slices do; bytes are the coder's. "jpeg" has the smallest JPEGs (`bench.accuracy.jpeg`). Of
ImageNet's 100 photographs every second one is tested, and the others are for calibration and
training. Nothing looks at labels but the score. "time" is from a frame to its payload.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import msgspec
import numpy as np
import torch
from torch.utils.data import Dataset, Subset

import scissionlite as sl
from bench.accuracy.jpeg import Sent, Shrunk, as_sent
from bench.accuracy.networks import NETWORKS, load
from bench.accuracy.photographs import DATA, ImageNetPhotographs, Pictures
from bench.accuracy.records import append
from scissionlite.preprocessor import feature_cache, trainer, training_setup
from scissionlite.preprocessor.data import Data, ImageFolder, Sample
from scissionlite.preprocessor.entropy_fitting import entropy_tables
from scissionlite.preprocessor.feature_cache import FeatureCache
from scissionlite.preprocessor.inserter import SlicedNetwork, insert
from scissionlite.preprocessor.teacher import Teacher
from scissionlite.runtimes import Slice, load_slice, runtime_module

CALIBRATION = 64


class Point(msgspec.Struct, kw_only=True):
    """One measurement of bytes and accuracy."""

    network: str
    coder: str
    levels: int | None = None
    target_bytes: int | None = None
    epochs: int = 0
    photographs: int = 0
    """How many it was trained on."""
    seed: int = 0
    edge_trained: bool = False
    samples: int
    uncut: float
    accuracy: float
    sent_bytes: float
    seconds: float


class Timing(msgspec.Struct, kw_only=True):
    """Milliseconds from a frame to its payload, medians; the two take turns."""

    network: str
    coder: str
    levels: int | None
    runtime: str
    jpeg_75: float = 0.0
    coder_ms: float = 0.0
    ratio: float = 0.0
    parts: dict[str, float] = {}


class Bench:
    """A network with its photographs."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.name = given, given.name
        entry = NETWORKS[self.name]
        self.preprocessing = entry.preprocessing
        self.pictures: Pictures
        self.train: Any
        if self.name == "imagenet":
            folder = given.data / "imagenet-sample-100"
            self.pictures = ImageNetPhotographs(folder, range(0, 100, 2))
            self.train = ImageNetPhotographs(folder, range(1, 100, 2), augment=True)
            plain: Any = ImageNetPhotographs(folder, range(1, 100, 2))
        else:
            self.pictures = entry.test(given.data)
            folder = given.data / "neu-surface-defects/train"
            self.train = ImageFolder(folder, self.preprocessing, augment=True)
            plain = self.train.side(False)
        chosen = torch.linspace(0, len(plain) - 1, min(CALIBRATION, len(plain))).long().tolist()
        self.calibration = torch.stack([plain[i][0] for i in chosen])
        if given.photographs and given.photographs < len(self.train):
            kept = torch.linspace(0, len(self.train) - 1, given.photographs).long().tolist()
            self.train = Subset(self.train, kept)
        tested = range(0, len(self.pictures), given.every)
        self.tested = list(tested)
        self.graph = sl.capture(
            load(self.name, given.networks),
            torch.zeros(1, 3, *self.preprocessing.size),
            name=entry.model,
        )
        self.x = torch.stack([cast(torch.Tensor, self.pictures[i][0]) for i in self.tested])
        self.labels = torch.tensor([self.pictures[i][1] for i in self.tested])
        self._cache: FeatureCache | None = None
        self._uncut: float | None = None

    def score(self, network: Callable[[torch.Tensor], Any], x: torch.Tensor) -> float:
        """Share of the test photographs that is answered right."""
        with torch.inference_mode():
            answers = torch.cat([network(part) for part in x.split(16)])
        return float((answers.argmax(1) == self.labels).double().mean())

    @property
    def uncut(self) -> float:
        """The uncut network's score."""
        if self._uncut is None:
            self._uncut = self.score(self.graph.module, self.x)
        return self._uncut

    def jpeg(self, scale: float, quality: int) -> Point:
        """JPEGs of a quality, at a share of the height."""
        started = time.perf_counter()
        shrunk = Shrunk(cast(Pictures, _Some(self.pictures, self.tested)), scale)
        sent = Sent(cast(Pictures, _Some(self.pictures, self.tested)), shrunk, quality)
        x = torch.stack([cast(torch.Tensor, sent[i][0]) for i in range(len(self.tested))])
        return Point(
            network=self.name,
            coder=f"JPEG-{quality}" + (f" at {scale:g} of the height" if scale < 1 else ""),
            samples=len(self.tested),
            uncut=self.uncut,
            accuracy=self.score(self.graph.module, x),
            sent_bytes=round(shrunk.mean_bytes(quality), 1),
            seconds=round(time.perf_counter() - started, 1),
        )

    def encoder(self, spec: sl.TransferSpec, recipe: sl.Recipe) -> tuple[Point, SlicedNetwork]:
        """A shallow encoder, trained where the recipe has epochs."""
        started = time.perf_counter()
        torch.manual_seed(recipe.seed)
        batches = [(part,) for part in self.calibration.split(16)]
        network = insert(self.graph, "input", spec, calibration=batches, recipe=recipe)
        if recipe.epochs:
            with patch.object(training_setup, "cache_features", self._cached):
                trainer.train(
                    network,
                    cast(Data, self.train),
                    recipe,
                    teacher=Teacher(self.graph, "input"),
                    labelled=False,
                )
        else:
            network.settle()
        return self._scored(network, spec, recipe, started), network

    def _scored(
        self, network: SlicedNetwork, spec: sl.TransferSpec, recipe: sl.Recipe, started: float
    ) -> Point:
        (layer,) = network.layers
        (tables,) = entropy_tables(network, [(part,) for part in self.calibration.split(16)])
        with torch.inference_mode():
            sizes = []
            for x in self.x:
                sent = layer.encoder(x[None]).numpy()
                packed = sl.encode(sent, layer.spec.packing, layer.quantization, tables=tables)
                sizes.append(packed.nbytes)
        return Point(
            network=self.name,
            coder=f"{spec.encoder} {spec.pool}x{spec.pool}",
            levels=spec.levels,
            target_bytes=recipe.target_bytes,
            epochs=recipe.epochs,
            photographs=len(self.train) if recipe.epochs else 0,
            seed=recipe.seed,
            edge_trained=recipe.epochs > 0 and recipe.train_edge_slice,
            samples=len(self.tested),
            uncut=self.uncut,
            accuracy=self.score(cast(Any, network), self.x),
            sent_bytes=round(float(np.mean(sizes)), 1),
            seconds=round(time.perf_counter() - started, 1),
        )

    def _cached(self, *arguments: Any, **options: Any) -> FeatureCache | None:
        if self._cache is None:
            self._cache = feature_cache.cache_features(*arguments, **options)
        return self._cache

    def time(self, network: SlicedNetwork, spec: sl.TransferSpec, runtime: str) -> Timing:
        """From frames to payloads, beside Pillow's JPEG of quality 75, on one thread."""
        (layer,) = network.layers
        (tables,) = entropy_tables(network, [(part,) for part in self.calibration.split(16)])
        packing, quantization = layer.spec.packing, layer.quantization
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / f"device{runtime_module(runtime).SUFFIX}"
            runtime_module(runtime).export(
                network.deployed_device_slice(), self.graph.example, path
            )
            return self.timed(
                load_slice(path, runtime, threads=1),
                lambda sent: sl.encode(sent, packing, quantization, tables=tables),
                Timing(
                    network=self.name,
                    coder=f"{spec.encoder} {spec.pool}x{spec.pool}",
                    levels=spec.levels,
                    runtime=runtime,
                ),
            )

    def timed(
        self, encode: Slice, pack: Callable[[Any], object], unmeasured: Timing, frames: int = 400
    ) -> Timing:
        """Time frames through preprocessing, a device slice and its coder, in turns with JPEG."""
        own: list[list[float]] = []
        theirs: list[float] = []
        for i in [*self.tested[:5], *(self.tested * 20)[:frames]]:
            frame = self.pictures.frame(i)
            stamps = [time.perf_counter()]
            x = self.preprocessing.tensor(frame)
            stamps.append(time.perf_counter())
            (sent,) = encode(x)
            stamps.append(time.perf_counter())
            pack(sent)
            stamps.append(time.perf_counter())
            as_sent(frame, 75)
            theirs.append(time.perf_counter() - stamps[-1])
            own.append([b - a for a, b in itertools.pairwise(stamps)])
        parts = [1e3 * statistics.median(each) for each in zip(*own[5:], strict=True)]
        ours = 1e3 * statistics.median(sum(each) for each in own[5:])
        jpeg = 1e3 * statistics.median(theirs[5:])
        names = ("preprocess", "slice", "pack")
        return msgspec.structs.replace(
            unmeasured,
            jpeg_75=round(jpeg, 4),
            coder_ms=round(ours, 4),
            ratio=round(ours / jpeg, 3),
            parts={name: round(ms, 4) for name, ms in zip(names, parts, strict=True)},
        )


class _Some(Dataset[Sample]):
    """Some of the pictures."""

    def __init__(self, pictures: Pictures, indices: list[int]) -> None:
        self.pictures, self.indices = pictures, indices
        self.preprocessing = pictures.preprocessing

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.pictures[self.indices[index]]

    def frame(self, index: int) -> Any:
        """The picture before normalization."""
        return self.pictures.frame(self.indices[index])


def common_options() -> argparse.ArgumentParser:
    """The options of a :class:`Bench`, for a parser's ``parents``."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--photographs", type=int, help="train on this many, evenly chosen")
    options.add_argument("--seeds", type=int, nargs="*", default=[0])
    options.add_argument("--every", type=int, default=1, help="test every n-th photograph")
    options.add_argument("--runtime", default="onnx")
    options.add_argument("--data", type=Path, default=DATA)
    options.add_argument("--networks", type=Path, default=Path("build/accuracy"))
    options.add_argument("--out", type=Path, default=Path("build/encoders.jsonl"))
    return options


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    options = argparse.ArgumentParser(prog="python -m bench.encoders", parents=[common_options()])
    options.add_argument("what", choices=["jpeg", "run", "time"])
    options.add_argument("name", choices=["lite0_200", "imagenet"])
    options.add_argument("--scales", type=float, nargs="*", default=[1.0])
    options.add_argument("--qualities", type=int, nargs="*", default=[75])
    options.add_argument("--size", choices=["tiny", "small", "base"], default="tiny")
    options.add_argument("--pool", type=int, choices=[8, 16], default=8)
    options.add_argument("--levels", type=int, nargs="*", default=[])
    options.add_argument("--target-bytes", type=int, nargs="*", default=[])
    options.add_argument("--start-levels", type=int, help="levels before a training for bytes")
    options.add_argument("--epochs", type=int, default=3)
    options.add_argument("--batch-size", type=int, default=16)
    options.add_argument("--learning-rate", type=float, default=1e-3)
    options.add_argument("--freeze-edge", action="store_true")
    return options


def main() -> None:
    given = parser().parse_args()
    torch.set_num_threads(1)
    bench = Bench(given)

    def keep(record: Point | Timing) -> None:
        append(given.out, record)
        print(record, flush=True)

    if given.what == "jpeg":
        for scale in given.scales:
            for quality in given.qualities:
                keep(bench.jpeg(scale, quality))
        return
    spec = msgspec.structs.replace(sl.TransferSpec.shallow_encoder(given.size), pool=given.pool)
    untrained = sl.Recipe(epochs=0)
    for levels in given.levels:
        own = msgspec.structs.replace(spec, levels=levels)
        point, network = bench.encoder(own, untrained)
        keep(point if given.what == "run" else bench.time(network, own, given.runtime))
    if given.start_levels:
        spec = msgspec.structs.replace(spec, levels=given.start_levels)
    for seed in given.seeds:
        for target in given.target_bytes:
            recipe = sl.Recipe(
                epochs=given.epochs,
                batch_size=given.batch_size,
                learning_rate=given.learning_rate,
                seed=seed,
                target_bytes=target,
                train_edge_slice=not given.freeze_edge,
            )
            keep(bench.encoder(spec, recipe)[0])


if __name__ == "__main__":
    main()
