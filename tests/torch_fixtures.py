"""Fixtures that need torch: textures, a network trained on them, and bundles of a tiny network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import Toy, write_bundle
from conftest import CROSSING, INPUT, OUTPUT, PREPROCESSING, TEXTURES, BundleFactory
from filelock import FileLock
from networks import small_network
from stored_bundles import DEFAULT_RUNTIME, store_bundle, stored_name
from torch import nn

from scissionlite.bundle import Bundle
from scissionlite.demo.textures import write_dataset
from scissionlite.graph.capture import capture
from scissionlite.graph.graph import Graph
from scissionlite.images import ImageFormat
from scissionlite.manifest import Kind
from scissionlite.preprocessor import trainer
from scissionlite.preprocessor.data import ImageFolder, sample_frames
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.runtimes import RuntimeName
from scissionlite.scissiontl.profile import Profile
from scissionlite.scissiontl.profiler import profile
from scissionlite.transfer_layer import Quantization, TransferSpec


class _Head(nn.Module):
    """The rest of a tiny network: pooling and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(CROSSING[1], OUTPUT[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = self.classifier(torch.relu(x).mean((2, 3)))
        return pooled


@pytest.fixture(scope="session")
def textures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated data set: six kinds of texture."""
    folder = tmp_path_factory.mktemp("textures")
    write_dataset(folder, train=40, test=8, seed=5)
    return folder


@pytest.fixture(scope="session")
def small_graph(
    textures: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Graph:
    """A small network, trained as well as half a minute on textures allows."""
    model = small_network()
    folder = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        folder = folder.parent  # common to the processes of pytest-xdist: one of them trains
    weights = folder / "small_network.pt"
    with FileLock(folder / "small_network.lock"):
        if not weights.exists():
            recipe = Recipe(epochs=14, batch_size=16, learning_rate=1e-2)
            trainer.train(model, ImageFolder(textures / "train", TEXTURES), recipe)
            torch.save(model.state_dict(), weights)
    model.load_state_dict(torch.load(weights, weights_only=True))
    return capture(model, torch.zeros(1, 3, *TEXTURES.size), name="small")


@pytest.fixture(scope="session")
def measured_textures(small_graph: Graph, textures: Path) -> Profile:
    """The small network's profile, with 16 photographs."""
    frames = sample_frames(textures / "train", TEXTURES, count=16)
    return profile(
        small_graph, images=frames, preprocessing=TEXTURES, repetitions=1, warm_up=0, slices=2
    )


def _quantization(spec: TransferSpec) -> Quantization | None:
    """Scales for the output of the tiny network's stem, a different one per channel."""
    if not spec.quantized:
        return None
    if spec.granularity == "tensor":
        return Quantization.from_range(-5.4, 7.35, spec.dtype, spec.scheme)
    factors = np.linspace(0.2, 1.0, CROSSING[1])
    return Quantization.from_range(-5.4 * factors, 7.35 * factors, spec.dtype, spec.scheme)


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> BundleFactory:
    """Make a bundle of a tiny network, of any kind; equal arguments give equal slices."""

    def make(
        kind: Kind = "split",
        *,
        transfer: TransferSpec | None = None,
        seed: int = 1,
        max_batch: int = 1,
        image_format: ImageFormat = "jpeg",
        runtime: RuntimeName = DEFAULT_RUNTIME,
    ) -> Bundle:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            # 15 x 15 features: the windows at the border are partial.
            stem = nn.Sequential(nn.Conv2d(3, CROSSING[1], 3, stride=2), nn.BatchNorm2d(8))
            head = _Head()
        spec = transfer or TransferSpec()
        bundle = write_bundle(
            Toy(f"tiny-{seed}", stem, head, INPUT, CROSSING, OUTPUT),
            tmp_path_factory.mktemp("bundle"),
            kind,
            transfer=spec,
            quantization=_quantization(spec),
            max_batch=max_batch,
            image_format=image_format,
            preprocessing=PREPROCESSING,
            classes=("ant", "bee", "cat", "dog", "eel"),
            runtime=runtime,
        )
        store_bundle(bundle, stored_name(kind, spec, seed, max_batch, image_format, runtime))
        return bundle

    return make
