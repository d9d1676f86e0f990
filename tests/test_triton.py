"""Triton: the exported models decode as the core does, and the engine calls a stand-in server.

No Triton server is at hand: ``tests/triton_server.py`` speaks its protobuf service.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from conftest import BundleFactory
from hypothesis import given
from hypothesis import strategies as st
from peers import LOCAL, LONG
from processes import Process, run_here

from scissionlite.bundle import Bundle
from scissionlite.errors import BundleError, DeadlineExceededError, OffloadError
from scissionlite.offloader import Device, EdgeServer
from scissionlite.offloader.device.side import DeviceSide
from scissionlite.offloader.edge.side import EdgeSide
from scissionlite.offloader.slices import open_slice
from scissionlite.offloader.stopwatch import Stopwatch
from scissionlite.transfer_layer import Quantization, TransferSpec, decode, encode, fit_tables

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
triton = pytest.importorskip("tritonclient.grpc")

from google.protobuf import text_format  # noqa: E402  # where the rest is installed
from onnx import helper  # noqa: E402
from tritonclient.grpc import model_config_pb2  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

from scissionlite.offloader.edge.engines.triton import TritonEngine  # noqa: E402
from scissionlite.runtimes.triton_repository import write_repository  # noqa: E402
from scissionlite.transfer_layer.onnx_decoder import (  # noqa: E402
    LEAST_OPSET,
    PAYLOAD_DTYPES,
    OnnxDecoder,
    payload_shape,
)

pytestmark = pytest.mark.usefixtures("no_threads_left")

Float = npt.NDArray[np.float32]


@st.composite
def specs(draw: st.DrawFn) -> TransferSpec:
    dtype = draw(st.sampled_from(sorted(PAYLOAD_DTYPES)))
    return TransferSpec(
        pool=draw(st.sampled_from((1, 2, 4))),
        dtype=dtype,
        layout=draw(st.sampled_from(("nchw", "nhwc"))),
        upsample=draw(st.sampled_from(("nearest", "bilinear"))),
        granularity=draw(st.sampled_from(("tensor", "channel"))) if "int" in dtype else "tensor",
    )


@given(spec=specs(), shape=st.tuples(*[st.integers(1, 9)] * 4), seed=st.integers(0, 1000))
def test_the_decoding_inside_is_the_core_s_bit_for_bit(
    spec: TransferSpec, shape: tuple[int, ...], seed: int
) -> None:
    generator = np.random.default_rng(seed)
    quantization = None
    if spec.quantized:
        scales = tuple(map(float, generator.uniform(0.01, 0.2, shape[1])))
        zeros = tuple(map(int, generator.integers(-8, 8, shape[1])))
        whole = spec.granularity == "tensor"
        quantization = Quantization(scales[0], zeros[0]) if whole else Quantization(scales, zeros)
    packed = encode(generator.standard_normal(shape, np.float32), spec, quantization)
    expected = decode(packed, layout="nchw")
    given = payload_shape(spec, shape)
    payload = np.frombuffer(packed.payload, PAYLOAD_DTYPES[spec.dtype]).reshape(given)
    decoded = run_decoder(OnnxDecoder(spec, quantization, shape, "packed", "x"), payload, shape)
    assert decoded.shape == expected.shape
    assert decoded.tobytes() == np.ascontiguousarray(expected).tobytes()


def run_decoder(decoder: OnnxDecoder, payload: npt.NDArray[Any], shape: Any) -> Float:
    kind = helper.np_dtype_to_tensor_dtype(payload.dtype)
    graph = helper.make_graph(
        decoder.nodes,
        "decoder",
        [helper.make_tensor_value_info("packed", kind, payload.shape)],
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        decoder.constants,
    )
    opset = [helper.make_opsetid("", LEAST_OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (decoded,) = session.run(None, {"packed": payload})
    return np.asarray(decoded, np.float32)


@pytest.fixture(scope="module")
def bundles(
    make_bundle: BundleFactory, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Bundle]:
    """Bundles of one network: int8 of any batch, int4 of one, coded; "other" is not exported."""
    int8 = make_bundle(runtime="onnx", max_batch=4)
    folder = tmp_path_factory.mktemp("bundles")
    bilinear = TransferSpec(dtype="int4", layout="nhwc", upsample="bilinear")
    coded = TransferSpec(entropy="ans", granularity="channel")
    return {
        "int8": int8,
        "int4": sent_as(int8, folder / "int4", bilinear, Quantization(0.9, -1), max_batch=1),
        "ans": sent_as(
            int8, folder / "ans", coded, Quantization((0.05, 0.04) * 4, (3, -9) * 4), max_batch=4
        ),
        "other": sent_as(int8, folder / "other", TransferSpec(), Quantization(0.1, 1), max_batch=4),
    }


def sent_as(
    bundle: Bundle, folder: Path, spec: TransferSpec, quantization: Quantization, max_batch: int
) -> Bundle:
    """The same slices with another codec between them: exporting slices takes seconds."""
    manifest = bundle.manifest
    (tensor,) = manifest.crossing
    tables = None
    if spec.entropy == "ans":
        features = open_slice(bundle, "device", manifest.inputs, 1, None)(an_input(bundle))[0]
        plain = msgspec.structs.replace(spec, entropy=None)
        tables = fit_tables([encode(features, plain, quantization)])
    tensor = msgspec.structs.replace(
        tensor, transfer=spec, quantization=quantization, tables=tables
    )
    manifest = msgspec.structs.replace(
        manifest, crossing=(tensor,), transfer=spec, max_batch=max_batch
    )
    files = {}
    for slices in manifest.slices.values():
        for file in slices:
            files[file.file] = folder.with_name(f"{folder.name}-{file.file}")
            shutil.copy(bundle.path / file.file, files[file.file])
    return Bundle.write(folder, manifest, files)


@pytest.fixture(scope="module")
def repository(bundles: dict[str, Bundle], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("triton") / "repository"
    for name, bundle in bundles.items():
        if name == "other":
            continue
        ran = run_here("export", "triton", bundle.path, folder, "--json")
        assert ran.exit_code == 0, ran.stderr
        assert f"scissionlite-{bundle.id[:12]}" in ran.stdout
    return folder


@pytest.fixture
def server(repository: Path) -> Iterator[list[Process]]:
    """The stand-in, as the only one of a list; a test may put another one there."""
    started = [Process("triton_server", str(repository))]
    yield started
    for each in started:
        each.kill()


@pytest.fixture
def url(server: list[Process]) -> str:
    return f"127.0.0.1:{server[0].read_line().strip()}"


def device_of(edge: EdgeServer, bundle: Bundle, deadline: float = LONG) -> Device:
    return Device(
        bundle, edge.endpoint, control=edge.control_endpoint, threads=1, deadline=deadline
    )


def an_input(bundle: Bundle, batch: int = 1) -> Float:
    shape = bundle.manifest.inputs[0].of_batch(batch)
    return np.random.default_rng(batch).standard_normal(shape, np.float32)


def request_of(bundle: Bundle, x: Float) -> tuple[Any, list[memoryview], Float]:
    """A request's tensors and payloads, and the answer of the local engine."""
    headers, payloads = DeviceSide(bundle, 1).make_request((x,), Stopwatch())
    views = [memoryview(each) for each in payloads]
    (answer,) = EdgeSide(bundle, 1).answer(headers, views, Stopwatch())
    return headers, views, answer


