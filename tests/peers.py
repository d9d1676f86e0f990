"""Both sides of the wire for the tests: real ones, and peers that speak the format by hand."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
import zmq

from scissionlite.bundle import Bundle
from scissionlite.offloader import Device, DeviceKeys, EdgeServer, wire
from scissionlite.offloader.bundle_tensors import result_tensors
from scissionlite.offloader.device.side import DeviceSide
from scissionlite.offloader.edge.side import EdgeSide
from scissionlite.offloader.message_sockets import message_socket
from scissionlite.offloader.socket_inputs import SocketInputs
from scissionlite.offloader.stopwatch import Stopwatch
from scissionlite.offloader.waker import Waker
from scissionlite.offloader.wire import control

Frames = list[npt.NDArray[np.uint8]]
LOCAL = "tcp://127.0.0.1:*"
NOWHERE = "tcp://127.0.0.1:9"  # the discard port: nobody listens there
LONG = 60.0  # seconds; only a hang waits so long


Sockets = Callable[[int], "zmq.Socket[bytes]"]
HANDMADE: list[HandmadeEdge] = []
"""Those whose threads live: closed before their sockets."""


class HandmadeEdge:
    """The sockets of an edge daemon; the test decides what they answer.

    A thread owns them. It answers probes, as long as ``answers_probes``, and heartbeats if
    ``answers_pings``.
    """

    def __init__(self, sockets: Sockets, bundle: Bundle) -> None:
        self._bundle = bundle
        pull, router = sockets(zmq.PULL), sockets(zmq.ROUTER)
        router.router_handover = 1
        self.endpoint = f"tcp://127.0.0.1:{pull.bind_to_random_port('tcp://127.0.0.1')}"
        self.control = f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}"
        self.answers_probes, self.answers_pings = True, False
        self.probes: list[int] = []  # bytes of those that arrived
        self._heard: SimpleQueue[tuple[bytes, control.ToEdge]] = SimpleQueue()
        self._requests: SimpleQueue[wire.Header] = SimpleQueue()
        self._to_send: SimpleQueue[Sequence[wire.Buffer]] = SimpleQueue()
        self._waker, self._ended = Waker(), False
        self._thread = threading.Thread(target=self._serve, args=(pull, router), name="handmade")
        self._thread.start()
        HANDMADE.append(self)

    def close(self) -> None:
        """End the thread; the sockets are closed by who made them."""
        self._ended = True
        self._waker.wake()
        self._thread.join(LONG)
        self._waker.close()

    def greet(self, credit: int = 8, heartbeat: float = 30.0) -> bytes:
        """Wait for a Hello, answer Welcome, return the device's id."""
        device_id = self.wait_for(control.Hello)
        self.send(device_id, control.Welcome(1, credit, "handmade", heartbeat))
        return device_id

    def hello(self) -> control.Hello:
        """Wait for a Hello, and answer nothing."""
        message = self.message()
        assert isinstance(message, control.Hello)
        return message

    def message(self) -> control.ToEdge:
        """Wait for the next control message, whatever it is."""
        return self._heard.get(timeout=LONG / 2)[1]

    def wait_for(self, kind: type[control.ToEdge]) -> bytes:
        """Wait for a control message of a kind, skip others; return who sent it."""
        while True:
            device_id, message = self._heard.get(timeout=LONG / 2)
            if isinstance(message, kind):
                return device_id

    def request(self) -> wire.Header:
        """Wait for a request."""
        return self._requests.get(timeout=LONG / 2)

    def next_request(self, seconds: float) -> wire.Header | None:
        """Wait for a request for so long; None if there is none."""
        with contextlib.suppress(Empty):
            return self._requests.get(timeout=seconds)
        return None

    def send(self, device_id: bytes, message: control.ToDevice, *frames: wire.Buffer) -> None:
        """Send a control message and the frames that follow it."""
        self.send_raw(device_id, control.encode(message), *frames)

    def send_raw(self, device_id: bytes, *frames: wire.Buffer) -> None:
        """Send frames as they are."""
        self._to_send.put([device_id, *frames])
        self._waker.wake()

    def _serve(self, pull: zmq.Socket[bytes], router: zmq.Socket[bytes]) -> None:
        inputs = SocketInputs()
        requests, controls = map(message_socket, (pull, router))
        inputs.add(requests)
        inputs.add(controls)
        while not self._ended:
            inputs.wait(self._waker, int(1000 * LONG))
            while not self._to_send.empty():
                router.send_multipart(self._to_send.get())
            while frames := inputs.receive(requests):
                header, _ = wire.unpack(
                    frames,
                    wire.MessageKind.REQUEST,
                    wire.MessageKind.PROBE,
                )
                if header.kind is wire.MessageKind.REQUEST:
                    self._requests.put(header)
                    continue
                self.probes.append(header.tensors[0].nbytes)
                reply = control.ProbeReply(header.request_id, self.probes[-1])
                if self.answers_probes:
                    router.send_multipart([header.device_id, control.encode(reply)])
            inputs.used(controls)
            while frames := inputs.receive(controls):
                device_id, frame = map(bytes, frames)
                message = control.decode_at_edge(frame)
                self._heard.put((device_id, message))
                if isinstance(message, control.Ping) and self.answers_pings:
                    pong = control.Pong(message.sequence)
                    router.send_multipart([device_id, control.encode(pong)])

    def answer(self, request: wire.Header, output: npt.NDArray[np.float32]) -> None:
        """Answer a request."""
        result = control.Result(request.request_id, 0.0, 0.0, 0.0)
        self.send(request.device_id, result, *self.result_frames(request, output))

    def result_frames(
        self, request: wire.Header, output: npt.NDArray[np.float32]
    ) -> list[wire.Buffer]:
        """Make the tensor message of an answer."""
        header = wire.Header(
            wire.MessageKind.RESULT,
            request.device_id,
            request.request_id,
            0,
            request.bundle_id,
            result_tensors(self._bundle.manifest),
        )
        return wire.pack(header, [output.data])


