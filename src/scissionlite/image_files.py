"""Image files: found below a folder, and read into upright pictures of 8 bits. No torch here.

Pillow opens a file in one of its modes, and each has one meaning here:

=======================================  =========================================================
modes                                    become
=======================================  =========================================================
1, L                                     gray, as they are
I;16, I;16L, I;16B, I;16N, I             gray: the upper 8 of the file's bits (16 by default)
F                                        gray: from 0 (black) to 1 (white); other values are refused
RGB, RGBX, P, YCbCr, HSV, LAB            RGB
CMYK                                     RGB, without a colour profile
LA, PA, RGBA, P with transparency        the same without transparency; the colours stay
La, RGBa                                 the same, after the division by their transparency
=======================================  =========================================================

Files with 16 bits per colour give Pillow's RGB, which has the upper 8 of them. A file of several
frames or pages gives its first. Every picture is turned as its EXIF orientation says.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scissionlite.errors import ImageError

if TYPE_CHECKING:
    # Imported by the functions that need it: a device that sends feature maps does not.
    from PIL import Image

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Suffixes of image files, in lower case; torchvision's ImageFolder has the same."""

_NOT_OF_USERS = frozenset(
    {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
)
"""Folders that archives, network storage and file systems add, some with small pictures in them."""

INTEGER_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
"""Pillow's modes for gray of 16 bits."""

_GRAY_MODES = frozenset({"1", "L", "LA", "La"})
_COLOUR_MODES = frozenset({"CMYK", "HSV", "LAB", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "YCbCr"})

_ORIENTATION = 0x0112
"""The EXIF tag that says how a camera was held."""

_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
"""The TIFF tags that say how many bits a value has, and whether 0 is white."""


class FoundImages(NamedTuple):
    """The images below a folder.

    Attributes
    ----------
    files
        Their files, sorted.
    hidden
        How many other images and folders were left out, because they are hidden.
    """

    files: list[Path]
    hidden: int


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is not one of the user's photographs or classes.

    Names that begin with a dot are hidden (``.ipynb_checkpoints``, ``._photo.jpg``), and so are
    folders that systems add (``__MACOSX``).
    """
    return name.startswith(".") or name in _NOT_OF_USERS


def has_image_suffix(name: str) -> bool:
    """Whether a file of this name is an image by its suffix."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def find_images(folder: str | Path) -> FoundImages:
    """Find all image files below a folder, by their suffix; links to folders are followed.

    Raises
    ------
    ImageError
        If the folder, or one below it, cannot be read.
    """

    def unreadable(error: OSError) -> None:
        raise ImageError(f"the folder {error.filename} cannot be read: {error.strerror}") from error

    files: list[Path] = []
    hidden = 0
    entered: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in entered:  # a link back to where we were
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        images = [name for name in names if has_image_suffix(name)]
        shown = [Path(place, name) for name in images if not is_hidden(name)]
        open_folders = [name for name in folders if not is_hidden(name)]
        files += shown
        hidden += len(images) - len(shown) + len(folders) - len(open_folders)
        folders[:] = open_folders
    return FoundImages(sorted(files), hidden)


def check_image(file: Path) -> str:
    """Check that a file is an image that can be read, from its header alone.

    Returns
    -------
    str
        Pillow's mode.

    Raises
    ------
    ImageError
        If it is none. Damaged pixels are not found here.
    """
    with _opened(file) as image:
        _check_mode(image.mode)
        return image.mode


def used_bits(file: Path) -> int:
    """How many bits the largest value of a gray image of 16 bits needs; 16 if the file has fewer.

    Raises
    ------
    ImageError
        If it cannot be read.
    """
    with _opened(file) as image:
        stated = _tiff_tag(image, _BITS_PER_SAMPLE, 16)
        return 16 if stated < 16 else int(np.asarray(image).max()).bit_length()


def read_image(source: Image.Image | str | Path, *, bits: int = 16) -> Image.Image:
    """Read an image: upright, 8 bits, with Pillow's mode L (gray) or RGB.

    Parameters
    ----------
    source
        A file, or an opened image, which stays as it is.
    bits
        How many bits of a 16-bit gray value are used, from the lowest on.

    Raises
    ------
    ImageError
        If it cannot be read, or its values have no plain meaning.
    """
    if isinstance(source, (str, Path)):
        with _opened(Path(source)) as image:
            return upright_8bit(image, bits=bits)
    return upright_8bit(source, bits=bits)


def read_indices(file: Path) -> Image.Image:
    """Read a picture whose pixels are numbers (a mask): upright, with Pillow's mode L.

    Palettes, which give the numbers colours, are not looked at.

    Raises
    ------
    ImageError
        If it cannot be read, or its pixels are no 8-bit numbers.
    """
    from PIL import Image

    with _opened(file) as image:
        if image.mode not in ("1", "L", "P"):
            raise ImageError(
                f"its mode is {image.mode}; a mask has 8 bits and the index of a class in each "
                "pixel (mode L or P)"
            )
        return _turned(image, Image.fromarray(np.asarray(image).astype(np.uint8)))


def upright_size(file: Path) -> tuple[int, int]:
    """Read an image's width and height, turned upright, from its header alone.

    Raises
    ------
    ImageError
        If it cannot be read.
    """
    from PIL import Image

    with _opened(file) as image:
        return _turned(image, Image.new("1", image.size)).size


def upright_8bit(image: Image.Image, *, bits: int = 16) -> Image.Image:
    """Turn an opened image upright and make it 8-bit, as :func:`read_image` does.

    Raises
    ------
    ImageError
        If its mode or values have no plain meaning; its pixels may raise any error of Pillow's.
    """
    image.load()
    if not min(image.size):
        raise ImageError("it has no pixels")
    _check_mode(image.mode)
    return _turned(image, _8bit(image, bits))


def _8bit(image: Image.Image, bits: int) -> Image.Image:
    """The same pixels with mode L or RGB."""
    mode = image.mode
    if mode in INTEGER_MODES:
        return _from_integers(image, bits)
    if mode == "F":
        return _from_floats(image)
    if mode == "La":
        image = image.convert("LA")  # Pillow has no other way
    elif mode == "P":
        image = image.convert("RGBA")  # Pillow warns where the palette is transparent
    target = "L" if mode in _GRAY_MODES else "RGB"
    return image if image.mode == target else image.convert(target)


def _from_integers(image: Image.Image, bits: int) -> Image.Image:
    from PIL import Image

    stated = _tiff_tag(image, _BITS_PER_SAMPLE, 16)
    if stated > 16:
        raise ImageError(
            f"its integers have {stated} bits, and nothing says which is white: save it with 16"
        )
    if stated < 16:
        bits = stated
    values = np.asarray(image)
    low, high, white = int(values.min()), int(values.max()), (1 << bits) - 1
    if low < 0 or high > white:
        raise ImageError(f"its values are {low} to {high}, and {bits}-bit gray is 0 to {white}")
    if _white_is_zero(image):
        values = white - values
    return Image.fromarray((values >> (bits - 8)).astype(np.uint8))


def _from_floats(image: Image.Image) -> Image.Image:
    from PIL import Image

    values = np.asarray(image)
    if not ((values >= 0) & (values <= 1)).all():  # nor is NaN
        raise ImageError(
            f"its values are {values.min():g} to {values.max():g}, and float values are read as 0 "
            "(black) to 1 (white): scale them, or save it with 8 or 16 bits"
        )
    if _white_is_zero(image):
        values = 1 - values
    return Image.fromarray(np.rint(values * 255).astype(np.uint8))


def _white_is_zero(image: Image.Image) -> bool:
    """Whether this is such a TIFF; Pillow inverts those of 8 bits, and no others."""
    return _tiff_tag(image, _PHOTOMETRIC, 1) == 0


def _tiff_tag(image: Image.Image, tag: int, default: int) -> int:
    """A tag's value, the first if it has several; the default if this is no TIFF."""
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)


