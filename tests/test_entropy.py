"""Entropy coding: decompression restores the payload, and a hostile payload does no harm."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st
from specs import CHOICES

from scissionlite.errors import CodecError
from scissionlite.transfer_layer import TransferSpec, entropy
from scissionlite.transfer_layer.spec import MAX_ENTROPY_LEVEL

PAYLOAD = np.tile(np.arange(50, dtype=np.uint8), 40)
FRAME = zstandard.ZstdCompressor(level=3).compress(PAYLOAD.data)


def decompress(frame: bytes, nbytes: int = PAYLOAD.nbytes) -> bytes:
    return entropy.decompress(np.frombuffer(frame, np.uint8), "zstd", nbytes).tobytes()


def test_every_scheme_of_a_spec_is_there() -> None:
    assert {None, *entropy.SCHEMES} == set(CHOICES["entropy"])
    for name in (*CHOICES["entropy"], "ans"):  # tests/test_ans.py
        assert TransferSpec(entropy=name).entropy == name


@given(
    content=st.binary(min_size=1, max_size=2000),
    repeats=st.integers(1, 5),
    level=st.integers(1, MAX_ENTROPY_LEVEL),
)
def test_what_is_compressed_comes_back_or_is_not_compressed(
    content: bytes, repeats: int, level: int
) -> None:
    payload = np.frombuffer(content * repeats, np.uint8)
    coded = entropy.compress(payload, "zstd", level)
    if coded is not None:
        assert len(coded) < payload.nbytes
        assert decompress(coded, payload.nbytes) == payload.tobytes()


def test_levels_are_levels_and_noise_is_left_alone() -> None:
    rng = np.random.default_rng(0)
    codes = np.tile(np.cumsum(rng.integers(-1, 2, 5_000)), 4).astype(np.uint8)
    sizes = [len(entropy.compress(codes, "zstd", level) or b"") for level in (1, 19)]
    assert 0 < sizes[1] < sizes[0] < codes.nbytes
    assert entropy.compress(rng.integers(0, 256, 10_000, np.uint8), "zstd", 19) is None


def test_the_frame_is_the_one_that_the_format_page_asks_for() -> None:
    large = np.zeros(20 << 20, np.uint8)  # larger than any window
    for payload in (PAYLOAD, large):
        for level in (1, MAX_ENTROPY_LEVEL) if payload is PAYLOAD else (1,):
            coded = entropy.compress(payload, "zstd", level)
            assert coded is not None
            frame = zstandard.get_frame_parameters(coded)
            assert frame.content_size == payload.nbytes
            assert frame.window_size <= max(entropy.MAX_WINDOW, payload.nbytes)
            assert (frame.dict_id, frame.has_checksum) == (0, False)


def test_a_frame_with_a_checksum_or_of_another_level_is_taken() -> None:
    frame = zstandard.ZstdCompressor(level=7, write_checksum=True).compress(PAYLOAD.data)
    assert decompress(frame) == PAYLOAD.tobytes()
    assert decompress(windowed(23)) == PAYLOAD.tobytes()


def windowed(log: int) -> bytes:
    """Make the frame one of several segments, with a window of 2**log bytes."""
    assert FRAME[4] == 0x60
    return FRAME[:4] + bytes([0x40, log - 10 << 3]) + FRAME[5:]


def with_dictionary() -> bytes:
    dictionary = zstandard.ZstdCompressionDict(PAYLOAD.tobytes(), zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdCompressor(dict_data=dictionary).compress(PAYLOAD.data)


def announcing(nbytes: int) -> bytes:
    """Make a frame of 2000 bytes that says it holds others (RFC 8878, 3.1.1.1)."""
    assert zstandard.frame_header_size(FRAME) == 7
    assert FRAME[4] == 0x60  # one segment, two bytes of content size, less 256
    return FRAME[:4] + b"\xe0" + nbytes.to_bytes(8, "little") + FRAME[7:]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b"", "not one zstd frame"),
        (b"\0" * 100, "not one zstd frame"),
        (FRAME[:-1], "not one zstd frame"),
        (FRAME[:6], "not one zstd frame"),
        (FRAME + b"\0", "not one zstd frame"),
        (FRAME + FRAME, "not one zstd frame"),
        (zstandard.ZstdCompressor().compress(PAYLOAD[:-1].data), "exactly 2000 bytes"),
        (zstandard.ZstdCompressor().compress(bytes(2001)), "exactly 2000 bytes"),
        (zstandard.ZstdCompressor().compress(b""), "exactly 2000 bytes"),
        (zstandard.ZstdCompressor(write_content_size=False).compress(PAYLOAD.data), "exactly"),
        (b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + FRAME, "zstd frame"),  # a skippable frame before it
        (windowed(24), "a window of 16777216 bytes"),
        (windowed(41), "window|not one zstd frame"),
        (announcing(2**63), "exactly 2000 bytes"),
        (announcing(1999), "exactly 2000 bytes"),
        (with_dictionary(), "not one zstd frame"),
    ],
)
def test_what_is_not_exactly_one_frame_of_this_size_is_refused(frame: bytes, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        decompress(frame)


@pytest.mark.parametrize("announced", [1999, 2001, 2**20])
def test_a_frame_that_lies_about_its_content_is_refused(announced: int) -> None:
    assert decompress(announcing(2000)) == PAYLOAD.tobytes()
    with pytest.raises(CodecError, match="not one zstd frame"):
        decompress(announcing(announced), announced)


@given(frame=st.binary(max_size=200))
@example(frame=FRAME[:40])
def test_random_bytes_are_refused(frame: bytes) -> None:
    for start in (b"", FRAME[:4], FRAME[:7]):
        with pytest.raises(CodecError):
            decompress(start + frame)


@given(position=st.integers(0, 8 * len(FRAME) - 1))
def test_a_flipped_bit_is_refused_or_harmless(position: int) -> None:
    frame = bytearray(FRAME)
    frame[position // 8] ^= 1 << position % 8
    try:
        content = decompress(bytes(frame))
    except CodecError:
        return
    assert len(content) == PAYLOAD.nbytes


def test_threads_do_not_disturb_each_other() -> None:
    rng = np.random.default_rng(1)
    payloads = [rng.integers(0, 7, 20_000).astype(np.uint8) for _ in range(8)]

    def round_trips(payload: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> bool:
        for level in (1, 3, 1, 5) * 5:
            coded = entropy.compress(payload, "zstd", level)
            assert coded is not None
            if decompress(coded, payload.nbytes) != payload.tobytes():
                return False
        return True

    with ThreadPoolExecutor(8) as executor:
        assert all(executor.map(round_trips, payloads))
