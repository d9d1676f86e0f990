"""A third tier: device, edge and cloud, with two cuts, as Scission has it. No torch.

The costs of the two hops add up. So the codec of each hop is chosen by itself: the fastest of those
that keep the upload limit. Otherwise every pair of slicing points would have as many plans as there
are pairs of codecs.
"""

from __future__ import annotations

from collections.abc import Iterator

from scissionlite.scissiontl.constraints import Constraints
from scissionlite.scissiontl.cost import Machine, SecondHop, hop, offload_time, offloaded
from scissionlite.scissiontl.link import Link
from scissionlite.scissiontl.plans import Plan, SecondCut
from scissionlite.scissiontl.profile import TransferProfile

_Hop = tuple[TransferProfile, TransferProfile]


def three_tiers(
    machines: tuple[Machine, Machine, Machine],
    links: tuple[Link, Link],
    constraints: Constraints | None,
    power: float | None,
) -> Iterator[Plan]:
    """Plans for every pair of slicing points with a device, an edge and a cloud.

    Parameters
    ----------
    machines
        Device, edge and cloud.
    links
        From device to edge, and from edge to cloud.
    constraints
        Its upload limit excludes codecs of the first hop before they are chosen.
    power
        Watts of the device at work, or None.
    """
    source, middle, last = machines
    device, edge, cloud = (machine.profile for machine in machines)
    limit = constraints.max_upload if constraints is not None else None
    answer = device.answer_bytes
    first_hops = _best_hops(source, middle, links[0], answer, limit)
    second_hops = _best_hops(middle, last, links[1], answer, None)
    for first, (sent, received) in first_hops.items():
        device_time = device.preprocess + source.device_slice[first]
        for second, (relayed, arrived) in second_hops.items():
            if second <= first:
                continue
            yield Plan(
                kind="split",
                slicing_point=device.blocks[first].name,
                spec=sent.spec,
                second=SecondCut(device.blocks[second].name, relayed.spec),
                device=device.name,
                edge=edge.name,
                cloud=cloud.name,
                prediction=offloaded(
                    source,
                    first + 1,
                    links[0],
                    device_time=device_time,
                    encode_time=sent.encode,
                    sent_bytes=sent.nbytes,
                    decode_time=received.decode,
                    edge_time=middle.between(first + 1, second),
                    edge_blocks=second - first,
                    offload_time=offload_time(device, edge, sent.nbytes)
                    + offload_time(edge, cloud, relayed.nbytes),
                    power=power,
                    drop=source.drops.get((first, sent.spec)),
                    second=SecondHop(
                        relay_time=hop(relayed, arrived, links[1], answer),
                        relay_serial_time=relayed.nbytes * 8 / links[1].bandwidth,
                        relayed_bytes=relayed.nbytes,
                        cloud_time=last.edge_slice[second],
                        drop=source.drops.get((second, relayed.spec)),
                    ),
                ),
            )


def _best_hops(
    sender: Machine, receiver: Machine, link: Link, answer: int, limit: int | None
) -> dict[int, _Hop]:
    """The fastest codec of a hop at each slicing point, by the index of its block."""
    best: dict[int, tuple[float, _Hop]] = {}
    for sent in sender.profile.transfers:
        received = receiver.transfers.get((sent.block, sent.spec))
        if received is None or (limit is not None and sent.nbytes > limit):
            continue
        seconds = hop(sent, received, link, answer)
        if sent.block not in best or seconds < best[sent.block][0]:
            best[sent.block] = (seconds, (sent, received))
    return {block: pair for block, (_, pair) in sorted(best.items())}
