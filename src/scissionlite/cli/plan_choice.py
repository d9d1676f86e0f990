"""Which plan ``scissionlite prepare`` carries out: written out with ``--at``, or the best one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import typer

from scissionlite.bundle import Bundle
from scissionlite.cli.link_options import parse_link, parse_links
from scissionlite.cli.output import error_console
from scissionlite.cli.struct_options import Changes
from scissionlite.errors import CodecError
from scissionlite.graph.tensors import INPUT_POINT
from scissionlite.images import JPEG_QUALITY, Preprocessing
from scissionlite.scissiontl.constraints import Constraints
from scissionlite.scissiontl.planner import plan as rank
from scissionlite.scissiontl.plans import Plan, SecondCut
from scissionlite.scissiontl.profile import Profile
from scissionlite.transfer_layer import TransferSpec
from scissionlite.transfer_layer.names import spec_named
from scissionlite.transfer_layer.spec import ENCODER_COEFFICIENTS

if TYPE_CHECKING:
    from scissionlite.graph.graph import Graph

Codec = Literal["int8", "paper", "float32", "jpeg", "png", "uint8", "local"]
"""A way over the link: a Transfer Layer of this name, an image, or nothing ("local").

"int8" and "paper" pool 2x2; tables show them by their labels, "TL 2x2 int8" and "paper TL (2x2
float32)"."""

_SPECS: dict[Codec, TransferSpec] = {
    "int8": TransferSpec(),
    "paper": TransferSpec.paper(),
    "float32": TransferSpec.float32_split(),
}


class PlanRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The options that say which plan is prepared.

    Attributes
    ----------
    at
        Name of the slicing point of a plan that is written out.
    codec
        The codec of such a plan.
    encoder
        The shallow encoder of a plan that has one, instead of `at` and `codec`: its size, or the
        folder of a bundle that has it.
    then
        The second cut of such a plan: a Transfer Layer and a slicing point behind "@"; or None.
    changes
        Changes to the codec's Transfer Layer.
    device_profile, edge_profile, cloud_profile
        Files of the profiles with which plans are ranked; with the last, those of three tiers too.
    learned
        Whether the best plan may have a learned Transfer Layer, or a shallow encoder.
    link
        The link, as on the command line.
    slowdown
        How many times slower than measured the device is imagined.
    power
        Watts of the device at work, or None.
    constraints
        Limits of the plans that are ranked.
    photographs
        A folder of them, with which this machine is profiled.
    """

    # More than 12 attributes: the options of a command.

    at: str | None
    codec: Codec
    encoder: str | None
    then: str | None
    changes: Changes[TransferSpec]
    device_profile: Path | None
    edge_profile: Path | None
    cloud_profile: Path | None
    learned: bool
    link: str
    slowdown: float
    power: float | None
    constraints: Constraints
    photographs: Path | None

    def plan(self) -> Plan:
        """The one plan that the options name.

        Raises
        ------
        typer.BadParameter
            If the options do not go together.
        """
        if self.encoder is not None:
            return self._with_encoder(self.encoder)
        if self.changes.options and (self.at is None or self.codec not in _SPECS):
            raise typer.BadParameter(
                f"{', '.join(self.changes.options)}: only with --at and a codec that has a "
                "Transfer Layer, or with --encoder"
            )
        if self.then is not None and (self.at is None or self.codec not in _SPECS):
            raise typer.BadParameter("--then is a second cut behind that of --at: give both")
        if self.cloud_profile is not None and (self.edge_profile is None or self.at is not None):
            raise typer.BadParameter(
                "--cloud-profile goes with --device-profile and --edge-profile, without --at"
            )
        if self.device_profile is not None and self.edge_profile is not None and self.at is None:
            device, edge = Profile.load(self.device_profile), Profile.load(self.edge_profile)
            return self._ranked(device, edge, learned=self.learned)[0]
        if self.learned:
            raise typer.BadParameter(
                "--learned chooses among plans: give --device-profile and --edge-profile, and not "
                "--at; --accuracy-drop always does"
            )
        if self.constraints != Constraints() or self.power is not None:
            raise typer.BadParameter(
                "constraints and --power choose among plans: give --accuracy-drop, or "
                "--device-profile and --edge-profile, and not --at"
            )
        if self.device_profile is not None or self.edge_profile is not None:
            raise typer.BadParameter(
                "--device-profile and --edge-profile go together, without --at"
            )
        return self._written_out()

    def ranked_plans(self, graph: Graph, runtime: str, preprocessing: Preprocessing) -> list[Plan]:
        """All plans, best first; with untrained learned Transfer Layers among them.

        Without profiles this machine is profiled, with a runtime, and stands for both.

        Raises
        ------
        typer.BadParameter
            If only one of the two profiles is given.
        """
        if self.device_profile is not None and self.edge_profile is not None:
            device, edge = Profile.load(self.device_profile), Profile.load(self.edge_profile)
            return self._ranked(device, edge, learned=True)
        if self.device_profile is not None or self.edge_profile is not None:
            raise typer.BadParameter("--device-profile and --edge-profile go together")
        from scissionlite.preprocessor.data import sample_frames
        from scissionlite.scissiontl.profiler import profile

        error_console.print("Profiling the network on this machine, which stands for both ...")
        frames = [] if self.photographs is None else sample_frames(self.photographs, preprocessing)
        measured = profile(graph, runtime=runtime, preprocessing=preprocessing, images=frames)
        return self._ranked(measured, measured, learned=True)

    def _ranked(self, device: Profile, edge: Profile, *, learned: bool) -> list[Plan]:
        three = self.cloud_profile is not None
        return rank(
            device.slowed(self.slowdown),
            edge,
            # Three machines have three links, by the names of their profiles.
            parse_links(self.link) if three else parse_link(self.link),
            constraints=self.constraints,
            cloud=Profile.load(self.cloud_profile) if self.cloud_profile is not None else (),
            power=self.power,
            learned=learned,
        )

    @property
    def kept_encoder(self) -> Path | None:
        """The folder of the bundle whose encoder stays as it is."""
        named = self.encoder is None or self.encoder in ENCODER_COEFFICIENTS
        return None if named else Path(str(self.encoder))

    def _with_encoder(self, encoder: str) -> Plan:
        if self.at is not None or self.codec != "int8" or self.device_profile is not None:
            raise typer.BadParameter(
                "--encoder stands at the image: leave --at, --codec and the profiles out"
            )
        if self.kept_encoder is None:
            spec = self.changes.apply(TransferSpec.shallow_encoder(encoder))
            return Plan(kind="split", slicing_point=INPUT_POINT, spec=spec)
        if self.changes.options:
            raise typer.BadParameter(
                f"{', '.join(self.changes.options)}: a bundle's encoder is kept as it is"
            )
        kept = Bundle.load(self.kept_encoder).manifest.transfer
        if kept is None or kept.encoder is None:
            raise typer.BadParameter(f"--encoder {encoder}: this bundle has no shallow encoder")
        return Plan(kind="split", slicing_point=INPUT_POINT, spec=kept)

    def _written_out(self) -> Plan:
        if self.codec == "jpeg":
            return Plan(kind="image", image_format="jpeg", jpeg_quality=JPEG_QUALITY)
        if self.codec == "png" or self.codec == "uint8":
            return Plan(kind="image", image_format=self.codec)
        if self.codec == "local":
            return Plan(kind="local")
        if self.at is None:
            raise typer.BadParameter("say where to cut with --at, or give both profiles")
        return Plan(
            kind="split",
            slicing_point=self.at,
            spec=self.changes.apply(_SPECS[self.codec]),
            second=None if self.then is None else _second_cut(self.then),
        )


def encoder_source(text: str) -> str:
    """Check what an encoder comes from: a size, or the folder of a bundle."""
    if text not in ENCODER_COEFFICIENTS and not Path(text).is_dir():
        raise typer.BadParameter(
            f"{text!r} is none of {', '.join(ENCODER_COEFFICIENTS)}, nor the folder of a bundle"
        )
    return text


def _second_cut(text: str) -> SecondCut:
    """Read a second cut: the checked name of a Transfer Layer, "@" and a slicing point."""
    codec, _, point = text.partition("@")
    if not point:
        raise typer.BadParameter(f"--then {text} lacks its slicing point: {text}@NAME")
    return SecondCut(point, spec_named(codec))


def variant_name(text: str) -> str:
    """Check the name of a variant: a Transfer Layer, perhaps with a slicing point behind "@"."""
    try:
        spec_named(text.partition("@")[0])
    except CodecError as error:
        raise typer.BadParameter(str(error)) from error
    return text


def parse_variants(names: Sequence[str]) -> list[TransferSpec | Plan]:
    """Return variants by their checked names."""
    variants: list[TransferSpec | Plan] = []
    for name in names:
        codec, _, point = name.partition("@")
        spec = spec_named(codec)
        variants.append(Plan(kind="split", slicing_point=point, spec=spec) if point else spec)
    return variants
