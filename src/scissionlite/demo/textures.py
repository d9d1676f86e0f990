"""The built-in data set: generated textures like defects on rolled steel.

The demo downloads nothing, so the images are drawn: six classes like those of the NEU surface
defect database (Song and Yan, 2013), on noise that looks like brushed metal, grayscale, 200x200
pixels, from a seed. They are not photographs. Accuracy on them shows that the software works, not
how well it would do in a factory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Array = npt.NDArray[np.float64]

SIZE = 200
"""Height and width, in pixels."""


def write_dataset(folder: Path, *, train: int, test: int, seed: int = 0) -> None:
    """Write ``folder/{train,test}/CLASS/N.jpg``, ``train`` and ``test`` images of each class.

    The same seed gives the same images. Files that exist already are kept.
    """
    for split, count in (("train", train), ("test", test)):
        for label, (name, draw) in enumerate(CLASSES.items()):
            target = folder / split / name
            target.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                file = target / f"{index:04d}.jpg"
                if not file.exists():
                    rng = np.random.default_rng([seed, split == "test", label, index])
                    image = Image.fromarray(_photograph(draw(rng), rng))
                    image.save(file, quality=92)


def _photograph(defect: Array, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """A defect map (-1 dark to 1 bright) on metal, under uneven light, with sensor noise."""
    brushed = _noise(rng, horizontal=8.0, vertical=1.0)
    slope = rng.uniform(-25, 25, 2)
    ramp = np.linspace(-1, 1, SIZE)
    light = rng.uniform(100, 160) + slope[0] * ramp[:, None] + slope[1] * ramp[None, :]
    contrast = rng.uniform(30, 60)
    image = light + 9 * brushed + contrast * defect + rng.normal(0, 5, (SIZE, SIZE))
    pixels: npt.NDArray[np.uint8] = np.clip(image, 0, 255).astype(np.uint8)
    return pixels


def _noise(rng: np.random.Generator, horizontal: float, vertical: float) -> Array:
    """Noise of unit variance, correlated over some pixels in each direction."""
    frequency_y = np.fft.fftfreq(SIZE)[:, None] * vertical
    frequency_x = np.fft.fftfreq(SIZE)[None, :] * horizontal
    response = np.exp(-2 * np.pi**2 * (frequency_x**2 + frequency_y**2))
    noise: Array = np.fft.ifft2(np.fft.fft2(rng.standard_normal((SIZE, SIZE))) * response).real
    noise /= noise.std()
    return noise


def _drawn(draw: Callable[[ImageDraw.ImageDraw], None], blur: float) -> Array:
    image = Image.new("L", (SIZE, SIZE))
    draw(ImageDraw.Draw(image))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(blur)), np.float64) / 255


def _crazing(rng: np.random.Generator) -> Array:
    """A net of fine dark cracks: where smooth noise crosses zero."""
    net = np.minimum(np.abs(_noise(rng, 5, 5)), np.abs(_noise(rng, 7, 7)))
    return -np.exp(-((net / rng.uniform(0.08, 0.16)) ** 2)) * rng.uniform(0.6, 1.0)


def _inclusion(rng: np.random.Generator) -> Array:
    """A few dark, elongated, upright blobs."""

    def draw(canvas: ImageDraw.ImageDraw) -> None:
        for _ in range(rng.integers(1, 4)):
            x, y = rng.uniform(20, SIZE - 20, 2)
            width, height = rng.uniform(3, 9), rng.uniform(25, 80)
            canvas.ellipse((x - width, y - height / 2, x + width, y + height / 2), fill=255)

    return -_drawn(draw, rng.uniform(1, 2.5))


def _patches(rng: np.random.Generator) -> Array:
    """Large dark areas with ragged borders."""
    field = _noise(rng, rng.uniform(14, 22), rng.uniform(14, 22)) + 0.25 * _noise(rng, 2, 2)
    return -1 / (1 + np.exp(-6 * (field - rng.uniform(0.2, 0.7))))


def _pitted(rng: np.random.Generator) -> Array:
    """Many small dark pits."""

    def draw(canvas: ImageDraw.ImageDraw) -> None:
        for _ in range(rng.integers(60, 160)):
            x, y = rng.uniform(0, SIZE, 2)
            radius = rng.uniform(1, 3.5)
            canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)

    return -_drawn(draw, 0.7)


def _rolled_in_scale(rng: np.random.Generator) -> Array:
    """Scale pressed in along the rolling direction: bright and dark flecks, wider than high."""
    field = _noise(rng, rng.uniform(6, 10), rng.uniform(2, 3.5))
    flecks: Array = np.tanh(2.5 * np.where(np.abs(field) > 0.8, field, 0))
    return flecks * rng.uniform(0.5, 0.9)


def _scratches(rng: np.random.Generator) -> Array:
    """A few long, bright, straight lines in about one direction."""
    direction = rng.uniform(0, np.pi)

    def draw(canvas: ImageDraw.ImageDraw) -> None:
        for _ in range(rng.integers(1, 6)):
            angle = direction + rng.normal(0, 0.08)
            x, y = rng.uniform(30, SIZE - 30, 2)
            dx, dy = np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(40, 160)
            canvas.line((x - dx, y - dy, x + dx, y + dy), fill=255, width=int(rng.integers(1, 4)))

    return _drawn(draw, 0.8)


CLASSES: dict[str, Callable[[np.random.Generator], Array]] = {
    "crazing": _crazing,
    "inclusion": _inclusion,
    "patches": _patches,
    "pitted_surface": _pitted,
    "rolled-in_scale": _rolled_in_scale,
    "scratches": _scratches,
}
