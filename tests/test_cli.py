"""The command line as a user types it, from profile to answer.

One of each command runs in a process of its own, as for a user. The others run in this process,
which has imported torch already.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, get_args

import msgspec
import pytest
import torch
import typer
from PIL import Image
from processes import run_here
from rich.console import Console
from typer.main import get_command

import scissionlite as sl
from scissionlite.cli import app
from scissionlite.cli.model_options import (
    InputSettings,
    MeanOption,
    ModelRequest,
    ResizeOption,
    SizeOption,
    StdOption,
)
from scissionlite.cli.output import print_table
from scissionlite.cli.struct_options import FieldOptions, struct_options
from scissionlite.demo import flow
from scissionlite.demo.textures import write_dataset
from scissionlite.errors import PrepareError
from scissionlite.fields import struct_fields
from scissionlite.images import Preprocessing
from scissionlite.models import load_model
from scissionlite.runtimes import PACKAGES, RUNTIMES, RuntimeName

MODEL = "torchvision:squeezenet1_1"


def in_own_process(*arguments: str | Path, fails: int = 0) -> str:
    """Run a command in a process of its own; its output, or its errors where it has to fail."""
    done = subprocess.run(
        [sys.executable, "-m", "scissionlite", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=570,  # a guard against hangs, never a measure
    )
    assert done.returncode == fails, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr if fails else done.stdout


def scissionlite(*arguments: str | Path, fails: int = 0) -> str:
    """Run a command here; its output, or its errors where it has to fail."""
    done = run_here(*arguments)
    if not isinstance(done.exception, SystemExit | None):
        raise done.exception
    assert done.exit_code == fails, done.stderr
    return done.stderr if fails else done.stdout


def told(*arguments: str | Path) -> Any:
    return json.loads(scissionlite(*arguments, "--json"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, a network's weights and its profile."""
    folder = tmp_path_factory.mktemp("cli")
    write_dataset(folder, train=4, test=2)
    torch.manual_seed(0)
    torch.save(load_model(MODEL, num_classes=6).state_dict(), folder / "weights.pt")
    in_own_process(
        *("profile", MODEL, "--size", "64", "--num-classes", "6", "--threads", "1"),
        *("--repetitions", "3", "--images", folder / "test", "--name", "here", "--no-int8"),
        *("--out", folder / "profile.json"),
    )
    _with_equal_times(sl.Profile.load(folder / "profile.json")).save(folder / "equal.json")
    return folder


def _with_equal_times(profile: sl.Profile) -> sl.Profile:
    """The profile with times that no load of the machine changes: 1 ms a block, 0.1 ms the rest."""
    replace = msgspec.structs.replace
    blocks = tuple(replace(each, latency=1e-3) for each in profile.blocks)
    return replace(
        profile,
        blocks=blocks,
        slices=(),
        transfers=tuple(replace(each, encode=1e-4, decode=1e-4) for each in profile.transfers),
        images=tuple(replace(each, encode=1e-4, decode=1e-4) for each in profile.images),
        encoders=tuple(
            replace(each, encoder=1e-4, encode=1e-4, decode=1e-4, decoder=1e-4)
            for each in profile.encoders
        ),
        preprocess=1e-4,
        network_latency=1e-3 * len(blocks),
        network_latency_int8=None,
    )


@pytest.mark.long
def test_images_are_read_as_the_network_was_trained(folder: Path, tmp_path: Path) -> None:
    name, image = "timm:test_vit", next((folder / "test").rglob("*.jpg"))
    torch.manual_seed(0)
    network = load_model(name)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    prepare = ("prepare", name, "--weights", tmp_path / "weights.pt", "--codec", "local")
    manifest = told(*prepare, "--out", tmp_path / "bundle")["manifest"]
    assert manifest["preprocessing"] == {
        "size": [160, 160],
        "resize": 168,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "bits": 16,
    }
    # timm's own transforms, and no code of this project.
    data = importlib.import_module("timm.data")
    transform = data.create_transform(**data.resolve_data_config({}, model=network))
    with torch.inference_mode(), Image.open(image) as opened:
        expected = network(transform(opened.convert("RGB"))[None]).softmax(1)
    answer = told("run", tmp_path / "bundle", image, "--fallback", "local")["answers"][0]
    assert answer["class_index"] == expected.argmax()
    assert answer["confidence"] == pytest.approx(expected.max().item(), rel=1e-3)


