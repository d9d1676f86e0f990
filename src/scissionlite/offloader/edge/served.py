"""The bundles that an edge daemon serves, and those that it serves no longer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scissionlite.bundle import Bundle
from scissionlite.errors import OffloadError
from scissionlite.offloader import wire
from scissionlite.offloader.edge.engines.engine import Computation
from scissionlite.offloader.edge.metrics import BundleMetrics, Metrics
from scissionlite.offloader.edge.schedule import Schedule
from scissionlite.offloader.wire.control import MAX_BUNDLES, PROTOCOL_VERSION, Hello, Refused

_LISTED = 3  # bundles named in a refusal


class Served:
    """A bundle that is served.

    Attributes
    ----------
    side
        Its computation.
    record
        The record of its requests.
    prefix
        How requests name it.
    dropped
        Whether it is served no longer, except for the requests that were accepted before.
    """

    def __init__(self, side: Computation, record: BundleMetrics) -> None:
        self.side = side
        self.record = record
        self.prefix = wire.bundle_prefix(side.bundle.id)
        self.dropped = False

    @property
    def bundle(self) -> Bundle:
        """The bundle."""
        return self.side.bundle


class ServedBundles:
    """The bundles that are served. Under the loop's lock; any thread may read :attr:`bundles`.

    A device has one bundle, that of its Hello. When it is dropped, the requests of the device that
    were accepted are answered by the slices that they were made for; then the device is refused.

    Parameters
    ----------
    sides
        The computations of the bundles that are served from the start.
    metrics
        Has a record of each.
    """

    def __init__(self, sides: Sequence[Computation], metrics: Metrics) -> None:
        self._metrics = metrics
        self._served: dict[bytes, Served] = {}
        self._leaving: list[Served] = []  # those whose devices are not all refused
        for side in sides:
            self.put(side)

    @property
    def bundles(self) -> list[Bundle]:
        """The bundles, in the order in which they were added."""
        return [side.bundle for side in self.sides]

    @property
    def sides(self) -> list[Computation]:
        """The computations of the bundles, in the same order."""
        return [each.side for each in list(self._served.values())]

    def put(self, side: Computation, replaces: str | None = None) -> None:
        """Serve a bundle, if it is not served already; in the same step, drop another one.

        Parameters
        ----------
        side
            Its computation.
        replaces
            Id of the bundle that is dropped; nothing happens if it is not served.

        Raises
        ------
        OffloadError
            If there are too many.
        """
        if replaces == side.bundle.id:
            replaces = None
        old = None if replaces is None else self._served.get(wire.bundle_prefix(replaces))
        prefix = wire.bundle_prefix(side.bundle.id)
        if prefix not in self._served:
            if len(self._served) - (old is not None) >= MAX_BUNDLES:
                raise OffloadError(
                    f"an edge daemon serves at most {MAX_BUNDLES} bundles: drop one first"
                )
            self._served[prefix] = Served(
                side, self._metrics.add_bundle(side.bundle, lambda: side.trouble)
            )
        else:
            side.close()
        if old is not None:
            self.drop(old.bundle.id)

    def drop(self, bundle_id: str) -> None:
        """Serve a bundle no longer.

        Raises
        ------
        OffloadError
            If it is not served.
        """
        dropped = self._served.pop(wire.bundle_prefix(bundle_id), None)
        if dropped is None:
            raise OffloadError(f"bundle {bundle_id[:12]} is not served: {self._describe()}")
        dropped.dropped = True
        dropped.record.trouble = lambda: ""  # the record does not keep what computes
        self._metrics.remove_bundle(dropped.record)
        self._leaving.append(dropped)

    def greeted(self, hello: Hello) -> Served | Refused:
        """Find the bundle that a Hello names, or the reason why it is refused."""
        if hello.protocol != PROTOCOL_VERSION:
            return Refused(
                "protocol", f"it speaks protocol {PROTOCOL_VERSION}, the device {hello.protocol}"
            )
        served = self._served.get(wire.bundle_prefix(hello.bundle))
        if served is not None and served.bundle.id == hello.bundle:
            return served
        reason = f"{self._describe()}, the device has {hello.bundle[:12]}"
        return Refused("bundle-mismatch", f"{reason}: copy the same bundle to both")

    def refusals(self, schedule: Schedule) -> Iterator[tuple[bytes, Refused]]:
        """Yield the devices whose bundle was dropped, once their requests are answered."""
        for dropped in list(self._leaving):
            devices = schedule.devices_of(dropped)
            unanswered = [device_id for device_id in devices if schedule.holds(device_id)]
            reason = f"bundle {dropped.bundle.id[:12]} is served no longer: {self._describe()}"
            for device_id in set(devices).difference(unanswered):
                yield device_id, Refused("bundle-mismatch", reason)
            if not unanswered:
                self._leaving.remove(dropped)
                dropped.side.close()

    def _describe(self) -> str:
        """Name some of the bundles that are served."""
        names = [f"{each.id[:12]} ({each.manifest.model[:100]})" for each in self.bundles]
        if not names:
            return "it serves no bundle, only probes and profiles"
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        plural = "s" if len(names) > 1 else ""
        return f"it serves bundle{plural} {', '.join(names[:_LISTED])}{more}"
