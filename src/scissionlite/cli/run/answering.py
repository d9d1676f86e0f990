"""Answering all pictures of a source: each row to every place, and the way to the end."""

from __future__ import annotations

import logging
import math
import signal
import time
from typing import Final

from scissionlite.cli.output import print_error, print_note
from scissionlite.cli.run.live_line import REDRAW_INTERVAL, LiveLine
from scissionlite.cli.run.pipeline import Pipeline
from scissionlite.cli.run.results import Failure, Row, Tally
from scissionlite.cli.run.sinks import Sink
from scissionlite.cli.run.slowness import Slowness
from scissionlite.cli.systemd import notify, watchdog

logger = logging.getLogger(__name__)

GRACE: Final = 5.0
"""Seconds for the answers that are under way at SIGINT or SIGTERM."""

STUCK_SECONDS: Final = 30.0
"""How long after its deadline a picture must have a row, for systemd's watchdog."""

_FRAME_ERRORS = 10.0  # seconds between two error lines of one kind about frames


class Writer:
    """Takes each row to the summary, the live line and the sinks; prints errors.

    Parameters
    ----------
    sinks
        Where the rows go.
    live
        The live line.
    """

    def __init__(self, sinks: list[Sink], live: LiveLine) -> None:
        self._sinks = sinks
        self._live = live
        self._tally = Tally()
        self._printed_at: dict[str, float] = {}
        self._slowness = Slowness()

    @property
    def has_rows(self) -> bool:
        """Whether there was any row."""
        return self._tally.rows > 0

    def write(self, row: Row) -> None:
        """Take a row; of one thread."""
        self._tally.add(row)
        self._live.add(row)
        if isinstance(row, Failure):
            self._print(row)
        elif (slower := self._slowness.add(row)) is not None:
            logger.warning("%s", slower)
        for sink in self._sinks:
            sink.write(row)

    def finish(self, dropped: int, *, quiet: bool) -> bool:
        """Let the sinks end; returns whether every picture has an answer that arrived.

        Parameters
        ----------
        dropped
            Frames that the source dropped.
        quiet
            Print no summary beside the sinks'.
        """
        summary = self._tally.summary(dropped)
        losses = [loss for sink in self._sinks if (loss := sink.finish(summary)) is not None]
        for loss in losses:
            print_error(loss)
        if not quiet and not any(sink.has_summary for sink in self._sinks):
            print_note(f"{summary.answers:,} answers: {summary.text}")
        return not (losses or summary.unread or summary.failed)

    def _print(self, row: Failure) -> None:
        """Print an error; of frames, of which there are many, one of a kind now and then."""
        place = f" ({row.image})"
        if row.frame is not None:
            now = time.monotonic()
            if now < self._printed_at.get(row.kind, -math.inf) + _FRAME_ERRORS:
                return
            self._printed_at[row.kind] = now
            place = f" ({row.image}, frame {row.frame})"
        print_error(f"{row.kind}: {row.error}{'' if row.unread else place}")


def answer_all(
    pipeline: Pipeline, writer: Writer, live: LiveLine, *, deadline: float, quiet: bool
) -> int:
    """Run a pipeline to its end, or until SIGINT or SIGTERM; systemd is told that it lives.

    Parameters
    ----------
    pipeline, writer, live
        What answers, and what takes the rows.
    deadline
        Seconds until an answer is due. A picture that has no row long after it is a sign of death.
    quiet
        Print no summary beside the sinks'.

    Returns
    -------
    int
        The exit code: 0, 1 if a picture has no answer, 130 or 143 after a signal.

    Raises
    ------
    Exception
        The pipeline's failure.
    """
    notify("READY=1")
    try:
        with watchdog(lambda: pipeline.seconds_at_one < deadline + STUCK_SECONDS):
            return _answer_all(pipeline, writer, live, quiet=quiet)
    finally:
        notify("STOPPING=1")


def _answer_all(pipeline: Pipeline, writer: Writer, live: LiveLine, *, quiet: bool) -> int:
    signalled = 0
    with live:
        pipeline.start()
        try:
            while not pipeline.wait(REDRAW_INTERVAL):
                live.refresh()
        except (KeyboardInterrupt, SystemExit) as interruption:
            signalled = 128 + (
                signal.SIGINT if isinstance(interruption, KeyboardInterrupt) else signal.SIGTERM
            )
            pipeline.stop()
            if not pipeline.wait(GRACE):
                pipeline.abandon()
    complete = True
    if pipeline.failure is None or writer.has_rows:
        complete = writer.finish(pipeline.dropped, quiet=quiet)
    if pipeline.failure is not None and not signalled:
        raise pipeline.failure
    return signalled or int(not complete)
