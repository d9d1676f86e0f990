"""The documents' blocks: each has a known language, and those that are commands run as printed.

The blocks of a document run in order, in one shell and one folder, where ``LAID`` lays the small
data that the document names. A block of an output or an excerpt has the language ``text``.
``NOT_RUN`` names the commands that do not run here, and says why; their names and options are
checked.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import typer
from bench.accuracy.__main__ import parser as accuracy_parser
from PIL import Image
from sweep import _parser as sweep_parser

import scissionlite as sl
from scissionlite.cli import app
from scissionlite.demo.textures import write_dataset
from scissionlite.models import load_model
from scissionlite.runtimes import RuntimeName
from scissionlite.scissiontl.profile import Profile

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("csrc/*.md")])
LANGUAGES = {"python", "sh", "json", "text", "toml"}

NOT_RUN = {  # first words of a command
    "make ": "builds, or runs whole test suites, which .ci/run does",
    ".ci/run": "runs this test",
    "pytest ": "tests, which `make test` runs, or benchmarks",
    "python -m bench.accuracy ": "trains networks for hours, on the project's shared/data",
    "python -m bench.end_to_end ": "measures for minutes, on the project's shared/data",
    "python -m bench.encoding ": "needs the bundles of bench.end_to_end",
    "python -m bench.predicted ": "measures for minutes, on the project's shared/data",
    "python -m bench.drops ": "needs the networks of bench.accuracy",
    "python -m bench.rates ": "trains on the networks of bench.accuracy",
    "python -m bench.encoders ": "measures and trains on the networks of bench.accuracy",
    "python -m bench.int8_slices ": "measures and trains for minutes, on the project's shared/data",
    "python -m bench.load_options ": "measures for minutes",
    "python -m bench.arm_instructions ": "needs an arm64 system and qemu",
    "R=": "a part of bench.accuracy's commands",
    "L=": "a part of bench.accuracy's commands",
    "python -m tests.sweep": "captures 1,500 networks in hours",
    "python bench/": "measures for minutes, on the project's shared/data",
    "scissionlite demo ": "trains and measures for ten minutes; `make demo` is a smaller one",
    "scissionlite plan $OUT/here.json $OUT/here.json --max-leakage ": (
        "a leakage below 0.8 needs the real photographs: drawn ones leak more"
    ),
    "scissionlite run bundle --camera ": "needs a camera",
    "scissionlite run bundle photos --in-flight 4 --mqtt ": (
        "needs a broker; tests/test_run_mqtt.py has one"
    ),
    "mosquitto_sub ": "needs a broker",
    "ray ": "makes this machine a node of a cluster; tests/test_ray_engine.py has one",
    "scissionlite serve /shared/line --engine ray ": "needs a cluster",
    "tritonserver ": "no Triton server is at hand",
    "scissionlite serve bundle --engine triton ": "needs a server; tests/test_triton.py has one",
}


class Block(NamedTuple):
    document: Path
    line: int
    language: str
    text: str


def blocks(document: Path) -> list[Block]:
    """The fenced blocks of a document, in order."""
    found = []
    text = document.read_text()
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(document.relative_to(ROOT), line, match[1].strip(), match[2]))
    return found


def commands(text: str) -> list[str]:
    """The commands of a block: its lines, those that end in a backslash joined to the next."""
    return [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip()]


def is_not_run(command: str) -> bool:
    """Whether a command does not run here."""
    return command.startswith(tuple(NOT_RUN))


def script_of(document: Path) -> str:
    """One script of a document's blocks: a reader has one shell."""
    lines = ["set -e", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for block in blocks(document):
        if block.language == "python":
            written = [f"python -c {shlex.quote(block.text)}"]
        elif block.language == "sh":
            written = [command for command in commands(block.text) if not is_not_run(command)]
        else:
            continue
        lines += [f"echo {block.document}:{block.line}", *written]
    return "\n".join(lines)


def run_document(document: Path, folder: Path) -> None:
    """Run a document from top to bottom in a folder; fails with the output if a command fails."""
    # The commands that a document names are those of this environment.
    bin_folder = folder / ".bin"
    bin_folder.mkdir()
    for name, module in (("scissionlite", "-m scissionlite"), ("python", "")):
        script = bin_folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        script.chmod(0o755)
    path = f"{bin_folder}:{os.environ['PATH']}"
    with (folder / ".output").open("w+") as output:
        shell = subprocess.Popen(
            ["bash", "-c", script_of(document)],
            cwd=folder,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = shell.wait(timeout=900)  # a guard against hangs, never a measure
        finally:
            with contextlib.suppress(ProcessLookupError):  # a daemon that was left, or all of it
                os.killpg(shell.pid, signal.SIGKILL)
        output.seek(0)
        printed = output.read()
    assert code == 0, printed
    assert "Traceback" not in printed, printed


def lay_steel(folder: Path) -> None:
    """Lay six classes of drawn defects. What is tested is trained on: no accuracy drops."""
    write_dataset(folder, train=2, test=1)
    shutil.rmtree(folder / "test")
    shutil.copytree(folder / "train", folder / "test")
    for image in (folder / "test").rglob("*.jpg"):
        image.rename(image.with_name(f"{image.parent.name}_1{image.name}"))


def lay_security(folder: Path, runtime: RuntimeName = "torchscript") -> None:
    write_dataset(folder / "steel", train=1, test=1)
    shutil.copytree(folder / "steel" / "test", folder / "photos")
    network = load_model("torchvision:squeezenet1_1", num_classes=6)
    graph = sl.capture(network, torch.zeros(1, 3, 64, 64), name="squeezenet1_1")
    sl.prepare(
        graph,
        sl.Plan(kind="split", slicing_point="features.2", spec=sl.TransferSpec()),
        train=folder / "steel" / "train",
        preprocessing=sl.Preprocessing(size=(64, 64)),
        recipe=sl.Recipe(epochs=0),
        runtimes=(runtime,),
        out=folder / "bundle",
    )


def lay_running(folder: Path) -> None:
    import cv2

    lay_security(folder)
    shutil.rmtree(folder / "steel")
    size = (64, 64)
    motion_jpeg = cv2.VideoWriter.fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(folder / "line4.avi"), motion_jpeg, 25, size)
    for file in sorted((folder / "photos").rglob("*.jpg")):
        with Image.open(file) as image:
            writer.write(np.array(image.convert("RGB").resize(size)))
    writer.release()


def lay_training(folder: Path) -> None:
    lay_steel(folder / "steel")
    shutil.copytree(folder / "steel" / "train", folder / "photographs")
    network = load_model("scissionlite.models:efficientnet_lite0_imagenet", num_classes=6)
    torch.save(network.state_dict(), folder / "steel.pt")


def lay_planning(folder: Path) -> None:
    write_dataset(folder / "photos", train=1, test=1)


def lay_tutorial(folder: Path) -> None:
    """Lay the project's folder, with the data that the tutorial names beside it."""
    lay_steel(folder.parent / "shared" / "data" / "neu-surface-defects")
    (folder / "docs").symlink_to(ROOT / "docs")


LAID: dict[str, Callable[[Path], None]] = {
    "README.md": lambda folder: None,
    "docs/adaptation.md": lay_security,
    "docs/running.md": lay_running,
    "docs/security.md": lay_security,
    "docs/daemon.md": lay_security,
    "docs/device.md": lay_security,
    "docs/engines.md": lambda folder: lay_security(folder, "onnx"),
    "docs/training.md": lay_training,
    "docs/int8.md": lay_training,
    "docs/fleet.md": lambda folder: None,
    "docs/planning.md": lay_planning,
    "docs/tutorial.md": lay_tutorial,
}
MADE = {
    "README.md": ("first", "bundle", "pi4.json", "edge.json", "links.csv", "report.html"),
    "docs/adaptation.md": ("bundle",),
    "docs/running.md": ("answers.jsonl", "inbox"),
    "docs/security.md": ("bundle/manifest.sig",),
    "docs/daemon.md": ("bundle",),
    "docs/device.md": ("bundle",),
    "docs/engines.md": ("repository",),
    "docs/training.md": ("bundle",),
    "docs/int8.md": ("bundle",),
    "docs/fleet.md": ("here.json", "plant.toml"),
    "docs/planning.md": ("links.csv", "report.html"),
    "docs/tutorial.md": ("build/steel/here.json", "build/steel/bundle"),
}
TESTED_ELSEWHERE = {"docs/detectors.md"}  # tests/test_detectors.py: it needs a detector


def check_parses(command: str) -> None:
    """Fail if a command names a script, a target, a test or an option that is not there."""
    words = shlex.split(command, comments=True)
    words = words[: words.index("&")] if "&" in words else words
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "scissionlite":
        context = typer.main.get_command(app).make_context("scissionlite", list(words[1:]))
        found = context.command
        rest = words[1:]
        while hasattr(found, "commands"):
            found, rest = found.commands[rest[0]], rest[1:]
        options = {name for each in found.params for name in (*each.opts, *each.secondary_opts)}
        assert {word for word in rest if word.startswith("--")} <= options, command
    elif words[:3] == ["python", "-m", "bench.accuracy"]:
        accuracy_parser().parse_args(words[3:])
    elif words[:2] == ["python", "-m"] and words[2].startswith("bench."):
        module = importlib.import_module(words[2])
        if hasattr(module, "__path__"):  # a package: what `python -m` runs of it
            module = importlib.import_module(f"{words[2]}.__main__")
        module.parser().parse_args(words[3:])
    elif words[:3] == ["python", "-m", "tests.sweep"]:
        sweep_parser().parse_args(words[3:])
    elif words[0] in ("python", "pytest"):
        assert (ROOT / words[1]).is_file(), command
    elif words[0] == ".ci/run":
        assert (ROOT / words[0]).is_file()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_has_a_known_language(document: Path) -> None:
    unknown = [f"line {b.line}: {b.language!r}" for b in blocks(document)]
    assert [
        u for u, b in zip(unknown, blocks(document), strict=True) if b.language not in LANGUAGES
    ] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_names_what_is_there(document: Path) -> None:
    for block in blocks(document):
        variables: dict[str, str] = {}
        for command in commands(block.text) if block.language == "sh" else []:
            if given := re.fullmatch(r"([A-Z]+)=(\S+)", command):
                variables[given[1]] = given[2]
            for name, value in variables.items():
                command = command.replace(f"${name}", value)
            check_parses(command)


def test_every_reason_not_to_run_is_of_a_command_that_is_there() -> None:
    every = [
        command
        for document in DOCUMENTS
        for block in blocks(document)
        if block.language == "sh"
        for command in commands(block.text)
    ]
    assert [start for start in NOT_RUN if not any(c.startswith(start) for c in every)] == []


def test_every_document_with_commands_that_run_is_run() -> None:
    runs = {
        str(block.document)
        for document in DOCUMENTS
        for block in blocks(document)
        if block.language == "python"
        or (block.language == "sh" and not all(map(is_not_run, commands(block.text))))
    }
    assert runs - TESTED_ELSEWHERE == set(LAID)


@pytest.mark.skipif(
    "SCISSIONLITE_DOCS" not in os.environ, reason="minutes of work; .ci/run sets SCISSIONLITE_DOCS"
)
@pytest.mark.timeout(1000)  # a document is many commands; on a busy machine they take minutes
@pytest.mark.parametrize("name", LAID)
def test_a_document_runs_as_printed(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    LAID[name](folder)
    run_document(ROOT / name, folder)
    for made in MADE[name]:
        assert (folder / made).exists(), made


def test_the_profile_written_by_hand_is_a_profile() -> None:
    (block,) = (b for b in blocks(ROOT / "docs" / "profile-format.md") if b.language == "json")
    assert Profile.parse(block.text.encode()).name == "pi4"
