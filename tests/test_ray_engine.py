"""The Ray engine: a cluster and daemons in processes of their own, replicas and daemons killed.

``python -m bench.ray_engine`` does it with 64 devices, kills a node, and watches the scaling.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BundleFactory
from many_devices import Inputs, Tally
from peers import LONG
from processes import run_here
from ray_processes import Front, RayCluster, joined

from scissionlite.bundle import Bundle
from scissionlite.errors import BundleMismatchError, DeadlineExceededError
from scissionlite.offloader import Device
from scissionlite.offloader.device.side import DeviceSide
from scissionlite.offloader.edge.side import EdgeSide
from scissionlite.transfer_layer import TransferSpec

pytestmark = [
    pytest.mark.long,  # a cluster
    pytest.mark.usefixtures("no_threads_left"),
    pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="ray is not installed"),
]

DEADLINE, LATE = 20.0, 0.5


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """A cluster of a node for the daemons and two for replicas."""
    started = RayCluster(0, 1, 1)
    yield started
    started.close()


@pytest.fixture(scope="module")
def fronts(cluster: RayCluster, onnx_bundle: Bundle) -> Iterator[list[Front]]:
    """Two daemons for one bundle, with two replicas; the first may be killed."""
    scale = ("--replicas", "2", "--max-replicas", "2")
    started = [Front(cluster, str(onnx_bundle.path), *scale) for _ in range(2)]
    yield started
    for each in started:
        each.kill()


def device_of(front: Front, bundle: Bundle, deadline: float = DEADLINE) -> Device:
    return Device(bundle, front.endpoint, control=front.control, threads=1, deadline=deadline)


def wait_until(condition: Any) -> None:
    until = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_the_answers_are_the_local_engine_s_bit_for_bit(
    cluster: RayCluster, fronts: list[Front], onnx_bundle: Bundle
) -> None:
    inputs = Inputs(onnx_bundle, (DeviceSide(onnx_bundle, 1), EdgeSide(onnx_bundle, 1)), 7)
    for front in fronts:
        with device_of(front, onnx_bundle) as device:
            for frame, expected in zip(inputs.frames, inputs.answers, strict=True):
                answer = device.submit(frame).result()
                assert answer.where == "edge"
                np.testing.assert_array_equal(answer.output, expected)
    # Both daemons use one application: the second has started no replicas of its own.
    assert len(cluster.replicas(onnx_bundle)) == 2


def test_a_replica_and_a_daemon_that_are_killed_lose_nothing(
    cluster: RayCluster, fronts: list[Front], onnx_bundle: Bundle, start_process: Any
) -> None:
    wait_until(lambda: len(cluster.replicas(onnx_bundle)) == 2)
    where = (str(onnx_bundle.path), *joined(fronts))
    devices = start_process("many_devices", *where, "0", "8", "6", str(DEADLINE))
    devices.read_line()
    devices.write_line()
    time.sleep(2)
    killed = cluster.kill_replica(onnx_bundle)
    time.sleep(1)
    fronts[0].send_signal(signal.SIGKILL)
    tally = Tally(**devices.read_json())
    assert (tally.right, tally.wrong, tally.failed) == (tally.asked, 0, 0)
    assert tally.asked > 8 * 4
    assert tally.latest < LATE
    wait_until(lambda: len({*cluster.replicas(onnx_bundle)} - {killed}) == 2)  # Serve's new one


def test_a_request_that_no_replica_answers_ends_at_its_deadline(
    cluster: RayCluster, fronts: list[Front], onnx_bundle: Bundle
) -> None:
    x = np.zeros(onnx_bundle.manifest.inputs[0].shape, np.float32)
    with device_of(fronts[1], onnx_bundle) as device:
        device.infer(x)
        stopped = [*cluster.replicas(onnx_bundle)]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(DeadlineExceededError):
                device.infer(x, deadline=1.0)
            os.kill(stopped[0], signal.SIGCONT)
            # The other one does not answer: the call is made again.
            for _ in range(4):
                device.infer(x)
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)


def test_a_bundle_is_replaced_amid_traffic(
    cluster: RayCluster, make_bundle: BundleFactory, tmp_path: Path, background: Any
) -> None:
    first = make_bundle(runtime="onnx", transfer=TransferSpec(pool=4))
    second = make_bundle(runtime="onnx", transfer=TransferSpec(pool=4, pool_kind="average"))
    shutil.copytree(first.path, tmp_path / "watched" / "line")
    front = Front(cluster, "--watch", str(tmp_path / "watched"), "--downscale-delay", "1")
    try:
        with device_of(front, first) as device:
            x = np.ones(first.manifest.inputs[0].shape, np.float32)
            device.infer(x)
            asking: Future[int] = background(ask_until_refused, device, x)
            shutil.copytree(second.path, tmp_path / "copy")
            (tmp_path / "watched" / "line").rename(tmp_path / "old")
            (tmp_path / "copy").rename(tmp_path / "watched" / "line")
            assert asking.result(LONG) > 0  # each of them was answered
        with device_of(front, second) as device:
            device.infer(x)
        wait_until(lambda: not cluster.replicas(first))  # Serve ends what nobody calls
        assert cluster.replicas(second)
        assert front.terminate() == 0
    finally:
        front.kill()
    assert cluster.replicas(second)  # for other daemons
    cluster.end_replicas(second)


def ask_until_refused(device: Device, x: Any) -> int:
    """Ask until the bundle is served no longer; how many were answered."""
    answered = 0
    while True:
        try:
            device.infer(x)
        except BundleMismatchError:
            return answered
        answered += 1


def test_calls_of_several_daemons_run_together(
    cluster: RayCluster, make_bundle: BundleFactory, start_process: Any
) -> None:
    bundle = make_bundle(runtime="onnx", max_batch=4)
    options = ("--batch", "4", "--replica-batch-delay", "0.02", "--downscale-delay", "1")
    started = [Front(cluster, str(bundle.path), *options) for _ in range(2)]
    try:
        where = (str(bundle.path), *joined(started))
        devices = start_process("many_devices", *where, "0", "6", "2", str(DEADLINE))
        devices.read_line()
        devices.write_line()
        tally = Tally(**devices.read_json())
        assert (tally.right, tally.wrong, tally.failed) == (tally.asked, 0, 0)
        assert tally.asked >= 12
    finally:
        for each in started:
            each.kill()
        cluster.end_replicas(bundle)


@contextmanager
def asking(device: Device, bundle: Bundle) -> Iterator[list[float]]:
    """Ask meanwhile, four requests under way; every answer must be right and in time."""
    inputs = Inputs(bundle, (DeviceSide(bundle, 1), EdgeSide(bundle, 1)), 3)
    latencies: list[float] = []
    troubles: list[BaseException] = []
    stop = threading.Event()

    def ask() -> None:
        try:
            while not stop.is_set():
                for number, future in [(n, device.submit(inputs.frames[n])) for n in range(4)]:
                    answer = future.result()
                    assert answer.where == "edge"
                    np.testing.assert_allclose(answer.output, inputs.answers[number], atol=1e-5)
                    latencies.append(answer.latency)
        except BaseException as error:
            troubles.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield latencies
    finally:
        stop.set()
        thread.join()
    assert not troubles
    assert max(latencies) < DEADLINE + LATE


@contextmanager
def served(cluster: RayCluster, bundle: Bundle, *options: str) -> Iterator[Front]:
    """A daemon for a bundle; its replicas end with it."""
    front = Front(cluster, str(bundle.path), *options)
    try:
        yield front
    finally:
        front.kill()
        cluster.end_replicas(bundle)


def test_serve_updates_the_replicas_amid_traffic(
    cluster: RayCluster, fronts: list[Front], onnx_bundle: Bundle
) -> None:
    before = {*cluster.replicas(onnx_bundle)}
    with device_of(fronts[1], onnx_bundle) as device, asking(device, onnx_bundle) as latencies:
        options = ("--replicas", "2", "--max-replicas", "2", "--target-ongoing", "3")
        fronts.append(Front(cluster, str(onnx_bundle.path), *options))
        wait_until(lambda: len({*cluster.replicas(onnx_bundle)} - before) == 2)
        wait_until(lambda: not {*cluster.replicas(onnx_bundle)} & before)
        answered = len(latencies)
        wait_until(lambda: len(latencies) > answered)


def test_replicas_come_and_go_with_the_requests(
    cluster: RayCluster, make_bundle: BundleFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(runtime="onnx", transfer=TransferSpec(pool=1))
    monkeypatch.setenv("RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "1")  # not 10
    delays = ("--upscale-delay", "1", "--downscale-delay", "3", "--target-ongoing", "1")
    with (
        served(cluster, bundle, "--replicas", "1", "--max-replicas", "2", *delays) as front,
        device_of(front, bundle) as device,
    ):
        assert len(cluster.replicas(bundle)) == 1
        with asking(device, bundle):
            wait_until(lambda: len(cluster.replicas(bundle)) == 2)
        wait_until(lambda: len(cluster.replicas(bundle)) == 1)


def test_a_large_payload_is_read_in_the_object_store(cluster: RayCluster) -> None:
    assert "plasma" in cluster.ask("place", "200000")
    assert "plasma" not in cluster.ask("place", "50000")  # sent with the call


def test_replicas_share_gpus_and_a_node_that_is_killed_loses_nothing(
    cluster: RayCluster, make_bundle: BundleFactory
) -> None:
    bundle = make_bundle(runtime="onnx", transfer=TransferSpec(pool=2, pool_kind="average"))
    free = cluster.ask("free", "GPU")
    options = ("--replicas", "3", "--max-replicas", "3", "--gpus", "0.4")
    with served(cluster, bundle, *options) as front, device_of(front, bundle) as device:
        # Three on two nodes with a GPU each: two share one, and a third has no room there.
        wait_until(lambda: len(cluster.replicas(bundle)) == 3)
        wait_until(lambda: cluster.ask("free", "GPU") == pytest.approx(free - 1.2))
        assert len({*cluster.replicas(bundle).values()}) == 2
        with asking(device, bundle) as latencies:
            wait_until(lambda: latencies)
            node = cluster.replicas(bundle).popitem()[1]
            cluster.ask("kill-node", node)
            wait_until(lambda: [*cluster.replicas(bundle).values()].count(node) == 0)
            wait_until(lambda: len(cluster.replicas(bundle)) == 2)  # on the other one
            answered = len(latencies)
            wait_until(lambda: len(latencies) > answered)


def test_a_replica_joins_calls_into_one_run(make_bundle: BundleFactory) -> None:
    # Outside a cluster, where it can be seen; how many pay is measured otherwise.
    script = """
