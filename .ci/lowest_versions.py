"""Print pip constraints that hold every direct dependency at its lower bound in pyproject.toml.

Names on the command line are left out: pip then takes the version that it would take anyway.
"""

import re
import sys
from pathlib import Path

import tomllib


def lowest_versions(pyproject: Path) -> dict[str, str]:
    """Lower bound of each requirement of the build, the package and its extras, by name."""
    settings = tomllib.loads(pyproject.read_text())
    requirements = [*settings["build-system"]["requires"], *settings["project"]["dependencies"]]
    for extra in settings["project"]["optional-dependencies"].values():
        requirements += extra
    bounds: dict[str, str] = {}
    for requirement in requirements:
        match = re.match(r"([A-Za-z0-9-]+)(?:\[\w+\])?>=([0-9.]+)", requirement)
        if match is not None:
            name, version = match.groups()
            # torch stands in two extras: installed together, the higher bound holds.
            bounds[name] = max(version, bounds.get(name, ""), key=_numbers)
    return bounds


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".") if number]


if __name__ == "__main__":
    for name, version in lowest_versions(Path("pyproject.toml")).items():
        if name not in sys.argv[1:]:
            print(f"{name}=={version}")