def _turned(opened: Image.Image, pixels: Image.Image) -> Image.Image:
    """Turn pixels as the image that they were in says."""
    if opened.format == "TIFF":  # Pillow has turned it
        return pixels
    from PIL.Image import Transpose

    try:
        orientation = opened.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises many; viewers show such a picture as it is stored
        return pixels
    turn = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(orientation)
    return pixels if turn is None else pixels.transpose(turn)


def _check_mode(mode: str) -> None:
    if mode not in _GRAY_MODES | _COLOUR_MODES | INTEGER_MODES | {"F"}:
        raise ImageError(f"its mode {mode!r} has no meaning as a photograph")


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """Open an image file; say in one line, with its name, what is wrong with it."""
    from PIL import Image, UnidentifiedImageError

    try:
        _check_regular(file)
        with warnings.catch_warnings():
            # Large pictures, and damaged details beside the pixels: both are read.
            warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
            # Not by its name: Pillow then maps a TIFF into memory, and turns some wrongly.
            with file.open("rb") as content, Image.open(content) as image:
                yield image
        return
    except ImageError as error:
        why = str(error)
        cause: Exception = error
    except UnidentifiedImageError as error:
        why, cause = "it has no format of images that Pillow reads", error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        why = f"it has more than {limit:.0f} megapixels; make it smaller"
        cause = error
    except Exception as error:  # Pillow raises many for damaged files
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        cause = error
    raise ImageError(f"{file} cannot be read as an image: {why}") from cause


def _check_regular(file: Path) -> None:
    """Refuse what is no regular file: reading a FIFO or a device could wait for ever."""
    try:
        status = file.stat()
    except FileNotFoundError as error:
        raise ImageError(
            "it is a link to a file that is not there"
            if file.is_symlink()
            else "there is no such file"
        ) from error
    if stat.S_ISDIR(status.st_mode):
        raise ImageError("it is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("it is not a regular file")
    if status.st_size == 0:
        raise ImageError("it is empty")
