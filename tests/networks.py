"""Networks of the tests: one that is trained, and some with several tensors."""

from __future__ import annotations

import torch
from torch import nn

from scissionlite.models import load_model


class UNet(nn.Module):
    """Two skips, odd sizes that are interpolated to shapes read off, and the input at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([_conv(3, 6), _conv(6, 8), _conv(8, 10)])
        self.up = nn.ModuleList([_conv(18, 8), _conv(14, 6)])
        self.head = nn.Conv2d(9, 4, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        first = self.down[0](x)
        second = self.down[1](nn.functional.max_pool2d(first, 2))
        coarse = second.mean((2, 3))
        y = self.down[2](nn.functional.max_pool2d(second, 2))
        for skip, up in zip((second, first), self.up, strict=True):
            n, _, h, w = skip.shape
            y = nn.functional.interpolate(y, size=(h, w))
            y = up(torch.cat([y, skip], 1).view(n, -1, h, w))
        return {"mask": self.head(torch.cat([y, x], 1)), "coarse": coarse}


def _conv(channels: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU())


class Detector(nn.Module):
    """An image and a vector in, a tuple of pyramid levels out."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList([_conv(3, 8), _conv(8, 8), _conv(8, 8)])
        self.lateral = nn.ModuleList([nn.Conv2d(8, 4, 1) for _ in range(3)])
        self.scale = nn.Linear(5, 4)

    def forward(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x, levels = inputs["image"], []
        for stage in self.body:
            x = nn.functional.max_pool2d(stage(x), 2)
            levels.append(x)
        gain = self.scale(inputs["vector"])[:, :, None, None]
        top = self.lateral[2](levels[2])
        answers = [top * gain]
        for level, lateral in zip(levels[1::-1], list(self.lateral)[1::-1], strict=True):
            top = lateral(level) + nn.functional.interpolate(top, size=level.shape[-2:])
            answers.append(top * gain)
        return tuple(answers)


def narrow_vgg() -> nn.Module:
    """VGG-16, all its layers as torchvision has them, with few channels."""
    load_model("torchvision:squeezenet1_1")  # so that torchvision can be imported
    from torchvision.models.vgg import VGG, cfgs, make_layers

    with torch.device("meta"):  # the classifier alone has 120 million weights
        network: nn.Module = VGG(nn.Identity(), init_weights=False)
    network.features = make_layers([each if each == "M" else each // 32 for each in cfgs["D"]])
    sizes = iter(((16 * 7 * 7, 32), (32, 32), (32, 10)))
    classifier = network.get_submodule("classifier")
    for name, layer in classifier.named_children():
        if isinstance(layer, nn.Linear):
            setattr(classifier, name, nn.Linear(*next(sizes)))
    for weight in network.parameters():
        nn.init.kaiming_normal_(weight) if weight.ndim > 1 else nn.init.normal_(weight, std=0.1)
    return network


def narrow_vit() -> nn.Module:
    """ViT-B/16, all its layers as torchvision has them, with few features and patches."""
    load_model("torchvision:squeezenet1_1")  # so that torchvision can be imported
    from torchvision.models import VisionTransformer

    network: nn.Module = VisionTransformer(32, 8, 12, 4, 32, 64, num_classes=10)
    nn.init.normal_(network.get_parameter("heads.head.weight"))  # torchvision makes it zeros
    return network


def small_network() -> nn.Module:
    """A classifier of six classes that learns textures of 64x64 pixels in seconds."""
    torch.manual_seed(3)

    def stage(inputs: int, outputs: int, stride: int) -> nn.Module:
        convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

    return nn.Sequential(
        stage(3, 16, 1),
        stage(16, 16, 2),
        stage(16, 32, 2),
        nn.Sequential(
            stage(32, 48, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(48, 6),
        ),
    )
