"""Images: read, normalized and compressed the same everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scissionlite.images import Preprocessing, image_files, jpeg_decode, jpeg_encode


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
    again = jpeg_decode(jpeg_encode(frame, 95), preprocessing.frame_shape)
    assert np.abs(again.astype(int) - frame).max() <= 6  # flat colour survives JPEG


def test_frames_and_jpegs_of_another_size_are_refused() -> None:
    preprocessing = Preprocessing(size=(8, 8))
    with pytest.raises(ValueError, match=r"uint8 of shape \(8, 8, 3\)"):
        preprocessing.tensor(np.zeros((8, 9, 3), np.uint8))
    sent = jpeg_encode(np.zeros((8, 16, 3), np.uint8), 75)
    with pytest.raises(ValueError, match="image of 16x8 pixels, expected 8x8"):
        jpeg_decode(sent, (8, 8, 3))
    for broken in (b"", b"\xff\xd8\xff", sent[: len(sent) // 2]):
        with pytest.raises(ValueError, match="not a JPEG image"):
            jpeg_decode(broken, (8, 16, 3))


def test_image_files_are_found_at_any_depth_and_sorted(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("z.JPG", "b/a.png", "a.jpeg", "notes.txt"):
        (tmp_path / name).touch()
    found = [str(file.relative_to(tmp_path)) for file in image_files(tmp_path)]
    assert found == ["a.jpeg", "b/a.png", "z.JPG"]
