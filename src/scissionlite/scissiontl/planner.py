"""ScissionTL's prediction: every way to run a network over a link, by latency. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from scissionlite.bundle import Kind
from scissionlite.errors import PlanError, ProfileError
from scissionlite.images import ImageFormat
from scissionlite.scissiontl.network import Link
from scissionlite.scissiontl.profile import Profile
from scissionlite.transfer_layer import TransferSpec

JPEG_QUALITY = 75
"""Pillow's and libjpeg's default: what JPEG to the edge means unless told otherwise."""


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan is predicted to cost, in seconds and bytes.

    Attributes
    ----------
    device_time, encode_time, transfer_time, decode_time, edge_time
        Seconds: the device's slice (with preprocessing), packing, the link, unpacking, the edge's
        slice.
    sent_bytes
        Payload of a request.
    device_blocks
        How many blocks run on the device.
    """

    device_time: float
    encode_time: float = 0.0
    transfer_time: float = 0.0
    decode_time: float = 0.0
    edge_time: float = 0.0
    sent_bytes: int = 0
    device_blocks: int

    @property
    def latency(self) -> float:
        """Seconds from frame to answer: the sum of the five parts."""
        return (
            self.device_time
            + self.encode_time
            + self.transfer_time
            + self.decode_time
            + self.edge_time
        )


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run the network.

    Attributes
    ----------
    kind
        "split", "image" (JPEG to the edge) or "local".
    slicing_point
        Name of the slicing point of a split.
    spec
        The Transfer Layer of a split.
    jpeg_quality
        Of an image plan, 1 to 95.
    prediction
        What it is predicted to cost; None in a plan written by hand.
    """

    kind: Kind
    slicing_point: str | None = None
    spec: TransferSpec | None = None
    image_format: ImageFormat | None = None
    jpeg_quality: int | None = None
    prediction: Prediction | None = None

    def __post_init__(self) -> None:
        if (self.kind == "split") != (self.slicing_point is not None and self.spec is not None):
            raise PlanError("a 'split' plan has slicing_point and spec, others have neither")
        if (self.kind == "image") != (self.image_format is not None):
            raise PlanError("an 'image' plan has image_format, others have not")

    @property
    def predicted(self) -> Prediction:
        """The prediction of a ranked plan.

        Raises
        ------
        PlanError
            If the plan was written by hand.
        """
        if self.prediction is None:
            raise PlanError("this plan was written by hand: only plan() predicts")
        return self.prediction

    @property
    def label(self) -> str:
        """What crosses, in a few words."""
        if self.spec is not None:
            return self.spec.label
        return "nothing (local)" if self.kind == "local" else f"JPEG-{self.jpeg_quality} image"


class Constraints(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan must keep to; None leaves a limit out.

    Parameters
    ----------
    max_latency
        Seconds from frame to answer.
    max_device_time
        Seconds of work on the device, packing included.
    max_upload
        Bytes of a request.
    min_device_blocks
        Blocks that must run on the device, so that no image and no early feature map leaves it.
    """

    max_latency: float | None = None
    max_device_time: float | None = None
    max_upload: int | None = None
    min_device_blocks: int | None = None

    def excluded_by(self, plan: Plan) -> list[str]:
        """Names of the constraints that a plan does not keep."""
        cost = plan.predicted
        checks: tuple[tuple[str, float | None, Callable[[float], bool]], ...] = (
            ("max_latency", self.max_latency, lambda limit: cost.latency > limit),
            (
                "max_device_time",
                self.max_device_time,
                lambda limit: cost.device_time + cost.encode_time > limit,
            ),
            ("max_upload", self.max_upload, lambda limit: cost.sent_bytes > limit),
            ("min_device_blocks", self.min_device_blocks, lambda n: cost.device_blocks < n),
        )
        return [name for name, limit, breaks in checks if limit is not None and breaks(limit)]


def plan(
    device: Profile, edge: Profile, link: Link, *, constraints: Constraints | None = None
) -> list[Plan]:
    """Rank every slicing point and Transfer Layer, with running locally and JPEG to the edge.

    The prediction is ScissionTL's sum: device blocks, packing, one round trip and the bytes at
    the link's rate, unpacking, edge blocks (arXiv 2105.02019). Block times are scaled so that
    together they take as long as the uncut network did.

    Returns
    -------
    list of Plan
        Fastest first.

    Raises
    ------
    ProfileError
        If the two profiles are not of the same network.
    PlanError
        If the constraints exclude everything; the message says which excludes how much.
    """
    _check_same_network(device, edge)
    constraints = constraints or Constraints()
    candidates = sorted(_candidates(device, edge, link), key=lambda p: p.predicted.latency)
    excluded = [(p, constraints.excluded_by(p)) for p in candidates]
    plans = [p for p, broken in excluded if not broken]
    if not plans:
        counts = {
            name: sum(name in broken for _, broken in excluded)
            for name in Constraints.__struct_fields__
        }
        told = "; ".join(
            f"{name}={getattr(constraints, name)} excludes {count} of {len(candidates)}"
            for name, count in counts.items()
            if count
        )
        raise PlanError(f"no plan satisfies the constraints: {told}. Relax one of them")
    return plans


def _candidates(device: Profile, edge: Profile, link: Link) -> Iterator[Plan]:
    blocks = len(device.blocks)
    yield Plan(
        kind="local",
        prediction=Prediction(
            device_time=device.preprocess + device.network_latency, device_blocks=blocks
        ),
    )
    if device.image is not None and edge.image is not None:
        yield Plan(
            kind="image",
            image_format="jpeg",
            jpeg_quality=device.image.quality,
            prediction=Prediction(
                device_time=0.0,
                encode_time=device.image.encode,
                transfer_time=link.transfer_time(device.image.nbytes),
                decode_time=edge.image.decode + edge.preprocess,
                edge_time=edge.network_latency,
                sent_bytes=device.image.nbytes,
                device_blocks=0,
            ),
        )
    on_device = [b.latency * device.fusion for b in device.blocks]
    on_edge = [b.latency * edge.fusion for b in edge.blocks]
    decode_times = {(t.block, t.spec): t.decode for t in edge.transfers}
    for transfer in device.transfers:
        decode_time = decode_times.get((transfer.block, transfer.spec))
        if decode_time is None:
            continue
        cut = transfer.block + 1
        yield Plan(
            kind="split",
            slicing_point=device.blocks[transfer.block].name,
            spec=transfer.spec,
            prediction=Prediction(
                device_time=device.preprocess + sum(on_device[:cut]),
                encode_time=transfer.encode,
                transfer_time=link.transfer_time(transfer.nbytes),
                decode_time=decode_time,
                edge_time=sum(on_edge[cut:]),
                sent_bytes=transfer.nbytes,
                device_blocks=cut,
            ),
        )


def _check_same_network(device: Profile, edge: Profile) -> None:
    for what, ours, theirs in (
        ("model", device.model, edge.model),
        ("input shape", device.input_shape, edge.input_shape),
        ("blocks", [b.name for b in device.blocks], [b.name for b in edge.blocks]),
    ):
        if ours != theirs:
            raise ProfileError(
                f"the profiles are not of the same network: {what} of {device.name} is {ours}, "
                f"of {edge.name} {theirs}; profile both machines with the same version and model"
            )
