"""The pipeline of ``run``: pictures in, requests under way, rows out in the pictures' order.

One thread reads pictures and submits them, a second one waits for the answers and writes the rows.
Signals arrive in the main thread, which does neither, so that they never tear a row or a request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import NamedTuple

from scissionlite.cli.run.results import Failure, ImageAnswer, Row
from scissionlite.cli.run.sources import Picture, Source
from scissionlite.errors import AuthorizationError, BundleMismatchError, ScissionLiteError
from scissionlite.offloader import Answer, Device

_CLOSED_SECONDS = 2.0  # for the threads, after the device is closed


class _UnderWay(NamedTuple):
    """A picture, and its answer to come or the reason why there is none."""

    picture: Picture
    request: Future[Answer] | ScissionLiteError


class Pipeline:
    """Answers the pictures of a source, several at once.

    Parameters
    ----------
    source
        Of the pictures.
    device
        Answers them.
    write
        Takes the rows, in the order of the pictures, in a thread of the pipeline.
    in_flight
        Most requests under way at once.
    repeat
        How often each picture is answered.
    warm_up
        Answers to the first picture that are not counted.
    """

    def __init__(
        self,
        source: Source,
        device: Device,
        write: Callable[[Row], None],
        *,
        in_flight: int,
        repeat: int = 1,
        warm_up: int = 0,
    ) -> None:
        self._source = source
        self._device = device
        self._write = write
        self._repeat = repeat
        self._warm_up = warm_up
        self._slots = threading.Semaphore(in_flight)
        self._under_way: SimpleQueue[_UnderWay | None] = SimpleQueue()
        self._stopped = threading.Event()
        self._done = threading.Event()
        self._answered = False
        self._failure: BaseException | None = None
        # Since when each thread is at one picture: the one that submits, the one that writes.
        self._since: list[float | None] = [None, None]

    @property
    def failure(self) -> BaseException | None:
        """Why it ended before the pictures did; None if it did not."""
        return self._failure

    @property
    def dropped(self) -> int:
        """Frames that the source dropped."""
        return self._source.dropped

    @property
    def seconds_at_one(self) -> float:
        """How long it is busy with one picture already; 0 if it waits for the next one."""
        now = time.monotonic()
        return max(now - (now if since is None else since) for since in self._since)

    def start(self) -> None:
        """Begin, in threads of its own."""
        for work in (self._submit_all, self._write_all):
            threading.Thread(target=work, name="scissionlite-run", daemon=True).start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until every row is written, at most so many seconds; return whether they are."""
        return self._done.wait(timeout)

    def stop(self) -> None:
        """Take no more pictures; those under way are answered."""
        self._stopped.set()
        self._source.stop()

    def abandon(self) -> None:
        """End the requests under way: their rows are failures."""
        self._device.close()
        self.wait(_CLOSED_SECONDS)

    def _submit_all(self) -> None:
        try:
            pictures = self._source.pictures()
            # The slot first: a camera then gives the frame that is the newest when there is one.
            while self._take_slot():
                picture = next(pictures, None)
                if picture is None:
                    break
                self._since[0] = time.monotonic()
                self._submit(picture)
                self._since[0] = None
        except BaseException as error:
            self._fail(error)
        finally:
            self._under_way.put(None)

    def _take_slot(self) -> bool:
        self._slots.acquire()
        if self._stopped.is_set():
            self._slots.release()  # whoever asks next must not wait for it
            return False
        return True

    def _submit(self, picture: Picture) -> None:
        if isinstance(picture.pixels, ScissionLiteError):
            self._under_way.put(_UnderWay(picture, picture.pixels))
            return
        warm_up, self._warm_up = self._warm_up, 0
        for _ in range(warm_up):
            self._since[0] = time.monotonic()
            try:
                self._device.infer(picture.pixels)
            except ScissionLiteError:
                break  # its own request says what is wrong
        for number in range(self._repeat):
            if number and not self._take_slot():
                return
            self._since[0] = time.monotonic()
            request: Future[Answer] | ScissionLiteError
            try:
                request = self._device.submit(picture.pixels)
            except ScissionLiteError as error:
                request = error
            self._under_way.put(_UnderWay(picture, request))

    def _write_all(self) -> None:
        while (under_way := self._under_way.get()) is not None:
            self._since[1] = time.monotonic()
            try:
                self._write(self._row(*under_way))
            except BaseException as error:
                self._fail(error)
            self._since[1] = None
            self._slots.release()
        self._done.set()

    def _row(self, picture: Picture, request: Future[Answer] | ScissionLiteError) -> Row:
        try:
            if isinstance(request, ScissionLiteError):
                raise request
            answer = request.result()
        except (AuthorizationError, BundleMismatchError) as error:
            if not self._answered:
                raise  # none of the others would be answered, either
            return Failure.of(picture.image, picture.frame, error)
        except ScissionLiteError as error:
            return Failure.of(picture.image, picture.frame, error)
        self._answered = True
        return ImageAnswer.of(picture.image, picture.frame, answer, self._device.bundle.manifest)

    def _fail(self, error: BaseException) -> None:
        """End early, because of an error; the first one counts."""
        self._failure = self._failure or error
        self.stop()
