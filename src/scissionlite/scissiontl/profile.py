"""Profile: the measurements of a network on one machine, as a JSON file. No torch.

docs/profile-format.md describes every field, so that measurements of another tool can be written
by hand.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from scissionlite.atomic_folder import atomic_file
from scissionlite.errors import ProfileError
from scissionlite.graph.tensors import TensorInfo
from scissionlite.images import ImageFormat
from scissionlite.transfer_layer import TransferSpec

FORMAT_VERSION = 2


class BlockProfile(msgspec.Struct, frozen=True, kw_only=True):
    """One block of the network.

    Attributes
    ----------
    name, after, before
        Names of the slicing point that ends it; the last block has no ``before``.
    latency
        Median seconds of the block.
    crossing
        The tensors that cross if the network is cut after it; empty for the last block.
    layers
        Names of the modules in it, for constraints.
    weight_bytes
        Bytes of its weights and buffers.
    peak_bytes
        Most bytes of feature maps that are alive at the same time while it runs.
    leakage
        Distance correlation (0 to 1) of the network's input and the tensors that cross after it,
        over a batch of real images; None where it was not measured.
    """

    name: str
    after: str
    before: str = ""
    latency: float
    crossing: tuple[TensorInfo, ...] = ()
    layers: tuple[str, ...] = ()
    weight_bytes: int = 0
    peak_bytes: int = 0
    leakage: float | None = None

    @property
    def crossing_bytes(self) -> int:
        """Bytes of all tensors that cross after it, without a Transfer Layer."""
        return sum(tensor.nbytes for tensor in self.crossing)


class TransferProfile(msgspec.Struct, frozen=True):
    """The codec at one slicing point: median seconds to encode and decode, and bytes sent.

    Where several tensors cross, the figures are their sums. ``spec`` is adapted to each of them
    (:meth:`scissionlite.TransferSpec.adapted_to`). ``drop`` is the accuracy that it is predicted to
    cost before training, 0 to 1 (:mod:`.drops`); None where that was not measured.
    """

    block: int
    spec: TransferSpec
    encode: float
    decode: float
    nbytes: int
    drop: float | None = None


class EncoderProfile(msgspec.Struct, frozen=True, kw_only=True):
    """A shallow encoder at the image: none of the network runs on the device.

    Attributes
    ----------
    spec
        The shallow encoder.
    encoder, decoder
        Median seconds of its two halves: the device slice, and what stands before the whole network
        on the edge.
    encode, decode
        Median seconds to pack and to unpack.
    nbytes
        Mean bytes.
    leakage
        Distance correlation (0 to 1) of the network's input and what crosses; None where it was not
        measured.
    drop
        The accuracy that it is predicted to cost before training, 0 to 1; None where that was not
        measured.
    """

    spec: TransferSpec
    encoder: float
    encode: float
    nbytes: int
    decode: float
    decoder: float
    leakage: float | None = None
    drop: float | None = None

    def slowed(self, factor: float) -> EncoderProfile:
        """The encoder on an imagined machine ``factor`` times slower."""
        times = ("encoder", "encode", "decode", "decoder")
        slowed = {name: getattr(self, name) * factor for name in times}
        return msgspec.structs.replace(self, **slowed)


class SliceProfile(msgspec.Struct, frozen=True):
    """Median seconds of the two slices, as they are deployed, for a cut after ``block``.

    A runtime fuses across the borders of blocks, so a slice takes less than the sum of its blocks.
    ``device_int8`` is the device slice in int8, run by ONNX Runtime; None where it was not
    measured. ``part`` is what lies between the measured cut before this one and this one, as a
    slice of its own; None at the first cut, and where it was not measured.
    """

    block: int
    device: float
    edge: float
    device_int8: float | None = None
    part: float | None = None

    def slowed(self, factor: float) -> SliceProfile:
        """The slices on an imagined machine ``factor`` times slower."""
        int8 = None if self.device_int8 is None else self.device_int8 * factor
        part = None if self.part is None else self.part * factor
        return SliceProfile(self.block, self.device * factor, self.edge * factor, int8, part)


CodecInputs: TypeAlias = Literal["images", "noise", "example"]
"""The inputs with which codecs are measured: the user's images, noise with the 1/f spectrum of
photographs, or the example that the network was captured with."""


class ImageProfile(msgspec.Struct, frozen=True, kw_only=True):
    """The network's input sent as an image.

    Attributes
    ----------
    format
        "uint8" is the frame without compression.
    quality
        Quality of JPEG, 1 to 95; None for the other formats.
    encode, decode
        Median seconds.
    nbytes
        Mean bytes.
    source
        The images that were measured.
    drop
        The accuracy that it is predicted to cost, 0 to 1; None where that was not measured.
    """

    format: ImageFormat = "jpeg"
    quality: int | None = None
    encode: float
    decode: float
    nbytes: int
    source: str
    drop: float | None = None


class OffloadProfile(msgspec.Struct, frozen=True):
    """Seconds that the Offloader adds to a request on this machine, as one of its two sides.

    ``request`` are seconds per request, ``byte`` seconds per byte of payload, beside computing,
    packing and the link.
    """

    request: float = 0.0
    byte: float = 0.0


class Host(msgspec.Struct, frozen=True):
    """The machine and the versions with which a profile was measured."""

    machine: str
    cpu: str
    isa: str
    threads: int
    versions: dict[str, str] = {}


def cpu_name() -> str:
    """The processor's name from /proc/cpuinfo, or the machine's architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware"):
            return value.strip()
    return platform.machine()


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A network's measurements on one machine.

    Attributes
    ----------
    name
        Name of the machine, such as "pi4".
    model
        Name of the model; device and edge profiles must have the same.
    runtime
        The runtime of the blocks and slices.
    inputs, outputs
        The network's inputs and outputs.
    blocks
        The blocks in order.
    transfers
        The codecs at the slicing points.
    encoders
        The shallow encoders; empty where the input is no image.
    codec_inputs
        The inputs with which codecs and encoders were measured. The bytes behind an entropy stage
        depend on them. None where the profile does not say.
    slices
        Slices that were built and timed; the others are estimated from these and the blocks.
    images
        The image formats for the input; empty where the input is no image.
    preprocess
        Median seconds from frame to input tensor.
    network_latency
        Median seconds of the uncut network.
    network_latency_int8
        The same in int8, run by ONNX Runtime; None where it was not measured.
    network_drop_int8
        The accuracy that int8 is predicted to cost the uncut network, 0 to 1; None where that was
        not measured.
    offload
        The seconds that the Offloader adds to a request.
    slowdown
        How many times slower than measured the machine is imagined to be.
    """

    # More than 12 attributes: the fields of the file format, all in one place.
    format: Literal["scissionlite-profile"] = "scissionlite-profile"
    version: int = FORMAT_VERSION
    name: str
    model: str
    runtime: str
    host: Host | None = None
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...] = ()
    blocks: tuple[BlockProfile, ...]
    transfers: tuple[TransferProfile, ...]
    encoders: tuple[EncoderProfile, ...] = ()
    codec_inputs: CodecInputs | None = None
    slices: tuple[SliceProfile, ...] = ()
    images: tuple[ImageProfile, ...] = ()
    preprocess: float = 0.0
    network_latency: float
    network_latency_int8: float | None = None
    network_drop_int8: float | None = None
    offload: OffloadProfile = OffloadProfile()
    slowdown: float = 1.0

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON; an OSError if it cannot be written."""
        with atomic_file(path) as file:
            file.write_bytes(self.json())

    def json(self) -> bytes:
        """The profile as the JSON that :meth:`save` writes."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a profile.

        Raises
        ------
        ProfileError
            If the file cannot be read or is no profile of this version.
        """
        try:
            raw = Path(path).read_bytes()
        except OSError as error:
            raise ProfileError(
                f"{path} cannot be read ({error.strerror}); `scissionlite profile` makes one"
            ) from error
        return cls.parse(raw, str(path))

    @classmethod
    def parse(cls, raw: bytes, source: str = "the profile") -> Profile:
        """Read a profile's JSON; errors name ``source`` as its origin.

        Raises
        ------
        ProfileError
            If it is no profile of this version.
        """
        try:
            versioned = msgspec.json.decode(raw, type=_Versioned)
            if versioned.version != FORMAT_VERSION:
                raise ProfileError(
                    f"{source} has profile format {versioned.version}, this build reads "
                    f"{FORMAT_VERSION}: profile that machine again"
                )
            return msgspec.json.decode(raw, type=cls)
        except msgspec.MsgspecError as error:
            raise ProfileError(f"{source} is not a profile: {error}") from error

    def slowed(self, factor: float) -> Profile:
        """The profile of an imagined machine ``factor`` times slower, for what-if questions.

        It keeps its name, by which a table of links knows it.
        The Offloader's seconds stay: threads that wake up and the kernel's TCP take most of them.
        """
        if not 0 < factor < float("inf"):
            raise ProfileError(f"a machine cannot be {factor} times slower")
        replace = msgspec.structs.replace
        return replace(
            self,
            slowdown=self.slowdown * factor,
            blocks=tuple(replace(b, latency=b.latency * factor) for b in self.blocks),
            slices=tuple(each.slowed(factor) for each in self.slices),
            transfers=tuple(
                replace(t, encode=t.encode * factor, decode=t.decode * factor)
                for t in self.transfers
            ),
            encoders=tuple(each.slowed(factor) for each in self.encoders),
            images=tuple(
                replace(i, encode=i.encode * factor, decode=i.decode * factor) for i in self.images
            ),
            preprocess=self.preprocess * factor,
            network_latency=self.network_latency * factor,
            network_latency_int8=(
                None if self.network_latency_int8 is None else self.network_latency_int8 * factor
            ),
        )

    @property
    def entropy_note(self) -> str:
        """A sentence on bytes behind an entropy stage, where they are not those of real images."""
        if self.codec_inputs == "images":
            return ""
        measured = {
            "noise": "noise with the spectrum of photographs",
            "example": "the example input",
            None: "inputs that the profile does not name",
        }[self.codec_inputs]
        return (
            f"Bytes behind an entropy stage were measured with {measured}: "
            "`scissionlite profile --images` measures those of your images."
        )

    @property
    def answer_bytes(self) -> int:
        """Bytes of the network's answer."""
        return sum(tensor.nbytes for tensor in self.outputs)


class _Versioned(msgspec.Struct):
    """The fields that every version of the format has."""

    format: Literal["scissionlite-profile"]
    version: int
