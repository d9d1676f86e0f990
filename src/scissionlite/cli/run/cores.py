"""The option of ``run`` that says on which cores of the processor it runs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from scissionlite.processor import SYSFS, core_list, cores, fast_cores

CoresOption = Annotated[
    str,
    typer.Option(
        metavar="all|fast|LIST",
        help="Cores to run on: 'fast' are the fast ones of big.LITTLE, LIST is as 0-3,6. --threads "
        "is by default their number.",
    ),
]


def use_cores(text: str, threads: int | None, sysfs: Path = SYSFS) -> int | None:
    """Keep this process, and every thread that it starts from now on, on some cores.

    Parameters
    ----------
    text
        The option.
    threads
        The option ``--threads``.
    sysfs
        Where the kernel describes the cores.

    Returns
    -------
    int or None
        Threads of a slice. None only for "all": ONNX Runtime would then give each thread a core
        of its own, of all cores.

    Raises
    ------
    typer.BadParameter
        If there are no such cores, or the process may not use them.
    """
    if text == "all":
        return threads
    allowed = os.sched_getaffinity(0)
    wanted = fast_cores(cores(sysfs)) if text == "fast" else _listed(text)
    if text == "fast":
        wanted = wanted & allowed or allowed  # of a container that has the slow ones only
    if missing := wanted - allowed:
        raise typer.BadParameter(
            f"--cores {text}: this process may not use {core_list(missing)}, only "
            f"{core_list(allowed)}"
        )
    os.sched_setaffinity(0, wanted)
    return threads or len(wanted)


def _listed(text: str) -> set[int]:
    """Read a list of cores, as 0-3,6."""
    wanted: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part.strip())
        if found is None or int(found[2] or found[1]) < int(found[1]):
            raise typer.BadParameter(f"--cores {text}: must be all, fast, or a list as 0-3,6")
        wanted.update(range(int(found[1]), int(found[2] or found[1]) + 1))
    return wanted
