"""``scissionlite profile``: measure a network on this machine, or on an edge daemon's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from scissionlite.cli.key_options import EdgeKeyOption, KeyOption, device_keys
from scissionlite.cli.link_options import endpoint_to_connect
from scissionlite.cli.model_options import (
    DEFAULT_SIZE,
    BitsOption,
    ClassesOption,
    MaxTensorsOption,
    MeanOption,
    ModelArgument,
    ModelRequest,
    ResizeOption,
    SizeOption,
    StdOption,
    ThreadsOption,
    WeightsOption,
)
from scissionlite.cli.output import (
    JsonOption,
    error_console,
    kilobytes,
    milliseconds,
    print_json,
    print_table,
)
from scissionlite.cli.output_paths import output_file
from scissionlite.cli.usage import usage_errors
from scissionlite.errors import ModelError
from scissionlite.images import JPEG_QUALITY
from scissionlite.offloader import DeviceKeys
from scissionlite.runtimes import RuntimeName
from scissionlite.scissiontl.cost import Machine
from scissionlite.scissiontl.profile import Profile, SliceProfile
from scissionlite.scissiontl.remote_profile import remote_profile
from scissionlite.transfer_layer import TransferSpec

NameOption = Annotated[
    str | None, typer.Option(help="Name of this machine.", show_default="host name")
]
ImagesOption = Annotated[
    Path | None,
    typer.Option(
        help="Photographs with which codecs and images to the edge are measured; from 16 on also "
        "how much of the input shows at each slicing point (leakage).",
        exists=True,
        file_okay=False,
    ),
]
RepetitionsOption = Annotated[
    int, typer.Option(help="Measurements of each block.", min=1, max=1000)
]
JpegQualityOption = Annotated[
    list[int],
    typer.Option(
        help="Quality of JPEG to the edge; may be given several times.",
        min=1,
        max=95,
    ),
]
SlicesOption = Annotated[
    int, typer.Option(help="Slicing points at which the slices are built and timed.", min=0)
]
Int8Option = Annotated[
    bool | None,
    typer.Option(
        "--int8/--no-int8",
        help="Measure the uncut network and the device slices in int8, too, run by ONNX Runtime.",
        show_default="where it is possible",
    ),
]
RuntimeOption = Annotated[RuntimeName, typer.Option(help="The runtime of blocks and slices.")]
RemoteOption = Annotated[
    str | None,
    typer.Option(
        help="Have the edge daemon at this tensor endpoint (tcp://edge:5555) profile its machine "
        "instead; it must be served with --profile-models.",
        callback=endpoint_to_connect,
    ),
]
RemoteControlOption = Annotated[
    str | None,
    typer.Option(
        "--control",
        help="Its control endpoint.",
        show_default="the next port",
        callback=endpoint_to_connect,
    ),
]
OutOption = Annotated[Path | None, output_file("Write the profile to this JSON file.")]


def profile(
    model: ModelArgument,
    size: SizeOption = None,
    resize: ResizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    bits: BitsOption = None,
    num_classes: ClassesOption = None,
    weights: WeightsOption = None,
    threads: ThreadsOption = None,
    name: NameOption = None,
    images: ImagesOption = None,
    repetitions: RepetitionsOption = 20,
    jpeg_quality: JpegQualityOption = [JPEG_QUALITY],  # noqa: B006 - typer reads it and never changes it
    slices: SlicesOption = 12,
    runtime: RuntimeOption = "torchscript",
    int8: Int8Option = None,
    max_tensors: MaxTensorsOption = 1,
    remote: RemoteOption = None,
    control: RemoteControlOption = None,
    key: KeyOption = None,
    edge_key: EdgeKeyOption = None,
    out: OutOption = None,
    json: JsonOption = False,
) -> None:
    """Measure every block, slice, codec and image format of a network on this machine."""
    network = ModelRequest(
        model=model,
        num_classes=num_classes,
        weights=weights,
        size=size,
        resize=resize,
        mean=mean,
        std=std,
        bits=bits,
    )
    request = _Request(
        network=network,
        runtime=runtime,
        threads=threads,
        repetitions=repetitions,
        max_tensors=max_tensors,
    )
    if remote is None:
        measured = request.profile_here(name, images, jpeg_quality, slices, int8, progress=not json)
    else:
        local_options = {
            "--weights": weights,
            "--images": images,
            "--name": name,
            "--resize": resize,
            "--mean": mean,
            "--std": std,
            "--bits": bits,
        }
        for option, value in local_options.items():
            if value is not None:
                raise typer.BadParameter(
                    f"{option} cannot go with --remote: files and names of this machine stay here"
                )
        if int8:
            raise typer.BadParameter(
                "--int8 cannot go with --remote: an edge computes in float32, and devices in int8"
            )
        measured = request.profile_there(remote, control, device_keys(key, edge_key))
    if out is not None:
        measured.save(out)
    if json:
        print_json(measured)
        return
    _print(measured, f" Written to {out}." if out else "")


class _Request(msgspec.Struct, frozen=True, kw_only=True):
    """The options that hold here and on an edge daemon's machine."""

    network: ModelRequest
    runtime: RuntimeName
    threads: int | None
    repetitions: int
    max_tensors: int

    def profile_here(
        self,
        name: str | None,
        images: Path | None,
        jpeg_qualities: list[int],
        slices: int,
        int8: bool | None,
        *,
        progress: bool,
    ) -> Profile:
        """Measure on this machine."""
        from scissionlite.preprocessor.data import sample_frames
        from scissionlite.progress import progress_bar
        from scissionlite.scissiontl.profiler import profile as measure

        graph, settings = self.network.capture(self.max_tensors, progress=progress)
        preprocessing = settings.preprocessing
        frames = []
        if images is not None:
            settings.print()
            frames = sample_frames(images, preprocessing)
        with progress_bar(progress) as bar:
            return measure(
                graph,
                name=name,
                runtime=self.runtime,
                threads=self.threads,
                images=frames,
                preprocessing=preprocessing,
                jpeg_qualities=jpeg_qualities,
                repetitions=self.repetitions,
                slices=slices,
                int8=int8,
                progress=bar,
            )

    def profile_there(self, remote: str, control: str | None, keys: DeviceKeys | None) -> Profile:
        """Have an edge daemon measure on its machine."""
        with usage_errors():
            return remote_profile(
                remote,
                self.network.model,
                control=control,
                size=self._size_there(),
                num_classes=self.network.num_classes,
                runtime=self.runtime,
                threads=self.threads,
                repetitions=self.repetitions,
                max_tensors=self.max_tensors,
                keys=keys,
            )

    def _size_there(self) -> int:
        """The size that the network has here, if none is given."""
        if self.network.size is not None:
            return self.network.size
        try:
            _, settings = self.network.load()
        except (ImportError, ModelError) as error:
            error_console.print(
                f"{self.network.model} cannot be loaded here, so its size is not known, and "
                f"{DEFAULT_SIZE} pixels are asked for (--size gives another): {error}",
                markup=False,
                highlight=False,
            )
            return DEFAULT_SIZE
        return settings.preprocessing.size[0]


