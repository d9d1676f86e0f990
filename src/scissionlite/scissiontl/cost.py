"""ScissionTL's cost model: from profiles and a link to the predicted cost of a plan. No torch.

The latency of a split is the sum of the device's blocks, packing, one round trip, the bytes at the
link's rate, unpacking, and the edge's blocks (arXiv 2105.02019, ScissionTL). Two parts are added to
the paper's sum: the bytes of the answer, and the time of the Offloader itself. Slices that were
measured are preferred to sums of blocks, since a runtime fuses across the borders of blocks.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
import numpy.typing as npt

from scissionlite.manifest import Precision
from scissionlite.scissiontl.link import Link
from scissionlite.scissiontl.profile import Profile, TransferProfile
from scissionlite.transfer_layer import TransferSpec


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """The predicted cost of a plan, in seconds and bytes.

    Attributes
    ----------
    device_time, encode_time, transfer_time, decode_time, edge_time
        Seconds: the device slice (with preprocessing), packing, the link with its round trip,
        unpacking, the edge slice.
    offload_time
        Seconds that the Offloader adds on both sides together.
    serial_time
        Part of ``transfer_time`` in which the link is busy with the request's bytes: the link's
        stage when requests are pipelined.
    relay_time, relay_serial_time, cloud_time
        With a third tier: seconds of the second hop (packing, link, unpacking), the part in which
        its link is busy, and the cloud slice.
    sent_bytes, relayed_bytes
        Payload of a request, over the first and the second link.
    device_blocks, edge_blocks
        Number of blocks on the device and on the edge; the rest runs in the cloud.
    device_layers
        Number of layers on the device.
    device_memory
        Bytes on the device: the weights of its blocks, and the feature maps that are alive at the
        same time at most.
    leakage
        Distance correlation between the input and what leaves the device (0 to 1): 0 where
        nothing does, 1 for an image, None where it was not measured.
    energy
        Joules on the device, where its power is known.
    drop
        The accuracy that it costs before training, 0 to 1; None where it was not measured. Where
        several parts of a plan lose something, it is the sum of theirs.
    """

    # More than 12 attributes: the parts of a latency, which users read in the plan's JSON.
    device_time: float
    encode_time: float = 0.0
    transfer_time: float = 0.0
    decode_time: float = 0.0
    edge_time: float = 0.0
    offload_time: float = 0.0
    serial_time: float = 0.0
    relay_time: float = 0.0
    relay_serial_time: float = 0.0
    cloud_time: float = 0.0
    sent_bytes: int = 0
    relayed_bytes: int = 0
    device_blocks: int
    edge_blocks: int = 0
    device_layers: int = 0
    device_memory: int = 0
    leakage: float | None = None
    energy: float | None = None
    drop: float | None = None

    @property
    def latency(self) -> float:
        """Seconds from frame to answer: the sum of all parts."""
        return (
            self.device_time
            + self.encode_time
            + self.transfer_time
            + self.decode_time
            + self.edge_time
            + self.offload_time
            + self.relay_time
            + self.cloud_time
        )

    @property
    def device_stage(self) -> float:
        """Seconds that the device works on a request."""
        return self.device_time + self.encode_time

    @property
    def bottleneck(self) -> float:
        """Seconds of the slowest stage, which bounds the rate of a pipeline of requests."""
        return max(
            self.device_stage,
            self.serial_time,
            self.decode_time + self.edge_time,
            self.relay_serial_time,
            self.cloud_time,
        )

    @property
    def throughput(self) -> float:
        """Requests per second when they are pipelined."""
        return 1 / self.bottleneck if self.bottleneck else float("inf")


class Machine:
    """A profile, made ready for predicting: slice times and sums by cut.

    Attributes
    ----------
    profile : Profile
    device_slice, edge_slice : list of float
        Seconds of the slice before and after a cut behind each block but the last.
    int8_device_slice : list of float, or None
        The same of device slices in int8; None where none was measured.
    layers : list of int
        Layers up to and including each block.
    device_memory, edge_memory : list of int
        Bytes of weights and of the feature maps alive at the same time, at most: of the blocks up
        to and including each block, and of the blocks after it.
    transfers : dict
        ``(block, spec)`` to the codec's profile.
    images : dict
        ``(format, quality)`` to the image's profile.
    encoders : dict
        Shallow encoder to its profile.
    drops : dict
        ``(block, spec)`` to the predicted accuracy drop; where it was not measured, between those
        of the measured neighbours.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.device_slice, self.edge_slice = slice_times(profile)
        self.int8_device_slice = int8_slice_times(profile)
        self._ends = _block_ends(profile)
        counts = [len(block.layers) for block in profile.blocks]
        self.layers: list[int] = np.cumsum(counts, dtype=int).tolist()
        weights = np.array([block.weight_bytes for block in profile.blocks], dtype=np.int64)
        peaks = np.array([block.peak_bytes for block in profile.blocks], dtype=np.int64)
        self.device_memory = _memory(weights, peaks)
        self.edge_memory = [*_memory(weights[::-1], peaks[::-1])[-2::-1], 0]
        self.transfers = {(t.block, t.spec): t for t in profile.transfers}
        self.encoders = {each.spec: each for each in profile.encoders}
        self.images = {(i.format, i.quality): i for i in profile.images}
        self.drops = codec_drops(profile)

    def between(self, first: int, last: int) -> float:
        """Seconds of the blocks from ``first`` to ``last``, both included, as a slice."""
        return self._ends[last] - (self._ends[first - 1] if first else 0.0)


