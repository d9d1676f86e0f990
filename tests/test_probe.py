"""Probes: they measure the link, with confidence intervals. Edges without a bundle.

Where a figure is compared with an emulated link's, the band is wide: it shows that the right thing
is measured, not how fast the machine is.
"""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers import LOCAL, LONG, NOWHERE, Frames, HandmadeDevice, HandmadeEdge, Sockets, device_of
from processes import Process

import scissionlite as sl
from scissionlite.bundle import Bundle
from scissionlite.demo.link_emulator import LinkEmulator
from scissionlite.errors import BundleMismatchError, EdgeUnavailableError, OffloadError
from scissionlite.offloader import EdgeLimits, EdgeServer, Timeouts, wire
from scissionlite.offloader.device.edge_client import EdgeClient
from scissionlite.offloader.edge.administration import Administration
from scissionlite.offloader.edge.metrics import Metrics
from scissionlite.offloader.edge.schedule import Schedule
from scissionlite.offloader.edge.served import ServedBundles
from scissionlite.offloader.edge.services import EdgeServices
from scissionlite.offloader.edge.side import EdgeSide
from scissionlite.offloader.wire import control
from scissionlite.offloader.wire.probe import probe_header
from scissionlite.scissiontl.link import read_links
from scissionlite.scissiontl.probe import FASTEST, probe, quantile, rate

pytestmark = pytest.mark.usefixtures("no_threads_left")

Background = Callable[..., Future[Any]]


def emulated(edge: EdgeServer, rtt: float, bandwidth: float) -> LinkEmulator:
    ports = [int(each.rpartition(":")[2]) for each in (edge.endpoint, edge.control_endpoint)]
    return LinkEmulator([(0, "127.0.0.1", port) for port in ports], rtt, bandwidth)


def test_a_probe_measures_the_emulated_link() -> None:
    rtt, bandwidth = 0.04, 20e6
    with EdgeServer(bind=LOCAL, name="box") as edge, emulated(edge, rtt, bandwidth) as link:
        tensors, control_port = (f"tcp://127.0.0.1:{port}" for port in link.ports)
        measured = probe(tensors, control_port, seconds=3)
        assert edge.stats().rejected == {}
    assert (measured.endpoint, measured.edge) == (tensors, "box")
    for each in (measured.rtt, measured.rtt_p95, measured.upload, measured.download):
        assert each.low <= each.value <= each.high
        assert 0 < each.confidence <= 1
    assert rtt <= measured.rtt.value <= measured.rtt_p95.value
    assert measured.rtt.confidence >= 0.95
    for found in (measured.upload, measured.download):
        assert 0.5 * bandwidth <= found.value <= 1.05 * bandwidth
    assert measured.round_trips >= 3
    assert measured.transfers >= 12
    assert measured.link == sl.Link(
        measured.rtt.value, measured.upload.value, measured.download.value
    )


def test_a_fast_link_is_measured_too_while_devices_are_served(
    tiny_bundle: Bundle, frames: Frames, background: Background
) -> None:
    with EdgeServer(tiny_bundle, LOCAL) as edge, device_of(edge, tiny_bundle) as device:
        expected = device.infer(frames[0])
        measured = background(probe, edge.endpoint, edge.control_endpoint, seconds=0.5)
        answers = 0
        while not measured.done():
            np.testing.assert_array_equal(device.infer(frames[0]), expected)
            answers += 1
        assert answers > 0
        assert 0 < measured.result().upload.value <= FASTEST
        assert edge.stats().served == answers + 1


