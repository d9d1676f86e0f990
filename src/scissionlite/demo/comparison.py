"""The ways to run one network over one link, measured in turns with real processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import msgspec
import numpy as np

from scissionlite.bundle import Bundle
from scissionlite.demo.device_process import Answered, Setup, Turn, Way
from scissionlite.demo.processes import DeviceProcess, daemon, emulated
from scissionlite.errors import OffloadError, PlanError
from scissionlite.manifest import Kind, Precision
from scissionlite.scissiontl.link import Link
from scissionlite.scissiontl.plans import Plan
from scissionlite.transfer_layer import TransferSpec


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One way over one link, and its measurements.

    Latencies are in seconds from frame to answer; ``latencies`` has that of each image, in the
    order in which the ways took turns. ``float32_bytes`` would cross at the same slicing
    point without a Transfer Layer. ``accuracy`` is that of the exported slices on the whole test
    set.
    """

    link: Link
    configuration: str
    slicing_point: str | None
    predicted: float
    median: float
    p95: float
    sent_bytes: int
    float32_bytes: int | None
    accuracy: float
    images: int
    latencies: tuple[float, ...] = ()


def compared_ways(plans: Sequence[Plan], slicing_point: str | None) -> dict[str, Plan]:
    """The best plan of each kind: local, JPEG, float32 split, the paper's TL, the int8 TL.

    Where the network was profiled in int8, running locally in int8 is among them.

    Predictions are wrong by more than 5%. So among the slicing points whose predicted latency is
    within 5% of the best, the one that sends the fewest bytes is taken.

    Parameters
    ----------
    plans
        Ranked, best first.
    slicing_point
        Slicing point of all three splits; with None each has its own best one, as an expert would
        choose.

    Raises
    ------
    PlanError
        If there is no plan of some kind, as with a slicing point that takes no Transfer Layer.
    """
    kinds: dict[str, tuple[Kind, Precision, TransferSpec | None]] = {
        "local": ("local", "float32", None),
        "local, int8": ("local", "int8", None),
        "JPEG to the edge": ("image", "float32", None),
        "float32 split (Scission)": ("split", "float32", TransferSpec.float32_split()),
        "float32 TL (the paper)": ("split", "float32", TransferSpec.paper()),
        "int8 TL (ours)": ("split", "float32", TransferSpec()),
    }
    if not any(p.device_precision == "int8" for p in plans):
        del kinds["local, int8"]
    chosen = {}
    for label, (kind, precision, spec) in kinds.items():
        candidates = [
            p
            for p in plans
            if p.kind == kind
            and p.device_precision == precision
            and p.spec == spec
            and p.image_format in (None, "jpeg")
            and (kind != "split" or slicing_point in (None, p.slicing_point))
        ]
        if not candidates:
            raise PlanError(
                f"no plan for {label}"
                + (f" at the slicing point {slicing_point!r}: choose another" if spec else "")
            )
        limit = 1.05 * candidates[0].predicted.latency
        near = [p for p in candidates if p.predicted.latency <= limit]
        chosen[label] = min(near, key=lambda p: p.predicted.sent_bytes)
    return chosen


def measure(
    chosen: Mapping[str, tuple[Plan, Bundle]],
    images: Sequence[Path],
    link: Link,
    *,
    slowdown: float,
    warm_up: int = 5,
) -> list[Row]:
    """Run the bundles: an edge daemon, the emulated link and a device, a process each.

    The ways take turns, image by image, so that a drift of the machine meets all alike.

    Raises
    ------
    OffloadError
        If a process fails, or an answer did not come from where the plan says.
    """
    folders = {label: str(bundle.path) for label, (_, bundle) in chosen.items()}
    served = {folders[label] for label, (plan, _) in chosen.items() if plan.kind != "local"}
    serve = ["serve", *sorted(served), "--bind", "tcp://127.0.0.1:*", "--threads", "1", "--json"]
    answers: dict[str, list[Answered]] = {label: [] for label in chosen}
    with (
        daemon(["-m", "scissionlite", *serve]) as edge,
        emulated(link, edge) as (tensors, control),
    ):
        ways = [
            Way(
                name=label,
                bundle=folders[label],
                connect=None if plan.kind == "local" else tensors,
                control=None if plan.kind == "local" else control,
                slowdown=slowdown,
            )
            for label, (plan, _) in chosen.items()
        ]
        with DeviceProcess(Setup(tuple(ways), tuple(map(str, images)))) as device:
            for label in chosen:
                device.take(Turn(label, (0,) * warm_up))
            for image in range(len(images)):
                for label in chosen:
                    answers[label] += device.take(Turn(label, (image,))).answers
    return [_row(label, *chosen[label], answers[label], link) for label in chosen]


