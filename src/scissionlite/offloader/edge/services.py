"""The edge daemon's services for edge clients: probes, profiles of networks, its bundles.

An edge client says ClientHello on the control socket, which needs no bundle. Probes are answered
on the I/O thread, as fast as it reads requests. A profile is made in a process of its own, one at
a time (:mod:`.profiling`).
"""

from __future__ import annotations

import fnmatch
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import zstandard

from scissionlite.errors import OffloadError
from scissionlite.offloader import wire
from scissionlite.offloader.edge.administration import Administration
from scissionlite.offloader.edge.log_limit import LogLimit
from scissionlite.offloader.edge.profiling import Profiling
from scissionlite.offloader.limits import MAX_CLIENTS, EdgeLimits
from scissionlite.offloader.wire.control import (
    MAX_PROBE_BYTES,
    ClientHello,
    ClientWelcome,
    DropBundle,
    Failed,
    FailureCode,
    Goodbye,
    ListBundles,
    LoadBundle,
    ProbeDownload,
    ProbeReply,
    ProfileReply,
    ProfileRequest,
    Refused,
    ToDevice,
)
from scissionlite.offloader.wire.probe import check_probe

logger = logging.getLogger(__name__)

Request: TypeAlias = (
    ClientHello | ProbeDownload | ProfileRequest | ListBundles | LoadBundle | DropBundle
)
Send = Callable[[bytes, ToDevice, Sequence[wire.Buffer]], None]


class _Client(NamedTuple):
    """An edge client: who it is, and the monotonic time of its last sign of life."""

    peer: str
    heard: float


class EdgeServices:
    """The daemon's edge clients and their requests. Of the I/O thread.

    Parameters
    ----------
    name
        The daemon's name.
    send
        Sends a control message, and frames that follow it, to a peer.
    profile_models
        Globs of the model names that may be profiled; none allows none.
    limits
        Time of a profile, and silence after which a client is dropped.
    administration
        Answers what clients ask about bundles.
    """

    def __init__(
        self,
        name: str,
        send: Send,
        profile_models: Sequence[str],
        limits: EdgeLimits,
        administration: Administration,
    ) -> None:
        self._name = name
        self._send = send
        self._profile_models = tuple(profile_models)
        self._limits = limits
        self._administration = administration
        self._clients: dict[bytes, _Client] = {}  # the one heard last at the end
        self._noise = b""
        self._log = LogLimit(logger)
        self._profiling: Profiling | None = None

    @property
    def clients(self) -> list[bytes]:
        """Identities of the edge clients."""
        return list(self._clients)

    def hear(self, client: bytes) -> bool:
        """Record a sign of life; False if the peer is not an edge client."""
        if client not in self._clients:
            return False
        self._clients[client] = _Client(self._clients.pop(client).peer, time.monotonic())
        return True

    def remove(self, client: bytes) -> None:
        """Drop a client, and the profile that it waits for."""
        self._clients.pop(client, None)
        if self._profiling is not None and self._profiling.client == client:
            self._end_profiling()

    def peer(self, client: bytes) -> str | None:
        """Who said ClientHello with an identity (:attr:`.access.Access.sender`); None if nobody."""
        found = self._clients.get(client)
        return None if found is None else found.peer

    @property
    def loading(self) -> bool:
        """Whether a bundle is being loaded."""
        return self._administration.loading

    def take(self, sender: bytes, message: Request, peer: str = "") -> None:
        """Answer a control message of a peer (:attr:`.access.Access.sender`)."""
        if isinstance(message, ClientHello):
            self._greet(sender, message, peer)
        elif not self.hear(sender):
            self._fail(sender, message.request, "unknown-device", "say Visit first")
        elif isinstance(message, ProbeDownload):
            # Made once, and not before it is needed.
            self._noise = self._noise or os.urandom(MAX_PROBE_BYTES)
            payload = memoryview(self._noise)[: message.nbytes]
            self._send(sender, ProbeReply(message.request, message.nbytes), [payload])
        elif isinstance(message, ProfileRequest):
            self._start_profiling(sender, message)
        elif (answer := self._administration.answer(sender, message, peer)) is not None:
            self._send(sender, answer, ())

    def take_probe(self, header: wire.Header, *, from_device: bool) -> None:
        """Answer a probe that arrived at the tensor port, from a device or an edge client.

        Raises
        ------
        WireError
            If it is not a probe.
        """
        nbytes = check_probe(header)
        if from_device or self.hear(header.device_id):
            self._send(header.device_id, ProbeReply(header.request_id, nbytes), ())
        else:
            reason = "say Hello or Visit first"
            self._fail(header.device_id, header.request_id, "unknown-device", reason)

    def step(self) -> None:
        """Answer a profile that is done, and drop silent clients."""
        for client, answer in self._administration.step():
            self._send(client, answer, ())
        now = time.monotonic()
        for client, found in list(self._clients.items()):
            if now - found.heard > self._limits.client_silence:
                self.remove(client)
        if (work := self._profiling) is None:
            return
        if work.done:
            self._answer(work)
            self._end_profiling()
        elif work.overdue:
            seconds = f"{self._limits.profile_seconds:g}"
            self._fail(
                work.client,
                work.request.request,
                "execution",
                f"the profile took longer than {seconds} s",
            )
            self._end_profiling()

    def close(self) -> None:
        """End the profile at work, and say Goodbye to the clients."""
        self._end_profiling()
        for client in self._clients:
            self._send(client, Goodbye(), ())
        self._clients.clear()

    def _greet(self, sender: bytes, hello: ClientHello, peer: str) -> None:
        if not wire.is_device_id(sender):
            reason = "an edge client's identity is 16 bytes, the first not zero"
            self._send(sender, Refused("identity", reason), ())
            return
        if sender not in self._clients and len(self._clients) >= MAX_CLIENTS:
            self.remove(next(iter(self._clients)))
        self._clients.pop(sender, None)  # so that it goes to the end
        self._clients[sender] = _Client(peer, time.monotonic())
        text = "edge client %r connected"
        self._log.info("visit", peer + hello.name, text, hello.name, client=hello.name)
        self._send(sender, ClientWelcome(self._name), ())

    def _start_profiling(self, client: bytes, request: ProfileRequest) -> None:
        model = request.model
        if not any(fnmatch.fnmatchcase(model, glob) for glob in self._profile_models):
            allowed = ", ".join(self._profile_models) or "none"
            self._fail(
                client,
                request.request,
                "forbidden",
                f"it profiles no {model!r}: start it with --profile-models (now {allowed})",
            )
            return
        if self._profiling is not None:
            self._fail(client, request.request, "busy", "it is profiling for somebody else")
            return
        try:
            self._profiling = Profiling(client, request, self._limits.profile_seconds)
        except OSError as error:
            self._fail(client, request.request, "execution", f"no profiler: {error}")
            return
        logger.info("profiling %s", model, extra={"model": model})

    def _answer(self, work: Profiling) -> None:
        try:
            profile = work.profile()
        except (OffloadError, OSError) as error:
            self._fail(work.client, work.request.request, "execution", str(error))
            return
        reply = ProfileReply(work.request.request, len(profile))
        self._send(work.client, reply, [zstandard.compress(profile)])

    def _end_profiling(self) -> None:
        if self._profiling is not None:
            self._profiling.end()
            self._profiling = None

    def _fail(self, client: bytes, request: int, code: FailureCode, message: str) -> None:
        self._send(client, Failed(request, code, message[:1000]), ())