def test_where_no_daemon_answers_a_probe_says_so(sockets: Sockets, tiny_bundle: Bundle) -> None:
    with pytest.raises(EdgeUnavailableError, match=r"no answer within 0\.2 s.*scissionlite serve"):
        probe(NOWHERE, timeouts=Timeouts(answer=0.2))
    silent = HandmadeEdge(sockets, tiny_bundle)
    with pytest.raises(EdgeUnavailableError, match=r"no answer within 0\.2 s"):
        probe(silent.endpoint, silent.control, timeouts=Timeouts(answer=0.2))
    for connect in ("edge:5555", "tcp://edge:0"):
        with pytest.raises(ValueError, match="not an endpoint"):
            probe(connect)
    for seconds, timeout in ((0.0, 1.0), (1.0, -1.0), (float("inf"), 1.0)):
        with pytest.raises(ValueError, match="must be above 0"):
            probe(NOWHERE, seconds=seconds, timeouts=Timeouts(answer=timeout))


def test_a_daemon_without_probes_is_too_old(
    sockets: Sockets, tiny_bundle: Bundle, background: Background
) -> None:
    edge = HandmadeEdge(sockets, tiny_bundle)
    measured = background(probe, edge.endpoint, edge.control, timeouts=Timeouts(answer=LONG))
    device_id = edge.wait_for(control.Stats)  # an old one rejects ClientHello
    edge.send(device_id, control.StatsReply(0, 0, 0, 0, {"ControlMessageError": 1}, 0, 1.0))
    with pytest.raises(OffloadError, match="older than this build, update it"):
        measured.result(LONG)


def greeted(edge: HandmadeEdge) -> bytes:
    client = edge.wait_for(control.ClientHello)
    edge.send(client, control.ClientWelcome("handmade"))
    return client


def test_a_tensor_port_that_is_not_open_ends_the_probe(
    sockets: Sockets, tiny_bundle: Bundle, background: Background
) -> None:
    edge = HandmadeEdge(sockets, tiny_bundle)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        endpoint = f"tcp://127.0.0.1:{closed.getsockname()[1]}"
        measured = background(probe, endpoint, edge.control, timeouts=Timeouts(answer=0.5))
        greeted(edge)
        with pytest.raises(EdgeUnavailableError, match=r"no ProbeReply within 0\.5 s"):
            measured.result(LONG)


@pytest.mark.parametrize("replies", ["lies", "rubbish", "goodbye", "failure"])
def test_a_daemon_that_does_not_do_as_it_should_ends_the_probe(
    sockets: Sockets, tiny_bundle: Bundle, background: Background, replies: str
) -> None:
    edge = HandmadeEdge(sockets, tiny_bundle)
    measured = background(probe, edge.endpoint, edge.control, timeouts=Timeouts(answer=LONG))
    client = greeted(edge)
    if replies == "lies":
        edge.send(client, control.ProbeReply(7, 1))  # of nobody's request: ignored
        edge.send(client, control.ProbeReply(1, 2))
    elif replies == "rubbish":
        edge.send_raw(client, b"\xc1")
    elif replies == "goodbye":
        edge.send(client, control.Goodbye())
    else:
        edge.send(client, control.Failed(1, "busy", "later"))
    said = {
        "lies": "answers a probe of 1 bytes with",
        "rubbish": "no edge daemon of this version",
        "goodbye": "it was shut down",
        "failure": "answers busy: later",
    }
    with pytest.raises(OffloadError, match=said[replies]):
        measured.result(LONG)


def test_an_edge_that_shuts_down_says_goodbye_to_its_clients() -> None:
    edge = EdgeServer(bind=LOCAL)
    edge.start()
    with EdgeClient(edge.endpoint, edge.control_endpoint, Timeouts(answer=LONG)) as client:
        edge.close()
        with pytest.raises(EdgeUnavailableError, match="it was shut down"):
            client.wait_for(control.ProbeReply, 1)


