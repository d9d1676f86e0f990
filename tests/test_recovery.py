"""Every failure of the edge, or on the way to it, ends in an answer or a clear error.

Time-outs here only guard against hangs; no outcome depends on how fast the machine is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import msgspec
import numpy as np
import pytest
from conftest import OUTPUT, BundleFactory
from peers import (
    LOCAL,
    LONG,
    NOWHERE,
    Frames,
    HandmadeEdge,
    Sockets,
    device_of,
    in_one_process,
)
from processes import Process

from scissionlite.bundle import Bundle
from scissionlite.demo.link_emulator import LinkEmulator
from scissionlite.errors import (
    BundleMismatchError,
    DeadlineExceededError,
    EdgeExecutionError,
    EdgeUnavailableError,
    OffloadError,
)
from scissionlite.offloader import Device, EdgeServer
from scissionlite.offloader.device.side import LocalSide
from scissionlite.offloader.stopwatch import Stopwatch
from scissionlite.offloader.wire import control
from scissionlite.transfer_layer import TransferSpec

pytestmark = pytest.mark.usefixtures("no_threads_left")


def test_an_edge_that_is_away_is_an_error_that_says_what_to_check(
    tiny_bundle: Bundle, frames: Frames
) -> None:
    with Device(tiny_bundle, NOWHERE, deadline=0.2) as device:
        with pytest.raises(EdgeUnavailableError, match=r"127\.0\.0\.1:9.*scissionlite serve"):
            device.infer(frames[0])
        with pytest.raises(EdgeUnavailableError):
            device.connect()


def test_one_open_port_of_two_is_not_enough(
    tiny_bundle: Bundle, sockets: Sockets, background: Callable[..., Future[Any]]
) -> None:
    edge = HandmadeEdge(sockets, tiny_bundle)
    with Device(tiny_bundle, NOWHERE, control=edge.control, deadline=1.0) as device:
        connecting = background(device.connect)
        edge.greet()
        with pytest.raises(EdgeUnavailableError):
            connecting.result(LONG)


def test_the_fallback_answers_while_the_edge_is_away_and_the_edge_when_it_is_back(
    tiny_bundle: Bundle, frames: Frames, free_port: Callable[[], int]
) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    (local,) = LocalSide(tiny_bundle).answer((frames[0],), Stopwatch())
    with Device(tiny_bundle, endpoint, fallback="local", deadline=0.5) as device:
        for _ in range(3):
            answer = device.submit(frames[0]).result(LONG)
            assert answer.where == "local"
            np.testing.assert_array_equal(answer.output, local)
        with EdgeServer(tiny_bundle, endpoint):
            device.connect(timeout=LONG)
            answer = device.submit(frames[0], deadline=LONG).result(LONG)
            assert answer.where == "edge"
            np.testing.assert_array_equal(answer.output, in_one_process(tiny_bundle, frames[0]))
        # It said Goodbye; from now on, or very soon, answers are local again.
        while device.submit(frames[0]).result(LONG).where == "edge":
            pass


def test_another_bundle_is_refused_until_the_edge_serves_the_same(
    make_bundle: BundleFactory, frames: Frames, free_port: Callable[[], int]
) -> None:
    bundle, other = make_bundle(seed=2), make_bundle(seed=3)
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with (
        Device(bundle, endpoint, deadline=LONG) as device,
        Device(bundle, endpoint, fallback="local", deadline=LONG) as careful,
    ):
        with EdgeServer(other, endpoint):
            with pytest.raises(BundleMismatchError, match=r"refuses: it serves bundle .*tiny-3"):
                device.infer(frames[0])
            with pytest.raises(BundleMismatchError):
                careful.connect()
            assert careful.submit(frames[0]).result(LONG).where == "local"
        with EdgeServer(bundle, endpoint):
            while True:
                try:
                    device.infer(frames[0])
                    break
                except BundleMismatchError:
                    threading.Event().wait(0.05)


def test_an_edge_killed_and_restarted_still_answers_everything(
    tiny_bundle: Bundle,
    frames: Frames,
    free_port: Callable[[], int],
    start_process: Callable[..., Process],
) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    command = ["scissionlite", "serve", str(tiny_bundle.path), "--bind", endpoint, "--json"]
    expected = [in_one_process(tiny_bundle, frame) for frame in frames]
    first = start_process(*command)
    assert first.read_json()["endpoint"] == endpoint
    with Device(tiny_bundle, endpoint, deadline=LONG) as device:
        np.testing.assert_array_equal(device.infer(frames[0]), expected[0])
        futures = [device.submit(frame) for frame in frames[:6]]
        first.kill()
        second = start_process(*command)
        futures += [device.submit(frame) for frame in frames[6:]]
        for future, output in zip(futures, expected, strict=True):
            np.testing.assert_array_equal(future.result(LONG).output, output)
        assert second.read_json()["event"] == "ready"
    assert second.terminate() == 0
    stats = second.read_json()["stats"]
    assert stats["served"] >= 6
    assert stats["rejected"] == {}


def test_an_edge_that_never_answers_ends_in_the_deadline(
    tiny_bundle: Bundle, frames: Frames, sockets: Sockets, background: Callable[..., Future[Any]]
) -> None:
    edge = HandmadeEdge(sockets, tiny_bundle)
    with device_of(edge, tiny_bundle, deadline=1.0) as device:
        submitting = background(device.submit, frames[0])
        edge.greet()
        edge.request()
        with pytest.raises(DeadlineExceededError, match="within the deadline"):
            submitting.result(LONG).result(LONG)


@pytest.mark.long
@pytest.mark.parametrize("restored", [True, False])
@pytest.mark.parametrize("fallback", [None, "local"])
def test_a_link_cut_in_the_middle_of_a_request(
    make_bundle: BundleFactory, frames: Frames, restored: bool, fallback: str | None
) -> None:
    bundle = make_bundle(transfer=TransferSpec.float32_split())  # 7200 bytes: 1.15 s at 50 kbit/s
    with EdgeServer(bundle, LOCAL) as edge:
        forwards = [
            (0, "127.0.0.1", int(endpoint.rsplit(":", 1)[1]))
            for endpoint in (edge.endpoint, edge.control_endpoint)
        ]
        with LinkEmulator(forwards, rtt=0.001, bandwidth=50e3) as link:
            tensors, ctrl = (f"tcp://127.0.0.1:{port}" for port in link.ports)
            options: dict[str, Any] = {"fallback": fallback, "deadline": LONG if restored else 3.0}
            with Device(bundle, tensors, control=ctrl, **options) as device:
                device.connect(LONG)
                future = device.submit(frames[0])
                link.cut()
                if restored:
                    link.restore()
                if fallback is not None:
                    answer = future.result(LONG)
                    (local,) = LocalSide(bundle).answer((frames[0],), Stopwatch())
                    np.testing.assert_array_equal(answer.output, local)
                    assert answer.where == "local"
                elif restored:
                    expected = in_one_process(bundle, frames[0])
                    np.testing.assert_array_equal(future.result(LONG).output, expected)
                else:
                    with pytest.raises(DeadlineExceededError):
                        future.result(LONG)


def test_a_silent_edge_is_noticed_and_the_request_sent_again(
    tiny_bundle: Bundle, frames: Frames, sockets: Sockets, background: Callable[..., Future[Any]]
) -> None:
    edge = HandmadeEdge(sockets, tiny_bundle)
    with device_of(edge, tiny_bundle) as device:
        inferring = background(device.infer, frames[0])
        first = edge.greet(heartbeat=0.05)  # and then no Pong
        lost = edge.request()
        assert edge.greet() != first  # so nobody can have taken the new identity
        again = edge.request()
        assert again.request_id == lost.request_id
        assert again.deadline_ms < lost.deadline_ms
        output = np.arange(5, dtype=np.float32).reshape(OUTPUT)
        edge.answer(again, output)
        np.testing.assert_array_equal(inferring.result(LONG), output)


@pytest.mark.parametrize("code", ["unknown-device", "goodbye"])
def test_a_device_that_the_edge_does_not_know_says_hello_again(
    tiny_bundle: Bundle,
    frames: Frames,
    sockets: Sockets,
    background: Callable[..., Future[Any]],
    code: str,
) -> None:
    edge = HandmadeEdge(sockets, tiny_bundle)
    with device_of(edge, tiny_bundle) as device:
        inferring = background(device.infer, frames[0])
        device_id = edge.greet()
        request = edge.request()
        edge.send(
            device_id,
            control.Goodbye()
            if code == "goodbye"
            else control.Failed(request.request_id, "unknown-device", "who?"),
        )
        edge.greet()
        edge.answer(edge.request(), np.zeros(OUTPUT, np.float32))
        inferring.result(LONG)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("malformed", EdgeExecutionError),
        ("execution", EdgeExecutionError),
        ("expired", DeadlineExceededError),
        ("bundle-mismatch", BundleMismatchError),
    ],
)
@pytest.mark.parametrize("fallback", [None, "local"])
def test_a_failure_at_the_edge_is_an_error_or_a_local_answer(
    tiny_bundle: Bundle,
    frames: Frames,
    sockets: Sockets,
    background: Callable[..., Future[Any]],
    code: control.FailureCode,
    error: type[OffloadError],
    fallback: str | None,
) -> None:
    edge = HandmadeEdge(sockets, tiny_bundle)
    with device_of(edge, tiny_bundle, fallback=fallback) as device:
        submitting = background(device.submit, frames[0])
        device_id = edge.greet()
        edge.send(device_id, control.Failed(edge.request().request_id, code, "the reason"))
        future = submitting.result(LONG)
        if fallback is None:
            with pytest.raises(error, match="the reason"):
                future.result(LONG)
        else:
            assert future.result(LONG).where == "local"


def test_a_broken_answer_is_an_error_and_noise_is_ignored(
    tiny_bundle: Bundle, frames: Frames, sockets: Sockets, background: Callable[..., Future[Any]]
) -> None:
    edge = HandmadeEdge(sockets, tiny_bundle)
    with device_of(edge, tiny_bundle) as device:
        inferring = background(device.infer, frames[0])
        device_id = edge.greet()
        request = edge.request()
        for noise in (b"", b"\xc1", b"\x80" * 100, bytes(control.MAX_CONTROL_BYTES + 1)):
            edge.send_raw(device_id, noise)
        edge.send_raw(device_id, control.encode(control.Pong(0)), b"more")
        output = np.zeros(OUTPUT, np.float32)
        result = control.Result(request.request_id, 0.0, 0.0, 0.0)
        another = control.Result(request.request_id + 99, 0.0, 0.0, 0.0)
        edge.send(device_id, another, *edge.result_frames(request, output))  # nobody waits for it
        header, payload = edge.result_frames(request, output)
        edge.send(device_id, result, header, bytes(payload)[:-1] + b"\x01")
        with pytest.raises(EdgeExecutionError, match=r"answer is broken: .*digest"):
            inferring.result(LONG)
        inferring = background(device.infer, frames[0])
        request = edge.request()
        other = msgspec.structs.replace(result, request=request.request_id)
        edge.send(device_id, other, header, payload)  # an answer to the request before
        with pytest.raises(EdgeExecutionError, match="answer is broken"):
            inferring.result(LONG)


def test_a_second_answer_to_a_request_changes_nothing(
    tiny_bundle: Bundle, frames: Frames, sockets: Sockets, background: Callable[..., Future[Any]]
) -> None:
    """A request that was sent again may run twice; it is answered once."""
    edge = HandmadeEdge(sockets, tiny_bundle)
    called: list[Future[Any]] = []
    with device_of(edge, tiny_bundle) as device:
        submitting = background(device.submit, frames[0])
        edge.greet(credit=1)
        request = edge.request()
        first = submitting.result(LONG)
        first.add_done_callback(called.append)
        for value in (1, 2):
            edge.answer(request, np.full(OUTPUT, value, np.float32))
        assert first.result(LONG).output[0, 0] == 1
        others = [background(device.submit, frame) for frame in frames[1:3]]
        request = edge.request()
        assert edge.next_request(seconds=0.3) is None  # the second answer gave no credit back
        edge.answer(request, np.full(OUTPUT, 3, np.float32))
        edge.answer(edge.request(), np.full(OUTPUT, 3, np.float32))
        assert [each.result(LONG).result(LONG).output[0, 0] for each in others] == [3, 3]
        assert first.result(LONG).output[0, 0] == 1
    assert called == [first]


def test_without_credit_submit_waits_until_the_deadline(
    tiny_bundle: Bundle, frames: Frames, sockets: Sockets, background: Callable[..., Future[Any]]
) -> None:
    edge = HandmadeEdge(sockets, tiny_bundle)
    with device_of(edge, tiny_bundle) as device:
        connecting = background(device.connect)
        edge.greet(credit=2)
        connecting.result(LONG)
        futures = [device.submit(frame) for frame in frames[:2]]
        with pytest.raises(DeadlineExceededError, match="all 2 requests"):
            device.submit(frames[2], deadline=0.1)
        third = background(device.submit, frames[2])
        edge.answer(edge.request(), np.zeros(OUTPUT, np.float32))
        futures[0].result(LONG)
        third.result(LONG)
        assert not futures[1].done()


def test_closing_fails_what_is_unanswered(
    tiny_bundle: Bundle, frames: Frames, sockets: Sockets, background: Callable[..., Future[Any]]
) -> None:
    edge = HandmadeEdge(sockets, tiny_bundle)
    for fallback in (None, "local"):
        device = device_of(edge, tiny_bundle, fallback=fallback)
        connecting = background(device.connect)
        device_id = edge.greet(credit=1)
        connecting.result(LONG)
        future = device.submit(frames[0])
        edge.request()
        waiting = background(device.submit, frames[1])
        device.close()
        with pytest.raises(OffloadError, match="was closed"):
            future.result(LONG)
        with pytest.raises(OffloadError, match="was closed"):
            waiting.result(LONG)
        with pytest.raises(OffloadError, match="was closed"):
            device.infer(frames[0])
        assert edge.wait_for(control.Goodbye) == device_id
        device.close()
