"""Three tiers: a device, an edge that runs the middle slice, and a next edge that answers.

Edge and next edge are processes of their own where equality and deaths are tested. Times only guard
against hangs; deadlines are those that the test gives.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from networks import UNet
from peers import LOCAL, LONG, HandmadeEdge, Sockets, device_of
from processes import Process, run_here
from test_link_security import KeyRing, ring
from torch import nn
from torch.utils.data import TensorDataset

import scissionlite as sl
from scissionlite.demo.processes import emulated
from scissionlite.errors import (
    BundleError,
    DeadlineExceededError,
    EdgeBusyError,
    EdgeExecutionError,
    OffloadError,
    PlanError,
    PrepareError,
)
from scissionlite.offloader import DeviceKeys
from scissionlite.offloader.bundle_tensors import Outputs
from scissionlite.offloader.device.side import DeviceSide
from scissionlite.offloader.edge.engines.local import LocalEngine
from scissionlite.offloader.edge.side import EdgeSide, decode_tensor
from scissionlite.offloader.stopwatch import Stopwatch
from scissionlite.offloader.wire import control
from scissionlite.preprocessor import splitter
from scissionlite.scissiontl.plans import SecondCut

pytestmark = pytest.mark.usefixtures("no_threads_left")

__all__ = ["ring"]  # a fixture

INT8 = sl.TransferSpec()
WIDE = sl.TransferSpec(pool=1, entropy="ans")
SIZE = 16

BEYOND = {"edge_encode", "relay", "cloud_queue", "cloud_decode", "cloud_run"}
"""The timings of an answer that only three tiers have."""


def chain() -> nn.Module:
    """Three convolutions and a classifier."""
    stages: list[nn.Module] = []
    for inputs in (3, 8, 8):
        stages.append(nn.Sequential(nn.Conv2d(inputs, 8, 3, padding=1), nn.ReLU()))
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def captured(model: nn.Module, name: str) -> sl.Graph:
    torch.manual_seed(1)
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.3)
    return sl.capture(model.eval(), torch.zeros(1, 3, SIZE, SIZE), name=name, max_tensors=4)


def data(count: int = 8) -> TensorDataset:
    generator = torch.Generator().manual_seed(2)
    return TensorDataset(
        torch.rand(count, 3, SIZE, SIZE, generator=generator), torch.arange(count) % 5
    )


def prepare(graph: sl.Graph, first: str, second: str, out: Path, **options: Any) -> sl.Bundle:
    plan = sl.Plan(
        kind="split",
        slicing_point=first,
        spec=options.pop("spec", INT8),
        second=SecondCut(second, options.pop("second_spec", WIDE)),
    )
    options = {"unlabelled": data(), "recipe": sl.Recipe(epochs=0), "max_batch": 2, **options}
    return sl.prepare(graph, plan, out=out, **options)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, sl.Bundle]:
    """A chain, and a U-Net of which several tensors cross at both cuts."""
    folder = tmp_path_factory.mktemp("three")
    unet = captured(UNet(), "U-Net")
    several = [point.name for point in unet.slicing_points if len(point.crossing) > 1]
    return {
        "chain": prepare(captured(chain(), "chain"), "0", "1", folder / "chain"),
        "unet": prepare(unet, several[0], several[-1], folder / "unet"),
    }


@pytest.fixture(scope="module")
def chain_bundle(bundles: dict[str, sl.Bundle]) -> sl.Bundle:
    return bundles["chain"]


class Tiers(NamedTuple):
    """Processes of an edge and of its next edge, and the edge's addresses behind the first link."""

    cloud: Callable[[], Process]
    restart_cloud: Callable[[], None]
    endpoint: str
    control: str


@pytest.fixture(scope="module")
def tiers(bundles: dict[str, sl.Bundle], free_port: Callable[[], int]) -> Iterator[Tiers]:
    """They serve all bundles; two links are emulated, by processes, too."""
    link, port = sl.Link(rtt=0.004, bandwidth=100e6), free_port()
    serving = ["scissionlite", "serve", *(str(bundle.path) for bundle in bundles.values())]
    serving += ["--threads", "1", "--batch", "1", "--json", "--bind"]
    clouds: list[Process] = []

    def restart_cloud() -> None:
        for each in clouds:
            each.kill()
        clouds.append(Process(*serving, f"tcp://127.0.0.1:{port}"))
        clouds[-1].read_json()

    with contextlib.ExitStack() as started:
        started.callback(lambda: clouds[-1].kill())
        ends = {"endpoint": f":{port}", "control_endpoint": f":{port + 1}"}
        tensors, controls = started.enter_context(emulated(link, ends))
        edge = Process(*serving, LOCAL, "--next", tensors, "--next-control", controls)
        started.callback(edge.kill)
        restart_cloud()
        first = started.enter_context(emulated(link, edge.read_json()))
        yield Tiers(lambda: clouds[-1], restart_cloud, *first)
        assert edge.terminate() == 0


