"""Writers of bundles are killed at every moment: no bundle is ever half written or lost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scissionlite.atomic_folder import atomic_folder

# Forks a writer of "new" over and over. It kills itself at its first, second, third, ... system
# call that Python's audit hooks report, until one writer finishes. The files that each left are
# printed line by line. With a third argument, the kernel reports that it cannot exchange two
# folders, as it does on NFS.
_KILL_WRITERS = r"""
import ctypes, json, os, platform, signal, struct, sys
from pathlib import Path
from scissionlite.bundle import Bundle, file_sha256
from scissionlite.manifest import Manifest, SliceFile
from scissionlite.graph.tensors import TensorInfo
from scissionlite.errors import BundleError

bundle, older, exchange = Path(sys.argv[1]), sys.argv[2] == "older", sys.argv[3] == "exchange"


def refuse_exchange():
    number, audit = {"x86_64": (316, 0xC000003E), "aarch64": (276, 0xC00000B7)}[platform.machine()]
    steps = [
        (0x20, 0, 0, 4), (0x15, 0, 5, audit),  # of this architecture,
        (0x20, 0, 0, 0), (0x15, 0, 3, number),  # renameat2
        (0x20, 0, 0, 16 + 4 * 8), (0x15, 0, 1, 2),  # with RENAME_EXCHANGE
        (0x06, 0, 0, 0x00050000 | 22),  # answers EINVAL,
        (0x06, 0, 0, 0x7FFF0000),  # and everything else goes on
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    address = ctypes.addressof(program)
    head = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), address))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, head, 0, 0):
        sys.exit(f"seccomp: {os.strerror(ctypes.get_errno())}")


def write(content):
    source = bundle.parent / "source"
    source.write_bytes(content * 1000)
    file = SliceFile("network.pt", "torchscript", file_sha256(source), len(content) * 1000)
    info = (TensorInfo("t", (1, 3)),)
    manifest = Manifest(
        kind="local", model=content.decode(), inputs=info, outputs=info, slices={"network": (file,)}
    )
    return lambda: Bundle.write(bundle, manifest, {"network.pt": source})


def found(path):
    if not path.exists():
        return None
    opened = Bundle.load(path)
    assert opened.slice_path("network").read_bytes() == opened.manifest.model.encode() * 1000
    return opened.manifest.model


def hidden():
    return sorted(p.name for p in bundle.parent.iterdir() if p.name.startswith("."))


if not exchange:
    refuse_exchange()
if older:
    write(b"old")()
moment, ended = 0, False
while not ended:
    moment += 1
    writer = write(b"new")
    child = os.fork()
    if child == 0:
        seen = 0
        def hook(event, arguments):
            global seen
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        writer()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    ended = os.WIFEXITED(status)
    model, aside = found(bundle), None
    if model is None and older:
        try:
            Bundle.load(bundle)
        except BundleError as error:
            told = Path(str(error).split("the earlier one is ")[1].removesuffix(": rename it"))
            aside = found(told)
            told.rename(bundle)
    print(json.dumps({"model": model, "aside": aside, "hidden": hidden()}))
    if model == "new" and older and not ended:
        write(b"old")()
        assert not hidden(), hidden()
"""


@pytest.mark.parametrize(("older", "exchange"), [(False, True), (True, True), (True, False)])
def test_a_writer_killed_at_any_moment(older: bool, exchange: bool, tmp_path: Path) -> None:
    words = ("older" if older else "nothing", "exchange" if exchange else "no exchange")
    done = subprocess.run(
        [sys.executable, "-c", _KILL_WRITERS, str(tmp_path / "b"), *words],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.stderr.startswith("seccomp"):
        pytest.skip(f"this machine does not take the filter: {done.stderr}")
    assert done.returncode == 0, done.stderr
    states = [json.loads(line) for line in done.stdout.splitlines()]
    models = [state["model"] for state in states]
    # Whole at every moment: first what was there before, then the new one.
    before = "old" if older else None
    assert models[0] == before
    assert models[-1] == "new"
    assert models.count("new") > 1  # killed after it was in place, too
    lost = [state for state in states if older and state["model"] is None]
    assert all(state["aside"] == "old" for state in lost)
    assert bool(lost) == (not exchange)
    # Some killed writers left files, and the writer that finished removed them.
    assert any(state["hidden"] for state in states)
    assert states[-1]["hidden"] == []


_WAIT_IN_THE_MIDDLE = r"""
import sys
from pathlib import Path
from scissionlite.atomic_folder import atomic_folder

with atomic_folder(Path(sys.argv[1])) as folder:
    (folder / "manifest.json").write_text("first")
    print("writing", flush=True)
    sys.stdin.readline()
    (folder / "slice").write_text("first")
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that stops in the middle of writing a folder, until its input says to go on."""
    process = subprocess.Popen(
        [sys.executable, "-c", _WAIT_IN_THE_MIDDLE, str(tmp_path / "b")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def write(folder: Path) -> None:
    with atomic_folder(folder) as staging:
        (staging / "manifest.json").write_text("second")


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_what_a_living_writer_writes_is_left_alone(
    writer: subprocess.Popen[str], tmp_path: Path
) -> None:
    write(tmp_path / "b")
    assert len(hidden(tmp_path)) == 1
    writer.communicate("go on\n")
    assert writer.returncode == 0
    # The last to end is there, whole.
    assert {p.name: p.read_text() for p in (tmp_path / "b").iterdir()} == {
        "manifest.json": "first",
        "slice": "first",
    }
    assert hidden(tmp_path) == []


def test_what_a_killed_writer_left_is_removed(
    writer: subprocess.Popen[str], tmp_path: Path
) -> None:
    writer.kill()
    writer.wait()
    assert not (tmp_path / "b").exists()
    assert len(hidden(tmp_path)) == 1
    (tmp_path / ".b.notes").mkdir()
    write(tmp_path / "b")
    assert hidden(tmp_path) == [".b.notes"]
