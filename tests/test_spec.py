"""TransferSpec: its valid values, its label, and the shapes that it packs."""

from __future__ import annotations

import itertools
import math
import pickle
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from specs import CHOICES, SHAPES, specs

from scissionlite.errors import CodecError
from scissionlite.transfer_layer import TransferSpec

SPLIT, PAPER, INT8 = TransferSpec.float32_split(), TransferSpec.paper(), TransferSpec()


def test_no_two_specs_share_a_label() -> None:
    plain = [
        TransferSpec(**dict(zip(CHOICES, values, strict=True)), entropy_level=level)
        for values in itertools.product(*CHOICES.values())
        for level in (1, 2, 19)
    ]
    coarse = [
        msgspec.structs.replace(spec, levels=levels)
        for spec in plain
        if spec.quantized
        for levels in (2, 15)
    ]
    every = plain + coarse
    assert len({spec.label for spec in every}) == len(set(every)) == len(every)
    assert max(len(spec.label) for spec in every) < 80


@pytest.mark.parametrize(
    ("spec", "label"),
    [
        (SPLIT, "float32 split"),
        (PAPER, "paper TL (2x2 float32)"),
        (INT8, "TL 2x2 int8"),
        (TransferSpec(pool=4, dtype="int4", entropy="zstd"), "TL 4x4 int4 + zstd"),
        (TransferSpec(pool_kind="average", granularity="channel"), "TL 2x2 average int8/channel"),
        (TransferSpec(pool=1), "int8"),
        (TransferSpec(pool=1, dtype="float16"), "float16 split"),
        (TransferSpec(entropy="zstd", levels=32), "TL 2x2 int8 32 levels + zstd"),
        (TransferSpec(2, dtype="float32", upsample="bilinear"), "TL 2x2 float32 bilinear"),
        (
            TransferSpec(4, layout="nhwc", scheme="symmetric", entropy="zstd", entropy_level=9),
            "TL 4x4 int8 symmetric nhwc + zstd level 9",
        ),
    ],
)
def test_labels(spec: TransferSpec, label: str) -> None:
    assert spec.label == label


def test_the_order_of_the_fields_is_fixed() -> None:
    fields = (2, "max", "int8", "tensor", "nchw", None, "affine", "nearest", 1)
    assert TransferSpec(*fields) == TransferSpec()


@given(spec=specs(entropy_level=3))
def test_a_spec_survives_json_and_pickle(spec: TransferSpec) -> None:
    assert msgspec.json.decode(msgspec.json.encode(spec), type=TransferSpec) == spec
    again = pickle.loads(pickle.dumps(spec))
    assert again == spec
    assert hash(again) == hash(spec)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool": 3}, "pool=3; this version takes 1 or 2 or 4"),
        ({"pool": True}, "pool=True"),
        ({"pool": 2.0}, "pool=2.0"),
        ({"pool": []}, "pool="),
        ({"pool_kind": "avg"}, "pool_kind='avg'; this version takes 'max' or 'average'"),
        ({"dtype": "int2"}, "dtype='int2'; this version takes 'float32' or 'float16' or 'int8'"),
        ({"granularity": "row"}, "granularity='row'; this version takes 'tensor' or 'channel'"),
        ({"layout": "chwn"}, "layout='chwn'; this version takes 'nchw' or 'nhwc'"),
        ({"entropy": "lz4"}, "entropy='lz4'; this version takes None or 'zstd' or 'ans'"),
        ({"entropy": "ans", "dtype": "float32"}, "codes int8 and int4, not float32"),
        ({"entropy": "ans", "entropy_level": 2}, "'ans' has no level but 1"),
        ({"scheme": None}, "scheme=None; this version takes 'affine' or 'symmetric'"),
        ({"upsample": "cubic"}, "upsample='cubic'; this version takes 'nearest' or 'bilinear'"),
        ({"entropy_level": 0}, "entropy_level=0; this version takes 1 to 19"),
        ({"entropy_level": 20}, "entropy_level=20"),
        ({"entropy_level": 1.0}, "entropy_level=1.0"),
        ({"entropy_level": True}, "entropy_level=True"),
        ({"levels": 1}, "levels=1; int8 takes 2 to 255"),
        ({"levels": 256}, "levels=256; int8 takes 2 to 255"),
        ({"levels": 16, "dtype": "int4"}, "levels=16; int4 takes 2 to 15"),
        ({"levels": 8, "dtype": "float16"}, "levels=8; float16 is not quantized"),
        ({"levels": 8.0}, "levels=8.0; int8 takes"),
        ({"levels": True}, "levels=True; int8 takes"),
    ],
)
def test_spec_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CodecError, match=message):
        TransferSpec(**change)


@given(spec=specs(), shape=SHAPES)
def test_packed_sizes_are_those_of_the_contract(
    spec: TransferSpec, shape: tuple[int, int, int, int]
) -> None:
    pooled = (*shape[:2], math.ceil(shape[2] / spec.pool), math.ceil(shape[3] / spec.pool))
    assert spec.packed_shape(shape) == pooled
    per_element = {"float32": 4, "float16": 2, "int8": 1, "int4": 0.5}[spec.dtype]
    assert spec.packed_nbytes(shape) == math.ceil(math.prod(pooled) * per_element)


@given(spec=specs(), shape=st.lists(st.integers(1, 3), min_size=1, max_size=8).map(tuple))
def test_channels_height_and_width_are_needed_where_they_mean_something(
    spec: TransferSpec, shape: tuple[int, ...]
) -> None:
    any_rank = spec.pool == 1 and spec.granularity == "tensor" and spec.layout == "nchw"
    assert any_rank != spec.needs_planes
    if any_rank or len(shape) >= 3:
        assert len(spec.packed_shape(shape)) == len(shape)
    else:
        with pytest.raises(CodecError, match=r"needs \(\.\.\., channels, height, width\)"):
            spec.packed_shape(shape)
        assert not spec.valid_for(shape)


@pytest.mark.parametrize(
    ("shape", "pools"),
    [
        ((1, 3, 8, 8), True),
        ((1, 3, 2, 2), True),
        ((1, 197, 768), False),  # tokens of a vision transformer
        ((1, 1000, 1, 1), False),
        ((1, 8, 1, 9), False),
        ((1, 1000), False),
        ((1, 1, 3, 8, 8), False),
    ],
)
def test_valid_for(shape: tuple[int, ...], pools: bool) -> None:
    assert INT8.valid_for(shape) == PAPER.valid_for(shape) == pools
    assert SPLIT.valid_for(shape)
    assert not SPLIT.valid_for((0, *shape))
    assert TransferSpec(pool=1, granularity="channel").valid_for(shape) == (len(shape) >= 3)


@given(spec=specs(), shape=st.lists(st.integers(1, 9), min_size=1, max_size=5).map(tuple))
def test_a_transfer_layer_is_adapted_to_what_it_can_be(
    spec: TransferSpec, shape: tuple[int, ...]
) -> None:
    adapted = spec.adapted_to(shape)
    assert adapted.valid_for(shape)
    assert (adapted.dtype, adapted.entropy) == (spec.dtype, spec.entropy)
    assert adapted.adapted_to(shape) == adapted
    if spec.valid_for(shape):
        assert adapted == spec
    else:
        assert adapted.pool == 1


def test_tokens_are_packed_and_not_pooled() -> None:
    spec = TransferSpec(dtype="int4", granularity="channel", entropy="zstd")
    assert spec.adapted_to((1, 197, 768)).label == "int4/channel + zstd"
    assert spec.adapted_to((1, 768)).label == "int4 + zstd"
