"""A watched folder of bundles: what comes there is served, what goes is dropped.

Time-outs here only guard against hangs; no outcome depends on how fast the machine is.
"""

from __future__ import annotations

import logging
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import BundleFactory
from peers import LOCAL, LONG, Frames, device_of, in_one_process
from processes import Process
from test_served_bundles import wait_until

from scissionlite.atomic_folder import atomic_folder
from scissionlite.bundle import Bundle
from scissionlite.errors import BundleError, BundleMismatchError
from scissionlite.keys.files import make_key_pair
from scissionlite.offloader import Device, EdgeServer
from scissionlite.offloader.edge import bundle_folder

pytestmark = pytest.mark.usefixtures("no_threads_left")


@pytest.fixture(scope="module")
def bundles(make_bundle: BundleFactory) -> tuple[Bundle, Bundle]:
    return make_bundle(seed=31, runtime="onnx"), make_bundle(seed=32, runtime="onnx")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(bundle_folder, "_INTERVAL", 0.05)
    made = tmp_path / "bundles"
    made.mkdir(mode=0o755)
    return made


def put(bundle: Bundle, place: Path) -> None:
    """Put a copy of a bundle to a place in one step."""
    with atomic_folder(place) as staging:
        for file in bundle.path.iterdir():
            shutil.copy2(file, staging)


def ids(edge: EdgeServer) -> set[str]:
    return {bundle.id for bundle in edge.bundles}


def test_bundles_come_are_replaced_and_go(
    bundles: tuple[Bundle, Bundle], folder: Path, frames: Frames
) -> None:
    first, second = bundles
    put(first, folder / "camera")
    with EdgeServer(bind=LOCAL, watch=folder) as edge, device_of(edge, second) as device:
        assert ids(edge) == {first.id}
        put(second, folder / "new")
        wait_until(lambda: ids(edge) == {first.id, second.id})
        np.testing.assert_array_equal(device.infer(frames[0]), in_one_process(second, frames[0]))
        put(second, folder / "camera")  # the same bundle at two places
        wait_until(lambda: ids(edge) == {second.id})
        shutil.rmtree(folder / "new")
        put(first, folder / "other")
        wait_until(lambda: ids(edge) == {first.id, second.id})
        (folder / "camera").rename(folder / "renamed")
        device.infer(frames[0])
        shutil.rmtree(folder / "other")
        wait_until(lambda: ids(edge) == {second.id})
        device.infer(frames[0])
        assert sum(edge._loop.metrics.refused.values()) == 0  # nobody was ever refused
        shutil.rmtree(folder / "renamed")
        wait_until(lambda: not edge.bundles)


def test_a_bundle_that_is_given_stays_whatever_the_folder_does(
    bundles: tuple[Bundle, Bundle], folder: Path
) -> None:
    first, second = bundles
    put(first, folder / "a")
    with EdgeServer(first, LOCAL, watch=folder) as edge:
        put(second, folder / "a")
        wait_until(lambda: ids(edge) == {first.id, second.id})
        shutil.rmtree(folder / "a")
        wait_until(lambda: ids(edge) == {first.id})


def test_a_broken_bundle_is_one_line_and_the_old_one_goes_on(
    bundles: tuple[Bundle, Bundle],
    folder: Path,
    frames: Frames,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second = bundles
    caplog.set_level(logging.INFO)
    put(first, folder / "a")
    with EdgeServer(bind=LOCAL, watch=folder) as edge, device_of(edge, first) as device:
        broken = folder.parent / "broken"
        put(second, broken)
        Bundle.load(broken).slice_path("edge").write_bytes(b"nothing")
        put(Bundle.load(broken), folder / "a")
        (folder / "nothing").mkdir()
        (folder / ".hidden").mkdir()
        (folder / "note.txt").write_text("no bundle")
        put(second, folder / "z")  # the last that is looked at
        wait_until(lambda: second.id in ids(edge))
        assert ids(edge) == {first.id, second.id}
        device.infer(frames[0])
        for _ in range(3):
            edge.reload()  # tries again
        put(first, folder / "zz")
        shutil.rmtree(folder / "z")
        wait_until(lambda: ids(edge) == {first.id})
        errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
        lines = [line for line in errors if line.startswith(f"{folder / 'a'} cannot be served")]
        assert 1 <= len(lines) <= 4
        assert "does not match its digest" in lines[0]
        assert "the one that was there before is served still" in lines[0]
        assert any(line.startswith(f"{folder / 'nothing'} cannot be served") for line in errors)
        assert "hidden" not in caplog.text
        folder.rename(folder.parent / "away")  # as a disk that is unmounted
        wait_until(lambda: f"{folder} cannot be read" in caplog.text)
        assert ids(edge) == {first.id}


def test_a_folder_that_others_can_write_needs_signatures(
    bundles: tuple[Bundle, Bundle], folder: Path
) -> None:
    first, second = bundles
    signer, other = folder.parent / "signer.key", folder.parent / "other.key"
    for key in (signer, other):
        make_key_pair(key, "signing")
    put(first, folder / "signed")
    Bundle.load(folder / "signed").sign(signer)
    put(second, folder / "foreign")
    Bundle.load(folder / "foreign").sign(other)
    put(second, folder / "unsigned")
    folder.chmod(0o777)
    with pytest.raises(BundleError, match=r"others than its owner can write .*trust="):
        EdgeServer(bind=LOCAL, watch=folder)
    with EdgeServer(bind=LOCAL, watch=folder, trust=Path(f"{signer}.pub")) as edge:
        assert ids(edge) == {first.id}
    with pytest.raises(BundleError, match="cannot be watched: No such file"):
        EdgeServer(bind=LOCAL, watch=folder / "nowhere")


def test_serve_watches_and_looks_at_once_at_sighup(
    bundles: tuple[Bundle, Bundle],
    folder: Path,
    frames: Frames,
    start_process: Callable[..., Process],
) -> None:
    first, second = bundles
    put(second, folder / "b")
    edge = start_process(
        *("scissionlite", "serve", str(first.path), "--watch", str(folder)),
        *("--bind", LOCAL, "--json"),
    )
    ready = edge.read_json()
    assert [each["id"] for each in ready["bundles"]] == [first.id, second.id]
    where = {"control": ready["control_endpoint"], "deadline": LONG}
    with Device(second, ready["endpoint"], **where) as device:
        answer = device.infer(frames[0])
        np.testing.assert_array_equal(answer, in_one_process(second, frames[0]))
        shutil.rmtree(folder / "b")
        edge.send_signal(signal.SIGHUP)
        # Depending on when the daemon's word of it comes, `submit` or its answer says so.
        with pytest.raises(BundleMismatchError, match="is served no longer"):
            wait_until(lambda: device.infer(frames[0]) is None)
    with Device(first, ready["endpoint"], **where) as device:
        device.infer(frames[0])
    assert edge.terminate() == 0
