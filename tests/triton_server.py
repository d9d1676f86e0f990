"""A server that speaks Triton's gRPC: ``python -m triton_server REPOSITORY [PORT]``.

It serves the models of a repository, configured by ``config.pbtxt``, with ONNX Runtime, checks each
request against the configuration as Triton does, and writes its port. It is a stand-in: what Triton
itself does with the repository is not tested by it.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import triton_to_np_dtype

SLOW = "slow"  # a file of this name in the repository: seconds that each inference takes longer


class Model:
    """A model of the repository."""

    def __init__(self, folder: Path) -> None:
        text = (folder / "config.pbtxt").read_text()
        self.config = text_format.Parse(text, model_config_pb2.ModelConfig())
        assert self.config.name == folder.name
        assert self.config.backend == "onnxruntime"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(folder / "1" / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def infer(self, request: Any) -> Any:
        """Answer a request; a ValueError says what is wrong with it."""
        feed = {}
        declared = {each.name: each for each in self.config.input}
        for given, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            expected = declared.pop(given.name)
            shape, dims = list(given.shape), list(expected.dims)
            if self.config.max_batch_size:
                if not 1 <= shape[0] <= self.config.max_batch_size:
                    raise ValueError(f"batch {shape[0]} of {given.name}")
                dims = [shape[0], *dims]
            kind = model_config_pb2.DataType.Name(expected.data_type).removeprefix("TYPE_")
            if shape != dims or given.datatype != kind:
                raise ValueError(
                    f"{given.name} is {given.datatype} {shape}, the model takes {kind} {dims}"
                )
            feed[given.name] = np.frombuffer(raw, triton_to_np_dtype(kind)).reshape(shape)
        if declared:
            raise ValueError(f"{', '.join(declared)} missing")
        names = [each.name for each in self.config.output]
        answer = service_pb2.ModelInferResponse(model_name=self.config.name, model_version="1")
        for name, array in zip(names, self.session.run(names, feed), strict=True):
            answer.outputs.add(name=name, datatype="FP32", shape=array.shape)
            answer.raw_output_contents.append(array.tobytes())
        return answer


class Service(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # untyped
    """The part of the service that clients of a model use."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        folders = [each.parent for each in repository.glob("*/config.pbtxt")]
        self._models = {each.name: Model(each) for each in folders}

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802 - Triton's name
        """Answer the configuration of a model."""
        model = self._find(request.name, context)
        return service_pb2.ModelConfigResponse(config=model.config)

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802 - Triton's name
        """Run a model."""
        model = self._find(request.model_name, context)
        if (slow := self._repository / SLOW).exists():
            time.sleep(float(slow.read_text()))
        try:
            return model.infer(request)
        except (ValueError, KeyError) as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    def _find(self, name: str, context: Any) -> Model:
        if name not in self._models:
            context.abort(grpc.StatusCode.NOT_FOUND, f"unknown model: '{name}'")
        return self._models[name]


def main() -> None:
    """Serve until the input ends."""
    repository, port = Path(sys.argv[1]), sys.argv[2] if sys.argv[2:] else "0"
    server = grpc.server(ThreadPoolExecutor(8))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Service(repository), server)
    print(server.add_insecure_port(f"127.0.0.1:{port}"), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(None).wait()


if __name__ == "__main__":
    main()
