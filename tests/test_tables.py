"""Tables in real terminals of several widths: nothing is cut, and figures are never folded."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from profiles import JPEG, written
from rich.console import Console

from scissionlite.cli import output
from scissionlite.cli.output import kilobytes, milliseconds, print_table
from scissionlite.scissiontl.link import Link
from scissionlite.scissiontl.planner import plan
from scissionlite.scissiontl.plans import Plan
from scissionlite.scissiontl.profile import Profile


def in_terminal(width: int, *arguments: object, **environment: str) -> str:
    """Run a command in a terminal of a width; what it shows."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "TERM")}
    process = subprocess.Popen(
        [sys.executable, "-m", "scissionlite", *map(str, arguments)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**kept, "TERM": "xterm-256color", **environment},
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # the terminal's other side is closed
            break
    os.close(ours)
    assert process.wait(60) == 0, shown.decode()
    return shown.decode().replace("\r\n", "\n")


def without_escapes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


@pytest.fixture(scope="module")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("profiles")
    files = folder / "pi4.json", folder / "edge.json"
    written("camera-line-4", images=(JPEG,)).save(files[0])
    written("edge", (0.002, 0.004, 0.006), images=(JPEG,)).save(files[1])
    return files


def figures(each: Plan) -> list[str]:
    cost = each.predicted
    return [
        milliseconds(cost.latency),
        milliseconds(cost.device_stage),
        milliseconds(cost.transfer_time + cost.offload_time),
        milliseconds(cost.decode_time + cost.edge_time),
        kilobytes(cost.sent_bytes),
        f"{cost.throughput:.3g}",
    ]


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_every_plan_is_shown_whole_at_any_width(width: int, profiles: tuple[Path, Path]) -> None:
    text = in_terminal(width, "plan", *profiles, "--link", "4Mbit/10ms", "--top", "5")
    lines = without_escapes(text).splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in text
    words = re.split(r"[\s│]+", "\n".join(lines))
    device, edge = map(Profile.load, profiles)
    plans = plan(device, edge, Link(0.010, 4e6))
    for each in plans[:5]:
        for shown in (*figures(each), *each.label.split()):
            assert shown in words  # whole, and on one line
    if width <= 80:  # each value has its name beside it, on the same line
        for each in plans[:5]:
            for name, figure in zip(("latency", "device", "transfer"), figures(each), strict=False):
                assert any(re.search(rf"{name} +{re.escape(figure)} ms", line) for line in lines)
            assert any(
                re.search(rf"rate +{re.escape(figures(each)[-1])} 1/s", line) for line in lines
            )
        for name in ("latency", "device", "transfer", "edge", "sent", "rate", "leakage"):
            assert words.count(name) >= 5
        assert {"ms", "kB", "1/s"} <= set(words)


def test_what_is_not_known_has_no_unit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "Console", lambda **_: Console(width=34))
    columns = ["block", "latency (ms)", "codec (us)", "float32 (kB)"]
    print_table("Blocks", columns, [["stem", "1.5", "", "2"], ["head", "10", "3 | 4", ""]])
    assert capsys.readouterr().out.splitlines() == [
        "Blocks",
        "block stem",
        "  latency 1.5 ms   codec     -",
        "  float32 2 kB",
        "block head",
        "  latency  10 ms   codec 3 | 4 us",
        "  float32 -",
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_without_colours_nothing_else_changes(width: int, profiles: tuple[Path, Path]) -> None:
    command = ("plan", *profiles, "--link", "4Mbit/10ms", "--top", "2")
    coloured, plain = in_terminal(width, *command), in_terminal(width, *command, NO_COLOR="1")
    assert without_escapes(plain) == without_escapes(coloured)
    assert not re.search(r"\x1b\[[0-9;]*(3[0-8]|9[0-7])[;m]", plain)


def test_a_long_path_is_folded_and_stands_there_whole(
    profiles: tuple[Path, Path], tmp_path: Path
) -> None:
    page = tmp_path / ("long-name-" * 12 + "report.html")
    lines = in_terminal(80, "plan", *profiles, "--report", page).splitlines()
    assert max(len(without_escapes(line)) for line in lines) <= 80
    assert str(page) in "".join(without_escapes(line).strip() for line in lines)