def test_the_configuration_is_triton_s_own_schema(
    bundles: dict[str, Bundle], repository: Path
) -> None:
    for name in ("int8", "int4", "ans"):
        bundle = bundles[name]
        folder = repository / f"scissionlite-{bundle.id[:12]}"
        text = (folder / "config.pbtxt").read_text()
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
        assert (config.name, config.backend) == (folder.name, "onnxruntime")
        (given,), (output,) = config.input, config.output
        odd = name == "int4"
        # 8 channels of 8 x 8 after pooling 15 x 15; an output of 5.
        assert [*given.dims] == ([1, 8 * 8 * 8 // 2] if odd else [8, 8, 8])
        kind = model_config_pb2.TYPE_UINT8 if odd else model_config_pb2.TYPE_INT8
        assert given.data_type == kind
        assert [*output.dims] == ([1, 5] if odd else [5])
        assert config.max_batch_size == (0 if odd else 4)
        model = onnx.load(folder / "1" / "model.onnx")
        assert [each.name for each in model.graph.input] == [given.name]
        assert [each.name for each in model.graph.output] == [output.name]
        # Triton joins requests only where the first dimension of all is free.
        values = (*model.graph.input, *model.graph.output)
        batches = [each.type.tensor_type.shape.dim[0] for each in values]
        assert [each.dim_value for each in batches] == [int(odd), 0]


def test_a_plain_client_sends_our_packed_int8(bundles: dict[str, Bundle], url: str) -> None:
    bundle = bundles["int8"]
    _, (payload,), expected = request_of(bundle, an_input(bundle, 3))
    packed = np.frombuffer(payload, np.int8).reshape(3, 8, 8, 8)
    with triton.InferenceServerClient(url) as client:
        given = triton.InferInput("packed0", [*packed.shape], "INT8")
        given.set_data_from_numpy(packed)
        name = f"scissionlite-{bundle.id[:12]}"
        output = client.get_model_config(name).config.output[0].name
        answer = client.infer(name, [given]).as_numpy(output)
        np.testing.assert_array_equal(answer, expected)
        wrong = triton.InferInput("packed0", [1, 8, 8, 7], "INT8")
        wrong.set_data_from_numpy(packed[:1, :, :, :7])
        with pytest.raises(InferenceServerException, match="the model takes INT8"):
            client.infer(name, [wrong])


@pytest.mark.parametrize(("name", "batch"), [("int8", 1), ("int8", 4), ("int4", 1), ("ans", 2)])
def test_answers_through_triton_are_the_local_engine_s(
    bundles: dict[str, Bundle], url: str, name: str, batch: int
) -> None:
    bundle = bundles[name]
    x = an_input(bundle, batch)
    headers, _, expected = request_of(bundle, x)
    assert headers[0].entropy_coded == (name == "ans")  # undone in the daemon
    with (
        EdgeServer([bundles["int8"], bundle], LOCAL, engine=TritonEngine(url)) as edge,
        device_of(edge, bundle) as device,
    ):
        np.testing.assert_array_equal(device.infer(x), expected)


def test_the_command_serves_through_triton(
    bundles: dict[str, Bundle], url: str, start_process: Callable[..., Process]
) -> None:
    bundle = bundles["int8"]
    x = an_input(bundle)
    command = ("serve", str(bundle.path), "--bind", "tcp://127.0.0.1:*", "--json")
    daemon = start_process("scissionlite", *command, "--engine", "triton", "--url", url)
    ready = daemon.read_json()
    with Device(bundle, ready["endpoint"], control=ready["control_endpoint"], threads=1) as device:
        np.testing.assert_array_equal(device.infer(x), request_of(bundle, x)[2])
    assert daemon.terminate() == 0


def test_a_server_that_is_restarted_or_slow(
    bundles: dict[str, Bundle], repository: Path, server: list[Process], url: str, background: Any
) -> None:
    bundle = bundles["int8"]
    x = an_input(bundle)
    with (
        EdgeServer(bundle, LOCAL, engine=TritonEngine(url)) as edge,
        device_of(edge, bundle) as device,
    ):
        expected = device.infer(x)
        server.pop().kill()
        begun = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            device.infer(x, deadline=0.5)
        assert time.monotonic() - begun < LONG / 2
        asked = background(device.infer, x)
        server.append(Process("triton_server", str(repository), url.split(":")[1]))
        np.testing.assert_array_equal(asked.result(LONG), expected)
        (repository / "slow").write_text("2")
        try:
            with pytest.raises(DeadlineExceededError):
                device.infer(x, deadline=0.5)
        finally:
            (repository / "slow").unlink()
        np.testing.assert_array_equal(device.infer(x), expected)


def test_a_server_without_the_models_is_one_clear_line(
    bundles: dict[str, Bundle], make_bundle: BundleFactory, url: str
) -> None:
    other = bundles["other"]
    engine = TritonEngine(url)
    with pytest.raises(OffloadError, match=r"unknown model.*scissionlite export triton"):
        EdgeServer(other, LOCAL, engine=engine)
    with pytest.raises(BundleError, match="kind 'image'"):
        EdgeServer(make_bundle("image"), LOCAL, engine=engine)
    engine.close()
    nowhere = TritonEngine("127.0.0.1:1")
    with pytest.raises(OffloadError, match="gives no model"):
        EdgeServer(other, LOCAL, engine=nowhere)
    nowhere.close()


def test_what_cannot_be_exported_is_refused(make_bundle: BundleFactory, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="prepare it with --runtime onnx"):
        write_repository(make_bundle(runtime="torchscript"), tmp_path / "repository")
    with pytest.raises(BundleError, match="kind 'image'"):
        write_repository(make_bundle("image"), tmp_path / "repository")
    assert not (tmp_path / "repository").exists()
    ran = run_here("serve", "--engine", "triton")
    assert ran.exit_code == 2
    assert "--url HOST:PORT" in ran.stderr
