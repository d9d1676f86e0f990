"""The networks of the harness, with their frames and what is known of their accuracy.

Where `bench.accuracy` has trained a network, its weights and its records of accuracy are in one
folder (`--trained`, build/accuracy), and both are taken from there. Elsewhere weights are those of
ImageNet or random (from a seed), which changes neither times nor bytes without an entropy stage;
records are then those of docs/accuracy. They say which Transfer Layer keeps the accuracy within
half a point, and which JPEG.
"""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn

import scissionlite as sl
from bench.accuracy.networks import LITE0, Segmenter
from bench.accuracy.networks import NETWORKS as TRAINED
from bench.accuracy.networks import load as load_trained
from bench.accuracy.records import JPEGS, RUNS, Jpeg, Run, read
from scissionlite.models import load_model

RECORDS = Path(__file__).parents[2] / "docs" / "accuracy"
FLOOR = 0.005
"""Points of accuracy, as a share, that ours may lose."""


class Network(NamedTuple):
    """A network of the harness.

    Attributes
    ----------
    model
        A name for :func:`scissionlite.models.load_model`, where it was not trained.
    checkpoint
        Its name in `bench.accuracy`, if that can train it.
    size
        Height and width of its input.
    frames
        Folder of its frames, in the project's shared data.
    records
        Its name in docs/accuracy, or None.
    trained
        Whether the first layers of `model` have ImageNet weights. Where they are random, the bytes
        after an entropy stage would be those of random features: ours has no such stage there.
    int8
        Whether ONNX Runtime can quantize it.
    most_repetitions
        Most repetitions of its profile: packing its feature maps in every way takes long.
    """

    model: str
    size: int
    frames: str
    records: str | None = None
    checkpoint: str | None = None
    trained: bool = True
    int8: bool = True
    most_repetitions: int = 100
    calibrated: int = 24
    """How many frames calibrate its bundles."""

    def is_trained(self, folder: Path) -> bool:
        """Whether `bench.accuracy` has trained it: its weights are in the folder."""
        return self.checkpoint is not None and (folder / f"{self.checkpoint}.pt").exists()

    def weights(self, folder: Path) -> str:
        """Whose weights it has, in words."""
        if self.is_trained(folder):
            return f"trained on steel (`python -m bench.accuracy networks {self.checkpoint}`)"
        return "of ImageNet in its first layers" if self.trained else "random"


_STEEL = "neu-surface-defects/test"

NETWORKS = {
    "efficientnet_lite0": Network(
        "bench.end_to_end.networks:steel", 128, _STEEL, records="lite0", checkpoint="lite0"
    ),
    "resnet50": Network("torchvision:resnet50", 128, _STEEL, checkpoint="resnet50", trained=False),
    "densenet169": Network(
        "torchvision:densenet169", 128, _STEEL, checkpoint="densenet169", trained=False, int8=False
    ),
    "segmentation": Network("bench.end_to_end.networks:masks", 128, _STEEL, records="segmentation"),
    "detector_640": Network(
        "bench.end_to_end.networks:detector",
        640,
        "imagenet-sample-100",
        most_repetitions=3,
        calibrated=8,
    ),
}

TINY = {"tiny": Network("bench.end_to_end.networks:tiny", 32, _STEEL, trained=False, int8=False)}
"""For a quick run, which tests the harness itself."""


class Masks(Segmenter):
    """A segmentation network that answers each pixel's expected class instead of six logits.

    Its answer is six times smaller, and its slicing points have the names of docs/accuracy. The
    encoder has ImageNet weights, the decoder random ones. So the answer is no argmax: where all
    classes are as likely, the last digit of a sum would change it.
    """

    def __init__(self) -> None:
        super().__init__()
        whole = load_model(LITE0)
        self.conv_stem = cast(nn.Module, whole.conv_stem)
        self.bn1 = cast(nn.Module, whole.bn1)
        self.blocks = cast(nn.Sequential, whole.blocks)[:5]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        likely = super().forward(x).softmax(1)
        return (likely * torch.arange(6.0)[None, :, None, None]).sum(1)


