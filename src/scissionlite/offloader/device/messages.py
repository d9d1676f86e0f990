"""Requests of a device, and the edge's replies to them, as tensor messages of one bundle."""

from __future__ import annotations

import functools
import math
import os
import random
import threading
import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from scissionlite.bundle import Bundle
from scissionlite.errors import OffloadError, TensorMismatchError
from scissionlite.offloader import wire
from scissionlite.offloader.bundle_tensors import Outputs, request_batch, result_tensors
from scissionlite.offloader.wire import control
from scissionlite.offloader.wire.endpoints import Endpoints

_FIRST_PAUSE, _LAST_PAUSE = 0.02, 0.5  # seconds before a request is sent to a busy edge again


class Reply(msgspec.Struct, frozen=True):
    """The edge's answer to a request: its tensor endpoint, the outputs, its times in seconds.

    ``hop`` has those behind the edge, with three tiers.
    """

    edge: str
    outputs: Outputs
    queue: float
    decode: float
    run: float
    hop: control.HopTimes | None = None


class Request(msgspec.Struct, eq=False):
    """A request under way; ``expires`` and ``send_at`` are monotonic times.

    ``refusals`` counts how often the edge was too busy for it. ``outcome`` is its end, once there.
    """

    id: int
    tensors: tuple[wire.TensorHeader, ...]
    payloads: Sequence[wire.Buffer]
    expires: float
    sent: bool = False
    send_at: float = 0.0
    refusals: int = 0
    outcome: Reply | OffloadError | None = None
    _tell: Callable[[Reply | OffloadError], object] | None = None
    _lock: threading.Lock = msgspec.field(default_factory=threading.Lock)

    def when_ended(self, tell: Callable[[Reply | OffloadError], object]) -> None:
        """Have a function called with the outcome, at once if there is one already."""
        with self._lock:
            self._tell = tell
            outcome = self.outcome
        if outcome is not None:
            tell(outcome)

    def end(self, outcome: Reply | OffloadError) -> None:
        """End it, and tell who waits; again, if an exception came amid that."""
        with self._lock:
            self.outcome = outcome
            tell = self._tell
        if tell is not None:
            tell(outcome)

    def postpone(self) -> None:
        """Send it again after a pause: the edge was busy. Pauses grow, and differ by chance."""
        self.sent = False
        pause = min(_FIRST_PAUSE * 2**self.refusals, _LAST_PAUSE)
        self.send_at = time.monotonic() + random.uniform(0.5, 1.0) * pause
        self.refusals += 1


class DeviceMessages:
    """The messages of one device and one bundle to one edge.

    Attributes
    ----------
    endpoints : Endpoints
        Of the daemon.
    device_id : bytes
        Of the connection, chosen at random.
    hello : control.Hello
        The first message of each connection.
    """

    def __init__(self, bundle: Bundle, name: str, endpoints: Endpoints) -> None:
        runtimes = [f"{role}={','.join(bundle.runtimes(role))}" for role in bundle.manifest.slices]
        self.hello = control.Hello(
            control.PROTOCOL_VERSION,
            bundle.id,
            name,
            {"machine": os.uname().machine, "slices": " ".join(runtimes)[:256]},
        )
        self.new_device_id()
        self.endpoints = endpoints
        self._manifest = bundle.manifest
        self._result_tensors = functools.lru_cache(
            functools.partial(result_tensors, self._manifest)
        )
        self._bundle_prefix = wire.bundle_prefix(bundle.id)

    def new_device_id(self) -> bytes:
        """Choose another device id: nobody can have taken it before the connection is made."""
        self.device_id = wire.new_device_id()
        return self.device_id

    def pack_request(self, request: Request, left: float) -> list[wire.Buffer]:
        """Make the frames of a request that has so many seconds left.

        Raises
        ------
        WireError
            If the format does not allow them.
        """
        header = wire.Header(
            wire.MessageKind.REQUEST,
            self.device_id,
            request.id,
            math.ceil(left * 1000),
            self._bundle_prefix,
            request.tensors,
        )
        return wire.pack(header, request.payloads)

    def read_reply(
        self, request: Request, result: control.Result, frames: list[memoryview]
    ) -> Reply:
        """Read the frames that follow a Result.

        Raises
        ------
        WireError
            If they are not a result for this request.
        """
        header, payloads = wire.unpack(frames, wire.MessageKind.RESULT)
        tensors = self._result_tensors(request_batch(self._manifest, request.tensors))
        expected = wire.Header(
            wire.MessageKind.RESULT, self.device_id, request.id, 0, self._bundle_prefix, tensors
        )
        if header != expected:
            raise TensorMismatchError(f"got {header}, expected {expected}")
        # Copies: a payload may lie anywhere in memory, and callers expect to own their answer.
        outputs = tuple(
            np.frombuffer(payload, dtype=np.float32).copy().reshape(tensor.shape)
            for payload, tensor in zip(payloads, tensors, strict=True)
        )
        times = (result.queue, result.decode, result.run, result.hop)
        return Reply(self.endpoints.tensors, outputs, *times)
