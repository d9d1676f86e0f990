"""Three tiers, predicted against measured: a device, an edge and a next edge, over two links.

    python -m bench.three_tiers ../shared/data/imagenet-sample-100
    python -m bench.three_tiers PHOTOGRAPHS --networks torchvision:resnet18 --turns 2
    python -m bench.three_tiers build/bench/three_tiers.json    # the tables once more

For each network the planner ranks all pairs of cuts, with the device imagined 5.3 times slower than
the two others. These are measured: the best plan of three tiers, and those whose cuts are nearest
to a quarter and a half, a third and two thirds, a half and three quarters of the blocks. Profiling
and running take turns, as in :mod:`bench.predicted`, and the prediction is that of all the
profile's rounds. Device, edge, next edge and the two emulated links are processes of their own,
with one thread each; device and profile on the first core, the others on the second. Before it is
timed, the first answer of each plan is checked against the same slices in one process.

After each network the script writes OUT/three_tiers.json, where networks of earlier runs stay, and
the tables of those with all turns into docs/planning.md (of all, into a copy that ``--document``
names). So a network that fails loses nothing of the others, and can be measured alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from msgspec import structs

import scissionlite as sl
from bench.accuracy.photographs import Frames
from bench.documents import circumstances, load_before, write_between
from bench.end_to_end.machine import on_core, pin_to_core
from bench.predicted import FIRST_ROUNDS, ROUNDS, SIZE, SLOWDOWN
from scissionlite.demo.device_process import Answered, Setup, Turn, Way
from scissionlite.demo.processes import DeviceProcess, daemon, emulated
from scissionlite.models import load_model
from scissionlite.preprocessor.data import sample_frames
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.preprocessor.splitter import SplitInference
from scissionlite.scissiontl.profiler import Profiler

NETWORKS = ("scissionlite.models:efficientnet_lite0_imagenet", "torchvision:regnet_y_400mf")
LINKS = {
    ("device", "edge"): sl.Link(0.005, 300e6),
    ("edge", "cloud"): sl.Link(0.0274, 58.8e6),
}
CUTS = ((1 / 4, 1 / 2), (1 / 3, 2 / 3), (1 / 2, 3 / 4))  # as parts of the blocks
TURNS = 10
STAGES = {
    "device": (
        ("device_time", "encode_time"),
        ("preprocess", "device_slice", "encode", "wait"),
    ),
    "first link": (("transfer_time", "offload_time"), ("transfer", "edge_queue")),
    "edge": (("decode_time", "edge_time"), ("edge_decode", "edge_run")),
    "second link": (("relay_time",), ("edge_encode", "relay", "cloud_queue", "cloud_decode")),
    "next edge": (("cloud_time",), ("cloud_run",)),
}
"""Parts of a prediction, and the timings of an answer that they predict. Both hops' share of the
Offloader's own time is predicted as one figure, which stands with the first link."""
SERVE = ("-m", "scissionlite", "serve")
OPTIONS = ("--bind", "tcp://127.0.0.1:*", "--threads", "1", "--json")


def rank(profile: sl.Profile, plan: sl.Plan | None = None) -> list[sl.Plan]:
    """The plans of three tiers, best first; or the one with a plan's cuts and codecs alone."""
    if plan is not None:
        assert plan.second is not None
        names = [block.name for block in profile.blocks]
        kept = {
            (names.index(str(plan.slicing_point)), plan.spec),
            (names.index(plan.second.slicing_point), plan.second.spec),
        }
        transfers = tuple(t for t in profile.transfers if (t.block, t.spec) in kept)
        profile = structs.replace(profile, transfers=transfers)
    device, edge, cloud = (
        structs.replace(each, name=name)
        for each, name in (
            (profile.slowed(SLOWDOWN), "device"),
            (profile, "edge"),
            (profile, "cloud"),
        )
    )
    ranked = sl.plan(device, edge, LINKS, cloud=cloud)
    return [each for each in ranked if each.second is not None]


def choose(plans: Sequence[sl.Plan], blocks: Sequence[str]) -> list[sl.Plan]:
    """The best plan, and those with the cuts nearest to the wanted ones."""

    def distance(each: sl.Plan, wanted: tuple[float, float]) -> float:
        assert each.second is not None
        cuts = (str(each.slicing_point), each.second.slicing_point)
        places = [(blocks.index(cut) + 1) / len(blocks) for cut in cuts]
        return sum(abs(a - b) for a, b in zip(places, wanted, strict=True))

    near = [min(plans, key=lambda each: distance(each, wanted)) for wanted in CUTS]
    return [each for i, each in enumerate([plans[0], *near]) if each not in [plans[0], *near][:i]]


