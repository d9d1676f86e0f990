"""Encoding in a request against encoding in a loop, for bundles of `python -m bench.end_to_end`.

    python -m bench.encoding build/end_to_end/networks/*/bundles/*

A request comes after a pause, runs the device slice and encodes its feature map; a loop encodes the
feature maps of the same frames, one after the other. Both take turns in one process of one thread,
on the first core. The bar of the project is a ratio of 1.5. Beside it stands the same ratio for
reading the feature map alone (the sum of every sixteenth number): what the caches have lost, no
encoder can make up for. Bundles that do not split, and those that encode the same at the same
slicing point, are left out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

import scissionlite as sl
from bench.accuracy.photographs import DATA
from bench.end_to_end.machine import pin_to_core
from bench.end_to_end.networks import NETWORKS, frame_files
from scissionlite.manifest import Variant
from scissionlite.runtimes import Slice, load_slice

BAR = 1.5
PAUSE = 0.027  # seconds: a round trip of the paper's link
FRAMES, ROUNDS = 12, 6

Maps = Sequence[npt.NDArray[Any]]


class Split(NamedTuple):
    """A bundle's device part."""

    network: str
    variant: Variant
    device: Slice
    inputs: list[npt.NDArray[np.float32]]


class Ratios(NamedTuple):
    """Median seconds in a request and in a loop."""

    request: float
    loop: float

    @property
    def ratio(self) -> float:
        """How many times as long a request takes."""
        return self.request / self.loop


def splits(folders: Sequence[Path], data: Path) -> Iterator[Split]:
    """Open the bundles that split a network with one device slice, each codec and place once."""
    seen = set()
    for folder in folders:
        bundle = sl.Bundle.load(folder)
        manifest, network = bundle.manifest, folder.parents[1].name
        variant = next(iter(manifest.every_variant), None)
        if variant is None or len(variant.device) != 1:
            continue
        key = (network, variant.slicing_point, variant.transfer)
        if key in seen or network not in NETWORKS:
            continue
        seen.add(key)
        preprocessing = manifest.preprocessing
        assert preprocessing is not None
        files = frame_files(NETWORKS[network], data, FRAMES)
        inputs = [preprocessing.tensor(preprocessing.frame(file)) for file in files]
        file = manifest.slices[variant.device[0]][0]
        yield Split(network, variant, load_slice(folder / file.file, file.runtime, 1), inputs)


def measure(split: Split, action: Callable[[Maps], object]) -> Ratios:
    """Time an action on what crosses: in requests, and in loops over the same feature maps."""
    request: list[float] = []
    loop: list[float] = []
    for number in range(ROUNDS):
        kept = []
        for x in split.inputs:
            time.sleep(PAUSE)
            crossing = split.device(x)
            request.append(_timed(action, crossing))
            kept.append([np.array(each) for each in crossing])
        loop += [_timed(action, crossing) for crossing in kept * 2][len(kept) :]
        if number == 0:  # warm-up
            request, loop = [], []
    return Ratios(median(request), median(loop))


def _timed(action: Callable[[Maps], object], crossing: Maps) -> float:
    started = time.perf_counter()
    action(crossing)
    return time.perf_counter() - started


def row(split: Split) -> str:
    """A row of the table."""
    tensors = split.variant.crossing

    def encode(crossing: Maps) -> object:
        pairs = zip(crossing, tensors, strict=True)
        return [
            sl.encode(x, each.transfer, each.quantization, tables=each.tables) for x, each in pairs
        ]

    encoding = measure(split, encode)
    reading = measure(split, lambda crossing: [float(x.reshape(-1)[::16].sum()) for x in crossing])
    shapes = " + ".join("x".join(map(str, each.shape[1:])) for each in tensors)
    cells = [
        split.network,
        f"{split.variant.slicing_point.after} ({shapes})",
        split.variant.transfer.label,
        f"{encoding.request * 1e6:.0f}",
        f"{encoding.loop * 1e6:.0f}",
        f"{encoding.ratio:.2f}" + ("" if encoding.ratio <= BAR else " (over)"),
        f"{reading.request * 1e6:.0f}, {reading.loop * 1e6:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    whole = argparse.ArgumentParser(prog="python -m bench.encoding")
    whole.add_argument("bundles", nargs="+", type=Path)
    whole.add_argument("--data", type=Path, default=DATA, help="the project's shared/data")
    return whole


def main() -> None:
    """Print the table."""
    options = parser().parse_args()
    torch.set_num_threads(1)
    pin_to_core(0)
    header = ["network", "after", "codec", "in a request, us", "in a loop, us", "ratio"]
    header.append("reading the map alone, us")
    print(f"| {' | '.join(header)} |\n{'| --- ' * len(header)}|")
    for split in splits(options.bundles, options.data):
        print(row(split), flush=True)


if __name__ == "__main__":
    main()
