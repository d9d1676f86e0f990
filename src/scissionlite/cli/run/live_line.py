"""The live line of ``run``: rate, latency and who answers, while the answers come.

On a terminal it is one line on the error stream, drawn again and again. In a log it is a plain line
now and then, and only if there is something new.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import numpy as np
from rich.text import Text

from scissionlite.cli.output import error_console, milliseconds
from scissionlite.cli.run.results import Failure, Row

if TYPE_CHECKING:
    from rich.live import Live

MakeRoom: TypeAlias = Callable[[], AbstractContextManager[None]]
"""Clears the live line while something else is printed."""

REDRAW_INTERVAL: Final = 0.25
"""Seconds between two drawings of the line."""

WINDOW: Final = 10.0
"""Seconds of answers from which rate and latency are made."""


class _Form(NamedTuple):
    """A way to write the line, of which the longest is clear to everybody."""

    decimals: int
    latency: str
    share: str
    machines: int | None


_FORMS = (
    _Form(1, "median {median} ms, p95 {p95} ms", "{where} {count:,} ({share:.0%})", None),
    _Form(1, "{median} ms (p95 {p95})", "{where} {share:.0%}", 1),
    _Form(0, "{median} ms", "{where} {share:.0%}", 1),
)


class LiveLine:
    """Says how it goes; a context manager, in which the line is shown.

    Parameters
    ----------
    shown
        False says nothing.
    drawn
        False says it as in a log, on a terminal too.
    has_edge
        Whether there is a link whose state matters.
    dropped
        Counts the frames that a camera dropped.
    troubles
        Says what is wrong with the sinks; empty texts are left out.
    """

    def __init__(
        self,
        shown: bool,
        *,
        drawn: bool = True,
        has_edge: bool,
        dropped: Callable[[], int],
        troubles: Callable[[], list[str]],
    ) -> None:
        self._shown = shown
        self._drawn = drawn and error_console.is_terminal and not error_console.is_dumb_terminal
        self._dropped = dropped
        self._troubles = troubles
        self._live: Live | None = None
        self._lock = threading.RLock()
        self._rows = _Rows(has_edge)
        self._said = ""
        self._say_at = 0.0

    def __enter__(self) -> LiveLine:
        from scissionlite.progress import LOG_INTERVAL

        self._say_at = time.monotonic() + LOG_INTERVAL
        if self._shown and self._drawn:
            from rich.live import Live

            self._live = Live(
                console=error_console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def add(self, row: Row) -> None:
        """Count a row; of any thread."""
        with self._lock:
            self._rows.add(row, time.monotonic())

    def refresh(self) -> None:
        """Draw the line on a terminal; print it in a log, if it is time to."""
        with self._lock:
            if self._live is not None:
                line = self._text(error_console.width)
                self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
            elif self._shown and time.monotonic() >= self._say_at:
                self._say()

    @contextmanager
    def make_room(self) -> Iterator[None]:
        """Clear the line, where it shares a terminal with the output stream, and draw it again."""
        live = self._live
        if live is None or not sys.stdout.isatty():
            yield
            return
        with self._lock:
            live.stop()
            try:
                yield
            finally:
                live.start(refresh=True)

    def _say(self) -> None:
        from scissionlite.progress import LOG_INTERVAL

        state = f"{self._rows.count} {self._rows.link(None)} {self._troubles()}"
        if state != self._said:
            self._said, self._say_at = state, time.monotonic() + LOG_INTERVAL
            error_console.print(self._text(None), markup=False, highlight=False)

    def _text(self, width: int | None) -> str:
        """Make the line: the longest of its forms that fits a width, or else the shortest."""
        now = time.monotonic()
        counts = [(self._rows.failures, "failed"), (self._dropped(), "dropped")]
        ends = [f"{count:,} {what}" for count, what in counts if count]
        ends += filter(None, self._troubles())
        for form in _FORMS:
            line = ", ".join([*self._rows.parts(now, form), *ends])
            if width is None or len(line) <= width:
                break
        return line


class _Rows:
    """The rows of the line: all counted, and the answers of the last seconds."""

    def __init__(self, has_edge: bool) -> None:
        self._has_edge = has_edge
        self._started = time.monotonic()
        self._recent: deque[tuple[float, float]] = deque()  # when, and the latency
        self._by: dict[str, int] = {}
        self._edge_answered: float | None = None
        self._edge_up: bool | None = None
        self.failures = 0

    @property
    def count(self) -> int:
        """How many rows there were."""
        return sum(self._by.values()) + self.failures

    def add(self, row: Row, now: float) -> None:
        """Count a row that came now."""
        if isinstance(row, Failure):
            self.failures += 1
            if not row.unread:
                self._edge_up = False
            return
        self._by[row.where] = self._by.get(row.where, 0) + 1
        self._recent.append((now, row.latency))
        self._forget(now)  # here, too: with --quiet nothing is ever drawn
        self._edge_up = row.where == "edge"
        if self._edge_up:
            self._edge_answered = now

    def link(self, now: float | None) -> str:
        """The link's state as the answers show it; with seconds, if the time is given."""
        if self._edge_up is None:
            return "no answer yet"
        if self._edge_up:
            return "link up"
        since = self._started if self._edge_answered is None else self._edge_answered
        return "link down" if now is None else f"link down {now - since:.0f} s"

    def parts(self, now: float, form: _Form) -> list[str]:
        """The parts of the line, in one of its forms."""
        self._forget(now)
        answers = sum(self._by.values())
        rate = len(self._recent) / max(min(WINDOW, now - self._started), 1.0)
        parts = [f"{answers:,} answers", f"{rate:.{form.decimals}f}/s"]
        if self._recent:
            latencies = [latency for _, latency in self._recent]
            median, p95 = map(milliseconds, np.percentile(latencies, [50, 95]).tolist())
            parts.append(form.latency.format(median=median, p95=p95))
        for where, count in sorted(self._by.items())[: form.machines]:
            parts.append(form.share.format(where=where, count=count, share=count / answers))
        return [*parts, self.link(now)] if self._has_edge else parts

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][0] < now - WINDOW:
            self._recent.popleft()
