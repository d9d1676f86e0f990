"""Who may use an edge daemon, over real sockets: keys, strangers, revocation, taken identities.

docs/security.md lists the threats with the tests of this file. Time-outs only guard against hangs.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import zmq
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
    AuthorizationError,
    EdgeUnavailableError,
    KeyFileError,
    OffloadError,
)
from scissionlite.keys import authorized
from scissionlite.keys.files import make_key_pair, read_public
from scissionlite.offloader import Device, DeviceKeys, EdgeKeys, EdgeLimits, EdgeServer, Timeouts
from scissionlite.offloader.device.edge_client import EdgeClient
from scissionlite.offloader.wire import control
from scissionlite.scissiontl.probe import probe

pytestmark = pytest.mark.usefixtures("no_threads_left")

PATIENCE = Timeouts(answer=LONG)


class KeyRing(NamedTuple):
    """A folder of keys: the edge's, and those of devices that it authorises."""

    folder: Path

    @property
    def authorized(self) -> Path:
        return self.folder / "authorized_keys"

    @property
    def edge(self) -> EdgeKeys:
        return EdgeKeys(self.folder / "edge", self.authorized)

    def device(self, name: str, *, edge: str = "edge") -> DeviceKeys:
        """The keys of a device, made at the first call; not authorised by that."""
        for each in (name, edge):
            if not (self.folder / each).exists():
                make_key_pair(self.folder / each)
        return DeviceKeys(self.folder / name, self.folder / f"{edge}.pub")

    def authorize(self, name: str) -> DeviceKeys:
        keys = self.device(name)
        authorized.authorize(self.authorized, read_public(self.folder / f"{name}.pub"))
        return keys


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    make_key_pair(tmp_path / "edge")
    (tmp_path / "authorized_keys").touch(0o600)
    return KeyRing(tmp_path)


class Recorder:
    """A TCP relay to one port that keeps every byte that passes."""

    def __init__(self, endpoint: str) -> None:
        self.heard = bytearray()
        self._target = int(endpoint.rpartition(":")[2])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets = [self._listener]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near = self._listener.accept()[0]
                far = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [near, far]
                for source, sink in ((near, far), (far, near)):
                    self._threads.append(threading.Thread(target=self._pass, args=(source, sink)))
                    self._threads[-1].start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while read := source.recv(1 << 16):
                self.heard += read
                sink.sendall(read)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def record() -> Iterator[Callable[[str], Recorder]]:
    made: list[Recorder] = []

    def start(endpoint: str) -> Recorder:
        made.append(Recorder(endpoint))
        return made[-1]

    yield start
    for each in made:
        each.close()


def infer_until_refused(device: Device, frame: npt.NDArray[np.uint8]) -> None:
    """Answer until the edge daemon has read the list of authorised keys again."""
    with contextlib.suppress(AuthorizationError):
        while True:
            device.infer(frame)


@pytest.mark.parametrize("keyed", [False, True], ids=["without keys", "with keys"])
def test_what_crosses_can_be_read_only_without_keys(
    tiny_bundle: Bundle,
    frames: Frames,
    ring: KeyRing,
    record: Callable[[str], Recorder],
    keyed: bool,
) -> None:
    edge_keys, keys = (ring.edge, ring.authorize("camera")) if keyed else (None, None)
    expected = in_one_process(tiny_bundle, frames[0])
    _, payload = payload_for(tiny_bundle, frames[0])
    with EdgeServer(tiny_bundle, LOCAL, keys=edge_keys) as edge:
        tensors, replies = record(edge.endpoint), record(edge.control_endpoint)
        with Device(
            tiny_bundle, tensors.endpoint, control=replies.endpoint, deadline=LONG, keys=keys
        ) as device:
            np.testing.assert_array_equal(device.infer(frames[0]), expected)
    for heard, secrets in (
        (tensors.heard, (payload, bytes.fromhex(tiny_bundle.id)[:16], b"SLTL")),
        (replies.heard, (expected.tobytes(), tiny_bundle.id.encode(), b"welcome")),
    ):
        assert [secret in heard for secret in secrets] == [not keyed] * 3
        assert len(heard) > 200


