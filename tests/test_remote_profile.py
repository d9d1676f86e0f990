"""Profiles that an edge daemon makes for a client: only allowed ones, one at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zstandard
from peers import LOCAL, LONG, NOWHERE, Frames, HandmadeDevice, HandmadeEdge, Sockets, device_of
from processes import Process
from slow_models import PID_FILE

import scissionlite as sl
from scissionlite.bundle import Bundle
from scissionlite.errors import (
    EdgeExecutionError,
    EdgeUnavailableError,
    OffloadError,
    ProfileError,
)
from scissionlite.offloader import EdgeLimits, EdgeServer, Timeouts
from scissionlite.offloader.device.edge_client import EdgeClient
from scissionlite.offloader.edge.profiling import profile_command
from scissionlite.offloader.wire import control
from scissionlite.scissiontl.remote_profile import remote_profile

pytestmark = pytest.mark.usefixtures("no_threads_left")

Background = Callable[..., Future[Any]]
SLOW = "slow_models:forever"
REQUEST = control.ProfileRequest(1, SLOW, 32, None, "torchscript", 1, 1, 4)


@pytest.fixture
def pid_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file in which the profiler of the model that never finishes writes its process id."""
    file = tmp_path / "pid"
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv(PID_FILE, str(file))
    return file


def started(file: Path) -> int:
    """Wait for the profiler to be at work, and return its process id."""
    give_up = time.monotonic() + LONG
    while not file.exists():
        assert time.monotonic() < give_up, "no profiler was started"
        time.sleep(0.05)
    return int(file.read_text())


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def ask(edge: EdgeServer, model: str = SLOW, **options: Any) -> sl.Profile:
    options = {"size": 32, "threads": 1, "repetitions": 1, **options}
    return remote_profile(edge.endpoint, model, control=edge.control_endpoint, **options)


@pytest.mark.long
def test_profile_remote_writes_the_edges_profile(
    start_process: Callable[..., Process], tmp_path: Path
) -> None:
    serve = start_process(
        *("scissionlite", "serve", "--bind", LOCAL, "--json"),
        *("--profile-models", "timm:*", "--profile-models", "torchvision:squeezenet*"),
    )
    ready = serve.read_json()
    file = tmp_path / "edge.json"
    start_process(
        *("scissionlite", "profile", "torchvision:squeezenet1_1", "--size", "64"),
        *("--num-classes", "6", "--threads", "1", "--repetitions", "1", "--json"),
        *("--remote", ready["endpoint"], "--control", ready["control_endpoint"]),
        *("--out", str(file)),
    ).read_all()
    assert serve.terminate() == 0
    profile = sl.Profile.load(file)
    assert profile.model == "torchvision:squeezenet1_1"
    assert profile.inputs[0].shape == (1, 3, 64, 64)
    assert profile.outputs[0].shape == (1, 6)
    assert profile.host is not None
    assert profile.host.threads == 1


def test_only_models_that_were_allowed_are_profiled() -> None:
    for models, said in (
        (("timm:*", "torchvision:vit_*"), r"now timm:\*, torchvision:vit_\*"),
        ((), "now none"),
    ):
        with (
            EdgeServer(bind=LOCAL, profile_models=models) as edge,
            pytest.raises(OffloadError, match=rf"forbidden: .*--profile-models \({said}\)"),
        ):
            ask(edge, "torchvision:resnet18")


@pytest.mark.long
def test_a_profile_that_fails_says_why_and_the_next_may_be_asked_for() -> None:
    with EdgeServer(bind=LOCAL, profile_models=["nowhere:*"]) as edge:
        for _ in range(2):
            with pytest.raises(EdgeExecutionError, match="ModelError: nowhere:factory needs"):
                ask(edge, "nowhere:factory")


def test_one_profile_at_a_time_and_inference_goes_on(
    tiny_bundle: Bundle, frames: Frames, pid_file: Path, background: Background
) -> None:
    with (
        EdgeServer(tiny_bundle, LOCAL, profile_models=["slow_models:*"]) as edge,
        device_of(edge, tiny_bundle) as device,
    ):
        expected = device.infer(frames[0])
        first = background(ask, edge)
        pid = started(pid_file)
        with pytest.raises(OffloadError, match="busy: it is profiling for somebody else"):
            ask(edge)
        np.testing.assert_array_equal(device.infer(frames[0]), expected)
        assert not first.done()
        assert not is_gone(pid)
    with pytest.raises(EdgeUnavailableError, match="it was shut down"):
        first.result(LONG)
    assert is_gone(pid)  # with the daemon