def network_rows(name: str, photographs: Path, turns: int) -> list[dict[str, Any]]:
    """Predict and measure one network."""
    preprocessing = sl.Preprocessing(size=(SIZE, SIZE))
    frames = sample_frames(photographs, preprocessing, count=32)
    files = sorted(photographs.glob("*.JPEG"))[: 2 * turns]
    torch.manual_seed(0)
    graph = sl.capture(load_model(name), torch.zeros(1, 3, SIZE, SIZE), name=name)
    with ExitStack() as stack:
        profiler = stack.enter_context(
            Profiler(
                graph,
                name="here",
                threads=1,
                images=frames,
                preprocessing=preprocessing,
                int8=False,
            )
        )
        profiler.measure(2)
        profiler.forget()
        profiler.measure(FIRST_ROUNDS)
        profile = profiler.profile()
        plans = choose(rank(profile), [block.name for block in profile.blocks])
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bundles = [
            sl.prepare(
                graph,
                plan,
                train=Frames(frames, preprocessing),
                recipe=Recipe(epochs=0),
                preprocessing=preprocessing,
                out=folder / str(number),
                local_fallback=False,
            )
            for number, plan in enumerate(plans)
        ]
        for bundle in bundles:
            check(bundle, preprocessing.tensor(frames[0]))
        answers = run_in_turns(stack, profiler, bundles, files, turns)
        profile = profiler.profile()
    return [_row(name, rank(profile, p)[0], answers[i]) for i, p in enumerate(plans)]