def test_strangers_are_refused_with_a_reason_and_disturb_nobody(
    tiny_bundle: Bundle, frames: Frames, ring: KeyRing
) -> None:
    expected = in_one_process(tiny_bundle, frames[0])
    camera, stranger = ring.authorize("camera"), ring.device("stranger")
    misled = DeviceKeys(ring.folder / "camera", ring.folder / "stranger.pub")
    with (
        EdgeServer(tiny_bundle, LOCAL, keys=ring.edge) as edge,
        device_of(edge, tiny_bundle, keys=camera) as good,
    ):
        np.testing.assert_array_equal(good.infer(frames[0]), expected)
        cases: tuple[tuple[DeviceKeys | None, type[OffloadError], str], ...] = (
            (stranger, AuthorizationError, "does not know this device's key"),
            (None, OffloadError, "one of the two sides .*has keys|only one of the two sides"),
            (misled, EdgeUnavailableError, "its key may be another one"),
        )
        for keys, kind, reason in cases:
            with device_of(edge, tiny_bundle, keys=keys, deadline=1.0) as device:
                with pytest.raises(kind, match=reason):
                    device.infer(frames[0])
                np.testing.assert_array_equal(good.infer(frames[0]), expected)
            endpoint, replies = edge.endpoint, edge.control_endpoint
            with (
                pytest.raises(kind, match=reason),
                EdgeClient(endpoint, replies, Timeouts(answer=1.0), keys),
            ):
                pass
        with device_of(edge, tiny_bundle, keys=stranger, fallback="local") as device:
            assert device.submit(frames[0]).result(LONG).where == "local"
        assert edge.stats().devices == 1
        assert set(edge.stats().rejected) == {"UnauthorizedKeyError"}


def test_a_device_with_keys_does_not_use_a_daemon_without(
    tiny_bundle: Bundle, frames: Frames, ring: KeyRing
) -> None:
    with (
        EdgeServer(tiny_bundle, LOCAL) as edge,
        device_of(edge, tiny_bundle, keys=ring.authorize("camera"), deadline=1.0) as device,
        pytest.raises(OffloadError, match=r"one of the two sides .*has keys|only one of the two"),
    ):
        device.infer(frames[0])
    assert edge.stats().served == 0


def test_a_revoked_device_is_refused_at_once_and_others_are_not_disturbed(
    tiny_bundle: Bundle,
    frames: Frames,
    ring: KeyRing,
    sockets: Sockets,
    background: Callable[..., Future[Any]],
) -> None:
    expected = [in_one_process(tiny_bundle, frame) for frame in frames]
    kept, revoked, deaf = (ring.authorize(name) for name in ("kept", "revoked", "deaf"))
    stop = threading.Event()
    with (
        EdgeServer(tiny_bundle, LOCAL, keys=ring.edge, limits=EdgeLimits(heartbeat=60)) as edge,
        device_of(edge, tiny_bundle, keys=kept) as one,
        device_of(edge, tiny_bundle, keys=revoked) as other,
    ):

        def stream() -> int:
            for count in itertools.count():
                if stop.is_set():
                    return count
                answer = one.infer(frames[count % len(frames)])
                np.testing.assert_array_equal(answer, expected[count % len(frames)])
            raise AssertionError

        streaming = background(stream)
        np.testing.assert_array_equal(other.infer(frames[0]), expected[0])
        # One that does not close its connection when it is told: its messages are refused.
        handmade = HandmadeDevice(
            sockets, tiny_bundle, edge.endpoint, edge.control_endpoint, keys=deaf
        )
        assert isinstance(handmade.hello(), control.Welcome)
        for name in ("revoked", "deaf"):
            authorized.revoke(ring.authorized, name)
        infer_until_refused(other, frames[0])
        told, _ = handmade.receive()
        assert isinstance(told, control.Refused)
        assert told.code == "unauthorized"
        before = edge.stats().rejected.get("UnauthorizedKeyError", 0)
        handmade.send(*handmade.request(1, *payload_for(tiny_bundle, frames[0])))
        handmade.send_control(control.Stats())
        assert isinstance(handmade.receive()[0], control.Refused)
        while edge.stats().rejected["UnauthorizedKeyError"] < before + 2:
            one.infer(frames[0])
        assert edge.stats().devices == 1
        # A device that is authorised again comes back by itself.
        authorized.authorize(ring.authorized, read_public(ring.folder / "revoked.pub"))
        while True:
            with contextlib.suppress(AuthorizationError):
                np.testing.assert_array_equal(other.infer(frames[0]), expected[0])
                break
        stop.set()
        assert streaming.result(LONG) > 0


