"""The public names: three lists that agree, each name found at first use, a fast start."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import scissionlite as sl


def names_for_type_checkers() -> dict[str, str]:
    """Every name that the file's ``if TYPE_CHECKING:`` block imports, and its module."""
    blocks = [
        node
        for node in ast.parse(Path(sl.__file__).read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    assert len(blocks) == 1
    names: dict[str, str] = {}
    for statement in blocks[0].body:
        assert isinstance(statement, ast.ImportFrom)
        for alias in statement.names:
            assert alias.asname is None
            names[alias.name] = f"{statement.module}"
    return names


@pytest.mark.parametrize("name", sl.__all__)
def test_every_public_name_resolves(name: str) -> None:
    value = getattr(sl, name)
    assert value is not None
    assert value is getattr(sys.modules[f"scissionlite.{sl._HOMES[name]}"], name)
    assert name in dir(sl)


def test_the_public_names_are_in_order_and_each_has_one_home() -> None:
    assert list(sl.__all__) == sorted(sl._HOMES) == list(sl._HOMES)


def test_a_type_checker_sees_the_same_names_in_the_same_modules() -> None:
    homes = {name: f"scissionlite.{home}" for name, home in sl._HOMES.items()}
    assert names_for_type_checkers() == homes


def test_what_the_trainer_takes_is_public() -> None:
    from scissionlite.preprocessor import choosing, recipe, tasks

    assert sl.Recipe is recipe.Recipe
    assert sl.Task is tasks.Task
    assert sl.CLASSIFICATION is tasks.CLASSIFICATION
    assert sl.SEGMENTATION is tasks.SEGMENTATION
    assert sl.choose is choosing.choose


def test_importing_the_package_imports_no_torch() -> None:
    program = "import sys, scissionlite as sl; dir(sl); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
    # Recipes are values: the command line reads their defaults without torch.
    program = "import sys, scissionlite as sl; sl.Recipe(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = sl.nothing


def test_the_version_is_the_installed_packages() -> None:
    assert sl.__version__ == version("scissionlite")
    assert "__version__" in dir(sl)


def test_a_device_starts_without_the_modules_that_it_does_not_use() -> None:
    """Each takes milliseconds of a device's start, which bench/bench_import.py measures."""
    program = (
        "import sys, numpy; before = set(sys.modules); import scissionlite;"
        "scissionlite.Device; print(*set(sys.modules) - before)"
    )
    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = set(process.stdout.split())
    assert "scissionlite.bundle" in loaded
    unused = {"PIL", "asyncio", "hashlib", "importlib.metadata", "socket", "tempfile", "torch"}
    # ZeroMQ is imported when a device is made for an edge.
    assert not loaded & (unused | {"zmq", "zstandard"})
