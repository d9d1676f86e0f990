"""Capture and slicing points: wherever real networks may be cut, the two slices are the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import Detector, UNet
from torch import fx, nn

import scissionlite as sl
from scissionlite.errors import CaptureError
from scissionlite.graph.analysis import flat
from scissionlite.graph.arguments import map_leaves
from scissionlite.graph.tensors import TensorInfo
from scissionlite.models import load_model

# name -> input size, how many slicing points at the least, some that a person would look for.
NETWORKS: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "torchvision:resnet50": (64, 38, ("maxpool", "layer1.0", "layer1", "layer3.4", "avgpool")),
    "torchvision:mobilenet_v2": (64, 60, ("features.1", "features.7", "features")),
    "networks:narrow_vgg": (64, 39, ("features.4", "features", "avgpool", "classifier.3")),
    "torchvision:densenet121": (64, 24, ("features.denseblock1", "features.transition2")),
    "torchvision:inception_v3": (96, 30, ("maxpool1", "Mixed_5b", "Mixed_7c")),
    "torchvision:efficientnet_b0": (64, 60, ("features.1", "features.4.1", "features.8.0")),
    "networks:narrow_vit": (32, 30, ("encoder.layers.encoder_layer_0", "encoder")),
    "timm:efficientnet_lite0": (64, 50, ("conv_stem", "blocks.0", "blocks.3.1", "blocks")),
}


@pytest.mark.long
@pytest.mark.parametrize("name", NETWORKS)
def test_cutting_a_known_network_anywhere_leaves_its_answer_unchanged(name: str) -> None:
    size, fewest, expected_names = NETWORKS[name]
    torch.manual_seed(7)
    model = load_model(name)
    example = torch.randn(1, 3, size, size)
    _as_trained(model, (example,))
    graph = sl.capture(model, example, name=name)
    names = [point.name for point in graph.slicing_points]
    assert len(names) >= fewest
    assert len(set(names)) == len(names)
    assert set(expected_names) <= set(names)

    x = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        y = model(x)
        assert (y[0] - y[1]).abs().max() > 0.01 * y.abs().max()  # answers depend on the input
        for point in graph.slicing_points:
            head, tail = graph.split(point)
            crossing = head(x)
            assert tuple(crossing.shape[1:]) == point.crossing[0].shape[1:], point
            torch.testing.assert_close(tail(crossing), y, rtol=1e-4, atol=1e-4, msg=str(point))


def test_blocks_chained_are_the_network() -> None:
    model = load_model("torchvision:resnet18")
    graph = sl.capture(model, torch.randn(1, 3, 64, 64))
    x = torch.randn(1, 3, 64, 64)
    assert len(graph.blocks) == len(graph.slicing_points) + 1
    with torch.inference_mode():
        y = model(x)
        for block in graph.block_modules():
            x = block(x)
    torch.testing.assert_close(x, y)


def test_no_slicing_point_inside_branches() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3)
            self.left = nn.Conv2d(4, 4, 3, padding=1)
            self.right = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
            self.after = nn.Conv2d(8, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            x = torch.cat([self.left(x), self.right(x), x[:, :0]], 1)
            answer: torch.Tensor = self.after(x)
            return answer

    graph = sl.capture(Branches(), torch.randn(1, 3, 8, 8))
    assert [point.name for point in graph.slicing_points] == ["stem", "cat"]
    point = graph.point("stem")
    assert (point.after, point.before) == ("stem", "left")
    assert point.crossing == (TensorInfo("stem", (1, 4, 6, 6), "float32"),)
    assert point.nbytes == 576


def _segmentation() -> nn.Module:
    return load_model("torchvision:deeplabv3_mobilenet_v3_large", num_classes=5)


def _backbone_with_neck() -> nn.Module:
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    backbone: nn.Module = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    return backbone.eval()


@pytest.mark.long
@pytest.mark.parametrize(
    ("build", "example", "most"),
    [
        (UNet, (torch.randn(1, 3, 13, 18),), 5),
        (Detector, ({"image": torch.randn(1, 3, 24, 24), "vector": torch.randn(1, 5)},), 4),
        (_segmentation, (torch.randn(1, 3, 64, 64),), 2),
        (_backbone_with_neck, (torch.randn(1, 3, 64, 64),), 5),
    ],
    ids=["unet", "detector", "deeplabv3", "fpn"],
)
def test_cutting_where_several_tensors_cross_leaves_the_answer_unchanged(
    build: Callable[[], nn.Module], example: tuple[Any, ...], most: int
) -> None:
    torch.manual_seed(3)
    load_model("torchvision:resnet18")  # so that torchvision can be imported
    model = build().eval()
    _as_trained(model, example)
    graph = sl.capture(model, example, max_tensors=most)
    assert graph.dynamic_batch
    assert max(len(point.crossing) for point in graph.slicing_points) == most
    assert len({point.name for point in graph.slicing_points}) == len(graph.slicing_points)
    x = [torch.randn(2, *t.shape[1:]) for t in graph.example]
    with torch.inference_mode():
        expected = flat(graph.module(*x))
        for y in expected:
            assert (y[0] - y[1]).abs().max() > 0.01 * y.abs().max()  # answers depend on the input
        for point in _one_of_each_kind(graph):
            head, tail = graph.split(point)
            crossing = flat(head(*x))
            assert [tuple(t.shape[1:]) for t in crossing] == [t.shape[1:] for t in point.crossing]
            for ours, theirs in zip(flat(tail(*crossing)), expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, msg=str(point))
        for block in graph.block_modules():
            x = flat(block(*x))
        for ours, theirs in zip(x, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def _one_of_each_kind(graph: sl.Graph) -> list[sl.SlicingPoint]:
    """The first slicing point of each kind: how many tensors cross, which of them are new, and
    between which operations; a network repeats its blocks many times.
    """
    nodes = {node.name: node for node in graph.module.graph.nodes}

    def operation(node: fx.Node) -> object:
        if node.op == "call_module":
            return type(graph.module.get_submodule(str(node.target)))
        return node.target

    kinds: dict[object, sl.SlicingPoint] = {}
    before: tuple[TensorInfo, ...] = ()
    for point in graph.slicing_points:
        crossing = [(operation(nodes[t.name]), t in before) for t in point.crossing]
        last = nodes[graph.blocks[point.index].nodes[-1]]
        kinds.setdefault((*crossing, operation(last), operation(last.next)), point)
        before = point.crossing
    return list(kinds.values())


def test_inputs_and_outputs_keep_their_names_and_form() -> None:
    example = {"image": torch.randn(1, 3, 24, 24), "vector": torch.randn(1, 5)}
    graph = sl.capture(Detector(), example, max_tensors=3)
    assert [tensor.name for tensor in graph.inputs] == ["inputs.image", "inputs.vector"]
    assert graph.output_kind == "tuple"
    assert [tensor.name for tensor in graph.outputs] == ["0", "1", "2"]
    unet = sl.capture(UNet(), torch.randn(1, 3, 12, 12), max_tensors=3)
    assert unet.output_kind == "dict"
    assert [(t.name, t.shape) for t in unet.outputs] == [
        ("mask", (1, 4, 12, 12)),
        ("coarse", (1, 8)),
    ]


def test_arguments_may_be_given_by_name() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return (x.relu() + 1) * scale

    example = {"scale": torch.tensor([[2.0]]), "x": torch.randn(1, 3)}
    graph = sl.capture(Two(), example, max_tensors=2)
    assert [tensor.name for tensor in graph.inputs] == ["x", "scale"]
    x, scale = graph.example
    torch.testing.assert_close(graph.module(x, scale), (x.relu() + 1) * scale)
    # The second input crosses with what was computed of the first.
    assert [tensor.name for tensor in graph.point("relu").crossing] == ["scale", "relu"]


def test_no_more_tensors_cross_than_asked_for() -> None:
    few = sl.capture(UNet(), torch.randn(1, 3, 12, 12))
    assert not few.slicing_points  # the input is used at the end
    with pytest.raises(CaptureError, match="max_tensors must be 1 to 16"):
        sl.capture(UNet(), torch.randn(1, 3, 12, 12), max_tensors=17)


def test_between_two_slicing_points_is_what_is_left_between_the_slices() -> None:
    model = load_model("torchvision:resnet18")
    graph = sl.capture(model, torch.randn(1, 3, 64, 64))
    x = torch.randn(1, 3, 64, 64)
    head, _ = graph.split("layer1")
    _, tail = graph.split("layer3")
    with torch.inference_mode():
        torch.testing.assert_close(
            tail(graph.between("layer1", "layer3")(head(x))), model(x), rtol=1e-4, atol=1e-4
        )
    with pytest.raises(CaptureError, match="layer1 does not come after layer3"):
        graph.between("layer3", "layer1")


def test_a_network_made_for_one_batch_size_is_known_as_such() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.relu().view(1, -1) * 2

    assert not sl.capture(Fixed(), torch.randn(1, 4)).dynamic_batch
    assert sl.capture(nn.Linear(4, 2), torch.randn(1, 4)).dynamic_batch


def test_blocks_tell_their_layers_and_memory() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.ReLU(), nn.Flatten())
    graph = sl.capture(network, torch.randn(1, 1, 6, 6))
    first, second, third = graph.blocks
    assert [block.layers for block in graph.blocks] == [("0",), ("1",), ("2",)]
    assert (first.weight_bytes, second.weight_bytes) == (2 * 9 * 4, 0)
    assert first.peak_bytes == 36 * 4 + 32 * 4  # what goes in and what comes out
    assert second.peak_bytes == third.peak_bytes == 2 * 32 * 4


class _ShapeDependent(nn.Module):
    """A network that symbolic tracing cannot capture and torch.export can."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[0]
        x = torch.relu(self.first(x))
        if x.shape[1] > 2:
            x = x * 2
        answer: torch.Tensor = self.second(x).view(n, -1)
        return answer


