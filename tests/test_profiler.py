"""Profiles: the measurements, and the files that hold them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from networks import UNet
from torch import nn

import scissionlite as sl
from scissionlite import _core
from scissionlite.errors import ProfileError
from scissionlite.scissiontl.codecs import CODECS, LEARNED, Packing
from scissionlite.scissiontl.leakage import MIN_IMAGES
from scissionlite.scissiontl.timing import promising

FORMAT_PAGE = Path(__file__).parents[1] / "docs" / "profile-format.md"


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def noise(size: int, count: int) -> list[np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(count)]


@pytest.fixture(scope="module")
def measured() -> sl.Profile:
    graph = sl.capture(network(), torch.zeros(1, 3, 32, 32), name="small")
    return sl.profile(graph, name="here", repetitions=3, threads=1)


def test_a_profile_has_every_block_codec_slice_and_image(measured: sl.Profile) -> None:
    assert [b.name for b in measured.blocks] == ["0", "1", "2", "3", "4", "5"]
    assert all(b.latency > 0 for b in measured.blocks)
    assert measured.network_latency > 0
    (crossing,) = measured.blocks[1].crossing
    assert (crossing.shape, crossing.nbytes) == ((1, 8, 32, 32), 32768)
    assert measured.blocks[-1].crossing == ()
    assert measured.blocks[0].layers == ("0",)
    assert measured.blocks[0].weight_bytes == 4 * (3 * 8 * 9 + 8)
    assert measured.blocks[1].peak_bytes == 2 * 32768
    assert [t.shape for t in (*measured.inputs, *measured.outputs)] == [(1, 3, 32, 32), (1, 4)]

    codecs = {(t.block, t.spec): t for t in measured.transfers}
    # Without pooling at every point; with pooling only where the shape allows it.
    plain, pooled = sl.TransferSpec.float32_split(), sl.TransferSpec()
    assert {block for block, spec in codecs if spec == plain} == {0, 1, 2, 3, 4}
    assert {block for block, spec in codecs if spec == pooled} == {0, 1, 2}
    for (block, spec), transfer in codecs.items():
        exact = spec.packed_nbytes(measured.blocks[block].crossing[0].shape)
        assert transfer.nbytes == exact if spec.entropy is None else transfer.nbytes <= exact
        assert transfer.encode > 0
        assert transfer.decode > 0
    assert {spec for _, spec in codecs} == {*CODECS, *LEARNED}
    # Learned ones where slices were timed, and where they do not cost the device too much.
    assert {block for block, spec in codecs if spec.learned} == {0, 2}

    # Fewer bytes cross only behind the second convolution and the pooling.
    assert [s.block for s in measured.slices] == [0, 2, 3]
    assert all(s.device > 0 and s.edge > 0 for s in measured.slices)
    assert measured.slices[0].part is None
    assert all(s.part is not None and s.part > 0 for s in measured.slices[1:])
    assert [(i.format, i.quality) for i in measured.images] == [
        ("uint8", None),
        ("png", None),
        ("jpeg", 75),
    ]
    assert measured.images[0].nbytes == 32 * 32 * 3
    assert "no images given" in measured.images[0].source
    assert all(b.leakage is None for b in measured.blocks)
    assert measured.offload.request > 0
    assert measured.host is not None
    assert measured.host.isa in _core.available_isas()
    assert measured.host.threads == 1


@pytest.mark.long
def test_another_runtime_is_measured_with_its_own_slices() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, stride=2))
    graph = sl.capture(model, torch.zeros(1, 3, 32, 32))
    profile = sl.profile(graph, runtime="onnx", repetitions=2, threads=1, int8=False)
    assert profile.runtime == "onnx"
    assert profile.host is not None
    assert "onnxruntime" in profile.host.versions
    assert [block.latency > 0 for block in profile.blocks] == [True, True]
    assert [(each.block, each.device > 0, each.edge > 0) for each in profile.slices] == [
        (0, True, True)
    ]
    assert {t.spec for t in profile.transfers} >= {*CODECS}
    assert any(t.spec.learned for t in profile.transfers)
    assert profile.offload.request > 0


def _zstd_bytes(profile: sl.Profile, block: int) -> float:
    """Bytes of float32 behind zstd, as a share of those without."""
    spec = sl.TransferSpec.float32_split()
    sizes = {t.spec: t.nbytes for t in profile.transfers if t.block == block}
    return sizes[msgspec.structs.replace(spec, entropy="zstd")] / sizes[spec]


def test_entropy_tables_are_measured_with_other_maps_than_they_were_made_from() -> None:
    rng = np.random.default_rng(0)
    unlike = [rng.normal(0, 1, (1, 4, 16, 16)).astype(np.float32) for _ in range(4)]
    alike = [unlike[0]] * 4
    spec = sl.TransferSpec(pool=1, entropy="ans")
    learned, known, plain = (
        Packing(each, maps).nbytes
        for each, maps in (
            (spec, unlike),
            (spec, alike),
            (msgspec.structs.replace(spec, entropy=None), alike),
        )
    )
    assert known < learned <= plain
    only = Packing(spec, unlike[:1])  # one map has tables of its own
    assert only.nbytes < plain


def test_without_images_codecs_are_measured_with_noise_like_photographs(
    measured: sl.Profile, shared_data: Path
) -> None:
    """The example is zero; zstd packs what follows from it into a few bytes."""
    assert measured.codec_inputs == "noise"
    assert "--images" in measured.entropy_note
    # The same network and size with photographs: the noise is a guess of the right order.
    preprocessing = sl.Preprocessing(size=(32, 32))
    files = sorted((shared_data / "imagenet-sample-100").glob("*.JPEG"))[:4]
    torch.manual_seed(0)
    graph = sl.capture(network(), torch.zeros(1, 3, 32, 32), name="small")
    options = {
        "repetitions": 1,
        "warm_up": 0,
        "slices": 0,
        "int8": False,
        "preprocessing": preprocessing,
    }
    photographs = [preprocessing.frame(file) for file in files]
    real = sl.profile(graph, images=photographs, **options)  # type: ignore[arg-type]
    made_up = sl.profile(graph, **options)  # type: ignore[arg-type]
    assert (real.codec_inputs, real.entropy_note) == ("images", "")
    for block in (0, 1, 2):
        assert _zstd_bytes(made_up, block) == pytest.approx(_zstd_bytes(real, block), rel=0.2)


@pytest.mark.parametrize(
    ("example", "measured_with"),
    [
        (torch.zeros(2, 3, 16, 16), "noise"),
        (torch.ones(1, 5, 16, 16), "noise"),
        (torch.zeros(1, 3, 12), "noise"),
        (torch.zeros(1, 64), "noise"),
        (torch.linspace(0, 1, 64).reshape(1, 64), "example"),
    ],
    ids=["a batch", "five channels", "a sequence", "a vector", "an example with values"],
)
def test_an_input_that_is_no_image_is_not_measured_with_zeros(
    example: torch.Tensor, measured_with: str
) -> None:
    model = nn.Sequential(nn.Tanh(), nn.Flatten(), nn.LazyLinear(8))
    model(example)
    profile = sl.profile(sl.capture(model, example), repetitions=1, warm_up=0, slices=0, int8=False)
    assert profile.codec_inputs == measured_with
    assert _zstd_bytes(profile, 0) > 0.5


@pytest.mark.long
def test_several_tensors_are_packed_together() -> None:
    graph = sl.capture(UNet(), torch.zeros(1, 3, 16, 16), name="unet", max_tensors=5)
    profile = sl.profile(graph, repetitions=1, warm_up=0, slices=None, int8=False)
    assert [t.name for t in profile.outputs] == ["mask", "coarse"]
    index, block = max(enumerate(profile.blocks), key=lambda each: len(each[1].crossing))
    assert len(block.crossing) == 5
    spec = sl.TransferSpec()
    (transfer,) = [t for t in profile.transfers if (t.block, t.spec) == (index, spec)]
    shapes = [t.shape for t in block.crossing]
    assert transfer.nbytes == sum(spec.adapted_to(s).packed_nbytes(s) for s in shapes)
    assert len(profile.slices) == len(graph.slicing_points)


def test_images_given_are_measured_and_tell_the_leakage() -> None:
    graph = sl.capture(network(), torch.zeros(1, 3, 16, 16))
    flat = [np.full((16, 16, 3), i * 10, np.uint8) for i in range(3)]
    sizes = []
    for images in (flat, noise(16, 3)):
        profile = sl.profile(
            graph, images=images, repetitions=1, slices=0, int8=False, jpeg_qualities=[50, 90]
        )
        assert [i.quality for i in profile.images] == [None, None, 50, 90]
        assert {i.source for i in profile.images} == {"3 images"}
        assert profile.slices == ()
        assert all(b.leakage is None for b in profile.blocks)  # too few images
        sizes.append([i.nbytes for i in profile.images])
    assert all(less < more for less, more in zip(sizes[0][1:], sizes[1][1:], strict=True))

    profile = sl.profile(graph, images=noise(16, MIN_IMAGES), repetitions=1, slices=0, int8=False)
    leakages = [b.leakage for b in profile.blocks]
    assert leakages[-1] is None
    measured = [leakage for leakage in leakages if leakage is not None]
    assert len(measured) == len(leakages) - 1
    assert all(0 <= leakage <= 1 for leakage in measured)
    assert measured[0] > 0.3  # a convolution of the image itself
    assert measured[0] > measured[-1]  # eight numbers of it


def test_wrong_requests_are_reported() -> None:
    graph = sl.capture(network(), torch.zeros(1, 3, 16, 16))
    with pytest.raises(ProfileError, match=r"needs uint8 of shape \(16, 16, 3\)"):
        sl.profile(graph, images=[np.zeros((8, 8, 3), np.uint8)], repetitions=1)
    with pytest.raises(ProfileError, match="no runtime 'tvm': there are aotinductor, onnx"):
        sl.profile(graph, runtime="tvm")
    with pytest.raises(ProfileError, match="repetitions"):
        sl.profile(graph, repetitions=0)
    vector = sl.capture(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.zeros(1, 4))
    with pytest.raises(ProfileError, match="is no image"):
        sl.profile(vector, images=noise(4, 1))
    assert sl.profile(vector, repetitions=1, int8=False).images == ()


def test_promising_points_send_less_than_all_before() -> None:
    graph = sl.capture(network(), torch.zeros(1, 3, 32, 32))
    points = graph.slicing_points
    assert [p.index for p in promising(points, 12)] == [0, 2, 3]
    assert [p.index for p in promising(points, 2)] == [0, 3]
    assert promising(points, 0) == []
    assert promising(points, None) == points


def test_profiles_are_json_files(measured: sl.Profile, tmp_path: Path) -> None:
    measured.save(tmp_path / "p.json")
    assert sl.Profile.load(tmp_path / "p.json") == measured
    with pytest.raises(ProfileError, match="cannot be read"):
        sl.Profile.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"format": "scissionlite-profile", "version": 2}')
    with pytest.raises(ProfileError, match=r"bad\.json is not a profile: .*missing required"):
        sl.Profile.load(tmp_path / "bad.json")
    (tmp_path / "old.json").write_text('{"format": "scissionlite-profile", "version": 1}')
    with pytest.raises(ProfileError, match="format 1, this build reads 2: profile that machine"):
        sl.Profile.load(tmp_path / "old.json")


NOT_SLOWED = {"name", "slowdown", "offload", "leakage", "drop", "network_drop_int8"}
"""Fields of a profile that say nothing of how fast the machine computes."""


def check_slowed(before: object, after: object, factor: float, path: str) -> int:
    """Check that every float is a time that has grown, and all else is equal; count the times."""
    if isinstance(before, float):
        assert before > 0, path
        assert after == pytest.approx(factor * before), path
        return 1
    if isinstance(before, tuple):
        assert isinstance(after, tuple)
        pairs = enumerate(zip(before, after, strict=True))
        return sum(check_slowed(b, a, factor, f"{path}[{i}]") for i, (b, a) in pairs)
    if isinstance(before, msgspec.Struct):
        names = [name for name in before.__struct_fields__ if name not in NOT_SLOWED]
        return sum(
            check_slowed(getattr(before, name), getattr(after, name), factor, f"{path}.{name}")
            for name in names
        )
    assert before == after, path
    return 0


def test_a_slower_machine_is_slower_in_everything_it_computes(measured: sl.Profile) -> None:
    slow = measured.slowed(4)
    times = check_slowed(measured, slow, 4, "profile")
    parts = len(measured.transfers), len(measured.slices), len(measured.images)
    # Preprocessing, the uncut network twice, a third time of each slice: in int8, and of all but
    # the first the part before it.
    more = 3 + 2 * len(measured.slices) - 1 + 4 * len(measured.encoders)
    assert times == len(measured.blocks) + 2 * sum(parts) + more
    assert slow.slowdown == 4
    assert slow.blocks[0].latency == pytest.approx(4 * measured.blocks[0].latency)
    assert slow.slices[0].edge == pytest.approx(4 * measured.slices[0].edge)
    assert slow.slices[1].part == pytest.approx(4 * (measured.slices[1].part or 0.0))
    assert slow.transfers[3].decode == pytest.approx(4 * measured.transfers[3].decode)
    assert slow.images[1].encode == pytest.approx(4 * measured.images[1].encode)
    assert slow.offload == measured.offload
    assert [b.leakage for b in slow.blocks] == [b.leakage for b in measured.blocks]
    with pytest.raises(ProfileError, match="cannot be 0 times slower"):
        measured.slowed(0)


def test_the_format_pages_example_is_a_profile_to_plan_with() -> None:
    (example,) = re.findall(r"```json\n(.*?)```", FORMAT_PAGE.read_text(), flags=re.S)
    profile = sl.Profile.parse(example.encode())
    plans = sl.plan(profile, profile, sl.Link(0.01, 1e7))
    assert {p.kind for p in plans} == {"local", "image", "split"}
    # Every field of the format is named on the page.
    page = FORMAT_PAGE.read_text()
    for name in json.loads(profile.json()):
        assert f"`{name}`" in page, name
    for struct in (profile.blocks[0], profile.transfers[0], profile.slices[0], profile.images[0]):
        for name in struct.__struct_fields__:
            assert f"`{name}`" in page, name
    assert msgspec.json.decode(example.encode(), type=sl.Profile) == profile