def codec_drops(profile: Profile) -> dict[tuple[int, TransferSpec], float]:
    """The predicted accuracy drop of every codec; empty where none was measured.

    A drop that was measured is kept. Between two slicing points with measured ones, it is
    interpolated by the number of the block; before the first and behind the last, it is theirs.
    """
    measured: dict[TransferSpec, list[tuple[int, float]]] = {}
    for each in sorted(profile.transfers, key=lambda t: t.block):
        if each.drop is not None:
            measured.setdefault(each.spec, []).append((each.block, each.drop))
    found = {}
    for each in profile.transfers:
        if each.spec in measured:
            blocks, drops = zip(*measured[each.spec], strict=True)
            found[each.block, each.spec] = float(np.interp(each.block, blocks, drops))
    return found


def slice_times(profile: Profile) -> tuple[list[float], list[float]]:
    """Seconds of the device slice and of the edge slice for a cut behind each block but the last.

    A slice that was measured keeps its time. Between two of them, what the second takes more (or,
    on the edge, less) than the first is shared out by the latencies of the blocks between. The
    uncut network is the last device slice and the first edge slice; an empty slice takes no time.
    """
    whole = profile.network_latency
    device = _shared_out(profile, {s.block: s.device for s in profile.slices}, 0.0, whole)
    edge = _shared_out(profile, {s.block: s.edge for s in profile.slices}, whole, 0.0)
    return device[:-1], edge[:-1]


def _block_ends(profile: Profile) -> list[float]:
    """Seconds from the network's beginning to the end of each block, in parts as deployed.

    Between two measured cuts their part's time counts, shared out by the blocks' latencies; before
    the first it is the device slice's, behind the last the edge slice's. Where no parts were
    measured, the network's time is shared out.
    """
    measured = sorted(profile.slices, key=lambda s: s.block)
    parts = [each.part for each in measured[1:] if each.part is not None]
    if not measured or len(parts) < len(measured) - 1:
        return _shared_out(profile, {}, 0.0, profile.network_latency)
    times = np.cumsum([measured[0].device, *parts, measured[-1].edge]).tolist()
    known = {each.block: time for each, time in zip(measured, times, strict=False)}
    return _shared_out(profile, known, 0.0, times[-1])


def int8_slice_times(profile: Profile) -> list[float] | None:
    """Seconds of the device slice in int8, as :func:`slice_times`; None if none was measured."""
    whole = profile.network_latency_int8
    if whole is None:
        return None
    known = {s.block: s.device_int8 for s in profile.slices if s.device_int8 is not None}
    return _shared_out(profile, known, 0.0, whole)[:-1]


