"""How one input is answered: by an edge, or else by the fallback."""

from __future__ import annotations

import copy
import functools
import logging
import time
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Literal

import msgspec

from scissionlite.bundle import Bundle
from scissionlite.errors import DeadlineExceededError, OffloadError
from scissionlite.offloader.bundle_tensors import Outputs
from scissionlite.offloader.device.adaptation import LOCAL, Adaptation
from scissionlite.offloader.device.answers import Answer, Fallback, Inference
from scissionlite.offloader.device.futures import AnswerFuture
from scissionlite.offloader.device.inputs import CheckedInputs, as_output
from scissionlite.offloader.device.side import DeviceSide, LocalSide
from scissionlite.offloader.device.threads import DeviceThreads
from scissionlite.offloader.stopwatch import Stopwatch

if TYPE_CHECKING:
    from scissionlite.offloader.device.connection import EdgeConnection
    from scissionlite.offloader.device.messages import Reply, Request


_MEASURED = 2.0  # seconds after an input for which the link is measured on purpose


logger = logging.getLogger(__name__)


class Answering:
    """Answers the inputs of a device; any number of threads may use it.

    Parameters
    ----------
    bundle
        The bundle.
    fallback
        What becomes of an input that no edge answers.
    side
        The device's part of the computation; None answers everything locally.
    local
        The uncut network, where answers may be local.
    slowdown
        As the stopwatch's.
    adaptation
        Chooses who answers. Threads use it without a lock: at worst they lose a measurement.
    """

    def __init__(
        self,
        bundle: Bundle,
        fallback: Fallback,
        side: DeviceSide | None,
        local: LocalSide | None,
        slowdown: float,
        adaptation: Adaptation,
    ) -> None:
        self._manifest = bundle.manifest
        self._fallback = fallback
        self._side = side
        self._local = local
        self._slowdown = slowdown
        self.adaptation = adaptation
        self._last: tuple[Answer, float] | None = None  # of an edge, and when it came

    @property
    def is_local(self) -> bool:
        """Whether the fallback computes here."""
        return self._local is not None

    def begin(
        self,
        device: object,
        inputs: CheckedInputs,
        threads: DeviceThreads,
        started: float,
        expires: float,
    ) -> AnswerFuture[Answer]:
        """Begin to answer one input; parameters and errors as :meth:`.Device.submit`.

        ``started`` and ``expires`` are monotonic times.
        """
        work = self.prepare(device, inputs, threads, started, expires)
        if threads.edges is None or work.choice == LOCAL:
            self.answer_locally(work)
            return work.future
        try:
            try:
                connection = threads.edges.reserve(work.connect_by, work.edge_expires)
            finally:
                threads.tried = True
        except OffloadError:
            if not self.fall_back(work):
                raise
        else:
            self.send(work, connection)
        return work.future

    def prepare(
        self,
        device: object,
        inputs: CheckedInputs,
        threads: DeviceThreads,
        started: float,
        expires: float,
    ) -> Inference:
        """Begin an inference, and share its time; parameters as :meth:`begin`."""
        if threads.closed:
            raise OffloadError("the device was closed")
        connect_by = edge_expires = expires
        if self._fallback != "raise":
            # The edge has until a local answer must begin, but half of the time in any case. It
            # is waited for only at first use: while it is away, the fallback answers at once.
            half = (expires - started) / 2
            edge_expires -= 0.0 if self._local is None else min(half, 1.25 * self._local.seconds)
            connect_by = started if threads.tried else started + half
        future: AnswerFuture[Answer] = AnswerFuture(threads.callbacks, threads.unanswered)
        future.set_running_or_notify_cancel()
        watch = Stopwatch(self._slowdown)
        choice = self._choose(threads, expires - started)
        return Inference(
            device, started, connect_by, edge_expires, watch, inputs, threads, future, choice
        )

    def _choose(self, threads: DeviceThreads, deadline: float) -> str:
        """Choose who answers an input; have the link measured if the requests do not show it."""
        adaptation, edges, now = self.adaptation, threads.edges, time.monotonic()
        if edges is None or not adaptation.several:
            return adaptation.choice
        before = adaptation.choice
        choice = adaptation.choose(now, edges.link, deadline, time.time())
        if choice != before:
            logger.info("%s", adaptation.report().switches[-1], extra={"choice": choice})
        if adaptation.link_wanted:
            edges.measure_until(now + _MEASURED)
        return choice

    def send(self, work: Inference, connection: EdgeConnection) -> None:
        """Compute the payloads and send them, for which credit was reserved, or fall back."""
        try:
            request = self._send(work, connection)
        except OffloadError:
            if not self.fall_back(work):
                raise
            return
        if self._local is not None:
            # The caller may overwrite its arrays once this returns.
            work.inputs = tuple(array.copy() for array in work.inputs)
        request.when_ended(functools.partial(self._settle, work))

    def fall_back(self, work: Inference) -> bool:
        """Answer without an edge; False if there is no fallback."""
        if work.threads.closed:
            return False
        if self._local is None:
            return self._repeat_last(work)
        self.answer_locally(work)
        return True

    def _send(self, work: Inference, connection: EdgeConnection) -> Request:
        threads, expires = work.threads, work.edge_expires
        assert self._side is not None  # or there were no edge
        try:
            if not threads.compute.acquire(timeout=max(expires - time.monotonic(), 0)):
                raise DeadlineExceededError("other inferences kept the device busy")
            work.watch.seconds["wait"] = time.monotonic() - work.started
            try:
                tensors, payloads = self._side.make_request(work.inputs, work.watch, work.choice)
            finally:
                threads.compute.release()
        except BaseException:
            connection.release()
            raise
        work.bytes_sent = sum(tensor.nbytes for tensor in tensors)
        request = connection.send(tensors, payloads, expires)
        work.future.lead = functools.partial(connection.lead, request)
        return request

    def _settle(self, work: Inference, outcome: Reply | OffloadError) -> None:
        """Turn the edge's reply into the answer, in the thread that leads: compute nothing."""
        if not isinstance(outcome, OffloadError):
            seconds = work.watch.seconds
            seconds["edge_queue"] = outcome.queue
            seconds["edge_decode"] = outcome.decode
            seconds["edge_run"] = outcome.run
            if (hop := outcome.hop) is not None:
                seconds["edge_encode"], seconds["relay"] = hop.encode, hop.transfer
                seconds["cloud_queue"], seconds["cloud_decode"] = hop.queue, hop.decode
                seconds["cloud_run"] = hop.run
            self.adaptation.answered(work.choice, work.bytes_sent, seconds, time.monotonic())
            answer = self._answer(work, outcome.outputs, "edge", "transfer", outcome.edge)
            if self._fallback == "last":
                # A copy: the caller owns its answer, and may write to it.
                self._last = copy.deepcopy(answer), time.monotonic()
            work.future.set_result(answer)
        elif self._local is not None and not work.threads.closed:
            try:
                job = work.threads.fallback.submit(self.answer_locally, work)
            except RuntimeError:  # closed meanwhile
                work.future.set_exception(outcome)
            else:
                job.add_done_callback(lambda ended: _pass_on_failure(ended, work.future))
        elif work.threads.closed or not self._repeat_last(work):
            work.future.set_exception(outcome)

    def answer_locally(self, work: Inference) -> None:
        """Answer with the uncut network."""
        assert self._local is not None
        with work.threads.compute:
            outputs = self._local.answer(work.inputs, work.watch)
        self.adaptation.answered(LOCAL, 0, work.watch.seconds, time.monotonic())
        work.future.set_result(self._answer(work, outputs, "local", "wait"))

    def _repeat_last(self, work: Inference) -> bool:
        """Give the last answer of an edge again; False if there is none, or it is not wanted."""
        if (last := self._last) is None:
            return False
        answer, came = last
        now = time.monotonic()
        repeated = msgspec.structs.replace(
            copy.deepcopy(answer),
            where="last",
            latency=now - work.started,
            bytes_sent=work.bytes_sent,
            timings={"wait": now - work.started},
            age=now - came,
        )
        work.future.set_result(repeated)
        return True

    def _answer(
        self,
        work: Inference,
        outputs: Outputs,
        where: Literal["edge", "local"],
        rest: str,
        edge: str | None = None,
    ) -> Answer:
        latency = time.monotonic() - work.started
        timings = work.watch.seconds
        timings[rest] = timings.get(rest, 0.0) + max(latency - sum(timings.values()), 0.0)
        output = as_output(self._manifest, outputs)
        variant = (work.choice or None) if where == "edge" else None
        return Answer(output, where, latency, work.bytes_sent, timings, edge, variant)


def _pass_on_failure(ended: Future[None], future: Future[Answer]) -> None:
    try:
        ended.result()
    except CancelledError:
        future.set_exception(OffloadError("the device was closed"))
    except Exception as error:
        future.set_exception(error)