@pytest.mark.parametrize("keyed", [False, True], ids=["without keys", "with keys"])
def test_nobody_takes_over_the_identity_of_a_connected_device(
    tiny_bundle: Bundle, frames: Frames, ring: KeyRing, sockets: Sockets, keyed: bool
) -> None:
    owner, thief = (ring.authorize("owner"), ring.authorize("thief")) if keyed else (None, None)
    tensor, payload = payload_for(tiny_bundle, frames[0])
    expected = in_one_process(tiny_bundle, frames[0]).tobytes()
    with EdgeServer(tiny_bundle, LOCAL, keys=ring.edge if keyed else None) as edge:
        where = (sockets, tiny_bundle, edge.endpoint, edge.control_endpoint)
        victim = HandmadeDevice(*where, keys=owner)
        assert isinstance(victim.hello(), control.Welcome)
        attacker = HandmadeDevice(*where, keys=thief, device_id=victim.id)
        attacker.send_control(
            control.Hello(control.PROTOCOL_VERSION, tiny_bundle.id, "attacker", {})
        )
        bystander = HandmadeDevice(*where, keys=thief)  # connected later than the attacker
        assert isinstance(bystander.hello(), control.Welcome)
        for number in range(5):
            victim.send(*victim.request(number, tensor, payload))
            result, (_, output) = victim.receive()
            assert isinstance(result, control.Result)
            assert (result.request, output) == (number, expected)
        attacker.timeout(0.2)
        with pytest.raises(zmq.Again):
            attacker.receive()


def test_a_request_in_the_name_of_another_device_is_refused(
    tiny_bundle: Bundle, frames: Frames, ring: KeyRing, sockets: Sockets
) -> None:
    tensor, payload = payload_for(tiny_bundle, frames[0])
    other = bytes(len(payload))
    expected = in_one_process(tiny_bundle, frames[0]).tobytes()
    with EdgeServer(tiny_bundle, LOCAL, keys=ring.edge) as edge:
        where = (sockets, tiny_bundle, edge.endpoint, edge.control_endpoint)
        victim = HandmadeDevice(*where, keys=ring.authorize("owner"))
        attacker = HandmadeDevice(*where, keys=ring.authorize("thief"))
        assert isinstance(victim.hello(), control.Welcome)
        assert isinstance(attacker.hello(), control.Welcome)
        forged = victim.request(7, tensor, other)  # a right message, in the victim's name
        attacker.send(*forged)
        attacker.send(forged[0], other[:-1])  # and one that would be answered "malformed"
        while sum(edge.stats().rejected.values()) < 2:
            attacker.stats()
        victim.send(*victim.request(7, tensor, payload))
        result, (_, output) = victim.receive()  # the first message that it gets
        assert isinstance(result, control.Result)
        assert (result.request, output) == (7, expected)
        assert edge.stats().rejected["ForeignDeviceIdError"] == 1
        assert edge.stats().served == 1


def test_the_identity_of_a_device_that_went_away_belongs_to_its_key_still(
    tiny_bundle: Bundle, ring: KeyRing, sockets: Sockets
) -> None:
    with EdgeServer(tiny_bundle, LOCAL, keys=ring.edge, limits=EdgeLimits(heartbeat=60)) as edge:
        where = (sockets, tiny_bundle, edge.endpoint, edge.control_endpoint)
        victim = HandmadeDevice(*where, keys=ring.authorize("owner"))
        assert isinstance(victim.hello(), control.Welcome)
        victim.close()
        thief = ring.authorize("thief")
        while True:  # until the edge has noticed that the connection ended
            attacker = HandmadeDevice(*where, keys=thief, device_id=victim.id)
            attacker.timeout(0.5)
            with contextlib.suppress(zmq.Again):
                refused = attacker.hello()
                break
            attacker.close()
        assert isinstance(refused, control.Refused)
        assert refused.code == "identity"
        assert edge.stats().rejected["ForeignDeviceIdError"] >= 1