def test_probes_and_downloads_take_a_visit(sockets: Sockets, tiny_bundle: Bundle) -> None:
    with EdgeServer(tiny_bundle, LOCAL) as edge:
        device = HandmadeDevice(sockets, tiny_bundle, edge.endpoint, edge.control_endpoint)
        stranger = control.Failed(3, "unknown-device", "say Visit first")
        device.stats()
        device.send(*wire.pack(probe_header(device.id, 3, 10), [bytes(10)]))
        reason = "say Hello or Visit first"
        assert device.receive()[0] == control.Failed(3, "unknown-device", reason)
        device.send_control(control.ProbeDownload(3, 10))
        assert device.receive()[0] == stranger
        device.send_control(control.Ping(1))  # of neither a device nor an edge client: no Pong
        device.send_control(control.ClientHello("handmade"))
        assert isinstance(device.receive()[0], control.ClientWelcome)
        device.send_control(control.Ping(2))
        assert device.receive()[0] == control.Pong(2)
        device.send(*wire.pack(probe_header(device.id, 4, 10), [bytes(10)]))
        assert device.receive() == (control.ProbeReply(4, 10), [])
        for nbytes in (0, 10, control.MAX_PROBE_BYTES):
            device.send_control(control.ProbeDownload(5, nbytes))
            reply, (payload,) = device.receive()
            assert (reply, len(payload)) == (control.ProbeReply(5, nbytes), nbytes)
        device.send_control(control.Goodbye())
        device.send_control(control.ProbeDownload(3, 10))
        assert device.receive()[0] == stranger
        assert edge.stats().devices == 0  # an edge client is none


def test_a_device_that_said_hello_may_probe(sockets: Sockets, tiny_bundle: Bundle) -> None:
    with EdgeServer(tiny_bundle, LOCAL) as edge:
        device = HandmadeDevice(sockets, tiny_bundle, edge.endpoint, edge.control_endpoint)
        assert isinstance(device.hello(), control.Welcome)
        for nbytes in (1, control.MAX_PROBE_BYTES):
            device.send(*wire.pack(probe_header(device.id, 1 << 63, nbytes), [bytes(nbytes)]))
            assert device.receive() == (control.ProbeReply(1 << 63, nbytes), [])


def test_a_silent_edge_client_is_removed() -> None:
    sent: list[control.ToDevice] = []
    metrics = Metrics(Schedule(EdgeLimits()))
    nothing = Administration(
        ServedBundles([], metrics), metrics, None, EdgeSide.open, lambda *_: None, lambda: None
    )
    services = EdgeServices(
        "box",
        lambda _, message, __: sent.append(message),
        (),
        EdgeLimits(profile_seconds=1.0, client_silence=0.01),
        nothing,
    )
    services.take(b"v" * 16, control.ClientHello("silent"))
    assert services.hear(b"v" * 16)
    time.sleep(0.02)
    services.step()
    assert not services.hear(b"v" * 16)
    services.take(b"v" * 16, control.ProbeDownload(1, 1))
    assert sent == [
        control.ClientWelcome("box"),
        control.Failed(1, "unknown-device", "say Visit first"),
    ]


def test_an_edge_without_a_bundle_refuses_devices(
    sockets: Sockets, tiny_bundle: Bundle, frames: Frames
) -> None:
    with EdgeServer(bind=LOCAL) as edge:
        with (
            device_of(edge, tiny_bundle) as device,
            pytest.raises(BundleMismatchError, match="it serves no bundle"),
        ):
            device.infer(frames[0])
        handmade = HandmadeDevice(sockets, tiny_bundle, edge.endpoint, edge.control_endpoint)
        handmade.stats()
        tensor = wire.TensorHeader(wire.Encoding.FLOAT32, (2,), 8)
        handmade.send(*handmade.request(1, tensor, bytes(8)))
        failed, _ = handmade.receive()
        assert isinstance(failed, control.Failed)
        assert failed.code == "unknown-device"
        assert edge.stats().served == 0


