"""The contenders: what each would do over a link, configured as well as an expert would.

Each split takes its own best slicing point, each image format goes to the uncut network on the
edge. Ours is the fastest of our ways, split or shallow encoder, that keeps the accuracy within half
a point: trained and scored (:mod:`.trained`), or as :func:`.networks.keeps_accuracy` says. The
planner predicts all but WebP and what ONNX Runtime runs in float32: a profile holds one runtime,
and exporting each block for the other takes a second each. So running locally, JPEG-75 (and the
lowest quality that keeps the accuracy) and ours are there with both runtimes, all other ways with
TorchScript. Entropic Student's split (Matsubara et al., 2022) is missing: it has to be trained for
each network for tens of epochs, with ImageNet.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal, NamedTuple

import msgspec

import scissionlite as sl
from bench.end_to_end.networks import Known, keeps_accuracy
from bench.end_to_end.trained import Way
from scissionlite.graph.tensors import INPUT_POINT

LOCAL = "local, TorchScript"
LOCAL_ONNX = "local, ONNX Runtime"
LOCAL_INT8 = "local, ONNX Runtime int8"
WEBP = "WebP-75 to the edge"
SCISSION = "float32 split (Scission)"
PAPER = "float32 TL (the paper)"
JPEG = "JPEG-75 to the edge"
JPEG_ONNX = "JPEG-75 to the edge, ONNX Runtime"
OURS = "ours"
OURS_ONNX = "ours, ONNX Runtime"
OURS_ENCODER = "ours, encoder"
OURS_SPLIT = "ours, split"
ALTERNATES = (OURS_ENCODER, OURS_SPLIT)
"""The fastest of ours of either kind, in ONNX Runtime, where ours is of the other kind."""
PIPELINED = "ours, pipelined"
GRPC = "ours over gRPC"
MISSING = "Entropic Student's split"

WEBP_QUALITY = 75
JPEG_QUALITIES = (75, 90)

Transport = Literal["none", "scissionlite", "grpc"]


class Contender(msgspec.Struct, frozen=True, kw_only=True):
    """One way to answer.

    Attributes
    ----------
    name
        For the tables.
    plan
        The plan of its bundle.
    transport
        Of its requests.
    runtime
        Of its float32 slices.
    predicted
        Whether the plan's prediction is that of the contender.
    in_flight
        Requests under way at once.
    """

    name: str
    plan: sl.Plan
    transport: Transport = "scissionlite"
    runtime: str = "torchscript"
    predicted: bool = True
    in_flight: int = 1

    @property
    def raw_image(self) -> bool:
        """Whether the frame itself leaves the device."""
        return self.plan.kind == "image"

    @property
    def split(self) -> bool:
        """Whether the network is cut."""
        return self.plan.kind == "split"


class Codecs(NamedTuple):
    """The splits to compare with: a name, and the codec that each may use."""

    name: str
    allowed: Callable[[sl.TransferSpec], bool]


_SPLITS = (
    Codecs(SCISSION, lambda spec: spec == sl.TransferSpec.float32_split()),
    Codecs("float16 split", lambda spec: spec == sl.TransferSpec(pool=1, dtype="float16")),
    Codecs("int8 split", lambda spec: spec == sl.TransferSpec(pool=1)),
    Codecs(PAPER, lambda spec: spec == sl.TransferSpec.paper()),
)


def contenders(
    profile: sl.Profile,
    link: sl.Link,
    slowdown: float,
    known: Known | None,
    only: Sequence[str] = (),
    *,
    trained: bool = True,
    kept: Collection[Way] = (),
) -> list[Contender]:
    """Plan all contenders for a link; with ``only`` just those.

    ``kept`` are the trained ways that keep the accuracy; nothing else that is learned is offered.
    """
    ranked = sl.plan(profile.slowed(slowdown), profile, link, learned=True)
    found = [
        *_local(ranked),
        *_images(ranked, known),
        *_splits(ranked),
        *_ours(ranked, known, trained, kept),
    ]
    return [each for each in found if not only or each.name in only]


def _local(ranked: Sequence[sl.Plan]) -> list[Contender]:
    plans = {p.device_precision: p for p in ranked if p.kind == "local"}
    found = [
        Contender(name=LOCAL, plan=plans["float32"], transport="none"),
        Contender(
            name=LOCAL_ONNX,
            plan=plans["float32"],
            transport="none",
            runtime="onnx",
            predicted=False,
        ),
    ]
    if "int8" in plans:
        found.append(Contender(name=LOCAL_INT8, plan=plans["int8"], transport="none"))
    return found


def _images(ranked: Sequence[sl.Plan], known: Known | None) -> list[Contender]:
    found = []
    # Ours has both runtimes, so the JPEG that is as accurate has both, too.
    in_onnx = {WEBP_QUALITY, None if known is None else known.lowest_jpeg} - {None}
    for plan in sorted((p for p in ranked if p.kind == "image"), key=lambda p: p.label):
        if plan.image_format != "uint8":
            name = plan.label.replace(" image", " to the edge")
            found.append(Contender(name=name, plan=plan))
            if plan.jpeg_quality in in_onnx:
                name += ", ONNX Runtime"
                found.append(Contender(name=name, plan=plan, runtime="onnx", predicted=False))
            if plan.image_format == "png":  # any bundle of the uncut network answers WebP
                found.append(Contender(name=WEBP, plan=plan, transport="grpc", predicted=False))
    return found


def _splits(ranked: Sequence[sl.Plan]) -> list[Contender]:
    found = []
    splits = [p for p in ranked if p.kind == "split"]
    for name, allowed in _SPLITS:
        own = [
            p
            for p in splits
            if p.spec is not None and allowed(p.spec) and p.device_precision == "float32"
        ]
        if own:
            found.append(Contender(name=name, plan=own[0]))
    return found


def _ours(
    ranked: Sequence[sl.Plan], known: Known | None, trained: bool, kept: Collection[Way]
) -> list[Contender]:
    ours = []
    for plan in ranked:
        if plan.kind != "split" or plan.spec is None:
            continue
        if plan.spec.learned:
            # The kept bundles' device slices are in float32.
            way = (plan.slicing_point or "", plan.spec)
            if way in kept and plan.device_precision == "float32":
                ours.append(plan)
        elif keeps_accuracy(known, plan, trained=trained):
            ours.append(plan)
    if not ours:
        return []
    plan = ours[0]
    found = [
        Contender(name=OURS, plan=plan),
        Contender(name=OURS_ONNX, plan=plan, runtime="onnx", predicted=False),
        Contender(name=PIPELINED, plan=plan, predicted=False, in_flight=4),
        Contender(name=GRPC, plan=plan, transport="grpc", predicted=False),
    ]
    for name, is_encoder in ((OURS_ENCODER, True), (OURS_SPLIT, False)):
        own = [p for p in ours if (p.slicing_point == INPUT_POINT) == is_encoder]
        if own and own[0] is not plan:
            found.append(Contender(name=name, plan=own[0], runtime="onnx", predicted=False))
    return found


def by_slicing_point(
    profile: sl.Profile, link: sl.Link, slowdown: float, count: int
) -> list[Contender]:
    """Our 2x2 int8 Transfer Layer at slicing points evenly spread over the network."""
    ranked = sl.plan(profile.slowed(slowdown), profile, link)
    ours = [p for p in ranked if p.spec == sl.TransferSpec() and p.device_precision == "float32"]
    ours.sort(key=lambda p: p.predicted.device_blocks)
    count = min(count, len(ours))
    places = sorted({round(i * (len(ours) - 1) / max(count - 1, 1)) for i in range(count)})
    return [Contender(name=f"after {ours[i].slicing_point}", plan=ours[i]) for i in places]
