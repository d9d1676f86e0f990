"""Bundles: written whole or not at all, and refused when a file in them was altered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import BundleFactory

from scissionlite.bundle import Bundle, file_sha256
from scissionlite.errors import BundleError
from scissionlite.graph.tensors import TensorInfo
from scissionlite.manifest import Manifest, SliceFile


def write(folder: Path, content: bytes = b"weights") -> Bundle:
    source = folder.parent / f"{folder.name}.source"
    source.write_bytes(content)
    info = TensorInfo("input", (1, 3, 8, 8))
    file = SliceFile("network.pt", "torchscript", file_sha256(source), len(content))
    manifest = Manifest(
        kind="local",
        model="net",
        inputs=(info,),
        outputs=(info,),
        slices={"network": (file,)},
    )
    return Bundle.write(folder, manifest, {"network.pt": source})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    bundle = write(tmp_path / "b")
    again = Bundle.load(tmp_path / "b")
    assert again.manifest == bundle.manifest
    assert again.id == bundle.id
    assert again.slice_path("network").read_bytes() == b"weights"
    assert [p.name for p in tmp_path.iterdir()] == ["b"]  # nothing temporary is left


def test_a_bundle_is_replaced_and_its_id_changes_with_its_slices(tmp_path: Path) -> None:
    first = write(tmp_path / "b")
    second = write(tmp_path / "b", b"other weights")
    assert first.id != second.id
    assert second.slice_path("network").read_bytes() == b"other weights"


def test_nothing_but_a_bundle_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("years of work")
    with pytest.raises(BundleError, match="is not a bundle: choose another folder"):
        write(tmp_path / "b")
    assert (tmp_path / "b" / "thesis.tex").read_text() == "years of work"


def test_altered_or_missing_slices_are_refused(tmp_path: Path) -> None:
    bundle = write(tmp_path / "b")
    file = tmp_path / "b" / "network.pt"
    file.write_bytes(b"Weights")
    with pytest.raises(BundleError, match="does not match its digest"):
        bundle.slice_path("network")
    file.unlink()
    with pytest.raises(BundleError, match="is missing"):
        bundle.slice_path("network")
    with pytest.raises(BundleError, match="has no edge slice"):
        bundle.slice_path("edge")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "split"}, "needs slicing_point, crossing, transfer, slices.device, slices.edge"),
        ({"kind": "image"}, "needs image_format, preprocessing"),
        ({"kind": "cloud"}, "Invalid enum value"),
        ({"format": "zip"}, "format"),
        ({"version": 99}, "bundle format 99"),
        ({"slices": {}}, "needs slices.network"),
        ({"model": 5}, "Expected `str`"),
        (
            {"slices": {"network": [{"file": "../x", "runtime": "", "sha256": "", "bytes": 1}]}},
            "own folder",
        ),
        ({"slices": {"network": []}}, "needs slices.network"),
        (
            {"slices": {"network": [{"file": "a", "runtime": "r", "sha256": "", "bytes": 1}] * 2}},
            "more than one network slice for the same runtime",
        ),
        ({"preprocessing": {"size": [8, 8], "std": [0, 0, 0]}}, "std > 0"),
        ({"transfer": {"pool": 3}}, "pool=3"),
        ({"inputs": []}, "needs inputs"),
        ({"max_batch": 0}, "max_batch must be 1 to 1024"),
        ({"outputs": [{"name": "a", "shape": [1]}] * 2}, "2 outputs, but the network answers one"),
    ],
)
def test_invalid_manifests_are_told(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    write(tmp_path / "b")
    path = tmp_path / "b" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BundleError, match=said):
        Bundle.load(tmp_path / "b")


@pytest.mark.parametrize(
    ("transfer", "quantization", "said"),
    [
        ({}, None, "one for the tensor"),
        ({"dtype": "float16"}, {"scale": 1.0, "zero_point": 0}, "not quantized"),
        ({"granularity": "channel"}, {"scale": 1.0, "zero_point": 0}, "each of 8 channels"),
        ({}, {"scale": [1.0] * 7, "zero_point": [0] * 7}, "one for each of 7 channels"),
        ({}, {"scale": [1.0] * 8, "zero_point": 0}, "must both be tuples"),
        ({}, {"scale": -1.0, "zero_point": 0}, "finite and positive"),
        ({"dtype": "int4"}, {"scale": 1.0, "zero_point": 8}, "int4"),
        ({"upsample": "cubic"}, {"scale": 1.0, "zero_point": 0}, "upsample='cubic'"),
        ({"entropy_level": 20}, {"scale": 1.0, "zero_point": 0}, "entropy_level=20"),
        ({"entropy": "ans"}, {"scale": 1.0, "zero_point": 0}, "needs tables"),
    ],
)
def test_scales_that_do_not_go_with_the_transfer_layer_are_told(
    make_bundle: BundleFactory, transfer: dict[str, Any], quantization: Any, said: str
) -> None:
    path = make_bundle().path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["crossing"][0]["quantization"] = quantization
    manifest["crossing"][0]["transfer"] |= transfer
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=said):
        Bundle.load(path.parent)


def test_what_is_no_bundle_is_told(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        Bundle.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match="is not valid"):
        Bundle.load(tmp_path)