def inputs(batch: int = 1, seed: int = 0) -> npt.NDArray[np.float32]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(batch, 3, SIZE, SIZE)).astype(np.float32)


def in_one_process(bundle: sl.Bundle, x: npt.NDArray[np.float32]) -> Outputs:
    """The slices and codecs of all tiers, one after another, without a wire."""
    headers, payloads = DeviceSide(bundle, threads=1).make_request((x,), Stopwatch())
    pairs = zip(bundle.manifest.crossing, headers, payloads, strict=True)
    arrived = tuple(decode_tensor(t, h, memoryview(p)) for t, h, p in pairs)
    middle = DeviceSide(bundle.second_hop, threads=1)
    headers, payloads = middle.make_request(arrived, Stopwatch())
    last = EdgeSide(bundle, threads=1)
    return last.answer(headers, [memoryview(p) for p in payloads], Stopwatch())


def outputs_of(output: Any) -> Outputs:
    return tuple(output.values()) if isinstance(output, dict) else (output,)


@pytest.mark.parametrize("name", ["chain", "unet"])
def test_three_processes_over_two_links_answer_as_one(
    bundles: dict[str, sl.Bundle], tiers: Tiers, name: str
) -> None:
    bundle = bundles[name]
    slices = bundle.manifest.slices
    inference = splitter.SplitInference(
        bundle.manifest.every_variant[0],
        slices,
        "torchscript",
        bundle.path,
        next_hop=bundle.manifest.next_hop,
    )
    with sl.Device(
        bundle, tiers.endpoint, control=tiers.control, deadline=LONG, threads=1
    ) as device:
        futures = [device.submit(inputs(1 + i % 2, i)) for i in range(12)]
        for i, future in enumerate(futures):
            answer, x = future.result(LONG), inputs(1 + i % 2, i)
            one = in_one_process(bundle, x)
            for actual, expected in zip(outputs_of(answer.output), one, strict=True):
                np.testing.assert_array_equal(actual, expected)
            # As `prepare` scored it.
            for actual, scored in zip(outputs_of(answer.output), inference(x), strict=True):
                np.testing.assert_allclose(actual, scored, rtol=1e-5, atol=1e-5)
            assert answer.where == "edge"
            assert set(answer.timings) >= BEYOND
            assert sum(answer.timings.values()) == pytest.approx(answer.latency)


@pytest.mark.long
def test_a_next_edge_that_dies_amid_requests_and_comes_back(
    chain_bundle: sl.Bundle, tiers: Tiers
) -> None:
    deadline, x = 4.0, inputs()
    (expected,) = in_one_process(chain_bundle, x)
    ends: dict[str, Any] = {
        "connect": tiers.endpoint,
        "control": tiers.control,
        "deadline": deadline,
    }
    with (
        sl.Device(chain_bundle, **ends) as bare,
        sl.Device(chain_bundle, **ends, fallback="local", adapt=False) as covered,
    ):
        bare.infer(x, LONG)
        covered.infer(x, LONG)
        under_way = [each.submit(x) for each in (bare, covered) for _ in range(4)]
        tiers.cloud().kill()
        for i, future in enumerate(under_way):
            started = time.monotonic()
            try:
                answer = future.result(LONG)
                assert answer.latency < deadline + 0.5
                if answer.where == "edge":
                    np.testing.assert_array_equal(answer.output, expected)
            except OffloadError:
                assert i < 4  # those without a fallback
                assert time.monotonic() - started < deadline + 0.5
        started = time.monotonic()
        with pytest.raises((EdgeExecutionError, DeadlineExceededError), match="tier 3"):
            bare.infer(x)
        assert time.monotonic() - started < deadline + 0.5
        assert covered.submit(x).result(LONG).where == "local"
        tiers.restart_cloud()
        guard = time.monotonic() + LONG
        for each in (bare, covered):
            while True:
                assert time.monotonic() < guard
                try:
                    if (answer := each.submit(x).result(LONG)).where == "edge":
                        np.testing.assert_array_equal(answer.output, expected)
                        break
                except OffloadError:
                    pass


