"""The Transfer Layer for training computes what the codec computes, and lets gradients through."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import scissionlite as sl
from scissionlite.transfer_layer.layers import TransferLayer


@given(
    shape=st.tuples(*(st.integers(1, n) for n in (2, 4, 19, 19))),
    seed=st.integers(0, 2**32 - 1),
    low=st.floats(-1e3, 0),
    high=st.floats(0, 1e3),
    spread=st.floats(1e-3, 1e3),
)
def test_int8_layer_is_bit_identical_to_the_codec(
    shape: tuple[int, ...], seed: int, low: float, high: float, spread: float
) -> None:
    x = np.random.default_rng(seed).normal(0, spread, shape).astype(np.float32)
    quantization = sl.Quantization.from_range(low, high)
    layer = TransferLayer(sl.TransferSpec(), quantization)
    expected = sl.decode(sl.encode(x, sl.TransferSpec(), quantization))
    np.testing.assert_array_equal(layer(torch.from_numpy(x)).numpy(), expected)


@given(shape=st.tuples(*(st.integers(1, n) for n in (2, 4, 19, 19))), seed=st.integers(0, 99))
def test_float32_layers_are_bit_identical_to_the_codec(shape: tuple[int, ...], seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    for spec in (sl.TransferSpec.paper(), sl.TransferSpec.float32_split()):
        layer = TransferLayer(spec)
        expected = sl.decode(sl.encode(x, spec))
        np.testing.assert_array_equal(layer(torch.from_numpy(x)).numpy(), expected)


def test_gradients_pass_rounding_and_stop_at_saturation() -> None:
    # One window of 2x2 a column pair: the largest of each gets the gradient of all four copies.
    x = torch.tensor([[[[0.0, 0.33, 5.0, 99.0], [0.1, 0.2, 0.0, 1.0]]]], requires_grad=True)
    layer = TransferLayer(sl.TransferSpec(), sl.Quantization(scale=0.1, zero_point=-128))
    layer(x).sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), [[[[0, 4, 0, 0], [0, 0, 0, 0]]]], rtol=1e-6)


@pytest.mark.parametrize("spec", [sl.TransferSpec(), sl.TransferSpec.paper()])
def test_the_layer_keeps_shape_and_dtype(spec: sl.TransferSpec) -> None:
    quantization = sl.Quantization(0.1, 0) if spec.dtype == "int8" else None
    y = TransferLayer(spec, quantization)(torch.randn(2, 3, 7, 5))
    assert (y.shape, y.dtype) == ((2, 3, 7, 5), torch.float32)
