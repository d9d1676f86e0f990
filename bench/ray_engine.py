"""The Ray engine beside the local one: equal answers, cost, faults, scaling.

    python -m bench.ray_engine                   # from a checkout, as `make test`
    python -m bench.ray_engine cost payloads     # some of its parts

A Ray cluster of three nodes runs on this machine, with daemons on it in processes of their own.

``cost``      one device asks a local daemon and one with ``--engine ray`` in turns, in blocks; the
              answers must be equal bit for bit
``payloads``  a trivial deployment is sent bytes, an array, and an array that was put in the object
              store before
``faults``    64 devices ask two daemons with two replicas, of which one replica, one daemon and one
              node are killed; fails if an answer is wrong, missing, or 0.5 s late
``updates``   amid the traffic of 16 devices, a daemon with other options is started, so that Serve
              replaces the replicas; fails as ``faults`` does
``scaling``   16 devices ask, and stop: the replicas each second
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from bundles import Toy, write_bundle  # noqa: E402  # tests/ is on the path of pytest alone
from many_devices import Tally  # noqa: E402
from processes import Process  # noqa: E402
from ray_processes import Front, RayCluster, joined  # noqa: E402

import scissionlite as sl  # noqa: E402
from bench.overhead import BLOCK, Corner  # noqa: E402
from bench.scale import make_bundle  # noqa: E402

DEVICES, PROCESSES, DEADLINE, LATE = 64, 4, 5.0, 0.5
SIZES = (1_000, 50_000, 200_000, 2_000_000)


def main() -> None:
    """Run the parts that are asked for."""
    parts: dict[str, Callable[[RayCluster, Path], None]] = {
        "cost": cost,
        "payloads": payloads,
        "faults": faults,
        "updates": updates,
        "scaling": scaling,
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *parts], default=[])
    chosen = parser.parse_args().parts or list(parts)
    for part in chosen:
        print(f"# {part}", flush=True)
        # No CPU on the head's node, where the daemons are: it has no replica, and is not killed.
        cluster = RayCluster(0, 1, 1)
        try:
            with tempfile.TemporaryDirectory() as folder:
                parts[part](cluster, Path(folder))
        finally:
            cluster.close()


def cost(cluster: RayCluster, folder: Path) -> None:
    """Print the latency of a request through either engine, for some sizes."""
    for nbytes in SIZES:
        (folder / str(nbytes)).mkdir()
        bundle, x = packed_bundle(folder / str(nbytes), nbytes)
        local = Process(
            "scissionlite", "serve", str(bundle.path), "--bind", "tcp://127.0.0.1:*",
            "--threads", "1", "--json",
        )  # fmt: skip
        ready = local.read_json()
        front = Front(cluster, str(bundle.path))
        with (
            sl.Device(bundle, ready["endpoint"], control=ready["control_endpoint"]) as near,
            sl.Device(bundle, front.endpoint, control=front.control) as far,
        ):
            seconds = in_turns({"local": near, "ray": far}, x)
        near_ms, far_ms = (1e3 * statistics.median(seconds[name]) for name in ("local", "ray"))
        print(
            f"{nbytes:>8} bytes: local {near_ms:.2f} ms, Ray {far_ms:.2f} ms, "
            f"{far_ms - near_ms:.2f} more; answers equal",
            flush=True,
        )
        front.terminate()
        front.kill()
        local.terminate()
        local.kill()


def packed_bundle(folder: Path, nbytes: int) -> tuple[sl.Bundle, npt.NDArray[np.float32]]:
    """A bundle whose slices cost almost nothing, with payloads of about so many bytes."""
    side = max(1, round((nbytes / 16) ** 0.5))
    shape = (1, 16, 2 * side, 2 * side)
    toy = Toy("nothing", nn.ReLU(), Corner(), shape, shape, shape[:2])
    bundle = write_bundle(
        toy, folder, transfer=sl.TransferSpec(), quantization=sl.Quantization(0.02, 0)
    )
    return bundle, np.random.default_rng(1).standard_normal(shape, dtype=np.float32)


def in_turns(
    devices: dict[str, sl.Device], x: npt.NDArray[np.float32], blocks: int = 6
) -> dict[str, list[float]]:
    """Ask devices in turns, in blocks; the seconds of each request, without the first block."""
    seconds: dict[str, list[float]] = {name: [] for name in devices}
    expected = None
    for block in range(blocks + 1):
        for name, device in devices.items():
            for _ in range(BLOCK):
                answer = device.submit(x).result()
                expected = answer.output if expected is None else expected
                assert np.array_equal(answer.output, expected)
                if block:
                    seconds[name].append(answer.latency)
    return seconds


def payloads(cluster: RayCluster, folder: Path) -> None:
    """Print the time of a call of a trivial deployment, by how its argument is given."""
    import ray
    from ray import serve

    ray.init(cluster.address, log_to_driver=False, configure_logging=False)
    serve.start(proxy_location="Disabled")
    deployment = serve.deployment(Length, ray_actor_options={"num_cpus": 0.5})
    handle = serve.run(deployment.bind(), name="length", route_prefix=None)
    ways: dict[str, Callable[[bytes], Any]] = {
        "bytes": lambda data: data,
        "array": lambda data: np.frombuffer(data, np.uint8),
        "put": lambda data: ray.put(np.frombuffer(data, np.uint8)),
    }
    for nbytes in SIZES:
        data = os.urandom(nbytes)
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for block, (way, give) in itertools.product(range(5), ways.items()):
            for _ in range(BLOCK):
                begun = time.perf_counter()
                assert handle.remote(give(data)).result(timeout_s=30) == nbytes
                if block:
                    seconds[way].append(time.perf_counter() - begun)
        medians = (f"{way} {1e3 * statistics.median(each):.2f} ms" for way, each in seconds.items())
        print(f"{nbytes:>8} bytes: {', '.join(medians)}", flush=True)
    ray.shutdown()


class Length:
    """Answers the length of what it is sent."""

    def __call__(self, data: Any) -> int:
        return len(data)


def faults(cluster: RayCluster, folder: Path) -> None:
    """Kill a replica, a daemon and a node amid the traffic of many devices."""
    bundle = make_bundle(folder)
    scale = ("--replicas", "2", "--max-replicas", "2")
    fronts = [Front(cluster, str(bundle.path), *scale) for _ in range(2)]
    while len(set(cluster.replicas(bundle).values())) < 2:
        time.sleep(0.5)
    quiet = traffic(fronts, bundle, DEVICES, 15.0, [])
    print("nothing killed:", describe(quiet), flush=True)

    def kill_replica() -> str:
        return f"killed replica {cluster.kill_replica(bundle)}"

    def kill_front() -> str:
        fronts[0].send_signal(signal.SIGKILL)
        return "killed daemon 1 of 2"

    def kill_node() -> str:
        node = min(cluster.replicas(bundle).values())
        cluster.ask("kill-node", node)
        return f"killed node {node[:8]}"

    tally = traffic(fronts, bundle, DEVICES, 30.0, [kill_replica, kill_front, kill_node])
    print("amid the faults:", describe(tally), flush=True)
    for front in fronts:
        front.kill()
    check(tally)


def check(tally: Tally) -> None:
    """End with an error if a request was lost or late."""
    if tally.right != tally.asked or tally.latest > LATE:
        sys.exit("an answer was wrong, missing, or late")


def updates(cluster: RayCluster, folder: Path) -> None:
    """Start a daemon with other options amid traffic; Serve then replaces the replicas."""
    bundle = make_bundle(folder)
    scale = ("--replicas", "2", "--max-replicas", "2")
    fronts = [Front(cluster, str(bundle.path), *scale)]
    while len(before := set(cluster.replicas(bundle))) < 2:
        time.sleep(0.5)

    def start_other() -> str:
        fronts.append(Front(cluster, str(bundle.path), *scale, "--target-ongoing", "3"))
        while before & set(cluster.replicas(bundle)):
            time.sleep(0.5)
        return f"replicas {sorted(before)} were replaced by {sorted(cluster.replicas(bundle))}"

    tally = traffic([*fronts], bundle, 16, 60.0, [start_other], share=0.1)
    print("amid the update:", describe(tally), flush=True)
    for front in fronts:
        front.kill()
    check(tally)


def traffic(
    fronts: list[Front],
    bundle: sl.Bundle,
    devices: int,
    seconds: float,
    events: list[Callable[[], str]],
    share: float | None = None,
) -> Tally:
    """Have devices ask for some seconds, and do each of the events in its turn.

    The first comes after a share of the time, by default one of equal ones.
    """
    share = 1 / (len(events) + 1) if share is None else share
    bounds = [devices * i // PROCESSES for i in range(PROCESSES + 1)]
    started = [
        Process(
            "many_devices", str(bundle.path), *joined(fronts),
            str(first), str(end - first), str(seconds), str(DEADLINE),
        )
        for first, end in itertools.pairwise(bounds)
    ]  # fmt: skip
    try:
        for process in started:
            process.read_line()
        begun = time.monotonic()
        for process in started:
            process.write_line()
        for number, event in enumerate(events, 1):
            time.sleep(max(0.0, begun + seconds * number * share - time.monotonic()))
            print(f"after {time.monotonic() - begun:.1f} s: {event()}", flush=True)
        tally = Tally()
        for process in started:
            tally.add(Tally(**process.read_json()))
    finally:
        for process in started:
            process.kill()
    return tally


def describe(tally: Tally) -> str:
    """What became of the requests, in words."""
    p50, p95, most = (1e3 * float(np.percentile(tally.latencies, q)) for q in (50, 95, 100))
    return (
        f"asked {tally.asked}, right {tally.right}, wrong {tally.wrong}, failed {tally.failed}; "
        f"latency p50 {p50:.0f} ms, p95 {p95:.0f} ms, most {most:.0f} ms; the latest end "
        f"{tally.latest:+.2f} s after its deadline of {DEADLINE:g} s"
    )


def scaling(cluster: RayCluster, folder: Path) -> None:
    """Print the replicas each second, while devices ask and afterwards."""
    bundle = make_bundle(folder)
    delays = ("--upscale-delay", "2", "--downscale-delay", "5", "--target-ongoing", "1")
    front = Front(cluster, str(bundle.path), "--replicas", "1", "--max-replicas", "2", *delays)
    where = (str(bundle.path), front.endpoint, front.control)
    devices = Process("many_devices", *where, "0", "16", "25", str(DEADLINE))
    devices.read_line()
    begun = time.monotonic()
    devices.write_line()
    seen: list[int] = []
    while (now := time.monotonic() - begun) < 120 and not (now > 25 and seen[-1] == 1):
        replicas = len(cluster.replicas(bundle))
        if not seen or replicas != seen[-1]:
            print(f"after {now:.0f} s: {replicas} replicas", flush=True)
            seen.append(replicas)
        time.sleep(1.0)
    tally = Tally(**devices.read_json())
    print("devices, which asked for 25 s:", describe(tally), flush=True)
    devices.kill()
    front.terminate()
    front.kill()
    if seen != [1, 2, 1]:
        sys.exit(f"replicas were {seen}")


if __name__ == "__main__":
    main()
