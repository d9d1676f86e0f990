"""Records of the experiments: one line of JSON each, appended when the experiment is finished."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from scissionlite.preprocessor.recipe import Recipe

RUNS, JPEGS = "runs.jsonl", "jpeg.jsonl"
"""The files, in the folder that ``--out`` names."""


class Setting(NamedTuple):
    """An experiment without its seed."""

    network: str
    cut: str
    transfer: str
    labels: bool
    recipe: Recipe


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One retraining with one seed.

    Attributes
    ----------
    network, cut, transfer
        The network, the slicing point, and the label of the Transfer Layer.
    labels
        Whether it learned from labels, or from the uncut network alone.
    recipe
        The recipe, with its seed.
    metric, samples
        Name of the scores' metric, and number of test samples.
    float32_bytes, packed_bytes, sent_bytes
        Bytes of the feature map in float32; packed, before the entropy stage; and the mean payload
        after it.
    before, untrained, after
        Score (0 to 1) of the uncut network, with the Transfer Layer only calibrated, and retrained.
    minutes, threads, cpu
        Minutes of calibrating, retraining, exporting and checking; number of threads; CPU.
    command
        The command that repeats it.
    """

    network: str
    cut: str
    transfer: str
    labels: bool
    recipe: Recipe
    metric: str
    samples: int
    float32_bytes: int
    packed_bytes: int
    sent_bytes: float
    before: float
    untrained: float
    after: float
    minutes: float
    threads: int
    cpu: str
    command: str

    @property
    def setting(self) -> Setting:
        """The setting that all seeds of one experiment share."""
        recipe = msgspec.structs.replace(self.recipe, seed=0)
        return Setting(self.network, self.cut, self.transfer, self.labels, recipe)

    @property
    def label(self) -> str:
        """The Transfer Layer, bytes in the loss, and whether the device slice learned too."""
        recipe = self.recipe
        target = f", target {recipe.target_bytes} bytes" if recipe.target_bytes else ""
        rate = f", rate {recipe.rate:g}" if recipe.rate else ""
        learned = ", device slice trained too" if recipe.train_device_slice else ""
        return f"{self.transfer}{rate}{target}{learned}"


class Jpeg(msgspec.Struct, frozen=True, kw_only=True):
    """Score of the uncut network on JPEGs of one size and quality.

    ``scale`` is the JPEG's height over the picture's; ``as_sent`` and ``smallest`` are mean bytes,
    by coder (:mod:`.jpeg`).
    """

    network: str
    scale: float
    quality: int
    as_sent: float
    smallest: float
    score: float


_Record = TypeVar("_Record", Run, Jpeg)


def append(path: Path, record: msgspec.Struct) -> None:
    """Append a record to a file, and make the file if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(msgspec.json.encode(record) + b"\n")


def read(path: Path, kind: type[_Record]) -> list[_Record]:
    """Read all records of a file; none if there is no such file."""
    if not path.exists():
        return []
    return [msgspec.json.decode(line, type=kind) for line in path.read_bytes().splitlines()]


def seeds_together(runs: Sequence[Run]) -> Iterator[list[Run]]:
    """Group the runs by experiment, one per seed (the latest), in the order of the file."""
    groups: dict[Setting, dict[int, Run]] = {}
    for run in runs:
        groups.setdefault(run.setting, {})[run.recipe.seed] = run
    for group in groups.values():
        yield list(group.values())