def test_a_probe_needs_a_key_too(ring: KeyRing) -> None:
    with EdgeServer(None, LOCAL, keys=ring.edge) as edge:
        measured = probe(
            edge.endpoint, edge.control_endpoint, seconds=0.1, keys=ring.authorize("laptop")
        )
        assert measured.round_trips > 0


def test_a_client_whose_key_is_revoked_is_told(ring: KeyRing) -> None:
    keys = ring.authorize("laptop")
    with (
        EdgeServer(None, LOCAL, keys=ring.edge) as edge,
        EdgeClient(edge.endpoint, edge.control_endpoint, PATIENCE, keys) as client,
    ):
        authorized.revoke(ring.authorized, "laptop")
        client.send(control.Stats())
        with pytest.raises(AuthorizationError, match="not authorised"):
            client.wait_for(control.ProbeReply, 1)


def test_what_is_wrong_with_the_list_authorises_nobody_else(
    tiny_bundle: Bundle, frames: Frames, ring: KeyRing
) -> None:
    camera, other = ring.authorize("camera"), ring.authorize("other")
    whole = ring.authorized.read_text()
    with (
        EdgeServer(tiny_bundle, LOCAL, keys=ring.edge) as edge,
        device_of(edge, tiny_bundle, keys=camera) as device,
        device_of(edge, tiny_bundle, keys=other) as dropped,
    ):
        device.infer(frames[0])
        dropped.infer(frames[0])
        # A damaged line authorises nobody; the others hold.
        ring.authorized.write_text(whole.replace(other.public, other.public[:-4]))
        infer_until_refused(dropped, frames[0])
        device.infer(frames[0])
        # A list that everybody can write authorises nobody.
        ring.authorized.chmod(0o666)
        infer_until_refused(device, frames[0])
    with pytest.raises(KeyFileError, match="others than its owner can change"):
        EdgeServer(tiny_bundle, LOCAL, keys=ring.edge)


@pytest.mark.parametrize("bind", ["tcp://0.0.0.0:*", "tcp://[::]:*", "tcp://*:*", "tcp://eth0:*"])
def test_a_daemon_without_keys_listens_on_no_network_unless_told(
    tiny_bundle: Bundle, ring: KeyRing, bind: str
) -> None:
    for binds in ((bind, None), (LOCAL, bind)):
        with pytest.raises(ValueError, match="can be reached from a network"):
            EdgeServer(tiny_bundle, binds[0], control=binds[1])
        EdgeServer(tiny_bundle, binds[0], control=binds[1], insecure=True)
        EdgeServer(tiny_bundle, binds[0], control=binds[1], keys=ring.edge)
    with pytest.raises(ValueError, match="profiles only for authorised keys"):
        EdgeServer(None, bind, insecure=True, profile_models=["torchvision:*"])
    EdgeServer(None, bind, keys=ring.edge, profile_models=["torchvision:*"])
    for local in ("tcp://127.0.0.2:*", "tcp://[::1]:*", "tcp://localhost:*", "ipc:///tmp/x"):
        EdgeServer(None, local, profile_models=["torchvision:*"])


def test_no_more_devices_than_the_limit(tiny_bundle: Bundle, sockets: Sockets) -> None:
    with EdgeServer(tiny_bundle, LOCAL, limits=EdgeLimits(devices=2)) as edge:
        where = (sockets, tiny_bundle, edge.endpoint, edge.control_endpoint)
        first, second, third = (HandmadeDevice(*where) for _ in range(3))
        assert isinstance(first.hello(), control.Welcome)
        assert isinstance(second.hello(), control.Welcome)
        refused = third.hello()
        assert isinstance(refused, control.Refused)
        assert refused.code == "full"
        assert isinstance(second.hello(), control.Welcome)  # it has its place
        first.send_control(control.Goodbye())
        first.stats()
        assert isinstance(third.hello(), control.Welcome)
    with pytest.raises(ValueError, match="devices must be at least 1"):
        EdgeLimits(devices=0)


def test_the_tests_that_the_page_on_security_names_are_there() -> None:
    tests = Path(__file__).parent
    page = (tests.parent / "docs" / "security.md").read_text()
    there = "".join(file.read_text() for file in tests.glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) > 10
    assert [name for name in sorted(named) if f"def {name}(" not in there] == []
