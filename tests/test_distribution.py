"""What is given to users: the sdist is complete, and the module's instructions are baseline."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

from scissionlite import _core

ROOT = Path(__file__).parents[1]
ISAS_BEYOND = {"x86_64": {"avx2", "avx512"}, "aarch64": {"neonfp16"}}


def disassembly() -> ModuleType:
    spec = importlib.util.spec_from_file_location("disassembly", ROOT / ".ci" / "disassembly.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["disassembly"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.long
def test_the_sdist_holds_what_git_does(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no git here")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    files = {name for name in listed if name and (ROOT / name).exists()}
    build = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=ROOT, check=True)
    (sdist,) = tmp_path.iterdir()
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert held - {"PKG-INFO"} == files


@pytest.fixture(scope="module")
def module() -> Path:
    """This machine's module with symbols, as built for the installed one."""
    if shutil.which("objdump") is None:
        pytest.skip("no binutils here")
    own = Path(_core.__file__).name
    built = sorted(ROOT.glob(f"build/cp*/{own}"), key=lambda each: each.stat().st_mtime)
    if not built:
        pytest.skip("not built here")
    return built[-1]


def test_only_the_files_of_isas_need_more_than_the_oldest_cpu(module: Path) -> None:
    assert disassembly().beyond_baseline(module) == []


def test_an_instruction_beyond_the_baseline_is_found(
    module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = disassembly()
    isas = tool.isas_beyond_the_baseline()
    assert isas == set().union(*ISAS_BEYOND.values())
    (newest, *_) = sorted(ISAS_BEYOND[platform.machine()])
    # As if this ISA's files were any others.
    monkeypatch.setattr(tool, "isas_beyond_the_baseline", lambda: isas - {newest})
    if isas_left := ISAS_BEYOND[platform.machine()] - {newest}:
        assert isas_left
        found = tool.beyond_baseline(module)
        assert {f"ymm{i}" for i in (0, 1)} & {
            word.strip("%,()")
            for each in found
            for word in each.instruction.replace(",", " ").split()
        }
    else:
        with pytest.raises(ValueError, match="no code of an ISA's files"):
            tool.beyond_baseline(module)
