"""The device: run its slice, send the packed feature map, and wait for the answer."""

from __future__ import annotations

import functools
import math
import platform
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

import msgspec

from scissionlite.bundle import Bundle
from scissionlite.errors import DeadlineExceededError, OffloadError
from scissionlite.offloader import wire
from scissionlite.offloader.bundle_tensors import Outputs
from scissionlite.offloader.device.futures import AnswerFuture
from scissionlite.offloader.device.inputs import (
    CheckedInputs,
    Input,
    Output,
    as_output,
    check_inputs,
)
from scissionlite.offloader.device.side import DeviceSide, LocalSide
from scissionlite.offloader.device.threads import DeviceThreads
from scissionlite.offloader.stopwatch import Stopwatch
from scissionlite.offloader.wire.endpoints import Endpoints

if TYPE_CHECKING:
    from scissionlite.offloader.device.connection import EdgeConnection
    from scissionlite.offloader.device.messages import Reply
    from scissionlite.offloader.link_keys import DeviceKeys


class Answer(msgspec.Struct, frozen=True):
    """The answer to one input, and how it was made.

    Attributes
    ----------
    output : numpy.ndarray, tuple or dict of them
        float32, as the network itself answers: one array, a tuple, or a dict by name (dotted
        where it is nested).
    where : str
        ``"edge"`` or ``"local"``: the machine that ran the end of the network.
    latency : float
        Seconds from :meth:`Device.submit` to the answer.
    bytes_sent : int
        Payload bytes sent, counted once even if they were sent again; 0 if none were.
    timings : dict of str to float
        Seconds, adding up to ``latency``: on the device ``preprocess``, ``device_slice``,
        ``encode``, ``local_run`` and ``wait`` (for a connection, for credit, for another
        inference of this device); at the edge ``edge_queue``, ``edge_decode``, ``edge_run``;
        and ``transfer``, which is the rest. Stages that did not happen have no entry.
    """

    output: Output
    where: Literal["edge", "local"]
    latency: float
    bytes_sent: int
    timings: dict[str, float]


class _Work(msgspec.Struct, eq=False):
    """An inference under way."""

    started: float
    expires: float
    watch: Stopwatch
    inputs: CheckedInputs
    threads: DeviceThreads
    future: AnswerFuture[Answer]
    bytes_sent: int = 0


