"""Fixtures that measure and record benchmarks, and the tables at the end of a run.

Benchmarks are no tests, so name the file to run one: ``pytest bench/bench_kernels.py``.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

# The benchmarks assert against the tests' oracle before they time anything.
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


class Measure(Protocol):
    """Times ``run`` in turns with a reference; see the fixture."""

    def __call__(
        self,
        group: str,
        what: str,
        run: Callable[[], object],
        reference: Callable[[], object],
        reference_name: str,
        *,
        bar: tuple[str, str, float] | None = None,
        **info: object,
    ) -> None: ...


@pytest.fixture
def record(benchmark: Any) -> Any:
    """Return the benchmark fixture, with the machine and the versions in its extra_info."""
    import torch

    import scissionlite
    from scissionlite.scissiontl.profile import cpu_name

    benchmark.extra_info.update(
        cpu=cpu_name(),
        threads=1,
        python=platform.python_version(),
        numpy=np.__version__,
        torch=torch.__version__,
        scissionlite=scissionlite.__version__,
    )
    return benchmark


@pytest.fixture
def measure(record: Any) -> Measure:
    """Return a function that times a call in turns with its reference, and records both.

    `bar` is a claim: its name, "at most" or "at least", and the value that the ratio must keep.
    The tables at the end of the run say whether it holds. Nothing fails if it does not.
    """

    def time_in_turns(
        group: str,
        what: str,
        run: Callable[[], object],
        reference: Callable[[], object],
        reference_name: str,
        *,
        bar: tuple[str, str, float] | None = None,
        **info: object,
    ) -> None:
        seconds, reference_seconds = fastest_in_turns(run, reference)
        record.group = group
        record.extra_info.update(
            what=what,
            seconds=seconds,
            reference=reference_name,
            reference_seconds=reference_seconds,
            ratio=seconds / reference_seconds,
            bar=bar,
            **info,
        )
        record.pedantic(run, rounds=20, warmup_rounds=2)

    return time_in_turns


def fastest_in_turns(
    run: Callable[[], object], reference: Callable[[], object], budget: float = 0.4
) -> tuple[float, float]:
    """Return the fastest call of each, in seconds, of many taken in turns.

    Each turn has a call that only warms the caches for the others. On a shared machine, other work
    comes and goes within seconds; calls in turns meet it alike.
    """
    fastest = [float("inf"), float("inf")]
    end = time.perf_counter() + budget
    turns = 0
    while turns < 10 or time.perf_counter() < end:
        for i, function in enumerate((run, reference)):
            function()
            for _ in range(4):
                start = time.perf_counter_ns()
                function()
                fastest[i] = min(fastest[i], (time.perf_counter_ns() - start) * 1e-9)
        turns += 1
    return fastest[0], fastest[1]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print every ratio by group, and for each claim the worst case."""
    session = getattr(config, "_benchmarksession", None)
    measured = [b for b in (session.benchmarks if session else []) if "ratio" in b.extra_info]
    groups: dict[str, list[dict[str, Any]]] = {}
    for bench in measured:
        groups.setdefault(bench.group, []).append(bench.extra_info)
    for group, infos in sorted(groups.items()):
        terminalreporter.section(group)
        for info in sorted(infos, key=lambda info: info["seconds"]):
            terminalreporter.write_line(
                f"{info['what']:44} {info['seconds'] * 1e6:9.1f} us"
                f" {info['ratio']:8.2f} x {info['reference']}"
            )
    claims: dict[tuple[str, str, float], list[tuple[float, str]]] = {}
    for bench in measured:
        if bench.extra_info["bar"]:
            claims.setdefault(tuple(bench.extra_info["bar"]), []).append(
                (bench.extra_info["ratio"], bench.group)
            )
    if claims:
        terminalreporter.section("claims, and the worst case of each")
    for (claim, side, value), ratios in claims.items():
        worst, group = max(ratios) if side == "at most" else min(ratios)
        holds = worst <= value if side == "at most" else worst >= value
        terminalreporter.write_line(
            f"{'holds ' if holds else 'MISSED'} {claim}: {worst:.2f}, {side} {value:g}"
            f"  ({group}; {len(ratios)} cases)"
        )
