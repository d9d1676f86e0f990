"""Profile: what was measured of a network on one machine, as a JSON file. No torch.

docs/profile-format.md describes every field, so that another tool's measurements can be written
by hand.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Literal

import msgspec

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
        The slicing point's that ends it; the last block has no ``before``.
    latency
        Median seconds of the block by itself.
    crossing
        What would cross if the network were cut after it; empty for the last block.
    layers
        Names of the modules in it, for constraints.
    weight_bytes
        Of its weights and buffers.
    peak_bytes
        Most bytes of feature maps alive at once while it runs.
    leakage
        Distance correlation (0 to 1) between the network's input and what crosses after it, over
        a batch of real images; None where it was not measured.
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
        """Bytes of everything that would cross after it, as it is."""
        return sum(tensor.nbytes for tensor in self.crossing)


class TransferProfile(msgspec.Struct, frozen=True):
    """The codec at one slicing point: median seconds to encode and decode, and bytes sent.

    Where several tensors cross they are meant together; ``spec`` is adapted to each of them
    (:meth:`scissionlite.TransferSpec.adapted_to`).
    """

    block: int
    spec: TransferSpec
    encode: float
    decode: float
    nbytes: int


class SliceProfile(msgspec.Struct, frozen=True):
    """The slices as they are deployed, for a cut after ``block``: median seconds of each.

    A runtime fuses across the borders of blocks, so a slice takes less than the sum of its blocks.
    """

    block: int
    device: float
    edge: float


class ImageProfile(msgspec.Struct, frozen=True, kw_only=True):
    """The network's input sent as an image.

    Attributes
    ----------
    format
        "uint8" is the frame as it is.
    quality
        Of JPEG, 1 to 95; None for the others.
    encode, decode
        Median seconds.
    nbytes
        Mean bytes.
    source
        Which images were measured.
    """

    format: ImageFormat = "jpeg"
    quality: int | None = None
    encode: float
    decode: float
    nbytes: int
    source: str


class OffloadProfile(msgspec.Struct, frozen=True):
    """What the Offloader adds to a request on this machine, as one of its two sides.

    Seconds a request, and seconds a byte of payload, beyond computing, packing and the link.
    """

    request: float = 0.0
    byte: float = 0.0


class Host(msgspec.Struct, frozen=True):
    """Where it was measured."""

    machine: str
    cpu: str
    isa: str
    threads: int
    versions: dict[str, str] = {}


def cpu_name() -> str:
    """The processor's name, as /proc/cpuinfo tells it, or the machine's architecture."""
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
        Of the machine, such as "pi4".
    model
        Of the network; device and edge profiles must be of the same.
    runtime
        What ran the blocks and slices.
    inputs, outputs
        The network's.
    blocks
        In order.
    transfers
        The codecs at the slicing points.
    slices
        Slices that were built and timed; the others are estimated from these and the blocks.
    images
        Ways to send the input as an image; empty where the input is none.
    preprocess
        Median seconds from frame to input tensor.
    network_latency
        Median seconds of the uncut network.
    offload
        The Offloader's own share of a request.
    slowdown
        How many times slower than measured the machine is imagined.
    """

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
    slices: tuple[SliceProfile, ...] = ()
    images: tuple[ImageProfile, ...] = ()
    preprocess: float = 0.0
    network_latency: float
    offload: OffloadProfile = OffloadProfile()
    slowdown: float = 1.0

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON."""
        Path(path).write_bytes(self.json())

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
        """Read a profile's JSON; ``source`` says in errors where it comes from.

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

        The Offloader's share stays: it is mostly waking up and the network stack.
        """
        if not 0 < factor < float("inf"):
            raise ProfileError(f"a machine cannot be {factor} times slower")
        replace = msgspec.structs.replace
        return replace(
            self,
            name=f"{self.name} slowed {factor:g}x",
            slowdown=self.slowdown * factor,
            blocks=tuple(replace(b, latency=b.latency * factor) for b in self.blocks),
            slices=tuple(
                replace(s, device=s.device * factor, edge=s.edge * factor) for s in self.slices
            ),
            transfers=tuple(
                replace(t, encode=t.encode * factor, decode=t.decode * factor)
                for t in self.transfers
            ),
            images=tuple(
                replace(i, encode=i.encode * factor, decode=i.decode * factor) for i in self.images
            ),
            preprocess=self.preprocess * factor,
            network_latency=self.network_latency * factor,
        )

    @property
    def fusion(self) -> float:
        """The uncut network's latency as a share of the sum of its blocks'."""
        total = sum(block.latency for block in self.blocks)
        return self.network_latency / total if total else 1.0

    @property
    def answer_bytes(self) -> int:
        """Bytes of the network's answer."""
        return sum(tensor.nbytes for tensor in self.outputs)


class _Versioned(msgspec.Struct):
    """What every version of the format has."""

    format: Literal["scissionlite-profile"]
    version: int
