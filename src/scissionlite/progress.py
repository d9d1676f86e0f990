"""The progress of training and profiling: a bar on a terminal, lines in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LOG_INTERVAL = 10.0
"""Least seconds between two lines of a task in a log, the first and the last excepted."""


@contextmanager
def progress_bar(enabled: bool) -> Iterator[Progress]:
    """Show tasks on the error stream: as bars on a terminal, else as a line now and then."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
    )
    console = Console(stderr=True)
    kind = Progress if console.is_terminal else _ProgressLines
    with kind(*columns, console=console, disable=not enabled) as progress:
        yield progress


def duration(seconds: float) -> str:
    """A time in words that promise no more than is known: "8 s", "40 s", "3 min", "2.5 h"."""
    if seconds < 10:
        return f"{max(1, seconds):.0f} s"
    if seconds < 100:
        return f"{10 * round(seconds / 10)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class _ProgressLines(Progress):
    """Tasks as plain lines for a log: the start, the end, and what is between at intervals."""

    def __init__(self, *columns: Any, disable: bool = False, **options: Any) -> None:
        super().__init__(*columns, disable=True, **options)  # no bars
        self._enabled = not disable
        self._printed_at: dict[TaskID, float] = {}

    def add_task(self, *arguments: Any, **options: Any) -> TaskID:
        """Add a task, and print that it starts."""
        task = super().add_task(*arguments, **options)
        self._print(task)
        return task

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Change a task, and print it if it is done or was not printed lately."""
        super().update(task_id, **changes)
        self._print_if_due(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Count a step of a task, and print as :meth:`update`."""
        super().advance(task_id, advance)
        self._print_if_due(task_id)

    def stop(self) -> None:
        """End; print the tasks that ended early, such as a training that stopped improving."""
        super().stop()
        for task in self.tasks:
            if not task.finished:
                self._print(task.id)

    def _print_if_due(self, task_id: TaskID) -> None:
        task = self._tasks[task_id]
        if task.finished or time.monotonic() >= self._printed_at[task_id] + LOG_INTERVAL:
            self._print(task_id)

    def _print(self, task_id: TaskID) -> None:
        self._printed_at[task_id] = time.monotonic()
        if not self._enabled:
            return
        task = self._tasks[task_id]
        line = f"{task.description}: {task.completed:.0f} of {task.total or 0:.0f}"
        if task.completed:
            line += f", {task.elapsed or 0:.0f} s"
        if not task.finished and task.time_remaining is not None:
            line += f", {task.time_remaining:.0f} s left"
        if status := task.fields.get("status"):
            line += f", {status}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
