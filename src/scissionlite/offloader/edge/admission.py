"""Which devices take part in the work of an edge daemon, and every reason to refuse one."""

from __future__ import annotations

import time
from collections.abc import Callable

from msgspec import structs

from scissionlite.errors import ForeignDeviceIdError, UnauthorizedKeyError
from scissionlite.offloader import wire
from scissionlite.offloader.edge.access import Access
from scissionlite.offloader.edge.metrics import Metrics
from scissionlite.offloader.edge.schedule import Schedule
from scissionlite.offloader.edge.served import ServedBundles
from scissionlite.offloader.edge.services import EdgeServices
from scissionlite.offloader.wire.control import Goodbye, Grant, Hello, Refused, ToDevice, Welcome


class Admission:
    """Lets devices in and refuses them. Under the loop's lock.

    Parameters
    ----------
    access
        Who may connect.
    welcome
        The answer to a device's Hello.
    schedule
        The devices.
    bundles
        Of which each device has one.
    services
        The edge clients.
    metrics
        Counts those that are refused.
    send
        Sends a control message to a peer.
    """

    def __init__(
        self,
        access: Access,
        welcome: Welcome,
        schedule: Schedule,
        bundles: ServedBundles,
        services: EdgeServices,
        metrics: Metrics,
        send: Callable[[bytes, ToDevice], None],
    ) -> None:
        self.access = access
        self._welcome = welcome
        self._schedule = schedule
        self._bundles = bundles
        self._services = services
        self._metrics = metrics
        self._send = send

    def peer_of(self, device_id: bytes) -> str | None:
        """Who said Hello or ClientHello with a device id; None if nobody did."""
        peer = self._schedule.peer(device_id)
        return self._services.peer(device_id) if peer is None else peer

    def check_owner(self, peer: str, device_id: bytes) -> None:
        """Raise a ForeignDeviceIdError if the device id in a message is not its sender's."""
        if self.peer_of(device_id) not in (None, peer):
            raise ForeignDeviceIdError("the device id in the message belongs to another device")

    def greet(self, device_id: bytes, hello: Hello, peer: str) -> bool:
        """Answer a Hello; False if it was refused."""
        refused = None
        if not wire.is_device_id(device_id):
            refused = Refused("identity", "a device's identity is 16 bytes, the first not zero")
        elif isinstance(served := self._bundles.greeted(hello), Refused):
            refused = served
        elif not self._schedule.greet(device_id, served, hello.name, time.monotonic(), peer):
            refused = Refused("full", "it serves as many devices as its limits allow")
        if refused is not None:
            self._metrics.refuse(refused.code)
            self.access.log_refused(hello.name, peer, refused)
            self._send(device_id, refused)
            return False
        if not self._schedule.accepting:
            self._send(device_id, Goodbye())
            return True
        who = self.access.describe(peer)
        if (usage := self._schedule.usage(device_id)) is not None:
            usage.address = who
        self.access.log_connected(hello, peer)
        self._send(device_id, structs.replace(self._welcome, credit=self._schedule.credit))
        self.share_queue()
        return True

    def leave(self, device_id: bytes) -> None:
        """Drop a device that said Goodbye."""
        if (name := self._schedule.remove(device_id)) is not None:
            self.access.log.info("left", name, "device %r left", name, device=name)
            self.share_queue()

    def drop_silent(self) -> None:
        """Drop the devices that were silent for too long."""
        for name in self._schedule.remove_silent(time.monotonic()):
            self.access.log.info("silent", name, "device %r is silent", name, device=name)

    def drop_revoked(self) -> None:
        """Refuse the devices and edge clients whose keys are no longer authorised."""
        for device_id in (*self._schedule.devices, *self._services.clients):
            try:
                self.access.check(self.peer_of(device_id) or "")
            except UnauthorizedKeyError as error:
                self._metrics.refuse("unauthorized")
                self.access.log.warning(
                    "revoked",
                    str(error),
                    "a connected device is refused: %s",
                    error,
                    code="unauthorized",
                )
                self._send(device_id, Refused("unauthorized", str(error)))
                self._schedule.remove(device_id)
                self._services.remove(device_id)

    def drop_without_bundle(self) -> None:
        """Refuse the devices whose bundle was dropped, once their requests are answered."""
        for device_id, refused in self._bundles.refusals(self._schedule):
            peer, name = self.peer_of(device_id) or "", self._schedule.remove(device_id) or ""
            self._metrics.refuse(refused.code)
            self.access.log_refused(name, peer, refused)
            self._send(device_id, refused)

    def share_queue(self) -> None:
        """Tell the devices whose credit changes, because others have come or gone."""
        for device_id, credit in self._schedule.new_credits():
            self._send(device_id, Grant(credit))
