"""Pages of the site that are made or stand outside docs/, links to them, and links of docstrings.

A "hook" of mkdocs: it calls ``on_files`` once, and ``on_page_markdown`` and ``on_post_page`` for
each page. mkdocstrings takes :class:`Roles`.
"""

import posixpath
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from griffe import Extension, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "csrc/README.md": "core.md",
}
"""Pages that do not stand in docs/, and their places in the site."""
COMMANDS = "reference/commands.md"

_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
_LOADED = re.compile(
    r"<(?:script|link|img|iframe|object)\b[^>]*\b(?:src|href)=.?(?:https?:)?//[^>]*>"
)
_FENCED = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)


def commands() -> str:
    """Every command with its options, as typer writes them from the program itself."""
    options = ["--name", "scissionlite", "--title", "Commands"]
    made = subprocess.run(
        [sys.executable, "-m", "typer", "scissionlite.cli", "utils", "docs", *options],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return made.stdout


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages of ELSEWHERE, that of the commands, and each file that a page links to."""
    for source, place in ELSEWHERE.items():
        files.append(File.generated(config, place, content=(ROOT / source).read_text()))
    files.append(File.generated(config, COMMANDS, content=commands()))
    for page in files.documentation_pages():
        for target in _targets(page.content_string, _source(page.src_uri)):
            place = _place(target)
            if (ROOT / target).is_file() and files.get_file_from_path(place) is None:
                files.append(File.generated(config, place, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links of a page to the places that their targets have in the site."""
    del config, files
    here, source = posixpath.dirname(page.file.src_uri), _source(page.file.src_uri)

    def in_the_site(link: re.Match[str]) -> str:
        place = _place(_target(link[1], source))
        return posixpath.relpath(place, here or ".")

    parts = _FENCED.split(markdown)  # every second one is a block of code, and stays as it is
    parts[::2] = [_LINK.sub(in_the_site, part) for part in parts[::2]]
    return "".join(parts)


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that loads something from another machine."""
    del config
    loaded = _LOADED.search(output)
    if loaded is not None:
        raise PluginError(f"{page.file.src_uri} loads something from elsewhere: {loaded[0]}")
    return output


def _source(place: str) -> str:
    """Where a page of the site stands in the repository."""
    return {page: source for source, page in ELSEWHERE.items()}.get(place, f"docs/{place}")


def _place(source: str) -> str:
    """Where a file of the repository stands in the site: other files are copied to files/."""
    if source in ELSEWHERE:
        return ELSEWHERE[source]
    if source.startswith("docs/"):
        return source.removeprefix("docs/")
    return f"files/{source}".replace("/.", "/")  # mkdocs leaves out what begins with a dot


def _target(link: str, source: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _targets(markdown: str, source: str) -> Iterator[str]:
    for part in _FENCED.split(markdown)[::2]:
        for link in _LINK.finditer(part):
            yield _target(link[1], source)


class Roles(Extension):
    """References such as ``:meth:`connect``` in docstrings: links, or else plain code.

    A link leads to a public name, to a member of one, or to a member of the same class. All that
    is public is in the reference, so a link that leads nowhere is a name that is gone.
    """

    _ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`~?\.*([^`]*)`")

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        del kwargs
        if obj.docstring is not None:
            obj.docstring.value = self._ROLE.sub(
                lambda role: self._linked(role[1], obj), obj.docstring.value
            ).replace("::\n\n", ":\n\n")

    @staticmethod
    def _linked(name: str, obj: Object) -> str:
        public = obj.package.exports or ()
        shown = name.removeprefix("scissionlite.")
        owner = obj if obj.is_class else obj.parent
        if shown.partition(".")[0] in public:
            return f"[`{shown}`][scissionlite.{shown}]"
        if owner is not None and owner.is_class and owner.name in public and name in owner.members:
            return f"[`{shown}`][scissionlite.{owner.name}.{shown}]"
        return f"`{shown}`"
