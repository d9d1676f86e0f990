"""Segmentation from folders: photographs and their masks, and the command line that takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import scissionlite as sl
from scissionlite.bundle import Bundle
from scissionlite.cli import app
from scissionlite.errors import ImageError, PrepareError
from scissionlite.images import Preprocessing
from scissionlite.preprocessor.checkpoint import data_digest
from scissionlite.preprocessor.masks import MaskFolder
from scissionlite.preprocessor.metrics import IGNORED

Indices = npt.NDArray[np.uint8]

NEAREST = Preprocessing(size=(16, 24), resize=32, interpolation="nearest", mean=(0,), std=(1,))
TURN = 0x0112  # EXIF's orientation
SHADE = 80  # of a class in its photograph


def blocks(seed: int, height: int = 40, width: int = 60) -> Indices:
    """Classes of pixels, in blocks of 10x10 pixels."""
    classes = np.random.default_rng(seed).integers(0, 3, (height // 10, width // 10))
    return np.kron(classes, np.ones((10, 10))).astype(np.uint8)


def write(folder: Path, name: str, mask: Indices, *, stored: Image.Image | None = None) -> None:
    """Write a photograph in which a class is a shade of gray, and its mask."""
    for kind in ("images", "masks"):
        (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
    photograph = Image.fromarray(mask * np.uint8(SHADE)) if stored is None else stored
    exif = photograph.getexif()
    photograph.save(folder / "images" / f"{name}.png", exif=exif)
    Image.fromarray(mask).save(folder / "masks" / f"{name}.png")


def test_a_mask_is_resized_cropped_and_mirrored_as_its_photograph(tmp_path: Path) -> None:
    write(tmp_path, "line 1/part", blocks(1))
    write(tmp_path, "part", blocks(2, 60, 40))
    turned = blocks(3)
    stored = Image.fromarray(np.rot90(turned) * np.uint8(SHADE))  # the camera was held upright
    stored.getexif()[TURN] = 6
    write(tmp_path, "turned", turned, stored=stored)
    data = MaskFolder(tmp_path, NEAREST)
    assert [file.stem for file, _ in data.files] == ["part", "part", "turned"]
    for side in (False, True):
        view = data.side(side)
        for x, mask in (view[i] for i in range(3)):
            assert isinstance(x, torch.Tensor)
            assert mask.dtype == torch.int64
            assert mask.shape == (16, 24)
            np.testing.assert_allclose(x[0] * 255, mask * SHADE, atol=1e-3)
    assert not torch.equal(data[0][1], data.side(True)[0][1])


@pytest.mark.parametrize("mode", ["P", "L", "1"])
def test_a_mask_of_any_palette_is_its_indices(tmp_path: Path, mode: str) -> None:
    mask = blocks(1) // 2  # 0 and 1
    write(tmp_path, "part", mask)
    picture = Image.fromarray(mask * np.uint8(255)).convert("1") if mode == "1" else None
    picture = picture or Image.fromarray(mask, "L" if mode == "L" else None)
    if mode == "P":
        picture = Image.fromarray(mask).convert("P")
        picture.putdata(mask.flatten().tolist())
        picture.putpalette([9, 9, 9, 9, 9, 9])
    assert picture.mode == mode
    picture.save(tmp_path / "masks/part.png")
    x, target = MaskFolder(tmp_path, NEAREST)[0]
    assert isinstance(x, torch.Tensor)
    np.testing.assert_allclose(x[0] * 255, target * SHADE, atol=1e-3)


def test_what_is_wrong_with_masks_is_said(tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match="has no folder 'images'"):
        MaskFolder(tmp_path, NEAREST)
    write(tmp_path, "one", blocks(1))
    write(tmp_path, "two", blocks(2))
    (tmp_path / "masks/one.png").rename(tmp_path / "masks/three.png")
    with pytest.raises(PrepareError, match=r"no mask for .*images/one\.png"):
        MaskFolder(tmp_path, NEAREST)
    (tmp_path / "images/one.png").unlink()
    with pytest.raises(PrepareError, match=r"no image for .*masks/three\.png"):
        MaskFolder(tmp_path, NEAREST)
    (tmp_path / "masks/three.png").unlink()
    data = MaskFolder(tmp_path, NEAREST)
    Image.fromarray(blocks(2)[:20]).save(tmp_path / "masks/two.png")
    with pytest.raises(PrepareError, match=r"two\.png has 60x20 pixels, and .*two\.png 60x40"):
        data[0]
    Image.fromarray(blocks(2)).convert("RGB").save(tmp_path / "masks/two.png")
    with pytest.raises(ImageError, match=r"two\.png.*mode is RGB"):
        data[0]
    (tmp_path / "images/two.jpg").write_bytes((tmp_path / "images/two.png").read_bytes())
    with pytest.raises(PrepareError, match=r"two\.jpg and .*two\.png have the same name"):
        MaskFolder(tmp_path, NEAREST)


def segmenter(num_classes: int) -> nn.Module:
    """Tells three shades of gray apart, as they are."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, num_classes, 1))
    with torch.no_grad():
        for layer in (network[0], network[2]):
            assert isinstance(layer, nn.Conv2d)
            layer.weight.zero_()
        first, last = network[0], network[2]
        assert isinstance(first, nn.Conv2d)
        assert isinstance(last, nn.Conv2d)
        first.weight[:, 0] = 1.0
        first.bias.copy_(torch.tensor([0.0, -0.157, -0.47, 0.0]))  # type: ignore[union-attr]
        last.weight[1, 1], last.weight[2, 2] = 1.0, 4.0
        last.bias.copy_(torch.tensor([0.05, 0.0, -0.1]))  # type: ignore[union-attr]
    return network


