"""The rules that keep the code easy to read, and the order of the packages.

A file has at most 400 lines, a function 60 (without its docstring) and a class 12 attributes. An
exception has a comment that gives the reason, directly above it or inside; for a file, at its top::

    # Longer than 60 lines: <reason>
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "scissionlite"

FILE_LINES, FUNCTION_LINES, ATTRIBUTES, MAP_LINES = 400, 60, 12, 15
TOO_LONG_FILE = f"Longer than {FILE_LINES} lines: "
TOO_LONG_FUNCTION = f"Longer than {FUNCTION_LINES} lines: "
TOO_MANY_ATTRIBUTES = f"More than {ATTRIBUTES} attributes: "

Function = ast.FunctionDef | ast.AsyncFunctionDef


def violations(root: Path) -> list[str]:
    """Find every place below a checkout's ``src`` and ``csrc`` that breaks a rule."""
    python = sorted((root / "src").rglob("*.py"))
    others = [*(root / "src").rglob("*.pyi"), *(root / "csrc").rglob("*")]
    found = [
        f"{file.relative_to(root)}: {len(lines)} lines"
        for file in [*python, *sorted(other for other in others if other.is_file())]
        if len(lines := file.read_text().splitlines()) > FILE_LINES
        and not any(TOO_LONG_FILE in line for line in lines[:10])
    ]
    for file in python:
        place = str(file.relative_to(root))
        found += [f"{place}{each}" for each in source_violations(file.read_text())]
        if file.name == "__init__.py":
            found += [f"{place}: {each}" for each in map_violations(file.read_text())]
    return found


def source_violations(source: str) -> Iterator[str]:
    """Find the functions, classes and docstrings of a Python file that break a rule."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function):
            length = body_lines(node)
            if length > FUNCTION_LINES and not excused(lines, node, TOO_LONG_FUNCTION):
                yield f":{node.lineno}: {node.name} has {length} lines"
        elif isinstance(node, ast.ClassDef):
            count = len(attributes(node))
            if count > ATTRIBUTES and not excused(lines, node, TOO_MANY_ATTRIBUTES):
                yield f":{node.lineno}: {node.name} has {count} attributes"
        if isinstance(node, Function | ast.ClassDef | ast.Module):
            docstring = ast.get_docstring(node) or ""
            if docstring.startswith("What "):
                yield f":{node.body[0].lineno}: a docstring begins with 'What '"


def map_violations(source: str) -> Iterator[str]:
    """Find out whether a package's ``__init__`` lacks its map, or has too long a one."""
    docstring = ast.get_docstring(ast.parse(source))
    if docstring is None:
        yield "no docstring, which is the package's map"
    elif (length := len(docstring.splitlines())) > MAP_LINES:
        yield f"a docstring of {length} lines"


def body_lines(function: Function) -> int:
    """Count a function's lines, its signature, decorators and docstring left out."""
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def attributes(class_: ast.ClassDef) -> set[str]:
    """Name the attributes of a class's instances: annotated fields, and ``self.name = ...``."""
    names = {
        statement.target.id
        for statement in class_.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }
    stored = (
        node
        for node in ast.walk(class_)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    )
    return names | {node.attr for node in stored if ast.unparse(node.value) == "self"}


