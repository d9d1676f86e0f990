"""A device that sends wrong messages to the edge harms no other device.

Time-outs here only guard against hangs; no outcome depends on how fast the machine is.
"""

from __future__ import annotations

import threading

import msgspec
import numpy as np
import pytest
import zmq
from conftest import OUTPUT, BundleFactory
from msgspec.structs import replace
from peers import (
    LOCAL,
    LONG,
    Frames,
    HandmadeDevice,
    Sockets,
    device_of,
    in_one_process,
    payload_for,
)

from scissionlite.bundle import Bundle
from scissionlite.errors import (
    EdgeExecutionError,
)
from scissionlite.graph.tensors import TensorInfo
from scissionlite.offloader import EdgeLimits, EdgeServer, wire
from scissionlite.offloader.bundle_tensors import request_tensors
from scissionlite.offloader.edge.metrics import BundleMetrics, Traffic
from scissionlite.offloader.edge.schedule import Job, Schedule
from scissionlite.offloader.edge.served import Served
from scissionlite.offloader.edge.side import EdgeSide
from scissionlite.offloader.wire import control
from scissionlite.offloader.wire.probe import probe_header

pytestmark = pytest.mark.usefixtures("no_threads_left")


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
            ("ReservedFieldError", [header[:57] + b"\2" + header[58:], payload]),
            ("PayloadLengthError", [header, payload[:-1]]),
            ("PayloadLengthError", [header, payload + b"\0"]),
            ("DigestMismatchError", [header, bytes(len(payload))]),
            ("TensorMismatchError", bad.request(1, other, bytes(8))),
            ("BundleMismatchError", wire.pack(foreign, [payload])),
        ]
        silent: list[tuple[str, list[wire.Buffer]]] = [
            ("BadMagicError", [b"GET / HTTP/1.1"]),
            ("UnsupportedVersionError", [header[:4] + b"\1\0" + header[6:], payload]),
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
        bad.send(bytes(1 << 25), bytes(1 << 25))
        for _ in range(20):
            good.infer(frames[0])
        assert edge.stats().rejected == {}


def test_malformed_probes_are_counted_and_harm_nobody(
    tiny_bundle: Bundle, frames: Frames, sockets: Sockets
) -> None:
    expected = in_one_process(tiny_bundle, frames[0])
    with EdgeServer(tiny_bundle, LOCAL) as edge, device_of(edge, tiny_bundle) as good:
        bad = HandmadeDevice(sockets, tiny_bundle, edge.endpoint, edge.control_endpoint)
        bad.send_control(control.ClientHello("bad"))
        assert isinstance(bad.receive()[0], control.ClientWelcome)
        right = probe_header(bad.id, 1, 100)
        header, payload = (bytes(frame) for frame in wire.pack(right, [bytes(100)]))
        (tensor,) = right.tensors
        many = control.MAX_PROBE_BYTES + 1
        large = replace(tensor, shape=(1 << 17,), nbytes=1 << 17)
        answered: list[tuple[str, list[wire.Buffer]]] = [
            ("TruncatedMessageError", [header[:60], payload]),
            ("TrailingBytesError", [header + b"\0", payload]),
            ("FrameCountError", [header]),
            ("FrameCountError", [header, payload, payload]),
            ("PayloadLengthError", [header, payload[:-1]]),
            ("DigestMismatchError", [header, b"\1" * 100]),
            ("MessageKindError", [header[:6] + b"\4\0" + header[8:], payload]),
            ("MessageKindError", [header[:6] + b"\2\0" + header[8:], payload]),
            ("ProbeSizeError", wire.pack(probe_header(bad.id, 1, many), [bytes(many)])),
            (
                "ProbeSizeError",
                wire.pack(replace(right, tensors=(large,) * 16), [bytes(large.nbytes)] * 16),
            ),
            (
                "TensorMismatchError",
                wire.pack(replace(right, tensors=(tensor,) * 2), [payload] * 2),
            ),
            ("TensorMismatchError", wire.pack(replace(right, deadline_ms=1), [payload])),
            ("TensorMismatchError", wire.pack(replace(right, bundle_id=b"1" * 16), [payload])),
            (
                "TensorMismatchError",
                wire.pack(replace(right, tensors=(replace(tensor, shape=(10, 10)),)), [payload]),
            ),
        ]
        for name, message in answered:
            bad.send(*message)
            failed, _ = bad.receive()
            assert isinstance(failed, control.Failed)
            assert name in failed.message
            assert failed.request == 1
            np.testing.assert_array_equal(good.infer(frames[0]), expected)
        # Over what may be asked for, under it, a field too many, and what only an edge says.
        for fields in (
            {"type": "probe-download", "request": 1, "nbytes": 2 * control.MAX_PROBE_BYTES},
            {"type": "probe-download", "request": 1, "nbytes": -1},
            {"type": "visit", "name": "bad", "more": 1},
            {"type": "probe-reply", "request": 1, "nbytes": 1},
        ):
            bad.send_control_raw(msgspec.msgpack.encode(fields))
        nameless = sockets(zmq.DEALER)
        nameless.connect(edge.control_endpoint)
        nameless.send(control.encode(control.ClientHello("nameless")))
        refused = control.decode_at_device(nameless.recv())
        assert isinstance(refused, control.Refused)
        assert refused.code == "identity"
        bad.send(*wire.pack(probe_header(bad.id, 2, 100), [payload]))
        assert bad.receive()[0] == control.ProbeReply(2, 100)
        rejected = bad.stats().rejected
        assert rejected.pop("ControlMessageError") == 4
        assert sum(rejected.values()) == len(answered)


def test_a_new_edge_client_replaces_the_one_longest_silent_where_there_is_no_room(
    tiny_bundle: Bundle, sockets: Sockets
) -> None:
    with EdgeServer(bind=LOCAL) as edge:
        clients = []
        for _ in range(65):
            client = HandmadeDevice(sockets, tiny_bundle, edge.endpoint, edge.control_endpoint)
            client.send_control(control.ClientHello("one of many"))
            assert isinstance(client.receive()[0], control.ClientWelcome)
            clients.append(client)
        for client, connected in ((clients[0], False), (clients[1], True), (clients[64], True)):
            client.send_control(control.ProbeDownload(1, 1))
            expected = control.ProbeReply if connected else control.Failed
            assert isinstance(client.receive()[0], expected)


def test_a_request_before_hello_is_answered_unknown_device(
    tiny_bundle: Bundle, frames: Frames, sockets: Sockets
) -> None:
    tensor, payload = payload_for(tiny_bundle, frames[0])
    with EdgeServer(tiny_bundle, LOCAL) as edge:
        device = HandmadeDevice(sockets, tiny_bundle, edge.endpoint, edge.control_endpoint)
        device.stats()  # so that there is a control connection for the answer
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
            (control.Hello(4, tiny_bundle.id, "future", {}), "protocol"),
            (control.Hello(3, "0" * 64, "other", {}), "bundle-mismatch"),
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
    with EdgeServer(tiny_bundle, LOCAL, limits=EdgeLimits(queue=1)) as edge:
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
    with EdgeServer(tiny_bundle, LOCAL, limits=EdgeLimits(heartbeat=0.05)) as edge:
        device = HandmadeDevice(sockets, tiny_bundle, edge.endpoint, edge.control_endpoint)
        device.hello()
        device.send_control(control.Ping(4))
        assert device.receive()[0] == control.Pong(4)
        while device.stats().devices:
            threading.Event().wait(0.05)


def test_an_idle_device_stays_connected(tiny_bundle: Bundle, frames: Frames) -> None:
    with (
        EdgeServer(tiny_bundle, LOCAL, limits=EdgeLimits(heartbeat=0.2)) as edge,
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
    manifest = replace(right.manifest, outputs=(TensorInfo("output", (1, 7)),))
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
        (tensor,) = request_tensors(bundle.manifest, [len(junk)])
        device.send(*device.request(1, tensor, junk))
        failed, _ = device.receive()
        assert isinstance(failed, control.Failed)
        assert failed.code == "execution"
        assert good.infer(frames[0]).shape == OUTPUT


def test_turns_are_taken_by_device_and_a_request_is_held_once(tiny_bundle: Bundle) -> None:
    served = Served(EdgeSide(tiny_bundle), BundleMetrics(tiny_bundle, Traffic()))
    schedule = Schedule(EdgeLimits(credit=2, queue=6, heartbeat=10 / 3))
    a, b = b"a" * 16, b"b" * 16

    def job(device_id: bytes, number: int) -> Job:
        tensor = wire.TensorHeader(wire.Encoding.FLOAT32, (1,), 4)
        return Job(served, device_id, number, (tensor,), [memoryview(bytes(4))], 1, 0.0, 1.0)

    schedule.greet(a, served, "a", 0.0)
    schedule.greet(b, served, "b", 5.0)
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
    assert schedule.remove_silent(12.0) == ["a"]
    assert schedule.devices == [b]
    assert schedule.next() is None
    schedule.remove(a)
