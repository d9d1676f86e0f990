"""The documentation's site: nothing is forgotten in it.

``make docs`` builds it, and checks its links.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

import scissionlite as sl
from scissionlite import errors
from scissionlite.cli import app

ROOT = Path(__file__).parents[1]
SETTINGS = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
REFERENCE = [*(ROOT / "docs" / "reference").glob("*.md")]


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    """The hook of mkdocs.yml."""
    (file,) = SETTINGS["hooks"]
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def leaves(nav: Any) -> Iterator[str]:
    """The pages of a navigation, in order."""
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from leaves(part)


def objects(page: Path) -> list[str]:
    """The Python objects that a page documents."""
    return re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)


def test_every_page_is_in_the_navigation_once(hook: ModuleType) -> None:
    docs = ROOT / "docs"
    written = [page.relative_to(docs).as_posix() for page in docs.rglob("*.md")]
    pages = [*written, *hook.ELSEWHERE.values(), hook.COMMANDS]
    assert sorted(leaves(SETTINGS["nav"])) == sorted(pages)


def test_a_page_or_a_link_that_is_missing_is_an_error() -> None:
    assert SETTINGS["strict"] is True
    levels = {level for checks in SETTINGS["validation"].values() for level in checks.values()}
    assert levels == {"warn"}


def test_every_public_name_is_in_the_reference_once() -> None:
    named = [name for page in REFERENCE for name in objects(page)]
    assert len(named) == len(set(named))
    assert {f"scissionlite.{name}" for name in sl.__all__} <= set(named)
    # mkdocstrings reads ``scissionlite.errors`` whole; the filter leaves out its functions.
    assert "scissionlite.errors" in named
    assert all(name.endswith("Error") for name in vars(errors) if name[0].isupper())


def test_every_command_is_in_the_reference(hook: ModuleType) -> None:
    page = hook.commands()

    def check(command: Any, name: str) -> None:
        section = re.search(rf"^##+ `{name}`$(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL)
        assert section is not None, name
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                assert f"`{option}" in section[1] or f", {option}" in section[1], (name, option)
        for part, found in getattr(command, "commands", {}).items():
            check(found, f"{name} {part}")

    for part, found in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        check(found, f"scissionlite {part}")


@pytest.mark.parametrize(
    ("page", "written", "in_the_site"),
    [
        ("index.md", "docs/concepts.md", "concepts.md"),
        ("index.md", "docs/tutorial/steel.png", "tutorial/steel.png"),
        ("index.md", "CHANGELOG.md", "changelog.md"),
        ("core.md", "../docs/numerics.md#rounding", "numerics.md#rounding"),
        ("arm.md", "numerics.md", "numerics.md"),
        ("arm.md", "../csrc/README.md", "core.md"),
        ("arm.md", "../.github/workflows/wheels.yml", "files/github/workflows/wheels.yml"),
        ("reference/running.md", "../device.md", "../device.md"),
        ("reference/running.md", "../../bench/scale.py", "../files/bench/scale.py"),
    ],
)
def test_a_link_is_pointed_to_its_place_in_the_site(
    hook: ModuleType, page: str, written: str, in_the_site: str
) -> None:
    class Named:
        class file:  # noqa: N801
            src_uri = page

    text = f"[a]({written}), [b](https://x.y/z), [c](#d)\n\n```text\n[a]({written})\n```\n"
    moved = hook.on_page_markdown(text, page=Named, config=None, files=None)
    assert moved == text.replace(written, in_the_site, 1)
