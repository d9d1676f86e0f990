"""Control messages between a device or an edge client and the edge.

They are msgpack maps, tagged by ``type``, decoded strictly into the structs below: an unknown
type, an unknown or missing field, or a value out of range is a
:class:`~scissionlite.errors.ControlMessageError`. docs/wire-format.md says when each is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Annotated, Literal

import msgspec

from scissionlite.errors import ControlMessageError, ControlSizeError
from scissionlite.runtimes import RuntimeName

PROTOCOL_VERSION = 3
MAX_CONTROL_BYTES = 1 << 16
MAX_CREDIT = 1024
MISSED_HEARTBEATS = 3
"""Heartbeat intervals of silence after which a peer counts as dead."""

Name = Annotated[str, msgspec.Meta(max_length=256)]
Text = Annotated[str, msgspec.Meta(max_length=4096)]
BundleId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
RequestId = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]
CreditCount = Annotated[int, msgspec.Meta(ge=1, le=MAX_CREDIT)]


class Hello(msgspec.Struct, tag="hello", frozen=True, forbid_unknown_fields=True):
    """Device to edge, first on every connection: the device's name and its bundle.

    ``runtime`` is information for the edge's log, such as machine and slice runtime.
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
    credit: CreditCount
    name: Name
    heartbeat: Annotated[float, msgspec.Meta(gt=0, le=3600)]


class Grant(msgspec.Struct, tag="credit", frozen=True, forbid_unknown_fields=True):
    """Edge to device: another credit from now on, because devices have come or gone."""

    credit: CreditCount


RefusalCode = Literal["bundle-mismatch", "protocol", "identity", "unauthorized", "full"]


class Refused(msgspec.Struct, tag="refused", frozen=True, forbid_unknown_fields=True):
    """Edge to device: the answer to a Hello that cannot be served.

    With the code "unauthorized", at any time: the sender's key is no longer authorised.
    """

    code: RefusalCode
    reason: Text


class Ping(msgspec.Struct, tag="ping", frozen=True, forbid_unknown_fields=True):
    """Device to edge: a heartbeat."""

    sequence: Count


class Pong(msgspec.Struct, tag="pong", frozen=True, forbid_unknown_fields=True):
    """Edge to device: the answer to the Ping of this sequence number."""

    sequence: Count


class LinkReport(msgspec.Struct, tag="link", frozen=True, forbid_unknown_fields=True):
    """Device to edge, with a heartbeat: the link as the device has measured it; not answered.

    ``rtt`` is the round trip of no bytes, in seconds, ``bandwidth`` the rate in bit/s.
    """

    rtt: Annotated[float, msgspec.Meta(ge=0, le=3600)]
    bandwidth: Annotated[float, msgspec.Meta(gt=0, le=1e15)]


class HopTimes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The times behind the edge, in seconds, where it sends on to a next edge.

    ``encode`` is the edge's packing, ``transfer`` the second link's; the others are the next
    edge's, as those of :class:`Result`.
    """

    encode: Seconds
    transfer: Seconds
    queue: Seconds
    decode: Seconds
    run: Seconds


class Result(
    msgspec.Struct, tag="result", frozen=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Edge to device: an answer; the frames of its tensor message follow.

    ``queue``, ``decode`` and ``run`` are the edge's times in seconds: waiting for its turn,
    decoding the payload, running the slice. ``hop`` is there only with three tiers.
    """

    request: RequestId
    queue: Seconds
    decode: Seconds
    run: Seconds
    hop: HopTimes | None = None


FailureCode = Literal[
    "malformed", "unknown-device", "bundle-mismatch", "expired", "busy", "execution", "forbidden"
]


class Failed(msgspec.Struct, tag="failed", frozen=True, forbid_unknown_fields=True):
    """Edge to device: a request will not be answered."""

    request: RequestId
    code: FailureCode
    message: Text


class Goodbye(msgspec.Struct, tag="goodbye", frozen=True, forbid_unknown_fields=True):
    """Either way: the sender closes its sockets."""


class Stats(msgspec.Struct, tag="stats", frozen=True, forbid_unknown_fields=True):
    """Any peer to edge: request its counters; needs no Hello."""


class StatsReply(msgspec.Struct, tag="stats-reply", frozen=True, forbid_unknown_fields=True):
    """The edge's counters since its start.

    Attributes
    ----------
    served : int
        Requests answered with a result.
    failed : int
        Requests whose decoding or slice raised.
    expired : int
        Requests that were not run because their deadline had passed.
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
"""Most bytes of a probe's payload, and of an answer to ProbeDownload."""

MAX_PROFILE_BYTES = 1 << 24
"""Most bytes of a profile's JSON."""


class ClientHello(msgspec.Struct, tag="visit", frozen=True, forbid_unknown_fields=True):
    """Edge client to edge, before a probe or a profile. Needs no bundle."""

    name: Name


