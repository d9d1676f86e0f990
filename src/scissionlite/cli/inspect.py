"""``scissionlite inspect``: what is in a bundle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from scissionlite.bundle import Bundle
from scissionlite.cli.key_options import TrustOption
from scissionlite.cli.output import JsonOption, kilobytes, print_json, print_table
from scissionlite.manifest import Accuracy, CrossingTensor, Manifest, SlicingPointInfo
from scissionlite.transfer_layer import Quantization, TransferSpec

_SHOWN_CLASSES = 12
"""Most classes whose share of right answers is shown."""


def inspect(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    trust: TrustOption = None,
    json: JsonOption = False,
) -> None:
    """Show a bundle's manifest, after checking every slice against its digest."""
    opened = Bundle.load(bundle, trust)
    for role in opened.manifest.slices:
        for runtime in opened.runtimes(role):
            opened.slice_path(role, runtime)
    manifest = opened.manifest
    if json:
        print_json({"id": opened.id, "manifest": manifest})
        return
    rows = [["id", opened.id], ["model", manifest.model], ["kind", manifest.kind]]
    if manifest.slicing_point and manifest.transfer:
        rows += _hop_rows(manifest.slicing_point, manifest.crossing, manifest.transfer)
    if (hop := manifest.next_hop) is not None:
        rows.append(["tiers", "3: device, edge, cloud; from edge to cloud:"])
        rows += _hop_rows(hop.slicing_point, hop.crossing, hop.transfer)
        rows.append(["id on the second link", opened.second_hop.id])
    if manifest.image_format:
        quality = f", quality {manifest.jpeg_quality}" if manifest.jpeg_quality else ""
        rows.append(["image", f"{manifest.image_format}{quality}"])
    if manifest.max_batch > 1:
        rows.append(["batch", f"1 to {manifest.max_batch}"])
    if manifest.accuracy:
        a = manifest.accuracy
        rows.append(
            [a.metric, f"{a.before:.2%} before, {a.after:.2%} after, on {a.samples} samples"]
        )
        if a.recalls:
            rows.append(["right of each class", _recalls_text(a, manifest.classes)])
    if manifest.training:
        t = manifest.training
        how = "with labels" if t.labels else "without labels"
        how += f", distillation {t.distillation:g}" if t.distillation else ""
        rows.append(["retrained", f"{t.epochs} epochs in {t.seconds:.0f} s, {how}, seed {t.seed}"])
        if t.estimated_bytes is not None:
            estimate = f"{t.estimated_bytes:.0f} bytes of a training input estimated"
            rows.append(["bytes in the loss", f"weight {t.rate:.3g}, {estimate}"])
    rows += _variant_rows(manifest)
    rows += _slice_rows(manifest)
    if manifest.classes:
        rows.append(["classes", ", ".join(manifest.classes)])
    rows += [["created", manifest.created], *([k, v] for k, v in manifest.versions.items())]
    signed = "" if trust is None else f", signed by a key of {trust}"
    print_table(f"{bundle}: every slice matches its digest{signed}", ["", "value"], rows)


def _hop_rows(
    cut: SlicingPointInfo, crossing: Sequence[CrossingTensor], transfer: TransferSpec
) -> list[list[str]]:
    """Where the network is cut, and what crosses there."""
    rows = [["slicing point", f"after {cut.after}, before {cut.before}"]]
    for tensor in crossing:
        shape = "x".join(map(str, tensor.shape))
        if tensor.feature_shape is None:
            rows.append(["crosses", f"{tensor.dtype} {shape}: {tensor.transfer.label}"])
        else:
            whole = "x".join(map(str, tensor.feature_shape))
            label = f"{transfer.label}, {shape} of them"
            rows.append(["crosses", f"{tensor.dtype} {whole}: {label}"])
        if tensor.quantization is not None:
            rows.append(["", _scale_text(tensor.quantization)])
        if tensor.tables is not None:
            rows.append(["", _tables_text(tensor)])
    sent = sum(t.transfer.packed_nbytes(t.shape) for t in crossing)
    whole_bytes = sum(t.feature_nbytes for t in crossing)
    rows.append(
        [
            "sent",
            f"{'at most ' if transfer.entropy else ''}{kilobytes(sent)} kB, "
            f"{whole_bytes / sent:.1f} times fewer bytes than the "
            f"{kilobytes(whole_bytes)} kB in float32",
        ]
    )
    return rows


def _recalls_text(accuracy: Accuracy, classes: tuple[str, ...]) -> str:
    """The share of each class that is answered right; of many classes, the lowest."""
    names = classes or tuple(f"class {i}" for i in range(len(accuracy.recalls)))
    known = [(r, name) for r, name in zip(accuracy.recalls, names, strict=True) if r is not None]
    if len(known) <= _SHOWN_CLASSES:
        return ", ".join(f"{name} {recall:.1%}" for recall, name in known)
    lowest = ", ".join(f"{name} {recall:.1%}" for recall, name in sorted(known)[:_SHOWN_CLASSES])
    return f"lowest of {len(known)}: {lowest}"


def _variant_rows(manifest: Manifest) -> list[list[str]]:
    """The variants of a bundle that has several: cut, bytes, accuracy and slices of each."""
    if not manifest.variants:
        return []
    rows = []
    for variant in manifest.every_variant:
        nbytes, accuracy = float(variant.sent_bytes), variant.accuracy
        text = f"after {variant.slicing_point.after}, "
        if accuracy is not None:
            nbytes = accuracy.sent_bytes
            text += f"{accuracy.metric} {accuracy.after:.2%}, "
        slices = f"{' + '.join(variant.device)} | {variant.edge}"
        rows.append([f"variant {variant.name}", f"{text}{nbytes / 1e3:.2f} kB, {slices}"])
    return rows


def _slice_rows(manifest: Manifest) -> list[list[str]]:
    """Every slice's file, and the accuracy of a fallback in int8."""
    rows = [
        [
            f"{role} slice",
            f"{file.file}, {file.runtime}, {file.precision}, {kilobytes(file.bytes)} kB",
        ]
        for role, files in manifest.slices.items()
        for file in files
    ]
    if manifest.local_accuracy:
        a = manifest.local_accuracy
        rows.append(["local fallback", f"{a.metric} {a.after:.2%} in int8"])
    return rows


def _tables_text(tensor: CrossingTensor) -> str:
    tables = tensor.tables
    assert tables is not None  # the caller has checked it
    codes = math.prod(tensor.transfer.packed_shape(tensor.shape))
    by = "" if tables.bounds is None else " by neighbours"
    return (
        f"entropy tables: {tables.tables}{by} for {tables.channels} channels, "
        f"{kilobytes(len(tables.data))} kB; {tables.bits:.2f} bits a code, "
        f"{kilobytes(math.ceil(codes * tables.bits / 8))} kB expected"
    )


def _scale_text(quantization: Quantization) -> str:
    scales, zero_points = quantization.groups
    if quantization.channels is None:
        return f"scale {min(scales):.6g}, zero point {min(zero_points)}"
    return (
        f"{len(scales)} channels, scales {min(scales):.6g} to {max(scales):.6g}, "
        f"zero points {min(zero_points)} to {max(zero_points)}"
    )
