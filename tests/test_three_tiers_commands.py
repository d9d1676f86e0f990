"""Three tiers by the command line, from `prepare --then` to `run`; and when a middle is ready."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs
from peers import LOCAL, LONG
from PIL import Image
from processes import Process, run_here
from profiles import written

import scissionlite as sl
from scissionlite.offloader.slices import open_slice

pytestmark = pytest.mark.usefixtures("no_threads_left")

SIZE = 64


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of two classes, in folders of their names."""
    folder = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(4)
    for label in ("a", "b"):
        (folder / label).mkdir()
        for number in range(3):
            pixels = generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def bundle(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> sl.Bundle:
    out = tmp_path_factory.mktemp("three") / "bundle"
    prepared = run_here(
        *("prepare", "networks:small_network", "--size", SIZE, "--unlabelled", photographs),
        *("--at", "0", "--then", "pool1-int8-ans@2", "--epochs", 0, "--runtime", "onnx"),
        *("--out", out, "--json"),
    )
    assert prepared.exit_code == 0, prepared.stderr
    return sl.Bundle.load(out)


def ready(daemon: Process) -> list[str]:
    """The options of a client of a daemon that has just started."""
    line = daemon.read_json()
    return [line["endpoint"], "--control", line["control_endpoint"]]


def test_prepare_serve_twice_and_run(
    bundle: sl.Bundle, photographs: Path, start_process: Callable[..., Process]
) -> None:
    assert bundle.manifest.tiers == 3
    serve = ("scissionlite", "serve", str(bundle.path), "--bind", LOCAL, "--json", "--threads", "1")
    cloud = start_process(*serve)
    endpoint, _, control = ready(cloud)
    edge = start_process(*serve, "--next", endpoint, "--next-control", control)
    connect = ready(edge)
    run = ("run", bundle.path, photographs / "a", "--threads", "1", "--deadline", LONG, "--json")
    done = run_here(*run, "--connect", *connect)
    assert done.exit_code == 0, done.stderr
    answers = json.loads(done.stdout)["answers"]
    assert len(answers) == 3
    manifest = bundle.manifest
    assert manifest.preprocessing is not None
    network = open_slice(bundle, "network", manifest.inputs, 1, None)
    for answer in answers:
        assert answer["where"] == "edge"
        assert {"edge_encode", "relay", "cloud_run"} <= answer["timings"].keys()
        frame = manifest.preprocessing.frame(Path(answer["image"]))
        (output,) = network(manifest.preprocessing.tensor(frame))
        assert answer["class_index"] == int(output.argmax())
    assert edge.terminate() == 0
    assert cloud.terminate() == 0
    served = [each.read_json()["stats"]["served"] for each in (edge, cloud)]
    assert served[0] == served[1] >= 3


def test_prepare_carries_out_the_best_plan_of_three_machines(
    photographs: Path, tmp_path: Path
) -> None:
    # The device is slow, the edge has no time for the last block, and the cloud is far from both.
    for name, latencies in (
        ("device", (0.01, 1.0, 1.0)),
        ("edge", (0.01, 0.01, 1.0)),
        ("cloud", (0.001, 0.001, 0.001)),
    ):
        profile = written(name, latencies)
        names = ("0", "2", "the rest")
        blocks = [structs.replace(b, name=n) for b, n in zip(profile.blocks, names, strict=True)]
        structs.replace(profile, blocks=tuple(blocks)).save(tmp_path / f"{name}.json")
    links = "device,edge,1,1000\nedge,cloud,1,1000\ndevice,cloud,200,1000\n"
    header = "source,destination,ping(ms),bandwidth(Mbps)\n"
    (tmp_path / "links.csv").write_text(header + links)
    prepared = run_here(
        *("prepare", "networks:small_network", "--size", SIZE, "--unlabelled", photographs),
        *("--device-profile", tmp_path / "device.json", "--edge-profile", tmp_path / "edge.json"),
        *("--cloud-profile", tmp_path / "cloud.json", "--link", tmp_path / "links.csv"),
        *("--epochs", 0, "--runtime", "torchscript", "--out", tmp_path / "bundle", "--json"),
    )
    assert prepared.exit_code == 0, prepared.stderr
    manifest = sl.Bundle.load(tmp_path / "bundle").manifest
    assert manifest.tiers == 3
    assert manifest.next_hop is not None
    cuts = (manifest.slicing_point, manifest.next_hop.slicing_point)
    assert [cut and cut.after for cut in cuts] == ["0", "2"]


def readiness(edge: sl.EdgeServer) -> tuple[int, str]:
    assert edge.page is not None
    try:
        with urllib.request.urlopen(edge.page + "readyz", timeout=LONG) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def wait_for(edge: sl.EdgeServer, status: int) -> str:
    until = time.monotonic() + LONG
    while (found := readiness(edge))[0] != status:
        assert time.monotonic() < until, found
        time.sleep(0.05)
    return found[1]


def test_a_middle_is_ready_while_its_next_edge_is_there(
    bundle: sl.Bundle, free_port: Callable[[], int]
) -> None:
    port = free_port()
    there = f"tcp://127.0.0.1:{port}"
    with sl.EdgeServer(bundle, LOCAL, threads=1, next=there, page="127.0.0.1:*") as edge:
        # No device has asked, and it is known all the same.
        away = wait_for(edge, 503)
        assert "the next edge (tier 3) is away: " in away
        assert there in away
        with sl.EdgeServer(bundle, there, threads=1):
            assert wait_for(edge, 200) == "ok\n"
        wait_for(edge, 503)
