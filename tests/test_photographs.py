"""Folders of photographs: which folder is which class, and what in them is no photograph."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

import scissionlite as sl
from scissionlite.cli import main
from scissionlite.errors import ImageError, PrepareError
from scissionlite.models import import_torchvision as import_torchvision
from scissionlite.preprocessor.classes import read_class_names
from scissionlite.preprocessor.data import ImageFolder, sample_frames
from scissionlite.preprocessor.trainer import train

SIDES = ("bottom", "left", "right", "top")
"""Classes: the side of the picture that is bright; also the order of the network's outputs."""

PREPROCESSING = sl.Preprocessing(size=(16, 16))
LOCAL = sl.Plan(kind="local")


class Sides(nn.Module):
    """A network that says which side is bright, by weights that are set."""

    def __init__(self, order: Sequence[int] = (0, 1, 2, 3)) -> None:
        super().__init__()
        weights = torch.tensor(
            # upper left, upper right, lower left, lower right
            [[-1, -1, 1, 1], [1, -1, 1, -1], [-1, 1, -1, 1], [1, 1, -1, -1]]
        )[list(order)].float()
        self.head = nn.Linear(4, len(order))
        self.head.weight.data = weights
        self.head.bias.data.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.head(nn.functional.adaptive_avg_pool2d(x, 2).mean(1).flatten(1))
        return answer


def sides(num_classes: int = 4) -> nn.Module:
    """A factory for the command line."""
    return Sides(range(num_classes))


def graph(order: Sequence[int] = (0, 1, 2, 3)) -> sl.Graph:
    return sl.capture(Sides(order), torch.zeros(1, 3, 16, 16), name="sides")


def picture(side: str) -> Image.Image:
    pixels = np.full((32, 32, 3), 40, np.uint8)
    half = slice(0, 16) if side in ("left", "top") else slice(16, 32)
    pixels[(half, slice(None)) if side in ("top", "bottom") else (slice(None), half)] = 220
    return Image.fromarray(pixels)


def write(folder: Path, classes: Sequence[str] = SIDES, *, count: int = 4) -> Path:
    """Write PNGs of each class; a class's folder may have its name in another form."""
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            picture(name.strip().lower()).save(folder / name / f"{index}.png")
    return folder


Prepare = Callable[..., sl.Bundle]


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    def prepare(
        order: Sequence[int] = (0, 1, 2, 3), plan: sl.Plan = LOCAL, **data: Any
    ) -> sl.Bundle:
        return sl.prepare(
            graph(order), plan, out=tmp_path / "bundle", preprocessing=PREPROCESSING, **data
        )

    return prepare


def score(bundle: sl.Bundle) -> float:
    assert bundle.manifest.accuracy is not None
    return bundle.manifest.accuracy.after


Command = Callable[..., tuple[int, Any, list[str]]]