class ClientWelcome(msgspec.Struct, tag="visit-ready", frozen=True, forbid_unknown_fields=True):
    """Edge to edge client: probes and profiles may be requested; ``name`` is the edge's."""

    name: Name


class ProbeDownload(msgspec.Struct, tag="probe-download", frozen=True, forbid_unknown_fields=True):
    """Edge client to edge: request ``nbytes`` bytes, to measure the way back."""

    request: RequestId
    nbytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_PROBE_BYTES)]


class ProbeReply(msgspec.Struct, tag="probe-reply", frozen=True, forbid_unknown_fields=True):
    """Edge to edge client: a probe of ``nbytes`` arrived, or that many bytes follow."""

    request: RequestId
    nbytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_PROBE_BYTES)]


ModelName = Annotated[str, msgspec.Meta(max_length=256, pattern=r"^[A-Za-z0-9_.:/+-]+\Z")]


class ProfileRequest(msgspec.Struct, tag="profile", frozen=True, forbid_unknown_fields=True):
    """Edge client to edge: request a profile of a network on the edge machine.

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
    """Edge to edge client: the profile follows, one zstd frame of ``nbytes`` bytes of JSON."""

    request: RequestId
    nbytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_PROFILE_BYTES)]


MAX_BUNDLES = 64
"""Bundles that a daemon serves at once."""


class ListBundles(msgspec.Struct, tag="bundles", frozen=True, forbid_unknown_fields=True):
    """Edge client to edge: request the list of the bundles served."""

    request: RequestId


class LoadBundle(msgspec.Struct, tag="bundle-load", frozen=True, forbid_unknown_fields=True):
    """Administrator to edge: serve the bundle of a folder of the edge's machine.

    ``replaces`` is the id of a bundle that is dropped in the same step.
    """

    request: RequestId
    path: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    replaces: BundleId | None


class DropBundle(msgspec.Struct, tag="bundle-drop", frozen=True, forbid_unknown_fields=True):
    """Administrator to edge: serve a bundle no longer."""

    request: RequestId
    bundle: BundleId


class ServedBundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bundle that is served: since when, in seconds since 1970, and its requests since then."""

    id: BundleId
    model: Name
    kind: Name
    since: Seconds
    requests: Count


class BundlesReply(msgspec.Struct, tag="bundles-reply", frozen=True, forbid_unknown_fields=True):
    """Edge to edge client: the bundles that are served now."""

    request: RequestId
    bundles: Annotated[list[ServedBundle], msgspec.Meta(max_length=MAX_BUNDLES)]


ToEdge = (
    Hello
    | Ping
    | LinkReport
    | Goodbye
    | Stats
    | ClientHello
    | ProbeDownload
    | ProfileRequest
    | ListBundles
    | LoadBundle
    | DropBundle
)
ToDevice = (
    Welcome
    | Grant
    | Refused
    | Pong
    | Result
    | Failed
    | Goodbye
    | StatsReply
    | ClientWelcome
    | ProbeReply
    | ProfileReply
    | BundlesReply
)

FOLLOWED = Result | ProbeReply | ProfileReply
"""The messages that further frames may follow."""

_encoder = msgspec.msgpack.Encoder()


# Made at the first message: each takes a millisecond, and a device needs only its own.
@cache
def _edge_decoder() -> msgspec.msgpack.Decoder[ToEdge]:
    return msgspec.msgpack.Decoder(ToEdge)


@cache
def _device_decoder() -> msgspec.msgpack.Decoder[ToDevice]:
    return msgspec.msgpack.Decoder(ToDevice)


def encode(message: ToEdge | ToDevice) -> bytes:
    """Encode a control message."""
    return _encoder.encode(message)


def decode_at_edge(frame: bytes | memoryview) -> ToEdge:
    """Decode a message that a device or an edge client sent.

    Raises
    ------
    ControlSizeError, ControlMessageError
        If it is over the cap, or not a message for an edge.
    """
    _check_size(frame)
    try:
        return _edge_decoder().decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ControlMessageError(str(error)) from error


def decode_at_device(frame: bytes | memoryview) -> ToDevice:
    """Decode a message that an edge sent; raises as :func:`decode_at_edge` does."""
    _check_size(frame)
    try:
        return _device_decoder().decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ControlMessageError(str(error)) from error


def decode_frames(frames: Sequence[memoryview]) -> tuple[ToDevice, list[memoryview]]:
    """Decode a message at the device, and return the frames that follow it.

    Raises
    ------
    ControlSizeError, ControlMessageError
        As :func:`decode_at_device`, or if frames follow a message that has none.
    """
    message = decode_at_device(frames[0])
    if len(frames) > 1 and not isinstance(message, FOLLOWED):
        raise ControlMessageError(f"{type(message).__name__} with {len(frames) - 1} further frames")
    return message, list(frames[1:])


def _check_size(frame: bytes | memoryview) -> None:
    if len(frame) > MAX_CONTROL_BYTES:
        raise ControlSizeError(f"control message of {len(frame)} bytes, over {MAX_CONTROL_BYTES}")
