"""Several edges: requests go to the first that is there, and to the next one when it is lost.

The daemons are processes of their own where they are killed. Deadlines are the issue's; other times
only guard against hangs.
"""

from __future__ import annotations

import functools
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import OUTPUT, BundleFactory
from peers import LOCAL, LONG, NOWHERE, Frames, HandmadeEdge, Sockets, in_one_process
from processes import Process

from scissionlite.bundle import Bundle
from scissionlite.errors import BundleMismatchError, EdgeUnavailableError, OffloadError
from scissionlite.keys import authorized
from scissionlite.keys.files import make_key_pair, read_public
from scissionlite.offloader import Answer, Device, DeviceKeys, EdgeKeys, EdgeServer
from scissionlite.offloader.device import credit as credit_module
from scissionlite.offloader.device.credit import Credit
from scissionlite.offloader.wire import control
from scissionlite.offloader.wire.endpoints import Endpoints

pytestmark = pytest.mark.usefixtures("no_threads_left")

DEADLINE = 5.0


class Daemons:
    """Processes that serve a bundle, each at its own endpoint."""

    def __init__(self, bundle: Bundle, endpoints: list[str]) -> None:
        self._bundle = bundle
        self.endpoints = endpoints
        self.processes = [self._start(endpoint) for endpoint in endpoints]
        for process in self.processes:
            process.read_json()

    def restart(self, index: int) -> None:
        """Start one again that was killed."""
        self.processes[index].kill()
        self.processes[index] = self._start(self.endpoints[index])
        self.processes[index].read_json()

    def _start(self, endpoint: str) -> Process:
        command = ["serve", str(self._bundle.path), "--bind", endpoint, "--json"]
        return Process("scissionlite", *command)


@pytest.fixture(scope="module")
def both(onnx_bundle: Bundle, free_port: Callable[[], int]) -> Iterator[Daemons]:
    """Two daemons."""
    started = Daemons(onnx_bundle, [f"tcp://127.0.0.1:{free_port()}" for _ in range(2)])
    yield started
    for process in started.processes:
        process.kill()


@pytest.fixture
def daemons(both: Daemons) -> Daemons:
    """The two daemons, both of them alive."""
    both.processes[0].send_signal(signal.SIGCONT)
    if both.processes[0].ended:
        both.restart(0)
    return both


def answer_through(
    device: Device, frames: Frames, until: Callable[[Answer], bool], at_once: int = 4
) -> list[Answer]:
    """Keep requests in flight until an answer fulfils a condition; the answers, all in time."""
    expected = [in_one_process(device.bundle, frame) for frame in frames]
    called: list[int] = []
    in_flight: list[tuple[int, Future[Answer]]] = []
    answers: list[Answer] = []

    def note(number: int, _: Future[Answer]) -> None:
        called.append(number)

    guard = time.monotonic() + LONG
    while not (answers and until(answers[-1])):
        assert time.monotonic() < guard
        while len(in_flight) < at_once:
            number = len(answers) + len(in_flight)
            submitted = device.submit(frames[number % 12])
            submitted.add_done_callback(functools.partial(note, number))
            in_flight.append((number, submitted))
        number, future = in_flight.pop(0)
        answers.append(future.result(LONG))
        np.testing.assert_array_equal(answers[-1].output, expected[number % 12])
        assert answers[-1].latency < DEADLINE + 0.1
    for _, future in in_flight:
        answers.append(future.result(LONG))
    device.close()  # waits for the callbacks
    assert sorted(called) == list(range(len(answers)))  # each once
    return answers


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_every_request_is_answered_in_time_when_an_edge_dies_amid_traffic(
    daemons: Daemons, onnx_bundle: Bundle, frames: Frames, number: signal.Signals
) -> None:
    first, second = daemons.endpoints
    with Device(onnx_bundle, [first, second], deadline=DEADLINE) as device:
        device.connect()
        while device.submit(frames[0]).result(LONG).edge != first:
            pass  # the second may be there a moment earlier
        count = 0

        def strike(answer: Answer) -> bool:
            nonlocal count
            count += 1
            if count == 20:
                daemons.processes[0].send_signal(number)
            return answer.edge == second

        answers = answer_through(device, frames, strike)
        assert {answer.edge for answer in answers} == {first, second}
        assert {answer.where for answer in answers} == {"edge"}


