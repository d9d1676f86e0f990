"""Manifest: everything about a bundle except the weights; ``manifest.json`` is its JSON form."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from scissionlite.graph.tensors import OutputKind, TensorInfo, tensor_nbytes
from scissionlite.images import ImageFormat, Preprocessing
from scissionlite.transfer_layer import EntropyTables, Quantization, TransferSpec
from scissionlite.transfer_layer.entropy import check_tables
from scissionlite.transfer_layer.shaped_codec import check_quantization

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 7
"""The version that is written; bundles of version 6, which have no shallow encoder, of version 5,
which have no entropy tables, and of version 4, which have one variant, are read too."""

THREE_TIERS_VERSION = 8
"""The version of bundles with three slices, of which an earlier build would run only two."""

READABLE_VERSIONS = (4, 5, 6, FORMAT_VERSION, THREE_TIERS_VERSION)

Kind = Literal["split", "image", "local"]
"""Kind of a plan or bundle: packed feature maps cross the link, an image does, or nothing."""

Precision: TypeAlias = Literal["float32", "int8"]
"""Numbers in which a slice computes; its inputs and outputs are float32 in any case."""

Role: TypeAlias = str
"""Role of a slice: "device", the first part; "edge", the rest; "network", the uncut network (for
the kinds "local" and "image", and as the fallback). Where a bundle has variants, "device-2",
"device-3" and so on are run after "device", and "edge-2" and so on are other ends. With three
tiers "edge" is the middle, and "cloud" the rest."""

_ROLES = re.compile(r"network|cloud|(device|edge)(-[2-9]|-[1-9][0-9])?")

MAX_VARIANTS = 32
"""Most variants of a bundle."""

MAX_BATCH = 1024
"""Most inputs that one request may hold."""


class CrossingTensor(TensorInfo, frozen=True, kw_only=True):
    """A tensor that crosses the link, and how it is packed.

    ``shape`` is the shape of the device slice's output. With a learned Transfer Layer it is the
    output of the bottleneck, whose input has the shape ``feature_shape``; otherwise that is None.
    ``tables`` are those of the entropy coder "ans".
    """

    transfer: TransferSpec
    quantization: Quantization | None = None
    feature_shape: tuple[int, ...] | None = None
    tables: EntropyTables | None = None

    @property
    def feature_nbytes(self) -> int:
        """Bytes of the feature map without any Transfer Layer."""
        return tensor_nbytes(self.feature_shape or self.shape, self.dtype)


class SliceFile(msgspec.Struct, frozen=True):
    """A slice's file: name in the bundle, runtime that runs it, digest, and size in bytes.

    ``precision`` is that of the numbers in which it computes.
    """

    file: str
    runtime: str
    sha256: str
    bytes: int
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        # A manifest may come from anywhere: it must not name a file outside its own folder.
        if Path(self.file).name != self.file or self.file in ("", ".", "..", MANIFEST_NAME):
            raise ValueError(f"a slice is a file in the bundle's own folder, not {self.file!r}")


class SlicingPointInfo(msgspec.Struct, frozen=True):
    """Where the network was cut: between the modules ``after`` and ``before``.

    The index is -1 where a shallow encoder stands at the input.
    """

    index: int
    after: str
    before: str


class Accuracy(msgspec.Struct, frozen=True):
    """The task's metric (0 to 1; for classes the share of right answers) on validation samples.

    ``before`` is the metric of the uncut network. ``after`` is the metric of this bundle's exported
    slices, with the real codec between them. ``sent_bytes`` is the mean payload of a sample, in
    bytes. ``recalls`` are, for each class in the order of the outputs, the share of its samples (or
    pixels) that is answered right, None if it has none; empty where the task has no classes.
    """

    before: float
    after: float
    samples: int
    metric: str = "accuracy"
    sent_bytes: float = 0.0
    recalls: tuple[float | None, ...] = ()


class Training(msgspec.Struct, frozen=True):
    """How the slices were retrained.

    ``labels`` says whether labels were used. ``distillation`` is the share of the loss that
    compared with the uncut network. ``processor`` is "cpu" or "cuda". ``rate`` is the weight that
    bytes had in the loss at the end, and ``estimated_bytes`` what training inputs send, each.
    """

    epochs: int
    seconds: float
    seed: int
    learning_rate: float
    device_slice_trained: bool
    labels: bool = True
    distillation: float = 0.0
    processor: str = "cpu"
    rate: float = 0.0
    estimated_bytes: float | None = None


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """A way to split the network that a bundle offers: a codec and a slicing point.

    All variants of a bundle share the device's first slice, so that a device can change from one
    to another with every request.

    Attributes
    ----------
    name
        Short name, unique in the bundle.
    slicing_point, crossing, transfer
        As those of :class:`Manifest`.
    device
        Roles of the slices that the device runs, one after the other.
    edge
        Role of the slice that the edge runs.
    accuracy, training
        As those of :class:`Manifest`; ``training`` is None where the edge slice is another
        variant's.
    """

    name: str
    slicing_point: SlicingPointInfo
    crossing: tuple[CrossingTensor, ...]
    transfer: TransferSpec
    device: tuple[Role, ...] = ("device",)
    edge: Role = "edge"
    accuracy: Accuracy | None = None
    training: Training | None = None

    @property
    def sent_bytes(self) -> int:
        """Most bytes of payload of a request with the example's batch."""
        return sum(t.transfer.packed_nbytes(t.shape) for t in self.crossing)

    @property
    def sent_as(self) -> tuple[object, ...]:
        """Everything that the header of a request tells about this variant."""
        return tuple(
            (t.shape, t.transfer.dtype, t.transfer.pool, t.quantization) for t in self.crossing
        )

    @property
    def arrives_as(self) -> tuple[object, ...]:
        """Everything that the edge must know to answer a request of this variant."""
        codecs = [
            msgspec.structs.replace(t.transfer, entropy=None, entropy_level=1)
            for t in self.crossing
        ]
        return (self.edge, *codecs)

    def coded_unlike(self, other: Variant) -> bool:
        """Whether an entropy-coded request could be of both, and is not decoded alike.

        The header of a request says only that a tensor is entropy-coded. Both have as many tensors.
        """
        coders = [[(t.transfer.entropy, t.tables) for t in each.crossing] for each in (self, other)]
        return any(mine != its and mine[0] and its[0] for mine, its in zip(*coders, strict=True))