class Device:
    """Answer inferences with the help of an edge daemon; a context manager.

    The device's part of the computation runs in the caller's thread, one inference at a time;
    sending, waiting and recovering happen in a thread of their own. The connection is made at
    first use, or by :meth:`connect`, and comes back by itself when it is lost. Any number of
    threads may use one device.

    Close it, or use ``with``. A device that is dropped without is closed by the garbage collector,
    with a ResourceWarning. In a forked child it makes a connection of its own at first use there,
    and the parent's goes on; futures of the parent end with an OffloadError in the child.

    Parameters
    ----------
    bundle
        The bundle, or the path of its folder. One of kind "local" is answered here, and
        ``connect`` is not used.
    connect
        Tensor endpoint of the daemon, ``tcp://host:port``. None answers everything locally.
    control
        Control endpoint of the daemon; by default the port after that of ``connect``.
    fallback
        "local" answers with the bundle's network slice whenever the edge cannot: while it is
        away, when it fails, and when it does not answer in time. The local run begins early enough
        to keep the deadline, if that is possible. The slice is loaded at once, so that a missing
        one is found now.
    deadline
        Seconds until an answer is due, unless :meth:`infer` or :meth:`submit` say otherwise. A
        local answer may come later: a run that has begun is not interrupted.
    threads
        Threads of a slice's run; None is the runtime's default.
    runtime
        The runtime that runs the slices here, one of those that the bundle was prepared for; by
        default the first of them that can.
    slowdown
        Emulates a slower device, for demonstrations: after each stage of computation on the
        device it waits until the stage has taken this many times as long. All reported times
        include it. 1 emulates nothing.
    name
        The device's name in the daemon's log; by default the host's name.
    keys
        The device's secret key and the daemon's public key, for a daemon that has keys. The link
        is encrypted then, and each side knows who the other is.

    Raises
    ------
    ValueError
        If an argument is out of range, or nothing could ever answer.
    BundleError
        If the bundle or a slice needed here is missing or altered.
    RuntimeUnavailableError
        If none of the runtimes that the bundle was prepared for can run here.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        connect: str | None = None,
        *,
        control: str | None = None,
        fallback: Literal["local"] | None = None,
        deadline: float = 5.0,
        threads: int | None = None,
        runtime: str | None = None,
        slowdown: float = 1.0,
        name: str | None = None,
        keys: DeviceKeys | None = None,
    ) -> None:
        self._bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        self._deadline = _check_deadline(deadline)
        if not 1 <= slowdown < math.inf:
            raise ValueError(f"slowdown must be at least 1, got {slowdown}")
        if fallback not in (None, "local"):
            raise ValueError(f"fallback must be None or 'local', got {fallback!r}")
        kind = self._bundle.manifest.kind
        if connect is None and fallback is None and kind != "local":
            raise ValueError(
                f"a bundle of kind {kind!r} needs connect='tcp://host:port' of an edge daemon, "
                "or fallback='local'"
            )
        self._slowdown = slowdown
        self._local: LocalSide | None = None
        self._side: DeviceSide | None = None
        connection: Callable[[], EdgeConnection] | None = None
        if fallback == "local" or kind == "local":
            self._local = LocalSide(self._bundle, threads, runtime, slowdown)
        if connect is not None and kind != "local":
            # Here, since a device that answers locally needs neither ZeroMQ nor the messages.
            from scissionlite.offloader.device.connection import EdgeConnection

            self._side = DeviceSide(self._bundle, threads, runtime)
            connection = functools.partial(
                EdgeConnection,
                Endpoints.to_connect(connect, control),
                self._bundle,
                (name or platform.node())[:256],
                keys,
                give_up_early=self._local is not None,
            )
        self._threads = DeviceThreads(connection)
        # At exit, daemon threads end with the process.
        weakref.finalize(self, self._threads.drop).atexit = False

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def bundle(self) -> Bundle:
        """The bundle it runs."""
        return self._bundle

    def connect(self, timeout: float | None = None) -> None:
        """Connect to the edge daemon now rather than at first use.

        Parameters
        ----------
        timeout
            Seconds to wait; by default the device's deadline.

        Raises
        ------
        EdgeUnavailableError
            If no daemon answers in time, fallback or not.
        BundleMismatchError
            If the daemon serves another bundle.
        AuthorizationError
            If the daemon does not take this device's key, or only one of the two has keys.
        OffloadError
            If the device is closed.
        """
        threads = self._threads
        if threads.connection is None:
            return
        expires = time.monotonic() + _check_deadline(self._deadline if timeout is None else timeout)
        threads.connection.reserve(expires, expires)
        threads.connection.release()
        threads.tried = True

    def infer(self, x: Input, deadline: float | None = None) -> Output:
        """Answer one input.

        Parameters
        ----------
        x
            The network's input, float32 of ``manifest.inputs[0].shape``; several as a tuple, or
            as a mapping by their names; where ``manifest.max_batch`` is over 1, of any batch up to
            it. Or a frame, uint8 ``(height, width, channels)``, where the bundle has
            preprocessing. A bundle of kind "image" takes frames only.
        deadline
            Seconds until an answer is due; by default the device's.

        Returns
        -------
        numpy.ndarray, or a tuple or dict of them
            As :attr:`Answer.output`.

        Raises
        ------
        ValueError
            If ``x`` is neither.
        EdgeUnavailableError
            If there is no connection to a daemon by the deadline, and no fallback.
        DeadlineExceededError
            If there is no answer by the deadline, and no fallback.
        BundleMismatchError
            If the daemon serves another bundle, and there is no fallback.
        AuthorizationError
            If the daemon does not take this device's key, or only one of the two has keys, and
            there is no fallback.
        EdgeExecutionError
            If the daemon failed to answer, and there is no fallback.
        OffloadError
            If the device is closed.
        """
        return self.submit(x, deadline).result().output

    def submit(self, x: Input, deadline: float | None = None) -> Future[Answer]:
        """Begin to answer one input; several may be under way.

        Computes the device's part before it returns. Waits as long as the edge's credit is used
        up. Parameters as :meth:`infer`.

        Returns
        -------
        concurrent.futures.Future of Answer
            Ends with the answer, or with an exception that :meth:`infer` names. Cannot be
            cancelled. Callbacks run one after the other in a thread that does nothing else, so
            they may take long, and may submit, infer and close.

        Raises
        ------
        ValueError, EdgeUnavailableError, DeadlineExceededError, BundleMismatchError, OffloadError
            As :meth:`infer`, if the error is found before anything could be sent.
        """
        started = time.monotonic()
        expires = started + (self._deadline if deadline is None else _check_deadline(deadline))
        checked = check_inputs(self._bundle.manifest, x)
        threads = self._threads
        if threads.closed:
            raise OffloadError("the device was closed")
        future: AnswerFuture[Answer] = AnswerFuture(threads.callbacks, threads.unanswered)
        work = _Work(started, expires, Stopwatch(self._slowdown), checked, threads, future)
        future.set_running_or_notify_cancel()
        if threads.connection is None or self._side is None:
            self._answer_locally(work)
            return future
        try:
            reply = self._send(work, threads.connection, self._side)
        except OffloadError:
            if self._local is None or threads.closed:
                raise
            self._answer_locally(work)
            return future
        if self._local is not None:
            # The caller may overwrite its arrays once this returns.
            work.inputs = tuple(array.copy() for array in checked)
        reply.add_done_callback(lambda done: self._settle(work, done))
        return future

    def close(self) -> None:
        """Say Goodbye, and end every future that has no answer yet with an OffloadError.

        Waits for the callbacks under way, unless one of them calls it.
        """
        self._threads.close()

    def _send(self, work: _Work, connection: EdgeConnection, side: DeviceSide) -> Future[Reply]:
        """Compute the payloads and send them; the reply comes by the time that remains for it."""
        threads = work.threads
        connect_by = expires = work.expires
        if self._local is not None:
            # The edge has until a local answer must begin, but half of the time in any case. It
            # is waited for only at first use: while it is away, local answers come at once.
            half = (work.expires - work.started) / 2
            expires -= min(half, 1.25 * self._local.seconds)
            connect_by = work.started if threads.tried else work.started + half
        start = time.monotonic()
        try:
            connection.reserve(connect_by, expires)
        finally:
            threads.tried = True
        try:
            if not threads.compute.acquire(timeout=max(expires - time.monotonic(), 0)):
                raise DeadlineExceededError("other inferences kept the device busy")
            work.watch.seconds["wait"] = time.monotonic() - start
            try:
                tensors, payloads = side.make_request(work.inputs, work.watch)
            finally:
                threads.compute.release()
        except BaseException:
            connection.release()
            raise
        work.bytes_sent = sum(tensor.nbytes for tensor in tensors)
        return connection.send(tensors, payloads, expires)

    def _settle(self, work: _Work, done: Future[Reply]) -> None:
        """Turn the edge's reply into the answer, in the connection's thread: compute nothing."""
        error = done.exception()
        if error is None:
            reply = done.result()
            seconds = work.watch.seconds
            seconds["edge_queue"] = reply.queue
            seconds["edge_decode"] = reply.decode
            seconds["edge_run"] = reply.run
            work.future.set_result(self._answer(work, reply.outputs, "edge", "transfer"))
        elif self._local is None or work.threads.closed:
            work.future.set_exception(error)
        else:
            try:
                job = work.threads.fallback.submit(self._answer_locally, work)
            except RuntimeError:  # closed meanwhile
                work.future.set_exception(error)
            else:
                job.add_done_callback(lambda ended: _pass_on_failure(ended, work.future))

    def _answer_locally(self, work: _Work) -> None:
        assert self._local is not None
        with work.threads.compute:
            outputs = self._local.answer(work.inputs, work.watch)
        work.future.set_result(self._answer(work, outputs, "local", "wait"))

    def _answer(
        self,
        work: _Work,
        outputs: Outputs,
        where: Literal["edge", "local"],
        rest: str,
    ) -> Answer:
        latency = time.monotonic() - work.started
        timings = work.watch.seconds
        timings[rest] = timings.get(rest, 0.0) + max(latency - sum(timings.values()), 0.0)
        output = as_output(self._bundle.manifest, outputs)
        return Answer(output, where, latency, work.bytes_sent, timings)


def _pass_on_failure(ended: Future[None], future: Future[Answer]) -> None:
    try:
        ended.result()
    except CancelledError:
        future.set_exception(OffloadError("the device was closed"))
    except Exception as error:
        future.set_exception(error)


def _check_deadline(deadline: float) -> float:
    if not 0 < deadline <= wire.MAX_DEADLINE_MS / 1000:
        raise ValueError(
            f"a deadline must be above 0 and at most {wire.MAX_DEADLINE_MS / 1000:g} seconds, "
            f"got {deadline}"
        )
    return deadline
