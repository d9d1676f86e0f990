"""Image files: every mode, every orientation, and files that are broken or none."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.Image import Transpose

from scissionlite.errors import ImageError
from scissionlite.image_files import check_image, find_images
from scissionlite.images import Preprocessing, image_decode

RGB = Preprocessing(size=(2, 2))
GRAY = Preprocessing(size=(2, 2), mean=(0.5,), std=(0.5,))

Value = int | float | tuple[int, ...]

MODES: list[tuple[str, Value, tuple[int, int, int], int]] = [
    ("1", 1, (255, 255, 255), 255),
    ("L", 77, (77, 77, 77), 77),
    ("LA", (77, 0), (77, 77, 77), 77),  # transparency is dropped
    ("La", (30, 128), (59, 59, 59), 59),  # 30 * 255 / 128
    ("RGB", (200, 100, 50), (200, 100, 50), 124),  # ITU-R 601: 0.299, 0.587, 0.114
    ("RGBX", (200, 100, 50, 0), (200, 100, 50), 124),
    ("RGBA", (200, 100, 50, 0), (200, 100, 50), 124),
    ("RGBa", (100, 50, 25, 128), (199, 99, 49), 123),
    ("CMYK", (55, 155, 205, 0), (200, 100, 50), 124),
    ("CMYK", (0, 0, 0, 255), (0, 0, 0), 0),
    ("YCbCr", (124, 86, 182), (200, 100, 50), 124),
    ("HSV", (14, 191, 200), (200, 99, 50), 124),
    ("LAB", (128, 128, 128), (119, 119, 119), 119),  # L* of 50 is 119 in sRGB
    ("LAB", (255, 128, 128), (255, 255, 255), 255),
    ("I;16", 0x7BCD, (0x7B,) * 3, 0x7B),
    ("I;16L", 0x7BCD, (0x7B,) * 3, 0x7B),
    ("I;16B", 0x7BCD, (0x7B,) * 3, 0x7B),
    ("I;16N", 0x7BCD, (0x7B,) * 3, 0x7B),
    ("I;16", 0xFFFF, (255, 255, 255), 255),
    ("I", 0x7BCD, (0x7B,) * 3, 0x7B),
    ("I", 0xFFFF, (255, 255, 255), 255),
    ("F", 0.0, (0, 0, 0), 0),
    ("F", 0.5, (128, 128, 128), 128),
    ("F", 1.0, (255, 255, 255), 255),
]


def colour(image: Image.Image | Path, preprocessing: Preprocessing = RGB) -> tuple[int, ...]:
    """The one colour of an image, as its frame shows it."""
    frame = preprocessing.frame(image)
    assert (frame == frame[0, 0]).all()
    return tuple(int(value) for value in frame[0, 0])


@pytest.mark.parametrize(("mode", "value", "rgb", "gray"), MODES)
def test_every_mode_has_its_meaning(
    mode: str, value: Value, rgb: tuple[int, int, int], gray: int
) -> None:
    image = Image.new(mode, (4, 4), value)
    # Conversions between colours are off by one where they round.
    assert np.abs(np.subtract(colour(image), rgb)).max() <= 1
    assert abs(colour(image, GRAY)[0] - gray) <= 1
    assert image.mode == mode  # the caller's image stays as it is


def test_no_mode_of_this_pillow_is_forgotten() -> None:
    assert set(Image.MODES) <= {mode for mode, *_ in MODES} | {"P", "PA"}


@pytest.mark.parametrize("transparency", [None, 0, b"\0\x80"])
def test_a_palette_shows_its_colours(transparency: int | bytes | None, tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([1, 2, 3, 200, 100, 50])
    if transparency is not None:
        image.info["transparency"] = transparency
    image.save(tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as opened:
        assert (opened.mode, "transparency" in opened.info) == ("P", transparency is not None)
    assert colour(tmp_path / "p.png") == (200, 100, 50)
    assert colour(tmp_path / "p.png", GRAY) == (124,)
    assert colour(image.convert("PA")) == (200, 100, 50)


def png(width: int, height: int, bits: int, kind: int, pixel: bytes = b"") -> bytes:
    """A PNG whose pixels are all the same; without a pixel, one that has no pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    rows = zlib.compress((b"\0" + pixel * width) * height if pixel else b"")
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def tiff(bits: int, *, kind: int = 1, photometric: int = 1, rows: bytes, width: int = 2) -> bytes:
    """A gray TIFF, little-endian; ``kind`` 1 is unsigned, 2 signed, 3 float."""
    tags = {256: width, 257: 2, 258: bits, 259: 1, 262: photometric, 277: 1, 278: 2, 339: kind}
    tags |= {273: 8 + 2 + 12 * 10 + 4, 279: len(rows)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + rows


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png(4, 4, 16, 0, b"\x7b\xcd"), (0x7B, 0x7B, 0x7B)),
        (png(4, 4, 16, 2, b"\xc8\x80\x64\x80\x32\x80"), (200, 100, 50)),
        (png(4, 4, 16, 4, b"\x7b\xcd\x00\x00"), (0x7B, 0x7B, 0x7B)),
        (png(4, 4, 16, 6, b"\xc8\x80\x64\x80\x32\x80\x00\x00"), (200, 100, 50)),
        (b"P5 2 2 65535 " + b"\x7b\xcd" * 4, (0x7B, 0x7B, 0x7B)),
        (b"P5 2 2 4095 " + b"\x07\xbc" * 4, (0x7B, 0x7B, 0x7B)),  # which states its white
        (tiff(16, rows=b"\xcd\x7b" * 4), (0x7B, 0x7B, 0x7B)),
        (tiff(16, rows=b"\xcd\x7b" * 4, photometric=0), (0x84, 0x84, 0x84)),  # 0 is white
        (tiff(12, rows=b"\x7b\xc7\xbc" * 2), (0x7B, 0x7B, 0x7B)),
        (tiff(32, kind=3, rows=struct.pack("<4f", *[0.25] * 4)), (64, 64, 64)),
        (tiff(32, kind=3, rows=struct.pack("<4f", *[0.25] * 4), photometric=0), (191,) * 3),
    ],
)
def test_files_of_16_bits_and_floats_keep_their_brightness(
    content: bytes, expected: tuple[int, ...], tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(content)
    check_image(tmp_path / "file")
    assert colour(tmp_path / "file") == expected


def test_a_camera_of_12_bits_that_writes_16_says_so() -> None:
    image = Image.new("I;16", (4, 4), 0x7BC)
    assert colour(image) == (7, 7, 7)
    assert colour(image, Preprocessing(size=(2, 2), bits=12)) == (0x7B, 0x7B, 0x7B)
    image = Image.new("I;16", (4, 4), 0x1000)
    with pytest.raises(ImageError, match="values are 4096 to 4096, and 12-bit gray is 0 to 4095"):
        Preprocessing(size=(2, 2), bits=12).frame(image)
    with pytest.raises(ValueError, match="bits must be 8 to 16, got 7"):
        Preprocessing(size=(2, 2), bits=7)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (tiff(32, rows=struct.pack("<4I", *[99] * 4)), "its integers have 32 bits"),
        (tiff(16, kind=2, rows=struct.pack("<4h", *[-1] * 4)), "its values are -1 to -1, and 16-b"),
        (tiff(32, kind=3, rows=struct.pack("<4f", 0, 1, 2, 255)), "values are 0 to 255, and float"),
        (tiff(32, kind=3, rows=struct.pack("<4f", 0, 0, 0, np.nan)), "are nan to nan, and float"),
    ],
)
def test_values_without_a_plain_meaning_are_refused(
    content: bytes, why: str, tmp_path: Path
) -> None:
    (tmp_path / "file.tif").write_bytes(content)
    with pytest.raises(ImageError, match=rf"file\.tif cannot be read as an image: .*{why}"):
        RGB.frame(tmp_path / "file.tif")


