"""Round trip of a request: the Offloader's own time, and the time on a link.

The slices compute almost nothing. So over loopback the time is that of the wire: framing, digest,
sockets, threads. The reference there is the int8 payload sent there and back by two bare ZeroMQ
sockets. Over the paper's link, emulated (58.8 Mbit/s, 27.4 ms), it is the float32 split. The cost
of encryption (CURVE) is measured in turns with the same requests in the clear.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from bundles import Toy, write_bundle
from torch import nn

import scissionlite as sl
from bench.conftest import Measure
from bench.overhead import Corner
from scissionlite import _core
from scissionlite.demo.link_emulator import LinkEmulator
from scissionlite.keys.files import make_key_pair

SHAPES = [(1, 16, 28, 28), (1, 64, 112, 112)]
SPECS = [sl.TransferSpec(), sl.TransferSpec.paper(), sl.TransferSpec.float32_split()]


def scale_of(spec: sl.TransferSpec) -> sl.Quantization | None:
    return sl.Quantization(0.02, 0) if spec.dtype == "int8" else None


def make_bundle(folder: Path, shape: tuple[int, ...], spec: sl.TransferSpec) -> sl.Bundle:
    toy = Toy("nothing", nn.ReLU(), Corner(), shape, shape, shape[:2])
    return write_bundle(toy, folder, transfer=spec, quantization=scale_of(spec))


def describe(
    record: Any, what: str, shape: tuple[int, ...], nbytes: int, *, reference: bool, over: str
) -> None:
    record.group = f"round trip over {over}, {'x'.join(map(str, shape))}"
    record.extra_info.update(
        what=f"{what}, {nbytes} bytes",
        reference=reference,
        isa=_core.isa(),
        zmq=zmq.zmq_version(),
        pyzmq=zmq.__version__,
    )


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.label)
def test_round_trip(
    record: Any, tmp_path: Path, shape: tuple[int, ...], spec: sl.TransferSpec
) -> None:
    bundle = make_bundle(tmp_path, shape, spec)
    x = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    with (
        sl.EdgeServer(bundle, "tcp://127.0.0.1:*", threads=1) as edge,
        sl.Device(bundle, edge.endpoint, control=edge.control_endpoint, threads=1) as device,
    ):
        features = np.maximum(x, 0)
        decoded = sl.decode(sl.encode(features, spec, scale_of(spec)))
        np.testing.assert_array_equal(device.infer(x), decoded[:, :, 0, 0])
        nbytes = spec.packed_nbytes(shape)
        describe(record, spec.label, shape, nbytes, reference=False, over="loopback")
        record(device.infer, x)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("in_flight", [1, 8])
def test_encryption(
    measure: Measure, tmp_path: Path, shape: tuple[int, ...], in_flight: int
) -> None:
    spec = sl.TransferSpec()
    bundle = make_bundle(tmp_path, shape, spec)
    x = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    decoded = sl.decode(sl.encode(np.maximum(x, 0), spec, scale_of(spec)))

    def infer(device: sl.Device) -> None:
        for future in [device.submit(x) for _ in range(in_flight)]:
            future.result()

    with contextlib.ExitStack() as opened:
        devices = []
        for edge_keys, keys in (make_keys(tmp_path), (None, None)):
            edge = opened.enter_context(
                sl.EdgeServer(bundle, "tcp://127.0.0.1:*", threads=1, keys=edge_keys)
            )
            device = sl.Device(
                bundle, edge.endpoint, control=edge.control_endpoint, threads=1, keys=keys
            )
            devices.append(opened.enter_context(device))
            np.testing.assert_array_equal(device.infer(x), decoded[:, :, 0, 0])
        encrypted, clear = (functools.partial(infer, device) for device in devices)
        nbytes = spec.packed_nbytes(shape)
        what = f"{nbytes} bytes, {in_flight} in flight"
        measure("encryption (CURVE) on loopback", what, encrypted, clear, "in the clear")


def make_keys(folder: Path) -> tuple[sl.EdgeKeys, sl.DeviceKeys]:
    for name in ("edge", "device"):
        make_key_pair(folder / name)
    edge_keys = sl.EdgeKeys(folder / "edge", authorized=folder / "device.pub")
    return edge_keys, sl.DeviceKeys(folder / "device", folder / "edge.pub")


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.label)
def test_round_trip_over_the_papers_link(
    record: Any, tmp_path: Path, shape: tuple[int, ...], spec: sl.TransferSpec
) -> None:
    bundle = make_bundle(tmp_path, shape, spec)
    x = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    with sl.EdgeServer(bundle, "tcp://127.0.0.1:*", threads=1) as edge:
        ports = [int(e.rpartition(":")[2]) for e in (edge.endpoint, edge.control_endpoint)]
        with LinkEmulator([(0, "127.0.0.1", port) for port in ports]) as link:
            tensors, control = (f"tcp://127.0.0.1:{port}" for port in link.ports)
            with sl.Device(bundle, tensors, control=control, threads=1) as device:
                decoded = sl.decode(sl.encode(np.maximum(x, 0), spec, scale_of(spec)))
                np.testing.assert_array_equal(device.infer(x), decoded[:, :, 0, 0])
                plain = spec == sl.TransferSpec.float32_split()
                nbytes = spec.packed_nbytes(shape)
                describe(
                    record, spec.label, shape, nbytes, reference=plain, over="the paper's link"
                )
                record.pedantic(device.infer, (x,), rounds=15, warmup_rounds=2)


@pytest.fixture
def echo() -> Iterator[zmq.Socket[bytes]]:
    """A socket whose messages come back: the lower bound."""
    with zmq.Context() as context:
        port = []
        ready = threading.Event()

        def serve() -> None:
            with context.socket(zmq.PAIR) as server:
                port.append(server.bind_to_random_port("tcp://127.0.0.1"))
                ready.set()
                while len(frame := server.recv(copy=False)) > 0:
                    server.send(frame, copy=False)

        thread = threading.Thread(target=serve)
        thread.start()
        ready.wait()
        with context.socket(zmq.PAIR) as client:
            client.connect(f"tcp://127.0.0.1:{port[0]}")
            yield client
            client.send(b"")
            thread.join()


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_echo(record: Any, echo: zmq.Socket[bytes], shape: tuple[int, ...]) -> None:
    payload = np.random.default_rng(1).bytes(sl.TransferSpec().packed_nbytes(shape))

    def there_and_back() -> zmq.Frame:
        echo.send(payload, copy=False)
        return echo.recv(copy=False)

    assert there_and_back().bytes == payload
    describe(record, "bare sockets", shape, len(payload), reference=True, over="loopback")
    record(there_and_back)