import asyncio, sys
import numpy as np
from scissionlite.bundle import Bundle
from scissionlite.offloader.device.side import DeviceSide
from scissionlite.offloader.edge import side
side.best_batch = lambda *_: 4
from ray.serve import batching
# It compares with the deployment, which is not there.
batching._BatchQueue._warn_if_max_batch_size_exceeds_max_ongoing_requests = lambda _: None
from scissionlite.offloader.edge.engines.engine import SliceOptions
from scissionlite.offloader.edge.engines.ray_options import RayOptions
from scissionlite.offloader.edge.engines.ray_replica import EdgeReplica, Request, Setting, as_array
from scissionlite.offloader.stopwatch import Stopwatch
bundle = Bundle.load(sys.argv[1])
options = SliceOptions(threads=1, batch=4)
together = RayOptions(replica_batch_delay=1)
replica = EdgeReplica(Setting(str(bundle.path), bundle.id, options, together))
alone = EdgeReplica(Setting(str(bundle.path), bundle.id, options, RayOptions()))
device, runs = DeviceSide(bundle, 1), []
finish = replica._served.side.finish
replica._served.side.finish = lambda jobs: runs.append(len(jobs)) or finish(jobs)
def call(number):
    x = np.random.default_rng(number).standard_normal(bundle.manifest.inputs[0].shape, np.float32)
    headers, payloads = device.make_request((x,), Stopwatch())
    views, device_id = [as_array(p) for p in payloads], bytes([number + 1]) * 16
    return [Request(device_id, number, headers, views, 1, 60.0)]
