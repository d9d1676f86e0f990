"""The record of an edge daemon: counts, bytes and latencies, alike wherever they are read."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BundleFactory
from msgspec.structs import replace
from peers import LOCAL, LONG, Frames, HandmadeDevice, Sockets, device_of, payload_for
from prometheus_client.parser import text_string_to_metric_families

from scissionlite.bundle import Bundle
from scissionlite.graph.tensors import TensorInfo
from scissionlite.offloader import EdgeLimits, EdgeServer
from scissionlite.offloader.edge.history import History, quantile
from scissionlite.offloader.edge.metrics import OUTCOMES, SECONDS, Histogram
from scissionlite.offloader.wire import control

pytestmark = pytest.mark.usefixtures("no_threads_left")

DOCS = Path(__file__).parents[1] / "docs"


def get(edge: EdgeServer, path: str) -> bytes:
    with urllib.request.urlopen(edge.page + path, timeout=LONG) as response:
        body: bytes = response.read()
    return body


def status(edge: EdgeServer) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(get(edge, "status.json"))
    return document


def scraped(edge: EdgeServer) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every sample of /metrics, by its name and the values of its labels in the labels' order."""
    families = text_string_to_metric_families(get(edge, "metrics").decode())
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_stats_page_and_metrics_have_the_same_numbers(
    tiny_bundle: Bundle, frames: Frames, sockets: Sockets
) -> None:
    tensor, payload = payload_for(tiny_bundle, frames[0])
    with EdgeServer(tiny_bundle, LOCAL, page=":*") as edge:
        device = HandmadeDevice(sockets, tiny_bundle, edge.endpoint, edge.control_endpoint)
        stranger = HandmadeDevice(sockets, tiny_bundle, edge.endpoint, edge.control_endpoint)
        device.hello()
        received, sent = 0, 0
        for number in range(5):
            request = device.request(number, tensor, payload)
            received += sum(memoryview(frame).nbytes for frame in request)
            device.send(*request)
            message, answer = device.receive()
            assert isinstance(message, control.Result)
            sent += sum(map(len, answer))
        late = device.request(5, tensor, payload, deadline_ms=0)
        received += sum(memoryview(frame).nbytes for frame in late)
        device.send(*late)
        assert isinstance(device.receive()[0], control.Failed)
        header, _ = device.request(6, tensor, payload)
        device.send(header, payload[:-1])
        assert isinstance(device.receive()[0], control.Failed)
        device.send(b"GET / HTTP/1.1")
        stranger.send_control(control.Hello(9, tiny_bundle.id, "future", {}))
        assert isinstance(stranger.receive()[0], control.Refused)
        wait_for(lambda: sum(edge.stats().rejected.values()) == 2)

        device.send_control(control.LinkReport(0.02, 8e6))
        stranger.send_control(control.LinkReport(1.0, 1.0))  # which said no Hello: no device
        device.send_control(control.Ping(0))  # with which the link's round trip is noted
        assert isinstance(device.receive()[0], control.Pong)

        labels = (tiny_bundle.id[:12], "tiny-1")
        wait_for(lambda: scraped(edge)["scissionlite_request_seconds_count", labels] == 5)
        stats, page, metrics = edge.stats(), status(edge), scraped(edge)

    assert (stats.served, stats.expired, stats.busy, stats.failed) == (5, 1, 0, 0)
    assert stats.rejected == {"PayloadLengthError": 1, "BadMagicError": 1} == page["rejected"]
    assert page["refused"] == {"protocol": 1}
    (bundle,), (device_row,) = page["bundles"], page["devices"]
    for outcome in OUTCOMES:
        expected = getattr(stats, outcome)
        assert page["requests"][outcome] == bundle["requests"][outcome] == expected
        assert metrics["scissionlite_requests_total", (*labels, outcome)] == expected
    assert (bundle["received_bytes"], bundle["sent_bytes"]) == (received, sent)
    assert metrics["scissionlite_received_bytes_total", labels] == received
    assert metrics["scissionlite_sent_bytes_total", labels] == sent
    assert {
        key: device_row[key]
        for key in ("name", "requests", "served", "refused", "received_bytes", "sent_bytes")
    } == {
        "name": "handmade",
        "requests": 6,
        "served": 5,
        "refused": 2,  # the expired one, and the one that is too short
        "received_bytes": received,
        "sent_bytes": sent,
    }
    assert 0 < device_row["round_trip"] < LONG
    assert (device_row["link_rtt"], device_row["bandwidth"]) == (0.02, 8e6)
    peer = (device_row["address"],)
    assert metrics["scissionlite_link_round_trip_seconds", peer] == 0.02
    assert metrics["scissionlite_link_bits_per_second", peer] == 8e6
    for reason, count in stats.rejected.items():
        assert metrics["scissionlite_rejected_total", (reason,)] == count
    assert metrics["scissionlite_refused_total", ("protocol",)] == 1
    assert metrics["scissionlite_devices", ()] == stats.devices == len(page["devices"]) == 1
    assert metrics["scissionlite_queue_length", ()] == page["queue"] == 0
    assert metrics["scissionlite_queue_limit", ()] == page["queue_limit"] == 64
    assert metrics["scissionlite_ready", ()] == 1
    assert metrics["scissionlite_connections", ()] == page["connections"] == 4  # two for each
    assert metrics["scissionlite_connections_limit", ()] == page["connections_limit"] > 600
    assert metrics["scissionlite_batch_size_count", labels] == 5
    assert metrics["scissionlite_batch_size_sum", labels] == 5
    assert bundle["mean_batch"] == 1
    by_stage = [
        metrics["scissionlite_stage_seconds_sum", (*labels, stage)]
        for stage in ("queue", "decode", "run", "send")
    ]
    assert min(by_stage) > 0
    assert sum(by_stage) == pytest.approx(metrics["scissionlite_request_seconds_sum", labels])


