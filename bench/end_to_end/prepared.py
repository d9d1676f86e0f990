"""A network of the harness, profiled once, and the bundles of its plans, made once each.

Profile and bundles stay in the folder of the records, so a run that goes on finds them there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch

import scissionlite as sl
from bench.accuracy.photographs import Frames
from bench.end_to_end import networks
from bench.end_to_end.contenders import JPEG_QUALITIES
from bench.end_to_end.links import LinkKind
from bench.end_to_end.networks import Known, Network
from bench.end_to_end.trained import trained_ways, with_trained
from scissionlite.errors import ScissionLiteError
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.scissiontl.leakage import leakages

IMAGES = 24
PROFILED = 12
"""Frames of a profile: with 16 it would measure the drops of all codecs, too, for minutes."""
LEAKED = 16
"""Frames with which leakage is measured."""


class Setting(NamedTuple):
    """What all cells share."""

    out: Path
    data: Path
    trained: Path
    """Folder of `bench.accuracy`: trained weights, records and bundles."""
    link_kind: LinkKind
    seconds: float
    """Of measuring, in each cell."""
    repetitions: int
    """Of the profile."""
    slices: int
    int8: bool
    command: str


class Prepared:
    """A network that is profiled, and its bundles, made when they are first needed."""

    def __init__(self, name: str, network: Network, setting: Setting) -> None:
        self.name = name
        self.setting = setting
        self.known: Known | None = networks.known_accuracy(network, setting.trained)
        self.size = network.size
        self.weights = network.weights(setting.trained)
        self.first_layers_trained = network.trained or network.is_trained(setting.trained)
        self.files = networks.frame_files(network, setting.data, IMAGES)
        self._preprocessing = networks.preprocessing(network)
        self._folder = setting.out / "networks" / name
        self._failed: dict[str, ScissionLiteError] = {}
        with timed(f"{name}: loading"):
            self._graph = networks.load(network, setting.trained)
        frames = [self._preprocessing.frame(file) for file in self.files]
        self._frames = Frames(frames[: network.calibrated], self._preprocessing)
        profile = self._profile(
            frames,
            min(setting.repetitions, network.most_repetitions),
            None if setting.int8 and network.int8 else False,
        )
        ways = (
            []
            if not network.is_trained(setting.trained)
            else trained_ways(setting.trained, network.checkpoint, profile)
        )
        inputs = np.concatenate([self._preprocessing.tensor(f) for f in frames[:LEAKED]])
        self.profile = with_trained(profile, ways, inputs)
        self.trained = {each.way: each for each in ways}

    def _profile(
        self, frames: Sequence[npt.NDArray[np.uint8]], repetitions: int, int8: bool | None
    ) -> sl.Profile:
        path = self._folder / "profile.json"
        if path.exists():
            return sl.Profile.load(path)
        lowest = None if self.known is None else self.known.lowest_jpeg
        qualities = sorted({*JPEG_QUALITIES, *([] if lowest is None else [min(lowest, 95)])})
        with timed(f"{self.name}: profile"):
            profile = sl.profile(
                self._graph,
                name="here",
                threads=1,
                images=frames[:PROFILED],
                preprocessing=self._preprocessing,
                jpeg_qualities=qualities,
                repetitions=repetitions,
                warm_up=min(2, repetitions),
                slices=self.setting.slices,
                int8=int8,
            )
        inputs = [(torch.from_numpy(self._preprocessing.tensor(f)),) for f in frames[:LEAKED]]
        with timed(f"{self.name}: leakage"):
            found = leakages(self._graph, inputs)
        blocks = zip(profile.blocks, [*found, None], strict=True)
        replace = msgspec.structs.replace
        profile = replace(
            profile, blocks=tuple(replace(block, leakage=own) for block, own in blocks)
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        profile.save(path)
        return profile

    def bundle(self, plan: sl.Plan, runtime: str = "torchscript") -> Path:
        """The folder of a plan's bundle: trained if it is learned, and else only calibrated.

        Training does not change times.

        The runtime is that of its float32 slices; the one for running locally has both.
        """
        name = bundle_name(plan) + ("" if plan.kind == "local" else f"-{runtime}")
        folder = self._folder / "bundles" / name
        if folder.exists():
            return folder
        if name in self._failed:  # several contenders have one bundle
            raise self._failed[name]
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._write(plan, runtime, folder)
        except ScissionLiteError as error:
            self._failed[name] = error
            raise
        return folder

    def _write(self, plan: sl.Plan, runtime: str, folder: Path) -> None:
        whole = plan.kind == "local" and plan.device_precision == "float32"
        if plan.kind == "image":
            self._write_image_bundle(plan, runtime, folder)
            return
        if plan.spec is not None and plan.spec.learned:
            kept = self.trained[plan.slicing_point or "", plan.spec].bundle
            write_part(kept, runtime, folder)
            return
        with timed(f"{self.name}: {plan.label} at {plan.place}, {runtime}"):
            sl.prepare(
                self._graph,
                plan,
                train=self._frames,
                recipe=Recipe(epochs=0),
                preprocessing=self._preprocessing,
                out=folder,
                local_fallback=False,
                runtimes=("torchscript", "onnx") if whole else (runtime,),
            )

    def _write_image_bundle(self, plan: sl.Plan, runtime: str, folder: Path) -> None:
        """Write a bundle for images: its slices are those of the local one, exported already."""
        local = sl.Bundle.load(self.bundle(sl.Plan(kind="local")))
        image = {"image_format": plan.image_format, "jpeg_quality": plan.jpeg_quality}
        write_part(local, runtime, folder, kind="image", **image)


def write_part(bundle: sl.Bundle, runtime: str, folder: Path, **changes: object) -> None:
    """Write a bundle of another's slices of one runtime; their files are the same."""
    slices = {
        role: tuple(each for each in files if each.runtime == runtime)
        for role, files in bundle.manifest.slices.items()
    }
    manifest = msgspec.structs.replace(bundle.manifest, slices=slices, **changes)
    with TemporaryDirectory(dir=folder.parent) as scratch:
        names = [each.file for files in slices.values() for each in files]
        files = {name: Path(scratch) / name for name in names}
        for name, path in files.items():
            try:
                os.link(bundle.path / name, path)
            except OSError:  # a trained bundle may be on another file system
                shutil.copy(bundle.path / name, path)
        sl.Bundle.write(folder, manifest, files)


def bundle_name(plan: sl.Plan) -> str:
    """The folder of a plan's bundle: plans that make different bundles have different ones."""
    parts = (plan.kind, plan.slicing_point, plan.device_precision, plan.image_format)
    what = repr((*parts, plan.jpeg_quality, plan.spec))
    return hashlib.sha256(what.encode()).hexdigest()[:16]


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Say how long something took, and how much of it this process computed."""
    began, cpu = time.monotonic(), time.process_time()
    yield
    note(f"    {what}: {time.monotonic() - began:.1f} s, CPU {time.process_time() - cpu:.1f} s")


def note(text: str) -> None:
    """Say how it goes, on the error stream."""
    print(text, file=sys.stderr, flush=True)