class NextHop(msgspec.Struct, frozen=True, kw_only=True):
    """The second cut of a bundle with three slices: what crosses from the edge to the next edge.

    The fields are as those of :class:`Manifest`.
    """

    slicing_point: SlicingPointInfo
    crossing: tuple[CrossingTensor, ...]
    transfer: TransferSpec

    @property
    def sent_bytes(self) -> int:
        """Most bytes of payload of a request with the example's batch."""
        return sum(t.transfer.packed_nbytes(t.shape) for t in self.crossing)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a bundle except the weights; ``manifest.json`` is its JSON form.

    ``transfer`` is the Transfer Layer of the plan. Each tensor of ``crossing`` has it adapted to
    its shape, and without the bottleneck of a learned one, which is part of the slices. No packed
    tensor crosses for the kinds "image" and "local". With ``max_batch`` over 1 a request may hold
    any number of inputs up to it. ``slices`` holds each slice for one or more runtimes, in the
    order of preference. ``variants`` are other ways to split the network; :attr:`every_variant`
    has the first among them. ``local_accuracy`` is that of the uncut network where it is the
    fallback of a split and computes in int8. ``next_hop`` is the second cut of three tiers.
    """

    # More than 12 attributes: the fields of the file format, all in one place.

    format: Literal["scissionlite-bundle"] = "scissionlite-bundle"
    version: int = FORMAT_VERSION
    kind: Kind
    model: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    output_kind: OutputKind = "tensor"
    max_batch: int = 1
    slices: dict[Role, tuple[SliceFile, ...]]
    name: str = ""
    slicing_point: SlicingPointInfo | None = None
    crossing: tuple[CrossingTensor, ...] = ()
    transfer: TransferSpec | None = None
    image_format: ImageFormat | None = None
    jpeg_quality: int | None = None
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] = ()
    accuracy: Accuracy | None = None
    training: Training | None = None
    local_accuracy: Accuracy | None = None
    variants: tuple[Variant, ...] = ()
    next_hop: NextHop | None = None
    created: str = ""
    versions: dict[str, str] = {}

    def __post_init__(self) -> None:
        needed: dict[Kind, tuple[str, ...]] = {
            "split": ("slicing_point", "crossing", "transfer"),
            "image": ("image_format", "preprocessing"),
            "local": (),
        }
        missing = [field for field in needed[self.kind] if getattr(self, field) in (None, ())]
        roles: tuple[Role, ...] = ("device", "edge") if self.kind == "split" else ("network",)
        if self.next_hop is not None:
            roles += ("cloud",)
        missing += [
            f"slices.{role}"
            for role in dict.fromkeys((*roles, *self.slices))
            if not self.slices.get(role)
        ]
        missing += [field for field in ("inputs", "outputs") if not getattr(self, field)]
        if self.image_format == "jpeg" and self.jpeg_quality is None:
            missing.append("jpeg_quality")
        if missing:
            raise ValueError(f"a bundle of kind {self.kind!r} needs {', '.join(missing)}")
        for role, files in self.slices.items():
            if not _ROLES.fullmatch(role):
                raise ValueError(f"{role!r} is no role of a slice")
            if len({file.runtime for file in files}) < len(files):
                raise ValueError(f"more than one {role} slice for the same runtime")
        if not 1 <= self.max_batch <= MAX_BATCH:
            raise ValueError(f"max_batch must be 1 to {MAX_BATCH}, got {self.max_batch}")
        if self.output_kind == "tensor" and len(self.outputs) != 1:
            raise ValueError(f"{len(self.outputs)} outputs, but the network answers one tensor")
        self._check_next_hop()
        self._check_variants()

    def _check_next_hop(self) -> None:
        """Raise ValueError unless the second cut, if there is one, can be carried out."""
        if self.next_hop is None:
            if "cloud" in self.slices:
                raise ValueError("a cloud slice, and no next_hop that leads there")
            return
        if self.kind != "split" or self.variants:
            raise ValueError("three tiers need kind 'split' and no variants")
        if self.version < THREE_TIERS_VERSION:
            raise ValueError(f"three tiers need version {THREE_TIERS_VERSION}, got {self.version}")
        _ = self.second_hop  # which checks what crosses there

    def _check_variants(self) -> None:
        """Raise ValueError unless the edge can tell each variant's requests from the others'."""
        if self.variants and self.kind != "split":
            raise ValueError(f"a bundle of kind {self.kind!r} has no variants")
        if len(self.variants) >= MAX_VARIANTS:
            raise ValueError(f"{1 + len(self.variants)} variants, at most {MAX_VARIANTS} allowed")
        every = self.every_variant
        chains = {variant.device for variant in every}
        if len({variant.name for variant in every}) < len(every):
            raise ValueError("two variants have the same name")
        for variant in every:
            missing = [r for r in (*variant.device, variant.edge) if r not in self.slices]
            if missing or not variant.device or not variant.crossing:
                raise ValueError(f"variant {variant.name!r} lacks {missing or 'its tensors'}")
            # The slices before the last one give what another variant sends.
            if variant.device != ("device",) and variant.device[:-1] not in chains:
                raise ValueError(f"variant {variant.name!r}: no variant ends with its first slices")
            for tensor in variant.crossing:
                check_quantization(tensor.transfer, tensor.shape, tensor.quantization)
                packed_shape = tensor.transfer.packed_shape(tensor.shape)
                check_tables(tensor.transfer, packed_shape, tensor.tables)
        for i, variant in enumerate(every):
            for other in every[:i]:
                alike = variant.sent_as == other.sent_as
                unlike = variant.arrives_as != other.arrives_as
                if alike and (unlike or variant.coded_unlike(other)):
                    raise ValueError(
                        f"the requests of variants {other.name!r} and {variant.name!r} look alike, "
                        "and their answers are not computed alike"
                    )

    @property
    def every_variant(self) -> tuple[Variant, ...]:
        """All ways to split the network, the first included; empty for other kinds."""
        if self.kind != "split":
            return ()
        assert self.slicing_point is not None  # __post_init__ has checked both
        assert self.transfer is not None
        first = Variant(
            name=self.name or self.transfer.name,
            slicing_point=self.slicing_point,
            crossing=self.crossing,
            transfer=self.transfer,
            accuracy=self.accuracy,
            training=self.training,
        )
        return (first, *self.variants)

    @property
    def tiers(self) -> int:
        """How many machines take part: 1 to 3."""
        return 3 if self.next_hop is not None else 1 if self.kind == "local" else 2

    @property
    def second_hop(self) -> Manifest:
        """The manifest of the second hop alone: the edge is the device there, the cloud the edge.

        Its input is what arrives over the first hop, decoded.
        """
        hop = self.next_hop
        assert hop is not None  # who asks has looked
        return Manifest(
            kind="split",
            model=f"{self.model}, tier 3",
            inputs=tuple(TensorInfo(t.name, t.shape, t.dtype) for t in self.crossing),
            outputs=self.outputs,
            output_kind=self.output_kind,
            max_batch=self.max_batch,
            slices={"device": self.slices["edge"], "edge": self.slices["cloud"]},
            slicing_point=hop.slicing_point,
            crossing=hop.crossing,
            transfer=hop.transfer,
        )

    @property
    def sent_bytes(self) -> int:
        """Most bytes of payload of a request with the example's batch; 0 for an image."""
        return sum(t.transfer.packed_nbytes(t.shape) for t in self.crossing)

    @property
    def crossing_bytes(self) -> int:
        """Bytes that would cross without a Transfer Layer."""
        return sum(tensor.feature_nbytes for tensor in self.crossing)

    @property
    def device_precision(self) -> Precision:
        """The numbers in which the device computes its part."""
        role = "device" if self.kind == "split" else "network"
        return self.slices[role][0].precision

    def takes_batch(self, batch: int) -> bool:
        """Whether a request may hold ``batch`` inputs."""
        return batch == self.inputs[0].shape[0] or 1 <= batch <= self.max_batch
