"""The middle of three tiers: its slice runs here, and the next edge answers.

A request is decoded, run through the middle slice and encoded with the second hop's codec; then
this daemon is a device of the next edge, with that side's whole client: credit, heartbeats, several
edges, new connections. So a worker of the daemon waits for each answer, and another one computes
meanwhile; the leader waits for nobody.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

from scissionlite.bundle import Bundle
from scissionlite.errors import (
    DeadlineExceededError,
    EdgeBusyError,
    EdgeUnavailableError,
    OffloadError,
)
from scissionlite.offloader.bundle_tensors import request_checker
from scissionlite.offloader.device.edges import Edges, links_to
from scissionlite.offloader.device.messages import Reply, Request
from scissionlite.offloader.device.side import DeviceSide
from scissionlite.offloader.edge.engines.engine import SliceOptions
from scissionlite.offloader.edge.results import failed, pack_result
from scissionlite.offloader.edge.schedule import Done, Job
from scissionlite.offloader.edge.side import decode_tensor
from scissionlite.offloader.link_keys import DeviceKeys
from scissionlite.offloader.stopwatch import Stopwatch
from scissionlite.offloader.wire.control import HopTimes

_WAY_BACK = 0.1  # of a request's time: kept for the answer's way, so that the device hears why not
_GUARD = 1.0  # seconds after its deadline by which a request of the connection has surely ended


class RelayEngine:
    """Opens bundles of three tiers as their middle, in this process.

    Parameters
    ----------
    connect
        Tensor endpoint of the next edge's daemon, or of several, the preferred one first.
    control
        Its control endpoint, or one for each; by default the port after that of ``connect``.
    keys
        This daemon's secret key and the next edge's public key.
    name
        This daemon's name in the next one's log.

    Raises
    ------
    ValueError
        If an endpoint is none, or the numbers of endpoints and keys differ.
    """

    workers = 16  # requests that wait for the next edge at once; one of them computes

    def __init__(
        self,
        connect: str | Sequence[str],
        control: str | Sequence[str | None] | None = None,
        keys: DeviceKeys | Sequence[DeviceKeys | None] | None = None,
        name: str = "",
    ) -> None:
        self._links = links_to(connect, control, keys)
        self._name = name
        self._opened: weakref.WeakSet[RelaySide] = weakref.WeakSet()

    def open(self, bundle: Bundle | str | Path, options: SliceOptions) -> RelaySide:
        """Load a bundle and its middle slice, which takes seconds.

        Raises
        ------
        OffloadError
            If the bundle has no middle, or it is to run on a GPU.
        """
        if not isinstance(bundle, Bundle):
            bundle = Bundle.load(bundle, options.trust)
        if bundle.manifest.tiers != 3:
            raise OffloadError(
                f"{bundle.path} has {bundle.manifest.tiers} tiers, and a daemon with a next edge "
                "serves the middle of three: serve it with a daemon of its own, without next "
                "(--next)"
            )
        if options.processor != "cpu":
            raise OffloadError("the middle of three tiers runs on the CPU: leave processor out")
        side = RelaySide(
            bundle, Edges(self._links, bundle.second_hop, self._name, fallback=False), options
        )
        self._opened.add(side)
        return side

    def close(self) -> None:
        """Say Goodbye to the next edge."""
        for side in list(self._opened):
            side.close()


class RelaySide:
    """The middle of one bundle: from a request's payloads to the next edge's answer.

    Parameters
    ----------
    bundle
        One of three tiers.
    edges
        The connections to the next edge, for the bundle of the second hop.
    options
        Threads and runtime of the middle slice.

    Attributes
    ----------
    bundle, check, batch
        As those of :class:`.engine.Computation`; requests are run alone.
    """

    def __init__(self, bundle: Bundle, edges: Edges, options: SliceOptions) -> None:
        self.bundle = bundle
        self.check = request_checker(bundle.manifest)
        self.batch = 1
        self._side = DeviceSide(bundle.second_hop, options.threads, options.runtime)
        self._compute = threading.Lock()
        self._edges = edges
        self._away = False  # whether the last request waited for a connection in vain
        weakref.finalize(self, edges.stop).atexit = False
        edges.start()  # so that the daemon can say whether the next edge is there

    @property
    def trouble(self) -> str:
        """Why the next edge cannot be asked now; empty if it can."""
        said = self._edges.trouble
        return said and f"the next edge (tier 3) is away: {said}"

    def finish(self, jobs: Sequence[Job]) -> list[list[Done]]:
        """Answer jobs, each alone; as :meth:`.engine.Computation.finish`."""
        return [[self._finish(job)] for job in jobs]

    def close(self) -> None:
        """Say Goodbye to the next edge, and end what waits for it."""
        self._edges.close()

    def _finish(self, job: Job) -> Done:
        started, watch = time.monotonic(), Stopwatch()
        try:
            sent, reply = self._relay(job, watch)
            frames = pack_result(job, reply.outputs)
        except DeadlineExceededError as error:
            busy = isinstance(error, EdgeBusyError)
            waited = started - job.arrived
            return Done(job, [], _reason(error), waited, 0.0, 0.0, expired=not busy, busy=busy)
        except OffloadError as error:
            return failed(job, OffloadError(_reason(error)), started)
        except Exception as error:
            return failed(job, error, started)
        seconds = watch.seconds
        decode, run, encode = (seconds[each] for each in ("decode", "device_slice", "encode"))
        # Waiting for credit and for the processor is waiting for its turn, too.
        queue = max(sent - job.arrived - decode - run - encode, 0.0)
        elsewhere = reply.queue + reply.decode + reply.run
        transfer = max(time.monotonic() - sent - elsewhere, 0.0)
        hop = HopTimes(encode, transfer, reply.queue, reply.decode, reply.run)
        return Done(job, frames, "", queue, decode, run, hop=hop)

    def _relay(self, job: Job, watch: Stopwatch) -> tuple[float, Reply]:
        """Send a job to the next edge; return when it was sent (monotonic), and the reply.

        Stages timed: ``decode``, ``device_slice``, ``encode``.

        Raises
        ------
        OffloadError
            As :meth:`.Device.infer` does. While the next edge is away, it is waited for once.
        """
        variant = self.check(job.tensors).variant
        assert variant is not None  # a bundle of three tiers sends no images
        expires = job.expires - _WAY_BACK * (job.expires - job.arrived)
        now = time.monotonic()
        connect_by = now if self._away else now + (expires - now) / 2
        try:
            connection = self._edges.reserve(connect_by, expires)
        except EdgeUnavailableError:
            self._away = True
            raise
        self._away = False
        try:
            if not self._compute.acquire(timeout=max(expires - time.monotonic(), 0.0)):
                raise DeadlineExceededError("other requests kept the middle slice busy")
            try:
                with watch.stage("decode"):
                    tensors = zip(variant.crossing, job.tensors, job.payloads, strict=True)
                    inputs = tuple(decode_tensor(*each) for each in tensors)
                headers, payloads = self._side.make_request(inputs, watch)
            finally:
                self._compute.release()
        except BaseException:
            connection.release()
            raise
        sent = time.monotonic()
        request = connection.send(headers, payloads, expires)
        ended = threading.Event()
        request.when_ended(lambda _: ended.set())
        connection.lead(request, expires)
        ended.wait(max(expires - time.monotonic(), 0.0) + _GUARD)
        return sent, _reply(request)


def _reply(request: Request) -> Reply:
    """The next edge's reply to a request that has ended, or its error."""
    if isinstance(outcome := request.outcome, Reply):
        return outcome
    raise outcome or DeadlineExceededError("the connection to the next edge hangs")


def _reason(error: OffloadError) -> str:
    """Say to the device whose error it is."""
    return f"the next edge (tier 3): {error}"
