"""Fixtures that several test files share: bundles, sockets that are closed, processes that end."""

from __future__ import annotations

import gc
import importlib.util
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from hypothesis import settings
from peers import HANDMADE
from processes import Process

from scissionlite.bundle import Bundle
from scissionlite.images import Preprocessing

# Timing never decides a test; what fails is printed so that it can be run again.
settings.register_profile("scissionlite", deadline=None, print_blob=True)
settings.load_profile("scissionlite")

INPUT, CROSSING, OUTPUT = (1, 3, 32, 32), (1, 8, 15, 15), (1, 5)
PREPROCESSING = Preprocessing(size=(32, 32))
TEXTURES = Preprocessing(size=(64, 64))

# A device has no torch; there the bundles are those that the same tests made where torch is.
pytest_plugins = ["torch_fixtures" if importlib.util.find_spec("torch") else "stored_bundles"]


_LONGEST_FIRST = (
    *("test_cli", "test_end_to_end", "test_graph", "test_offloader_commands", "test_preprocessor"),
    *("test_runtimes", "test_trainer", "test_capture", "test_remote_profile", "test_profiler"),
    *("test_faults", "test_usage", "test_recovery", "test_fork", "test_ray_engine"),
)
"""The files that take longest: `make test` gives a file to one process, and none at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, so that all processes end at about the same time."""
    rank = {name: position for position, name in enumerate(_LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the shared data sets; skips the test where it is missing."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing: the shared data sets are not on this machine")
    return folder


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Find a TCP port that is free together with the next one."""

    def find() -> int:
        for _ in range(100):
            with socket.socket() as first, socket.socket() as second:
                first.bind(("127.0.0.1", 0))
                port: int = first.getsockname()[1]
                try:
                    second.bind(("127.0.0.1", port + 1))
                except (OSError, OverflowError):
                    continue
                return port
        raise AssertionError("no two neighbouring free ports")

    return find


@pytest.fixture
def sockets() -> Iterator[Callable[[int], zmq.Socket[bytes]]]:
    """Make ZeroMQ sockets that are closed, with their context, when the test ends."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    every: list[zmq.Socket[bytes]] = []

    def make(kind: int) -> zmq.Socket[bytes]:
        made = context.socket(kind)
        made.linger = 0
        made.sndtimeo = made.rcvtimeo = 30_000
        every.append(made)
        return made

    yield make
    while HANDMADE:
        HANDMADE.pop().close()
    for each in every:
        each.close()
    context.term()


@pytest.fixture
def start_process() -> Iterator[Callable[..., Process]]:
    """Start ``python -m ...`` processes that are killed, if need be, when the test ends."""
    started: list[Process] = []

    def start(*arguments: str) -> Process:
        process = Process(*arguments)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def background() -> Iterator[Callable[..., Future[Any]]]:
    """Run calls in threads while the test plays the other side."""
    with ThreadPoolExecutor(8) as executor:
        yield executor.submit


@pytest.fixture
def no_threads_left() -> Iterator[None]:
    """Fail if a test leaves a thread of the Offloader, or an unclosed socket, behind."""
    yield
    left = [
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith(("scissionlite", "link-emulator"))
    ]
    assert not left
    gc.collect()  # unclosed sockets and contexts warn here, in the test that left them


BundleFactory = Callable[..., Bundle]


@pytest.fixture(scope="session")
def tiny_bundle(make_bundle: BundleFactory) -> Bundle:
    """The tiny network, split, with the int8 Transfer Layer."""
    return make_bundle()


@pytest.fixture(scope="session")
def onnx_bundle(make_bundle: BundleFactory) -> Bundle:
    """The tiny network for ONNX Runtime: processes that use it start without torch."""
    return make_bundle(runtime="onnx")


@pytest.fixture
def frames() -> list[np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]]:
    """Some frames for the tiny network, all different."""
    generator = np.random.default_rng(7)
    return [generator.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(12)]
