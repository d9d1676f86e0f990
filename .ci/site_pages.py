"""Pages of the site that are made or stand outside docs/, links to them, and links of docstrings.

A "hook" of mkdocs: it calls ``on_files`` once, and ``on_page_markdown`` and ``on_post_page`` for
each page. mkdocstrings takes :class:`Docstrings`.
"""

import posixpath
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from griffe import Class, Extension, Function, Object, Parameter, ParameterKind, Parameters
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
    """Point the links of a page to the places that their targets have in the site.

    A backslash at the end of a line breaks it, which Python-Markdown does not know.
    """
    del config, files
    here, source = posixpath.dirname(page.file.src_uri), _source(page.file.src_uri)

    def in_the_site(link: re.Match[str]) -> str:
        place = _place(_target(link[1], source))
        return posixpath.relpath(place, here or ".")

    parts = _FENCED.split(markdown)  # every second one is a block of code, and stays as it is
    parts[::2] = [_LINK.sub(in_the_site, part).replace("\\\n", "  \n") for part in parts[::2]]
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


class Docstrings(Extension):
    """What mkdocstrings does not know of our sources: structs of msgspec, and references.

    A struct gets the ``__init__`` that msgspec makes for it. A reference, such as
    ``:meth:`connect```, becomes a link to a public name, to a member of one or to a member of the
    same class; another one is shown as plain code. A link that leads nowhere is an error.
    """

    _ROLE = re.compile(r":(class|func|meth|mod|attr|data|exc):`~?\.*([^`]*)`")
    _DEEPER = re.compile(r"^( +)(?=\* )", re.MULTILINE)

    def on_class(self, *, cls: Class, **kwargs: Any) -> None:
        """Give a struct its ``__init__``: a parameter for each field."""
        del kwargs
        if "msgspec.Struct" not in map(str, cls.bases) or "__init__" in cls.members:
            return
        only = cls.keywords.get("kw_only") == "True"
        kind = ParameterKind.keyword_only if only else ParameterKind.positional_or_keyword
        parameters = [Parameter("self", kind=ParameterKind.positional_or_keyword)] + [
            Parameter(name, kind=kind, annotation=field.annotation, default=field.value)
            for name, field in cls.attributes.items()
            if "instance-attribute" in field.labels and not name.startswith("_")
        ]
        made = Function("__init__", parameters=Parameters(*parameters), lineno=cls.lineno)
        cls.set_member("__init__", made)

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Write a docstring as Markdown: references, blocks of code, and lists in lists."""
        del kwargs
        if obj.docstring is not None:
            text = self._ROLE.sub(
                lambda role: self._linked(*role.groups(), obj), obj.docstring.value
            )
            text = self._DEEPER.sub(r"\1\1", text)  # Python-Markdown wants four spaces
            obj.docstring.value = text.replace("::\n\n", ":\n\n")

    @staticmethod
    def _linked(role: str, name: str, obj: Object) -> str:
        shown = name.removeprefix("scissionlite.")
        owner = obj if obj.is_class else obj.parent
        public = obj.package.exports or ()
        path = shown.split(".")
        if path[0] not in public:
            in_class = owner is not None and owner.name in public and path[0] in owner.members
            if role == "mod" or not in_class:
                return f"`{shown}`"
            path.insert(0, owner.name)
        if len(path) > 1:
            member = obj.package[path[0]].members.get(path[1])
            if member is not None and member.docstring is None:
                path.pop()  # a field: the docstring of its class describes it
        return f"[`{shown}`][{'.'.join(['scissionlite', *path])}]"
