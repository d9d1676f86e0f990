"""The sweep: capture, cut, prepare and answer, for many networks of torchvision and timm.

    python -m tests.sweep                                       # all that have no row yet
    python -m tests.sweep torchvision:resnet18 timm:levit_128s  # these, again
    python -m tests.sweep --refused                             # those that were not equal, again
    python -m tests.sweep --document table.md                   # in another file

The table is in ``docs/models.md`` (``--document``). Each row is written as soon as its network is
checked, so a sweep that is interrupted goes on. A table holds for the versions of torch,
torchvision and timm that it names: with others, it begins anew.

Every network is checked by :mod:`sweep_network` in a process of its own, with one thread, a limit
of time and a limit of memory. A process that crashes or is killed is a row of the table, too.

The networks are

- every classification and segmentation network of torchvision, and
- of timm, the smallest model of each of the 60 families with the smallest ones. A family is a
  module of ``timm.models``. The size is the number of weights; timm's own ``test_...`` models do
  not count. ``python -m tests.sweep --families`` finds them again, in six minutes.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import re
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from sweep_network import Record, check, versions  # noqa: E402  # tests/ is on the path of pytest alone

from scissionlite.models import load_model  # noqa: E402

FAMILIES = 60

TIMM = """
    starnet_s050 dla46x_c mobilevit_xxs edgenext_xx_small mobilenetv3_small_050 mobilenetv2_035
    ese_vovnet19b_slim_dw convnext_zepto_rms repghostnet_050 efficientvit_m0 ghostnet_050
    regnetx_002 cspnext_tiny iformer_t xcit_nano_12_p8_224 cs3darknet_focus_s efficientvit_b0
    swiftformer_xs efficientformerv2_s0 pvt_v2_b0 fasternet_t0 fastvit_t8 lcnetv2_small
    inception_next_atto rexnet_100 mobileone_s1 pit_ti_224 hardcorenas_b resnet10t repvit_m1
    vit_tiny_patch16_dinov3_qkvb coat_tiny convit_tiny deit_tiny_patch16_224
    vit_tiny_patch16_224 gmlp_ti16_224 hgnetv2_b0 shvit_s1 vit_tiny_r_s16_p8_224 cpubone_nano
    efficientvim_m1 crossvit_tiny_240 mambaout_femto maxvit_pico_rw_256 levit_128s densenet121
    halonet_h1 nf_regnet_b0 dpn48b visformer_tiny resnest14d csatv2 resnetv2_18
    legacy_seresnet18 poolformerv2_s12 cait_xxs24_224 skresnet18 gcvit_xxtiny tiny_vit_5m_224
    efficientformer_l1
