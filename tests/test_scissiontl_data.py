"""The planner against what ScissionTL printed for its published DenseNet-169 data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "bench" / "scissiontl_data.py"


@pytest.fixture(scope="module")
def told(shared_data: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(shared_data / "scissiontl-densenet169.json"), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_the_five_fastest_are_those_that_scissiontl_printed(told: dict[str, Any]) -> None:
    rows = told["rows"]
    assert [row["last_device_layer"] for row in rows] == [1, 51, 139, 2, 3]
    for row in rows:
        assert row["last_device_layer"] == row["printed_last_device_layer"]
        assert row["latency"] == pytest.approx(row["printed_latency"], abs=0.2e-3)


def test_fewer_bytes_are_faster(told: dict[str, Any]) -> None:
    latencies = {row["what"]: row["latency"] for row in told["best"]}
    assert latencies["int8 TL"] < latencies["paper's TL"] < latencies["float32 split"]
    sent = {row["what"]: row["sent_bytes"] for row in told["best"]}
    assert sent["int8 TL"] * 4 == sent["paper's TL"]