def test_it_returns_to_the_preferred_edge_that_stays(
    daemons: Daemons,
    onnx_bundle: Bundle,
    frames: Frames,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(credit_module, "_FIRST_PAUSE", LONG)
    monkeypatch.setattr(credit_module, "_LAST_PAUSE", LONG)
    first, second = daemons.endpoints
    with Device(onnx_bundle, [first, second], deadline=DEADLINE) as device:
        device.connect()
        while device.submit(frames[0]).result(LONG).edge != first:
            pass
        daemons.processes[0].kill()
        assert device.submit(frames[0]).result(LONG).edge == second
        daemons.restart(0)
        assert device._threads.edges is not None
        credit = device._threads.edges._edges[0].credit
        while not credit.connected:
            time.sleep(0.01)
        assert device.submit(frames[0]).result(LONG).edge == second  # it may go again
        credit.preferred_from = time.monotonic()  # it has stayed
        assert device.submit(frames[0]).result(LONG).edge == first


def test_an_edge_that_comes_and_goes_must_stay_longer_and_longer() -> None:
    credit = Credit(Endpoints("tcp://edge:5555", "tcp://edge:5556"))
    pauses = []
    for _ in range(8):
        credit.grant(1)
        pauses.append(round(max(credit.preferred_from - time.monotonic(), 0.0)))
        credit.grant(2)  # of the same connection: nothing changes
        credit.withdraw("lost")
        credit.withdraw("still away")
    assert pauses == [0, 2, 4, 8, 16, 32, 60, 60]


def test_a_lost_request_waits_until_another_edge_is_there(
    onnx_bundle: Bundle, frames: Frames, sockets: Sockets, background: Callable[..., Future[Any]]
) -> None:
    first, second = (HandmadeEdge(sockets, onnx_bundle) for _ in range(2))
    with Device(
        onnx_bundle,
        [first.endpoint, second.endpoint],
        control=[first.control, second.control],
        deadline=LONG,
    ) as device:
        submitting = background(device.submit, frames[0])
        device_id = first.greet()
        lost = first.request()
        first.send(device_id, control.Goodbye())
        first.close()  # and is not there any more
        second.greet()
        request = second.request()
        assert request.device_id != lost.device_id
        output = np.arange(5, dtype=np.float32).reshape(OUTPUT)
        second.answer(request, output)
        answer = submitting.result(LONG).result(LONG)
        np.testing.assert_array_equal(answer.output, output)
        assert answer.edge == second.endpoint


def test_each_edge_has_its_own_key(onnx_bundle: Bundle, frames: Frames, tmp_path: Path) -> None:
    for name in ("device", "a", "b"):
        make_key_pair(tmp_path / name)
    authorized.authorize(tmp_path / "authorized", read_public(tmp_path / "device.pub"))
    a, b = (
        EdgeServer(onnx_bundle, LOCAL, keys=EdgeKeys(tmp_path / name, tmp_path / "authorized"))
        for name in ("a", "b")
    )
    keys = [DeviceKeys(tmp_path / "device", tmp_path / f"{name}.pub") for name in ("a", "b")]
    with a, b:
        endpoints, controls = (
            [a.endpoint, b.endpoint],
            [a.control_endpoint, b.control_endpoint],
        )
        options: dict[str, Any] = {"control": controls, "deadline": LONG}
        with Device(onnx_bundle, endpoints, keys=keys, **options) as device:
            while device.submit(frames[0]).result(LONG).edge != a.endpoint:
                pass
            a.close()
            assert device.submit(frames[0]).result(LONG).edge == b.endpoint
        with (
            Device(onnx_bundle, endpoints, keys=keys[::-1], **options) as device,
            pytest.raises(OffloadError),
        ):
            device.submit(frames[0], 1.0).result(LONG)


def test_an_edge_that_refuses_is_passed_by(
    make_bundle: BundleFactory, onnx_bundle: Bundle, frames: Frames
) -> None:
    with EdgeServer(make_bundle(seed=5), LOCAL) as wrong, EdgeServer(onnx_bundle, LOCAL) as right:
        controls = [wrong.control_endpoint, right.control_endpoint]
        endpoints = [wrong.endpoint, right.endpoint]
        with Device(onnx_bundle, endpoints, control=controls, deadline=LONG) as device:
            assert device.submit(frames[0]).result(LONG).edge == right.endpoint
        with (
            Device(
                onnx_bundle,
                [wrong.endpoint, wrong.endpoint.replace("127.0.0.1", "localhost")],
                control=[controls[0], controls[0].replace("127.0.0.1", "localhost")],
                deadline=LONG,
            ) as device,
            pytest.raises(BundleMismatchError),
        ):
            device.infer(frames[0])


def test_without_any_edge_the_error_names_all_and_the_fallback_answers(
    onnx_bundle: Bundle, frames: Frames
) -> None:
    endpoints = [NOWHERE, NOWHERE.replace(":9", ":11")]
    with (
        Device(onnx_bundle, endpoints, deadline=0.3) as device,
        pytest.raises(EdgeUnavailableError, match=r":9 .*:11 .*scissionlite serve"),
    ):
        device.infer(frames[0])
    with Device(onnx_bundle, endpoints, fallback="local", deadline=0.3) as device:
        answer = device.submit(frames[0]).result(LONG)
        assert (answer.where, answer.edge) == ("local", None)
    with pytest.raises(OffloadError, match="was closed"):
        device.infer(frames[0])


@pytest.mark.parametrize(
    ("connect", "options", "match"),
    [
        ([], {}, "one or more"),
        ([NOWHERE, NOWHERE], {}, "different"),
        ([NOWHERE, "tcp://127.0.0.1:11"], {"control": "tcp://127.0.0.1:10"}, "each of the 2"),
        ([NOWHERE, "tcp://127.0.0.1:11"], {"control": [None]}, "each of the 2"),
        ([NOWHERE, "tcp://127.0.0.1:11"], {"keys": [None]}, "each of the 2"),
        ([NOWHERE, "udp://host:1"], {}, "not an endpoint"),
    ],
)
def test_edges_that_do_not_fit_together_are_a_value_error(
    onnx_bundle: Bundle, connect: list[str], options: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        Device(onnx_bundle, connect, **options)


def test_the_last_answer_is_given_again_while_the_edge_is_away(
    onnx_bundle: Bundle, frames: Frames, free_port: Callable[[], int]
) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with Device(onnx_bundle, endpoint, fallback="last", deadline=1.0) as device:
        with pytest.raises(EdgeUnavailableError):
            device.infer(frames[0])  # there is none yet
        with EdgeServer(onnx_bundle, endpoint):
            device.connect(LONG)
            first = device.submit(frames[0], LONG).result(LONG)
            assert (first.where, first.edge, first.age) == ("edge", endpoint, 0.0)
        expected = first.output.copy()
        first.output[:] = 0  # the caller's own
        while (answer := device.submit(frames[1]).result(LONG)).where != "last":
            expected = answer.output.copy()  # it is still there
        np.testing.assert_array_equal(answer.output, expected)
        assert answer.edge == endpoint
        again = device.submit(frames[1]).result(LONG)
        assert again.age > answer.age > 0.0
        assert again.latency == pytest.approx(sum(again.timings.values()))
        answer.output[:] = 0
        np.testing.assert_array_equal(again.output, expected)
    with pytest.raises(ValueError, match="'local', 'last' or 'raise', got 'first'"):
        Device(onnx_bundle, endpoint, fallback="first")  # type: ignore[arg-type]