def values(replies):
    ((reply,),) = replies
    assert not reply.reason and reply.position == 0, reply
    return np.frombuffer(reply.frames[-1], np.float32)
async def main():
    joined = await asyncio.gather(*(replica.finish(call(n)) for n in range(4)))
    for number, replies in enumerate(joined):
        (expected,) = [values(await alone.finish(call(number)))]
        np.testing.assert_allclose(values(replies), expected, rtol=1e-5, atol=1e-5)
        other = values(await alone.finish(call(number + 1)))
        assert not np.allclose(values(replies), other, rtol=1e-5, atol=1e-5)
    print(runs)
asyncio.run(main())
"""
    bundle = make_bundle(runtime="onnx", max_batch=4)
    command = [sys.executable, "-c", script, str(bundle.path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=LONG)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split("\n")[-2] == "[4]"


def test_a_replica_refuses_another_bundle_and_another_version(onnx_bundle: Bundle) -> None:
    script = """
import sys
from scissionlite.errors import BundleError
from scissionlite.offloader.edge.engines.engine import SliceOptions
from scissionlite.offloader.edge.engines.ray_replica import EdgeReplica, Setting
path, bundle_id = sys.argv[1:]
for setting in (
    Setting(path, "0" * 64, SliceOptions(threads=1), 0.0),
    Setting(path, bundle_id, SliceOptions(threads=1), 0.0, "0.0.0"),
):
    try:
        EdgeReplica(setting)
    except BundleError as error:
        print(error)
"""
    command = [sys.executable, "-c", script, str(onnx_bundle.path), onnx_bundle.id]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=LONG, check=True)
    other, version = ran.stdout.splitlines()
    assert f"is bundle {onnx_bundle.id[:12]}, not 000000000000" in other
    assert "the daemon has ScissionLite 0.0.0" in version


def test_a_cluster_that_is_not_there_is_one_clear_line() -> None:
    command = [sys.executable, "-m", "scissionlite", "serve", "--engine", "ray"]
    ran = subprocess.run(
        [*command, "--address", "127.0.0.1:1"], capture_output=True, text=True, timeout=LONG
    )
    assert ran.returncode == 1
    assert "no Ray cluster at '127.0.0.1:1'" in ran.stderr
    assert "ray start --head" in ran.stderr


def test_options_of_ray_need_the_engine() -> None:
    ran = run_here("serve", "--max-replicas", "2")
    assert ran.exit_code == 2
    assert "--engine ray" in ran.stderr
    ran = run_here("serve", "--engine", "ray", "--replicas", "3", "--max-replicas", "2")
    assert ran.exit_code == 2
    assert "--max-replicas 2 is less than --replicas 3" in ran.stderr
