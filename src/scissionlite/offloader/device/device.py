"""The device: run its slice, send the packed feature map, and wait for the answer."""

from __future__ import annotations

import functools
import math
import platform
import time
import weakref
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from scissionlite.bundle import Bundle
from scissionlite.offloader import wire
from scissionlite.offloader.device.answering import Answering
from scissionlite.offloader.device.answers import Answer, Fallback
from scissionlite.offloader.device.choices import allowed_variants, make_adaptation
from scissionlite.offloader.device.futures import AnswerFuture
from scissionlite.offloader.device.inputs import CheckedInputs, Input, Output, check_inputs
from scissionlite.offloader.device.side import DeviceSide, LocalSide
from scissionlite.offloader.device.threads import DeviceThreads

if TYPE_CHECKING:
    from scissionlite.offloader.device.adaptation import AdaptationReport
    from scissionlite.offloader.device.asynchronous import AsyncFrameStream
    from scissionlite.offloader.device.edges import Edges
    from scissionlite.offloader.device.link_meter import LinkEstimate
    from scissionlite.offloader.device.streams import FrameStream
    from scissionlite.offloader.link_keys import DeviceKeys


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
        Tensor endpoint of the daemon, ``tcp://host:port``; or of several, in the order of
        preference. Requests go to the first that is there. When its connection is lost, those
        without an answer go to the next one. None answers everything locally.
    control
        Control endpoint of the daemon, or one for each; by default (and for None) the port after
        that of ``connect``.
    fallback
        For an input that no edge answers: while they are away, when one fails, and when it does not
        answer in time. "raise", or None, raises the exception. "local" answers with the bundle's
        network slice. The local run begins early enough to keep the deadline, if that is possible.
        The slice is loaded at once, so that a missing one is found now. "last" gives the last
        answer of an edge again (:attr:`Answer.where` is "last"), and raises before there is one.
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
        is encrypted then, and each side knows who the other is. One for all daemons, or one for
        each.
    adapt
        Whether to choose for each input the bundle's variant that is fastest on the link as it is
        now; and to answer locally while that is faster, with ``fallback="local"``. By default it
        does so if the bundle has several variants: they were prepared for that. A fallback alone
        is for need only.
    variant
        Name of the only variant to use; None allows all, of which the first is used where nothing
        adapts.
    min_accuracy
        Least accuracy of the variants to use, 0 to 1, as the bundle's validation measured it.

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
        connect: str | Sequence[str] | None = None,
        *,
        control: str | Sequence[str | None] | None = None,
        fallback: Fallback | None = "raise",
        deadline: float = 5.0,
        threads: int | None = None,
        runtime: str | None = None,
        slowdown: float = 1.0,
        name: str | None = None,
        keys: DeviceKeys | Sequence[DeviceKeys | None] | None = None,
        adapt: bool | None = None,
        variant: str | None = None,
        min_accuracy: float | None = None,
    ) -> None:
        self._bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        self._deadline = _check_deadline(deadline)
        if not 1 <= slowdown < math.inf:
            raise ValueError(f"slowdown must be at least 1, got {slowdown}")
        fallback = fallback or "raise"
        if fallback not in ("local", "last", "raise"):
            raise ValueError(f"fallback must be 'local', 'last' or 'raise', got {fallback!r}")
        kind = self._bundle.manifest.kind
        if connect is None and fallback != "local" and kind != "local":
            raise ValueError(
                f"a bundle of kind {kind!r} needs connect='tcp://host:port' of an edge daemon, "
                "or fallback='local'"
            )
        local: LocalSide | None = None
        side: DeviceSide | None = None
        edges: Callable[[], Edges] | None = None
        if fallback == "local" or kind == "local":
            local = LocalSide(self._bundle, threads, runtime, slowdown)
        variants = allowed_variants(self._bundle.manifest, variant, min_accuracy)
        if connect is not None and kind != "local":
            # Here, since a device that answers locally needs neither ZeroMQ nor the messages.
            from scissionlite.offloader.device.edges import Edges, links_to

            side = DeviceSide(self._bundle, threads, runtime)
            edges = functools.partial(
                Edges,
                links_to(connect, control, keys),
                self._bundle,
                (name or platform.node())[:256],
                fallback=fallback != "raise",
            )
        adapts = len(variants) > 1 if adapt is None else adapt
        adaptation = make_adaptation(variants, side, local, self._bundle, slowdown, adapts=adapts)
        self._answering = Answering(self._bundle, fallback, side, local, slowdown, adaptation)
        self._threads = DeviceThreads(edges)
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

    @property
    def link(self) -> LinkEstimate | None:
        """The link to the edge that the next request goes to, as the device's messages show it.

        It is measured all the while. None before the first request was answered, and where there
        is no edge.
        """
        return None if self._threads.edges is None else self._threads.edges.link

    @property
    def adaptation(self) -> AdaptationReport:
        """The variant that the next input is sent as, or "local"; and why it was chosen.

        It has the predicted latency of each choice, and the last changes with their reasons.
        """
        return self._answering.adaptation.report()

    def connect(self, timeout: float | None = None) -> None:
        """Connect to an edge daemon now rather than at first use.

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
        if threads.edges is None:
            return
        expires = time.monotonic() + _check_deadline(self._deadline if timeout is None else timeout)
        threads.edges.reserve(expires, expires).release()
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

    def submit(self, x: Input, deadline: float | None = None) -> AnswerFuture[Answer]:
        """Begin to answer one input; several may be under way.

        Computes the device's part before it returns. Waits as long as the edge's credit is used
        up. Parameters as :meth:`infer`.

        Returns
        -------
        concurrent.futures.Future of Answer
            Ends with the answer, or with an exception that :meth:`infer` names. Cannot be
            cancelled, and may be awaited. Callbacks run one after the other in a thread that does
            nothing else, so they may take long, and may submit, infer and close.

        Raises
        ------
        ValueError, EdgeUnavailableError, DeadlineExceededError, BundleMismatchError, OffloadError
            As :meth:`infer`, if the error is found before anything could be sent.
        """
        started, expires, inputs = self._begin(x, deadline)
        return self._answering.begin(self, inputs, self._threads, started, expires)

    async def infer_async(self, x: Input, deadline: float | None = None) -> Output:
        """Answer one input for asyncio; parameters, result and errors as :meth:`infer`."""
        return (await self.submit_async(x, deadline)).output

    async def submit_async(self, x: Input, deadline: float | None = None) -> Answer:
        """Answer one input for asyncio; any number of tasks may await answers.

        The loop goes on meanwhile, and no thread waits. The device's part is computed in a thread
        of the device, so ``x`` must stay as it is until this returns. A task that is cancelled
        leaves nothing behind; what was sent already is answered to nobody. Parameters and errors
        as :meth:`infer`.
        """
        from scissionlite.offloader.device.asynchronous import answer_async

        started, expires, inputs = self._begin(x, deadline)
        work = self._answering.prepare(self, inputs, self._threads, started, expires)
        return await answer_async(self._answering, work)

    def stream(
        self, frames: Iterable[Input], *, deadline: float | None = None, in_flight: int = 2
    ) -> FrameStream:
        """Answer the frames of a source that does not wait, such as a camera.

        The source is read in a thread of its own. When a frame comes while ``in_flight`` others
        are under way, it waits, and a newer one takes its place. So answers are always to frames
        that are as new as the device and the link allow.

        Parameters
        ----------
        frames
            Inputs as :meth:`infer` takes them; they are copied. A generator is closed at the end.
        deadline
            Seconds for each frame, from the moment when it is taken; by default the device's.
        in_flight
            Frames that may be under way. With 2, the device computes while the edge does.

        Returns
        -------
        FrameStream
            An iterator of pairs: the frame's number in the source, from 0, and its
            :class:`Answer`, or the exception that :meth:`submit` or its future raised. In the
            order of the source. ``dropped`` counts the frames left out. An exception of the
            source is raised after the answers to the frames before it; so is the OffloadError of
            a device that is closed.

        Raises
        ------
        ValueError
            If ``in_flight`` or ``deadline`` is out of range.
        """
        from scissionlite.offloader.device.streams import FrameStream

        seconds = self._deadline if deadline is None else _check_deadline(deadline)
        return FrameStream(
            lambda frame: self.submit(frame, seconds),
            lambda: self._threads.closed,
            frames,
            in_flight,
        )

    def stream_async(
        self,
        frames: Iterable[Input] | AsyncIterable[Input],
        *,
        deadline: float | None = None,
        in_flight: int = 2,
    ) -> AsyncFrameStream:
        """Answer the frames of a source that does not wait, for asyncio.

        As :meth:`stream`, as an asynchronous iterator. A source that is an asynchronous iterable
        itself is read in a task, any other in a thread.
        """
        import asyncio

        from scissionlite.offloader.device.asynchronous import AsyncFrameStream

        seconds = self._deadline if deadline is None else _check_deadline(deadline)
        return AsyncFrameStream(
            lambda frame: asyncio.ensure_future(self.submit_async(frame, seconds)),
            lambda: self._threads.closed,
            frames,
            in_flight,
        )

    def close(self) -> None:
        """Say Goodbye, and end every future that has no answer yet with an OffloadError.

        Waits for the callbacks under way, unless one of them calls it.
        """
        self._threads.close()

    def _begin(self, x: Input, deadline: float | None) -> tuple[float, float, CheckedInputs]:
        """The time now, the time by which an answer is due, and the inputs."""
        started = time.monotonic()
        seconds = self._deadline if deadline is None else _check_deadline(deadline)
        return started, started + seconds, check_inputs(self._bundle.manifest, x)


def _check_deadline(deadline: float) -> float:
    if not 0 < deadline <= wire.MAX_DEADLINE_MS / 1000:
        raise ValueError(
            f"a deadline must be above 0 and at most {wire.MAX_DEADLINE_MS / 1000:g} seconds, "
            f"got {deadline}"
        )
    return deadline