def excused(lines: list[str], node: Function | ast.ClassDef, reason: str) -> bool:
    """Look for the comment that gives the reason: directly above a definition, or inside it."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
    while first > 0 and lines[first - 1].strip().startswith("#"):
        first -= 1
    return any(line.strip().startswith(f"# {reason}") for line in lines[first : node.end_lineno])


def test_the_code_keeps_the_rules() -> None:
    assert violations(ROOT) == []


def long_function(lines: int, above: str = "", docstring: str = "Count.") -> str:
    body = "\n".join(f"    x{i} = {i}" for i in range(lines))
    return f'{above}\ndef count():\n    """{docstring}"""\n{body}\n'


def wide_class(count: int, above: str = "") -> str:
    fields = "\n".join(f"    x{i}: int" for i in range(count // 2))
    rest = "\n".join(f"        self.y{i} = {i}" for i in range(count - count // 2))
    return f"{above}\nclass Wide:\n{fields}\n\n    def __init__(self):\n{rest}\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (long_function(60), []),
        (long_function(60, docstring="Count.\n\n    Slowly.\n    "), []),
        (long_function(61), [":2: count has 61 lines"]),
        (long_function(61, "# Longer than 60 lines: it is a table."), []),
        (long_function(61, "# Longer than 60 lines: it is\n# a table."), []),
        (long_function(61, "# It is long."), [":2: count has 61 lines"]),
        (
            long_function(61, "# Longer than 60 lines: it is a table.\n"),
            [":3: count has 61 lines"],
        ),
        (wide_class(12), []),
        (wide_class(13), [":2: Wide has 13 attributes"]),
        (wide_class(13, "# More than 12 attributes: a file format's fields."), []),
        (wide_class(13) + "    # More than 12 attributes: a format's.\n    z: int\n", []),
        (
            long_function(1, docstring="What is counted."),
            [":3: a docstring begins with 'What '"],
        ),
        ('"""What this file is."""\n', [":1: a docstring begins with 'What '"]),
    ],
)
def test_a_broken_rule_is_found(source: str, expected: list[str]) -> None:
    assert list(source_violations(source)) == expected


@pytest.mark.parametrize("name", ["src/long.py", "src/long.pyi", "csrc/encode/long.cpp"])
def test_a_long_file_is_found(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True)
    file.write_text("\n" * 400)
    assert violations(tmp_path) == []
    file.write_text("\n" * 401)
    assert violations(tmp_path) == [f"{name}: 401 lines"]
    file.write_text("# Longer than 400 lines: a table.\n" + "\n" * 400)
    assert violations(tmp_path) == []


def test_a_package_without_a_map_is_found(tmp_path: Path) -> None:
    file = tmp_path / "src" / "package" / "__init__.py"
    file.parent.mkdir(parents=True)
    file.write_text("")
    assert violations(tmp_path) == [
        "src/package/__init__.py: no docstring, which is the package's map"
    ]
    file.write_text('"""Map.\n' + "line\n" * 15 + '"""\n')
    assert violations(tmp_path) == ["src/package/__init__.py: a docstring of 16 lines"]
    file.write_text('"""Map.\n' + "line\n" * 14 + '"""\n')
    assert violations(tmp_path) == []


def import_linter(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the order of the packages, as ``make lint`` does, in a folder's ``scissionlite``."""
    shutil.copy(ROOT / "pyproject.toml", folder)
    # Without the finder of an editable install, Python finds the folder's package.
    program = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if isinstance(f, type)];"
        "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"
    )
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, check=False
    )


@pytest.mark.parametrize(
    ("file", "line", "chain"),
    [
        (None, "", ""),
        (
            "offloader/limits.py",
            "from scissionlite.scissiontl.link import Link",
            "scissionlite.offloader.limits -> scissionlite.scissiontl.link",
        ),
        (
            "transfer_layer/spec.py",
            "import scissionlite.graph.tensors",
            "scissionlite.transfer_layer.spec -> scissionlite.graph.tensors",
        ),
        (
            "errors.py",
            "def late():\n    import scissionlite.cli",
            "scissionlite.errors -> scissionlite.cli",
        ),
    ],
    ids=["none", "upward", "sideways", "upward in a function"],
)
def test_a_planted_import_breaks_the_order_of_the_packages(
    tmp_path: Path, file: str | None, line: str, chain: str
) -> None:
    shutil.copytree(PACKAGE, tmp_path / "scissionlite")
    if file is not None:
        planted = tmp_path / "scissionlite" / file
        planted.write_text(f"{planted.read_text()}\n{line}\n")
    report = import_linter(tmp_path)
    if file is None:
        assert report.returncode == 0, report.stdout + report.stderr
        assert "1 kept, 0 broken" in report.stdout
    else:
        assert report.returncode == 1, report.stdout + report.stderr
        assert "0 kept, 1 broken" in report.stdout
        assert chain in report.stdout
