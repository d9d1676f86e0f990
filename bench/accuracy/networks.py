"""The uncut networks: how each is built, trained once, and scored.

================  =========================================================================
``lite0``         EfficientNet-Lite0 with ImageNet weights, fine-tuned on the steel photographs
``lite0_200``     the same at the photographs' own size; only its classifier is trained, on
                  features that are computed once
``resnet18``      torchvision's, trained on them from random weights: no package that the project
                  may depend on carries ImageNet weights for it; so are ``resnet50``,
                  ``densenet169`` and ``mobilenet_v2``, for fewer epochs
``segmentation``  the steel ``lite0`` down to its fifth stage and a small decoder, on mosaics
``imagenet``      EfficientNet-Lite0 with its ImageNet weights as they are
================  =========================================================================
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

import scissionlite as sl
from bench.accuracy.photographs import (
    IMAGENET,
    SIZE,
    STEEL,
    WHOLE_STEEL,
    Augmented,
    ImageNetPhotographs,
    Mosaics,
    Pictures,
    steel,
)
from scissionlite.models import load_model
from scissionlite.preprocessor.data import ImageFolder, Sample
from scissionlite.preprocessor.scoring import evaluate
from scissionlite.preprocessor.tasks import CLASSIFICATION, SEGMENTATION, Task

CLASSES = 6
TRAINING_MOSAICS = 2472  # two a training photograph
TEST_MOSAICS = 534
LITE0 = "scissionlite.models:efficientnet_lite0_imagenet"


class Segmenter(nn.Module):
    """EfficientNet-Lite0 down to its fifth stage, and a decoder back to the input's size.

    From ``(N, 3, H, W)`` to logits ``(N, 6, H, W)``; H and W are multiples of 16. Without skip
    connections: a cut anywhere in the encoder sends one tensor. Stages six and seven are left out,
    because they would halve the map once more.
    """

    def __init__(self) -> None:
        super().__init__()
        encoder = load_model("timm:efficientnet_lite0")
        self.conv_stem = cast(nn.Module, encoder.conv_stem)
        self.bn1 = cast(nn.Module, encoder.bn1)
        self.blocks = cast(nn.Sequential, encoder.blocks)[:5]
        self.decoder = nn.Sequential(
            nn.Conv2d(112, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            _separable(128, 128),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            _separable(128, 64),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            _separable(64, 48),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            _separable(48, 32),
        )
        self.logits = nn.Conv2d(32, CLASSES, 1)
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.blocks(self.bn1(self.conv_stem(x)))
        answer: torch.Tensor = self.upsample(self.logits(self.decoder(features)))
        return answer


def _separable(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 5, padding=2, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Network(NamedTuple):
    """One of the networks, with its data and its task."""

    build: Callable[[], nn.Module]
    """The network with random or ImageNet weights."""
    model: str
    """Its name in bundles."""
    preprocessing: sl.Preprocessing
    cuts: tuple[str, ...]
    """The slicing points of the experiments, in the order of the network."""
    task: Task
    test: Callable[[Path], Pictures]
    """Opens the test data in the folder of the data."""
    epochs: tuple[int, int, int] = (24, 16, 8)
    """From random weights: epochs on small cut-outs, on cut-outs, and on whole photographs."""
    small: int = 96
    """Height and width of the small cut-outs, in pixels."""


def _steel_test(data: Path) -> Pictures:
    return steel(data, "test")


def test_mosaics(data: Path) -> Mosaics:
    """Mosaics of test photographs only, with another seed than the training mosaics."""
    return Mosaics(steel(data, "test"), TEST_MOSAICS, seed=1)


def training_mosaics(data: Path) -> Mosaics:
    """Mosaics of training photographs only, mirrored at random."""
    return Mosaics(steel(data, "train"), TRAINING_MOSAICS, augment=True)


STAGES = ("blocks.0", "blocks.1", "blocks.2", "blocks.3")

NETWORKS = {
    "lite0": Network(
        lambda: load_model(LITE0, num_classes=CLASSES),
        LITE0,
        STEEL,
        STAGES,
        CLASSIFICATION,
        _steel_test,
    ),
    "lite0_200": Network(
        lambda: load_model(LITE0, num_classes=CLASSES),
        LITE0,
        WHOLE_STEEL,
        STAGES,
        CLASSIFICATION,
        lambda data: steel(data, "test", WHOLE_STEEL),
    ),
    "resnet18": Network(
        lambda: load_model("torchvision:resnet18", num_classes=CLASSES),
        "torchvision:resnet18",
        STEEL,
        ("maxpool", "layer1", "layer2", "layer3"),
        CLASSIFICATION,
        _steel_test,
    ),
    "resnet50": Network(
        lambda: load_model("torchvision:resnet50", num_classes=CLASSES),
        "torchvision:resnet50",
        STEEL,
        ("layer1", "layer2", "layer3"),
        CLASSIFICATION,
        _steel_test,
        (6, 1, 1),
        small=64,
    ),
    "densenet169": Network(
        lambda: load_model("torchvision:densenet169", num_classes=CLASSES),
        "torchvision:densenet169",
        STEEL,
        ("features.pool0", "features.transition1"),
        CLASSIFICATION,
        _steel_test,
        (6, 1, 1),
        small=64,
    ),
    "mobilenet_v2": Network(
        lambda: load_model("torchvision:mobilenet_v2", num_classes=CLASSES),
        "torchvision:mobilenet_v2",
        STEEL,
        ("features.3", "features.6", "features.10"),
        CLASSIFICATION,
        _steel_test,
        (10, 4, 3),
    ),
    "segmentation": Network(
        Segmenter,
        "bench.accuracy.networks:Segmenter",
        STEEL,
        STAGES,
        SEGMENTATION,
        test_mosaics,
    ),
    "imagenet": Network(
        lambda: load_model(LITE0),
        LITE0,
        IMAGENET,
        STAGES,
        CLASSIFICATION,
        lambda data: ImageNetPhotographs(data / "imagenet-sample-100"),
    ),
}


def load(name: str, out: Path) -> nn.Module:
    """Load a trained network, in evaluation mode.

    Raises
    ------
    FileNotFoundError
        If it has not been trained yet.
    """
    network = NETWORKS[name].build()
    if name != "imagenet":
        network.load_state_dict(torch.load(out / f"{name}.pt", weights_only=True))
    return network.eval()


def train(name: str, data: Path, out: Path) -> float:
    """Train a network, write its state dict to ``out/NAME.pt``, and return its test score.

    The test score chooses nothing: the last weights are kept.
    """
    torch.manual_seed(0)  # for the weights that start at random
    network = NETWORKS[name].build()
    started = time.perf_counter()
    if name == "lite0":
        _fit(network, steel(data, "train").side(None), epochs=4, learning_rate=1e-3)
    elif name == "lite0_200":
        _fit_classifier(network, steel(data, "train", WHOLE_STEEL))
    elif name == "segmentation":
        # The encoder starts from lite0, which was trained on steel; the decoder starts at random.
        own, trained = network.state_dict(), load("lite0", out).state_dict()
        network.load_state_dict({key: trained.get(key, value) for key, value in own.items()})
        _fit(network, training_mosaics(data), epochs=6, learning_rate=2e-3)
    else:
        # From random weights, with small pictures first: the early epochs cost half as much.
        # Cut-outs show defects larger than they are, so the last epochs see whole photographs.
        photographs = steel(data, "train")
        small, cut_out, whole = NETWORKS[name].epochs
        for size, epochs, rate in ((NETWORKS[name].small, small, 2e-3), (SIZE, cut_out, 1e-3)):
            _fit(network, Augmented(photographs, size), epochs=epochs, learning_rate=rate)
        _fit(network, photographs.side(None), epochs=whole, learning_rate=5e-4)
    minutes = (time.perf_counter() - started) / 60
    task = NETWORKS[name].task
    score = evaluate(network, cast("Dataset[Sample]", NETWORKS[name].test(data)), task=task)
    out.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), out / f"{name}.pt")
    print(f"{name}: {task.metric} {score:.2%}, {minutes:.1f} minutes of training")
    return score


def _fit_classifier(network: Any, photographs: ImageFolder) -> None:
    """Train the last layer alone, on features of the photographs as they are."""
    network.eval()
    pairs = []
    with torch.no_grad():
        for x, labels in DataLoader(cast("Dataset[Sample]", photographs.side(False)), 32):
            features = network.global_pool(network.forward_features(x)).flatten(1)
            pairs.append((features, labels))
    x, y = (torch.cat(each) for each in zip(*pairs, strict=True))
    optimizer = torch.optim.AdamW(network.classifier.parameters(), lr=3e-3, weight_decay=1e-2)
    for _ in range(60):
        for batch in torch.randperm(len(x)).split(64):
            loss = F.cross_entropy(network.classifier(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def _fit(network: nn.Module, data: Dataset[Sample], *, epochs: int, learning_rate: float) -> None:
    """Train with cross entropy under AdamW and a one-cycle schedule.

    In bfloat16 autocast where the processor has AVX-512: with AVX2 it takes 15 times as long as
    float32 (ResNet-50). This is not scissionlite's own trainer, so that the uncut networks stay the
    same when that changes.
    """
    torch.manual_seed(0)  # for augmentation and dropout
    loader = DataLoader(
        data, 32, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(0)
    )
    cast(Any, network).to(memory_format=torch.channels_last)  # torch's stub lacks the option
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=learning_rate, total_steps=epochs * len(loader)
    )
    bfloat16 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    for epoch in range(epochs):
        right = seen = 0.0
        for x, labels in loader:
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                answer = network(x.to(memory_format=torch.channels_last))
            loss = F.cross_entropy(answer.float(), labels, label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            right += float((answer.argmax(1) == labels).sum())
            seen += labels.numel()
        print(
            f"epoch {epoch + 1} of {epochs}: {right / seen:.2%} of the training data right",
            flush=True,
        )
    cast(Any, network).to(memory_format=torch.contiguous_format)