def test_control_flow_on_shapes_is_captured_by_export_for_any_batch() -> None:
    model = _ShapeDependent().eval()
    graph = sl.capture(model, torch.randn(1, 4))
    names = [point.name for point in graph.slicing_points]
    assert "first" in names  # modules keep their names through torch.export too
    x = torch.randn(5, 4)
    for point in graph.slicing_points:
        head, tail = graph.split(point)
        torch.testing.assert_close(tail(head(x)), model(x))


def test_a_batch_size_read_from_the_input_does_not_have_to_cross() -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)
            self.fc = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            n = x.size(0)
            answer: torch.Tensor = self.fc(self.conv(x).view(n, -1))
            return answer

    model = Viewed()
    graph = sl.capture(model, torch.randn(1, 1, 4, 4))
    assert [point.name for point in graph.slicing_points] == ["conv", "view"]
    head, tail = graph.split("conv")
    x = torch.randn(3, 1, 4, 4)
    torch.testing.assert_close(tail(head(x)), model(x))


def test_a_slice_never_writes_into_its_input() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True), nn.Flatten())
    graph = sl.capture(model, torch.randn(1, 1, 4, 4))
    crossing = torch.full((1, 2, 4, 4), -1.0)
    graph.split("0")[1](crossing)
    assert bool((crossing == -1).all())


