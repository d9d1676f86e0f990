"""``scissionlite bundles``: what a daemon serves, and who may change it.

Time-outs here only guard against hangs; no outcome depends on how fast the machine is.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import BundleFactory
from peers import LOCAL, LONG, Frames, device_of, in_one_process
from processes import run_here
from test_served_bundles import infer_when_served
from typer.testing import Result

from scissionlite.bundle import Bundle
from scissionlite.errors import BundleMismatchError, OffloadError
from scissionlite.keys import authorized
from scissionlite.keys.files import make_key_pair, read_public
from scissionlite.offloader import DeviceKeys, EdgeKeys, EdgeServer
from scissionlite.offloader.device.edge_client import EdgeClient
from scissionlite.offloader.wire import control

pytestmark = pytest.mark.usefixtures("no_threads_left")


@pytest.fixture(scope="module")
def bundles(make_bundle: BundleFactory) -> tuple[Bundle, Bundle]:
    return make_bundle(seed=41, runtime="onnx"), make_bundle(seed=42, runtime="onnx")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys of the daemon, of a device and of an administrator, and the lists of both."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("edge", "device", "admin"):
        make_key_pair(folder / name, "link")
    for name in ("device", "admin"):
        authorized.authorize(folder / "authorized", read_public(folder / f"{name}.pub", "link"))
    authorized.authorize(folder / "admins", read_public(folder / "admin.pub", "link"))
    return folder


def run_bundles(edge: EdgeServer, *arguments: object, key: Path | None = None) -> Result:
    connect = ["--connect", edge.endpoint, "--control", edge.control_endpoint]
    if key is not None:
        connect += ["--key", str(key), "--edge-key", str(key.parent / "edge.pub")]
    return run_here("bundles", *arguments, *connect)


def test_bundles_lists_what_is_served(bundles: tuple[Bundle, Bundle], frames: Frames) -> None:
    first, second = bundles
    with EdgeServer(bundles, LOCAL) as edge, device_of(edge, second) as device:
        for _ in range(3):
            device.infer(frames[0])
        listed = json.loads(run_bundles(edge, "--json").output)
        assert [(each["id"], each["kind"]) for each in listed] == [
            (first.id, "split"),
            (second.id, "split"),
        ]
        assert [each["requests"] for each in listed] == [0, 3]
        assert first.id[:12] in run_bundles(edge).output


def test_nobody_but_an_administrator_changes_the_bundles(
    bundles: tuple[Bundle, Bundle], keys: Path
) -> None:
    first, second = bundles
    path = second.path.absolute()
    without_admins = EdgeKeys(keys / "edge", keys / "authorized")
    with_admins = EdgeKeys(keys / "edge", keys / "authorized", keys / "admins")
    for edge_keys, key in ((None, None), (without_admins, "admin"), (with_admins, "device")):
        own = None if key is None else keys / key
        with EdgeServer(first, LOCAL, keys=edge_keys) as edge:
            for arguments in (("load", path), ("drop", first.id[:12])):
                done = run_bundles(edge, *arguments, key=own)
                assert done.exit_code == 1
                assert "answers forbidden" in done.stderr
                assert "--admin" in done.stderr
            link = None if own is None else DeviceKeys(own, keys / "edge.pub")
            with EdgeClient(edge.endpoint, edge.control_endpoint, keys=link) as client:
                client.send(control.LoadBundle(5, str(path), first.id))
                with pytest.raises(OffloadError, match="forbidden"):
                    client.wait_for(control.BundlesReply, 5, seconds=LONG)
            assert [each.id for each in edge.bundles] == [first.id]


def test_an_administrator_loads_replaces_and_drops(
    bundles: tuple[Bundle, Bundle], make_bundle: BundleFactory, keys: Path, frames: Frames
) -> None:
    first, second = bundles
    admin = keys / "admin"
    broken = make_bundle(seed=43, runtime="onnx")
    broken.slice_path("edge").write_bytes(b"nothing")
    edge_keys = EdgeKeys(keys / "edge", keys / "authorized", keys / "admins")
    device_keys = DeviceKeys(keys / "device", keys / "edge.pub")
    with (
        EdgeServer(first, LOCAL, keys=edge_keys) as edge,
        device_of(edge, second, keys=device_keys) as device,
    ):
        done = run_bundles(edge, "load", second.path.absolute(), "--json", key=admin)
        assert [each["id"] for each in json.loads(done.output)] == [first.id, second.id]
        answer = infer_when_served(device, frames[0])
        np.testing.assert_array_equal(answer, in_one_process(second, frames[0]))
        for wrong in (broken.path, Path("/nowhere")):
            done = run_bundles(edge, "load", wrong, "--replaces", first.id[:8], key=admin)
            assert done.exit_code == 1
            assert "EdgeExecutionError" in done.stderr
        assert len(edge.bundles) == 2
        assert run_bundles(edge, "drop", second.id[:12], key=admin).exit_code == 0
        assert [each.id for each in edge.bundles] == [first.id]
        with pytest.raises(BundleMismatchError):
            device.infer(frames[0])
        arguments = ("load", second.path.absolute(), "--replaces", first.id)
        assert run_bundles(edge, *arguments, key=admin).exit_code == 0
        assert [each.id for each in edge.bundles] == [second.id]
        infer_when_served(device, frames[0])
        revoked = authorized.revoke(keys / "admins", "admin")  # which counts at once
        assert "forbidden" in run_bundles(edge, "drop", second.id, key=admin).stderr
        authorized.authorize(keys / "admins", revoked)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("load",), "one thing"),
        (("list", "x"), "one thing"),
        (("load", "relative"), "absolute path"),
        (("drop", "abcdef12", "--replaces", "x"), "goes together"),
    ],
)
def test_wrong_usage_is_told(arguments: tuple[str, ...], message: str) -> None:
    done = run_here("bundles", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
