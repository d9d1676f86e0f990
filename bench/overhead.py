"""The Offloader's own time in a round trip, above an echo of the same bytes by bare sockets.

    python -m bench.overhead                # from a checkout, in the environment of `make test`
    python -m bench.overhead --nbytes 50176 --requests 2000

An edge daemon and an echo run in processes of their own. The echo does what any program on these
sockets must do: one thread sends on PUSH and waits on DEALER, the other polls PULL and answers on
ROUTER, and nothing is copied or checked. The two are asked in turns, in blocks, so that whatever
disturbs the machine disturbs both. The Offloader's own time is the median of a request's latency
minus what is the user's: the slices, encoding and decoding. The last line is its difference from
the echo's median.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import zmq
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from bundles import Toy, write_bundle  # noqa: E402  # tests/ is on the path of pytest alone

import scissionlite as sl  # noqa: E402

BLOCK = 50  # requests to one of the two before the other has its turn
USERS = ("preprocess", "device_slice", "encode", "edge_decode", "edge_run")


class Corner(nn.Module):
    """An edge slice that costs almost nothing: it answers one value per channel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, 0, 0].contiguous()


def main() -> None:
    """Print the medians, and the Offloader's own time above the echo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nbytes", type=int, default=50_176, help="bytes of a packed tensor")
    parser.add_argument("--requests", type=int, default=1000, help="to each of the two")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        latencies, echoes, stages = measure(Path(folder), options.nbytes, options.requests)
    own, echo = statistics.median(latencies), statistics.median(echoes)
    for name, seconds in stages.items():
        print(f"{name:>14}: {statistics.median(seconds) * 1e3:6.3f} ms")
    print(f"{'own time':>14}: {own * 1e3:6.3f} ms, median of {len(latencies)}")
    print(f"{'echo':>14}: {echo * 1e3:6.3f} ms, median of {len(echoes)}, {options.nbytes} bytes")
    print(f"{'above the echo':>14}: {(own - echo) * 1e3:6.3f} ms")


def measure(
    folder: Path, nbytes: int, requests: int
) -> tuple[list[float], list[float], dict[str, list[float]]]:
    """Ask the daemon and the echo in turns; seconds of each request, and of the stages."""
    side = round((nbytes / 16) ** 0.5)
    shape = (1, 16, 2 * side, 2 * side)
    toy = Toy("nothing", nn.ReLU(), Corner(), shape, shape, shape[:2])
    bundle = write_bundle(
        toy, folder, transfer=sl.TransferSpec(), quantization=sl.Quantization(0.02, 0)
    )
    x = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    payload = np.random.default_rng(2).bytes(sl.TransferSpec().packed_nbytes(shape))
    context = multiprocessing.get_context("spawn")
    started = []
    targets: tuple[Callable[[Path, Connection], None], ...] = (serve, echo)
    for target in targets:
        here, there = context.Pipe()
        process = context.Process(target=target, args=(bundle.path, there), daemon=True)
        process.start()
        started.append((here, process))
    (edge, _), (mirror, _) = started
    latencies: list[float] = []
    echoes: list[float] = []
    stages: dict[str, list[float]] = {}
    with (
        zmq.Context() as sockets,
        sockets.socket(zmq.PUSH) as push,
        sockets.socket(zmq.DEALER) as dealer,
    ):
        dealer.identity = b"\1" * 16
        tensors, control = mirror.recv()
        push.connect(tensors)
        dealer.connect(control)
        dealer.send(b"hello")
        tensors, control = edge.recv()
        with sl.Device(bundle, tensors, control=control, threads=1) as device:
            for _ in range(BLOCK):
                device.infer(x)
                bounce(push, dealer, payload)
            while len(latencies) < requests:
                for _ in range(BLOCK):
                    answer = device.submit(x).result()
                    users = sum(answer.timings.get(name, 0.0) for name in USERS)
                    latencies.append(answer.latency - users)
                    for name, seconds in answer.timings.items():
                        stages.setdefault(name, []).append(seconds)
                for _ in range(BLOCK):
                    start = time.monotonic()
                    bounce(push, dealer, payload)
                    echoes.append(time.monotonic() - start)
    for here, process in started:
        here.send(None)
        process.join()
    return latencies, echoes, stages


def bounce(push: zmq.Socket[bytes], dealer: zmq.Socket[bytes], payload: bytes) -> None:
    """Send the payload there and back."""
    push.send_multipart([b"header", payload], copy=False)
    dealer.recv_multipart(copy=False)


def serve(bundle: Path, parent: Connection) -> None:
    """Serve the bundle; in a process of its own."""
    torch.set_num_threads(1)
    with sl.EdgeServer(bundle, "tcp://127.0.0.1:*", threads=1) as server:
        parent.send((server.endpoint, server.control_endpoint))
        parent.recv()


def echo(bundle: Path, parent: Connection) -> None:
    """Send back what comes, as any daemon on these sockets would; in a process of its own."""
    with (
        zmq.Context() as context,
        context.socket(zmq.PULL) as pull,
        context.socket(zmq.ROUTER) as router,
    ):
        ports = [each.bind_to_random_port("tcp://127.0.0.1") for each in (pull, router)]
        parent.send([f"tcp://127.0.0.1:{port}" for port in ports])
        sender, _ = router.recv_multipart()
        poller = zmq.Poller()
        poller.register(pull, zmq.POLLIN)
        poller.register(parent.fileno(), zmq.POLLIN)
        while parent.fileno() not in (ready := dict(poller.poll())):
            if pull in ready:
                router.send_multipart([sender, *pull.recv_multipart(copy=False)], copy=False)


if __name__ == "__main__":
    main()