def _print(measured: Profile, written: str) -> None:
    default_codec = {t.block: t for t in measured.transfers if t.spec == TransferSpec()}
    slices = {each.block: each for each in measured.slices}
    machine = Machine(measured)
    leaks = any(block.leakage is not None for block in measured.blocks)
    rows = []
    for index, block in enumerate(measured.blocks):
        packed, timed = default_codec.get(index), slices.get(index)
        row = [
            block.name,
            milliseconds(block.latency),
            " + ".join("x".join(map(str, t.shape)) for t in block.crossing) or "answer",
            kilobytes(block.crossing_bytes) if block.crossing else "",
            kilobytes(packed.nbytes) if packed else "",
            f"{packed.encode * 1e6:.0f} | {packed.decode * 1e6:.0f}" if packed else "",
            _slice_times(timed) if timed else "",
            f"{machine.device_memory[index] / 1e6:.1f} | {machine.edge_memory[index] / 1e6:.1f}",
        ]
        if leaks:
            row.append("" if block.leakage is None else f"{block.leakage:.2f}")
        rows.append(row)
    host = measured.host
    print_table(
        f"{measured.model} on {measured.name}"
        + (f": {host.cpu}, {host.threads} thread(s), core on {host.isa}" if host else ""),
        [
            "block",
            "latency (ms)",
            "what crosses after it",
            "float32 (kB)",
            f"{TransferSpec().label} (kB)",
            "codec (us)",
            "slices (ms)",
            "memory (MB)",
            *(["leakage"] if leaks else []),
        ],
        rows,
        caption=_summary(measured) + written,
    )


def _slice_times(timed: SliceProfile) -> str:
    times = [timed.device, timed.edge]
    times += [] if timed.device_int8 is None else [timed.device_int8]
    return " | ".join(map(milliseconds, times))


def _summary(measured: Profile) -> str:
    total = sum(block.latency for block in measured.blocks)
    off = total / measured.network_latency - 1
    int8 = measured.network_latency_int8
    text = "Codec: encode | decode. Slices and memory: device | edge"
    text += ". " if int8 is None else "; the third slice is the device's in int8. "
    text += f"Uncut network {milliseconds(measured.network_latency)} ms, "
    text += "" if int8 is None else f"in int8 {milliseconds(int8)} ms, "
    text += f"blocks one by one {milliseconds(total)} ms ({off:+.0%}"
    if abs(off) > 0.05:
        text += (
            f": {measured.runtime} fuses across the borders of blocks, and a call costs something; "
            "plan takes slices that were measured, and scales the others by them"
        )
    text += ")."
    for image in measured.images:
        quality = f"-{image.quality}" if image.quality else ""
        text += (
            f" {image.format}{quality} {kilobytes(image.nbytes)} kB in "
            f"{milliseconds(image.encode)}+{milliseconds(image.decode)} ms;"
        )
    if measured.images:
        text = f"{text[:-1]} ({measured.images[0].source})."
    for each in measured.encoders:
        if each.spec.entropy == "ans":
            text += (
                f" {str(each.spec.encoder).capitalize()} encoder {kilobytes(each.nbytes)} kB in "
                f"{milliseconds(each.encoder + each.encode)}"
                f"+{milliseconds(each.decode + each.decoder)} ms."
            )
    text += f" The Offloader takes {milliseconds(2 * measured.offload.request)} ms a request."
    return f"{text} {measured.entropy_note}".rstrip()