def serve(bundle: sl.Bundle, next_edge: sl.EdgeServer | HandmadeEdge, **options: Any) -> Any:
    """The middle of a bundle, in this process."""
    controls = (
        next_edge.control if isinstance(next_edge, HandmadeEdge) else next_edge.control_endpoint
    )
    return sl.EdgeServer(
        bundle,
        LOCAL,
        threads=1,
        next=next_edge.endpoint,
        next_control=controls,
        name="middle",
        **options,
    )


def test_a_busy_next_edge_is_told_to_the_device(chain_bundle: sl.Bundle, sockets: Sockets) -> None:
    handmade = HandmadeEdge(sockets, chain_bundle.second_hop)
    with serve(chain_bundle, handmade) as edge, device_of(edge, chain_bundle) as device:
        future = device.submit(inputs(), 1.5)
        handmade.greet()
        refusals = 0
        while not future.done():
            if (request := handmade.next_request(0.05)) is not None:
                failure = control.Failed(request.request_id, "busy", "no room")
                handmade.send(request.device_id, failure)
                refusals += 1
        with pytest.raises(EdgeBusyError, match="was busy until the deadline"):
            future.result(LONG)
        assert refusals > 1
        assert edge.stats().busy > 0
        # Its credit was given back, and the next request is answered.
        future = device.submit(inputs())
        request = handmade.request()
        handmade.answer(request, np.zeros((1, 5), np.float32))
        assert future.result(LONG).timings["relay"] > 0


def test_the_deadline_is_passed_on_and_kept(chain_bundle: sl.Bundle, sockets: Sockets) -> None:
    handmade = HandmadeEdge(sockets, chain_bundle.second_hop)
    handmade.answers_pings = True
    with serve(chain_bundle, handmade) as edge, device_of(edge, chain_bundle) as device:
        started = time.monotonic()
        future = device.submit(inputs(), 2.0)
        handmade.greet()
        assert 0 < handmade.request().deadline_ms <= 1800  # a tenth is for the way back
        with pytest.raises(DeadlineExceededError, match=r"answers expired: .*tier 3.*no answer"):
            future.result(LONG)
        assert time.monotonic() - started < 2.5
        assert edge.stats().expired == 1


def test_the_next_edge_must_serve_the_same_bundle(
    chain_bundle: sl.Bundle, bundles: dict[str, sl.Bundle]
) -> None:
    other = r"it serves bundle .*\(U-Net, tier 3\), the device has"
    with sl.EdgeServer(bundles["unet"], LOCAL, threads=1) as cloud:
        with (
            serve(chain_bundle, cloud) as edge,
            device_of(edge, chain_bundle) as device,
            pytest.raises(EdgeExecutionError, match=f"tier 3.*{other}"),
        ):
            device.infer(inputs())
        # A device that goes to the last tier is refused, too.
        with (
            device_of(cloud, bundles["unet"]) as device,
            pytest.raises(OffloadError, match=other),
        ):
            device.infer(inputs())


def test_each_hop_has_keys_of_its_own(
    chain_bundle: sl.Bundle, ring: KeyRing, tmp_path: Path
) -> None:
    (tmp_path / "cloud").mkdir(mode=0o700)
    cloud_ring = KeyRing(tmp_path / "cloud")
    stranger = cloud_ring.device("stranger")
    (cloud_ring.folder / "authorized_keys").touch(0o600)
    middle = cloud_ring.authorize("middle")
    mine = ring.authorize("device")
    (expected,) = in_one_process(chain_bundle, inputs())

    def ask(next_keys: DeviceKeys | None) -> npt.NDArray[np.float32]:
        with (
            serve(chain_bundle, cloud, keys=ring.edge, next_keys=next_keys) as edge,
            device_of(edge, chain_bundle, keys=mine, deadline=10.0) as device,
        ):
            answer: npt.NDArray[np.float32] = device.infer(inputs())
            return answer

    with sl.EdgeServer(chain_bundle, LOCAL, threads=1, keys=cloud_ring.edge) as cloud:
        np.testing.assert_array_equal(ask(middle), expected)
        with pytest.raises(OffloadError, match=r"tier 3.*key"):
            ask(stranger)


