"""Carries out a Dockerfile's instructions in a root directory, where no Docker can run.

    python dockerfile.py build DOCKERFILE CONTEXT ROOT     (ROOT is what FROM names, made before)
    python dockerfile.py run DOCKERFILE ROOT [--read PATH ...] [ARGUMENT ...]

``run`` starts its ENTRYPOINT with the arguments, or with CMD, as its USER, in the root directory
made read-only, with nothing writable but /tmp in memory. --read shows a folder of this machine in
there, at /PATH's last name. Both need root's rights.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

KNOWN = {"FROM", "RUN", "COPY", "ENV", "USER", "EXPOSE", "ENTRYPOINT", "CMD"}

DEFAULTS = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"]

# What a container has: /proc, devices, the network's names; and what pip needs to be offline.
MOUNTS = """
mount --make-rprivate /
root=$1 mode=$2
shift 2
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/tmp"
while [ "$1" != -- ]; do
  mkdir -p "$root/$(basename "$1")"
  mount --bind "$1" "$root/$(basename "$1")"
  mount -o remount,bind,ro "$root/$(basename "$1")"
  shift
done
shift
if [ "$mode" = read-only ]; then mount -o remount,bind,ro "$root"; fi
exec chroot "$@"
"""


def instructions(dockerfile: Path) -> Iterator[tuple[str, str]]:
    """Yield the instructions of a Dockerfile: name and the rest, its lines joined."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE)
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        name, _, rest = line.partition(" ")
        if line.strip():
            assert name in KNOWN, f"{dockerfile}: {name}"
            yield name, rest.strip()


def inside(root: Path, mode: str, command: list[str], read: list[str], user: str) -> list[str]:
    """Make the command that runs another one in the root directory."""
    as_user = [f"--userspec={user}"] if user else []
    arguments = [str(root.resolve()), mode, *read, "--", *as_user, str(root.resolve()), *command]
    return ["unshare", "--mount", "sh", "-ec", MOUNTS, "sh", *arguments]


def build(dockerfile: Path, context: Path, root: Path) -> None:
    """Carry out RUN and COPY, with what ENV has set by then."""
    variables = list(DEFAULTS)
    for name, rest in instructions(dockerfile):
        if name == "COPY":
            source, target = rest.split()
            shutil.copytree(context / source, root / target.strip("/"), dirs_exist_ok=True)
        elif name == "ENV":
            variables.append(rest)
        elif name == "RUN":
            print(f"RUN {rest}", flush=True)
            shell = ["/usr/bin/env", "-i", *variables, "PIP_NO_INDEX=1", "/bin/sh", "-c", rest]
            subprocess.run(inside(root, "writable", shell, [], ""), check=True)


def run(dockerfile: Path, root: Path, arguments: list[str]) -> NoReturn:
    """Become the container's command."""
    last = dict(instructions(dockerfile))
    read = []
    while arguments[:1] == ["--read"]:
        read.append(os.path.realpath(arguments[1]))
        arguments = arguments[2:]
    command = json.loads(last["ENTRYPOINT"]) + (arguments or json.loads(last["CMD"]))
    set_by_env = [rest for name, rest in instructions(dockerfile) if name == "ENV"]
    variables = ["/usr/bin/env", "-i", *DEFAULTS, *set_by_env]
    words = inside(root, "read-only", [*variables, *command], read, last["USER"])
    os.execvp(words[0], words)


if __name__ == "__main__":
    verb, file, *rest = sys.argv[1:]
    if verb == "build":
        build(Path(file), Path(rest[0]), Path(rest[1]))
    else:
        run(Path(file), Path(rest[0]), rest[1:])