class Detector(nn.Module):
    """EfficientNet-Lite0, with ImageNet weights, and a neck: a heat map at 1/16 of the size.

    Feature maps of strides 8, 16 and 32 are brought to 64 channels and added, as in a feature
    pyramid; a head of 3x3 convolutions answers scores and box sizes, ``(N, 10, H/16, W/16)``.
    """

    def __init__(self) -> None:
        super().__init__()
        whole = load_model(LITE0)
        self.conv_stem = cast(nn.Module, whole.conv_stem)
        self.bn1 = cast(nn.Module, whole.bn1)
        self.blocks = cast(nn.Sequential, whole.blocks)
        self.laterals = nn.ModuleList([nn.Conv2d(c, 64, 1) for c in (40, 112, 320)])
        self.head = nn.Sequential(
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 10, 1),
        )
        # As before training in RetinaNet (Lin et al., 2017, section 4.1). Around 0 the rounding of
        # an int8 network would move random answers by more than is tolerated.
        nn.init.constant_(cast(torch.Tensor, cast(nn.Conv2d, self.head[-1]).bias), -4.6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.blocks[:3](self.bn1(self.conv_stem(x)))
        middle = self.blocks[3:5](fine)
        coarse = self.blocks[5:](middle)
        pyramid = self.laterals[1](middle)
        pyramid = pyramid + F.max_pool2d(self.laterals[0](fine), 2)
        pyramid = pyramid + F.interpolate(self.laterals[2](coarse), scale_factor=2.0)
        answer: torch.Tensor = self.head(pyramid)
        return answer


def steel() -> nn.Module:
    """EfficientNet-Lite0 with six classes: the first of ImageNet's, each with 10 more.

    Ten more for all classes changes no class. But without training the answers to photographs of
    steel are next to nothing, and the rounding of an int8 network moves those by more than the 5%
    that are tolerated when a bundle is prepared.
    """
    network = load_model(LITE0)
    whole = cast(nn.Linear, network.classifier)
    part = nn.Linear(whole.in_features, 6)
    part.load_state_dict({"weight": whole.weight[:6], "bias": whole.bias[:6] + 10})
    network.classifier = part
    return network


def masks() -> nn.Module:
    """The segmentation network."""
    return Masks()


def detector() -> nn.Module:
    """The network of high resolution."""
    return Detector()


def tiny() -> nn.Module:
    """The network of a quick run."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def load(network: Network, folder: Path) -> sl.Graph:
    """Load and capture a network, with the trained weights if the folder has them."""
    torch.manual_seed(0)
    name = network.model
    if network.checkpoint is not None and network.is_trained(folder):
        module = load_trained(network.checkpoint, folder)
        name = TRAINED[network.checkpoint].model
    else:
        module = load_model(network.model)
    return sl.capture(module, torch.zeros(1, 3, network.size, network.size), name=name)


def preprocessing(network: Network) -> sl.Preprocessing:
    """How a frame becomes the network's input."""
    return sl.Preprocessing(size=(network.size, network.size))


def frame_files(network: Network, data: Path, count: int) -> list[Path]:
    """Some image files, evenly spread, in an order that is drawn: few rounds see all classes."""
    folder = data / network.frames
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        raise SystemExit(f"{folder} has no photographs: --data names the project's shared/data")
    chosen = files[:: max(1, len(files) // count)][:count]
    random.Random(0).shuffle(chosen)
    return chosen


class Known(NamedTuple):
    """What is recorded of a network: scores by slicing point and codec, and of JPEG."""

    uncut: float
    splits: dict[tuple[str, str], float]
    jpeg: dict[int, float]

    @property
    def lowest_jpeg(self) -> int | None:
        """The lowest quality of JPEG that keeps the accuracy within half a point."""
        kept = [quality for quality, score in self.jpeg.items() if score >= self.uncut - FLOOR]
        return min(kept, default=None)


def known_accuracy(network: Network, folder: Path) -> Known | None:
    """Read a network's records; seeds are averaged, and the best recipe counts.

    They are those beside its trained weights, or those of docs/accuracy.
    """
    trained = network.is_trained(folder)
    name = network.checkpoint if trained else network.records
    if not trained:
        folder = RECORDS
    scores: dict[tuple[str, str], dict[object, list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    uncut = None
    for run in read(folder / RUNS, Run):
        if run.network == name:
            uncut = run.before
            scores[run.cut, _codec(run.transfer)][run.setting].append(run.after)
    jpeg = {
        point.quality: point.score
        for point in read(folder / JPEGS, Jpeg)
        if point.network == name and point.scale == 1.0
    }
    if uncut is None:
        return None
    splits = {key: max(mean(each) for each in own.values()) for key, own in scores.items()}
    return Known(uncut, splits, jpeg)


def _codec(label: str) -> str:
    """A Transfer Layer's label without its entropy stage, which loses nothing."""
    return label.partition(" + ")[0]


def accuracy_of(known: Known | None, plan: sl.Plan) -> float | None:
    """The recorded accuracy of a plan with a float32 device, or None."""
    if known is None or plan.device_precision == "int8":
        return None
    if plan.kind == "local" or plan.image_format in ("png", "uint8"):
        return known.uncut
    if plan.image_format == "jpeg":
        return known.jpeg.get(plan.jpeg_quality or 0)
    assert plan.spec is not None
    if plan.spec.lossless:
        return known.uncut
    return known.splits.get((plan.slicing_point or "", _codec(plan.spec.label)))


def keeps_accuracy(known: Known | None, plan: sl.Plan, *, trained: bool = True) -> bool:
    """Whether a split keeps the accuracy within half a point, as its records say.

    Without trained weights there is no entropy stage (:class:`Network`). Where there is a record of
    the slicing point and codec, it decides. Elsewhere those codecs are taken that kept it in every
    network of docs/accuracy: int8 alone, and 2x2 maximum pooling with int8, retrained.
    """
    assert plan.spec is not None
    if not trained and plan.spec.entropy is not None:
        return False
    recorded = accuracy_of(known, plan)
    if recorded is not None:
        return recorded >= (0.0 if known is None else known.uncut) - FLOOR
    spec = plan.spec
    return (
        spec.pool_kind == "max" and spec.pool <= 2 and spec.dtype == "int8" and spec.levels is None
    )