def _row(label: str, plan: Plan, bundle: Bundle, answers: Sequence[Answered], link: Link) -> Row:
    expected = "local" if plan.kind == "local" else "edge"
    strays = [each.where for each in answers if each.where != expected]
    if strays:
        raise OffloadError(f"{len(strays)} answers of {label} did not come from the {expected}")
    accuracy = bundle.manifest.accuracy
    assert accuracy is not None  # the demo always validates
    latencies = [each.latency for each in answers]
    return Row(
        link=link,
        configuration=label,
        slicing_point=plan.slicing_point,
        predicted=plan.predicted.latency,
        median=median(latencies),
        p95=float(np.percentile(latencies, 95)),
        sent_bytes=round(sum(each.sent_bytes for each in answers) / len(answers)),
        float32_bytes=bundle.manifest.crossing_bytes or None,
        accuracy=accuracy.after,
        images=len(answers),
        latencies=tuple(latencies),
    )


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float]) -> Interval:
    """The median ratio of measurements that took turns, and where it lies with 95% confidence.

    A ratio is of two neighbours in time, so that drift cancels. The interval is that of the median
    by order statistics, which supposes nothing about how the ratios are distributed. With fewer
    than six of them it is from the least to the greatest, and its confidence is lower.
    """
    ratios = sorted(a / b for a, b in zip(numerators, denominators, strict=True))
    count = len(ratios)
    # Of so many fair coins, fewer than `rank` show heads with a probability of at most 2.5%.
    rank, below = 0, 0.5**count
    while below <= 0.025:
        rank += 1
        below += math.comb(count, rank) * 0.5**count
    lowest = max(rank - 1, 0)
    return Interval(median(ratios), ratios[lowest], ratios[count - 1 - lowest])


class Interval(NamedTuple):
    """A median, and the ends of its interval."""

    median: float
    low: float
    high: float


def verdict(rows: Sequence[Row]) -> list[str]:
    """Sentences on the fastest way over a link, and on the int8 TL against each of the others.

    A ratio whose interval reaches over 1 is not called faster or slower.
    """
    best = min(rows, key=lambda row: row.median)
    int8 = rows[-1]
    rivals = [
        row.configuration
        for row in rows
        if row is not best and ratio_interval(row.latencies, best.latencies).low <= 1
    ]
    also = f" {', '.join(rivals)}: no slower within the spread." if rivals else ""
    sentences = [f"Fastest on {best.link}: {best.configuration}, {best.median * 1e3:.1f} ms.{also}"]
    for row in rows[:-1]:
        ratio = ratio_interval(row.latencies, int8.latencies)
        spread = f"({ratio.low:.2f} to {ratio.high:.2f})"
        if ratio.low > 1:
            than = f"{ratio.median:.2f} {spread} times as fast as"
        elif ratio.high < 1:
            inverse = f"({1 / ratio.high:.2f} to {1 / ratio.low:.2f})"
            than = f"{1 / ratio.median:.2f} {inverse} times slower than"
        else:
            than = f"within the spread {spread} as fast as"
        sentences.append(f"{int8.configuration}: {than} {row.configuration}.")
    if int8.float32_bytes is not None:
        sentences.append(
            f"At its slicing point, {int8.slicing_point}, float32 would send "
            f"{int8.float32_bytes / int8.sent_bytes:.1f} times as many bytes."
        )
    return sentences
