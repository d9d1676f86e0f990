"""The machine: which core a process runs on, its CPU time, its memory, and the model of energy."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from scissionlite.scissiontl.profile import cpu_name


def on_core(core: int) -> list[str]:
    """The command that runs a process on one core; empty where there is no such core."""
    return ["taskset", "-c", str(core)] if _has(core) else []


def pin_to_core(core: int) -> None:
    """Run this process on one core from now on, where there is such a core."""
    if _has(core):
        os.sched_setaffinity(0, {core})


def _has(core: int) -> bool:
    return (os.cpu_count() or 1) >= 2 and core < (os.cpu_count() or 1)


def cpu_seconds(pid: int) -> float:
    """CPU seconds of all threads of a process that runs, in nanoseconds' resolution."""
    total = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            total += int(path.read_text().split()[0])
        except OSError:  # the thread has ended
            continue
    return total / 1e9


def description() -> str:
    """This machine in words."""
    cores = os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cores} cores of {cpu_name()}, {memory:.0f} GiB, Linux {platform.release()}"


DEVICE_WATTS = 2.5
"""Watts that a device takes for computing on one core, above its idle power."""

RADIO_WATTS = 0.8
"""Watts of its radio while its bytes are on the link, above idle power."""


def energy(cpu: float, sent_bytes: float, bandwidth: float) -> float:
    """Joules of a request above idle, by a model that is not measured here.

    A core takes :data:`DEVICE_WATTS` for its CPU seconds, the radio :data:`RADIO_WATTS` for as long
    as the bytes take at the link's rate. The constants are of the size that is published for
    single-board computers with Wi-Fi; ratios depend on them, so they stand beside the table.
    """
    return DEVICE_WATTS * cpu + RADIO_WATTS * 8 * sent_bytes / bandwidth
