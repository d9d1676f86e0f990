"""Records of the harness: a JSON file a cell. A cell is a network, a link and a device's speed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median

import msgspec
import numpy as np


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One contender in a cell.

    Attributes
    ----------
    name, what, place
        The contender, what crosses, and where the network is cut.
    raw_image, split, leakage
        Whether the frame itself leaves the device; whether the network is cut; the leakage there.
    predicted, parts
        Predicted seconds, and those of its parts; None and empty where the planner predicts none.
    latencies
        Seconds of each request, in the order of the rounds; empty where it was not run.
    skipped
        Why it was not run.
    timings
        Median seconds of a request's stages.
    throughput
        Answers in a second.
    sent_bytes, device_cpu, edge_cpu, energy
        Of a request: mean bytes of payload, seconds in which the device computes (slowed), CPU
        seconds of the edge, and Joules by the model.
    device_memory
        Bytes of weights and feature maps on the device, by the plan.
    accuracy
        Recorded share of right answers, or None.
    """

    # More than 12 attributes: the columns of a table.
    name: str
    what: str
    place: str
    raw_image: bool
    split: bool
    leakage: float | None = None
    predicted: float | None = None
    parts: dict[str, float] = {}
    latencies: tuple[float, ...] = ()
    skipped: str = ""
    timings: dict[str, float] = {}
    throughput: float = 0.0
    sent_bytes: float = 0.0
    device_cpu: float = 0.0
    edge_cpu: float = 0.0
    energy: float = 0.0
    device_memory: int = 0
    accuracy: float | None = None

    @property
    def ran(self) -> bool:
        """Whether it was measured."""
        return bool(self.latencies)

    @property
    def median(self) -> float:
        """Median seconds of a request."""
        return median(self.latencies)

    @property
    def p95(self) -> float:
        """Seconds within which 95 of 100 requests were answered."""
        return float(np.percentile(self.latencies, 95))


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """A network over a link, with a device of some slowness.

    Attributes
    ----------
    kind
        "contenders"; "claims" for few of them; "points" for one codec at several slicing points;
        "quick" for a test of the harness.
    network, link, rtt, bandwidth, slowdown
        Where it was measured.
    bound
        Seconds of the zero-byte bound: computing the uncut network on the edge, and a round trip.
    measured
        The contenders.
    link_kind, machine, versions, load, date, command
        How it was measured; ``load`` is the machine's load average at its begin.
    size, weights
        Height and width of the input; whose weights the network has, in words.
    """

    # More than 12 attributes: a record says how it was made.
    kind: str
    network: str
    link: str
    rtt: float
    bandwidth: float
    slowdown: float
    bound: float
    measured: tuple[Measured, ...]
    link_kind: str
    machine: str
    versions: dict[str, str]
    load: float
    date: str
    command: str
    size: int = 0
    weights: str = ""

    def get(self, name: str) -> Measured | None:
        """A contender that was run, or None."""
        return next((m for m in self.measured if m.name == name and m.ran), None)

    @property
    def ran(self) -> list[Measured]:
        """The contenders that were run, one request at a time."""
        return [m for m in self.measured if m.ran and "pipelined" not in m.name]


def cell_path(out: Path, kind: str, network: str, link: str, slowdown: float) -> Path:
    """Where a cell's record is."""
    name = link.replace(" ", "").replace("/", "").replace(",", "_")
    return out / "cells" / f"{network}__{name}__x{slowdown:g}__{kind}.json"


def write(path: Path, cell: Cell) -> None:
    """Write a record, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    scratch.write_bytes(msgspec.json.format(msgspec.json.encode(cell), indent=1))
    scratch.replace(path)


def read(out: Path) -> Iterator[Cell]:
    """Read all records of a folder."""
    for path in sorted((out / "cells").glob("*.json")):
        yield msgspec.json.decode(path.read_bytes(), type=Cell)