def test_a_segmentation_network_is_prepared_from_folders_by_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    for number in range(6):
        write(tmp_path / "parts", f"{number}", blocks(number, 40, 40))
    classes = tmp_path / "classes"
    classes.write_text("steel\nscratch\nstain\n")
    arguments = ["prepare", "test_masks:segmenter", "--out", tmp_path / "bundle", "--json"]
    arguments += ["--train", tmp_path / "parts", "--validate", tmp_path / "parts"]
    arguments += ["--classes", classes, "--metric", "miou", "--size", 40, "--epochs", 1]
    arguments += ["--mean", "0,0,0", "--std", "1,1,1", "--at", "1", "--pool", 1]
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    accuracy = Bundle.load(tmp_path / "bundle").manifest.accuracy
    assert accuracy is not None
    assert accuracy.metric == "mIoU"
    assert accuracy.before == 1.0
    assert accuracy.after > 0.9
    assert len(accuracy.recalls) == 3
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "bundle")]).output
    assert "steel 100.0%" in shown.replace("\n", " ")


def test_pixels_of_other_classes_than_the_networks_are_named(tmp_path: Path) -> None:
    write(tmp_path, "part", blocks(1) + np.uint8(2))
    data = MaskFolder(tmp_path, NEAREST)
    logits = torch.zeros(1, 3, 16, 24)
    target = data[0][1][None]
    for count in (sl.SEGMENTATION.loss, sl.SEGMENTATION.tally):
        with pytest.raises(PrepareError, match="labels are 2 to 4, and the network's outputs"):
            count(logits, target)
    ignored: Any = torch.full((1, 16, 24), IGNORED)
    assert sl.SEGMENTATION.tally(logits, ignored).sum() == 0


def test_other_masks_are_other_training_data(tmp_path: Path) -> None:
    write(tmp_path, "part", blocks(1))
    before = data_digest(MaskFolder(tmp_path, NEAREST))
    assert data_digest(MaskFolder(tmp_path, NEAREST)) == before
    Image.fromarray(blocks(1) * 0).save(tmp_path / "masks/part.png")
    assert data_digest(MaskFolder(tmp_path, NEAREST)) != before
