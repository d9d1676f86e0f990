"""The recipe of docs/detectors.md, as it is printed: a cut detector answers as the uncut one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import scissionlite as sl
from scissionlite.errors import CaptureError
from scissionlite.models import load_model

_RECIPE = Path(__file__).parents[1] / "docs" / "detectors.md"


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> Any:
    load_model("torchvision:mobilenet_v3_small")  # imports torchvision, whatever its build
    from torchvision.models import detection
    from torchvision.ops import boxes

    # torchvision's own operator may be of a build for CUDA, which does not load here.
    monkeypatch.setattr(boxes, "_assert_has_ops", lambda: None)
    monkeypatch.setattr(boxes, "nms", _nms)
    torch.manual_seed(0)
    made = detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3, detections_per_img=20
    )
    return made.eval()


def _nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Keep the boxes that overlap with no better one: non-maximum suppression."""
    left = scores.argsort(descending=True, stable=True)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        low = torch.maximum(boxes[left, :2], boxes[best, :2])
        high = torch.minimum(boxes[left, 2:], boxes[best, 2:])
        common = (high - low).clamp(min=0).prod(1)
        left = left[common / (areas[left] + areas[best] - common) <= iou_threshold]
    return torch.stack(kept) if kept else torch.empty(0, dtype=torch.int64)


def test_a_detector_is_refused_with_the_way_to_its_backbone(detector: Any) -> None:
    with pytest.raises(CaptureError, match=r"detector.*model\.backbone.*docs/detectors\.md"):
        sl.capture(detector, torch.rand(1, 3, 64, 64))


def test_a_cut_detector_answers_as_the_uncut_one(detector: Any, tmp_path: Path) -> None:
    first, second = re.findall(r"```python\n(.*?)```", _RECIPE.read_text(), re.DOTALL)
    image = torch.rand(3, 200, 260)
    with torch.no_grad():
        expected = detector([image])[0]
    names = {"detector": detector, "example": detector.transform([image])[0].tensors}
    exec(first, names)  # a block of the docs
    graph = names["graph"]
    plan = sl.Plan(
        kind="split",
        slicing_point="backbone.features.0.4",
        spec=sl.TransferSpec(pool=1, dtype="float32"),
    )
    bundle = sl.prepare(graph, plan, out=tmp_path / "bundle", local_fallback=False)
    with (
        sl.EdgeServer(bundle, "tcp://127.0.0.1:*", threads=1) as edge,
        sl.Device(
            bundle, edge.endpoint, control=edge.control_endpoint, deadline=60, threads=1
        ) as device,
        torch.no_grad(),
    ):
        names |= {"device": device, "image": image}
        exec(second, names)
        found = detector([image])[0]
    assert len(expected["boxes"]) == 20
    torch.testing.assert_close(names["boxes"], expected["boxes"], rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-3, atol=1e-5)
    assert torch.equal(found["labels"], expected["labels"])
