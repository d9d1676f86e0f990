"""The learned Transfer Layer: its first weights, its cost, and its deployment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXTURES
from hypothesis import given
from hypothesis import strategies as st

import scissionlite as sl
from scissionlite.errors import CodecError, PrepareError
from scissionlite.graph.analysis import multiplications
from scissionlite.preprocessor.data import ImageFolder
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.transfer_layer.layers import TransferLayer
from scissionlite.transfer_layer.learned import (
    MAX_COEFFICIENTS,
    bottleneck,
    cosine_basis,
    encoder_multiplications,
    initialise,
)

LEARNED = sl.TransferSpec(pool_kind="learned", pool=2, reduction=4)


@given(
    pool=st.sampled_from([1, 2, 4]),
    reduction=st.sampled_from([2, 4, 8]),
    channels=st.integers(8, 20),
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_shapes_are_restored_and_what_crosses_is_as_announced(
    pool: int, reduction: int, channels: int, height: int, width: int, seed: int
) -> None:
    spec = sl.TransferSpec(pool_kind="learned", pool=pool, reduction=reduction)
    shape = (2, channels, height, width)
    torch.manual_seed(seed)
    encoder, decoder = bottleneck(spec, shape)
    x = torch.randn(shape)
    initialise(encoder, decoder, [x])
    sent = encoder(x)
    assert tuple(sent.shape) == spec.crossing_shape(shape)
    assert spec.packed_nbytes(shape) == sent.numel()
    assert decoder(sent).shape == x.shape
    assert torch.isfinite(decoder(sent)).all()


@given(seed=st.integers(0, 2**32 - 1), pool=st.sampled_from([2, 4]), odd=st.booleans())
def test_it_starts_as_the_best_linear_bottleneck(seed: int, pool: int, odd: bool) -> None:
    """Feature maps of three smooth components survive four channels without loss."""
    spec = sl.TransferSpec(pool_kind="learned", pool=pool, reduction=4)
    generator = torch.Generator().manual_seed(seed)
    size = 4 * pool - odd
    basis = cosine_basis(pool, MAX_COEFFICIENTS)
    mixing = torch.randn(16 * MAX_COEFFICIENTS, 3, generator=generator)
    components = torch.randn(4, 3, 16, generator=generator)
    blocks = (mixing @ components).reshape(4, 16, MAX_COEFFICIENTS, 4, 4)
    x = torch.einsum("nckhw,kij->nchiwj", blocks, basis).reshape(4, 16, 4 * pool, 4 * pool)
    encoder, decoder = bottleneck(spec, (4, 16, size, size))
    whole = x[..., :size, :size]
    initialise(encoder, decoder, [x])
    with torch.no_grad():
        error = (decoder(encoder(whole)) - whole)[..., : size - pool, : size - pool]
    assert float(error.abs().max()) < 1e-3 * float(x.abs().max())


def test_the_basis_is_orthonormal_and_starts_with_the_mean() -> None:
    for window in (1, 2, 4):
        basis = cosine_basis(window, window**2).flatten(1)
        torch.testing.assert_close(basis @ basis.T, torch.eye(window**2))
        torch.testing.assert_close(basis[0], torch.full((window**2,), 1 / window))


def test_what_no_principal_component_can_be_found_of_is_refused() -> None:
    halves = bottleneck(LEARNED, (1, 8, 4, 4))
    for features in ([], [torch.full((1, 8, 4, 4), float("nan"))]):
        with pytest.raises(CodecError, match="no finite feature maps"):
            initialise(*halves, features)


def test_fewer_coefficients_are_taken_where_the_device_may_spend_less() -> None:
    shape = (1, 16, 32, 32)
    costs = [encoder_multiplications(LEARNED, shape, n) for n in range(1, 5)]
    assert costs == sorted(costs)
    for count, cost in enumerate(costs, 1):
        encoder, _ = bottleneck(LEARNED, shape, most_multiplications=cost)
        assert encoder.depthwise.out_channels == 16 * count
        done = multiplications(encoder.eval(), (torch.zeros(shape),))
        assert done == cost
    with pytest.raises(CodecError, match=r"needs .* multiplications, and .* are allowed"):
        bottleneck(LEARNED, shape, most_multiplications=costs[0] - 1)


def test_the_codec_has_no_bottleneck_of_its_own() -> None:
    with pytest.raises(CodecError, match="its bottleneck is part of the slices"):
        sl.encode(np.zeros((1, 8, 4, 4), np.float32), LEARNED)
    with pytest.raises(CodecError, match="do not go with it"):
        TransferLayer(LEARNED, sl.Quantization(1.0, 0))
    with pytest.raises(CodecError, match="do not go with it"):
        TransferLayer(
            sl.TransferSpec(),
            sl.Quantization(1.0, 0),
            halves=bottleneck(LEARNED, (1, 8, 4, 4)),
        )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"reduction": 2}, "goes with pool_kind='learned' only"),
        ({"pool_kind": "learned", "pool": 1}, "needs a pool or a reduction above 1"),
        ({"pool_kind": "learned", "upsample": "bilinear"}, "learns its upsampling"),
        ({"pool_kind": "learned", "reduction": 3}, "reduction=3"),
    ],
)
def test_specs_that_make_no_sense_are_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(CodecError, match=said):
        sl.TransferSpec(**fields)  # type: ignore[arg-type]  # some are wrong on purpose


def test_it_is_deployed_as_it_was_trained(
    small_graph: sl.Graph, textures: Path, tmp_path: Path
) -> None:
    plan = sl.Plan(kind="split", slicing_point="1", spec=LEARNED)
    bundle = sl.prepare(
        small_graph,
        plan,
        train=textures / "train",
        validate=textures / "test",
        out=tmp_path / "b",
        preprocessing=TEXTURES,
        recipe=Recipe(epochs=4, batch_size=16, learning_rate=3e-3),
    )
    manifest = bundle.manifest
    (crossing,) = manifest.crossing
    assert manifest.transfer == LEARNED
    assert crossing.transfer == LEARNED.packing
    assert (crossing.shape, crossing.feature_shape) == ((1, 4, 16, 16), (1, 16, 32, 32))
    assert manifest.crossing_bytes == 64 * manifest.sent_bytes
    assert manifest.accuracy is not None
    assert manifest.accuracy.sent_bytes == manifest.sent_bytes
    assert manifest.accuracy.after >= manifest.accuracy.before - 0.11  # five images of 48
    data = ImageFolder(textures / "test", TEXTURES)
    with (
        sl.EdgeServer(bundle, "tcp://127.0.0.1:*") as edge,
        sl.Device(bundle, edge.endpoint, control=edge.control_endpoint) as device,
    ):
        answers = [device.infer(data.frame(i)).argmax() for i in range(len(data))]
    right = sum(int(a) == label for a, (_, label) in zip(answers, data.files, strict=True))
    assert right / len(data) == manifest.accuracy.after


def test_a_device_that_may_spend_too_little_is_told(
    small_graph: sl.Graph, textures: Path, tmp_path: Path
) -> None:
    plan = sl.Plan(kind="split", slicing_point="1", spec=LEARNED)
    with pytest.raises(PrepareError, match="allow a larger share"):
        sl.prepare(
            small_graph,
            plan,
            train=textures / "train",
            out=tmp_path / "b",
            preprocessing=TEXTURES,
            recipe=Recipe(epochs=0, encoder_share=1e-5),
        )