def test_the_slowest_link_of_a_peer_is_its_metric(tiny_bundle: Bundle, sockets: Sockets) -> None:
    """Two devices of one address: a family with two equal label sets could not be scraped."""
    links = ((0.02, 8e6), (0.01, 1e6))
    with EdgeServer(tiny_bundle, LOCAL, page=":*") as edge:
        for link in links:
            device = HandmadeDevice(sockets, tiny_bundle, edge.endpoint, edge.control_endpoint)
            device.hello()
            device.send_control(control.LinkReport(*link))
            for wrong in ((-1.0, 1.0), (0.0, 0.0), (float("nan"), 1.0), (0.0, float("inf"))):
                device.send_control(control.LinkReport(*wrong))
            device.stats()
        page, metrics = status(edge), scraped(edge)
    assert [(each["link_rtt"], each["bandwidth"]) for each in page["devices"]] == list(links)
    assert page["rejected"] == {"ControlMessageError": 8}
    peer = (page["devices"][0]["address"],)
    assert metrics["scissionlite_link_round_trip_seconds", peer] == 0.02
    assert metrics["scissionlite_link_bits_per_second", peer] == 1e6


def test_a_device_tells_its_edge_the_link_that_it_measures(
    tiny_bundle: Bundle, frames: Frames
) -> None:
    with (
        EdgeServer(tiny_bundle, LOCAL, page=":*", limits=EdgeLimits(heartbeat=0.05)) as edge,
        device_of(edge, tiny_bundle) as device,
    ):
        for _ in range(5):
            device.infer(frames[0])
        wait_for(lambda: status(edge)["devices"][0]["bandwidth"] > 0)
        time.sleep(0.2)  # so that the last estimate is told, too
        (row,), link = status(edge)["devices"], device.link
        assert link is not None
        assert row["bandwidth"] == pytest.approx(link.bandwidth, rel=0.5)
        assert edge.stats().rejected == {}


def test_batches_are_counted_by_their_samples(make_bundle: BundleFactory) -> None:
    bundle = make_bundle(max_batch=4)
    with EdgeServer(bundle, LOCAL, page=":*") as edge, device_of(edge, bundle) as device:
        device.infer(np.zeros((3, 3, 32, 32), np.float32))
        (page,) = status(edge)["bundles"]
    assert page["mean_batch"] == 3


def test_a_slice_that_fails_is_counted_for_its_device(
    make_bundle: BundleFactory, frames: Frames
) -> None:
    right = make_bundle()
    manifest = replace(right.manifest, outputs=(TensorInfo("output", (1, 7)),))
    bundle = Bundle(right.path, manifest, right.id)
    with (
        EdgeServer(bundle, LOCAL, page=":*") as edge,
        device_of(edge, bundle, fallback="local") as device,
    ):
        assert device.submit(frames[0]).result(LONG).where == "local"
        page = status(edge)
    assert page["requests"] == {"served": 0, "failed": 1, "expired": 0, "busy": 0}
    assert [(each["served"], each["refused"]) for each in page["devices"]] == [(0, 1)]