def check(bundle: sl.Bundle, x: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    """Check that three daemons' answer is that of the same slices in one process."""
    manifest = bundle.manifest
    (variant,) = manifest.every_variant
    one = SplitInference(
        variant, manifest.slices, "torchscript", bundle.path, next_hop=manifest.next_hop
    )
    local = "tcp://127.0.0.1:*"
    with (
        sl.EdgeServer(bundle, local, threads=1) as cloud,
        sl.EdgeServer(
            bundle, local, threads=1, next=cloud.endpoint, next_control=cloud.control_endpoint
        ) as edge,
        sl.Device(bundle, edge.endpoint, control=edge.control_endpoint, threads=1) as device,
    ):
        np.testing.assert_allclose(device.infer(x, 60.0), one(x)[0], rtol=1e-4, atol=1e-4)


def run_in_turns(
    stack: ExitStack,
    profiler: Profiler,
    bundles: Sequence[sl.Bundle],
    files: Sequence[Path],
    turns: int,
) -> Mapping[int, list[Answered]]:
    """The answers by plan, while the profiler has its turns in between."""
    paths = [str(bundle.path) for bundle in bundles]
    cloud = stack.enter_context(daemon([*SERVE, *paths, *OPTIONS], on_core(1)))
    tensors, control = stack.enter_context(emulated(LINKS["edge", "cloud"], cloud, on_core(1)))
    onward = ["--next", tensors, "--next-control", control]
    edge = stack.enter_context(daemon([*SERVE, *paths, *OPTIONS, *onward], on_core(1)))
    tensors, control = stack.enter_context(emulated(LINKS["device", "edge"], edge, on_core(1)))
    ways = [
        Way(name=str(i), bundle=path, connect=tensors, control=control, slowdown=SLOWDOWN)
        for i, path in enumerate(paths)
    ]
    setup = Setup(tuple(ways), tuple(map(str, files)))
    device = stack.enter_context(DeviceProcess(setup, on_core(0)))
    answers: dict[int, list[Answered]] = {i: [] for i in range(len(ways))}
    for way in ways:
        device.take(Turn(way.name, (0,) * 3))
    for turn in range(turns):
        profiler.measure(ROUNDS)
        for image in (2 * turn, 2 * turn + 1):
            for i, way in enumerate(ways):
                answers[i].extend(device.take(Turn(way.name, (image,))).answers)
    return answers


def _row(network: str, plan: sl.Plan, answers: Sequence[Answered]) -> dict[str, Any]:
    assert all(each.where == "edge" for each in answers), answers
    stages = {stage for each in answers for stage in each.timings}
    measured = {s: median(each.timings.get(s, 0.0) for each in answers) for s in stages}
    prediction = plan.predicted
    row: dict[str, Any] = {
        "network": network,
        "cuts": plan.place,
        "codecs": plan.label,
        "predicted": prediction.latency,
        "measured": median(each.latency for each in answers),
        "lowest": min(each.latency for each in answers),
        "highest": max(each.latency for each in answers),
        "answers": len(answers),
        "predicted_parts": structs.asdict(prediction),
        "measured_parts": measured,
    }
    error = row["predicted"] / row["measured"] - 1
    print(f"{network}, {plan.place}, {plan.label}: {error:+.1%}", file=sys.stderr, flush=True)
    return row


def stages_table(rows: Sequence[dict[str, Any]]) -> str:
    """Tabulate predicted and measured milliseconds of each stage, in Markdown."""
    lines = [
        "| network | cuts | " + " | ".join(STAGES) + " |",
        "| --- " * (2 + len(STAGES)) + "|",
    ]
    for row in rows:
        cells = [
            " / ".join(
                f"{1e3 * sum(row[parts].get(name, 0.0) for name in names):.1f}"
                for parts, names in zip(("predicted_parts", "measured_parts"), both, strict=True)
            )
            for both in STAGES.values()
        ]
        lines.append(f"| {row_name(row)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def row_name(row: dict[str, Any]) -> str:
    """The network and the cuts, as two cells."""
    return f"{row['network'].rpartition(':')[2]} | {row['cuts'].replace('|', 'and')}"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Tabulate predicted against measured latency, in Markdown."""
    lines = [
        "| network | cuts | over the links | predicted, ms | measured, ms | error |",
        "| --- " * 6 + "|",
    ]
    errors = [row["predicted"] / row["measured"] - 1 for row in rows]
    lines += [
        f"| {row_name(row)} | {row['codecs']} | {row['predicted'] * 1e3:.1f} | "
        f"{row['measured'] * 1e3:.1f} | {error:+.1%} |"
        for row, error in zip(rows, errors, strict=True)
    ]
    within = sum(abs(error) <= 0.08 for error in errors)
    lines.append(
        f"\nWithin 8%: {within} of {len(rows)}; largest error {max(map(abs, errors)):.1%}."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder of photographs, or an earlier JSON")
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--document", type=Path, help="that has the marks; docs/planning.md")
    options = parser.parse_args()
    if options.source.suffix == ".json":
        rows: list[dict[str, Any]] = json.loads(options.source.read_text())
        print(report(rows))
        write_document(options.document, rows)
        return
    load = load_before()
    torch.set_num_threads(1)
    pin_to_core(0)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "three_tiers.json"
    for name in options.networks:
        where = circumstances(load)
        measured = network_rows(name, options.source, options.turns)
        earlier = json.loads(path.read_text()) if path.exists() else []
        rows = [row for row in earlier if row["network"] != name]
        rows += [row | {"where": where} for row in measured]
        path.write_text(json.dumps(rows, indent=1))
        print(report(rows), flush=True)
        write_document(options.document, rows)


def write_document(document: Path | None, rows: Sequence[dict[str, Any]]) -> None:
    """Write the tables of the networks that were measured with all turns."""
    whole = [row for row in rows if document is not None or row["answers"] >= 2 * TURNS]
    if not whole:
        print(f"docs/planning.md stays: no network had {TURNS} turns", file=sys.stderr)
        return
    places = {row["where"]: row_name(row).partition(" |")[0] for row in whole}
    where = [f"Measured on {place}" for place in places]
    if len(places) > 1:
        where = [f"{each} ({name})" for each, name in zip(where, places.values(), strict=True)]
    answers = min(row["answers"] for row in whole)
    text = f"{'; '.join(where)}; {answers} answers of each plan.\n\n{report(whole)}"
    write_between(document or "planning.md", "python -m bench.three_tiers", text)


def report(rows: Sequence[dict[str, Any]]) -> str:
    """Both tables."""
    stages = "Predicted / measured milliseconds of each stage (medians):"
    return f"{table(rows)}\n\n{stages}\n\n{stages_table(rows)}"


if __name__ == "__main__":
    main()
