"""How late a request ends amid a fault: ``python -m bench.faults``.

The faults of ``tests/faults.py``, of the issue's length: a daemon's process behind an emulated link
(10 Mbit/s, packets of 7.2 KB) is used by four threads of one device, which ask again and again
before, during and after the fault. Each answer is checked. For each fault and fallback: how many
requests ended how, and the latest end after the deadline (below zero: all were before it). The goal
is 100 ms. Options: ``--seconds`` of each fault, ``--deadline`` of each request, ``--only`` faults
whose name contains a text.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from bundles import Toy, write_bundle  # noqa: E402
from faults import FAULTS, Site, requests_amid  # noqa: E402
from torch import nn  # noqa: E402

import scissionlite as sl  # noqa: E402
from bench.scale import CROSSING, SHAPE, Classifier  # noqa: E402
from scissionlite.images import Preprocessing  # noqa: E402


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--deadline", type=float, default=2.0)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    generator = np.random.default_rng(7)
    frames = [generator.integers(0, 256, (*SHAPE[2:], 3), dtype=np.uint8) for _ in range(12)]
    print("| fault | fallback | requests | ended | latest after its deadline |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        site = Site(make_bundle(Path(folder)))
        try:
            for fault in (each for each in FAULTS if options.only in each.__name__):
                for fallback in ("raise", "local"):
                    outcomes = requests_amid(
                        site,
                        fault,
                        frames,
                        seconds=options.seconds,
                        deadline=options.deadline,
                        fallback=fallback,
                    )
                    late = max(outcome.seconds for outcome in outcomes) - options.deadline
                    ends = Counter(outcome.end for outcome in outcomes)
                    ended = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
                    name = fault.__name__.replace("_", " ")
                    row = (name, fallback, str(len(outcomes)), ended, f"{1e3 * late:+.1f} ms")
                    print(f"| {' | '.join(row)} |", flush=True)
        finally:
            site.close()


def make_bundle(folder: Path) -> sl.Bundle:
    """Write a bundle of a tiny network that sends its features as they are."""
    torch.manual_seed(1)
    return write_bundle(
        Toy("tiny", nn.Conv2d(3, 8, 3, stride=2), Classifier(), SHAPE, CROSSING, (1, 5)),
        folder,
        transfer=sl.TransferSpec.float32_split(),
        quantization=None,
        preprocessing=Preprocessing(size=SHAPE[2:]),
        runtime="onnx",
    )


if __name__ == "__main__":
    main()