def test_a_mode_that_is_new_to_us_is_refused() -> None:
    image = Image.new("L", (2, 2))
    setattr(image, "mode" if "mode" in vars(image) else "_mode", "Z")  # by Pillow's version
    with pytest.raises(ImageError, match="mode 'Z' has no meaning as a photograph"):
        RGB.frame(image)


def test_a_cmyk_jpeg_of_adobe_s_is_not_inverted(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (55, 155, 205, 0)).save(tmp_path / "c.jpg", quality=95)
    assert b"Adobe" in (tmp_path / "c.jpg").read_bytes()
    assert np.abs(np.subtract(colour(tmp_path / "c.jpg"), (200, 100, 50))).max() <= 3


STORED_TURNED = {
    1: None,
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}
"""By EXIF orientation, how the stored pixels are turned from the upright picture."""


def quarters() -> Image.Image:
    """A picture with another colour in each of six blocks, which JPEG keeps."""
    blocks = np.array([[0, 60, 120], [160, 200, 250]], np.uint8)
    return Image.fromarray(blocks.repeat(16, 0).repeat(16, 1)).convert("RGB")


def stored(orientation: int, suffix: str, image: Image.Image) -> bytes:
    """A file of an upright picture, as a turned camera stores it."""
    turn = STORED_TURNED[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    options = {"lossless": True} if suffix == "webp" else {"quality": 95} if suffix == "jpg" else {}
    turned = image if turn is None else image.transpose(turn)
    turned.save(buffer, Image.registered_extensions()[f".{suffix}"], exif=exif, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", STORED_TURNED)
def test_every_orientation_is_upright(orientation: int, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"turned.{suffix}"
    file.write_bytes(stored(orientation, suffix, quarters()))
    preprocessing = Preprocessing(size=(32, 48))
    frame, upright = preprocessing.frame(file), preprocessing.frame(quarters())
    assert np.abs(frame.astype(int) - upright).max() <= (2 if suffix == "jpg" else 0)
    with Image.open(file) as opened:
        np.testing.assert_array_equal(preprocessing.frame(opened), frame)
    if suffix in ("jpg", "png"):  # an edge decodes these, perhaps of a device that is not ours
        sent = image_decode(file.read_bytes(), "png" if suffix == "png" else "jpeg", (32, 48, 3))
        np.testing.assert_array_equal(sent, frame)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *((mode, suffix) for mode in ("L", "I;16", "RGBA") for suffix in ("png", "tif")),
        *((mode, "tif") for mode in ("CMYK", "LAB", "F")),
    ],
)
def test_other_modes_are_turned_too(mode: str, suffix: str, tmp_path: Path) -> None:
    """Pillow 13 turns a TIFF of mode L or I;16 wrongly if it is opened by its name."""
    levels = np.asarray(quarters().convert("L"))
    made = {
        "I;16": lambda: Image.fromarray(levels.astype(np.uint16) * 257),
        "F": lambda: Image.fromarray(levels.astype(np.float32) / 255),
        "LAB": lambda: Image.merge(
            "LAB", [Image.fromarray(levels)] + 2 * [quarters().getchannel(0)]
        ),
    }
    upright = made.get(mode, lambda: quarters().convert(mode))()
    assert upright.mode == mode
    for orientation in STORED_TURNED:
        file = tmp_path / f"{orientation}.{suffix}"
        file.write_bytes(stored(orientation, suffix, upright))
        preprocessing = Preprocessing(size=(32, 48))
        np.testing.assert_array_equal(preprocessing.frame(file), preprocessing.frame(upright))


def test_a_damaged_exif_does_not_cost_the_picture(tmp_path: Path) -> None:
    file = tmp_path / "damaged.jpg"
    Image.new("RGB", (16, 16), (9, 9, 9)).save(file, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert colour(file) == (9, 9, 9)
    Image.new("RGB", (16, 16), (9, 9, 9)).save(file, exif=b"Exif\0\0garbage")
    assert colour(file) == (9, 9, 9)


@pytest.mark.parametrize("suffix", ["gif", "tif", "webp", "png"])
def test_of_several_frames_the_first_is_read(suffix: str, tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (4, 4), (level,) * 3) for level in (40, 200))
    file = tmp_path / f"frames.{suffix}"
    first.save(file, save_all=True, append_images=[second], lossless=True)  # WebP reads the last
    assert colour(file) == (40, 40, 40)


def _half(suffix: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = stored(1, suffix, Image.fromarray(noise))
    return content[: len(content) // 2]


BROKEN: dict[str, tuple[bytes, str]] = {
    "half.jpg": (_half("jpg"), "image file is truncated"),
    "half.png": (_half("png"), "image file is truncated"),
    "half.tif": (_half("tif"), ""),
    "half.webp": (_half("webp"), ""),
    "half.bmp": (_half("bmp"), "image file is truncated"),
    "._photo.jpg": (b"\0\5\x16\7\0\2\0\0Mac OS X", "it has no format of images that Pillow reads"),
    "text.png": (b"a text", "it has no format of images that Pillow reads"),
    "empty.jpg": (b"", "it is empty"),
    "large.png": (png(14000, 14000, 8, 2), "it has more than 179 megapixels; make it smaller"),
    "none.png": (png(0, 4, 8, 2), ""),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    content, why = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError) as caught:
        RGB.frame(tmp_path / name)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / name} cannot be read as an image: {why}")
    assert "\n" not in message
    if not name.startswith("half"):  # whose header is whole
        with pytest.raises(ImageError):
            check_image(tmp_path / name)


def test_a_picture_of_100_megapixels_is_read_without_a_warning(tmp_path: Path) -> None:
    (tmp_path / "line_scan.png").write_bytes(png(10_000, 10_000, 1, 0))
    check_image(tmp_path / "line_scan.png")


def _unreadable(file: Path) -> None:
    file.write_bytes(b"x")
    file.chmod(0)


NO_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder": (Path.mkdir, "it is a folder"),
    "dangling": (lambda file: file.symlink_to("nowhere"), "it is a link to a file that is not th"),
    "loop": (lambda file: file.symlink_to(file.name), ""),
    "fifo": (os.mkfifo, "it is not a regular file"),
    "device": (lambda file: file.symlink_to("/dev/zero"), "it is not a regular file"),
    "kernel": (lambda file: file.symlink_to("/proc/kmsg"), "it is empty"),
    "missing": (lambda file: None, "there is no such file"),
    "unreadable": (_unreadable, "Permission denied"),
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_refused_and_never_waited_for(kind: str, tmp_path: Path) -> None:
    make, why = NO_FILES[kind]
    file = tmp_path / "x.jpg"
    make(file)
    root = kind == "unreadable" and os.geteuid() == 0
    if root:  # who may read everything
        for folder in (tmp_path, *tmp_path.parents[:2]):
            folder.chmod(0o755)
        os.seteuid(65534)
    try:
        for read in (check_image, RGB.frame):
            with pytest.raises(ImageError, match=f"x.jpg cannot be read as an image: {why}"):
                read(file)
    finally:
        if root:
            os.seteuid(0)


def test_hidden_files_and_folders_are_left_out_and_links_followed(tmp_path: Path) -> None:
    root = tmp_path / ".cache" / "data"  # hidden itself, but the user has named it
    names = ["a.jpg", "._a.jpg", ".DS_Store", "Thumbs.db", "x.jpg/inside.png", "b/c/d.PGM"]
    names += [".ipynb_checkpoints/a.jpg", "__MACOSX/._a.jpg", "b/@eaDir/thumb.jpg"]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "e.tiff").touch()
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "b" / "back").symlink_to(root)
    found = find_images(root)
    assert [str(file.relative_to(root)) for file in found.files] == [
        *("a.jpg", "b/c/d.PGM", "linked/e.tiff", "x.jpg/inside.png")
    ]
    assert found.hidden == 4  # ._a.jpg and three folders
    with pytest.raises(ImageError, match=r"the folder .*nowhere cannot be read: No such file"):
        find_images(tmp_path / "nowhere")
