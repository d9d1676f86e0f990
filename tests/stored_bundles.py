"""Bundles that tests made where torch is, kept for a device that has none.

SCISSIONLITE_TEST_BUNDLES names a folder. Where torch is, each bundle that a test makes is copied
into it; where it is not, the same test takes it from there. SCISSIONLITE_TEST_RUNTIME=onnx makes
the slices ONNX Runtime's, as a device without torch needs them (.ci/test-arm64).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import cast

import pytest
from conftest import BundleFactory

from scissionlite.bundle import Bundle
from scissionlite.images import ImageFormat
from scissionlite.manifest import Kind
from scissionlite.runtimes import RuntimeName
from scissionlite.transfer_layer import TransferSpec

FOLDER = os.environ.get("SCISSIONLITE_TEST_BUNDLES", "")
DEFAULT_RUNTIME = cast(RuntimeName, os.environ.get("SCISSIONLITE_TEST_RUNTIME", "torchscript"))


def stored_name(
    kind: Kind,
    spec: TransferSpec,
    seed: int,
    max_batch: int,
    image_format: ImageFormat,
    runtime: RuntimeName,
) -> str:
    """Name of the bundle that :func:`make_bundle` makes of these arguments."""
    text = repr((kind, spec, seed, max_batch, image_format, runtime))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def store_bundle(bundle: Bundle, name: str) -> None:
    """Keep a bundle, if there is a folder for it."""
    if FOLDER and not (Path(FOLDER) / name).exists():
        shutil.copytree(bundle.path, Path(FOLDER) / name)


@pytest.fixture(scope="session")
def make_bundle() -> BundleFactory:
    """Take the bundle that :func:`torch_fixtures.make_bundle` made of the same arguments."""

    def make(
        kind: Kind = "split",
        *,
        transfer: TransferSpec | None = None,
        seed: int = 1,
        max_batch: int = 1,
        image_format: ImageFormat = "jpeg",
        runtime: RuntimeName = DEFAULT_RUNTIME,
    ) -> Bundle:
        spec = transfer or TransferSpec()
        return Bundle.load(
            Path(FOLDER) / stored_name(kind, spec, seed, max_batch, image_format, runtime)
        )

    return make