def _shared_out(
    profile: Profile, known: Mapping[int, float], first: float, last: float
) -> list[float]:
    """Seconds at the end of each block, where those at some ends are known.

    ``first`` is the value before all blocks, ``last`` behind them. Between two known values, their
    difference is shared out by the latencies of the blocks.
    """
    ends = np.cumsum([block.latency for block in profile.blocks])
    blocks = sorted(known)
    borders = [0.0, *(ends[block] for block in blocks), ends[-1]]
    values = [first, *(known[block] for block in blocks), last]
    found: list[float] = np.interp(ends, borders, values).tolist()
    return found


def _memory(weights: npt.NDArray[np.int64], peaks: npt.NDArray[np.int64]) -> list[int]:
    total: list[int] = (np.cumsum(weights) + np.maximum.accumulate(peaks)).tolist()
    return total


def hop(sender: TransferProfile, receiver: TransferProfile, link: Link, answer_bytes: int) -> float:
    """Seconds to pack on one machine, send, and unpack on the next."""
    return sender.encode + link.transfer_time(sender.nbytes, answer_bytes) + receiver.decode


def offload_time(sender: Profile, receiver: Profile, nbytes: int) -> float:
    """Seconds that the Offloader adds to a request, its two sides together."""
    return sum(p.offload.request + p.offload.byte * nbytes for p in (sender, receiver))


def device_memory(source: Machine, cut: int, precision: Precision) -> int:
    """Bytes of weights and feature maps of the first ``cut`` blocks."""
    whole = source.device_memory[cut - 1] if cut else 0
    return whole // 4 if precision == "int8" else whole


class SecondHop(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a prediction that a third tier adds; the fields are those of Prediction."""

    relay_time: float = 0.0
    relay_serial_time: float = 0.0
    relayed_bytes: int = 0
    cloud_time: float = 0.0
    drop: float | None = 0.0


_NO_SECOND_HOP = SecondHop()


def offloaded(
    source: Machine,
    cut: int,
    link: Link,
    *,
    device_time: float,
    encode_time: float,
    sent_bytes: int,
    decode_time: float,
    edge_time: float,
    edge_blocks: int,
    offload_time: float,
    power: float | None,
    drop: float | None,
    precision: Precision = "float32",
    second: SecondHop = _NO_SECOND_HOP,
    image_leakage: float | None = 1.0,
) -> Prediction:
    """Predict a plan that sends something over a link.

    Parameters
    ----------
    source
        The device.
    cut
        How many blocks run on it; 0 where the input is sent as an image or by a shallow encoder.
    link
        From the device to the edge.
    device_time, encode_time, sent_bytes, decode_time, edge_time, edge_blocks, offload_time
        As in :class:`Prediction`.
    power
        Watts of the device at work, or None.
    drop
        The accuracy that what crosses costs before training, or None.
    precision
        Numbers in which the device computes. In int8 its weights and feature maps take a quarter of
        the bytes.
    second
        The second hop of a plan with three tiers.
    image_leakage
        The leakage where no block runs on the device: that of the image as it is sent.
    """
    profile = source.profile
    return Prediction(
        device_time=device_time,
        encode_time=encode_time,
        transfer_time=link.transfer_time(sent_bytes, profile.answer_bytes),
        decode_time=decode_time,
        edge_time=edge_time,
        offload_time=offload_time,
        serial_time=sent_bytes * 8 / link.bandwidth,
        relay_time=second.relay_time,
        relay_serial_time=second.relay_serial_time,
        cloud_time=second.cloud_time,
        sent_bytes=sent_bytes,
        relayed_bytes=second.relayed_bytes,
        device_blocks=cut,
        edge_blocks=edge_blocks,
        device_layers=source.layers[cut - 1] if cut else 0,
        device_memory=device_memory(source, cut, precision),
        leakage=profile.blocks[cut - 1].leakage if cut else image_leakage,
        energy=None if power is None else power * (device_time + encode_time),
        drop=_sum(drop, profile.network_drop_int8 if precision == "int8" else 0.0, second.drop),
    )


def _sum(*drops: float | None) -> float | None:
    """The drop of several parts together: their sum, unless one of them is not known."""
    known = [drop for drop in drops if drop is not None]
    return min(1.0, sum(known)) if len(known) == len(drops) else None
