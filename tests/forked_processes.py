"""Programs for test_fork.py: processes that fork after they used a device or a daemon.

Each prints one JSON line per event. ``python -W error::ResourceWarning`` is not set: what a forked
child inherits and never frees is the parent's.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np

from scissionlite.errors import ScissionLiteError
from scissionlite.offloader import Answer, Device, EdgeServer

DEADLINE = 60.0
FRAMES = np.random.default_rng(7).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)


def say(event: str, **values: Any) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


def fork(child: Callable[[], None]) -> int:
    """Run a function in a forked child, which then exits as programs do; return its pid."""
    pid = os.fork()
    if pid == 0:
        child()
        sys.exit(0)
    return pid


def status(pid: int) -> int:
    """Wait for a child's exit code; one that hangs is killed."""
    until = time.monotonic() + DEADLINE
    while time.monotonic() < until:
        done, code = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(code)
        time.sleep(0.01)
    os.kill(pid, 9)
    return -99


def error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except ScissionLiteError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def in_flight(bundle: str, endpoint: str, control: str) -> None:
    """Fork while a request is under way, and its callback waits; use and close both copies."""
    called: list[int] = []
    device = Device(bundle, endpoint, control=control, deadline=DEADLINE)
    future = device.submit(FRAMES[0])
    future.add_done_callback(lambda _: called.append(os.getpid()))

    def child() -> None:
        say("inherited", error=error_of(lambda: future.result(DEADLINE)))
        say("child", output=device.infer(FRAMES[1]).tolist())
        device.close()
        say("closed", error=error_of(lambda: device.infer(FRAMES[1])), called=len(called))

    say("exit", code=status(fork(child)))
    say("parent", output=future.result(DEADLINE).output.tolist())
    device.close()
    say("called", own=called == [os.getpid()])


def busy(bundle: str, endpoint: str, control: str) -> None:
    """Fork six children while other threads submit and wait: any lock may be held."""
    device = Device(bundle, endpoint, control=control, deadline=DEADLINE, threads=2)
    ended = threading.Event()
    counts = [0, 0]
    expected = device.infer(FRAMES[0])

    def use(number: int) -> None:
        while not ended.is_set():
            futures = [device.submit(FRAMES[0]) for _ in range(3)]
            counts[number] += sum(np.array_equal(f.result().output, expected) for f in futures)

    def child() -> None:
        assert np.array_equal(device.infer(FRAMES[0]), expected)
        futures: list[Future[Answer]] = [device.submit(FRAMES[0]) for _ in range(3)]
        assert all(np.array_equal(f.result().output, expected) for f in futures)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    codes = [status(fork(child)) for _ in range(3)]
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=child) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(DEADLINE)
        codes.append(-99 if worker.exitcode is None else worker.exitcode)
    before = list(counts)
    while not all(now > then for now, then in zip(counts, before, strict=True)):
        time.sleep(0.01)
    ended.set()
    for thread in threads:
        thread.join()
    device.close()
    say("busy", codes=codes)


def away(bundle: str, endpoint: str, control: str) -> None:
    """Fork after the edge answered, with a fallback; the child has no edge any more."""
    device = Device(bundle, endpoint, control=control, fallback="local", deadline=DEADLINE)
    say("parent", where=device.submit(FRAMES[0]).result().where)
    sys.stdin.readline()  # the test closes the edge

    def child() -> None:
        answer = device.submit(FRAMES[0], deadline=1.0).result(DEADLINE)
        say("child", where=answer.where)
        grandchild = fork(lambda: say("child", where=device.submit(FRAMES[0], 1.0).result().where))
        say("exit", code=status(grandchild))

    say("exit", code=status(fork(child)))
    # Daemons fork twice after they have made everything, and the parent ends.
    say("exit", code=status(fork(lambda: say("exit", code=status(fork(child))))))
    device.close()


def several(bundle: str, *endpoints: str) -> None:
    """Fork a device of two edges; the child uses both of them by its own connections."""
    half = len(endpoints) // 2
    device = Device(bundle, endpoints[:half], control=endpoints[half:], deadline=DEADLINE)
    device.connect()
    say("parent", edge=device.submit(FRAMES[0]).result().edge)

    def child() -> None:
        device.connect()
        say("child", edge=device.submit(FRAMES[0]).result().edge)
        sys.stdin.readline()  # the test closes the first edge
        say("child", edge=device.submit(FRAMES[0]).result().edge)

    say("exit", code=status(fork(child)))
    say("parent", edge=device.submit(FRAMES[0]).result().edge)
    device.close()


def streaming(bundle: str) -> None:
    """Fork amid a stream; the child is told, and makes one of its own."""
    device = Device(bundle, fallback="local", deadline=DEADLINE)
    stream = device.stream(itertools.cycle(FRAMES))
    next(stream)

    def child() -> None:
        say(
            "child",
            error=error_of(lambda: next(stream)),
            answers=len(list(device.stream(FRAMES[:1]))),
        )

    say("exit", code=status(fork(child)))
    say("parent", number=next(stream)[0] > 0)
    stream.close()
    device.close()


def edge(bundle: str) -> None:
    """Fork a process that serves; the child's copy must neither answer nor disturb."""
    server = EdgeServer(bundle, "tcp://127.0.0.1:*")
    server.start()
    say("ready", endpoint=server.endpoint, control=server.control_endpoint)
    sys.stdin.readline()

    def child() -> None:
        say(
            "child",
            start=error_of(server.start),
            serve=error_of(server.serve_forever),
            stats=error_of(server.stats),
        )
        server.stop()
        server.close()

    say("exit", code=status(fork(child)))
    sys.stdin.readline()
    say("served", count=server.stats().served)
    server.close()


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
