"""The shallow encoder at the image: its first weights and steps, its training, its deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TEXTURES
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from torch import nn

import scissionlite as sl
from scissionlite.errors import CaptureError, CodecError, PrepareError
from scissionlite.preprocessor.data import ImageFolder
from scissionlite.preprocessor.inserter import insert
from scissionlite.scissiontl.importance import importance
from scissionlite.transfer_layer.image_encoder import image_coder

TINY = sl.TransferSpec.shallow_encoder("tiny")


def alike(filters: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(filters))


def smooth(count: int, channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Images with more in low frequencies than in high ones."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, channels, 4, 4, generator=generator)
    fine = 0.05 * torch.randn(count, channels, height, width, generator=generator)
    return nn.functional.interpolate(coarse, (height, width), mode="bicubic") + fine


@given(
    size=st.sampled_from(["tiny", "small", "base"]),
    pool=st.sampled_from([8, 16]),
    channels=st.sampled_from([1, 3]),
    height=st.integers(8, 40),
    width=st.integers(8, 40),
)
def test_shapes_are_restored_and_what_crosses_is_as_announced(
    size: str, pool: int, channels: int, height: int, width: int
) -> None:
    spec = structs.replace(sl.TransferSpec.shallow_encoder(size), pool=pool)
    x = smooth(3, channels, height, width)
    encoder, decoder, quantization = image_coder(spec, x, alike)
    sent = encoder(x).detach()
    assert tuple(sent.shape) == spec.crossing_shape(x.shape)
    assert quantization.channels == sent.shape[1]
    assert decoder(sent).shape == x.shape
    # The whole range of the calibration images has codes.
    steps = torch.tensor(quantization.scale)
    assert float((sent.abs().amax((0, 2, 3)) / steps).max()) <= 127.001


def test_it_starts_as_a_transform_coder_without_loss_where_all_coefficients_are_sent() -> None:
    spec = sl.TransferSpec.shallow_encoder("base", levels=None)
    x = smooth(4, 1, 24, 32)  # 64 coefficients of a gray window
    encoder, decoder, _ = image_coder(spec, x, alike)
    with torch.no_grad():
        assert float((decoder(encoder(x)) - x).abs().max()) < 1e-4


@given(channels=st.sampled_from([1, 3]), windows=st.integers(2, 4), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_a_fitted_decoder_is_no_worse_than_the_one_that_the_encoder_starts_with(
    channels: int, windows: int, seed: int
) -> None:
    x = smooth(40, channels, 8 * windows, 24, seed)
    encoder, decoder, _ = image_coder(TINY, x, alike)
    with torch.no_grad():
        # Scaled, as an encoder that was trained may have it.
        sent = 3 * encoder(x) + 1
        transposed = (decoder((sent - 1) / 3) - x).square().mean()
        decoder.fit(x, sent)
        fitted = (decoder(sent) - x).square().mean()
    assert float(fitted) < 1.02 * float(transposed) + 1e-6


def test_coefficients_that_matter_are_sent_in_finer_steps() -> None:
    x = smooth(8, 1, 32, 32)

    def matters(filters: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.arange(len(filters)) == 9, 16.0, 1.0)

    spec = sl.TransferSpec.shallow_encoder("base", levels=16)
    steps = [image_coder(spec, x, each)[2].groups[0] for each in (alike, matters)]
    assert max(steps[0]) == pytest.approx(min(steps[0]))
    assert max(steps[1]) == pytest.approx(4 * min(steps[1]))
    assert sum(step < max(steps[1]) for step in steps[1]) == 1


def test_importance_is_of_the_frequencies_that_the_network_looks_at() -> None:
    """A network that averages windows of 8 is moved by their means alone."""
    network = nn.Sequential(nn.AvgPool2d(8), nn.Flatten())
    x = smooth(4, 1, 16, 16)
    found: list[torch.Tensor] = []

    def kept(filters: torch.Tensor) -> torch.Tensor:
        found.append(importance(network, x, filters))
        return found[0]

    image_coder(TINY, x, kept)
    assert int(found[0].argmax()) == 0
    assert float(found[0][1:].max()) < 1e-3 * float(found[0][0])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"pool": 8}, "an encoder's window is 8 or 16"),
        ({"pool": 2, "encoder": "tiny"}, "an encoder's window is 8 or 16"),
        ({"pool": 8, "encoder": "tiny"}, "an encoder is learned"),
        ({"pool": 8, "encoder": "huge"}, "encoder='huge'"),
    ],
)
def test_specs_that_make_no_sense_are_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(CodecError, match=said):
        sl.TransferSpec(**fields)  # type: ignore[arg-type]  # some are wrong on purpose


def test_it_stands_at_the_input_and_nothing_else_does(small_graph: sl.Graph) -> None:
    x = smooth(2, 3, 32, 32)
    for point, spec in (("1", TINY), ("input", sl.TransferSpec())):
        with pytest.raises(PrepareError, match="a shallow encoder stands at the slicing point"):
            insert(small_graph, point, spec, calibration=[(x,)])
    tokens = sl.capture(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.zeros(1, 5, 4))
    with pytest.raises(CaptureError, match="which is no image"):
        tokens.point("input")


@pytest.mark.long
def test_it_is_deployed_as_it_was_trained(
    small_graph: sl.Graph, textures: Path, tmp_path: Path
) -> None:
    bundle = sl.prepare(
        small_graph,
        sl.Plan(kind="split", slicing_point="input", spec=TINY),
        unlabelled=textures / "train",
        validate=textures / "test",
        out=tmp_path / "b",
        preprocessing=TEXTURES,
        recipe=sl.Recipe(epochs=1, batch_size=16, rate=0.05),
        runtimes=("torchscript", "onnx"),
        max_batch=3,
    )
    manifest = bundle.manifest
    (crossing,) = manifest.crossing
    assert manifest.transfer == TINY
    assert crossing.feature_shape == manifest.inputs[0].shape
    assert crossing.tables is not None
    assert manifest.accuracy is not None
    assert manifest.training is not None
    assert manifest.training.estimated_bytes is not None
    data = ImageFolder(textures / "test", TEXTURES)
    with (
        sl.EdgeServer(bundle, "tcp://127.0.0.1:*") as edge,
        sl.Device(bundle, edge.endpoint, control=edge.control_endpoint) as device,
    ):
        answers = [device.infer(data.frame(i)).argmax() for i in range(len(data))]
    right = sum(int(a) == label for a, (_, label) in zip(answers, data.files, strict=True))
    assert right / len(data) == manifest.accuracy.after
    assert manifest.accuracy.after > manifest.accuracy.before - 0.11  # five images of 48
    assert manifest.accuracy.sent_bytes < 0.2 * np.prod(TEXTURES.frame_shape)


@pytest.mark.long
def test_an_encoder_is_kept_for_another_network(
    small_graph: sl.Graph, textures: Path, tmp_path: Path
) -> None:
    """Same files, steps and tables; another network behind them, with a decoder of its own."""
    plan = sl.Plan(kind="split", slicing_point="input", spec=TINY)
    given: dict[str, Any] = {
        "unlabelled": textures / "train",
        "validate": textures / "test",
        "preprocessing": TEXTURES,
        "local_fallback": False,
        "runtimes": ("onnx",),
    }
    untrained = sl.Recipe(epochs=0)
    first = sl.prepare(small_graph, plan, out=tmp_path / "a", recipe=untrained, **given)
    torch.manual_seed(5)
    other = sl.capture(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(),
        small_graph.example[0],
        name="other",
    )
    kept = tmp_path / "a"
    for graph, epochs in ((small_graph, 0), (other, 1)):
        recipe = sl.Recipe(epochs=epochs)
        out = tmp_path / graph.name
        second = sl.prepare(graph, plan, out=out, encoder=kept, recipe=recipe, **given)
        assert second.manifest.slices["device"] == first.manifest.slices["device"]
        assert second.manifest.slices["edge"] != first.manifest.slices["edge"]
        assert second.manifest.crossing == first.manifest.crossing
        assert second.manifest.accuracy is not None
        assert first.manifest.accuracy is not None
        assert second.manifest.accuracy.sent_bytes == first.manifest.accuracy.sent_bytes
    refused = given | {"encoder": kept, "out": tmp_path / "c"}
    smaller = sl.Recipe(target_bytes=100)
    with pytest.raises(PrepareError, match="change nothing where the encoder"):
        sl.prepare(small_graph, plan, recipe=smaller, **refused)
    refused["runtimes"] = ("onnx", "torchscript")
    with pytest.raises(PrepareError, match="for no other runtime"):
        sl.prepare(small_graph, plan, **refused)
    coarser = structs.replace(plan, spec=sl.TransferSpec.shallow_encoder("tiny", levels=8))
    with pytest.raises(PrepareError, match="own Transfer Layer"):
        sl.prepare(small_graph, coarser, **refused)


def test_an_encoder_in_int8_is_refused(
    small_graph: sl.Graph, textures: Path, tmp_path: Path
) -> None:
    with pytest.raises(PrepareError, match="stays in float32"):
        sl.prepare(
            small_graph,
            sl.Plan(kind="split", slicing_point="input", spec=TINY),
            unlabelled=textures / "train",
            out=tmp_path / "b",
            preprocessing=TEXTURES,
            device_precision="int8",
        )
