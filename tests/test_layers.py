"""The Transfer Layer for training computes what the codec computes, and lets gradients through."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from specs import SEEDS, SHAPES, channels_last, feature_map, quantization_for, specs

import scissionlite as sl
from scissionlite.errors import CodecError
from scissionlite.transfer_layer.layers import TransferLayer


def bits(array: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Zeros of different signs are different."""
    return np.ascontiguousarray(array).view(np.uint32)


@given(
    spec=specs(),
    shape=SHAPES,
    seed=SEEDS,
    spread=st.floats(1e-3, 1e3),
    low=st.floats(-1e3, 0),
    high=st.floats(0, 1e3),
    last=st.booleans(),
)
def test_every_layer_is_bit_identical_to_the_codec(
    spec: sl.TransferSpec,
    shape: tuple[int, ...],
    seed: int,
    spread: float,
    low: float,
    high: float,
    last: bool,
) -> None:
    x = feature_map(shape, seed, spread)
    quantization = quantization_for(spec, shape[-3], low, high)
    expected = sl.decode(sl.encode(x, spec, quantization))
    layer = TransferLayer(spec, quantization)
    restored = layer(torch.from_numpy(channels_last(x) if last else x)).numpy()
    np.testing.assert_array_equal(bits(restored), bits(expected))


@given(spec=specs(), seed=SEEDS)
def test_values_that_overflow_or_underflow_are_the_same_too(
    spec: sl.TransferSpec, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    magnitudes = 2.0 ** rng.uniform(-140, 127, (1, 3, 9, 6))
    x = (rng.choice([-1.0, 1.0], magnitudes.shape) * magnitudes).astype(np.float32)
    quantization = quantization_for(spec, 3, -1e30, 1e20)
    expected = sl.decode(sl.encode(x, spec, quantization))
    restored = TransferLayer(spec, quantization)(torch.from_numpy(x)).numpy()
    if spec.dtype == "float16" and spec.upsample == "bilinear":
        # Overflowed to infinities, which interpolate to NaN: their bits are the codec's own matter.
        np.testing.assert_array_equal(restored, expected)
    else:
        np.testing.assert_array_equal(bits(restored), bits(expected))


def test_gradients_pass_rounding_and_stop_at_saturation() -> None:
    # One window of 2x2 a column pair: the largest of each gets the gradient of all four copies.
    x = torch.tensor([[[[0.0, 0.33, 5.0, 99.0], [0.1, 0.2, 0.0, 1.0]]]], requires_grad=True)
    layer = TransferLayer(sl.TransferSpec(), sl.Quantization(scale=0.1, zero_point=-128))
    layer(x).sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), [[[[0, 4, 0, 0], [0, 0, 0, 0]]]], rtol=1e-6)


def test_each_channel_saturates_by_its_own_scale() -> None:
    x = torch.full((1, 2, 1, 1), 10.0, requires_grad=True)
    spec = sl.TransferSpec(pool=1, dtype="int4", granularity="channel", scheme="symmetric")
    TransferLayer(spec, sl.Quantization((1.0, 2.0), (0, 0)))(x).sum().backward()
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy().reshape(2), [0, 1])


def test_float16_passes_the_gradient_as_it_is_but_where_it_overflows() -> None:
    # Beyond float16: 1e-9 as a gradient, and 1e6 as a value.
    x = torch.tensor([1.0001, -3.0, 1e6], requires_grad=True)
    y = TransferLayer(sl.TransferSpec(pool=1, dtype="float16"))(x)
    (y * torch.tensor([1e-9, 2.0, 1.0])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [np.float32(1e-9), 2.0, 0.0]
    assert y.tolist() == [1.0, -3.0, np.inf]


@pytest.mark.parametrize("pool_kind", ["max", "average"])
@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
@pytest.mark.parametrize("pool", [2, 4])
def test_gradients_of_pooling_and_upsampling_are_their_derivatives(
    pool: int, pool_kind: str, upsample: str
) -> None:
    layer = TransferLayer(sl.TransferSpec(pool, pool_kind, "float32", upsample=upsample))
    torch.manual_seed(0)
    x = torch.randn(1, 2, 7, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


@given(spec=specs(), shape=st.one_of(SHAPES, SHAPES.map(lambda shape: shape[1:])))
def test_the_layer_keeps_shape_and_dtype(spec: sl.TransferSpec, shape: tuple[int, ...]) -> None:
    quantization = quantization_for(spec, shape[-3])
    y = TransferLayer(spec, quantization)(torch.randn(shape))
    assert (y.shape, y.dtype) == (shape, torch.float32)


def test_the_layer_adds_nothing_to_the_state_that_is_saved() -> None:
    assert not TransferLayer(sl.TransferSpec(), sl.Quantization(0.1, 0)).state_dict()


@pytest.mark.parametrize(
    ("spec", "quantization"),
    [
        (sl.TransferSpec(), None),
        (sl.TransferSpec.paper(), sl.Quantization(1.0, 0)),
        (sl.TransferSpec(), sl.Quantization((1.0,), (0,))),
        (sl.TransferSpec(granularity="channel"), sl.Quantization(1.0, 0)),
    ],
)
def test_scales_that_do_not_go_with_the_spec_are_refused(
    spec: sl.TransferSpec, quantization: sl.Quantization | None
) -> None:
    with pytest.raises(CodecError, match="does not go with"):
        TransferLayer(spec, quantization)
