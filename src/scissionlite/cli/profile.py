"""``scissionlite profile``: measure a network on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from scissionlite.cli.network import (
    ClassesOption,
    ModelArgument,
    SizeOption,
    ThreadsOption,
    WeightsOption,
    capture_model,
    preprocessing_for,
)
from scissionlite.cli.output import JsonOption, kilobytes, milliseconds, print_json, print_table
from scissionlite.cli.remote import RemoteControlOption, RemoteOption, profile_there


def profile(
    model: ModelArgument,
    size: SizeOption = 224,
    num_classes: ClassesOption = None,
    weights: WeightsOption = None,
    threads: ThreadsOption = None,
    name: Annotated[str | None, typer.Option(help="What to call this machine.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Photographs to measure JPEG on.", exists=True, file_okay=False),
    ] = None,
    repetitions: Annotated[int, typer.Option(help="Measurements of each block.", min=1)] = 20,
    runtime: Annotated[
        Literal["torchscript", "onnx"], typer.Option(help="What runs the blocks.")
    ] = "torchscript",
    max_tensors: Annotated[
        int, typer.Option(help="Most tensors that may cross.", min=1, max=16)
    ] = 4,
    remote: RemoteOption = None,
    control: RemoteControlOption = None,
    out: Annotated[Path | None, typer.Option(help="Write the profile to this JSON file.")] = None,
    json: JsonOption = False,
) -> None:
    """Measure every block, codec and image step of a network on this machine."""
    if remote is not None:
        measured = profile_there(
            remote,
            control,
            model,
            local={"--weights": weights, "--images": images, "--name": name},
            size=size,
            num_classes=num_classes,
            runtime=runtime,
            threads=threads,
            repetitions=repetitions,
            max_tensors=max_tensors,
        )
    else:
        from scissionlite.preprocessor.data import sample_frames
        from scissionlite.preprocessor.trainer import progress_bar
        from scissionlite.scissiontl.profiler import profile as measure

        graph = capture_model(model, size=size, num_classes=num_classes, weights=weights)
        frames = sample_frames(images, preprocessing_for(size), count=32) if images else []
        with progress_bar(not json) as bar:
            measured = measure(
                graph,
                name=name,
                runtime=runtime,
                threads=threads,
                images=frames,
                repetitions=repetitions,
                progress=bar,
            )
    if out is not None:
        measured.save(out)
    if json:
        print_json(measured)
        return
    packed = {(t.block, t.spec.label): t for t in measured.transfers}
    labels = list(dict.fromkeys(t.spec.label for t in measured.transfers))
    rows = []
    for index, block in enumerate(measured.blocks):
        row = [
            block.name,
            milliseconds(block.latency),
            "x".join(map(str, block.output_shape)),
            kilobytes(block.output_bytes) if block.output_bytes else "answer",
        ]
        for label in labels[1:]:
            transfer = packed.get((index, label))
            row.append(
                f"{kilobytes(transfer.nbytes)} in {milliseconds(transfer.encode)}+"
                f"{milliseconds(transfer.decode)}"
                if transfer
                else ""
            )
        rows.append(row)
    total = sum(block.latency for block in measured.blocks)
    image = measured.image
    print_table(
        f"{model} on {measured.name}: {measured.host.cpu}, {measured.host.threads} thread(s), "
        f"core on {measured.host.isa}",
        ["block", "latency (ms)", "output", "float32 (kB)"]
        + [f"{label}: kB in encode+decode (ms)" for label in labels[1:]],
        rows,
        caption=f"Uncut network {milliseconds(measured.network_latency)} ms, blocks one by one "
        f"{milliseconds(total)} ms."
        + (
            f" JPEG-{image.quality} of the input: {kilobytes(image.nbytes)} kB in "
            f"{milliseconds(image.encode)}+{milliseconds(image.decode)} ms ({image.source})."
            if image
            else ""
        )
        + (f" Written to {out}." if out else ""),
    )