@pytest.mark.parametrize(
    ("options", "preprocessing"),
    [
        (("--size", "64"), Preprocessing(size=(64, 64))),
        (
            ("--mean", "0", "--std", "1", "--resize", "256"),
            Preprocessing(size=(224, 224), resize=256, mean=(0,), std=(1,)),
        ),
        (
            ("--mean", "0.1,0.2,0.3"),
            Preprocessing(size=(224, 224), resize=256, mean=(0.1, 0.2, 0.3)),
        ),
    ],
)
def test_options_say_how_images_are_read(
    options: tuple[str, ...], preprocessing: Preprocessing
) -> None:
    assert _input_settings(*options) == InputSettings(preprocessing, known=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--mean", "0.5"), "one value per channel"),
        (("--std", "0,1,1"), "std > 0"),
        (("--mean", "1,2"), "--mean takes one or three numbers"),
        (("--std", "nan"), "--std takes one or three numbers"),
        (("--resize", "100"), "no larger than resize"),
    ],
)
def test_options_for_images_that_do_not_go_together(options: tuple[str, ...], said: str) -> None:
    with pytest.raises(typer.BadParameter, match=said):
        _input_settings(*options)


def _input_settings(*options: str) -> InputSettings:
    seen: list[InputSettings] = []

    def command(
        size: SizeOption = None,
        resize: ResizeOption = None,
        mean: MeanOption = None,
        std: StdOption = None,
    ) -> None:
        request = ModelRequest(model=MODEL, size=size, resize=resize, mean=mean, std=std)
        seen.append(request.load()[1])

    own = typer.Typer()
    own.command()(command)
    get_command(own).main(list(options), standalone_mode=False)
    return seen[0]


def test_profile_writes_what_plan_reads(folder: Path) -> None:
    profile = sl.Profile.load(folder / "profile.json")
    assert (profile.name, profile.model) == ("here", MODEL)
    assert profile.host is not None
    assert profile.host.threads == 1
    assert {image.source for image in profile.images} == {"12 images"}
    assert profile.slices

    file = folder / "profile.json"
    plans = told("plan", file, file, "--link", "4Mbit/60ms", "--slowdown", "5", "--top", "0")
    assert len(plans) > 20
    latencies = [entry["latency"] for entry in plans]
    assert latencies == sorted(latencies)
    kinds = {entry["plan"]["kind"] for entry in plans}
    assert kinds == {"local", "image", "split"}
    table = scissionlite("plan", file, file, "--max-upload", "5000", "--top", "3")
    for expected in ("what crosses", "nothing (local)", "latency", "satisfy the constraints"):
        assert expected in table


def test_plan_draws_and_reports(folder: Path, tmp_path: Path) -> None:
    file, page, picture = folder / "profile.json", tmp_path / "r.html", tmp_path / "f.png"
    (tmp_path / "links.csv").write_text(
        "source,destination,ping(ms),bandwidth(Mbps)\nhere,here,20,30\n"
    )
    table = scissionlite(
        *("plan", file, file, "--slowdown", "5", "--link", tmp_path / "links.csv", "--pareto"),
        *("--not-on-edge", "features.0", "--power", "4", "--report", page, "--figure", picture),
    )
    for expected in ("energy", "(mJ)", "are beaten by none in latency and bytes", str(page)[:20]):
        assert expected in table
    assert "on_edge" in page.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")
    answer = told("plan", file, file, "--cloud", file, "--objective", "bytes", "--top", "1")
    assert answer[0]["plan"]["kind"] == "local"


