"""Checks a wheel: its size, that it holds no sources of the core, and its instructions.

python check_wheel.py WHEEL [UNSTRIPPED_MODULE]
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

from disassembly import architecture, beyond_baseline

# docs/arm.md says what fills the one for x86-64.
MOST_BYTES = {"x86_64": 1_000_000, "aarch64": 1_000_000}


def faults(wheel: Path, module: Path | None) -> list[str]:
    """Say what is wrong with a wheel; `module` is its module with symbols."""
    found = []
    size = wheel.stat().st_size
    print(f"{wheel.name}: {size:,} bytes")
    (most,) = (bound for name, bound in MOST_BYTES.items() if wheel.stem.endswith(name))
    if size > most:
        found.append(f"{size:,} bytes are more than {most:,}")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    sources = [name for name in names if name.endswith((".cpp", ".h", ".c", ".o", ".a"))]
    found += [f"{name} is a source of the core" for name in sources]
    if not any(name.endswith("/py.typed") for name in names):
        found.append("py.typed is missing")
    modules = [
        name for name in names if name.startswith("scissionlite/_core.") and name.endswith(".so")
    ]
    if len(modules) != 1:
        found.append(f"modules: {modules}")
    if module is not None:
        if architecture(module) not in wheel.name or module.name not in modules[0]:
            found.append(f"{module.name} is not the module of {wheel.name}")
        found += [
            f"{each.function}: {each.instruction}: {each.reason}"
            for each in beyond_baseline(module)
        ]
    return found


if __name__ == "__main__":
    wrong = faults(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
    print("\n".join(wrong), end="\n" if wrong else "", file=sys.stderr)
    sys.exit(bool(wrong))
