"""The edge daemon as an object: made, started, closed. Its work is done in :mod:`.threads`."""

from __future__ import annotations

import functools
import platform
import secrets
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from scissionlite.bundle import Bundle
from scissionlite.errors import OffloadError
from scissionlite.offloader.edge.bundle_folder import BundleFolder
from scissionlite.offloader.edge.engines.engine import Engine, SliceOptions
from scissionlite.offloader.edge.engines.local import LocalEngine
from scissionlite.offloader.edge.loop import EdgeLoop
from scissionlite.offloader.edge.page_address import PageAddress
from scissionlite.offloader.edge.status import liveness_trouble
from scissionlite.offloader.edge.threads import EdgeThreads
from scissionlite.offloader.limits import EdgeLimits
from scissionlite.offloader.link_keys import DeviceKeys, EdgeKeys
from scissionlite.offloader.wire.control import StatsReply, Welcome
from scissionlite.offloader.wire.endpoints import Endpoints, is_local

if TYPE_CHECKING:
    from scissionlite.offloader.edge.page_server import PageServer


class EdgeServer:
    """Serve the edge slices of bundles to any number of devices; a context manager.

    Close it, or use ``with``. A server that is dropped without is closed by the garbage collector,
    with a ResourceWarning. In a forked child, a server that its parent started does nothing:
    :meth:`close` is without effect, and other calls are an OffloadError.

    Parameters
    ----------
    bundles
        The bundles, or the paths of their folders; of kind "split" or "image". One may stand
        without a list. :meth:`add` and :meth:`remove` change them while it serves. Without any,
        the daemon answers probes and requests for profiles, and refuses devices.
    bind
        Tensor endpoint to listen on: ``tcp://address:port`` or ``ipc://path``. Port ``*`` or 0
        is any free one; :attr:`endpoint` then has its number. By default only this machine can
        reach it; ``tcp://0.0.0.0:5555`` listens on every network, and needs ``keys``.
    control
        Control endpoint; by default the port after that of ``bind``, or any free one.
    threads
        Threads of a slice's run; None is the runtime's default.
    workers
        Requests that are worked on at once, each with so many threads; None is the engine's
        default, 1 for the local one.
    engine
        What runs the slices; by default this process (:class:`.engines.local.LocalEngine`). It is
        closed with the server.
    next, next_control, next_keys
        Of a bundle of three tiers, run the middle slice and have the next edge answer, whose
        endpoints these are, and this daemon's keys for it; as ``connect``, ``control`` and ``keys``
        of :class:`.device.device.Device`. Without, the last slice is run.
    runtime
        The runtime that runs the slice here, one of those that the bundle was prepared for; by
        default the first of them that can.
    processor
        "cuda" runs TorchScript slices on a GPU: packed payloads are uploaded and decoded there.
    limits
        Credit, queue, heartbeat and the time of profiles; by default those of
        :class:`.limits.EdgeLimits`.
    name
        The daemon's name for devices; by default the host's.
    profile_models
        Globs of the model names, such as ``torchvision:*``, that may be profiled here; by default
        none. The code that a name imports is run, so allow only names that you trust.
    keys
        The daemon's secret key, and the public keys of the devices that it takes. The links are
        encrypted then, and nobody else can use them.
    insecure
        Listen on networks without keys: whoever reaches the ports can use and disturb the daemon,
        and read what crosses. There are no profiles then.
    watch
        Folder whose folders are bundles that are served, too: what is put there while the server
        runs is loaded, what is replaced is replaced, what is removed is dropped. One that cannot
        be loaded is logged.
    trust
        File of public signing keys, of which one must have signed each bundle that is loaded from
        a path; None takes any.
    page
        Where to serve the status page, metrics, liveness and readiness over HTTP
        (docs/daemon.md): ``:8080`` for this machine only, ``host:8080`` or ``0.0.0.0:8080`` for
        a network, where whoever reaches it can read it. By default there is none.

    Raises
    ------
    ValueError
        If an argument is out of range.
    OffloadError
        If the bundle has no work for an edge.
    BundleError
        If the bundle or a slice needed here is missing or altered.
    RuntimeUnavailableError
        If none of the runtimes that the bundle was prepared for can run here.
    """

    def __init__(
        self,
        bundles: Bundle | str | Path | Sequence[Bundle | str | Path] | None = None,
        bind: str = "tcp://127.0.0.1:5555",
        *,
        control: str | None = None,
        threads: int | None = None,
        workers: int | None = None,
        engine: Engine | None = None,
        next: str | Sequence[str] | None = None,
        next_control: str | Sequence[str | None] | None = None,
        next_keys: DeviceKeys | Sequence[DeviceKeys | None] | None = None,
        runtime: str | None = None,
        processor: Literal["cpu", "cuda"] = "cpu",
        limits: EdgeLimits | None = None,
        name: str | None = None,
        profile_models: Sequence[str] = (),
        keys: EdgeKeys | None = None,
        insecure: bool = False,
        watch: str | Path | None = None,
        trust: str | Path | None = None,
        page: str | None = None,
    ) -> None:
        limits = limits or EdgeLimits()
        if next is None and (next_control is not None or next_keys is not None):
            raise ValueError("control endpoints and keys of a next edge need its endpoint, next=")
        if next is not None:
            if engine is not None:
                raise ValueError("next= is an engine of its own: give no other one")
            from scissionlite.offloader.edge.engines.relay import RelayEngine  # a device's modules

            engine = RelayEngine(next, next_control, next_keys, (name or platform.node())[:256])
        self._engine: Engine = LocalEngine() if engine is None else engine
        workers = self._engine.workers if workers is None else workers
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        binds = Endpoints.to_bind(bind, control)
        if keys is None:
            _check_exposure(binds, profile_models, insecure=insecure)
        self._page_address = None if page is None else PageAddress.parse(page)
        options = SliceOptions(
            threads=threads,
            runtime=runtime,
            batch=limits.batch,
            processor=processor,
            trust=trust,
        )
        self._open = functools.partial(self._engine.open, options=options)
        if bundles is None or isinstance(bundles, Bundle | str | Path):
            bundles = [] if bundles is None else [bundles]
        sides = [self._open(bundle) for bundle in bundles]
        self._folder: BundleFolder | None = None
        if watch is not None:
            given = frozenset(side.bundle.id for side in sides)
            self._folder = BundleFolder(Path(watch), self._open, given, signed=trust is not None)
            sides += self._folder.sides
        welcome = Welcome(
            secrets.randbits(63),
            limits.credit,
            (name or platform.node())[:256],
            limits.heartbeat,
        )
        self._loop = EdgeLoop(sides, welcome, limits, keys, profile_models, workers, self._open)
        self._start_threads = functools.partial(
            EdgeThreads, self._loop, workers, binds, limits.stop_seconds
        )
        self._threads: EdgeThreads | None = None
        self._page: PageServer | None = None
        self._encrypted = keys is not None
        self._name = welcome.name
        self._stop = False

    def __enter__(self) -> EdgeServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def endpoint(self) -> str:
        """The tensor endpoint listened on; empty before :meth:`start`."""
        return "" if self._threads is None else self._threads.endpoints.tensors

    @property
    def control_endpoint(self) -> str:
        """The control endpoint listened on; empty before :meth:`start`."""
        return "" if self._threads is None else self._threads.endpoints.control

    @property
    def bundles(self) -> list[Bundle]:
        """The bundles served, in the order in which they were added."""
        return self._loop.bundles.bundles

    @property
    def working(self) -> bool:
        """Whether a slice is run or loaded still, after :meth:`close`: that cannot be stopped."""
        if self._threads is None or not self._threads.here:
            return False
        loading = self._loop.loading or (self._folder is not None and self._folder.working)
        return self._threads.working or loading

    @property
    def page(self) -> str:
        """The page's URL; empty if there is none, and before :meth:`start`."""
        return "" if self._page is None else self._page.url

    @property
    def alive(self) -> bool:
        """Whether messages were looked for in the last 10 seconds."""
        return not liveness_trouble(self._loop.metrics)

    def start(self) -> None:
        """Listen, and serve in threads of its own.

        Raises
        ------
        OffloadError
            If an endpoint or the page's address cannot be listened on, or the server was started
            before.
        """
        self._check_process()
        if self._threads is not None or self._stop:
            raise OffloadError("an EdgeServer is started once; make another one")
        self._start_page()
        try:
            self._threads = self._start_threads()
        except BaseException:
            self._close_page()
            raise
        # At exit, daemon threads end with the process.
        weakref.finalize(self, self._threads.drop).atexit = False
        if self._folder is not None:
            self._folder.start(self._loop)
            weakref.finalize(self, self._folder.stop).atexit = False

    def add(self, bundle: Bundle | str | Path, *, replaces: str | None = None) -> Bundle:
        """Load a bundle, and serve it from then on; any thread may, while others are served.

        Parameters
        ----------
        bundle
            The bundle, or the path of its folder.
        replaces
            Id of a bundle that is dropped in the same step, as by :meth:`remove`, if it is served.

        Returns
        -------
        Bundle
            The bundle; if it was served before, nothing changes for its devices.

        Raises
        ------
        OffloadError
            If the server does not run, the bundle's requests are larger than
            ``limits.payload`` allows, or there are 64 bundles.
        BundleError, SignatureError, RuntimeUnavailableError
            As for the bundles that are given at the start. What is served does not change.
        """
        self._check_running()
        side = self._open(bundle)
        self._loop.put(side, replaces)
        return side.bundle

    def remove(self, bundle_id: str) -> None:
        """Serve a bundle no longer.

        Requests that were accepted are answered. Then its devices are refused, as those with any
        bundle that is not served.

        Raises
        ------
        OffloadError
            If the server does not run, or does not serve the bundle.
        """
        self._check_running()
        self._loop.drop(bundle_id)

    def serve_forever(self) -> None:
        """Serve until :meth:`stop` is called; starts the server if need be, and closes it.

        Raises
        ------
        OffloadError
            As :meth:`start`; or if the server broke down.
        """
        self._check_process()
        if self._threads is None:
            self.start()
        assert self._threads is not None
        try:
            while not self._stop and not self._threads.wait(0.2):
                pass
        finally:
            self.close()
        if (failure := self._threads.failure) is not None:
            raise OffloadError(f"the edge daemon broke down: {failure!r}") from failure

    def stop(self) -> None:
        """Ask :meth:`serve_forever` to return; nothing else, so signal handlers may call it."""
        self._stop = self._loop.metrics.stopping = True

    def reload(self) -> None:
        """Read again what may change while it serves: the list of authorised keys, and ``watch``.

        Both are read again by themselves when they change. Signal handlers may call this.
        """
        if self._threads is not None and self._threads.here:
            self._threads.reload()
            if self._folder is not None:
                self._folder.look()

    def close(self) -> None:
        """Answer what was accepted, say Goodbye to the devices and stop; may be called again.

        It takes no longer than ``limits.stop_seconds``; what has no answer by then gets none.
        """
        self._stop = True
        if self._threads is not None and self._threads.here:
            self._loop.metrics.stopping = True
            if self._folder is not None:
                self._folder.stop()
            self._threads.close()
            if self._folder is not None:
                self._folder.close()
            self._engine.close()
            self._close_page()

    def stats(self) -> StatsReply:
        """Return the counts of requests since the start.

        Raises
        ------
        OffloadError
            In a forked child, which has no counts.
        """
        self._check_process()
        return self._loop.stats()

    def _start_page(self) -> None:
        """Serve the page first: it says that the daemon is not ready yet."""
        if self._page_address is None:
            return
        from scissionlite.offloader.edge.page_server import PageServer  # asyncio takes long

        self._page = PageServer(
            self._loop.metrics, self._page_address, name=self._name, encrypted=self._encrypted
        )
        weakref.finalize(self, self._page.stop).atexit = False

    def _close_page(self) -> None:
        if self._page is not None:
            self._page.close()

    def _check_running(self) -> None:
        self._check_process()
        if self._threads is None or self._stop:
            raise OffloadError("an EdgeServer must be started before its bundles change")

    def _check_process(self) -> None:
        if self._threads is not None and not self._threads.here:
            raise OffloadError(
                f"the EdgeServer on {self.endpoint} runs in the process that forked this one: "
                "make another one here"
            )


def _check_exposure(binds: Endpoints, profile_models: Sequence[str], *, insecure: bool) -> None:
    """Raise a ValueError if a daemon without keys would be open to a network unasked."""
    exposed = [each for each in (binds.tensors, binds.control) if not is_local(each)]
    if exposed and not insecure:
        raise ValueError(
            f"{exposed[0]} can be reached from a network: give keys= (docs/security.md), bind to "
            "tcp://127.0.0.1:5555, or say insecure= to serve everybody who reaches it, unencrypted"
        )
    if exposed and profile_models:
        raise ValueError(
            "a profile runs the code that a model's name imports, so a daemon that a network can "
            "reach profiles only for authorised keys: give it keys="
        )
