"""The cells of a whole run, the most important ones first: a run that is cut has those."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from bench.end_to_end import contenders
from bench.end_to_end.links import BUSY_UPLINK, LINKS
from bench.end_to_end.networks import NETWORKS

SLOWDOWN = 5.3
"""The device is so many times slower than the edge: the ratio of DenseNet-169's published times."""

PAPER_LINK = "58.8 Mbit/s, 27.4 ms"
FIRST_LINKS = ("5 Mbit/s, 60 ms", PAPER_LINK)
"""Measured for every network before any other link."""

CLAIM_NETWORK = "densenet169"
CLAIM_SLOWDOWNS = (10.0, 20.0, 40.0)
CLAIM_LINKS = ("200 Mbit/s, 5 ms", "5 Mbit/s, 60 ms", PAPER_LINK)
CLAIM_CONTENDERS = (
    *(contenders.LOCAL, contenders.LOCAL_ONNX, contenders.JPEG, contenders.JPEG_ONNX),
    *(contenders.SCISSION, contenders.PAPER, contenders.OURS, contenders.OURS_ONNX),
)
QUICK_CONTENDERS = (
    *(contenders.LOCAL, contenders.JPEG, contenders.OURS),
    *(contenders.PIPELINED, contenders.GRPC),
)
ONLY = {"claims": CLAIM_CONTENDERS, "quick": QUICK_CONTENDERS}
"""The contenders of a kind of cell; of other kinds, all."""

IMAGE_NETWORKS = ("efficientnet_lite0", "densenet169")
IMAGE_SLOWDOWN = 20.0
"""A device too slow for a network's own first layers: an image to the edge, or ours."""

POINTS = 7


class Task(NamedTuple):
    """A cell to measure."""

    kind: str
    network: str
    link: str
    slowdown: float


def quick_task() -> Task:
    """The only cell of a run that tests the harness."""
    return Task("quick", "tiny", "200 Mbit/s, 5 ms", SLOWDOWN)


def whole_run() -> Iterator[Task]:
    """All cells: the first links, what the paper claims, and the other links."""
    for network, link in itertools.product(NETWORKS, FIRST_LINKS):
        yield Task("contenders", network, link, SLOWDOWN)
    for link, slowdown in itertools.product(CLAIM_LINKS, CLAIM_SLOWDOWNS):
        yield Task("claims", CLAIM_NETWORK, link, slowdown)
    for network, link in itertools.product(IMAGE_NETWORKS, BUSY_UPLINK):
        yield Task("images", network, link, IMAGE_SLOWDOWN)
    yield Task("points", CLAIM_NETWORK, PAPER_LINK, SLOWDOWN)
    others = [link for link in ("1 Mbit/s, 100 ms", *LINKS) if link not in FIRST_LINKS]
    for link, network in itertools.product(dict.fromkeys(others), NETWORKS):
        yield Task("contenders", network, link, SLOWDOWN)
