"""Limits of an edge daemon, and time-outs of an edge client: small objects with their defaults."""

from __future__ import annotations

import math
from typing import Annotated

import msgspec

from scissionlite.manifest import MAX_BATCH
from scissionlite.offloader.wire.control import MAX_CREDIT, MISSED_HEARTBEATS

MAX_CLIENTS = 64
"""Edge clients at once; the one longest silent makes room."""

_SHORTEST = 0.01  # seconds that an option takes; only tests want less


class EdgeLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much an edge daemon takes on, and how long it waits for its peers.

    Parameters
    ----------
    credit
        Most requests that one device may have unanswered, 1 to 1024; fewer where the devices
        share the queue.
    queue
        Requests of all devices together that may wait for their turn. The devices connected share
        it, with one request each at least; what is over it is answered "busy".
    batch
        Most samples in one run of the edge slice: requests of all devices that wait are run
        together, as many as pay, which is measured at the start. 1 runs each alone.
    batch_delay
        Longest time in seconds, at most 1, that a request waits for others to be run with. With 0
        only those are run together that wait anyway, because the workers are busy.
    devices
        Devices that may be connected at once; more are refused.
    heartbeat
        Interval in seconds at which devices send heartbeats, at most 3600. Device and edge take
        each other for dead after three intervals of silence.
    client_silence
        Seconds of silence after which a client that probes or profiles is dropped.
    profile_seconds
        Longest time in seconds that a profile may take.
    memory
        Most memory in MiB for messages that have not ended, and again for answers that devices
        have not read. A connection that holds most of it is ended.
    payload
        Largest payload in MiB, at most 256, of a bundle that may be loaded while the daemon runs.
        A larger one can be served from the start.
    stop_seconds
        Longest time in seconds for the answers to what was accepted, when the daemon is stopped.

    Raises
    ------
    ValueError
        If a value is out of range.

    Examples
    --------
    >>> EdgeLimits(credit=2).device_silence
    3.0
    """

    credit: Annotated[int, msgspec.Meta(ge=1, le=MAX_CREDIT)] = 8
    queue: Annotated[int, msgspec.Meta(ge=1)] = 64
    batch: Annotated[int, msgspec.Meta(ge=1, le=MAX_BATCH)] = 16
    batch_delay: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    devices: Annotated[int, msgspec.Meta(ge=1)] = 256
    heartbeat: Annotated[float, msgspec.Meta(ge=_SHORTEST, le=3600)] = 1.0
    client_silence: Annotated[float, msgspec.Meta(ge=_SHORTEST)] = 30.0
    profile_seconds: Annotated[float, msgspec.Meta(ge=_SHORTEST)] = 1800.0
    memory: Annotated[int, msgspec.Meta(ge=16, le=1 << 20)] = 256
    payload: Annotated[int, msgspec.Meta(ge=1, le=256)] = 16
    stop_seconds: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 5.0

    def __post_init__(self) -> None:
        if not 1 <= self.credit <= MAX_CREDIT or self.queue < 1 or not 0 < self.heartbeat <= 3600:
            raise ValueError(
                f"credit must be 1 to {MAX_CREDIT}, queue at least 1, heartbeat above 0 and at "
                f"most 3600 seconds; got {self.credit}, {self.queue}, {self.heartbeat}"
            )
        if not 1 <= self.batch <= MAX_BATCH or not 0 <= self.batch_delay <= 1:
            raise ValueError(
                f"batch must be 1 to {MAX_BATCH}, and batch_delay 0 to 1 second; "
                f"got {self.batch} and {self.batch_delay}"
            )
        if self.devices < 1:
            raise ValueError(f"devices must be at least 1, got {self.devices}")
        if not self.client_silence > 0 or not self.profile_seconds > 0:
            raise ValueError(
                "client_silence and profile_seconds must be above 0 seconds, "
                f"got {self.client_silence} and {self.profile_seconds}"
            )
        if not 16 <= self.memory <= 1 << 20:
            raise ValueError(f"memory must be 16 to {1 << 20} MiB, got {self.memory}")
        if not 1 <= self.payload <= 256:
            raise ValueError(f"payload must be 1 to 256 MiB, got {self.payload}")
        if not 0 <= self.stop_seconds <= 3600:
            raise ValueError(f"stop_seconds must be 0 to 3600, got {self.stop_seconds}")

    @property
    def device_silence(self) -> float:
        """Seconds of silence after which a device is dropped."""
        return MISSED_HEARTBEATS * self.heartbeat


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """How long a client that probes or profiles waits for an edge daemon.

    Parameters
    ----------
    answer
        Seconds to wait for an answer; while a profile is made, for any sign of life.
    profile
        Seconds to wait for a profile.

    Raises
    ------
    ValueError
        If one is not above 0 and finite.
    """

    answer: float = 10.0
    profile: float = 3600.0

    def __post_init__(self) -> None:
        if not 0 < self.answer < math.inf or not 0 < self.profile < math.inf:
            raise ValueError(
                f"time-outs must be above 0 seconds, got {self.answer} and {self.profile}"
            )