def test_weights_computed_from_weights_are_on_whichever_side_needs_them() -> None:
    class Standardized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 1, 3, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = self.weight / self.weight.norm()
            x = nn.functional.conv2d(x, weight)
            return nn.functional.conv2d(x.relu()[:, :1], weight)

    model = Standardized()
    x = torch.randn(2, 1, 8, 8)
    graph = sl.capture(model, x)
    assert len(graph.slicing_points) >= 2
    for point in graph.slicing_points:
        head, tail = graph.split(point)
        torch.testing.assert_close(tail(head(x)), model(x))


class _ValueDependent(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:  # the line that prevents it
            return x + 1
        return x - 1


class _Random(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + torch.rand(x.shape)).relu() * 2


class _TwoInputs(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y


class _IntegerOutput(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"mask": x.argmax(1)}


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (_ValueDependent, r"test_graph\.py:\d+, in forward: if x\.sum\(\) > 0"),
        (_Random, "random"),
        (_TwoInputs, "does not fit _TwoInputs.forward"),
        (_IntegerOutput, "answers torch.int64 in mask"),
        (lambda: torch.jit.script(nn.ReLU()), "ordinary torch.nn.Module"),
        (lambda: "resnet", "str cannot be captured"),
    ],
)
@pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script` is deprecated:DeprecationWarning")
def test_what_cannot_be_captured_is_told_with_its_line(
    model: Callable[[], nn.Module], said: str
) -> None:
    with pytest.raises(CaptureError, match=said):
        sl.capture(model(), torch.randn(2, 3))


def test_an_unknown_slicing_point_is_told_with_the_known_ones() -> None:
    graph = sl.capture(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.randn(1, 2))
    with pytest.raises(CaptureError, match="no slicing point 'nowhere'; it has: 0"):
        graph.point("nowhere")


def test_capturing_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(inplace=True))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = sl.capture(model, torch.randn(1, 1, 4, 4))
    with torch.no_grad():
        for parameter in graph.module.parameters():
            parameter.zero_()
    assert model.training
    assert model[2].inplace
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def _as_trained(model: nn.Module, example: tuple[Any, ...]) -> None:
    """Give batch norms scales, and the statistics of random inputs, as training leaves them.

    With those of a fresh network many answers hardly depend on the input.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    model.eval()
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        model(*map_leaves(example, lambda tensor: torch.randn(4, *tensor.shape[1:])))
    model.eval()
