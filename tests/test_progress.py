"""Progress in a log: plain lines with what matters, and not many of them."""

from __future__ import annotations

import pytest

from scissionlite import progress
from scissionlite.progress import progress_bar


def run_tasks(enabled: bool = True) -> None:
    with progress_bar(enabled) as bar:
        training = bar.add_task("training", total=200, completed=100, status="")
        for step in range(100):
            bar.update(training, advance=1, status=f"training accuracy {step / 100:.1%} [x]")
        profiling = bar.add_task("profiling", total=300, status="")
        for _ in range(150):
            bar.advance(profiling)


def test_a_log_has_the_start_and_the_end_of_each_task(capsys: pytest.CaptureFixture[str]) -> None:
    run_tasks()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "\x1b" not in printed.err
    first, last, begun, stopped = printed.err.splitlines()
    assert first.startswith("training: 100 of 200")
    assert last.startswith("training: 200 of 200, ")
    assert last.endswith("training accuracy 99.0% [x]")
    assert begun == "profiling: 0 of 300"
    assert stopped.startswith("profiling: 150 of 300, ")  # it ended early


@pytest.mark.parametrize(("interval", "lines"), [(0.0, 1 + 100 + 1 + 150 + 1), (1e9, 4)])
def test_lines_between_come_at_intervals(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    interval: float,
    lines: int,
) -> None:
    monkeypatch.setattr(progress, "LOG_INTERVAL", interval)
    run_tasks()
    assert len(capsys.readouterr().err.splitlines()) == lines


def test_nothing_is_printed_where_it_is_disabled(capsys: pytest.CaptureFixture[str]) -> None:
    run_tasks(enabled=False)
    assert capsys.readouterr() == ("", "")