def test_prepare_trains_both_transfer_layers(tmp_path: Path) -> None:
    graph = captured(chain(), "chain")
    made = {}
    for epochs in (0, 1):
        recipe = sl.Recipe(epochs=epochs, batch_size=4, learning_rate=0.05)
        options: dict[str, Any] = {"unlabelled": None, "train": data(), "validate": data()}
        options |= {"classes": list("abcde")} if epochs else {}
        bundle = prepare(graph, "0", "1", tmp_path / f"{epochs}", recipe=recipe, **options)
        made[epochs] = bundle.manifest
    assert made[1].version == 8
    assert made[1].tiers == 3
    assert set(made[1].slices) == {"device", "edge", "cloud", "network"}
    first = [each.crossing[0].quantization for each in made.values()]
    second = [each.next_hop.crossing[0].quantization for each in made.values() if each.next_hop]
    assert first[0] != first[1]
    assert second[0] != second[1]
    assert made[1].accuracy is not None
    assert made[1].next_hop is not None
    assert made[1].next_hop.crossing[0].tables is not None
    assert made[1].slices["edge"][0].sha256 != made[0].slices["edge"][0].sha256
    assert made[1].slices["cloud"][0].sha256 != made[0].slices["cloud"][0].sha256


def test_a_last_slice_that_answers_something_else_is_not_deployed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scissionlite.preprocessor import inserter

    deployed = inserter.SlicedNetwork.deployed_edge_slice

    def wrong(self: inserter.SlicedNetwork) -> nn.Module:
        module = deployed(self)
        last = not isinstance(self.edge_slice, inserter.SlicedNetwork)
        return nn.Sequential(module, nn.Hardtanh(5.0, 9.0)) if last else module

    monkeypatch.setattr(inserter.SlicedNetwork, "deployed_edge_slice", wrong)
    with pytest.raises(PrepareError, match="slices do not answer what the network answers"):
        prepare(captured(chain(), "chain"), "0", "1", tmp_path / "b", local_fallback=False)


def test_plans_that_cannot_be_are_refused(tmp_path: Path) -> None:
    graph = captured(chain(), "chain")
    with pytest.raises(PrepareError, match="second cut, at 0, must come behind the first, at 1"):
        prepare(graph, "1", "0", tmp_path / "b")
    with pytest.raises(PrepareError, match="variants go with two tiers"):
        prepare(graph, "0", "1", tmp_path / "b", variants=[sl.TransferSpec.paper()])
    float32 = sl.TransferSpec.float32_split()
    with pytest.raises(PrepareError, match="retrained with it: give train="):
        prepare(graph, "0", "1", tmp_path / "b", spec=float32, unlabelled=None)
    with pytest.raises(PlanError, match="second cut goes with a 'split' plan"):
        sl.Plan(kind="local", second=SecondCut("1", float32))


def test_bundles_of_two_tiers_have_no_middle(tiny_bundle: sl.Bundle) -> None:
    with pytest.raises(OffloadError, match="has 2 tiers, and a daemon with a next edge serves"):
        sl.EdgeServer(tiny_bundle, LOCAL, next="tcp://127.0.0.1:9")
    with pytest.raises(ValueError, match="need its endpoint, next="):
        sl.EdgeServer(tiny_bundle, LOCAL, next_control="tcp://127.0.0.1:9")
    with pytest.raises(ValueError, match="give no other one"):
        sl.EdgeServer(tiny_bundle, LOCAL, next="tcp://127.0.0.1:9", engine=LocalEngine())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 6}, "three tiers need version 8"),
        ({"next_hop": None}, "a cloud slice, and no next_hop"),
        ({"slices": {"cloud": []}}, "needs slices.cloud"),
        ({"kind": "local"}, "three tiers need kind 'split'"),
    ],
)
def test_invalid_manifests_are_told(
    chain_bundle: sl.Bundle, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    manifest = json.loads((chain_bundle.path / "manifest.json").read_text())
    if "slices" in change:
        change = {"slices": manifest["slices"] | change["slices"]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(BundleError, match=said):
        sl.Bundle.load(tmp_path)


def test_inspect_shows_both_hops(chain_bundle: sl.Bundle) -> None:
    shown = run_here("inspect", chain_bundle.path, COLUMNS="200")
    assert shown.exit_code == 0
    assert "3: device, edge, cloud" in shown.output
    assert "cloud slice" in shown.output
    assert chain_bundle.second_hop.id in shown.output
    refused = run_here("serve", chain_bundle.path, "--next-key", "nowhere")
    assert refused.exit_code == 2
    assert "--next-key and --next-edge-key go together" in refused.output