@pytest.fixture
def scissionlite(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command with --json: its exit code, what it printed, and its error lines."""

    def run(*arguments: object) -> tuple[int, Any, list[str]]:
        monkeypatch.setattr(sys, "argv", ["scissionlite", *map(str, arguments), "--json"])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            main()
        printed = capsys.readouterr()
        answer = json.loads(printed.out) if printed.out else None
        return int(exited.value.code or 0), answer, printed.err.splitlines()

    return run


def test_photographs_that_are_stored_turned_score_as_upright_ones(
    prepare: Prepare, scissionlite: Command, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # what is stored is turned to the left by a quarter
    for name in SIDES:
        (tmp_path / "turned" / name).mkdir(parents=True)
        stored = picture(name).transpose(Image.Transpose.ROTATE_90)
        stored.save(tmp_path / "turned" / name / "0.jpg", exif=exif)
    bundle = prepare(validate=tmp_path / "turned")
    assert score(bundle) == 1
    jpeg = sl.Plan(kind="image", image_format="jpeg", jpeg_quality=75)
    assert score(prepare(plan=jpeg, validate=tmp_path / "turned")) == 1
    (frame,) = sample_frames(tmp_path / "turned" / "top", PREPROCESSING, count=1)  # of profile
    assert frame[:8].min() > 180
    assert frame[8:].max() < 80
    code, printed, _ = scissionlite("run", bundle.path, tmp_path / "turned", "--fallback", "local")
    assert (code, [each["class_name"] for each in printed["answers"]]) == (0, list(SIDES))


@pytest.mark.parametrize("kind", ["I;16", "F", "P", "CMYK", "LA"])
def test_photographs_of_other_modes_score_as_rgb_ones(
    kind: str, prepare: Prepare, tmp_path: Path
) -> None:
    for name in SIDES:
        (tmp_path / "data" / name).mkdir(parents=True)
        levels = np.asarray(picture(name).convert("L"))
        made = {"I;16": levels.astype(np.uint16) << 8, "F": levels.astype(np.float32) / 255}
        image = Image.fromarray(made[kind]) if kind in made else picture(name).convert(kind)
        assert image.mode == kind
        image.save(tmp_path / "data" / name / f"0.{'png' if kind == 'P' else 'tif'}")
    assert score(prepare(validate=tmp_path / "data")) == 1


def test_photographs_of_12_bits_in_16_are_noticed(
    prepare: Prepare, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in SIDES:
        (tmp_path / "data" / name).mkdir(parents=True)
        levels = np.asarray(picture(name).convert("L")).astype(np.uint16) << 4
        Image.fromarray(levels).save(tmp_path / "data" / name / "0.png")
    prepare(validate=tmp_path / "data")
    assert "16-bit images in which 12 bits are used; if the camera has no more" in caplog.text
    caplog.clear()
    camera = sl.Preprocessing(size=(16, 16), bits=12)
    bundle = sl.prepare(
        *(graph(), LOCAL), validate=tmp_path / "data", out=tmp_path / "b", preprocessing=camera
    )
    assert caplog.text == ""
    assert sl.Bundle.load(bundle.path).manifest.preprocessing == camera
    assert ImageFolder(tmp_path / "data", camera).frame(0).max() == 220


def test_hidden_folders_and_files_are_neither_classes_nor_images(
    prepare: Prepare,
    scissionlite: Command,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = write(tmp_path / "data")
    for name in (".ipynb_checkpoints/top.png", "__MACOSX/top/._0.png", "top/._0.png", "Thumbs.db"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        bundle = prepare(train=data, validate=data)
    assert bundle.manifest.classes == SIDES
    assert score(bundle) == 1
    assert f"{data}: 3 hidden images or folders are left out" in caplog.messages
    code, made, _ = scissionlite(  # which makes the network for the classes that it counts
        *("prepare", "test_photographs:sides", "--size", 16, "--train", data),
        *("--validate", data, "--codec", "local", "--out", tmp_path / "made"),
    )
    assert (code, tuple(made["manifest"]["classes"])) == (0, SIDES)


def test_a_test_folder_that_lacks_a_class_has_the_order_of_the_training_folder(
    prepare: Prepare, tmp_path: Path
) -> None:
    train, test = write(tmp_path / "train"), write(tmp_path / "test", ("left", "top"))
    bundle = prepare(train=train, validate=test)
    assert (score(bundle), bundle.manifest.classes) == (1, SIDES)
    dataset = TensorDataset(torch.zeros(4, 3, 16, 16), torch.arange(4))
    dataset.classes = list(SIDES)  # type: ignore[attr-defined]  # as torchvision's data sets have
    assert score(prepare(train=dataset, validate=test)) == 1
    dataset.classes = list(SIDES[::-1])  # type: ignore[attr-defined]
    with pytest.raises(PrepareError, match=r"different classes: bottom, .* against top, right"):
        prepare(train=train, validate=dataset)


@pytest.mark.parametrize("role", ["train", "validate"])
@pytest.mark.parametrize("classes", [("left", "right", "top"), (*SIDES, "under")])
def test_fewer_or_more_classes_than_outputs_are_refused(
    classes: Sequence[str], role: str, prepare: Prepare, tmp_path: Path
) -> None:
    data = write(tmp_path / "data", classes)
    said = f"sides has 4 outputs, and there are {len(classes)} classes .*with classes= "
    with pytest.raises(PrepareError, match=said):
        prepare(**{role: data})
    with pytest.raises(PrepareError, match=said):  # a data set that names them is the same
        prepare(**{role: ImageFolder(data, PREPROCESSING)})
    assert not (tmp_path / "bundle").exists()


def test_classes_say_the_order_of_the_outputs(
    prepare: Prepare, scissionlite: Command, tmp_path: Path
) -> None:
    """Without them, a folder for each class that it has would be taken for the first outputs."""
    data = write(tmp_path / "data", ("left", "right", "top"))
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        names = [SIDES[i] for i in order]
        bundle = prepare(order, unlabelled=data, validate=data, classes=names)
        assert (score(bundle), list(bundle.manifest.classes)) == (1, names)
    assert prepare(classes=SIDES).manifest.classes == SIDES  # without any data
    (tmp_path / "names.txt").write_text("\ufeffbottom\r\nleft\r\nright\r\ntop\r\n\r\n")
    command: list[object] = ["prepare", "test_photographs:sides", "--size", 16, "--codec", "local"]
    command += ["--unlabelled", data, "--validate", data, "--out", tmp_path / "made"]
    code, made, _ = scissionlite(*command, "--classes", tmp_path / "names.txt")
    assert (code, made["manifest"]["accuracy"]["after"]) == (0, 1)
    _, printed, _ = scissionlite("run", tmp_path / "made", data, "--fallback", "local")
    right = ["left"] * 4 + ["right"] * 4 + ["top"] * 4
    assert [answer["class_name"] for answer in printed["answers"]] == right
    code, _, errors = scissionlite(*command, "--num-classes", 4)
    assert code == 1
    assert errors[-1].startswith(
        "error: PrepareError: test_photographs:sides has 4 outputs, and there"
    )


def test_another_order_than_the_network_s_is_refused(prepare: Prepare, tmp_path: Path) -> None:
    data = write(tmp_path / "data")
    for order in ((1, 0, 2, 3), (3, 2, 1, 0), (1, 2, 3, 0)):
        for role in ("train", "validate"):
            with pytest.raises(PrepareError, match=r"are in another order than the classes of"):
                prepare(order, **{role: data})
    with pytest.raises(PrepareError, match="images of 'bottom', class 0, its answer is class 3"):
        prepare((3, 1, 2, 0), validate=data)
    assert score(prepare((3, 1, 2, 0), validate=data, classes=("top", *SIDES[1:3], "bottom"))) == 1


def test_a_network_that_is_only_bad_is_no_other_order(prepare: Prepare, tmp_path: Path) -> None:
    data = write(tmp_path / "data")
    assert score(prepare((0, 0, 0, 0), validate=data)) == 0.25
    assert score(prepare((0, 1, 3, 3), validate=data)) == 0.5  # one is always taken for another
    few = write(tmp_path / "few", count=3)  # say too little
    assert score(prepare((1, 0, 3, 2), validate=few)) == 0


def test_names_that_differ_in_their_unicode_form_are_the_same(
    prepare: Prepare, tmp_path: Path
) -> None:
    accents = ("Über", "links", "rechts", "señal")
    composed, parts = (
        [unicodedata.normalize(form, name) for name in accents] for form in ("NFC", "NFD")
    )
    assert composed != parts
    for folder, names in (("train", parts), ("test", composed)):
        for name, side in zip(names, SIDES, strict=True):
            (tmp_path / folder / name).mkdir(parents=True)
            picture(side).save(tmp_path / folder / name / "0.png")
    bundle = prepare(train=tmp_path / "train", validate=tmp_path / "test", classes=parts)
    assert (score(bundle), list(bundle.manifest.classes)) == (1, composed)
    order = prepare(train=tmp_path / "train", validate=tmp_path / "test").manifest.classes
    assert order == ("Über", "links", "rechts", "señal")  # as torchvision sorts what is on disk
    (tmp_path / "both" / parts[0]).mkdir(parents=True)
    (tmp_path / "both" / composed[0]).mkdir(parents=True)
    for index, name in enumerate((parts[0], composed[0])):
        picture("top").save(tmp_path / "both" / name / f"{index}.png")
    both = ImageFolder(tmp_path / "both", PREPROCESSING)
    assert (both.classes, len(both)) == ((composed[0],), 2)


def test_the_order_of_folders_is_torchvision_s(tmp_path: Path) -> None:
    torchvision = import_torchvision()
    names = ("2", "10", "1", "a", "B", " x", "x ", "ä", unicodedata.normalize("NFD", "é"))
    for name in names:
        (tmp_path / "data" / name / "nested").mkdir(parents=True)
        picture("top").save(tmp_path / "data" / name / "nested" / "0.PNG")
    picture("top").save(tmp_path / "outside.png")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "data" / "a")
    ours, theirs = (
        ImageFolder(tmp_path / "data", PREPROCESSING),
        torchvision.datasets.ImageFolder(tmp_path / "data"),
    )
    forms = tuple(unicodedata.normalize("NFC", name) for name in theirs.classes)
    assert ours.classes == forms
    assert [(str(file), label) for file, label in ours.files] == theirs.samples


def test_names_that_are_nearly_the_same_are_shown(prepare: Prepare, tmp_path: Path) -> None:
    train = write(tmp_path / "train")
    test = write(tmp_path / "test", ("bottom", "left", "Right", "top "))
    said = r"unknown: 'Right' \(there is a class 'right'\), 'top ' \(there is a class 'top'\)"
    with pytest.raises(PrepareError, match=said):
        prepare(train=train, validate=test)


def test_folders_that_cannot_be_classes_are_refused(prepare: Prepare, tmp_path: Path) -> None:
    data = write(tmp_path / "data")
    (data / "void").mkdir()
    with pytest.raises(PrepareError, match="has class folders without images: void; remove"):
        prepare(train=data)
    (data / "void").rmdir()
    (data / "gone").symlink_to("nowhere")
    with pytest.raises(PrepareError, match="data/gone is a link to something that is not there"):
        prepare(train=data)
    (data / "gone").unlink()
    (data / os.fsdecode(b"caf\xe9")).mkdir()
    with pytest.raises(PrepareError, match=r"class folder '.*caf\\udce9' is not UTF-8: rename it"):
        prepare(train=data)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a\n\nb\n", "line 2 is empty"),
        (b"a\nb\na\n", "names a class twice: a"),
        (b"e\xcc\x81\n\xc3\xa9\n", "names a class twice: é"),
        (b"", "line 1 is empty"),
        (b"caf\xe9\n", "is not a text in UTF-8"),
    ],
)
def test_a_file_of_classes_has_one_name_in_each_line(
    content: bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(PrepareError, match=said):
        read_class_names(tmp_path / "names.txt")


def test_labels_that_no_output_has_are_told(tmp_path: Path) -> None:
    data = ImageFolder(write(tmp_path / "data", (*SIDES, "under")), PREPROCESSING)
    with pytest.raises(
        PrepareError, match="labels are 0 to 4, and the network's outputs are 0 to 3"
    ):
        train(Sides(), data, sl.Recipe(epochs=1, batch_size=20))


def test_classes_are_a_list(prepare: Prepare) -> None:
    for wrong, said in (("top", "is one text, 'top'"), ((), "names no class")):
        with pytest.raises(PrepareError, match=f"classes= {said}"):
            prepare(classes=wrong)


def test_broken_headers_are_found_before_the_work_and_damaged_pixels_by_name(
    prepare: Prepare, tmp_path: Path
) -> None:
    data = write(tmp_path / "data")
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(data / "top" / "half.jpg")
    os.truncate(data / "top" / "half.jpg", (data / "top" / "half.jpg").stat().st_size // 2)
    with pytest.raises(ImageError, match=r"top/half\.jpg cannot be read as an image: image file"):
        prepare(validate=data)
    for number in range(5):
        (data / "left" / f"empty{number}.jpg").touch()
    os.mkfifo(data / "left" / "x.jpg")
    for role in ("train", "unlabelled", "validate"):
        with pytest.raises(PrepareError) as caught:
            prepare(**{role: data})
        assert f"{data}/left/empty0.jpg cannot be read as an image: it is empty;" in str(
            caught.value
        )
        assert "and 3 more of 23 images: mend or remove what is broken" in str(caught.value)
    with pytest.raises(ImageError, match=r"empty0\.jpg"):
        sample_frames(data / "left", PREPROCESSING, count=48)


def test_run_answers_for_the_images_that_it_can_read(
    prepare: Prepare, scissionlite: Command, tmp_path: Path
) -> None:
    bundle = prepare(classes=SIDES)
    data = tmp_path / "photographs"
    data.mkdir()
    picture("top").save(data / "good.png")
    picture("left").save(data / os.fsdecode(b"caf\xe9.png"))
    (data / "._good.png").write_bytes(b"\0\5\x16\7")
    (data / "empty.jpg").touch()
    (data / "dangling.jpg").symlink_to("nowhere")
    (data / os.fsdecode(b"\xff.tif")).write_text("a text")
    os.mkfifo(data / "fifo.jpg")
    command = ("run", bundle.path, "--fallback", "local")
    code, printed, errors = scissionlite(*command, data, data / "fifo.jpg")
    assert code == 1
    answers = {Path(each["image"]).name: each["class_name"] for each in printed["answers"]}
    assert answers == {"good.png": "top", r"caf\xe9.png": "left"}
    assert printed["summary"]["answers"] == 2
    names = ["dangling.jpg", "empty.jpg", "fifo.jpg", r"\xff.tif", "fifo.jpg"]
    assert [Path(each["image"]).name for each in printed["unread"]] == names
    for line, name in zip(errors, names, strict=True):
        assert line.startswith(f"error: ImageError: {data}/{name} cannot be read as an image: it ")
    code, nothing, _ = scissionlite(*command, data / "empty.jpg")
    assert (code, nothing["answers"]) == (1, [])
    assert nothing["summary"]["latency_median"] is None
    # In a process of its own, whose output stream takes nothing but UTF-8.
    table = subprocess.run(
        [sys.executable, "-m", "scissionlite", *command, os.fsdecode(b"caf\xe9.png"), "empty.jpg"],
        capture_output=True,
        check=False,
        cwd=data,
        timeout=300,  # a guard against hangs, never a measure
    )
    assert table.returncode == 1
    assert rb"caf\xe9.png" in table.stdout
    assert table.stderr == b"error: ImageError: empty.jpg cannot be read as an image: it is empty\n"