@pytest.mark.long
def test_a_profile_ends_with_who_asked_for_it(pid_file: Path) -> None:
    with EdgeServer(bind=LOCAL, profile_models=["slow_models:*"]) as edge:
        with EdgeClient(edge.endpoint, edge.control_endpoint, Timeouts(answer=LONG)) as client:
            client.send(REQUEST)
            pid = started(pid_file)
            with pytest.raises(EdgeUnavailableError, match=r"no ProfileReply within 1\.5 s"):
                # Long enough for a Ping, which is answered.
                client.wait_for(control.ProfileReply, 1, seconds=1.5)
        give_up = time.monotonic() + LONG
        while not is_gone(pid):  # once the Goodbye is there
            assert time.monotonic() < give_up
            time.sleep(0.05)


def test_a_profile_that_takes_too_long_is_ended(pid_file: Path) -> None:
    with EdgeServer(
        bind=LOCAL,
        profile_models=["slow_models:*"],
        limits=EdgeLimits(profile_seconds=0.5),
    ) as edge:
        with pytest.raises(EdgeExecutionError, match=r"took longer than 0\.5 s"):
            ask(edge)
        with pytest.raises(EdgeExecutionError, match="took longer"):
            ask(edge)  # not busy: the first was ended


def test_a_profile_is_for_edge_clients(sockets: Sockets, tiny_bundle: Bundle) -> None:
    with EdgeServer(tiny_bundle, LOCAL, profile_models=["*"]) as edge:
        device = HandmadeDevice(sockets, tiny_bundle, edge.endpoint, edge.control_endpoint)
        device.send_control(REQUEST)
        assert device.receive()[0] == control.Failed(1, "unknown-device", "say Visit first")


def test_a_request_that_the_edge_would_reject_is_a_value_error() -> None:
    for model, options in (
        ("torchvision:resnet18\0", {}),
        ("torch vision", {}),
        ("", {}),
        ("torchvision:resnet18", {"size": 7}),
        ("torchvision:resnet18", {"repetitions": 0}),
        ("torchvision:resnet18", {"runtime": "tvm"}),
    ):
        with pytest.raises(ValueError, match="a profile cannot be requested so"):
            remote_profile(NOWHERE, model, **options)
    with pytest.raises(EdgeUnavailableError):
        remote_profile(NOWHERE, "torchvision:resnet18", timeouts=Timeouts(answer=0.1))


def test_nothing_in_a_model_name_is_an_option() -> None:
    request = msgspec.structs.replace(REQUEST, model="--out=/etc/passwd")
    command = profile_command(request, Path("here.json"))
    assert command[-2:] == ["--", "--out=/etc/passwd"]
    assert "--out=here.json" in command
    assert not any(each.startswith("--num-classes") for each in command)


JSON = b'{"format": "scissionlite-profile", "version": 2}'


@pytest.mark.parametrize(
    ("nbytes", "frames", "said"),
    [
        (len(JSON), [], "sent no profile"),
        (len(JSON), [b"junk"], "sent no profile: payload is not one zstd frame"),
        (9, [zstandard.compress(JSON)], "does not announce exactly 9 bytes"),
        (len(JSON), [zstandard.compress(JSON)], "is not a profile: .*missing required"),
        (3, [zstandard.compress(b"\x80\x04.")], "is not a profile"),
    ],
)
def test_an_answer_that_is_no_profile_is_refused(
    sockets: Sockets,
    tiny_bundle: Bundle,
    background: Background,
    nbytes: int,
    frames: list[bytes],
    said: str,
) -> None:
    edge = HandmadeEdge(sockets, tiny_bundle)
    asked = background(remote_profile, edge.endpoint, "torchvision:resnet18", control=edge.control)
    client = edge.wait_for(control.ClientHello)
    edge.send(client, control.ClientWelcome("handmade"))
    edge.wait_for(control.ProfileRequest)
    edge.send(client, control.ProfileReply(1, nbytes), *frames)
    with pytest.raises(ProfileError, match=said):
        asked.result(LONG)


def test_a_daemon_that_falls_silent_is_not_waited_for(
    sockets: Sockets, tiny_bundle: Bundle, background: Background
) -> None:
    edge = HandmadeEdge(sockets, tiny_bundle)
    asked = background(
        remote_profile,
        edge.endpoint,
        "torchvision:resnet18",
        control=edge.control,
        timeouts=Timeouts(answer=1.5),
    )
    client = edge.wait_for(control.ClientHello)
    edge.send(client, control.ClientWelcome("handmade"))
    edge.wait_for(control.Ping)  # and no Pong
    with pytest.raises(EdgeUnavailableError, match=r"it was silent for 1\.5 s"):
        asked.result(LONG)


def test_what_stays_here_cannot_go_with_remote(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scissionlite", "profile", "m", "--remote", NOWHERE]
    done = subprocess.run(
        [*command, "--images", str(tmp_path)], capture_output=True, text=True, timeout=LONG
    )
    assert done.returncode == 2
    assert "--images cannot go with --remote" in done.stderr
