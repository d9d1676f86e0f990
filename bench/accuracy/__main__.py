"""The command line; ``bench/accuracy/__init__.py`` lists the commands."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import msgspec
import torch

import scissionlite as sl
from bench.accuracy import jpeg, networks, run, table
from bench.accuracy.photographs import DATA
from bench.accuracy.records import JPEGS, Jpeg, read
from scissionlite.preprocessor.recipe import Recipe


def fields(text: str) -> dict[str, Any]:
    """Parse ``a=1,b=x`` into a dictionary of texts; msgspec converts the values."""
    return dict(pair.split("=", 1) for pair in text.split(",") if pair)


def transfer_of(text: str) -> sl.TransferSpec:
    """Parse a Transfer Layer such as ``pool=4,dtype=int8``; with zstd unless ``entropy=null``."""
    values: dict[str, Any] = {"entropy": "zstd"} | fields(text)
    return msgspec.convert(values, sl.TransferSpec, strict=False)


def recipe_of(text: str) -> Recipe:
    """Parse a recipe such as ``epochs=6,learning_rate=2e-3``."""
    return msgspec.convert(fields(text), Recipe, strict=False)


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--data", type=Path, default=DATA, help="the project's shared/data")
    common.add_argument("--out", type=Path, default=Path("build/accuracy"))
    common.add_argument("--threads", type=int, default=1)
    whole = argparse.ArgumentParser(prog="python -m bench.accuracy")
    commands = whole.add_subparsers(dest="command", required=True)
    names = list(networks.NETWORKS)
    each = commands.add_parser("networks", parents=[common], help="train the uncut networks")
    each.add_argument("names", nargs="+", choices=[name for name in names if name != "imagenet"])
    each = commands.add_parser("jpeg", parents=[common], help="uncut networks on JPEGs")
    each.add_argument("names", nargs="+", choices=names)
    each.add_argument("--bytes", type=float, nargs="*", default=[], help="sizes to match as well")
    each.add_argument("--scales", type=float, nargs="+", default=jpeg.SCALES)
    each.add_argument("--qualities", type=int, nargs="+", default=[], help="only at these")
    each = commands.add_parser("run", parents=[common], help="retrain and score")
    each.add_argument("name", choices=names)
    each.add_argument("--cut", nargs="+", help="slicing points; by default the network's four")
    each.add_argument(
        "--transfer", nargs="+", type=transfer_of, required=True, help="such as pool=4,dtype=int8"
    )
    each.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    each.add_argument("--unlabelled", action="store_true", help="do not look at the labels")
    each.add_argument("--keep", action="store_true", help="keep the bundles in OUT/bundles")
    each.add_argument("--recipe", type=recipe_of, default=Recipe(), help="such as epochs=6")
    each = commands.add_parser("table", parents=[common], help="tables and figure of what was run")
    each.add_argument("--only", choices=names, help="one network; the figure has its name")
    return whole


def main(arguments: list[str]) -> None:
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.command == "networks":
        for name in options.names:
            if not (options.out / f"{name}.pt").exists():
                networks.train(name, options.data, options.out)
    elif options.command == "jpeg":
        for name in options.names:
            for point in jpeg.curve(
                name, options.data, options.out, options.bytes, options.scales, options.qualities
            ):
                print(point, file=sys.stderr, flush=True)
        print(table.jpeg_table(read(options.out / JPEGS, Jpeg)))
    elif options.command == "run":
        experiment = run.Experiment(
            options.name,
            tuple(options.cut or networks.NETWORKS[options.name].cuts),
            tuple(options.transfer),
            tuple(options.seeds),
            not options.unlabelled,
            options.recipe,
            shlex.join(["python", "-m", "bench.accuracy", *arguments]),
            options.keep,
        )
        for record in run.run(experiment, options.data, options.out):
            print(
                f"{record.network}, {record.transfer} after {record.cut}, "
                f"seed {record.recipe.seed}: {record.before:.2%} uncut, {record.untrained:.2%} "
                f"calibrated, {record.after:.2%} retrained, {record.sent_bytes:.0f} bytes, "
                f"{record.minutes:.1f} minutes",
                flush=True,
            )
    else:
        print(table.report(options.out, options.only))


if __name__ == "__main__":
    main(sys.argv[1:])
