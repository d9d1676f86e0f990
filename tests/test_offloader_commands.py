"""The Offloader as a package without torch, and its commands in processes of their own.

Time-outs here only guard against hangs; no outcome depends on how fast the machine is.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from conftest import BundleFactory
from peers import (
    LOCAL,
    LONG,
    NOWHERE,
    Frames,
    HandmadeDevice,
    HandmadeEdge,
    Sockets,
    in_one_process,
)
from processes import Process, run_here

from scissionlite.bundle import Bundle
from scissionlite.errors import EdgeUnavailableError
from scissionlite.offloader import Device, Timeouts
from scissionlite.offloader.device.diagnosis import connection_trouble
from scissionlite.offloader.device.edge_client import EdgeClient
from scissionlite.offloader.wire import control

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
    onnx_bundle: Bundle,
) -> None:
    code = (
        "import sys, scissionlite as sl; "
        f"device = sl.Device(sys.argv[1], {NOWHERE!r}, deadline=0.1)\n"
        "try: device.connect()\n"
        "except sl.ScissionLiteError: print('away')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(onnx_bundle.path)],
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


@pytest.fixture(scope="module")
def onnx_bundle(make_bundle: BundleFactory) -> Bundle:
    """The tiny network for ONNX Runtime: the processes start without torch."""
    return make_bundle(runtime="onnx")


@pytest.fixture
def images(tmp_path: object, frames: Frames) -> str:
    from PIL import Image

    for index, frame in enumerate(frames[:3]):
        Image.fromarray(frame).save(f"{tmp_path}/{index}.png")
    return str(tmp_path)


def test_serve_and_run(
    onnx_bundle: Bundle,
    frames: Frames,
    images: str,
    start_process: Callable[..., Process],
) -> None:
    command = ["scissionlite", "serve", str(onnx_bundle.path), "--bind", LOCAL, "--json"]
    edge = start_process(*command, "--credit", "2")
    ready = edge.read_json()
    assert ready["event"] == "ready"
    assert [each["id"] for each in ready["bundles"]] == [onnx_bundle.id]
    connect = ["--connect", ready["endpoint"], "--control", ready["control_endpoint"]]
    done = run_command("run", onnx_bundle.path, images, *connect, "--repeat", 2, "--json")
    assert done.returncode == 0, done.stderr
    printed = msgspec.json.decode(done.stdout)
    assert [each["image"] for each in printed["answers"]] == [
        f"{images}/{i}.png" for i in (0, 0, 1, 1, 2, 2)
    ]
    for answer, frame in zip(printed["answers"][::2], frames[:3], strict=True):
        output = in_one_process(onnx_bundle, frame).reshape(-1)
        assert answer["class_index"] == int(output.argmax())
        assert answer["class_name"] == onnx_bundle.manifest.classes[output.argmax()]
        softmax = np.exp(output - output.max()) / np.exp(output - output.max()).sum()
        assert answer["confidence"] == pytest.approx(softmax.max())
        assert answer["where"] == "edge"
        assert answer["bytes_sent"] == 8 * 8 * 8
        assert sum(answer["timings"].values()) == pytest.approx(answer["latency"])
    summary = printed["summary"]
    assert (summary["answers"], summary["edge"], summary["local"]) == (6, 6, 0)
    assert summary["latency_p95"] >= summary["latency_median"] > 0
    table = run_command("run", onnx_bundle.path, f"{images}/0.png", *connect)
    assert table.returncode == 0, table.stderr
    assert "1 by the edge" in table.stdout
    assert edge.terminate() == 0
    assert edge.read_json()["stats"]["served"] == 6 + 1 + 1 + 1  # and two to warm up


def test_serve_ends_on_sigint_too(
    onnx_bundle: Bundle, start_process: Callable[..., Process]
) -> None:
    edge = start_process("scissionlite", "serve", str(onnx_bundle.path), "--bind", LOCAL, "--json")
    edge.read_json()
    assert edge.terminate(signal.SIGINT) == 0


def test_run_answers_locally(onnx_bundle: Bundle, images: str) -> None:
    done = run_command("run", onnx_bundle.path, images, "--fallback", "local", "--json")
    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout)["summary"]["local"] == 3


def test_exit_codes(tiny_bundle: Bundle, images: str, tmp_path: object) -> None:
    away = run_command("run", tiny_bundle.path, images, "--connect", NOWHERE, "--deadline", 0.2)
    assert away.returncode == 1
    assert away.stderr.startswith("error: EdgeUnavailableError: no edge daemon answers")
    assert "Traceback" not in away.stderr
    wrong = run_command("run", tiny_bundle.path, images)
    assert wrong.returncode == 2, wrong.stderr
    for arguments in (
        ("run", tiny_bundle.path, f"{images}/none.png", "--fallback", "local"),
        ("run", tiny_bundle.path, images, "--connect", "nonsense"),
        ("run", tiny_bundle.path, images, "--fallback", "remote"),
        ("serve", tiny_bundle.path, "--bind", "nonsense"),
        ("serve", tiny_bundle.path, "--runtime", "tvm"),
    ):
        result = run_here(*arguments)
        assert result.exit_code == 2, result.stderr
    for command in (
        ("serve", tiny_bundle.path, "--bind", LOCAL),
        ("run", tiny_bundle.path, images, "--fallback", "local"),
    ):
        other = run_here(*command, "--runtime", "onnx")
        assert other.exit_code == 1
        assert "slice for onnx, only for torchscript" in " ".join(other.stderr.split())
    missing = run_here("serve", f"{images}/none")
    assert missing.exit_code == 1
    assert "is not a bundle" in missing.stderr


LOADED = {"imports": "msgspec", "loads": "libtorch_cpu"}
"""A file that the process has in memory, from the moment at which it does that."""


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("command", "moment", "number"),
    [
        ("serve", "imports", signal.SIGINT),
        ("serve", "loads", signal.SIGTERM),
        ("run", "imports", signal.SIGTERM),
        ("run", "loads", signal.SIGINT),
        ("probe", "imports", signal.SIGINT),
    ],
)
def test_a_command_that_still_starts_ends_at_once_at_a_signal(
    tiny_bundle: Bundle, images: str, command: str, moment: str, number: signal.Signals
) -> None:
    arguments = {
        "serve": [tiny_bundle.path, "--bind", LOCAL],
        "run": [tiny_bundle.path, images, "--connect", NOWHERE, "--deadline", 60],
        "probe": [NOWHERE, "--timeout", 60],
    }[command]
    process = subprocess.Popen(
        [sys.executable, "-m", "scissionlite", command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    maps = Path(f"/proc/{process.pid}/maps")
    wait_for(lambda: LOADED[moment] in maps.read_text())
    process.send_signal(number)
    output, errors = process.communicate(timeout=LONG)
    assert (process.returncode, output, errors) == (128 + number, "", "")


@pytest.mark.long
def test_run_says_goodbye_at_sigterm(
    onnx_bundle: Bundle, images: str, sockets: Sockets, start_process: Callable[..., Process]
) -> None:
    edge = HandmadeEdge(sockets, onnx_bundle)
    connect = ["--connect", edge.endpoint, "--control", edge.control, "--deadline", "60"]
    process = start_process("scissionlite", "run", str(onnx_bundle.path), images, *connect)
    device_id = edge.greet()
    edge.request()
    assert process.terminate() == 128 + signal.SIGTERM
    assert edge.wait_for(control.Goodbye) == device_id


def test_the_log_of_serve_says_who_comes_and_goes(
    onnx_bundle: Bundle, frames: Frames, free_port: Callable[[], int]
) -> None:
    bundle = onnx_bundle
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [sys.executable, "-m", "scissionlite", "serve", str(bundle.path), "--bind", endpoint],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with Device(bundle, endpoint, name="camera 7", deadline=LONG) as device:
        device.infer(frames[0])
    with EdgeClient(endpoint):
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=LONG)
    assert process.returncode == 0
    loaded, ready, connected, left, client = log.splitlines()
    assert "onnx runs the edge slice" in loaded
    assert ready.startswith(f"Serving tiny-1 (split, TL 2x2 int8, bundle {bundle.id[:12]}) on")
    assert "INFO" in connected
    assert "device 'camera 7' connected" in connected
    assert "device 'camera 7' left" in left
    assert "edge client" in client


def test_limits_and_names_are_options(
    onnx_bundle: Bundle, images: str, sockets: Sockets, start_process: Callable[..., Process]
) -> None:
    edge = start_process(
        *("scissionlite", "serve", str(onnx_bundle.path), "--bind", LOCAL, "--json"),
        *("--credit", "3", "--queue", "5", "--heartbeat", "7.5", "--name", "line 4"),
    )
    ready = edge.read_json()
    device = HandmadeDevice(sockets, onnx_bundle, ready["endpoint"], ready["control_endpoint"])
    welcome = device.hello()
    assert isinstance(welcome, control.Welcome)
    assert (welcome.credit, welcome.heartbeat, welcome.name) == (3, 7.5, "line 4")
    handmade = HandmadeEdge(sockets, onnx_bundle)
    connect = ["--connect", handmade.endpoint, "--control", handmade.control, "--deadline", "60"]
    start_process(
        *("scissionlite", "run", str(onnx_bundle.path), images, *connect, "--name", "camera 7")
    )
    assert handmade.hello().name == "camera 7"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("serve", "--queue", 0), "'--queue'"),
        (("serve", "--heartbeat", 0), "'--heartbeat'"),
        (("serve", "--heartbeat", "nan"), "'--heartbeat'"),
        (("serve", "--bind", "nonsense"), "'--bind': not an endpoint"),
        (("serve", "--control", "tcp://here"), "'--control': not an endpoint"),
        (("run", "b", "i", "--connect", "tcp://edge:0"), "'--connect': not an endpoint"),
        (("run", "b", "i", "--control", "nonsense"), "'--control': not an endpoint"),
        (("run", "b", "i", "--deadline", 0), "'--deadline'"),
        (("probe", NOWHERE, "--control", "x"), "'--control': not an endpoint"),
        (("profile", "m:n", "--remote", "tcp://edge"), "'--remote': not an endpoint"),
        (("profile", "m:n", "--remote", NOWHERE, "--control", "x"), "'--control': not an endpoint"),
    ],
)
def test_wrong_usage_names_the_option(arguments: tuple[object, ...], expected: str) -> None:
    done = run_here(*arguments, COLUMNS="200")
    assert done.exit_code == 2
    assert expected in done.stderr


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        (NOWHERE, "connection refused at tcp://127.0.0.1:"),
        ("tcp://no-such-host.invalid:5555", "the name no-such-host.invalid"),
        ("ipc:///no/such/socket", "No such file or directory at ipc:///no/such/socket"),
    ],
)
def test_no_connection_says_why(tiny_bundle: Bundle, endpoint: str, expected: str) -> None:
    with Device(tiny_bundle, endpoint, deadline=LONG) as device:
        reason = ""
        while expected not in reason:
            with pytest.raises(EdgeUnavailableError) as error:
                device.connect(timeout=0.2)
            reason = str(error.value)
    assert "Check that `scissionlite serve` runs there" in reason
    with pytest.raises(EdgeUnavailableError, match=f"no answer within 0.05 s; {expected}"):
        EdgeClient(endpoint, timeouts=Timeouts(answer=0.05)).__enter__()


def test_a_tensor_port_that_refuses_is_named_while_the_control_port_answers(
    tiny_bundle: Bundle, sockets: Sockets, background: Callable[..., Future[Any]]
) -> None:
    edge = HandmadeEdge(sockets, tiny_bundle)
    with Device(tiny_bundle, NOWHERE, control=edge.control) as device:
        connecting = background(device.connect, 1.0)
        edge.greet()
        with pytest.raises(EdgeUnavailableError, match=f"connection refused at {NOWHERE}"):
            connecting.result(LONG)


def test_what_is_dropped_is_no_refusal() -> None:
    with socket.socket() as listener, ExitStack() as clients:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)  # the kernel drops attempts beyond a few that nobody accepts
        address = listener.getsockname()
        for _ in range(4):
            client = clients.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(address)
        trouble = connection_trouble(f"tcp://127.0.0.1:{address[1]}")
    assert trouble is not None
    assert "the machine is off, or a firewall is in between" in trouble