def test_prepare_inspect_and_run(folder: Path) -> None:
    bundle = folder / "bundle"
    printed = in_own_process(
        *("prepare", MODEL, "--size", "64", "--weights", folder / "weights.pt"),
        *("--train", folder / "train", "--validate", folder / "test"),
        *("--at", "features.2", "--epochs", "1", "--out", bundle),
        *("--runtime", "onnx", "--runtime", "torchscript", "--json"),
    )
    made = json.loads(printed)
    assert [file["runtime"] for file in made["manifest"]["slices"]["edge"]] == [
        "onnx",
        "torchscript",
    ]
    assert made["manifest"]["transfer"]["dtype"] == "int8"
    assert made["manifest"]["accuracy"]["samples"] == 12
    assert json.loads(in_own_process("inspect", bundle, "--json"))["id"] == made["id"]
    assert made["id"] == sl.Bundle.load(bundle).id
    table = scissionlite("inspect", bundle)
    assert "14.1 times fewer bytes" in table  # 15x15 features: windows at the border are partial
    for expected in ("every slice matches its digest", "edge.onnx, onnx,", "edge.pt, torchscript,"):
        assert expected in table

    image = folder / "test" / "patches" / "0000.jpg"
    run = ("run", bundle, image, "--fallback", "local")
    answers = json.loads(in_own_process(*run, "--deadline", "0.2", "--json"))
    assert answers["answers"][0]["where"] == "local"
    (bundle / "network.pt").write_bytes(b"altered")
    assert told(*run, "--runtime", "onnx")
    said = scissionlite(*run, "--runtime", "torchscript", fails=1)
    assert "does not match its digest" in said


def test_any_transfer_layer_can_be_prepared(folder: Path) -> None:
    bundle = folder / "rich"
    made = told(
        *("prepare", MODEL, "--size", "64", "--weights", folder / "weights.pt"),
        *("--train", folder / "train", "--at", "features.2", "--epochs", "0", "--out", bundle),
        *("--pool", "4", "--pool-kind", "average", "--dtype", "int4", "--granularity", "channel"),
        *("--scheme", "symmetric", "--upsample", "bilinear", "--layout", "nhwc"),
        *("--entropy", "zstd", "--entropy-level", "3", "--levels", "15"),
    )
    assert made["manifest"]["transfer"] == {
        **{"pool": 4, "pool_kind": "average", "dtype": "int4", "granularity": "channel"},
        **{"scheme": "symmetric", "upsample": "bilinear", "layout": "nhwc"},
        **{"entropy": "zstd", "entropy_level": 3, "reduction": 1, "levels": 15, "encoder": None},
    }
    assert len(made["manifest"]["crossing"][0]["quantization"]["scale"]) == 64
    table = scissionlite("inspect", bundle)
    for expected in ("64 channels, scales", "at most ", "TL 4x4 average int4/channel 15 levels"):
        assert expected in table


def test_bare_photographs_train_a_learned_transfer_layer(folder: Path) -> None:
    made = told(
        *("prepare", MODEL, "--size", "64", "--weights", folder / "weights.pt"),
        *("--num-classes", "6", "--unlabelled", folder / "train", "--at", "features.2"),
        *("--pool-kind", "learned", "--reduction", "4", "--epochs", "2", "--patience", "1"),
        *("--calibration", "percentile", "--levels", "64", "--entropy", "ans"),
        *("--out", folder / "learned"),
    )["manifest"]
    assert made["training"]["labels"] is False
    assert made["transfer"]["reduction"] == 4
    assert made["crossing"][0]["shape"] == [1, 16, 8, 8]
    assert made["crossing"][0]["feature_shape"] == [1, 64, 15, 15]
    table = scissionlite("inspect", folder / "learned")
    assert "learned TL 2x2 1/4 channels int8 64 levels + ans" in table
    assert re.search(
        r"entropy tables: \d+( by neighbours)? for 16 channels, .* bits a code, 0.\d+ kB expected",
        table,
    )


