"""How an edge daemon ends, and what it reads again while it runs: signals to real processes.

Time-outs here only guard against hangs; no outcome depends on how fast the machine is.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import Toy, write_bundle
from conftest import CROSSING, INPUT, OUTPUT, PREPROCESSING
from peers import LOCAL, LONG, Frames, HandmadeDevice, Sockets, device_of, payload_for
from processes import Process
from torch import nn

from scissionlite.bundle import Bundle
from scissionlite.errors import AuthorizationError
from scissionlite.keys import authorized
from scissionlite.keys.files import make_key_pair, read_public
from scissionlite.offloader import DeviceKeys, EdgeKeys, EdgeLimits, EdgeServer
from scissionlite.offloader.edge import access
from scissionlite.offloader.wire import control
from scissionlite.transfer_layer import Quantization, TransferSpec

pytestmark = pytest.mark.usefixtures("no_threads_left")


class Slow(nn.Module):
    """An end of the network that takes a while: 50 ms, or more."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(1000), requires_grad=False)
        self.classifier = nn.Linear(CROSSING[1], OUTPUT[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product = self.weight * x[0, 0, 0, 0]  # or it were computed once, before the first request
        for _ in range(3):
            product = product @ self.weight
        scores: torch.Tensor = self.classifier(x.mean((2, 3)) + product[0, 0])
        return scores


@pytest.fixture(scope="module")
def slow_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    stem = nn.Sequential(nn.Conv2d(3, CROSSING[1], 3, stride=2), nn.BatchNorm2d(8))
    return write_bundle(
        Toy("slow", stem, Slow(), INPUT, CROSSING, OUTPUT),
        tmp_path_factory.mktemp("slow"),
        transfer=TransferSpec(),
        quantization=Quantization(0.02, 0),
        preprocessing=PREPROCESSING,
        runtime="onnx",  # which starts faster
    )


def serve(start_process: Callable[..., Process], bundle: Bundle, *more: str) -> Process:
    command = ["scissionlite", "serve", str(bundle.path), "--bind", LOCAL, "--json"]
    return start_process(*command, "--threads", "1", *more)


def device_with_requests(
    bundle: Bundle, frames: Frames, sockets: Sockets, ready: dict[str, str], count: int
) -> HandmadeDevice:
    """A device that has sent requests, of which the first is answered: so all are accepted."""
    device = HandmadeDevice(sockets, bundle, ready["endpoint"], ready["control_endpoint"])
    assert isinstance(device.hello(), control.Welcome)
    tensor, payload = payload_for(bundle, frames[0])
    for number in range(count):
        device.send(*device.request(number, tensor, payload))
    result, _ = device.receive()
    assert isinstance(result, control.Result)
    assert result.request == 0
    return device


def test_serve_reloads_at_sighup_and_at_sigterm_answers_what_it_accepted(
    slow_bundle: Bundle, frames: Frames, sockets: Sockets, start_process: Callable[..., Process]
) -> None:
    edge = serve(start_process, slow_bundle)
    ready = edge.read_json()
    late = HandmadeDevice(sockets, slow_bundle, ready["endpoint"], ready["control_endpoint"])
    late.stats()  # it is connected
    edge.send_signal(signal.SIGHUP)
    device = device_with_requests(slow_bundle, frames, sockets, ready, 8)
    edge.send_signal(signal.SIGTERM)
    while isinstance(late.hello(), control.Welcome):  # until it stops
        late.send_control(control.Goodbye())
    tensor, payload = payload_for(slow_bundle, frames[0])
    device.send(*device.request(99, tensor, payload))  # not accepted any more
    assert edge.wait() == 0
    numbers = []
    while not isinstance(message := device.receive()[0], control.Goodbye):
        if isinstance(message, control.Result):
            numbers.append(message.request)
    assert numbers == list(range(1, 8))
    assert edge.read_json()["stats"]["served"] == 8


def test_serve_ends_in_time_although_not_all_is_answered(
    slow_bundle: Bundle, frames: Frames, sockets: Sockets, start_process: Callable[..., Process]
) -> None:
    edge = serve(start_process, slow_bundle, "--stop-seconds", "0", "--credit", "64")
    device = device_with_requests(slow_bundle, frames, sockets, edge.read_json(), 64)
    assert edge.terminate() == 0
    answered = 1
    while not isinstance(message := device.receive()[0], control.Goodbye):
        answered += isinstance(message, control.Result)
    assert answered < 64
    assert edge.read_json()["stats"]["served"] == answered


def test_a_reload_reads_the_list_of_keys_at_once(
    tiny_bundle: Bundle, frames: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "_REFRESH_INTERVAL", 3600.0)
    for name in ("edge", "camera"):
        make_key_pair(tmp_path / name)
    authorized.authorize(tmp_path / "list", read_public(tmp_path / "camera.pub"))
    keys = EdgeKeys(tmp_path / "edge", tmp_path / "list")
    camera = DeviceKeys(tmp_path / "camera", tmp_path / "edge.pub")
    with (
        EdgeServer(tiny_bundle, LOCAL, keys=keys) as edge,
        device_of(edge, tiny_bundle, keys=camera) as device,
    ):
        device.infer(frames[0])
        authorized.revoke(tmp_path / "list", "camera")
        device.infer(frames[0])  # nobody has looked at the list
        edge.reload()
        with contextlib.suppress(AuthorizationError):
            while True:
                device.infer(frames[0])
        with pytest.raises(AuthorizationError):
            device.infer(frames[0])
    edge.reload()  # of a server that is closed: nothing


@pytest.mark.parametrize("seconds", [-1.0, 3601.0, float("nan")])
def test_the_time_for_the_last_answers_has_a_range(seconds: float) -> None:
    with pytest.raises(ValueError, match="stop_seconds must be 0 to 3600"):
        EdgeLimits(stop_seconds=seconds)


def test_close_answers_what_was_accepted(slow_bundle: Bundle, frames: Frames) -> None:
    with EdgeServer(slow_bundle, LOCAL, threads=1) as edge, device_of(edge, slow_bundle) as device:
        futures = [device.submit(frame) for frame in frames[:4]]
        np.asarray(futures[0].result(LONG).output)
        while edge.stats().served < 1:
            time.sleep(0.01)
        edge.close()
        assert [future.result(LONG).where for future in futures] == ["edge"] * 4
