"""The ways to run one network over one link, each measured with real processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from scissionlite.bundle import Bundle
from scissionlite.demo.processes import daemon, emulated, run_device
from scissionlite.errors import OffloadError, PlanError
from scissionlite.manifest import Kind, Precision
from scissionlite.scissiontl.link import Link
from scissionlite.scissiontl.plans import Plan
from scissionlite.transfer_layer import TransferSpec


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One way over one link, and its measurements.

    Latencies are in seconds from frame to answer. ``float32_bytes`` would cross at the same slicing
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
    label: str,
    plan: Plan,
    bundle: Bundle,
    images: Sequence[Path],
    link: Link,
    *,
    slowdown: float,
    warm_up: int = 5,
) -> Row:
    """Run a bundle: an edge daemon, the emulated link and the device, a process each.

    Raises
    ------
    OffloadError
        If a process fails, or an answer did not come from where the plan says.
    """
    device = [
        *("run", str(bundle.path), *map(str, images), "--json", "--threads", "1"),
        *("--slowdown", str(slowdown), "--warm-up", str(warm_up), "--deadline", "30"),
    ]
    if plan.kind == "local":
        result = run_device(device)
    else:
        serve = ["serve", str(bundle.path), "--bind", "tcp://127.0.0.1:*", "--threads", "1"]
        with (
            daemon(["-m", "scissionlite", *serve, "--json"]) as edge,
            emulated(link, edge) as (tensors, control),
        ):
            result = run_device([*device, "--connect", tensors, "--control", control])
    expected = "local" if plan.kind == "local" else "edge"
    strays = [a["image"] for a in result["answers"] if a["where"] != expected]
    if strays:
        raise OffloadError(f"{len(strays)} answers did not come from the {expected}: {strays[0]}")
    accuracy = bundle.manifest.accuracy
    assert accuracy is not None  # the demo always validates
    summary = result["summary"]
    return Row(
        link=link,
        configuration=label,
        slicing_point=plan.slicing_point,
        predicted=plan.predicted.latency,
        median=summary["latency_median"],
        p95=summary["latency_p95"],
        sent_bytes=round(summary["bytes_sent"] / summary["answers"]),
        float32_bytes=bundle.manifest.crossing_bytes or None,
        accuracy=accuracy.after,
        images=summary["answers"],
    )


def verdict(rows: Sequence[Row]) -> list[str]:
    """Sentences on the fastest way over a link, and on the int8 TL against each of the others."""
    best = min(rows, key=lambda row: row.median)
    int8 = rows[-1]
    sentences = [f"Fastest on {best.link}: {best.configuration}, {best.median * 1e3:.1f} ms."]
    for row in rows[:-1]:
        ratio = row.median / int8.median
        than = (
            f"{ratio:.2f} times as fast as" if ratio >= 1 else f"{1 / ratio:.2f} times slower than"
        )
        sentences.append(f"{int8.configuration}: {than} {row.configuration}.")
    if int8.float32_bytes is not None:
        sentences.append(
            f"At its slicing point, {int8.slicing_point}, float32 would send "
            f"{int8.float32_bytes / int8.sent_bytes:.1f} times as many bytes."
        )
    return sentences
