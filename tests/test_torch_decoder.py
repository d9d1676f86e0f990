"""The decoder of torch operations answers as the core does, bit for bit.

On the CPU, and on a GPU whenever there is one: the code is the same.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from specs import SEEDS, SHAPES, feature_map, quantization_for, specs

import scissionlite as sl
from scissionlite.errors import CodecError
from scissionlite.transfer_layer.torch_decoder import TorchDecoder

PROCESSORS = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def bits(array: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Zeros of different signs are different."""
    return np.ascontiguousarray(array).view(np.uint32)


@pytest.mark.parametrize("processor", PROCESSORS)
@given(
    spec=specs(),
    shape=SHAPES,
    seed=SEEDS,
    spread=st.floats(1e-3, 1e3),
    low=st.floats(-1e3, 0),
    high=st.floats(0, 1e3),
)
def test_the_decoder_is_bit_identical_to_the_core(
    processor: str,
    spec: sl.TransferSpec,
    shape: tuple[int, ...],
    seed: int,
    spread: float,
    low: float,
    high: float,
) -> None:
    quantization = quantization_for(spec, shape[-3], low, high)
    packed = sl.encode(feature_map(shape, seed, spread), spec, quantization)
    decoder = TorchDecoder(spec, quantization, processor)
    decoded = decoder(packed.payload, shape, packed.entropy_coded)
    assert decoded.is_contiguous()
    assert decoded.device.type == processor
    np.testing.assert_array_equal(bits(decoded.cpu().numpy()), bits(sl.decode(packed)))


def test_what_the_core_refuses_is_refused() -> None:
    spec = sl.TransferSpec()
    packed = sl.encode(feature_map((1, 2, 6, 6)), spec)
    decoder = TorchDecoder(spec, packed.quantization, "cpu")
    with pytest.raises(CodecError, match="exactly 18"):
        decoder(bytes(packed.payload)[:-1], packed.shape)
    with pytest.raises(CodecError, match="is not"):
        decoder(packed.payload, packed.shape, entropy_coded=True)
    with pytest.raises(CodecError, match="does not go with"):
        TorchDecoder(spec, None, "cpu")
    zstd = sl.TransferSpec(entropy="zstd")
    with pytest.raises(CodecError):
        TorchDecoder(zstd, packed.quantization, "cpu")(b"not zstd", packed.shape, True)
