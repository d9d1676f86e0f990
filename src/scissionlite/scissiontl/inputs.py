"""The frames and inputs with which a network is profiled: the user's, or noise like photographs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from scissionlite.errors import ProfileError
from scissionlite.graph.graph import Graph
from scissionlite.images import Preprocessing
from scissionlite.scissiontl.profile import CodecInputs

SIZED_IMAGES = 4
"""Images with which bytes behind an entropy stage are measured."""


class Frames(msgspec.Struct, frozen=True):
    """The frames with which sending images is measured; none where the input is no image.

    ``source`` says in the profile where they come from.
    """

    frames: Sequence[npt.NDArray[np.uint8]] = ()
    source: str = ""
    preprocessing: Preprocessing | None = None

    def inputs(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[tuple[torch.Tensor, ...]]:
        """The network's inputs for some images."""
        if self.preprocessing is None:
            return []
        return [(torch.from_numpy(self.preprocessing.tensor(image)),) for image in images]

    @property
    def preprocess(self) -> list[Callable[[], object]]:
        """Of each frame, what makes it the network's input."""
        if self.preprocessing is None:
            return []
        return [partial(self.preprocessing.tensor, frame) for frame in self.frames]


def measured_frames(
    graph: Graph,
    images: Sequence[npt.NDArray[np.uint8]],
    preprocessing: Preprocessing | None,
) -> Frames:
    """Check the images; where there are none, make noise that compresses as photographs do."""
    shape = graph.inputs[0].shape
    if len(graph.inputs) != 1 or len(shape) != 4 or shape[0] != 1 or shape[1] not in (1, 3):
        if len(images):
            shapes = ", ".join(str(tensor.shape) for tensor in graph.inputs)
            raise ProfileError(f"images were given, but the network's input {shapes} is no image")
        return Frames()
    channels, height, width = shape[1:]
    if preprocessing is None:
        preprocessing = (
            Preprocessing(size=(height, width))
            if channels == 3
            else Preprocessing(size=(height, width), mean=(0.5,), std=(0.5,))
        )
    for frame in images:
        if frame.shape != (height, width, channels) or frame.dtype != np.uint8:
            raise ProfileError(
                f"an image is {frame.dtype} of shape {frame.shape}, the network's input needs "
                f"uint8 of shape {(height, width, channels)}"
            )
    if len(images):
        return Frames(images, f"{len(images)} images", preprocessing)
    noise = [natural_noise(height, width, channels, seed) for seed in range(8)]
    return Frames(noise, "noise with a 1/f spectrum, no images given", preprocessing)


def codec_inputs(
    graph: Graph, frames: Frames, *, given: bool
) -> tuple[CodecInputs, list[tuple[torch.Tensor, ...]]]:
    """Choose the network's inputs with which blocks and codecs are measured, and say which."""
    if inputs := frames.inputs(frames.frames[:SIZED_IMAGES]):
        return ("images" if given else "noise"), inputs
    if not any(map(_constant, graph.example)):
        return "example", [graph.example]
    # zstd would pack what follows from one value into next to nothing.
    return "noise", [
        tuple(
            _noise(x, 1000 * seed + i) if _constant(x) else x
            for i, x in enumerate(graph.example, len(graph.example))
        )
        for seed in range(SIZED_IMAGES)
    ]


def _constant(x: torch.Tensor) -> bool:
    return x.is_floating_point() and x.numel() > 1 and bool((x == x.flatten()[0]).all())


def _noise(x: torch.Tensor, seed: int) -> torch.Tensor:
    """Noise of a tensor's shape: planes with a 1/f spectrum, or random numbers without planes."""
    if x.ndim < 3:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)
    height, width = x.shape[-2:]
    planes = [natural_noise(height, width, 1, seed + i) for i in range(x.shape[:-2].numel())]
    return ((torch.from_numpy(np.stack(planes)).to(x.dtype) - 128) / 50).reshape(x.shape)


def natural_noise(height: int, width: int, channels: int, seed: int) -> npt.NDArray[np.uint8]:
    """A frame whose amplitude spectrum falls as 1/f, as photographs' do (Field, 1987)."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    frequency[0, 0] = 1.0
    spectrum = np.fft.fft2(rng.standard_normal((height, width))) / frequency
    image = np.fft.ifft2(spectrum).real
    image = np.clip(128 + 50 * (image - image.mean()) / image.std(), 0, 255).astype(np.uint8)
    return np.repeat(image[:, :, None], channels, axis=2)
