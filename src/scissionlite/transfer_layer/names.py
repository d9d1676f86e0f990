"""Short names of Transfer Layers, such as "int8", "pool4-int4-zstd" and "float16"."""

from __future__ import annotations

import re

from msgspec import structs

from scissionlite.errors import CodecError
from scissionlite.transfer_layer.spec import ENCODER_COEFFICIENTS, PAYLOAD_BITS, TransferSpec

_NAMED: dict[str, TransferSpec] = {
    **{dtype: TransferSpec(pool=1, dtype=dtype) for dtype in ("float32", "float16")},
    **{dtype: TransferSpec(dtype=dtype) for dtype in ("int8", "int4")},
    "paper": TransferSpec.paper(),
}
"""Integers pool 2x2, as the default does, and floats do not pool, as Scission's split."""

_WORDS: dict[str, tuple[str, object]] = {
    "average": ("pool_kind", "average"),
    "learned": ("pool_kind", "learned"),
    "channel": ("granularity", "channel"),
    "nhwc": ("layout", "nhwc"),
    "zstd": ("entropy", "zstd"),
    "ans": ("entropy", "ans"),
    "symmetric": ("scheme", "symmetric"),
    "bilinear": ("upsample", "bilinear"),
    **{size: ("encoder", size) for size in ENCODER_COEFFICIENTS},
}
"""Words after the dtype, and the fields that they set."""

_NUMBERS = {"pool": "pool", "reduction": "reduction", "levels": "levels", "level": "entropy_level"}
"""Words with a number after them, and the fields that they set."""


def spec_named(name: str) -> TransferSpec:
    """Return the Transfer Layer of a short name.

    Raises
    ------
    CodecError
        If there is none of this name.

    Examples
    --------
    >>> spec_named("pool4-int8-zstd") == TransferSpec(pool=4, entropy="zstd")
    True
    """
    words = name.split("-")
    kinds = [word for word in words if word in _NAMED]
    if len(kinds) != 1:
        raise CodecError(
            f"{name!r} names no Transfer Layer: it needs one of {', '.join(_NAMED)}, as in "
            "pool4-int8-zstd"
        )
    changes: dict[str, object] = {}
    for word in words:
        if word == kinds[0]:
            continue
        numbered = re.fullmatch(r"([a-z]+)([0-9]+)", word)
        if word in _WORDS:
            field, value = _WORDS[word]
        elif numbered is not None and numbered[1] in _NUMBERS:
            field, value = _NUMBERS[numbered[1]], int(numbered[2])
        else:
            known = [*(f"{each}N" for each in _NUMBERS), *_WORDS]
            raise CodecError(f"{name!r}: {word!r} is none of {', '.join(known)}")
        if field in changes:
            raise CodecError(f"{name!r}: {word!r} sets {field} a second time")
        changes[field] = value
    return structs.replace(_NAMED[kinds[0]], **changes)


def spec_name(spec: TransferSpec) -> str:
    """Return the short name of a Transfer Layer; :func:`spec_named` reads it.

    Examples
    --------
    >>> spec_name(TransferSpec(pool=1, dtype="int4"))
    'pool1-int4'
    """
    assert spec.dtype in PAYLOAD_BITS
    plain = _NAMED[spec.dtype]
    words = [f"pool{spec.pool}"] * (spec.pool != plain.pool) + [spec.dtype]
    words += [w for w, (field, value) in _WORDS.items() if getattr(spec, field) == value]
    words += [
        f"{word}{getattr(spec, field)}"
        for word, field in _NUMBERS.items()
        if field != "pool" and getattr(spec, field) != getattr(plain, field)
    ]
    return "-".join(words)
