"""Plan: one way to run a network, its prediction, and its measured accuracy. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from scissionlite.errors import PlanError
from scissionlite.graph.tensors import INPUT_POINT
from scissionlite.images import ImageFormat
from scissionlite.manifest import CrossingTensor, Kind, Precision, SlicingPointInfo
from scissionlite.scissiontl.cost import Prediction
from scissionlite.scissiontl.profile import Profile
from scissionlite.transfer_layer import TransferSpec

if TYPE_CHECKING:
    from scissionlite.bundle import Bundle


class SecondCut(msgspec.Struct, frozen=True):
    """The cut between the edge slice and the cloud slice, and the Transfer Layer there."""

    slicing_point: str
    spec: TransferSpec


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run the network.

    Attributes
    ----------
    kind
        "split", "image" (the input to the edge, as an image) or "local".
    slicing_point
        Name of the slicing point of a split.
    spec
        The Transfer Layer of a split, adapted to the shape of each tensor that crosses
        (:meth:`scissionlite.TransferSpec.adapted_to`).
    image_format, jpeg_quality
        For an image plan: "uint8", "png" or "jpeg"; for JPEG its quality, 1 to 95.
    device_precision
        Numbers in which the device computes: "float32" or "int8".
    second
        The cut between edge and cloud of a plan with three tiers.
    device, edge, cloud
        Names of the machines; empty where there is none.
    accuracy
        Share of right answers (0 to 1), where it was measured.
    prediction
        The predicted cost; None in a plan that was written by hand.
    """

    kind: Kind
    slicing_point: str | None = None
    spec: TransferSpec | None = None
    image_format: ImageFormat | None = None
    jpeg_quality: int | None = None
    device_precision: Precision = "float32"
    second: SecondCut | None = None
    device: str = ""
    edge: str = ""
    cloud: str = ""
    accuracy: float | None = None
    prediction: Prediction | None = None

    def __post_init__(self) -> None:
        if (self.kind == "split") != (self.slicing_point is not None and self.spec is not None):
            raise PlanError("a 'split' plan has slicing_point and spec, others have neither")
        if (self.kind == "image") != (self.image_format is not None):
            raise PlanError("an 'image' plan has image_format, others have not")
        if (self.image_format == "jpeg") != (self.jpeg_quality is not None):
            raise PlanError("jpeg_quality goes with the image format 'jpeg', and only with it")
        if self.second is not None and self.kind != "split":
            raise PlanError("a second cut goes with a 'split' plan, and only with it")
        if self.device_precision == "int8" and self.kind == "image":
            raise PlanError("the device of an 'image' plan computes nothing that could be in int8")

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
        """A few words for what crosses."""
        if self.spec is not None:
            first = self.spec.label
        elif self.kind == "local":
            return "nothing (local, int8)" if self.device_precision == "int8" else "nothing (local)"
        elif self.image_format == "jpeg":
            first = f"JPEG-{self.jpeg_quality} image"
        else:
            first = f"{'PNG' if self.image_format == 'png' else 'raw'} image"
        return first if self.second is None else f"{first}, then {self.second.spec.label}"

    @property
    def place(self) -> str:
        """A few words for where the network is cut, and whether the part before it is in int8."""
        if self.second is not None:
            return f"{self.slicing_point} | {self.second.slicing_point}"
        precision = ", int8" if self.device_precision == "int8" else ""
        return "-" if self.slicing_point is None else f"{self.slicing_point}{precision}"

    @property
    def machines(self) -> tuple[str, ...]:
        """Names of the machines that take part."""
        return tuple(filter(None, (self.device, self.edge, self.cloud)))


class MeasuredAccuracy(msgspec.Struct, frozen=True, kw_only=True):
    """A measured accuracy (0 to 1) and the plan it belongs to, in a plan's fields."""

    kind: Kind
    slicing_point: str | None = None
    spec: TransferSpec | None = None
    image_format: ImageFormat | None = None
    jpeg_quality: int | None = None
    device_precision: Precision = "float32"
    second: SecondCut | None = None
    accuracy: float

    @classmethod
    def of(cls, bundle: Bundle, profile: Profile) -> list[MeasuredAccuracy]:
        """The accuracies in a bundle's manifest: the bundle's and the uncut network's.

        Where the bundle's fallback computes in int8, its accuracy is among them.

        Raises
        ------
        PlanError
            If the bundle is not of the profile's network, or its accuracy was not measured.
        """
        manifest = bundle.manifest
        if manifest.accuracy is None:
            raise PlanError(f"{bundle.path} tells no accuracy: prepare it with validate=")
        name, second = None, None
        if manifest.slicing_point is not None:
            name = _point_in(profile, bundle, manifest.slicing_point, manifest.crossing)
        if (hop := manifest.next_hop) is not None:
            point = _point_in(profile, bundle, hop.slicing_point, hop.crossing)
            second = SecondCut(point, hop.transfer)
        local = manifest.local_accuracy
        own = [] if local is None else [local.after]
        return [
            cls(kind="local", accuracy=manifest.accuracy.before),
            *(cls(kind="local", device_precision="int8", accuracy=each) for each in own),
            cls(
                kind=manifest.kind,
                slicing_point=name,
                spec=manifest.transfer if name is not None else None,
                image_format=manifest.image_format,
                jpeg_quality=manifest.jpeg_quality,
                device_precision=manifest.device_precision,
                second=second,
                accuracy=manifest.accuracy.after,
            ),
        ]


def _point_in(
    profile: Profile, bundle: Bundle, point: SlicingPointInfo, crossing: Sequence[CrossingTensor]
) -> str:
    """The profile's name of the slicing point at which a bundle was cut."""
    at_input = point.index < 0
    blocks = profile.blocks[point.index : point.index + 1]
    crosses = profile.inputs if at_input else blocks[0].crossing if blocks else ()
    if [t.shape for t in crosses] != [t.feature_shape or t.shape for t in crossing]:
        raise PlanError(
            f"{bundle.path} was cut after {point.after}, but something else crosses there in the "
            f"profile of {profile.name}: they are not of the same network"
        )
    return INPUT_POINT if at_input else blocks[0].name
