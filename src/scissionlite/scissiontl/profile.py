"""Profile: what was measured of a network on one machine, as a JSON file. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from scissionlite.errors import ProfileError
from scissionlite.transfer_layer import TransferSpec

FORMAT_VERSION = 1


class BlockProfile(msgspec.Struct, frozen=True):
    """One block of the network.

    ``name``, ``after`` and ``before`` are the slicing point's that ends it (the last block has no
    ``before``); ``latency`` is the median in seconds of the block by itself; ``output_shape`` and
    ``output_bytes`` are what would cross if the network were cut after it.
    """

    name: str
    after: str
    before: str
    latency: float
    output_shape: tuple[int, ...]
    output_bytes: int


class TransferProfile(msgspec.Struct, frozen=True):
    """The codec at one slicing point: median seconds to encode and decode, and bytes sent."""

    block: int
    spec: TransferSpec
    encode: float
    decode: float
    nbytes: int


class ImageProfile(msgspec.Struct, frozen=True):
    """JPEG of the network's input: quality, median seconds to encode and to decode, mean bytes.

    ``source`` says which images were measured.
    """

    quality: int
    encode: float
    decode: float
    nbytes: int
    source: str


class Host(msgspec.Struct, frozen=True):
    """Where it was measured."""

    machine: str
    cpu: str
    isa: str
    threads: int
    versions: dict[str, str]


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A network's measurements on one machine.

    Attributes
    ----------
    name
        Of the machine, such as "pi4".
    model
        Of the network; device and edge profiles must be of the same.
    runtime
        What ran the blocks.
    input_shape
        Batch first.
    blocks
        In order.
    transfers
        The codecs at the slicing points.
    image
        JPEG to the edge.
    preprocess
        Median seconds from frame to input tensor.
    network_latency
        Median seconds of the uncut network, which the runtime may run faster than its blocks one
        by one, since it fuses across their borders.
    """

    format: Literal["scissionlite-profile"] = "scissionlite-profile"
    version: int = FORMAT_VERSION
    name: str
    model: str
    runtime: str
    host: Host
    input_shape: tuple[int, ...]
    blocks: tuple[BlockProfile, ...]
    transfers: tuple[TransferProfile, ...]
    image: ImageProfile | None
    preprocess: float
    network_latency: float
    slowdown: float = 1.0

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON."""
        encoded = msgspec.json.format(msgspec.json.encode(self), indent=1)
        Path(path).write_bytes(encoded + b"\n")

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a profile.

        Raises
        ------
        ProfileError
            If the file cannot be read or is no profile of this version.
        """
        try:
            profile = msgspec.json.decode(Path(path).read_bytes(), type=cls)
        except OSError as error:
            raise ProfileError(
                f"{path} cannot be read ({error.strerror}); `scissionlite profile` makes one"
            ) from error
        except msgspec.MsgspecError as error:
            raise ProfileError(f"{path} is not a profile: {error}") from error
        if profile.version != FORMAT_VERSION:
            raise ProfileError(
                f"{path} has profile format {profile.version}, this build reads {FORMAT_VERSION}"
            )
        return profile

    def slowed(self, factor: float) -> Profile:
        """The profile of an imagined machine ``factor`` times slower, for what-if questions."""
        if not 0 < factor < float("inf"):
            raise ProfileError(f"a machine cannot be {factor} times slower")
        replace = msgspec.structs.replace
        return replace(
            self,
            name=f"{self.name} slowed {factor:g}x",
            slowdown=self.slowdown * factor,
            blocks=tuple(replace(b, latency=b.latency * factor) for b in self.blocks),
            transfers=tuple(
                replace(t, encode=t.encode * factor, decode=t.decode * factor)
                for t in self.transfers
            ),
            image=self.image
            and replace(
                self.image, encode=self.image.encode * factor, decode=self.image.decode * factor
            ),
            preprocess=self.preprocess * factor,
            network_latency=self.network_latency * factor,
        )

    @property
    def fusion(self) -> float:
        """The uncut network's latency as a share of the sum of its blocks'.

        The planner scales the blocks by it, so that all of them together take as long as the
        network was measured to take.
        """
        return self.network_latency / sum(block.latency for block in self.blocks)