def test_probe_on_the_command_line_writes_what_plan_reads(
    start_process: Callable[..., Process], tmp_path: Path
) -> None:
    serve = start_process("scissionlite", "serve", "--bind", LOCAL, "--json")
    ready = serve.read_json()
    assert (ready["event"], ready["bundles"]) == ("ready", [])
    links = tmp_path / "links.csv"
    links.write_text("source,destination,ping(ms),bandwidth(Mbps)\nx,y,1,2\npi,box,3,4\n")
    arguments = ("probe", ready["endpoint"], "--control", ready["control_endpoint"])
    done = start_process(
        *("scissionlite", *arguments, "--seconds", "0.3", "--json", "--out", str(links)),
        *("--source", "pi", "--destination", "box"),
    )
    printed = json.loads(done.read_all())
    assert serve.terminate() == 0
    found = read_links(links)
    assert list(found) == [("x", "y"), ("pi", "box")]
    assert found["x", "y"] == sl.Link(0.001, 2e6)
    assert found["pi", "box"] == sl.Link(**printed["link"])
    assert printed["link"]["rtt"] == printed["measurement"]["rtt"]["value"] > 0


def test_the_interval_of_a_quantile_is_the_books() -> None:
    # Hahn and Meeker, section 5.2: of 100 samples, the 40th and the 61st hold the median.
    found = quantile(np.arange(1.0, 101.0), 0.5)
    assert (found.value, found.low, found.high) == (50.5, 40.0, 61.0)
    assert found.confidence == pytest.approx(0.9648, abs=5e-5)
    # Of so few samples, the outermost are all there is: 1 - 2 / 2**3.
    few = quantile(np.array([1.0, 2.0, 4.0]), 0.5)
    assert (few.value, few.low, few.high) == (2.0, 1.0, 4.0)
    assert few.confidence == pytest.approx(0.75)
    # With 10 samples, the 8th and the last hold the p95 if 8 or 9 of them are below it.
    expected = sum(math.comb(10, k) * 0.95**k * 0.05 ** (10 - k) for k in (8, 9))
    assert quantile(np.arange(10.0), 0.95).confidence == pytest.approx(expected)
    assert all(quantile(np.arange(float(n)), 0.95).confidence >= 0.95 for n in range(72, 200))
    assert all(quantile(np.arange(float(n)), 0.5).confidence >= 0.95 for n in range(6, 200))
    one = quantile(np.array([3.0]), 0.5)
    assert (one.low, one.high, one.confidence) == (3.0, 3.0, 0.0)


def test_the_intervals_hold_what_they_are_to_hold() -> None:
    generator = np.random.default_rng(5)
    median = p95 = slopes = 0
    for _ in range(200):
        waits = np.sort(generator.exponential(size=100))
        median += quantile(waits, 0.5).low <= np.log(2) <= quantile(waits, 0.5).high
        p95 += quantile(waits, 0.95).low <= np.log(20) <= quantile(waits, 0.95).high
        times = [0.1 + n * 1e-6 + generator.exponential(0.01, 30) for n in (1, 25_000, 100_000)]
        found = rate((1, 25_000, 100_000), [list(each) for each in times])
        slopes += found.low <= 8e6 <= found.high
    assert median >= 180
    assert p95 >= 180
    assert slopes >= 175


@given(
    rates=st.floats(1e4, 1e11),
    fixed=st.floats(0, 1),
    sizes=st.sets(st.integers(1, 2**20), min_size=2, max_size=5),
)
def test_the_rate_is_the_slope_whatever_a_probe_takes_besides(
    rates: float, fixed: float, sizes: set[int]
) -> None:
    times = [[fixed + 8 * size / rates] * 3 for size in sizes]
    spread = max(map(max, times)) - min(map(min, times))
    if spread > 1e-6:  # else it is lost in the last bits
        found = rate(sorted(sizes), sorted(times))
        assert found.value == pytest.approx(rates, rel=1e-6)
        assert found.low <= found.value <= found.high


def test_a_slope_that_is_lost_in_the_noise_is_the_fastest_rate() -> None:
    found = rate((1, 1000), [[0.2, 0.2], [0.1, 0.1]])
    assert (found.value, found.low, found.high) == (FASTEST, FASTEST, FASTEST)
