"""Control messages: what device and edge say to each other besides tensors.

They are msgpack maps, tagged by ``type``, decoded strictly into the structs below: an unknown
type, an unknown or missing field, or a value out of range is a
:class:`~scissionlite.errors.ControlMessageError`. docs/wire-format.md says when each is sent.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

from scissionlite.errors import ControlMessageError, ControlSizeError
from scissionlite.runtimes import RuntimeName

PROTOCOL_VERSION = 2
MAX_CONTROL_BYTES = 1 << 16
MAX_CREDIT = 1024
MISSED_HEARTBEATS = 3
"""Heartbeat intervals of silence after which a peer is taken for dead."""

Name = Annotated[str, msgspec.Meta(max_length=256)]
Text = Annotated[str, msgspec.Meta(max_length=4096)]
BundleId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
RequestId = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class Hello(msgspec.Struct, tag="hello", frozen=True, forbid_unknown_fields=True):
    """Device to edge, first on every connection: who asks, for which bundle.

    ``runtime`` is free information such as machine and slice runtime, for the edge's log.
    """

    protocol: int
    bundle: BundleId
    name: Name
    runtime: Annotated[dict[Name, Name], msgspec.Meta(max_length=32)]


class Welcome(msgspec.Struct, tag="welcome", frozen=True, forbid_unknown_fields=True):
    """Edge to device: requests may be sent.

    ``session`` is new at every start of the edge, ``credit`` the number of requests that may be
    unanswered at once, ``heartbeat`` the interval in seconds at which the device sends Ping.
    """

    session: RequestId
    credit: Annotated[int, msgspec.Meta(ge=1, le=MAX_CREDIT)]
    name: Name
    heartbeat: Annotated[float, msgspec.Meta(gt=0, le=3600)]


RefusalCode = Literal["bundle-mismatch", "protocol", "identity"]


class Refused(msgspec.Struct, tag="refused", frozen=True, forbid_unknown_fields=True):
    """Edge to device: the answer to a Hello that cannot be served."""

    code: RefusalCode
    reason: Text


class Ping(msgspec.Struct, tag="ping", frozen=True, forbid_unknown_fields=True):
    """Device to edge: a heartbeat."""

    sequence: Count


class Pong(msgspec.Struct, tag="pong", frozen=True, forbid_unknown_fields=True):
    """Edge to device: the answer to the Ping of this sequence number."""

    sequence: Count


class Result(msgspec.Struct, tag="result", frozen=True, forbid_unknown_fields=True):
    """Edge to device: an answer; the frames of its tensor message follow.

    ``queue``, ``decode`` and ``run`` are the edge's times in seconds: waiting for its turn,
    decoding the payload, running the slice.
    """

    request: RequestId
    queue: Seconds
    decode: Seconds
    run: Seconds


FailureCode = Literal[
    "malformed", "unknown-device", "bundle-mismatch", "expired", "busy", "execution", "forbidden"
]


class Failed(msgspec.Struct, tag="failed", frozen=True, forbid_unknown_fields=True):
    """Edge to device: a request will not be answered."""

    request: RequestId
    code: FailureCode
    message: Text


class Goodbye(msgspec.Struct, tag="goodbye", frozen=True, forbid_unknown_fields=True):
    """Either way: the sender closes in good order."""


class Stats(msgspec.Struct, tag="stats", frozen=True, forbid_unknown_fields=True):
    """Anybody to edge: asks for its counters; needs no Hello."""


class StatsReply(msgspec.Struct, tag="stats-reply", frozen=True, forbid_unknown_fields=True):
    """The edge's counters since its start.

    Attributes
    ----------
    served : int
        Requests answered with a result.
    failed : int
        Requests whose decoding or slice raised.
    expired : int
        Requests dropped unworked because their deadline had passed.
    busy : int
        Requests turned away because a queue was full.
    rejected : dict of str to int
        Messages that break the wire format or the protocol, by class of error.
    devices : int
        Devices connected now.
    uptime : float
        Seconds since the start.
    """

    served: Count
    failed: Count
    expired: Count
    busy: Count
    rejected: dict[Name, Count]
    devices: Count
    uptime: Seconds


MAX_PROBE_BYTES = 1 << 20
"""Most bytes of a probe's payload, and of what a probe may ask for."""

MAX_PROFILE_BYTES = 1 << 24
"""Most bytes of a profile's JSON."""


class Visit(msgspec.Struct, tag="visit", frozen=True, forbid_unknown_fields=True):
    """Anybody to edge, before a probe or a profile: who asks. Needs no bundle and no Hello."""

    name: Name


