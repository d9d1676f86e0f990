"""The Offloader as a package without torch, and its commands in processes of their own.

Time-outs here only guard against hangs; no outcome depends on how fast the machine is.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from peers import (
    LOCAL,
    LONG,
    NOWHERE,
    Frames,
    in_one_process,
)
from processes import Process

from scissionlite.bundle import Bundle

pytestmark = pytest.mark.usefixtures("no_threads_left")


def test_nothing_here_imports_torch() -> None:
    code = (
        "import sys, scissionlite.offloader, scissionlite.demo.link_emulator, "
        "scissionlite.cli.run, scissionlite.cli.serve; "
        "sys.exit(any(name.split('.')[0] == 'torch' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=LONG).returncode == 0


def test_a_device_imports_nothing_that_only_others_need() -> None:
    code = (
        "import sys, scissionlite; scissionlite.Device; "
        "import scissionlite.offloader.device.connection; print(*sorted("
        "{'asyncio', 'dataclasses', 'PIL', 'scissionlite.offloader.edge'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=LONG, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "\n")


def test_a_device_that_is_never_closed_does_not_keep_python_from_exiting(
    tiny_bundle: Bundle,
) -> None:
    code = (
        "import sys, scissionlite as sl; "
        f"device = sl.Device(sys.argv[1], {NOWHERE!r}, deadline=0.1)\n"
        "try: device.connect()\n"
        "except sl.ScissionLiteError: print('away')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_bundle.path)],
        timeout=LONG,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "away\n")


def run_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scissionlite", *map(str, arguments)],
        timeout=LONG,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def images(tmp_path: object, frames: Frames) -> str:
    from PIL import Image

    for index, frame in enumerate(frames[:3]):
        Image.fromarray(frame).save(f"{tmp_path}/{index}.png")
    return str(tmp_path)


def test_serve_and_run(
    tiny_bundle: Bundle,
    frames: Frames,
    images: str,
    start_process: Callable[..., Process],
) -> None:
    command = ["scissionlite", "serve", str(tiny_bundle.path), "--bind", LOCAL, "--json"]
    edge = start_process(*command, "--credit", "2")
    ready = edge.read_json()
    assert (ready["event"], ready["bundle"]) == ("ready", tiny_bundle.id)
    connect = ["--connect", ready["endpoint"], "--control", ready["control_endpoint"]]
    done = run_command("run", tiny_bundle.path, images, *connect, "--repeat", 2, "--json")
    assert done.returncode == 0, done.stderr
    printed = msgspec.json.decode(done.stdout)
    assert [each["image"] for each in printed["answers"]] == [
        f"{images}/{i}.png" for i in (0, 0, 1, 1, 2, 2)
    ]
    for answer, frame in zip(printed["answers"][::2], frames[:3], strict=True):
        output = in_one_process(tiny_bundle, frame).reshape(-1)
        assert answer["class_index"] == int(output.argmax())
        assert answer["class_name"] == tiny_bundle.manifest.classes[output.argmax()]
        softmax = np.exp(output - output.max()) / np.exp(output - output.max()).sum()
        assert answer["confidence"] == pytest.approx(softmax.max())
        assert answer["where"] == "edge"
        assert answer["bytes_sent"] == 8 * 8 * 8
        assert sum(answer["timings"].values()) == pytest.approx(answer["latency"])
    summary = printed["summary"]
    assert (summary["answers"], summary["edge"], summary["local"]) == (6, 6, 0)
    assert summary["latency_p95"] >= summary["latency_median"] > 0
    table = run_command("run", tiny_bundle.path, f"{images}/0.png", *connect)
    assert table.returncode == 0, table.stderr
    assert "1 by the edge" in table.stdout
    assert edge.terminate() == 0
    assert edge.read_json()["stats"]["served"] == 6 + 1 + 1 + 1  # and two to warm up


def test_serve_ends_on_sigint_too(
    tiny_bundle: Bundle, start_process: Callable[..., Process]
) -> None:
    edge = start_process("scissionlite", "serve", str(tiny_bundle.path), "--bind", LOCAL, "--json")
    edge.read_json()
    assert edge.terminate(signal.SIGINT) == 0


def test_run_answers_locally(tiny_bundle: Bundle, images: str) -> None:
    done = run_command("run", tiny_bundle.path, images, "--fallback", "local", "--json")
    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout)["summary"]["local"] == 3


def test_exit_codes(tiny_bundle: Bundle, images: str, tmp_path: object) -> None:
    away = run_command("run", tiny_bundle.path, images, "--connect", NOWHERE, "--deadline", 0.2)
    assert away.returncode == 1
    assert away.stderr.startswith("error: EdgeUnavailableError: no edge daemon answers")
    assert "Traceback" not in away.stderr
    for arguments in (
        ("run", tiny_bundle.path, images),
        ("run", tiny_bundle.path, f"{images}/none.png", "--fallback", "local"),
        ("run", tiny_bundle.path, images, "--connect", "nonsense"),
        ("run", tiny_bundle.path, images, "--fallback", "remote"),
        ("serve", tiny_bundle.path, "--bind", "nonsense"),
        ("serve", tiny_bundle.path, "--runtime", "tvm"),
    ):
        wrong = run_command(*arguments)
        assert wrong.returncode == 2, wrong.stderr
    for command in (
        ("serve", tiny_bundle.path, "--bind", LOCAL),
        ("run", tiny_bundle.path, images, "--fallback", "local"),
    ):
        other = run_command(*command, "--runtime", "onnx")
        assert other.returncode == 1
        assert "slice for onnx, only for torchscript" in " ".join(other.stderr.split())
    missing = run_command("serve", f"{images}/none")
    assert missing.returncode == 1
    assert "is not a bundle" in missing.stderr
