"""The rows of ``run``: an answer or a failure for each picture, and all of them together."""

from __future__ import annotations

import statistics
import time
from collections import deque
from typing import Final, TypeAlias

import msgspec
import numpy as np

from scissionlite.cli.output import milliseconds, printable
from scissionlite.errors import ImageError, ScissionLiteError
from scissionlite.manifest import Manifest
from scissionlite.offloader import Answer

KEPT_LATENCIES: Final = 100_000
"""Latencies that a summary is made from, the newest, so that a run of months stays small."""


# More than 12 attributes: they are the fields of a row, which programs read.
class ImageAnswer(msgspec.Struct):
    """One answer; ``latency``, ``timings`` and ``age`` in seconds.

    ``class_index``, ``class_name`` and ``confidence`` are a classifier's; of other networks'
    answers, only the shapes of their tensors are shown. ``where``, ``edge``, ``variant`` and
    ``age`` are those of :class:`.Answer`. ``frame`` is the number of a frame of a video or
    camera, from 0 on. ``time`` is when the answer came, in seconds since 1970.
    """

    image: str
    class_index: int | None
    class_name: str | None
    confidence: float | None
    shapes: dict[str, tuple[int, ...]]
    latency: float
    bytes_sent: int
    where: str
    edge: str | None
    variant: str | None
    age: float
    timings: dict[str, float]
    frame: int | None
    time: float

    @classmethod
    def of(cls, image: str, frame: int | None, answer: Answer, manifest: Manifest) -> ImageAnswer:
        """Make the row of a device's answer."""
        index = name = confidence = None
        if isinstance(answer.output, np.ndarray) and answer.output.ndim == 2:
            logits = answer.output[0].astype(np.float64)
            index = int(logits.argmax())
            name = manifest.classes[index] if index < len(manifest.classes) else None
            confidence = float(1 / np.exp(logits - logits[index]).sum())  # softmax of the largest
        return cls(
            image=printable(image),
            class_index=index,
            class_name=name,
            confidence=confidence,
            shapes={tensor.name: tensor.shape for tensor in manifest.outputs},
            latency=answer.latency,
            bytes_sent=answer.bytes_sent,
            where=answer.where,
            edge=answer.edge,
            variant=answer.variant,
            age=answer.age,
            timings=answer.timings,
            frame=frame,
            time=time.time(),
        )

    @property
    def label(self) -> str:
        """The class, or its number, or the shapes of the output."""
        if self.class_name is not None:
            return self.class_name
        if self.class_index is not None:
            return str(self.class_index)
        return ", ".join(f"{name} {'x'.join(map(str, s))}" for name, s in self.shapes.items())


class Failure(msgspec.Struct):
    """A picture without an answer: ``kind`` is the class of the error, ``error`` its message."""

    image: str
    error: str
    kind: str
    frame: int | None
    time: float

    @classmethod
    def of(cls, image: str, frame: int | None, error: ScissionLiteError) -> Failure:
        """Make the row of an error."""
        return cls(
            image=printable(image),
            error=printable(str(error)),
            kind=type(error).__name__,
            frame=frame,
            time=time.time(),
        )

    @property
    def unread(self) -> bool:
        """Whether the picture could not be read; otherwise nobody answered it."""
        return self.kind == ImageError.__name__


Row: TypeAlias = ImageAnswer | Failure


class Summary(msgspec.Struct):
    """All rows together; latencies in seconds, null if there are no answers.

    ``edge``, ``local`` and ``last`` count answers by where they come from. ``unread`` pictures
    could not be read, ``failed`` ones got no answer. ``dropped`` frames of a camera were replaced
    by newer ones before they were answered. The latencies are those of the newest 100,000 answers.
    """

    answers: int
    edge: int
    local: int
    last: int
    latency_median: float | None
    latency_p95: float | None
    bytes_sent: int
    unread: int
    failed: int
    dropped: int

    @property
    def text(self) -> str:
        """The summary as a line, without the number of answers."""
        parts = []
        if self.latency_median is not None and self.latency_p95 is not None:
            median, p95 = milliseconds(self.latency_median), milliseconds(self.latency_p95)
            parts.append(f"median {median} ms, p95 {p95} ms")
        answered = f"{self.edge:,} by the edge, {self.local:,} locally"
        parts.append(f"{answered}, {self.last:,} the last one again" if self.last else answered)
        parts += [
            f"{count:,} {what}"
            for count, what in (
                (self.failed, "failed"),
                (self.unread, "not read"),
                (self.dropped, "frames dropped for newer ones"),
            )
            if count
        ]
        return "; ".join(parts)


class Tally:
    """Counts rows as they come. Of one thread at a time."""

    def __init__(self) -> None:
        self._answers = {"edge": 0, "local": 0, "last": 0}
        self._latencies: deque[float] = deque(maxlen=KEPT_LATENCIES)
        self._bytes_sent = self._unread = self._failed = 0

    @property
    def rows(self) -> int:
        """How many rows were counted."""
        return sum(self._answers.values()) + self._unread + self._failed

    def add(self, row: Row) -> None:
        """Count a row."""
        if isinstance(row, Failure):
            self._unread += row.unread
            self._failed += not row.unread
            return
        self._answers[row.where] += 1
        self._latencies.append(row.latency)
        self._bytes_sent += row.bytes_sent

    def summary(self, dropped: int) -> Summary:
        """Sum up what was counted; ``dropped`` is the source's number of dropped frames."""
        latencies = list(self._latencies)
        return Summary(
            answers=sum(self._answers.values()),
            edge=self._answers["edge"],
            local=self._answers["local"],
            last=self._answers["last"],
            latency_median=statistics.median(latencies) if latencies else None,
            latency_p95=float(np.percentile(latencies, 95)) if latencies else None,
            bytes_sent=self._bytes_sent,
            unread=self._unread,
            failed=self._failed,
            dropped=dropped,
        )
