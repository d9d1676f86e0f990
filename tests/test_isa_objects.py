"""That no code compiled for a newer CPU can be linked into the baseline: sources and object files.

An inline function of the standard library, compiled with -mavx2, is a weak symbol, and the linker
may keep that copy for everybody. So an ISA's files include no such library, and its object files
define its kernels and nothing else that a linker can see.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from scissionlite import _core

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
ISA_FILES = sorted(CSRC.glob("*/*.cpp"))
ALLOWED = {"<cstddef>", "<cstdint>", "<immintrin.h>", "<arm_neon.h>"}


def includes(file: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*([<"][^>"]*[>"])', file.read_text(), re.MULTILINE)


@pytest.mark.parametrize("file", ISA_FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_an_isa_file_includes_no_library(file: Path) -> None:
    reached, waiting = set(), [file]
    while waiting:
        one = waiting.pop()
        reached.add(one)
        for name in includes(one):
            if name.startswith("<"):
                assert name in ALLOWED, f"{one} includes {name}"
                continue
            path = name.strip('"')
            own = next((p for p in (one.parent / path, CSRC / path) if p.is_file()), None)
            assert own is not None, f"{one} includes {name}, which is not in csrc"
            own = own.resolve()
            assert own.is_relative_to(CSRC), f"{one} includes {name}, which is not in csrc"
            if own not in reached:
                waiting.append(own)
    assert CSRC / "kernels.h" in reached


def test_every_operation_has_a_file_an_isa() -> None:
    operations = {operation.rsplit("_", 2)[0] for operation, _ in _core.kernels()}
    isas = {isa for _, isa in _core.kernels()}
    assert {f"{each.parent.name}/{each.stem}" for each in ISA_FILES} >= {
        f"{operation}/{isa}" for operation in operations for isa in isas
    }


# --- object files, read without binutils, which know their own machine's only

LOCAL, GLOBAL = 0, 1
# What `noexcept` brings: a pointer to the C++ runtime, which is no code, and what it calls.
RUNTIME = {"DW.ref.__gxx_personality_v0", "_ZSt9terminatev"}


def members(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of every member of a System V archive."""
    assert archive.startswith(b"!<arch>\n")
    offset, long_names = 8, b""
    while offset < len(archive):
        name = archive[offset : offset + 16].rstrip()
        size = int(archive[offset + 48 : offset + 58])
        content = archive[offset + 60 : offset + 60 + size]
        if name == b"//":
            long_names = content
        elif name != b"/":
            if name.startswith(b"/"):
                name = long_names[int(name[1:]) :].split(b"\n")[0]
            yield name.rstrip(b"/").decode(), content
        offset += 60 + size + size % 2


def symbols(elf: bytes) -> Iterator[tuple[str, int, bool]]:
    """Name, binding and whether it is defined, of every symbol of a 64-bit ELF object."""
    assert elf[:6] == b"\x7fELF\x02\x01"
    (table,) = struct.unpack_from("<Q", elf, 40)
    entry, count = struct.unpack_from("<2H", elf, 58)
    sections = [struct.unpack_from("<2I4Q2I2Q", elf, table + i * entry) for i in range(count)]
    for _, kind, _, _, offset, size, link, _, _, _ in sections:
        if kind != 2:  # SHT_SYMTAB
            continue
        strings = elf[sections[link][4] :]
        for at in range(offset, offset + size, 24):
            name, info, _, section = struct.unpack_from("<I2BH", elf, at)
            yield strings[name : strings.index(b"\0", name)].decode(), info >> 4, section != 0


def libraries() -> list[Path]:
    """Every build of the kernels that is no sanitizer's: those add symbols of their own."""
    found = []
    for library in sorted(ROOT.glob("build/*/libkernels.a")):
        cache = (library.parent / "CMakeCache.txt").read_text()
        sanitize = re.search(r"^SCISSIONLITE_SANITIZE:\w+=(.*)$", cache, re.MULTILINE)
        if sanitize is None or not sanitize[1]:
            found.append(library)
    return found


@pytest.mark.parametrize(
    "library",
    libraries() or [pytest.param(None, marks=pytest.mark.skip(reason="no build/*/libkernels.a"))],
    ids=lambda library: library.parent.name if library else "none",
)
def test_an_isa_object_exports_its_kernels_only(library: Path) -> None:
    isas = {file.stem for file in ISA_FILES}
    checked = set()
    for name, content in members(library.read_bytes()):
        isa = name.split(".")[0]
        if isa not in isas:
            continue
        for symbol, binding, defined in symbols(content):
            if symbol in RUNTIME:
                continue
            if defined and binding != LOCAL:
                assert binding == GLOBAL, f"{name}: {symbol} is weak"
                assert re.match(rf"_ZN12scissionlite\d+\w+__{isa}E", symbol), f"{name}: {symbol}"
                checked.add(isa)
            # What C has, compilers call by themselves; C++ would be some library's.
            assert defined or not symbol.startswith("_Z"), f"{name} calls {symbol}"
    assert "scalar" in checked
