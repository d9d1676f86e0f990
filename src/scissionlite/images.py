"""Images: from an image file to the network's input, equal in training, on device and edge.

An image file is read (:mod:`.image_files`) into a frame: uint8, at the size that a camera would
deliver to the network. A frame is normalized into a tensor. Bundles of kind "image" send frames,
compressed or not. No torch here.
"""

from __future__ import annotations

import functools
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from scissionlite import _core
from scissionlite.image_files import read_image, upright_8bit

if TYPE_CHECKING:
    # Imported by the functions that need it: a device that sends feature maps does not.
    from PIL import Image

ImageFormat: TypeAlias = Literal["uint8", "png", "jpeg"]
"""How a frame is sent to the edge: uncompressed, or compressed without or with loss."""

Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos"]
"""How an image is resized; Pillow's filters, which average where an image becomes smaller."""

JPEG_QUALITY = 75
"""Default quality of JPEG to the edge; Pillow and libjpeg have the same default."""


class Preprocessing(msgspec.Struct, frozen=True, kw_only=True):
    """How an image file becomes the network's input, identical in training and on the device.

    Parameters
    ----------
    size
        Height and width of the network's input, in pixels.
    resize
        Length of the shorter side, in pixels, before a central crop to ``size``;
        None resizes directly to ``size``.
    mean, std
        Mean and standard deviation per channel, for values between 0 and 1. Three channels are
        read as RGB, one as grayscale. The default is ImageNet's.
    interpolation
        How images are resized.
    bits
        How many bits of a 16-bit gray image the camera uses, 8 to 16, from the lowest on. Cameras
        with 10 or 12 bits often write files of 16.
    """

    size: tuple[int, int]
    resize: int | None = None
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bilinear"
    bits: int = 16

    def __post_init__(self) -> None:
        if min(self.size) < 1 or (self.resize is not None and self.resize < max(self.size)):
            raise ValueError(
                f"size must be positive and no larger than resize, got size={self.size}, "
                f"resize={self.resize}"
            )
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3) or min(self.std) <= 0:
            raise ValueError(
                "mean and std need one value per channel (1 or 3 channels) and std > 0, "
                f"got mean={self.mean}, std={self.std}"
            )
        if not 8 <= self.bits <= 16:
            raise ValueError(f"bits must be 8 to 16, got {self.bits}")

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Shape of a frame: height, width, channels."""
        return (*self.size, len(self.mean))

    def frame(self, image: Image.Image | str | Path) -> npt.NDArray[np.uint8]:
        """Read, convert and resize an image.

        It is turned upright as its EXIF orientation says, and made 8-bit as
        :mod:`.image_files` describes for every mode that Pillow has.

        Parameters
        ----------
        image
            A file, or an image opened with Pillow, which stays as it is.

        Returns
        -------
        numpy.ndarray
            uint8, shape ``(height, width, channels)``. JPEG to the edge compresses this array.

        Raises
        ------
        ImageError
            If it cannot be read, or its values have no plain meaning.
        """
        image = read_image(image, bits=self.bits)
        image = image.convert("RGB" if len(self.mean) == 3 else "L")
        fitted = self.fit(image, self.interpolation)
        return np.asarray(fitted, dtype=np.uint8).reshape(self.frame_shape)

    def fit(self, image: Image.Image, interpolation: Interpolation) -> Image.Image:
        """Resize and crop an image to ``size``."""
        from PIL import Image

        height, width = self.size
        resampling = Image.Resampling[interpolation.upper()]
        if self.resize is None:
            return image.resize((width, height), resampling)
        factor = self.resize / min(image.size)
        scaled = (
            max(width, round(image.width * factor)),
            max(height, round(image.height * factor)),
        )
        left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
        image = image.resize(scaled, resampling)
        return image.crop((left, top, left + width, top + height))

    def tensor(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Normalize a frame into the network's input.

        Parameters
        ----------
        frame
            uint8, shape ``(height, width, channels)``.

        Returns
        -------
        numpy.ndarray
            float32, C-contiguous, shape ``(1, channels, height, width)``.

        Raises
        ------
        ValueError
            If the frame has another shape or dtype.
        """
        if frame.dtype != np.uint8 or frame.shape != self.frame_shape:
            raise ValueError(
                f"a frame must be uint8 of shape {self.frame_shape}, "
                f"got {frame.dtype} of shape {frame.shape}; Preprocessing.frame() makes one"
            )
        height, width, channels = self.frame_shape
        planes = np.empty((1, channels, height, width), np.float32)
        _core.normalize_frame(np.ascontiguousarray(frame), _tables(self.mean, self.std), planes)
        return planes


@functools.cache
def _tables(mean: tuple[float, ...], std: tuple[float, ...]) -> npt.NDArray[np.float32]:
    """The normalized value of each of the 256 values, a row for each channel."""
    scale = (1.0 / (255.0 * np.asarray(std))).astype(np.float32)
    shift = (np.asarray(mean) / np.asarray(std)).astype(np.float32)
    values = np.arange(256, dtype=np.float32) * scale[:, None]
    values -= shift[:, None]
    return values


def image_encode(
    frame: npt.NDArray[np.uint8], image_format: ImageFormat, quality: int | None = None
) -> bytes:
    """Turn a frame, uint8 ``(height, width, channels)``, into the bytes to be sent.

    ``quality``, 1 to 95, is JPEG's.
    """
    if image_format == "uint8":
        return frame.tobytes()
    from PIL import Image

    image = Image.fromarray(frame[:, :, 0] if frame.shape[2] == 1 else frame)
    buffer = io.BytesIO()
    if image_format == "jpeg":
        image.save(buffer, format="JPEG", quality=quality)
    else:
        # The fastest level: the others take many times as long and save a few percent.
        image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def image_decode(
    data: bytes | memoryview, image_format: ImageFormat, frame_shape: tuple[int, int, int]
) -> npt.NDArray[np.uint8]:
    """Turn bytes that were sent into a frame of exactly ``frame_shape``.

    An image with an EXIF orientation is turned, as wherever images are read. Those of
    :func:`image_encode` have none.

    Raises
    ------
    ValueError
        If the bytes are not an image of this format, or it has another size. The size is read from
        the header and checked before any pixel is decoded.
    """
    if image_format == "uint8":
        if len(data) != math.prod(frame_shape):
            raise ValueError(f"{len(data)} bytes are no frame of shape {frame_shape}")
        return np.frombuffer(data, np.uint8).reshape(frame_shape)
    from PIL import Image

    name = image_format.upper()
    height, width, channels = frame_shape
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=(name,))
        # Before decoding; one that is to be turned is stored with its sides exchanged.
        if image.size in ((width, height), (height, width)):
            image = upright_8bit(image)
        if image.size != (width, height):
            raise ValueError(
                f"image of {image.size[0]}x{image.size[1]} pixels, expected {width}x{height}"
            )
        pixels = image.convert("RGB" if channels == 3 else "L")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a {name} image that can be decoded: {error}") from error
    return np.asarray(pixels, dtype=np.uint8).reshape(frame_shape)