class HandmadeDevice:
    """The sockets of a device; the test decides what they send."""

    def __init__(
        self,
        sockets: Sockets,
        bundle: Bundle,
        endpoint: str,
        control_endpoint: str,
        *,
        keys: DeviceKeys | None = None,
        device_id: bytes | None = None,
    ) -> None:
        self.id = device_id or b"\x02" + os.urandom(15)
        self._bundle = bundle
        self._push, self._dealer = sockets(zmq.PUSH), sockets(zmq.DEALER)
        self._dealer.identity = self.id
        if keys is not None:
            keys.secure(self._push)
            keys.secure(self._dealer)
        self._push.connect(endpoint)
        self._dealer.connect(control_endpoint)

    def hello(self) -> control.ToDevice:
        """Say Hello; return the edge's reply."""
        self.send_control(control.Hello(control.PROTOCOL_VERSION, self._bundle.id, "handmade", {}))
        return self.receive()[0]

    def send_control(self, message: control.ToEdge) -> None:
        """Send a control message."""
        self.send_control_raw(control.encode(message))

    def send_control_raw(self, *frames: bytes) -> None:
        """Send frames to the control port as they are."""
        self._dealer.send_multipart(frames)

    def request(
        self, number: int, tensor: wire.TensorHeader, payload: bytes, deadline_ms: int = 60_000
    ) -> list[wire.Buffer]:
        """Make the frames of a request of one tensor."""
        return self.request_of(number, (tensor,), [payload], deadline_ms)

    def request_of(
        self,
        number: int,
        tensors: tuple[wire.TensorHeader, ...],
        payloads: Sequence[wire.Buffer],
        deadline_ms: int = 60_000,
    ) -> list[wire.Buffer]:
        """Make the frames of a request."""
        header = wire.Header(
            wire.MessageKind.REQUEST,
            self.id,
            number,
            deadline_ms,
            wire.bundle_prefix(self._bundle.id),
            tensors,
        )
        return wire.pack(header, payloads)

    def send(self, *frames: wire.Buffer) -> None:
        """Send frames to the tensor port as they are."""
        self._push.send_multipart(frames)

    def receive(self) -> tuple[control.ToDevice, list[bytes]]:
        """Wait for a control message and the frames that follow it."""
        first, *rest = self._dealer.recv_multipart()
        return control.decode_at_device(first), rest

    def timeout(self, seconds: float) -> None:
        """Wait no longer than this for a message, or until one can be sent."""
        for each in (self._push, self._dealer):
            each.rcvtimeo = each.sndtimeo = int(1000 * seconds)

    def close(self) -> None:
        """End the connections without a word."""
        self._push.close()
        self._dealer.close()

    def stats(self) -> control.StatsReply:
        """Ask for the counters, and skip other messages."""
        self.send_control(control.Stats())
        while not isinstance(message := self.receive()[0], control.StatsReply):
            pass
        return message


def in_one_process(
    bundle: Bundle, x: npt.NDArray[np.uint8], runtime: str | None = None
) -> npt.NDArray[np.float32]:
    """Compute the expected answer of device and edge: the same slices and codec, without a wire."""
    tensors, payloads = DeviceSide(bundle, runtime=runtime).make_request((x,), Stopwatch())
    edge = EdgeSide(bundle, runtime=runtime)
    (output,) = edge.answer(tensors, [memoryview(p) for p in payloads], Stopwatch())
    return output


def device_of(edge: EdgeServer | HandmadeEdge, bundle: Bundle, **options: Any) -> Device:
    endpoint = edge.control_endpoint if isinstance(edge, EdgeServer) else edge.control
    options = {"deadline": LONG, **options}
    return Device(bundle, edge.endpoint, control=endpoint, **options)


def payload_for(bundle: Bundle, x: npt.NDArray[np.uint8]) -> tuple[wire.TensorHeader, bytes]:
    (tensor,), (payload,) = DeviceSide(bundle).make_request((x,), Stopwatch())
    return tensor, bytes(payload)
