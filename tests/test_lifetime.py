"""Devices, daemons and clients that nobody closes: what they hold is freed, with a warning.

Time-outs here only guard against hangs; no outcome depends on how fast the machine is.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import OUTPUT
from peers import LOCAL, LONG, NOWHERE, Frames, HandmadeEdge, Sockets, device_of, in_one_process

from scissionlite.bundle import Bundle
from scissionlite.errors import EdgeUnavailableError
from scissionlite.offloader import Device, EdgeServer
from scissionlite.offloader.device.edge_client import EdgeClient
from scissionlite.offloader.wire import control

pytestmark = pytest.mark.usefixtures("no_threads_left", "no_helpers_of_torch")


@pytest.fixture
def no_helpers_of_torch() -> Iterator[None]:
    """Let torch compute in the calling thread alone.

    OpenMP starts helpers for each thread that computes, and they stay as long as that thread does.
    Where OMP_NUM_THREADS is not 1, a test's own thread that calls a device would keep one more.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def held() -> tuple[int, int]:
    """Count the descriptors and the threads (ZeroMQ's and runtimes' too) of this process."""
    return tuple(len(list(Path(f"/proc/self/{kind}").iterdir())) for kind in ("fd", "task"))  # type: ignore[return-value]  # two


def drop(owner: dict[str, Any]) -> list[str]:
    """Drop what only ``owner`` holds; return the warnings of the garbage collector."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        owner.clear()
        gc.collect()
    assert {each.category for each in caught} <= {ResourceWarning}
    return [str(each.message) for each in caught]


def wait_until_held(before: tuple[int, int]) -> None:
    """Wait until no more is held than before; the threads end by themselves."""
    until = time.monotonic() + LONG
    while (now := held())[0] > before[0] or now[1] > before[1]:
        assert time.monotonic() < until, f"{now} held, {before} before"
        time.sleep(0.01)


@pytest.fixture
def edge(tiny_bundle: Bundle) -> Iterator[EdgeServer]:
    with EdgeServer(tiny_bundle, LOCAL) as server:
        with device_of(server, tiny_bundle, fallback="local") as device:
            device.connect(LONG)  # whatever is held for good is held from here on
        yield server


def test_thirty_dropped_devices_leave_no_descriptor_and_no_thread(
    tiny_bundle: Bundle, frames: Frames, edge: EdgeServer
) -> None:
    before = held()
    devices: dict[str, Any] = {}
    for number in range(30):
        devices[str(number)] = device_of(edge, tiny_bundle, fallback="local")
        future = devices[str(number)].submit(frames[number % 12])
        future.add_done_callback(lambda _: None)
        assert future.result(LONG).where == "edge"
    assert held()[1] >= before[1] + 90
    del future
    messages = drop(devices)
    assert len(messages) == 30
    for message in messages:
        assert message.startswith(f"a Device for {edge.endpoint} was not closed: use `with sl.D")
    wait_until_held(before)
    while edge.stats().devices:  # each said Goodbye
        time.sleep(0.01)


def test_a_dropped_device_still_answers_what_it_was_asked(
    tiny_bundle: Bundle, sockets: Sockets, frames: Frames, background: Callable[..., Future[Any]]
) -> None:
    handmade = HandmadeEdge(sockets, tiny_bundle)
    before = held()
    owner: dict[str, Any] = {"device": device_of(handmade, tiny_bundle)}
    submitting = background(owner["device"].submit, frames[0])
    device_id = handmade.greet()
    request = handmade.request()
    future = submitting.result(LONG)
    del submitting
    assert drop(owner) == []  # it waits for the answer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where the answer arrives
        handmade.answer(request, np.zeros(OUTPUT, np.float32))
        assert future.result(LONG).where == "edge"
        assert handmade.wait_for(control.Goodbye) == device_id
    wait_until_held((before[0] + 2, before[1] + 1))  # the handmade edge's connections, a helper


def test_a_device_that_holds_nothing_is_dropped_without_a_warning(
    tiny_bundle: Bundle, frames: Frames
) -> None:
    before = held()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for connect in (None, NOWHERE):  # the second is never used
            device = Device(tiny_bundle, connect, fallback="local")
            if connect is None:
                assert device.submit(frames[0]).result(LONG).where == "local"
            assert held() == before
        closed = Device(tiny_bundle, NOWHERE, deadline=0.1)
        with pytest.raises(EdgeUnavailableError):
            closed.infer(frames[0])
        closed.close()
        del device, closed
        gc.collect()
    wait_until_held(before)


def test_a_dropped_daemon_stops_and_says_goodbye(
    tiny_bundle: Bundle, frames: Frames, edge: EdgeServer
) -> None:
    del edge
    before = held()
    owner: dict[str, Any] = {"server": EdgeServer(tiny_bundle, LOCAL)}
    owner["server"].start()
    with device_of(owner["server"], tiny_bundle, fallback="local") as device:
        expected = in_one_process(tiny_bundle, frames[0])
        np.testing.assert_array_equal(device.submit(frames[0]).result(LONG).output, expected)
        (message,) = drop(owner)
        assert "an EdgeServer on tcp://127.0.0.1:" in message
        assert "call edge.close()" in message
        while device.submit(frames[0]).result(LONG).where == "edge":
            pass
    wait_until_held(before)


def test_a_dropped_edge_client_leaves_nothing(edge: EdgeServer) -> None:
    before = held()
    for _ in range(3):
        owner = {"client": EdgeClient(edge.endpoint, edge.control_endpoint)}
        owner["client"].__enter__()
        (message,) = drop(owner)
        assert f"an EdgeClient of {edge.endpoint} was not closed" in message
    wait_until_held(before)


@pytest.mark.parametrize("kept", ["device.infer(x)", "device.submit(x).add_done_callback(block)"])
def test_a_process_ends_without_closing_anything(
    tiny_bundle: Bundle, edge: EdgeServer, kept: str
) -> None:
    code = (
        "import sys, threading, numpy, scissionlite as sl\n"
        "device = sl.Device(sys.argv[1], sys.argv[2], control=sys.argv[3], fallback='local')\n"
        "idle = sl.Device(sys.argv[1], sys.argv[2], control=sys.argv[3])\n"
        "server = sl.EdgeServer(sys.argv[1], 'tcp://127.0.0.1:*'); server.start()\n"
        "x = numpy.zeros((32, 32, 3), numpy.uint8)\n"
        "block = lambda _: (print('blocks', flush=True), threading.Event().wait())\n"
        f"idle.connect(); {kept}; idle.submit(x); device.infer(x); print('done')"
    )
    arguments = [str(tiny_bundle.path), edge.endpoint, edge.control_endpoint]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], timeout=LONG, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "done" in done.stdout