def test_the_fastest_plan_that_holds_is_found(folder: Path, tmp_path: Path) -> None:
    """Without any training a float32 split or local loses nothing, and all the rest may."""
    profile = folder / "equal.json"
    options = (
        *("prepare", MODEL, "--size", "64", "--weights", folder / "weights.pt"),
        *("--train", folder / "train", "--validate", folder / "test", "--epochs", "0"),
        *("--device-profile", profile, "--edge-profile", profile, "--tries", "1"),
    )
    (tmp_path / "wifi.csv").write_text(
        "source,destination,ping(ms),bandwidth(Mbps)\npi,edge,2,50\n"
    )
    table = scissionlite(
        *(*options, "--accuracy-drop", "100", "--link", tmp_path / "wifi.csv"),
        *("--out", tmp_path / "any"),
    )
    for expected in ("Tried for", "predicted (ms)", "change (points)", "kept"):
        assert expected in table
    exact = told(*options, "--accuracy-drop", "0", "--out", tmp_path / "exact")["manifest"]
    assert exact["accuracy"]["after"] >= exact["accuracy"]["before"]
    wrong = scissionlite(
        *(*options, "--accuracy-drop", "1", "--at", "features.2", "--out", tmp_path / "c"), fails=2
    )
    assert "chooses slicing point" in wrong


def test_the_best_plan_can_be_prepared_straight_away(folder: Path) -> None:
    # Over an endless link to an edge as fast, sending the image beats every split.
    made = told(
        *("prepare", MODEL, "--size", "64", "--num-classes", "6", "--out", folder / "best"),
        *("--device-profile", folder / "equal.json", "--edge-profile", folder / "equal.json"),
        *("--link", "1000Gbit/0ms", "--slowdown", "50"),
    )
    assert made["manifest"]["kind"] == "image"


def test_a_shallow_encoder_is_planned_and_prepared(folder: Path, tmp_path: Path) -> None:
    """On a slow device with a thin link it is the best plan: no block runs there, few bytes."""
    profile = folder / "equal.json"
    slow = ("--link", "1Mbit/5ms", "--slowdown", "100", "--max-upload", "700")
    (best, *_) = told("plan", profile, profile, *slow, "--learned")
    assert best["plan"]["slicing_point"] == "input"
    assert best["plan"]["spec"]["encoder"] == "tiny"
    untrained = told("plan", profile, profile, *slow, "--top", "0")
    assert all(each["plan"]["slicing_point"] != "input" for each in untrained)
    made = told(
        *("prepare", MODEL, "--size", "64", "--num-classes", "6", "--out", tmp_path / "bundle"),
        *("--device-profile", profile, "--edge-profile", profile, *slow, "--learned"),
        *("--unlabelled", folder / "train", "--validate", folder / "test", "--epochs", "0"),
    )["manifest"]
    assert made["slicing_point"]["index"] == -1
    assert made["transfer"] == best["plan"]["spec"]
    assert made["accuracy"]["sent_bytes"] < 700
    # Its measured accuracy makes it a plan that is offered.
    measured = told("plan", profile, profile, *slow, "--accuracy", tmp_path / "bundle")
    assert measured[0]["plan"]["accuracy"] == made["accuracy"]["after"]
    said = scissionlite(
        *("prepare", MODEL, "--learned", "--at", "features.2", "--out", tmp_path / "b"), fails=2
    )
    assert "--learned chooses among plans" in " ".join(said.split())


