"""Predicted against measured, on networks that nobody tuned to.

    python -m bench.predicted ../shared/data/imagenet-sample-100    # ten networks of ten families
    python -m bench.predicted PHOTOGRAPHS --networks torchvision:resnet50
    python -m bench.predicted PHOTOGRAPHS --minutes 12    # a part of them; the next run goes on
    python -m bench.predicted build/bench/predicted.json    # the tables and the figure once more

The networks are drawn by a seed from the sweep's list (docs/models.md): ten families, one network
each. The device is imagined 5.3 times slower than the edge (the published ratio that the demo
uses). For each link these are measured: the planner's choice, our 2x2 int8 TL at several slicing
points, running locally, and JPEG to the edge.

Profiling and running take turns: a few rounds of the profile, then every way over every link
answers some photographs, then the profile again. So a drift of the machine meets both alike. The
choice is made from the profile's first rounds, before anything runs. A device, an edge daemon and
the emulated links run in processes of their own, with one thread each; device and profile on the
first core, edge and links on the second, where there are two. The script writes OUT/predicted.json
after each network, goes on where it stopped, and writes OUT/predicted.png (OUT is build/bench by
default) and the tables at the end; with ``--document docs/planning.md`` there, too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

import scissionlite as sl
from bench.accuracy.photographs import Frames
from bench.end_to_end.machine import description, on_core, pin_to_core
from bench.predicted_tables import LINKS, draw, name_of, tables, write_part
from scissionlite.demo.device_process import Answered, Setup, Turn, Way
from scissionlite.demo.processes import DeviceProcess, daemon, emulated
from scissionlite.models import load_model
from scissionlite.preprocessor.data import sample_frames
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.scissiontl.profiler import Profiler

SIZE = 224
SLOWDOWN = 5.3
POINTS = 3
MOST_WEIGHTS = 30.0  # millions; larger networks take minutes each
FIRST_ROUNDS, ROUNDS = 6, 3  # of the profile: before the choice, and in each turn
TURNS = 6
DOCUMENT = Path(__file__).parents[1] / "docs" / "models.md"


class Candidate(NamedTuple):
    """A network of the sweep, and the height and width that it is measured with."""

    name: str
    size: int


def candidates(document: str) -> Iterator[Candidate]:
    """The networks of the sweep's table that answered equally and are not too large."""
    for line in document.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) < 9 or not re.match(r"(torchvision|timm):", cells[0]):
            continue
        side = int(cells[1].rpartition(" x ")[2])
        if cells[8].startswith("equal") and float(cells[2]) <= MOST_WEIGHTS:
            # 96 in the sweep: any size will do.
            yield Candidate(cells[0], SIZE if side == 96 else side)


def family(name: str) -> str:
    """The letters that a network's name begins with, without a version's "v"."""
    letters = re.match(r"[a-z]+", name.partition(":")[2])
    assert letters is not None
    return letters.group().rstrip("vxy")


def draw_networks(document: str, seed: int, count: int) -> list[Candidate]:
    """Draw networks of different families."""
    families: dict[str, list[Candidate]] = {}
    for each in candidates(document):
        families.setdefault(family(each.name), []).append(each)
    chance = random.Random(seed)
    return [chance.choice(families[each]) for each in chance.sample(sorted(families), count)]


def key(plan: sl.Plan) -> tuple[Any, ...]:
    where = (plan.kind, plan.slicing_point, plan.device_precision)
    return (*where, plan.spec, plan.image_format, plan.jpeg_quality)


def choose(ranked: Mapping[str, Sequence[sl.Plan]]) -> dict[tuple[Any, ...], sl.Plan]:
    """Choose the plans to measure: each link's best and best of ours, more of ours, JPEG, local."""
    chosen: dict[tuple[Any, ...], sl.Plan] = {}
    ours: list[sl.Plan] = []
    for plans in ranked.values():
        ours = [p for p in plans if p.spec == sl.TransferSpec()]
        jpeg = [p for p in plans if p.image_format == "jpeg"]
        local = [p for p in plans if p.kind == "local"]
        for plan in (plans[0], *ours[:1], *jpeg[:1], local[0]):
            chosen[key(plan)] = plan
    # In the order of the network, evenly spread over those where a slice was measured or not.
    ours = sorted(ours, key=lambda p: p.predicted.device_blocks)
    for i in np.linspace(0, len(ours) - 1, POINTS + 2).round().astype(int)[1:-1] if ours else ():
        chosen[key(ours[i])] = ours[i]
    return chosen