def test_quantiles_are_interpolated_in_their_bucket() -> None:
    bounds, counts = (1.0, 2.0, 4.0), [0, 10, 10, 0]
    assert quantile(bounds, counts, 0.5) == 2.0
    assert quantile(bounds, counts, 0.25) == 1.5
    assert quantile(bounds, counts, 0.95) == pytest.approx(3.8)
    assert quantile(bounds, [0, 0, 0, 3], 0.5) == 4.0  # above every bound
    assert quantile(bounds, [0, 0, 0, 0], 0.5) == 0.0
    values = np.random.default_rng(3).lognormal(-5, 0.5, 5000)
    histogram = Histogram(SECONDS)
    for value in values:
        histogram.add(float(value))
    assert sum(histogram.counts) == 5000
    assert histogram.sum == pytest.approx(values.sum())
    for share in (0.5, 0.95):
        exact = float(np.quantile(values, share))
        assert quantile(SECONDS, histogram.counts, share) == pytest.approx(exact, rel=0.1)


def test_a_value_at_a_bound_is_in_its_bucket() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 3.0):
        histogram.add(value)
    assert histogram.counts == [2, 2, 1]


def test_the_history_is_bounded_and_has_what_passed(tiny_bundle: Bundle, frames: Frames) -> None:
    with EdgeServer(tiny_bundle, LOCAL) as edge, device_of(edge, tiny_bundle) as device:
        metrics = edge._loop.metrics
        history = History(metrics)
        for frame in frames[:3]:
            device.infer(frame)
        (record,) = metrics.bundles
        wait_for(lambda: sum(record.latency.counts) == 3)
        history.sample()
        (sample,) = history.samples
        figures = history.recent(record)
        seconds = 3 / sample.requests["served"]
        assert sample.received == pytest.approx(record.received_bytes / seconds)
        assert sample.latency is not None
        assert sample.stages is not None
        assert sum(sample.stages.values()) == pytest.approx(sample.latency.mean)
        assert figures.latency["latency"].mean == pytest.approx(sample.latency.mean)
        assert figures.per_second == pytest.approx(sample.requests["served"])
        history.sample()
        assert history.samples[-1].requests["served"] == 0
        assert history.samples[-1].latency is None
        metrics.bundles.remove(record)  # as a bundle that is dropped
        history.sample()
        assert set(history.samples[-1].requests.values()) == {0}
        for _ in range(1000):
            history.sample()
        assert len(history.samples) == 300
        assert history.recent(record).latency == {}  # nothing in the last minute
        last = history.samples[-1]
        assert history.since(last.time) == []
        assert history.since(last.time - 1e-3)[-1] == last


def family_names(edge: EdgeServer) -> set[str]:
    """The names of all samples' families at /metrics, as PromQL and the docs write them."""
    return {
        re.sub(r"_(bucket|sum|count)$", "", line.split("{")[0].split(" ")[0])
        for line in get(edge, "metrics").decode().splitlines()
        if not line.startswith("#")
    }


def test_the_dashboard_and_the_docs_name_what_is_there(
    tiny_bundle: Bundle, frames: Frames, sockets: Sockets
) -> None:
    with EdgeServer(tiny_bundle, LOCAL, page=":*") as edge, device_of(edge, tiny_bundle) as device:
        device.infer(frames[0])
        stranger = HandmadeDevice(sockets, tiny_bundle, edge.endpoint, edge.control_endpoint)
        stranger.send_control_raw(b"junk")
        stranger.send_control(control.Hello(9, tiny_bundle.id, "future", {}))
        stranger.receive()
        wait_for(lambda: bool(status(edge)["devices"][0]["bandwidth"]))  # told with a heartbeat
        names = family_names(edge)
        lines = get(edge, "metrics").decode()
    own = {name for name in names if name.startswith("scissionlite_")}
    document = (DOCS / "daemon.md").read_text()
    table = re.findall(r"^\| `(scissionlite_\w+)` \| (\w+) \|([\w, ]*)\|", document, re.MULTILINE)
    assert {name for name, _, _ in table} == own
    for name, kind, labels in table:
        assert f"# TYPE {name} {kind}\n" in lines
        sample = re.search(rf"^{name}(?:_bucket)?(?:{{(.*)}})? ", lines, re.MULTILINE)
        assert sample
        found = set(re.findall(r'(\w+)="', sample[1] or "")) - {"le"}
        assert found == set(filter(None, labels.strip().split(", ")))

    dashboard = json.loads((DOCS / "grafana-dashboard.json").read_text())
    expressions = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())
    ]
    expressions += [each["definition"] for each in dashboard["templating"]["list"][1:]]
    used = set(re.findall(r"\b((?:scissionlite|process)_\w+)", " ".join(expressions)))
    assert len(used) > 15
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in used} <= names
    # Every metric of the daemon is on the dashboard.
    assert own <= {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
    in_text = set(re.findall(r"\b(scissionlite_\w+)", document))
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in in_text} <= own
