"""The documents' blocks: each has a known language, and those that are commands run as printed.

The blocks of a document run in order, in one empty folder. A block of an output or an excerpt has
the language ``text``. ``NOT_RUN`` names the blocks that do not run here, and says why.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from scissionlite.scissiontl.profile import Profile

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("csrc/*.md")])
LANGUAGES = {"python", "sh", "json", "text"}

NOT_RUN = {  # first words of a line
    "make ": "builds, or runs whole test suites, which .ci/run does",
    "apt ": "installs packages of the system",
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


def is_not_run(line: str) -> bool:
    """Whether a line is a command that does not run here."""
    return line.startswith(tuple(NOT_RUN))


def run_block(block: Block, folder: Path) -> None:
    """Run a block of commands in a folder; fails with its output if it fails."""
    if block.language == "python":
        command = [sys.executable, "-c", block.text]
    else:
        command = ["bash", "-e", "-c", block.text]
    # The commands that a document names are those of this environment.
    bin_folder = folder / ".bin"
    bin_folder.mkdir(exist_ok=True)
    for name, module in (("scissionlite", "-m scissionlite"), ("python", "")):
        script = bin_folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        script.chmod(0o755)
    with (folder / ".output").open("w+") as output:
        done = subprocess.run(
            command,
            cwd=folder,
            env={
                **os.environ,
                "PATH": f"{bin_folder}:{os.environ['PATH']}",
                "OMP_NUM_THREADS": "1",
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=400,  # a guard against hangs, never a measure
        )
        output.seek(0)
        printed = output.read()
    assert done.returncode == 0, f"{block.document}:{block.line}:\n{printed}"
    assert "Traceback" not in printed, f"{block.document}:{block.line}:\n{printed}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_has_a_known_language(document: Path) -> None:
    unknown = [f"line {b.line}: {b.language!r}" for b in blocks(document)]
    assert [
        u for u, b in zip(unknown, blocks(document), strict=True) if b.language not in LANGUAGES
    ] == []


@pytest.mark.skipif(
    "SCISSIONLITE_DOCS" not in os.environ, reason="a minute of work; .ci/run sets SCISSIONLITE_DOCS"
)
def test_the_readme_runs_as_printed(tmp_path: Path) -> None:
    for block in blocks(ROOT / "README.md"):
        lines = block.text.splitlines()
        if block.language in ("python", "sh") and not any(map(is_not_run, lines)):
            run_block(block, tmp_path)
    for made in ("first", "bundle", "pi4.json", "edge.json", "links.csv", "report.html"):
        assert (tmp_path / made).exists(), made


def test_the_profile_written_by_hand_is_a_profile() -> None:
    (block,) = (b for b in blocks(ROOT / "docs" / "profile-format.md") if b.language == "json")
    assert Profile.parse(block.text.encode()).name == "pi4"
