"""A device's edges, in the order of preference, and the choice of one for each request."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from scissionlite.bundle import Bundle
from scissionlite.errors import EdgeUnavailableError
from scissionlite.offloader.device.alternatives import Alternatives
from scissionlite.offloader.device.connection import EdgeConnection
from scissionlite.offloader.device.credit import Credit
from scissionlite.offloader.device.futures import Condition
from scissionlite.offloader.device.link_meter import LinkEstimate
from scissionlite.offloader.link_keys import DeviceKeys
from scissionlite.offloader.wire.endpoints import Endpoints


class _Changes(Condition):
    """A condition that also tells those who cannot wait in a thread."""

    def __init__(self) -> None:
        super().__init__()
        self.watchers: list[Callable[[], object]] = []

    def notify_all(self) -> None:
        """Wake up all threads that wait, and call all watchers."""
        super().notify_all()
        for watcher in list(self.watchers):
            watcher()


class _Edge(NamedTuple):
    endpoints: Endpoints
    credit: Credit
    connection: EdgeConnection


class Edges:
    """Connections to one or several edges; all are made at first use, and kept.

    A request goes to the first edge that is there. One that was lost must stay for a while before
    it is preferred again to one that stayed (:attr:`.credit.Credit.preferred_from`).

    Parameters
    ----------
    links
        Endpoints of each edge, and the keys for it, the preferred edge first.
    bundle
        Whose requests are sent.
    name
        The device's name in the daemons' logs.
    fallback
        Whether somebody else answers what no edge does.
    """

    def __init__(
        self,
        links: Sequence[tuple[Endpoints, DeviceKeys | None]],
        bundle: Bundle,
        name: str,
        *,
        fallback: bool,
    ) -> None:
        self._changed = _Changes()  # common: a caller waits for any of the edges
        self._lock = self._changed.lock
        alternatives = Alternatives(fallback=fallback)
        self._edges: list[_Edge] = []
        for endpoints, keys in links:
            credit = Credit(endpoints, self._changed)
            connection = EdgeConnection(endpoints, bundle, name, keys, credit, alternatives)
            self._edges.append(_Edge(endpoints, credit, connection))
            alternatives.edges.append(connection)

    @property
    def endpoint(self) -> str:
        """The tensor endpoints, for messages."""
        return ", ".join(each.endpoints.tensors for each in self._edges)

    @property
    def started(self) -> bool:
        """Whether there are threads and sockets."""
        return any(each.connection.started for each in self._edges)

    @property
    def trouble(self) -> str:
        """Why none of the edges can be asked now; empty if one can."""
        if self._choose() is not None:
            return ""
        return "; ".join(f"{each.endpoints.tensors}: {each.credit.trouble}" for each in self._edges)

    def start(self) -> None:
        """Make the connections now, and do not wait for them."""
        for each in self._edges:
            each.connection.start()

    @property
    def link(self) -> LinkEstimate | None:
        """The link to the edge that the next request goes to; None if it was not measured."""
        chosen = self._choose() or self._edges[0]
        return chosen.connection.meter.estimate()

    def measure_until(self, until: float) -> None:
        """Have the link of the next request measured on purpose until a monotonic time."""
        chosen = self._choose() or self._edges[0]
        chosen.connection.meter.probes.wanted_until = until

    def reserve(self, connect_by: float, expires: float) -> EdgeConnection:
        """Wait for an edge and for credit there for one request; return its connection.

        Parameters and errors as :meth:`.credit.Credit.reserve`.
        """
        with self._lock:
            while isinstance(found := self.try_reserve(connect_by, expires), float):
                self._changed.wait(found)
            return found

    def try_reserve(self, connect_by: float, expires: float) -> EdgeConnection | float:
        """Reserve credit if there is some at once; return the connection, or the seconds to wait.

        Parameters and errors as :meth:`.credit.Credit.reserve`.
        """
        self.start()
        with self._lock:
            chosen = self._choose()
            if chosen is not None and chosen.credit.take():
                return chosen.connection
            if chosen is None and len(self._edges) > 1:
                return self._time_to_connect(connect_by)
            return (chosen or self._edges[0]).credit.time_to_wait(connect_by, expires)

    @contextmanager
    def watch(self, watcher: Callable[[], object]) -> Iterator[None]:
        """Have a function called, in any thread, when :meth:`try_reserve` may be tried again."""
        self._changed.watchers.append(watcher)
        try:
            yield
        finally:
            self._changed.watchers.remove(watcher)

    def close(self) -> None:
        """Say Goodbye, fail the unanswered requests, and stop; may be called again."""
        self.stop()
        for each in self._edges:
            each.connection.close()

    def stop(self) -> None:
        """Close, without waiting; takes no lock of callers, so finalizers may call it."""
        for each in self._edges:
            each.connection.stop()

    def _choose(self) -> _Edge | None:
        """The edge for a request now; None if none is there."""
        if len(self._edges) == 1:
            return self._edges[0] if self._edges[0].credit.connected else None
        there = [each for each in self._edges if each.credit.connected]
        now = time.monotonic()
        steady = [each for each in there if now >= each.credit.preferred_from]
        return next(iter(steady or there), None)

    def _time_to_connect(self, connect_by: float) -> float:
        """Seconds to wait for any edge; raises an error if the time is over, or all refuse."""
        refusals = [each.credit.refusal for each in self._edges]
        if (closed := self._edges[0].credit.closed) is not None:
            raise closed
        if refusals[0] is not None and None not in refusals:
            raise refusals[0]
        if (left := connect_by - time.monotonic()) > 0:
            return left
        troubles = [
            f"{each.endpoints.tensors} (control {each.endpoints.control}): {each.credit.trouble}"
            for each in self._edges
        ]
        raise EdgeUnavailableError(
            f"none of the edge daemons answers: {'; '.join(troubles)}. Check that `scissionlite "
            "serve` runs there and that both ports are open"
        )


def links_to(
    connect: str | Sequence[str],
    control: str | Sequence[str | None] | None,
    keys: DeviceKeys | Sequence[DeviceKeys | None] | None,
) -> list[tuple[Endpoints, DeviceKeys | None]]:
    """Pair each edge's endpoints with its keys."""
    tensors = [connect] if isinstance(connect, str) else list(connect)
    if not tensors or len(set(tensors)) < len(tensors):
        raise ValueError(f"connect needs one or more different endpoints, got {connect!r}")
    controls = [control] if control is None or isinstance(control, str) else list(control)
    controls = controls * len(tensors) if control is None else controls
    every_key = list(keys) if isinstance(keys, Sequence) else [keys] * len(tensors)
    if not len(tensors) == len(controls) == len(every_key):
        raise ValueError(
            f"control and keys need one value for each of the {len(tensors)} edges in connect, "
            f"got {len(controls)} and {len(every_key)}"
        )
    endpoints = map(Endpoints.to_connect, tensors, controls)
    return list(zip(endpoints, every_key, strict=True))
