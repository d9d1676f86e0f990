"""Device and edge daemon over real sockets: right answers, and no hang whatever breaks.

Time-outs here only guard against hangs; no outcome depends on how fast the machine is.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import zmq
from conftest import INPUT, OUTPUT, BundleFactory
from peers import HandmadeDevice, HandmadeEdge, Sockets
from processes import Process

from scissionlite.bundle import Bundle, TensorInfo
from scissionlite.errors import (
    BundleMismatchError,
    DeadlineExceededError,
    EdgeExecutionError,
    EdgeUnavailableError,
    OffloadError,
)
from scissionlite.offloader import Device, EdgeServer, control, wire
from scissionlite.offloader.inference import (
    DeviceSide,
    EdgeSide,
    LocalSide,
    Stopwatch,
    request_tensor,
)
from scissionlite.offloader.link_emulator import LinkEmulator
from scissionlite.offloader.schedule import Job, Schedule
from scissionlite.transfer_layer import TransferSpec

pytestmark = pytest.mark.usefixtures("no_threads_left")

Frames = list[npt.NDArray[np.uint8]]
LOCAL = "tcp://127.0.0.1:*"
NOWHERE = "tcp://127.0.0.1:9"  # the discard port: nobody listens there
LONG = 60.0  # seconds: never waited for unless something hangs


@pytest.fixture
def background() -> Iterator[Callable[..., Future[Any]]]:
    """Run calls in threads while the test plays the other side."""
    with ThreadPoolExecutor(8) as executor:
        yield executor.submit


def in_one_process(bundle: Bundle, x: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """What device and edge must answer: the same slices and codec, without a wire."""
    _, payload = DeviceSide(bundle)(x, Stopwatch())
    return EdgeSide(bundle)(memoryview(payload), Stopwatch())


def device_of(edge: EdgeServer | HandmadeEdge, bundle: Bundle, **options: Any) -> Device:
    endpoint = edge.control_endpoint if isinstance(edge, EdgeServer) else edge.control
    options = {"deadline": LONG, **options}
    return Device(bundle, edge.endpoint, control=endpoint, **options)


def payload_for(bundle: Bundle, x: npt.NDArray[np.uint8]) -> tuple[wire.TensorHeader, bytes]:
    tensor, payload = DeviceSide(bundle)(x, Stopwatch())
    return tensor, bytes(payload)


@pytest.mark.parametrize(
    ("kind", "transfer"),
    [
        ("split", TransferSpec()),
        ("split", TransferSpec.paper()),
        ("split", TransferSpec.float32_split()),
        ("image", None),
    ],
    ids=["int8", "paper", "float32", "image"],
)
def test_answers_are_those_of_one_process_bit_for_bit(
    make_bundle: BundleFactory, frames: Frames, kind: str, transfer: TransferSpec | None
) -> None:
    bundle = make_bundle(kind, transfer=transfer)
    with EdgeServer(bundle, LOCAL) as edge, device_of(edge, bundle) as device:
        for frame in frames:
            answer = device.submit(frame).result(LONG)
            np.testing.assert_array_equal(answer.output, in_one_process(bundle, frame))
            assert answer.where == "edge"
            assert answer.bytes_sent == len(payload_for(bundle, frame)[1])
            assert answer.output.flags.owndata or answer.output.base is not None
            assert answer.output.flags.writeable
        assert edge.stats().served == len(frames)


def test_a_float32_array_and_its_frame_have_the_same_answer(
    tiny_bundle: Bundle, frames: Frames
) -> None:
    assert tiny_bundle.manifest.preprocessing is not None
    tensor = tiny_bundle.manifest.preprocessing.tensor(frames[0])
    read_only = tensor.copy()
    read_only.flags.writeable = False
    strided = np.ascontiguousarray(tensor.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    with EdgeServer(tiny_bundle, LOCAL) as edge, device_of(edge, tiny_bundle) as device:
        expected = device.infer(frames[0])
        for x in (tensor, read_only, strided):
            np.testing.assert_array_equal(device.infer(x), expected)


def test_timings_add_up_to_the_latency(tiny_bundle: Bundle, frames: Frames) -> None:
    with EdgeServer(tiny_bundle, LOCAL) as edge, device_of(edge, tiny_bundle) as device:
        answer = device.submit(frames[0]).result(LONG)
    assert set(answer.timings) == {
        *("wait", "preprocess", "device_slice", "encode", "transfer"),
        *("edge_queue", "edge_decode", "edge_run"),
    }
    assert min(answer.timings.values()) >= 0
    assert sum(answer.timings.values()) == pytest.approx(answer.latency)


@pytest.mark.parametrize(
    "x",
    [
        np.zeros(INPUT, np.float64),
        np.zeros(INPUT[1:], np.float32),
        np.zeros((3, 32, 32), np.uint8),
        [[0.0]],
        None,
    ],
)
@pytest.mark.parametrize("kind", ["split", "image", "local"])
def test_what_is_no_input_is_a_value_error(
    make_bundle: BundleFactory, kind: str, x: object
) -> None:
    with Device(make_bundle(kind), NOWHERE) as device:
        with pytest.raises(ValueError, match="takes a NumPy array"):
            device.infer(x)  # type: ignore[arg-type]  # on purpose
        if kind == "image":
            with pytest.raises(ValueError, match="takes a NumPy array, uint8 of shape"):
                device.infer(np.zeros(INPUT, np.float32))


@pytest.mark.parametrize(
    "options",
    [
        {"connect": "edge:5555"},
        {"connect": "tcp://edge:*", "control": "tcp://edge:1"},
        {"connect": NOWHERE, "control": "nonsense"},
        {"connect": None},
        {"connect": NOWHERE, "deadline": 0},
        {"connect": NOWHERE, "deadline": float("nan")},
        {"connect": NOWHERE, "slowdown": 0.5},
        {"connect": NOWHERE, "fallback": "remote"},
    ],
)
def test_arguments_of_a_device_are_checked(tiny_bundle: Bundle, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"endpoint|needs connect|deadline|slowdown|fallback"):
        Device(tiny_bundle, **options)


@pytest.mark.parametrize(
    "options", [{"credit": 0}, {"credit": 2000}, {"queue": 0}, {"heartbeat": 0.0}, {"bind": "a:1"}]
)
def test_arguments_of_an_edge_are_checked(tiny_bundle: Bundle, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"credit must be|not an endpoint"):
        EdgeServer(tiny_bundle, **options)


def test_a_missing_fallback_is_found_at_once(make_bundle: BundleFactory) -> None:
    bundle = make_bundle()
    slices = {role: file for role, file in bundle.manifest.slices.items() if role != "network"}
    without = Bundle(
        bundle.path, msgspec.structs.replace(bundle.manifest, slices=slices), bundle.id
    )
    with pytest.raises(ValueError, match="has no network slice"):
        Device(without, NOWHERE, fallback="local")


def test_a_local_bundle_is_answered_here_and_refused_by_the_edge(
    make_bundle: BundleFactory, frames: Frames
) -> None:
    bundle = make_bundle("local")
    with Device(bundle) as device:
        answer = device.submit(frames[0]).result(LONG)
        device.connect()  # nothing to connect to, and that is all right
    assert answer.where == "local"
    assert answer.bytes_sent == 0
    assert set(answer.timings) == {"preprocess", "local_run", "wait"}
    np.testing.assert_array_equal(answer.output, LocalSide(bundle)(frames[0], Stopwatch()))
    with pytest.raises(OffloadError, match="sends nothing to an edge"):
        EdgeServer(bundle)


def test_a_slower_device_is_emulated(tiny_bundle: Bundle, frames: Frames) -> None:
    watch = Stopwatch(slowdown=50)
    with watch.stage("run"):
        threading.Event().wait(0.01)
    assert watch.seconds["run"] >= 0.5
    with Device(tiny_bundle, fallback="local", slowdown=3) as device:
        assert device.submit(frames[0]).result(LONG).where == "local"


def test_several_devices_at_once_get_their_own_answers(
    tiny_bundle: Bundle, frames: Frames, background: Callable[..., Future[Any]]
) -> None:
    expected = [in_one_process(tiny_bundle, frame) for frame in frames]

    def use(device: Device, offset: int) -> None:
        order = [(offset + i) % len(frames) for i in range(3 * len(frames))]
        futures = [(i, device.submit(frames[i])) for i in order]
        for i, future in futures:
            assert not future.cancel()
            np.testing.assert_array_equal(future.result(LONG).output, expected[i])

    with EdgeServer(tiny_bundle, LOCAL, credit=4) as edge:
        devices = [device_of(edge, tiny_bundle, name=f"camera {i}") for i in range(4)]
        # Two threads a device, all devices at once.
        done = [background(use, device, i) for i, device in enumerate(2 * devices)]
        for each in done:
            each.result(LONG)
        stats = edge.stats()
        for device in devices:
            device.close()
    assert stats.served == 8 * 3 * len(frames)
    assert stats.devices == 4
    assert (stats.failed, stats.expired, stats.busy, stats.rejected) == (0, 0, 0, {})


def test_an_edge_is_reached_over_ipc(tiny_bundle: Bundle, frames: Frames, tmp_path: object) -> None:
    with (
        EdgeServer(tiny_bundle, f"ipc://{tmp_path}/edge") as edge,
        Device(tiny_bundle, f"ipc://{tmp_path}/edge") as device,
    ):
        assert edge.control_endpoint == f"ipc://{tmp_path}/edge.control"
        assert device.infer(frames[0]).shape == OUTPUT


def test_the_control_port_is_the_next_one(
    tiny_bundle: Bundle, frames: Frames, free_port: Callable[[], int]
) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with EdgeServer(tiny_bundle, endpoint), Device(tiny_bundle.path, endpoint) as device:
        device.connect()
        assert device.infer(frames[0]).shape == OUTPUT


def test_a_port_in_use_is_an_offload_error(tiny_bundle: Bundle) -> None:
    with EdgeServer(tiny_bundle, LOCAL) as edge:
        with pytest.raises(OffloadError, match="cannot listen on tcp"):
            EdgeServer(tiny_bundle, edge.endpoint, control=LOCAL).start()
        with pytest.raises(OffloadError, match="started once"):
            edge.start()


# What goes wrong with the edge, or on the way to it.


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
    local = LocalSide(tiny_bundle)(frames[0], Stopwatch())
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
    ours, theirs = make_bundle(seed=2), make_bundle(seed=3)
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with (
        Device(ours, endpoint, deadline=LONG) as device,
        Device(ours, endpoint, fallback="local", deadline=LONG) as careful,
    ):
        with EdgeServer(theirs, endpoint):
            with pytest.raises(BundleMismatchError, match=r"refuses: it serves bundle .*tiny-3"):
                device.infer(frames[0])
            with pytest.raises(BundleMismatchError):
                careful.connect()
            assert careful.submit(frames[0]).result(LONG).where == "local"
        with EdgeServer(ours, endpoint):
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
                    local = LocalSide(bundle)(frames[0], Stopwatch())
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
        assert edge.greet() == first
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
        ("busy", EdgeExecutionError),
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


def test_a_callback_that_submits_is_told_so(
    tiny_bundle: Bundle, frames: Frames, sockets: Sockets, background: Callable[..., Future[Any]]
) -> None:
    edge = HandmadeEdge(sockets, tiny_bundle)
    told: Future[str] = Future()

    def again(_: object) -> None:
        try:
            device.submit(frames[0])
        except OffloadError as error:
            told.set_result(str(error))

    with device_of(edge, tiny_bundle) as device:
        connecting = background(device.connect)
        edge.greet()
        connecting.result(LONG)
        future = device.submit(frames[0])
        future.add_done_callback(again)
        edge.answer(edge.request(), np.zeros(OUTPUT, np.float32))
        assert "use a thread" in told.result(LONG)


# What goes wrong at the edge because of what a device sends.


def test_malformed_messages_are_counted_and_harm_nobody(
    tiny_bundle: Bundle, frames: Frames, sockets: Sockets
) -> None:
    expected = in_one_process(tiny_bundle, frames[0])
    tensor, payload = payload_for(tiny_bundle, frames[0])
    other = wire.TensorHeader(wire.Encoding.FLOAT32, (2,), 8)
    with EdgeServer(tiny_bundle, LOCAL) as edge, device_of(edge, tiny_bundle) as good:
        bad = HandmadeDevice(sockets, tiny_bundle, edge.endpoint, edge.control_endpoint)
        assert isinstance(bad.hello(), control.Welcome)
        header = bytes(bad.request(1, tensor, payload)[0])
        stranger = HandmadeDevice(sockets, tiny_bundle, edge.endpoint, edge.control_endpoint)
        foreign = wire.Header(
            wire.MessageKind.REQUEST, bad.id, 1, 1000, b"another bundle's", (tensor,)
        )
        answered: list[tuple[str, list[wire.Buffer]]] = [
            ("TruncatedMessageError", [header[:60], payload]),
            ("TrailingBytesError", [header + b"\0", payload]),
            ("FrameCountError", [header]),
            ("FrameCountError", [header, payload, payload]),
            ("HeaderSizeError", [header + bytes(wire.MAX_HEADER_BYTES), payload]),
            ("MessageKindError", [header[:6] + b"\2\0" + header[8:], payload]),
            ("TensorCountError", [header[:52] + b"\0\0" + header[54:], payload]),
            ("EncodingError", [header[:54] + b"\x09" + header[55:], payload]),
            ("ReservedFieldError", [header[:57] + b"\1" + header[58:], payload]),
            ("PayloadLengthError", [header, payload[:-1]]),
            ("PayloadLengthError", [header, payload + b"\0"]),
            ("DigestMismatchError", [header, bytes(len(payload))]),
            ("TensorMismatchError", bad.request(1, other, bytes(8))),
            ("BundleMismatchError", wire.pack(foreign, [payload])),
        ]
        silent: list[tuple[str, list[wire.Buffer]]] = [
            ("BadMagicError", [b"GET / HTTP/1.1"]),
            ("UnsupportedVersionError", [header[:4] + b"\2\0" + header[6:], payload]),
            ("DeviceIdError", [header[:8] + bytes(16) + header[24:], payload]),
            ("TruncatedMessageError", [b""]),
        ]
        for name, message in answered:
            bad.send(*message)
            failed, _ = bad.receive()
            assert isinstance(failed, control.Failed)
            assert name in failed.message
            assert failed.request == 1
            np.testing.assert_array_equal(good.infer(frames[0]), expected)
        for _, message in silent:
            bad.send(*message)
        for frames_sent in ((b"",), (b"\xc1",), (control.encode(control.Ping(0)), b"")):
            bad.send_control_raw(*frames_sent)
        bad.send_control_raw(bytes(control.MAX_CONTROL_BYTES + 1))
        counted: dict[str, int] = {"ControlMessageError": 3, "ControlSizeError": 1}
        for name, _ in (*answered, *silent):
            counted[name] = counted.get(name, 0) + 1
        while sum(stranger.stats().rejected.values()) < sum(counted.values()):
            np.testing.assert_array_equal(good.infer(frames[0]), expected)
        assert stranger.stats().rejected == counted
        # And the one that misbehaved is served like any other once it behaves.
        bad.send(*bad.request(2, tensor, payload))
        result, (_, output) = bad.receive()
        assert isinstance(result, control.Result)
        assert result.request == 2
        assert output == expected.tobytes()


def test_what_is_far_too_large_ends_the_connection_only(
    tiny_bundle: Bundle, frames: Frames, sockets: Sockets
) -> None:
    with EdgeServer(tiny_bundle, LOCAL) as edge, device_of(edge, tiny_bundle) as good:
        bad = HandmadeDevice(sockets, tiny_bundle, edge.endpoint, edge.control_endpoint)
        bad.send(bytes(1 << 20), bytes(1 << 20))
        for _ in range(20):
            good.infer(frames[0])
        assert edge.stats().rejected == {}


def test_a_stranger_is_told_to_say_hello(
    tiny_bundle: Bundle, frames: Frames, sockets: Sockets
) -> None:
    tensor, payload = payload_for(tiny_bundle, frames[0])
    with EdgeServer(tiny_bundle, LOCAL) as edge:
        device = HandmadeDevice(sockets, tiny_bundle, edge.endpoint, edge.control_endpoint)
        device.stats()  # so that the control connection is there to be told something over
        device.send(*device.request(5, tensor, payload))
        failed, _ = device.receive()
        assert failed == control.Failed(5, "unknown-device", "say Hello first")
        device.hello()
        device.send(*device.request(6, tensor, payload))
        assert isinstance(device.receive()[0], control.Result)
        device.send_control(control.Goodbye())
        assert device.stats().devices == 0


def test_a_hello_that_cannot_be_served_is_refused(tiny_bundle: Bundle, sockets: Sockets) -> None:
    with EdgeServer(tiny_bundle, LOCAL) as edge:
        device = HandmadeDevice(sockets, tiny_bundle, edge.endpoint, edge.control_endpoint)
        for hello, code in (
            (control.Hello(2, tiny_bundle.id, "future", {}), "protocol"),
            (control.Hello(1, "0" * 64, "other", {}), "bundle-mismatch"),
        ):
            device.send_control(hello)
            refused, _ = device.receive()
            assert isinstance(refused, control.Refused)
            assert refused.code == code
        nameless = sockets(zmq.DEALER)
        nameless.connect(edge.control_endpoint)
        nameless.send(control.encode(control.Hello(1, tiny_bundle.id, "nameless", {})))
        refused = control.decode_at_device(nameless.recv())
        assert isinstance(refused, control.Refused)
        assert refused.code == "identity"
        assert edge.stats().devices == 0


def test_an_expired_request_is_not_worked_on(
    tiny_bundle: Bundle, frames: Frames, sockets: Sockets
) -> None:
    tensor, payload = payload_for(tiny_bundle, frames[0])
    with EdgeServer(tiny_bundle, LOCAL) as edge:
        device = HandmadeDevice(sockets, tiny_bundle, edge.endpoint, edge.control_endpoint)
        device.hello()
        device.send(*device.request(1, tensor, payload, deadline_ms=0))
        failed, _ = device.receive()
        assert isinstance(failed, control.Failed)
        assert failed.code == "expired"
        assert (edge.stats().expired, edge.stats().served) == (1, 0)


def test_requests_over_the_queue_are_answered_busy(
    tiny_bundle: Bundle, frames: Frames, sockets: Sockets
) -> None:
    tensor, payload = payload_for(tiny_bundle, frames[0])
    with EdgeServer(tiny_bundle, LOCAL, queue=1) as edge:
        device = HandmadeDevice(sockets, tiny_bundle, edge.endpoint, edge.control_endpoint)
        device.hello()
        for number in range(200):
            device.send(*device.request(number, tensor, payload))
        answers = [device.receive()[0] for _ in range(200)]
        served = [each for each in answers if isinstance(each, control.Result)]
        busy = [each for each in answers if isinstance(each, control.Failed)]
        assert {each.code for each in busy} <= {"busy"}
        assert (len(served), len(busy)) == (edge.stats().served, edge.stats().busy)
        assert len(served) + len(busy) == 200
        numbers = [each.request for each in served] + [each.request for each in busy]
        assert sorted(numbers) == list(range(200))


def test_a_device_that_falls_silent_is_forgotten(tiny_bundle: Bundle, sockets: Sockets) -> None:
    with EdgeServer(tiny_bundle, LOCAL, heartbeat=0.05) as edge:
        device = HandmadeDevice(sockets, tiny_bundle, edge.endpoint, edge.control_endpoint)
        device.hello()
        device.send_control(control.Ping(4))
        assert device.receive()[0] == control.Pong(4)
        while device.stats().devices:
            threading.Event().wait(0.05)


def test_an_idle_device_stays_connected(tiny_bundle: Bundle, frames: Frames) -> None:
    with (
        EdgeServer(tiny_bundle, LOCAL, heartbeat=0.2) as edge,
        device_of(edge, tiny_bundle) as device,
    ):
        device.infer(frames[0])
        threading.Event().wait(1.0)
        assert device.submit(frames[0]).result(LONG).where == "edge"


@pytest.mark.parametrize("fallback", [None, "local"])
def test_a_slice_that_does_not_keep_its_word_fails_the_request(
    make_bundle: BundleFactory, frames: Frames, fallback: str | None
) -> None:
    right = make_bundle()
    manifest = msgspec.structs.replace(right.manifest, output=TensorInfo((1, 7), "float32"))
    bundle = Bundle(right.path, manifest, right.id)
    with EdgeServer(bundle, LOCAL) as edge, device_of(edge, bundle, fallback=fallback) as device:
        if fallback is None:
            with pytest.raises(EdgeExecutionError, match=r"execution: the slice answered"):
                device.infer(frames[0])
        else:
            assert device.submit(frames[0]).result(LONG).where == "local"
        assert edge.stats().failed == 1


def test_bytes_that_are_no_jpeg_fail_the_request_only(
    make_bundle: BundleFactory, frames: Frames, sockets: Sockets
) -> None:
    bundle = make_bundle("image")
    with EdgeServer(bundle, LOCAL) as edge, device_of(edge, bundle) as good:
        device = HandmadeDevice(sockets, bundle, edge.endpoint, edge.control_endpoint)
        device.hello()
        junk = b"\xff\xd8\xff" + bytes(50)
        device.send(*device.request(1, request_tensor(bundle.manifest, len(junk)), junk))
        failed, _ = device.receive()
        assert isinstance(failed, control.Failed)
        assert failed.code == "execution"
        assert good.infer(frames[0]).shape == OUTPUT


def test_turns_are_taken_by_device_and_a_request_is_held_once() -> None:
    schedule = Schedule(credit=2, capacity=6, silence=10)
    a, b = b"a" * 16, b"b" * 16

    def job(device_id: bytes, number: int) -> Job:
        return Job(device_id, number, memoryview(b""), 0.0, 1.0)

    schedule.greet(a, "a", 0.0)
    schedule.greet(b, "b", 5.0)
    assert schedule.hear(a, 1.0)
    assert not schedule.hear(b"c" * 16, 1.0)
    assert [schedule.add(job(a, number)) for number in (1, 2, 3, 4, 5)] == [True] * 4 + [False]
    assert schedule.add(job(a, 1))  # again: held already
    assert [schedule.add(job(b, number)) for number in (1, 2, 3)] == [True, True, False]
    taken = []
    while (each := schedule.next()) is not None:
        taken.append((each.device_id, each.request_id))
        assert schedule.add(each)  # at work: held still
        schedule.done(each)
    assert taken == [(a, 1), (b, 1), (a, 2), (b, 2), (a, 3), (a, 4)]
    assert schedule.add(job(a, 1))  # done: taken again
    assert schedule.forget_silent(12.0) == ["a"]
    assert schedule.devices == [b]
    assert schedule.next() is None
    schedule.forget(a)


# The package and the commands.


def test_nothing_here_imports_torch() -> None:
    code = (
        "import sys, scissionlite.offloader, scissionlite.offloader.link_emulator, "
        "scissionlite.cli.run, scissionlite.cli.serve; "
        "sys.exit(any(name.split('.')[0] == 'torch' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=LONG).returncode == 0


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
    ):
        wrong = run_command(*arguments)
        assert wrong.returncode == 2, wrong.stderr
    missing = run_command("serve", f"{images}/none")
    assert missing.returncode == 1
    assert "is not a bundle" in missing.stderr
