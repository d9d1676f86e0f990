"""Images: read, normalized and compressed the same everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scissionlite.image_files import find_images
from scissionlite.images import ImageFormat, Preprocessing, image_decode, image_encode


@given(
    size=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    original=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    crop=st.booleans(),
    gray=st.booleans(),
)
def test_any_image_becomes_a_frame_of_the_right_size(
    size: tuple[int, int], original: tuple[int, int], crop: bool, gray: bool
) -> None:
    statistics = (0.5,) if gray else (0.4, 0.5, 0.6)
    preprocessing = Preprocessing(
        size=size, resize=max(size) + 3 if crop else None, mean=statistics, std=statistics
    )
    frame = preprocessing.frame(Image.new("CMYK", original, (10, 20, 30, 40)))
    assert frame.shape == (*size, len(statistics))
    x = preprocessing.tensor(frame)
    assert x.shape == (1, len(statistics), *size)
    assert x.dtype == np.float32
    assert x.flags.c_contiguous
    expected = (frame / 255 - np.array(statistics)) / np.array(statistics)
    np.testing.assert_allclose(x[0], expected.transpose(2, 0, 1), atol=1e-5)
    again = image_decode(image_encode(frame, "jpeg", 95), "jpeg", preprocessing.frame_shape)
    assert np.abs(again.astype(int) - frame).max() <= 6  # flat colour survives JPEG


@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3])),
    image_format=st.sampled_from(["uint8", "png"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_without_loss_every_pixel_comes_back(
    shape: tuple[int, int, int], image_format: ImageFormat, seed: int
) -> None:
    frame = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    sent = image_encode(frame, image_format)
    np.testing.assert_array_equal(image_decode(sent, image_format, shape), frame)
    if image_format == "uint8":
        assert len(sent) == frame.nbytes
        with pytest.raises(ValueError, match="bytes are no frame of shape"):
            image_decode(sent + b"x", image_format, shape)


@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3])),
    mean=st.floats(-1, 1),
    std=st.floats(0.01, 2),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_frame_is_normalized_to_the_bits_of_the_formula(
    shape: tuple[int, int, int], mean: float, std: float, seed: int
) -> None:
    """In float32: the value times 1/(255 std), less mean/std, each rounded."""
    frame = np.random.default_rng(seed).integers(0, 256, (*shape[:2], 6), dtype=np.uint8)
    frame = frame[:, :, ::2][:, :, : shape[2]]  # not contiguous
    means = tuple(mean + i for i in range(shape[2]))
    stds = tuple(std * (i + 1) for i in range(shape[2]))
    x = Preprocessing(size=shape[:2], mean=means, std=stds).tensor(frame)
    scale = (1 / (255 * np.array(stds))).astype(np.float32)
    shift = (np.array(means) / np.array(stds)).astype(np.float32)
    expected = (frame.astype(np.float32) * scale - shift).transpose(2, 0, 1)[None]
    assert x.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(x, expected)


def test_frames_and_jpegs_of_another_size_are_refused() -> None:
    preprocessing = Preprocessing(size=(8, 8))
    with pytest.raises(ValueError, match=r"uint8 of shape \(8, 8, 3\)"):
        preprocessing.tensor(np.zeros((8, 9, 3), np.uint8))
    sent = image_encode(np.zeros((8, 16, 3), np.uint8), "jpeg", 75)
    with pytest.raises(ValueError, match="image of 16x8 pixels, expected 8x8"):
        image_decode(sent, "jpeg", (8, 8, 3))
    for broken in (b"", b"\xff\xd8\xff", sent[: len(sent) // 2]):
        with pytest.raises(ValueError, match="not a JPEG image"):
            image_decode(broken, "jpeg", (8, 16, 3))


def test_image_files_are_found_at_any_depth_and_sorted(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("z.JPG", "b/a.png", "a.jpeg", "notes.txt"):
        (tmp_path / name).touch()
    found = [str(file.relative_to(tmp_path)) for file in find_images(tmp_path).files]
    assert found == ["a.jpeg", "b/a.png", "z.JPG"]