def network_rows(network: Candidate, photographs: Path) -> list[dict[str, Any]]:
    """Predict and measure one network."""
    preprocessing = sl.Preprocessing(size=(network.size, network.size))
    # With 16 the profile would measure the drops of all codecs, too, for minutes.
    frames = sample_frames(photographs, preprocessing, count=15)
    files = sorted(photographs.glob("*.JPEG"))[:: max(1, 100 // (2 * TURNS))]
    torch.manual_seed(0)
    example = torch.zeros(1, 3, network.size, network.size)
    graph = sl.capture(load_model(network.name), example, name=network.name)
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
        ranked = _ranked(profiler.profile())
        chosen = choose(ranked)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bundles = {
            identity: sl.prepare(
                graph,
                plan,
                train=Frames(frames, preprocessing),
                recipe=Recipe(epochs=0),
                preprocessing=preprocessing,
                out=folder / str(number),
                local_fallback=plan.kind != "split",
            )
            for number, (identity, plan) in enumerate(chosen.items())
        }
        answers = run_in_turns(stack, profiler, bundles, files)
        predicted = {
            link: {key(p): p for p in plans} for link, plans in _ranked(profiler.profile()).items()
        }
    return [
        _row(network.name, link, predicted[link][identity], own, chosen=key(first) == identity)
        for (identity, link), own in answers.items()
        for first in (ranked[link][0],)
    ]


def _ranked(profile: sl.Profile) -> dict[str, list[sl.Plan]]:
    slowed = profile.slowed(SLOWDOWN)
    return {name: sl.plan(slowed, profile, link) for name, link in LINKS.items()}


def run_in_turns(
    stack: ExitStack,
    profiler: Profiler,
    bundles: Mapping[tuple[Any, ...], sl.Bundle],
    files: Sequence[Path],
) -> dict[tuple[tuple[Any, ...], str], list[Answered]]:
    """Answers by way and link, while the profiler has its turns in between."""
    served = [str(b.path) for b in bundles.values() if b.manifest.kind != "local"]
    serve = ["-m", "scissionlite", "serve", *served, "--bind", "tcp://127.0.0.1:*"]
    edge = stack.enter_context(daemon([*serve, "--threads", "1", "--json"], on_core(1)))
    ways = []
    for link_name, link in LINKS.items():
        tensors, control = stack.enter_context(emulated(link, edge, on_core(1)))
        for number, bundle in enumerate(bundles.values()):
            local = bundle.manifest.kind == "local"
            if local and link is not LINKS[next(iter(LINKS))]:
                continue
            ways.append(
                Way(
                    name=f"{number} {link_name}",
                    bundle=str(bundle.path),
                    connect=None if local else tensors,
                    control=None if local else control,
                    slowdown=SLOWDOWN,
                )
            )
    setup = Setup(tuple(ways), tuple(map(str, files)))
    device = stack.enter_context(DeviceProcess(setup, on_core(0)))
    names = {way.name for way in ways}
    answers: dict[tuple[tuple[Any, ...], str], list[Answered]] = {}
    for way in ways:
        device.take(Turn(way.name, (0,) * 3))
    for turn in range(TURNS):
        profiler.measure(ROUNDS)
        for image in range(2 * turn, min(2 * turn + 2, len(files))):
            for link_name in LINKS:
                for number, identity in enumerate(bundles):
                    name = f"{number} {link_name}"
                    if name not in names:  # local: the same with every link
                        name = f"{number} {next(iter(LINKS))}"
                    turned = device.take(Turn(name, (image,)))
                    answers.setdefault((identity, link_name), []).extend(turned.answers)
    return answers


def _row(
    network: str, link: str, plan: sl.Plan, answers: Sequence[Answered], *, chosen: bool
) -> dict[str, Any]:
    prediction = plan.predicted
    expected = "local" if plan.kind == "local" else "edge"
    assert all(each.where == expected for each in answers), answers
    latencies = [each.latency for each in answers]
    parts: dict[str, list[float]] = {}
    for each in answers:
        for stage, seconds in each.timings.items():
            parts.setdefault(stage, []).append(seconds)
    row: dict[str, Any] = {
        "network": network,
        "link": link,
        "what": plan.label,
        "slicing_point": plan.slicing_point,
        "kind": plan.kind,
        "predicted": prediction.latency,
        "chosen": chosen,
        "parts": {
            "device": prediction.device_time,
            "encode": prediction.encode_time,
            "transfer": prediction.transfer_time,
            "decode": prediction.decode_time,
            "edge": prediction.edge_time,
            "offload": prediction.offload_time,
        },
        "measured": median(latencies),
        "lowest": min(latencies),
        "highest": max(latencies),
        "sent_bytes": sum(each.sent_bytes for each in answers) / len(answers),
        **{stage: median(values) for stage, values in parts.items()},
    }
    print(
        f"{network}, {link}, {name_of(row)}: predicted {row['predicted'] * 1e3:.1f}, "
        f"measured {row['measured'] * 1e3:.1f} ms, {row['predicted'] / row['measured'] - 1:+.1%}",
        file=sys.stderr,
        flush=True,
    )
    return row


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    whole = argparse.ArgumentParser(prog="python -m bench.predicted")
    whole.add_argument("source", type=Path, help="a folder of photographs, or a predicted.json")
    whole.add_argument("out", type=Path, nargs="?", default=Path("build/bench"))
    whole.add_argument("--networks", nargs="+", help="these, instead of networks that are drawn")
    whole.add_argument("--seed", type=int, default=22, help="with which networks are drawn")
    whole.add_argument("--count", type=int, default=10, help="how many are drawn")
    whole.add_argument("--minutes", type=float, help="begin no network after so long")
    whole.add_argument("--document", type=Path, help="write the tables and the figure into it")
    return whole


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the networks, or make the tables of what was measured."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.source.suffix == ".json":
        rows = json.loads(options.source.read_text())
    else:
        rows = measure(options)
    if not rows:
        raise SystemExit("nothing has been measured")
    draw(rows, options.out / "predicted.png")
    print(tables(rows))
    if options.document:
        figure = options.document.with_name("predicted-drawn.png")
        draw(rows, figure)
        text = [report(rows, options), "", tables(rows), "", f"![Drawn networks]({figure.name})"]
        write_part(options.document, "\n".join(text))


def report(rows: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> str:
    """Say when, on what machine, and with which of the drawn networks the rows were measured."""
    measured = dict.fromkeys(row["network"] for row in rows)
    drawn = draw_networks(DOCUMENT.read_text(), options.seed, options.count)
    missing = [each.name for each in drawn if each.name not in measured]
    loads = [row["load"] for row in rows]
    text = (
        f"Measured {min(row['date'] for row in rows)} to {max(row['date'] for row in rows)} on "
        f"{rows[-1]['machine']}, torch {rows[-1]['torch']}. When a network began, the machine's "
        f"load average was {median(loads):.1f} in the median and {max(loads):.1f} at most; above "
        f"1.5, other work ran on the two cores. {len(drawn) - len(missing)} of the {len(drawn)} "
        "drawn networks have been measured."
    )
    return text + (f" **Not measured**: {', '.join(missing)}." if missing else "")


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the networks that have no rows yet; write the rows after each of them."""
    started = time.monotonic()
    pin_to_core(0)
    if options.networks:
        drawn = [Candidate(name, SIZE) for name in options.networks]
    else:
        drawn = draw_networks(DOCUMENT.read_text(), options.seed, options.count)
    path = options.out / "predicted.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    done = {row["network"] for row in rows}
    for network in drawn:
        passed = time.monotonic() - started
        late = options.minutes is not None and passed > 60 * options.minutes
        if network.name in done or late:
            continue
        load = os.getloadavg()[0]
        try:
            found = network_rows(network, options.source)
        except Exception:  # the other networks do not depend on it, and the report names it
            print(f"{network.name} failed:\n{traceback.format_exc()}", file=sys.stderr)
            continue
        made = {
            "load": load,
            "date": time.strftime("%Y-%m-%d %H:%M"),
            "machine": description(),
            "torch": version("torch"),
        }
        rows += [{**row, **made} for row in found]
        path.write_text(json.dumps(rows, indent=1))
        print(f"{network.name}: {time.monotonic() - started - passed:.0f} s", file=sys.stderr)
    return rows


if __name__ == "__main__":
    main()