def test_prepare_takes_the_constraints_of_plan(folder: Path, tmp_path: Path) -> None:
    weights = ("prepare", MODEL, "--size", "64", "--num-classes", "6")
    profiles = ("--device-profile", folder / "equal.json", "--edge-profile", folder / "equal.json")
    out = ("--out", tmp_path / "bundle")
    link = ("--link", "1000Gbit/0ms", "--slowdown", "50")  # an image to the edge is best
    made = told(*weights, *profiles, *link, "--max-upload", "0", *out)
    assert made["manifest"]["kind"] == "local"
    chosen = told(
        *(*weights, *profiles, *link, *out, "--train", folder / "train", "--epochs", "0"),
        *("--validate", folder / "test", "--accuracy-drop", "100", "--tries", "1"),
        *("--slicing-point", "features.5", "--max-device-memory", "10000000"),
    )
    assert chosen["manifest"]["slicing_point"]["after"] == "features.5"
    for wrong in (("--max-leakage", "0.5"), ("--power", "4")):
        said = scissionlite(*weights, *out, "--at", "features.2", *wrong, fails=2)
        assert "choose among plans: give --accuracy-drop" in " ".join(said.split())
    said = scissionlite(*weights, *profiles, *out, "--max-latency", "0", fails=1)
    assert "--max-latency 0.0 excludes" in said


def test_tables_print_square_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("a [b]", ["c"], [["pip install 'scissionlite[torch]'"]], caption="d [e]")
    printed = capsys.readouterr().out
    for expected in ("a [b]", "scissionlite[torch]", "d [e]"):
        assert expected in printed


def test_doctor_tells_what_this_machine_has() -> None:
    found = told("doctor")
    assert found["scissionlite"] == sl.__version__
    assert found["in use"] in found["instruction sets"].split(", ")
    for runtime in RUNTIMES:
        assert found[f"{runtime} slices"].startswith("yes")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("plan", "nowhere.json", "nowhere.json"), 1, "`scissionlite profile` makes one"),
        (("plan", "a.json", "b.json", "--objective", "speed"), 2, "speed"),
        (("profile", "torchvision:resnet0"), 1, "ModelError"),
        (("profile", MODEL, "--size", "2"), 2, "--size"),
        (("inspect", "/nowhere"), 1, "is not a bundle"),
        (("serve", "/nowhere"), 1, "is not a bundle"),
        (("run", "/nowhere", "x.jpg"), 1, "is not a bundle"),
        (("prepare", MODEL, "--out", "/tmp/never"), 2, "--at"),
        (("prepare", MODEL, "--out", "/tmp/never", "--at", "x", "--pool", "3"), 2, "--pool 3"),
        (("prepare", MODEL, "--out", "/tmp/never", "--dtype", "int4"), 2, "--dtype: only with"),
        (
            ("prepare", MODEL, "--out", "x", "--at", "x", "--codec", "jpeg", "--pool", "2"),
            2,
            "--pool: only with",
        ),
        (("prepare", MODEL, "--out", "x", "--at", "x", "--seed", "-1"), 2, "--seed"),
        (("prepare", MODEL, "--out", "x", "--codec", "avif"), 2, "--codec"),
        (("plan", "a.json", "b.json", "--max-latency", "-1"), 2, "--max-latency"),
        (("plan", "a.json", "b.json", "--link", "none.csv"), 1, "`scissionlite profile` makes one"),
        (("demo", "--link", "quick"), 2, "is no link"),
        (("fly",), 2, "fly"),
    ],
)
def test_wrong_usage_and_failures_have_their_own_exit_codes(
    arguments: tuple[str, ...], code: int, said: str
) -> None:
    assert said in " ".join(scissionlite(*arguments, fails=code).replace("│", " ").split())


def test_every_runtime_can_be_chosen() -> None:
    assert set(get_args(RuntimeName)) == set(RUNTIMES) == set(PACKAGES)
    wrong = scissionlite("prepare", MODEL, "--out", "x", "--runtime", "tvm", fails=2)
    for runtime in RUNTIMES:
        assert runtime in wrong


