"""``scissionlite inspect``: what is in a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scissionlite.bundle import Bundle
from scissionlite.cli.output import JsonOption, kilobytes, print_json, print_table


def inspect(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")], json: JsonOption = False
) -> None:
    """Show a bundle's manifest, after checking every slice against its digest."""
    opened = Bundle.load(bundle)
    for role in opened.manifest.slices:
        opened.slice_path(role)
    manifest = opened.manifest
    if json:
        print_json({"id": opened.id, "manifest": manifest})
        return
    rows = [["id", opened.id], ["model", manifest.model], ["kind", manifest.kind]]
    if manifest.slicing_point and manifest.crossing and manifest.transfer:
        cut, crossing = manifest.slicing_point, manifest.crossing
        sent = manifest.transfer.packed_nbytes(crossing.shape)
        rows += [
            ["slicing point", f"after {cut.after}, before {cut.before}"],
            ["crosses", f"{crossing.dtype} {'x'.join(map(str, crossing.shape))}"],
            ["transfer layer", manifest.transfer.label],
            [
                "sent",
                f"{'at most ' if manifest.transfer.entropy else ''}{kilobytes(sent)} kB, "
                f"{crossing.nbytes / sent:.1f} times fewer bytes than the "
                f"{kilobytes(crossing.nbytes)} kB in float32",
            ],
        ]
    if manifest.quantization:
        scales, zero_points = manifest.quantization.groups
        told = f"scale {min(scales):.6g}, zero point {min(zero_points)}"
        if manifest.quantization.channels is not None:
            told = (
                f"{len(scales)} channels, scales {min(scales):.6g} to {max(scales):.6g}, "
                f"zero points {min(zero_points)} to {max(zero_points)}"
            )
        rows.append(["quantization", told])
    if manifest.jpeg_quality:
        rows.append(["jpeg quality", str(manifest.jpeg_quality)])
    if manifest.accuracy:
        a = manifest.accuracy
        rows.append(
            ["accuracy", f"{a.before:.2%} before, {a.after:.2%} after, on {a.samples} samples"]
        )
    if manifest.training:
        t = manifest.training
        rows.append(["retrained", f"{t.epochs} epochs in {t.seconds:.0f} s, seed {t.seed}"])
    for role, file in manifest.slices.items():
        rows.append([f"{role} slice", f"{file.file}, {file.runtime}, {kilobytes(file.bytes)} kB"])
    if manifest.classes:
        rows.append(["classes", ", ".join(manifest.classes)])
    rows += [["created", manifest.created], *([k, v] for k, v in manifest.versions.items())]
    print_table(f"{bundle}: every slice matches its digest", ["", "value"], rows)