""".split()  # noqa: SIM905  # a list literal would be a line a name
"""The smallest model of each family, the smallest first."""

BEGIN = "<!-- python -m tests.sweep writes what follows -->"

SECONDS, GIGABYTES = 600, 14
"""Limits for one network: of time, and of memory that its process may allocate."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Check the networks that the command line names."""
    options = _parser().parse_args(arguments)
    if options.families:
        print("\n".join(smallest_models()))
        return
    torch.set_num_threads(1)
    load_model("timm:test_resnet")  # imported here, before the processes of networks are forked
    importlib.import_module("torch._dynamo")
    document, commit = options.document, _commit()
    rows = read(document.read_text())
    for name in options.names or networks():
        known = rows.get(name)
        if known is None or options.names or (options.refused and not answered_equally(known)):
            record = run(name, seconds=options.seconds, gigabytes=options.gigabytes)
            record.commit = commit
            rows[name] = row(record)
            print(rows[name], flush=True)
            # What stands above the table is read again, since it may have been edited.
            text = document.read_text().partition(BEGIN)[0]
            document.write_text(text + BEGIN + "\n\n" + report(rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.sweep")
    parser.add_argument("names", nargs="*", help="networks; by default all that have no row")
    parser.add_argument("--refused", action="store_true", help="check again what was not equal")
    document = ROOT / "docs" / "models.md"
    parser.add_argument("--document", type=Path, default=document, help="with the table")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="limit for one network")
    parser.add_argument("--gigabytes", type=float, default=GIGABYTES, help="limit of its memory")
    parser.add_argument("--families", action="store_true", help="find timm's smallest models")
    return parser


def networks() -> list[str]:
    """Every network of the sweep, by the name that the command line takes."""
    load_model("torchvision:squeezenet1_1")  # imports torchvision, whatever build it is
    from torchvision import models

    names = [
        *models.list_models(module=models),
        *models.list_models(module=models.segmentation),
    ]
    return [f"torchvision:{name}" for name in names] + [f"timm:{name}" for name in TIMM]


def smallest_models() -> list[str]:
    """The smallest model of each of timm's families; of these the 60 smallest."""
    load_model("timm:test_resnet")  # imports timm
    import timm

    warnings.simplefilter("ignore")
    smallest = []
    for module in timm.list_modules():
        sizes = []
        for name in timm.list_models(module=module):
            if not name.startswith("test_"):
                with torch.device("meta"):
                    model = timm.create_model(name)
                sizes.append((sum(p.numel() for p in model.parameters()), name))
        smallest.append(min(sizes))
    return [name for _, name in sorted(smallest)[:FAMILIES]]


def read(text: str) -> dict[str, str]:
    """The rows of a document's table by network; none if it is of other versions."""
    table = text.partition(BEGIN)[2]
    if versions() not in table:
        return {}
    lines = [line for line in table.splitlines() if line.startswith(("| torchvision:", "| timm:"))]
    return {_cells(line)["network"]: line for line in lines}


def answered_equally(row: str) -> bool:
    """Whether a network's row says that it answered equally at every step."""
    return _cells(row)["result"].partition(",")[0] == "equal"


def _cells(row: str) -> dict[str, str]:
    return dict(zip(COLUMNS, row.removeprefix("| ").removesuffix(" |").split(" | "), strict=True))


def run(name: str, *, seconds: float = SECONDS, gigabytes: float = GIGABYTES) -> Record:
    """Check one network in a process of its own."""
    # Forked, so that torch is imported once for all networks. This process has one thread.
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_check_within, args=(name, gigabytes, sender))
    process.start()
    sender.close()
    record, deadline = Record(network=name), time.monotonic() + seconds
    try:
        while receiver.poll(max(0.0, deadline - time.monotonic())):
            record = receiver.recv()
        record.reason = f"not finished after {seconds:g} s"
    except EOFError:
        process.join()
        if process.exitcode:
            record.reason = f"the process ended with exit code {process.exitcode}"
    process.kill()
    process.join()
    receiver.close()
    return record


def _check_within(name: str, gigabytes: float, sender: Connection) -> None:
    """Check a network within a limit of memory; send the record as it grows."""
    nbytes = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (nbytes, nbytes))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # those of the networks' own packages
    sender.send(check(name, sender.send))


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


COLUMNS = (
    "network",
    "input",
    "weights, millions",
    "capture, CPU s",
    "slicing points",
    "cuts",
    "prepared at",
    "Transfer Layer",
    "result",
    "commit",
)


def report(rows: Mapping[str, str]) -> str:
    """The table of all networks as Markdown, with a sentence that counts the results."""
    names = networks()
    known = [rows[name] for name in names if name in rows]
    missing = [name for name in names if name not in rows]
    return "\n".join(
        [
            f"{len(known)} of {len(names)} networks were checked with {versions()}. "
            f"{sum(map(answered_equally, known))} of them answered equally at every step.",
            "",
            _line(COLUMNS),
            _line(["---"] * len(COLUMNS)),
            *known,
            "",
            *([f"Not checked yet: {', '.join(missing)}.", ""] if missing else []),
        ]
    )


def row(record: Record) -> str:
    """The row of a network in the table."""
    return _line(
        [
            record.network,
            " x ".join(map(str, record.input)),
            f"{record.parameters / 1e6:.1f}",
            f"{record.capture_seconds:.1f}",
            f"{record.points}" + (f" (max_tensors={record.tensors})" if record.tensors > 1 else ""),
            f"{len(record.cuts)}",
            record.prepared_at,
            record.transfer,
            _result(record),
            record.commit,
        ]
    )


def _result(record: Record) -> str:
    if not record.equal:
        return f"{record.stage}: {_plain(record.reason)}"
    if record.rounding:
        return f"equal, on another input than the first ({_plain(record.rounding)})"
    return "equal"


def _plain(reason: str) -> str:
    """A reason as one line, without the folders of this machine, that a table can hold."""
    text = re.sub(r"/\S*/site-packages/", "", " ".join(reason.split()))
    return text.replace("|", "\\|")[:400]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
