"""Several bundles on one daemon, which come, go and are replaced while devices stream.

Real daemons and devices. Time-outs here only guard against hangs; no outcome depends on how fast
the machine is.
"""

from __future__ import annotations

import gc
import itertools
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from conftest import BundleFactory
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
from scissionlite.errors import BundleError, BundleMismatchError, OffloadError
from scissionlite.offloader import Device, EdgeLimits, EdgeServer
from scissionlite.offloader.edge import bounds, served
from scissionlite.offloader.edge.side import EdgeSide
from scissionlite.offloader.wire import control

pytestmark = pytest.mark.usefixtures("no_threads_left")


@pytest.fixture(scope="module")
def bundles(make_bundle: BundleFactory) -> tuple[Bundle, Bundle]:
    return make_bundle(seed=21, runtime="onnx"), make_bundle(seed=22, runtime="onnx")


def wait_until(true: Callable[[], object]) -> None:
    """Wait for something that other threads bring about."""
    until = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def infer_when_served(device: Device, frame: Any) -> Any:
    """Infer again and again, until the device's bundle is served."""
    until = time.monotonic() + LONG
    while True:
        try:
            return device.infer(frame)
        except BundleMismatchError:
            assert time.monotonic() < until
            time.sleep(0.02)


def test_devices_of_two_bundles_get_the_answers_of_their_own_slices(
    bundles: tuple[Bundle, Bundle], make_bundle: BundleFactory, frames: Frames
) -> None:
    first, second = bundles
    expected = [[in_one_process(each, frame) for frame in frames] for each in bundles]
    assert not np.array_equal(expected[0][0], expected[1][0])
    with (
        EdgeServer([first, second.path], LOCAL, workers=2) as edge,
        device_of(edge, first) as one,
        device_of(edge, second) as other,
        device_of(edge, make_bundle(seed=23)) as stranger,
    ):
        assert [each.id for each in edge.bundles] == [first.id, second.id]
        futures = [[device.submit(frame) for device in (one, other)] for frame in frames]
        for number, pair in enumerate(futures):
            for right, future in zip(expected, pair, strict=True):
                np.testing.assert_array_equal(future.result(LONG).output, right[number])
        with pytest.raises(BundleMismatchError, match=r"bundles .*tiny-21\), .*tiny-22\)"):
            stranger.infer(frames[0])
        assert edge.stats().served == 2 * len(frames)


def test_a_device_uses_the_bundle_of_its_hello_only(
    bundles: tuple[Bundle, Bundle], frames: Frames, sockets: Sockets
) -> None:
    first, second = bundles
    with EdgeServer(bundles, LOCAL) as edge, device_of(edge, second) as good:
        device = HandmadeDevice(sockets, first, edge.endpoint, edge.control_endpoint)
        assert isinstance(device.hello(), control.Welcome)
        other = HandmadeDevice(
            sockets, second, edge.endpoint, edge.control_endpoint, device_id=b"\x03" * 16
        )
        other.id = device.id
        tensor, payload = payload_for(second, frames[0])
        device.send(*other.request(1, tensor, payload))
        failed, _ = device.receive()
        assert isinstance(failed, control.Failed)
        assert failed.code == "bundle-mismatch"
        good.infer(frames[0])


@pytest.mark.parametrize("fallback", ["raise", "local"])
def test_a_bundle_replaced_amid_traffic_loses_no_request(
    bundles: tuple[Bundle, Bundle],
    frames: Frames,
    background: Callable[..., Future[Any]],
    fallback: Any,
) -> None:
    old, new = bundles
    expected = [in_one_process(old, frame) for frame in frames]
    with (
        EdgeServer(old, LOCAL) as edge,
        device_of(edge, old, fallback=fallback) as one,
        device_of(edge, old, fallback=fallback) as two,
    ):
        replaced = threading.Event()

        def stream(device: Device) -> tuple[list[str], int]:
            """Send frames, several at a time, until some were answered after the replacement."""
            where: list[str] = []
            refused = after = 0
            for number in itertools.count():
                chosen = [(number + i) % len(frames) for i in range(4)]
                after += replaced.is_set()
                futures = []
                for i in chosen:
                    try:
                        futures.append((i, device.submit(frames[i], deadline=LONG)))
                    except BundleMismatchError:
                        refused += 1
                for i, future in futures:
                    try:
                        answer = future.result(LONG)
                    except BundleMismatchError:
                        refused += 1
                        continue
                    where.append(answer.where)
                    if answer.where == "edge":
                        np.testing.assert_array_equal(answer.output, expected[i])
                if after > 10:
                    return where, refused
            raise AssertionError

        streams = [background(stream, device) for device in (one, two)]
        wait_until(lambda: edge.stats().served > 50)
        added = edge.add(new.path, replaces=old.id)
        assert added.id == new.id
        assert [each.id for each in edge.bundles] == [new.id]
        wait_until(lambda: edge.stats().devices == 0)
        replaced.set()
        at_edge = 0
        for each in streams:
            where, refused = each.result(LONG)
            at_edge += where.count("edge")
            assert where[-1] == ("local" if fallback == "local" else "edge")
            assert (refused == 0) == (fallback == "local")
        assert at_edge > 50  # by either device: which of them is faster is nobody's promise
        with device_of(edge, new) as device:
            answer = device.infer(frames[0])
            np.testing.assert_array_equal(answer, in_one_process(new, frames[0]))
        counts = edge.stats()
        assert (counts.failed, counts.expired, counts.busy) == (0, 0, 0)
        assert counts.rejected == {}