class VisitReady(msgspec.Struct, tag="visit-ready", frozen=True, forbid_unknown_fields=True):
    """Edge to visitor: probes and profiles may be asked for; ``name`` is the edge's."""

    name: Name


class ProbeDownload(msgspec.Struct, tag="probe-download", frozen=True, forbid_unknown_fields=True):
    """Visitor to edge: asks for ``nbytes`` bytes, to measure the way back."""

    request: RequestId
    nbytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_PROBE_BYTES)]


class ProbeReply(msgspec.Struct, tag="probe-reply", frozen=True, forbid_unknown_fields=True):
    """Edge to visitor: a probe came with a payload of ``nbytes``, or that many bytes follow."""

    request: RequestId
    nbytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_PROBE_BYTES)]


ModelName = Annotated[str, msgspec.Meta(max_length=256, pattern=r"^[A-Za-z0-9_.:/+-]+\Z")]


class ProfileRequest(msgspec.Struct, tag="profile", frozen=True, forbid_unknown_fields=True):
    """Visitor to edge: asks for a profile of a network on the edge machine.

    The fields are the options of ``scissionlite profile``; None leaves its default.
    """

    request: RequestId
    model: ModelName
    size: Annotated[int, msgspec.Meta(ge=8, le=4096)]
    num_classes: Annotated[int, msgspec.Meta(ge=2, le=1 << 20)] | None
    runtime: RuntimeName
    threads: Annotated[int, msgspec.Meta(ge=1, le=1024)] | None
    repetitions: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    max_tensors: Annotated[int, msgspec.Meta(ge=1, le=16)]


class ProfileReply(msgspec.Struct, tag="profile-reply", frozen=True, forbid_unknown_fields=True):
    """Edge to visitor: the profile follows, one zstd frame of ``nbytes`` bytes of JSON."""

    request: RequestId
    nbytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_PROFILE_BYTES)]


ToEdge = Hello | Ping | Goodbye | Stats | Visit | ProbeDownload | ProfileRequest
ToDevice = (
    Welcome
    | Refused
    | Pong
    | Result
    | Failed
    | Goodbye
    | StatsReply
    | VisitReady
    | ProbeReply
    | ProfileReply
)

_encoder = msgspec.msgpack.Encoder()
_to_edge: msgspec.msgpack.Decoder[ToEdge] = msgspec.msgpack.Decoder(ToEdge)
_to_device: msgspec.msgpack.Decoder[ToDevice] = msgspec.msgpack.Decoder(ToDevice)


def encode(message: ToEdge | ToDevice) -> bytes:
    """Encode a control message."""
    return _encoder.encode(message)


def decode_at_edge(frame: bytes | memoryview) -> ToEdge:
    """Decode what a device sent.

    Raises
    ------
    ControlSizeError, ControlMessageError
        If it is over the cap, or no message that an edge takes.
    """
    _check_size(frame)
    try:
        return _to_edge.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ControlMessageError(str(error)) from error


def decode_at_device(frame: bytes | memoryview) -> ToDevice:
    """Decode what an edge sent; raises as :func:`decode_at_edge` does."""
    _check_size(frame)
    try:
        return _to_device.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ControlMessageError(str(error)) from error


def control_endpoint(tensors: str) -> str:
    """Derive the control endpoint that belongs to a tensor endpoint unless another is given.

    ``tcp://host:port`` gives the next port, a wildcard port (``*`` or ``0``) a wildcard, and
    ``ipc://path`` gives ``ipc://path.control``.

    Raises
    ------
    ValueError
        If the endpoint is neither.
    """
    if match := re.fullmatch(r"(tcp://.+):(\d+|\*)", tensors):
        host, port = match.groups()
        if port in ("*", "0"):
            return f"{host}:*"
        if int(port) < 65535:
            return f"{host}:{int(port) + 1}"
    elif tensors.startswith("ipc://") and len(tensors) > len("ipc://"):
        return f"{tensors}.control"
    raise ValueError(f"not an endpoint such as tcp://host:5555 or ipc://path: {tensors!r}")


def check_endpoint(endpoint: str) -> str:
    """Return an endpoint that can be connected to: ``tcp://host:port`` or ``ipc://path``.

    Raises
    ------
    ValueError
        If it is not one.
    """
    match = re.fullmatch(r"tcp://.+:(\d+)", endpoint)
    if endpoint.startswith("ipc://") or (match and 0 < int(match[1]) < 65536):
        return endpoint
    raise ValueError(f"not an endpoint such as tcp://host:5555 or ipc://path: {endpoint!r}")


def _check_size(frame: bytes | memoryview) -> None:
    if len(frame) > MAX_CONTROL_BYTES:
        raise ControlSizeError(f"control message of {len(frame)} bytes, over {MAX_CONTROL_BYTES}")
