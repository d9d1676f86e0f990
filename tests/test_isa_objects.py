"""No code compiled for a newer CPU can be linked into the baseline: sources and object files.

An inline function of the standard library, compiled with -mavx2, is a weak symbol, and the linker
may keep that copy for the whole program. So the files of an ISA include no such library, and its
object files define its kernels, its choice of the functions that pool, and nothing else that a
linker can see. Every ISA and operation of
csrc/kernel_list.h must be there.
"""

from __future__ import annotations

import platform
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel_targets import isas_of, listed_isas, listed_operations

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


def test_every_isa_of_the_list_has_a_file_per_operation_and_no_other_isa_has() -> None:
    operations = {operation.rsplit("_", 2)[0] for operation in listed_operations()}
    assert {f"{each.parent.name}/{each.stem}" for each in ISA_FILES} == {
        f"{operation}/{isa}" for operation in operations for isa in listed_isas()
    }


def test_this_build_has_every_kernel_of_the_list() -> None:
    machine = {"AMD64": "x86_64", "amd64": "x86_64", "arm64": "aarch64"}.get(
        platform.machine(), platform.machine()
    )
    isas = [isa for isa in listed_isas() if isa in isas_of(machine)]
    assert _core.kernels() == [(each, isa) for isa in isas for each in listed_operations()]


# --- object files, read without binutils, which know only their own machine's

LOCAL, GLOBAL = 0, 1
ARCHITECTURES = {62: "x86_64", 183: "aarch64"}  # e_machine of an ELF file
# Of the files of pool_range, for those of encode.
POOLING = ("pool_band_f32", "pool_band_f16")
# Needed for `noexcept`: a pointer to the C++ runtime, which is not code, and the function it calls.
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


def architecture(elf: bytes) -> str:
    """Architecture that an ELF object is for."""
    (machine,) = struct.unpack_from("<H", elf, 18)
    return ARCHITECTURES[machine]


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
    """Every build of the kernels without sanitizers, which would add symbols of their own."""
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
def test_the_objects_of_a_library_export_every_kernel_and_nothing_else(library: Path) -> None:
    exported: set[str] = set()
    architectures = set()
    for name, content in members(library.read_bytes()):
        architectures.add(architecture(content))
        isa = name.split(".")[0]
        if isa not in listed_isas():
            continue
        for symbol, binding, defined in symbols(content):
            if symbol in RUNTIME:
                continue
            if defined and binding != LOCAL:
                assert binding == GLOBAL, f"{name}: {symbol} is weak"
                kernel = re.match(rf"_ZN12scissionlite\d+(\w+__{isa})E", symbol)
                assert kernel, f"{name}: {symbol}"
                exported.add(kernel[1])
            # Compilers call functions of C by themselves; functions of C++ are some library's.
            pooling = re.match(rf"_ZN12scissionlite\d+({'|'.join(POOLING)})__{isa}E", symbol)
            assert defined or pooling or not symbol.startswith("_Z"), f"{name} calls {symbol}"
    assert len(architectures) == 1
    isas = isas_of(*architectures)
    names = (*listed_operations(), *POOLING)
    assert exported == {f"{each}__{isa}" for each in names for isa in isas}
