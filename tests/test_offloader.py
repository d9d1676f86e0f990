"""Device and edge daemon over real sockets: right answers, from one device or several.

Time-outs here only guard against hangs; no outcome depends on how fast the machine is.
"""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import msgspec
import numpy as np
import pytest
from conftest import INPUT, OUTPUT, BundleFactory
from peers import (
    LOCAL,
    LONG,
    NOWHERE,
    Frames,
    device_of,
    in_one_process,
    payload_for,
)

from scissionlite.bundle import Bundle, file_sha256
from scissionlite.errors import BundleError, OffloadError, RuntimeUnavailableError
from scissionlite.manifest import SliceFile
from scissionlite.offloader import Device, EdgeLimits, EdgeServer
from scissionlite.offloader.device.side import LocalSide
from scissionlite.offloader.stopwatch import Stopwatch
from scissionlite.transfer_layer import TransferSpec

pytestmark = pytest.mark.usefixtures("no_threads_left")


@pytest.mark.parametrize(
    ("kind", "transfer"),
    [
        ("split", TransferSpec()),
        ("split", TransferSpec.paper()),
        ("split", TransferSpec.float32_split()),
        ("split", TransferSpec(4, "average", "int4", "channel", "nhwc", "zstd")),
        ("split", TransferSpec(scheme="symmetric", granularity="channel", upsample="bilinear")),
        ("split", TransferSpec(dtype="float16", entropy="zstd")),
        ("split", TransferSpec(pool=1, layout="nhwc", entropy="zstd", entropy_level=9)),
        ("split", TransferSpec(pool=1, layout="nhwc", entropy="ans", levels=24)),
        ("image", None),
    ],
    ids=["int8", "paper", "float32", "int4", "bilinear", "float16", "unpooled", "ans", "image"],
)
def test_answers_are_those_of_one_process_bit_for_bit(
    make_bundle: BundleFactory, frames: Frames, kind: str, transfer: TransferSpec | None
) -> None:
    bundle = make_bundle(kind, transfer=transfer)
    with EdgeServer(bundle, LOCAL) as edge, device_of(edge, bundle) as device:
        for frame in frames:
            answer = device.submit(frame).result(LONG)
            np.testing.assert_array_equal(answer.output, in_one_process(bundle, frame))
            assert answer.where == "edge"
            assert answer.bytes_sent == len(payload_for(bundle, frame)[1])
            if transfer is not None and transfer.entropy == "ans":
                assert answer.bytes_sent < bundle.manifest.sent_bytes
            assert answer.output.flags.owndata or answer.output.base is not None
            assert answer.output.flags.writeable
        assert edge.stats().served == len(frames)


def test_a_float32_array_and_its_frame_have_the_same_answer(
    tiny_bundle: Bundle, frames: Frames
) -> None:
    assert tiny_bundle.manifest.preprocessing is not None
    tensor = tiny_bundle.manifest.preprocessing.tensor(frames[0])
    read_only = tensor.copy()
    read_only.flags.writeable = False
    strided = np.ascontiguousarray(tensor.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    with EdgeServer(tiny_bundle, LOCAL) as edge, device_of(edge, tiny_bundle) as device:
        expected = device.infer(frames[0])
        for x in (tensor, read_only, strided):
            np.testing.assert_array_equal(device.infer(x), expected)


def test_timings_add_up_to_the_latency(tiny_bundle: Bundle, frames: Frames) -> None:
    with EdgeServer(tiny_bundle, LOCAL) as edge, device_of(edge, tiny_bundle) as device:
        answer = device.submit(frames[0]).result(LONG)
    assert set(answer.timings) == {
        *("wait", "preprocess", "device_slice", "encode", "transfer"),
        *("edge_queue", "edge_decode", "edge_run"),
    }
    assert min(answer.timings.values()) >= 0
    assert sum(answer.timings.values()) == pytest.approx(answer.latency)


@pytest.mark.parametrize(
    "x",
    [
        np.zeros(INPUT, np.float64),
        np.zeros(INPUT[1:], np.float32),
        np.zeros((3, 32, 32), np.uint8),
        [[0.0]],
        None,
    ],
)
@pytest.mark.parametrize("kind", ["split", "image", "local"])
def test_what_is_no_input_is_a_value_error(
    make_bundle: BundleFactory, kind: str, x: object
) -> None:
    with Device(make_bundle(kind), NOWHERE) as device:
        with pytest.raises(ValueError, match="takes NumPy arrays"):
            device.infer(x)  # type: ignore[arg-type]  # on purpose
        if kind == "image":
            with pytest.raises(ValueError, match="takes NumPy arrays: uint8 of shape"):
                device.infer(np.zeros(INPUT, np.float32))


@pytest.mark.parametrize(
    "options",
    [
        {"connect": "edge:5555"},
        {"connect": "tcp://edge:*", "control": "tcp://edge:1"},
        {"connect": NOWHERE, "control": "nonsense"},
        {"connect": None},
        {"connect": NOWHERE, "deadline": 0},
        {"connect": NOWHERE, "deadline": float("nan")},
        {"connect": NOWHERE, "slowdown": 0.5},
        {"connect": NOWHERE, "fallback": "remote"},
    ],
)
def test_arguments_of_a_device_are_checked(tiny_bundle: Bundle, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"endpoint|needs connect|deadline|slowdown|fallback"):
        Device(tiny_bundle, **options)


@pytest.mark.parametrize(
    "limits", [{"credit": 0}, {"credit": 2000}, {"queue": 0}, {"heartbeat": 0.0}]
)
def test_limits_of_an_edge_are_checked(limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"credit must be"):
        EdgeLimits(**limits)


@pytest.mark.parametrize("limits", [{"client_silence": 0.0}, {"profile_seconds": float("nan")}])
def test_times_for_edge_clients_are_checked(limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"client_silence and profile_seconds must be above 0"):
        EdgeLimits(**limits)


def test_the_endpoint_of_an_edge_is_checked(tiny_bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="not an endpoint"):
        EdgeServer(tiny_bundle, "a:1")


def test_a_missing_fallback_is_found_at_once(make_bundle: BundleFactory) -> None:
    bundle = make_bundle()
    slices = {role: file for role, file in bundle.manifest.slices.items() if role != "network"}
    without = Bundle(
        bundle.path, msgspec.structs.replace(bundle.manifest, slices=slices), bundle.id
    )
    with pytest.raises(ValueError, match="has no network slice"):
        Device(without, NOWHERE, fallback="local")


def test_slices_compiled_for_another_processor_are_passed_over(
    make_bundle: BundleFactory, frames: Frames
) -> None:
    pytest.importorskip("torch")
    bundle = make_bundle("local")
    file = bundle.path / "network.pt2"
    with zipfile.ZipFile(file, "w") as package:
        wrapper = {"torch": "2.13", "processor": ["avx4096"], "dynamic_batch": False, "inputs": []}
        metadata = {"scissionlite": msgspec.json.encode(wrapper).decode()}
        package.writestr("b/a.wrapper_metadata.json", msgspec.json.encode(metadata))
    compiled = SliceFile(file.name, "aotinductor", file_sha256(file), file.stat().st_size)
    slices = {"network": (compiled, *bundle.manifest.slices["network"])}
    both = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, slices=slices), bundle.id)
    with Device(both) as device, Device(bundle) as other:
        np.testing.assert_array_equal(device.infer(frames[0]), other.infer(frames[0]))
    with pytest.raises(
        RuntimeUnavailableError, match="network slice cannot run here: the slice was compiled for"
    ):
        Device(both, runtime="aotinductor")
    file.write_bytes(b"something else")
    with pytest.raises(BundleError, match="does not match its digest"):
        Device(both)