def test_what_was_accepted_before_a_bundle_is_dropped_is_answered_by_its_slices(
    bundles: tuple[Bundle, Bundle],
    frames: Frames,
    sockets: Sockets,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = bundles
    at_work, goes_on = threading.Event(), threading.Event()
    finish = EdgeSide.finish

    def slow(side: EdgeSide, job: Any) -> Any:
        at_work.set()
        assert goes_on.wait(LONG)
        return finish(side, job)

    monkeypatch.setattr(EdgeSide, "finish", slow)
    with EdgeServer(old, LOCAL) as edge:
        device = HandmadeDevice(sockets, old, edge.endpoint, edge.control_endpoint)
        idle = HandmadeDevice(sockets, old, edge.endpoint, edge.control_endpoint)
        for each in (device, idle):
            assert isinstance(each.hello(), control.Welcome)
        tensor, payload = payload_for(old, frames[0])
        for number in (1, 2, 3):
            device.send(*device.request(number, tensor, payload))
        assert at_work.wait(LONG)
        wait_until(lambda: edge._loop._schedule.waiting == 2)
        edge.add(new, replaces=old.id)
        refused, _ = idle.receive()
        assert isinstance(refused, control.Refused)
        assert refused.code == "bundle-mismatch"
        assert "is served no longer: it serves bundle" in refused.reason
        device.send(*device.request(4, tensor, payload))  # too late: not accepted
        goes_on.set()
        answers = [device.receive()[0] for _ in range(4)]
        assert [type(each).__name__ for each in answers] == ["Result"] * 3 + ["Refused"]
        assert edge.stats().devices == 0


def test_devices_come_back_by_themselves_when_their_bundle_is_served_again(
    bundles: tuple[Bundle, Bundle], frames: Frames
) -> None:
    first, second = bundles
    with (
        EdgeServer(bundles, LOCAL) as edge,
        device_of(edge, first) as one,
        device_of(edge, second) as other,
    ):
        other.connect(LONG)
        for _ in range(2):
            infer_when_served(one, frames[0])
            edge.remove(first.id)
            wait_until(lambda: edge.stats().devices == 1)
            with pytest.raises(BundleMismatchError):
                one.infer(frames[0])
            expected = in_one_process(second, frames[1])
            np.testing.assert_array_equal(other.infer(frames[1]), expected)
            edge.add(first)
        answer = infer_when_served(one, frames[0])
        np.testing.assert_array_equal(answer, in_one_process(first, frames[0]))


def test_a_broken_bundle_is_an_error_and_changes_nothing(
    bundles: tuple[Bundle, Bundle], make_bundle: BundleFactory, frames: Frames
) -> None:
    first, second = bundles
    broken = make_bundle(seed=24, runtime="onnx")
    broken.slice_path("edge").write_bytes(b"nothing")
    with EdgeServer(first, LOCAL) as edge, device_of(edge, first) as device:
        device.infer(frames[0])
        for bundle in (broken, broken.path, broken.path / "nowhere"):
            with pytest.raises(BundleError):
                edge.add(bundle, replaces=first.id)
        with pytest.raises(OffloadError, match="sends nothing"):
            edge.add(make_bundle("local"), replaces=first.id)
        with pytest.raises(OffloadError, match=f"bundle {second.id[:12]} is not served: it serves"):
            edge.remove(second.id)
        assert edge.add(first.path, replaces=first.id).id == first.id  # as it is
        assert [each.id for each in edge.bundles] == [first.id]
        device.infer(frames[0])
        assert edge.stats().devices == 1


def test_bundles_change_only_while_the_daemon_runs_and_within_its_limits(
    bundles: tuple[Bundle, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = bundles
    edge = EdgeServer(first, LOCAL)
    with pytest.raises(OffloadError, match="must be started"):
        edge.add(second)
    with edge:
        monkeypatch.setattr(served, "MAX_BUNDLES", 1)
        with pytest.raises(OffloadError, match="at most 1 bundles"):
            edge.add(second)
        edge.add(second, replaces=first.id)
        edge.add(second)
    with pytest.raises(OffloadError, match="must be started"):
        edge.remove(second.id)


def test_a_bundle_of_larger_requests_than_the_daemon_takes_is_refused(
    bundles: tuple[Bundle, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = bundles
    largest = {first.id: 1 << 21, second.id: (1 << 21) + 1}
    monkeypatch.setattr(
        bounds,
        "max_payload",
        lambda manifest: largest[first.id if manifest == first.manifest else second.id],
    )
    limits = EdgeLimits(payload=1)  # a larger one at the start is a larger limit
    with EdgeServer(first, LOCAL, limits=limits) as edge:
        with pytest.raises(OffloadError, match=r"2097153 bytes, more than .*\(2097152\).*payload="):
            edge.add(second)
        assert [each.id for each in edge.bundles] == [first.id]
    with pytest.raises(ValueError, match="payload must be"):
        EdgeLimits(payload=0)


def test_a_dropped_bundle_is_freed(bundles: tuple[Bundle, Bundle], frames: Frames) -> None:
    first, second = bundles
    with EdgeServer(first, LOCAL) as edge:
        (record,) = edge._loop.metrics.bundles
        (side,) = edge._loop.bundles.sides
        alive = weakref.ref(side)
        del side
        with device_of(edge, first) as device:
            device.infer(frames[0])
            edge.add(second, replaces=first.id)
            wait_until(lambda: edge.stats().devices == 0)
            wait_until(lambda: gc.collect() < 0 or alive() is None)
        assert record.requests["served"] == 1
        assert edge.stats().served == 1  # what a dropped bundle did still counts
        assert [each.bundle.id for each in edge._loop.metrics.bundles] == [second.id]