@pytest.mark.parametrize(
    ("command", "struct"),
    [("plan", sl.Constraints), ("prepare", sl.Recipe), ("prepare", sl.TransferSpec)],
)
def test_every_field_of_a_struct_is_an_option_with_help(
    command: str, struct: type[msgspec.Struct]
) -> None:
    parameters = get_command(app).commands[command].params  # type: ignore[attr-defined]  # a group
    options = {option: each for each in parameters for option in each.opts}
    for field in struct_fields(struct):
        if (struct, field.name) == (sl.TransferSpec, "encoder"):
            continue  # the option takes a bundle's encoder, too, and says so
        name = field.name.removesuffix("s") if field.type == tuple[str, ...] else field.name
        option = options[f"--{name.replace('_', '-')}"]
        assert option.help == field.summary
        assert len(field.summary) > 10
        if struct is not sl.TransferSpec:  # whose options change what --codec is
            default = getattr(struct(), field.name)
            assert option.default == (list(default) if isinstance(default, tuple) else default)


def test_options_become_the_struct() -> None:
    seen: list[sl.Constraints] = []

    @struct_options
    def command(
        constraints: Annotated[sl.Constraints, FieldOptions("Limits")] = sl.Constraints(),  # noqa: B008
    ) -> None:
        seen.append(constraints)

    alone = typer.Typer(add_completion=False)
    alone.command()(command)
    arguments = ["--max-upload", "5", "--machine", "pi", "--machine", "edge", "--on-edge", "head"]
    alone(arguments, standalone_mode=False)
    assert seen == [sl.Constraints(max_upload=5, machines=("pi", "edge"), on_edge=("head",))]


def test_every_public_name_is_there() -> None:
    assert sorted(sl.__all__) == sorted(sl._HOMES)
    for name in sl.__all__:
        value = getattr(sl, name)
        assert isinstance(value, sl.Task) if name.isupper() else value.__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sl.nothing


def test_the_demo_leaves_the_network_in_int8_out_where_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Whether it is refused depends on the processor and the weights.
    def refused(graph: object, plan: sl.Plan, **options: object) -> sl.Bundle:
        raise PrepareError("off by 0.16")

    monkeypatch.setattr(flow, "prepare", refused)
    demo = flow.Demo(tmp_path, Console(), size=64, seed=0, slowdown=1, progress=False)
    data = tmp_path / "data"
    write_dataset(data, train=1, test=1)
    demo.open_data(data, Preprocessing(size=(64, 64)))
    demo.graph = sl.capture(torch.nn.ReLU(), torch.zeros(1, 3, 64, 64))
    local = sl.Plan(kind="local")
    int8 = msgspec.structs.replace(local, device_precision="int8")
    for _ in range(2):  # over each link
        assert demo._prepare(int8, epochs=1) is None
    assert capsys.readouterr().out.count("Left out, nothing (local, int8): off by 0.16") == 1
    for other in (local, sl.Plan(kind="image", image_format="png")):
        with pytest.raises(PrepareError, match="off by"):
            demo._prepare(other, epochs=1)


@pytest.mark.long
def test_the_demo_compares_every_way(folder: Path, tmp_path: Path) -> None:
    printed = in_own_process(
        *("demo", "--json", "--data", folder, "--model", MODEL, "--size", "64", "--images", "3"),
        *("--weights", folder / "weights.pt", "--epochs", "1", "--slowdown", "1"),
        *("--link", "20Mbit/10ms", "--at", "features.2", "--out", tmp_path / "demo"),
    )
    rows = json.loads(printed)
    assert [row["configuration"].split(" ")[0] for row in rows] == [
        "local",
        "local,",
        "JPEG",
        "float32",
        "float32",
        "int8",
    ]
    split, paper, ours = (row["sent_bytes"] for row in rows[3:])
    assert rows[0]["sent_bytes"] == rows[1]["sent_bytes"] == 0
    assert split == rows[5]["float32_bytes"]
    # features.2 is 15x15 here: pooled windows at the border are partial, 8x8 are left.
    assert (split / 225, paper / 64, ours / 64) == (256, 256, 64)
    for row in rows[2:]:
        assert row["median"] >= 0.010
        assert row["p95"] >= row["median"]
    assert (tmp_path / "demo" / "comparison.png").read_bytes().startswith(b"\x89PNG")