def test_a_local_bundle_is_answered_here_and_refused_by_the_edge(
    make_bundle: BundleFactory, frames: Frames
) -> None:
    bundle = make_bundle("local")
    with Device(bundle) as device:
        answer = device.submit(frames[0]).result(LONG)
        device.connect()  # nothing to connect to, and that is all right
    assert answer.where == "local"
    assert answer.bytes_sent == 0
    assert set(answer.timings) == {"preprocess", "local_run", "wait"}
    (expected,) = LocalSide(bundle).answer((frames[0],), Stopwatch())
    np.testing.assert_array_equal(answer.output, expected)
    with pytest.raises(OffloadError, match="sends nothing to an edge"):
        EdgeServer(bundle)


def test_a_slower_device_is_emulated(tiny_bundle: Bundle, frames: Frames) -> None:
    watch = Stopwatch(slowdown=50)
    with watch.stage("run"):
        threading.Event().wait(0.01)
    assert watch.seconds["run"] >= 0.5
    with Device(tiny_bundle, fallback="local", slowdown=3) as device:
        assert device.submit(frames[0]).result(LONG).where == "local"


def test_several_devices_at_once_get_their_own_answers(
    tiny_bundle: Bundle, frames: Frames, background: Callable[..., Future[Any]]
) -> None:
    expected = [in_one_process(tiny_bundle, frame) for frame in frames]

    def use(device: Device, offset: int) -> None:
        order = [(offset + i) % len(frames) for i in range(3 * len(frames))]
        futures = [(i, device.submit(frames[i])) for i in order]
        for i, future in futures:
            assert not future.cancel()
            np.testing.assert_array_equal(future.result(LONG).output, expected[i])

    with EdgeServer(tiny_bundle, LOCAL, limits=EdgeLimits(credit=4)) as edge:
        devices = [device_of(edge, tiny_bundle, name=f"camera {i}") for i in range(4)]
        # Two threads a device, all devices at once.
        done = [background(use, device, i) for i, device in enumerate(2 * devices)]
        for each in done:
            each.result(LONG)
        stats = edge.stats()
        for device in devices:
            device.close()
    assert stats.served == 8 * 3 * len(frames)
    assert stats.devices == 4
    assert (stats.failed, stats.expired, stats.busy, stats.rejected) == (0, 0, 0, {})


def test_an_edge_is_reached_over_ipc(tiny_bundle: Bundle, frames: Frames, tmp_path: object) -> None:
    with (
        EdgeServer(tiny_bundle, f"ipc://{tmp_path}/edge") as edge,
        Device(tiny_bundle, f"ipc://{tmp_path}/edge") as device,
    ):
        assert edge.control_endpoint == f"ipc://{tmp_path}/edge.control"
        assert device.infer(frames[0]).shape == OUTPUT


def test_the_control_port_is_the_next_one(
    tiny_bundle: Bundle, frames: Frames, free_port: Callable[[], int]
) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with EdgeServer(tiny_bundle, endpoint), Device(tiny_bundle.path, endpoint) as device:
        device.connect()
        assert device.infer(frames[0]).shape == OUTPUT


def test_a_port_in_use_is_an_offload_error(tiny_bundle: Bundle) -> None:
    with EdgeServer(tiny_bundle, LOCAL) as edge:
        with pytest.raises(OffloadError, match="cannot listen on tcp"):
            EdgeServer(tiny_bundle, edge.endpoint, control=LOCAL).start()
        with pytest.raises(OffloadError, match="started once"):
            edge.start()
