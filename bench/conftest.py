"""What every benchmark records, and the table of ratios at the end of a run.

Run with the files named, because they are no tests: ``pytest bench/bench_kernels.py``.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# The benchmarks assert against the tests' oracle before they time anything.
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


@pytest.fixture
def record(benchmark: Any) -> Any:
    """Return the benchmark fixture, with the machine and the versions in its extra_info."""
    import torch

    import scissionlite
    from scissionlite.scissiontl.profiler import cpu_name

    benchmark.extra_info.update(
        cpu=cpu_name(),
        threads=1,
        python=platform.python_version(),
        numpy=np.__version__,
        torch=torch.__version__,
        scissionlite=scissionlite.__version__,
    )
    return benchmark


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print each fastest time over that of its group's reference, measured in the same run."""
    session = getattr(config, "_benchmarksession", None)
    groups: dict[str, list[Any]] = {}
    for bench in session.benchmarks if session else []:
        groups.setdefault(bench.group, []).append(bench)
    for group, benches in sorted(groups.items()):
        reference = next((b for b in benches if b.extra_info.get("reference")), None)
        if reference is None:
            continue
        terminalreporter.section(f"{group}: time relative to {reference.extra_info['what']}")
        for bench in sorted(benches, key=lambda b: b.stats.min):
            ratio = bench.stats.min / reference.stats.min
            what, micro = bench.extra_info["what"], bench.stats.min * 1e6
            terminalreporter.write_line(f"{what:45} {micro:9.1f} us {ratio:7.2f}x")
