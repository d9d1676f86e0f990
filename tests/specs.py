"""Hypothesis strategies that several test files share: specs, and feature maps for them."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import msgspec
import numpy as np
import numpy.typing as npt

from scissionlite.transfer_layer import Quantization, TransferSpec

CHOICES: dict[str, tuple[Any, ...]] = {
    "pool": (1, 2, 4),
    "pool_kind": ("max", "average"),
    "dtype": ("float32", "float16", "int8", "int4"),
    "granularity": ("tensor", "channel"),
    "layout": ("nchw", "nhwc"),
    "entropy": (None, "zstd"),
    "scheme": ("affine", "symmetric"),
    "upsample": ("nearest", "bilinear"),
}


def specs(**fixed: Any) -> st.SearchStrategy[TransferSpec]:
    """Draw any spec; fields may be fixed."""
    fields = {name: st.sampled_from(values) for name, values in CHOICES.items()}
    fields |= {name: st.just(value) for name, value in fixed.items()}
    return st.builds(TransferSpec, **fields).flatmap(_with_levels)


def _with_levels(spec: TransferSpec) -> st.SearchStrategy[TransferSpec]:
    """Draw the number of levels of a spec, if it is quantized."""
    if not spec.quantized:
        return st.just(spec)
    fewer = st.none() | st.integers(2, 15 if spec.dtype == "int4" else 255)
    return fewer.map(lambda levels: msgspec.structs.replace(spec, levels=levels))


SHAPES = st.tuples(*(st.integers(1, most) for most in (2, 5, 11, 11)))
SEEDS = st.integers(0, 2**32 - 1)


def feature_map(
    shape: tuple[int, ...], seed: int = 0, spread: float = 3.0
) -> npt.NDArray[np.float32]:
    """Finite values, with zeros of both signs among them; in every other one nothing is larger."""
    rng = np.random.default_rng(seed)
    values = rng.normal(1, spread, shape).astype(np.float32)
    zero = values > 0 if seed % 2 else rng.random(shape) < 0.1
    values[zero] = rng.choice(np.array([0.0, -0.0], np.float32), zero.sum())
    return values


def channels_last(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Lay an array out as PyTorch's channels_last does; the values stay."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, -3, -1)), -1, -3)


def quantization_for(
    spec: TransferSpec, channels: int, low: float = -4.0, high: float = 6.0
) -> Quantization | None:
    """Scales over about one range, a different one for each channel where the spec has them."""
    if not spec.quantized:
        return None
    if spec.granularity == "tensor":
        return Quantization.from_range(low, high, spec.dtype, spec.scheme, spec.levels)
    factors = np.linspace(0.5, 1.5, channels)
    lows, highs = low * factors, high * factors
    return Quantization.from_range(lows, highs, spec.dtype, spec.scheme, spec.levels)
