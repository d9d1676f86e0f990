"""The slices run in an NVIDIA Triton Inference Server, which is called by gRPC.

The server has the bundle's models, as ``scissionlite export triton`` writes them: they decode
packed payloads themselves. An entropy code is undone here, before. Triton runs requests together.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np
import numpy.typing as npt
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from scissionlite.bundle import Bundle
from scissionlite.errors import BundleError, OffloadError
from scissionlite.manifest import CrossingTensor, Variant
from scissionlite.offloader.bundle_tensors import Outputs, request_checker, request_tensors
from scissionlite.offloader.edge.engines.engine import SliceOptions
from scissionlite.offloader.edge.results import failed, pack_result
from scissionlite.offloader.edge.schedule import Done, Job
from scissionlite.offloader.wire import TensorHeader
from scissionlite.runtimes.triton_repository import BUNDLE_PARAMETER, input_name, model_name
from scissionlite.transfer_layer import entropy
from scissionlite.transfer_layer.onnx_decoder import PAYLOAD_DTYPES, payload_shape

logger = logging.getLogger(__name__)

_ANSWER = 10.0  # seconds in which the server says whether it has a model
_PAUSE = 0.05  # seconds before a call is made again
_LARGEST = 1 << 30  # bytes of a message: gRPC's own default is 4 MB
_CHANNEL = [
    ("grpc.max_send_message_length", _LARGEST),
    ("grpc.max_receive_message_length", _LARGEST),
    ("grpc.max_reconnect_backoff_ms", 1000),  # a restarted server is found within a deadline
]


class TritonEngine:
    """Opens bundles whose models a Triton server has.

    Parameters
    ----------
    url
        The server's gRPC port, HOST:PORT.
    """

    workers = 16

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = triton.InferenceServerClient(url, channel_args=_CHANNEL)

    def open(self, bundle: Bundle | str | Path, options: SliceOptions) -> TritonComputation:
        """Look whether the server has a bundle's models.

        Raises
        ------
        BundleError
            If the bundle is missing or not valid, or is not of kind "split".
        OffloadError
            If the server does not answer, or has no such models.
        """
        if not isinstance(bundle, Bundle):
            bundle = Bundle.load(bundle, options.trust)
        if bundle.manifest.tiers == 3:
            bundle = bundle.second_hop  # whose edge slice was exported
        variants = bundle.manifest.every_variant
        if not variants:
            request_tensors(bundle.manifest)
            raise BundleError(
                f"{bundle.path} is a bundle of kind {bundle.manifest.kind!r}: Triton's models take "
                "packed tensors, of kind 'split'; serve it with --engine local or ray"
            )
        models = {
            variant: self._model(bundle, position) for position, variant in enumerate(variants)
        }
        return TritonComputation(bundle, self._client, models)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _model(self, bundle: Bundle, position: int) -> Model:
        name = model_name(bundle, position)
        try:
            config = self._client.get_model_config(name, client_timeout=_ANSWER).config
        except InferenceServerException as error:
            raise OffloadError(
                f"the Triton server at {self._url} gives no model {name} ({error.message()}): "
                f"`scissionlite export triton {bundle.path} REPOSITORY` writes it"
            ) from error
        if (other := config.parameters[BUNDLE_PARAMETER].string_value) != bundle.id:
            raise OffloadError(
                f"the model {name} at {self._url} is of bundle {other[:12] or 'unknown'}, not "
                f"{bundle.id[:12]}: export it again"
            )
        crossing = bundle.manifest.every_variant[position].crossing
        given = {each.name for each in config.input}
        inputs = tuple(i for i in range(len(crossing)) if input_name(i) in given)
        return Model(name, inputs, tuple(each.name for each in config.output))


class Model(msgspec.Struct, frozen=True):
    """A model of the server: its name, the positions of its inputs, and names of its outputs."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[str, ...]


class TritonComputation:
    """Calls the models of one bundle.

    Parameters
    ----------
    bundle
        The bundle.
    client
        Calls the server; many threads may.
    models
        That of each variant.
    """

    batch = 1  # the server joins requests, also those of other clients
    trouble = ""  # not known: calls are made again until their deadlines

    def __init__(self, bundle: Bundle, client: Any, models: dict[Variant, Model]) -> None:
        self.bundle = bundle
        self.check = request_checker(bundle.manifest)
        self._client = client
        self._models = models

    def finish(self, jobs: Sequence[Job]) -> list[list[Done]]:
        """Answer each job in a call of its own."""
        return [[self._finish(job)] for job in jobs]

    def close(self) -> None:
        """Do nothing: which models a server has is its operator's matter."""

    def _finish(self, job: Job) -> Done:
        started = time.monotonic()
        try:
            variant = self.check(job.tensors).variant
            assert variant is not None  # an image; such bundles are not opened
            model = self._models[variant]
            inputs = [
                _input(i, variant.crossing[i], job.tensors[i], job.payloads[i])
                for i in model.inputs
            ]
            decoded = time.monotonic()
            outputs = self._call(model, inputs, job.expires)
            if outputs is None:
                reason = "the deadline passed before Triton answered"
                return Done(job, [], reason, started - job.arrived, 0.0, 0.0, expired=True)
            frames = pack_result(job, outputs)
        except Exception as error:
            return failed(job, error, started)
        ran = time.monotonic() - decoded
        return Done(job, frames, "", started - job.arrived, decoded - started, ran)

    def _call(self, model: Model, inputs: list[Any], expires: float) -> Outputs | None:
        """Call a model until it answers, while there is time; None if there is no more."""
        while (left := expires - time.monotonic()) > 0:
            try:
                result = self._client.infer(model.name, inputs, client_timeout=left)
            except InferenceServerException as error:
                code = error.status()
                if code == str(grpc.StatusCode.UNAVAILABLE):
                    time.sleep(min(_PAUSE, max(0.0, expires - time.monotonic())))
                elif code != str(grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise OffloadError(f"Triton answers {code}: {error.message()}") from error
            else:
                return tuple(result.as_numpy(name) for name in model.outputs)
        return None


def _input(position: int, tensor: CrossingTensor, header: TensorHeader, payload: memoryview) -> Any:
    """A payload as a model's input."""
    spec = tensor.transfer
    packed: npt.NDArray[np.uint8] = np.frombuffer(payload, np.uint8)
    if header.entropy_coded:
        nbytes = spec.packed_nbytes(header.shape)
        shape = spec.packed_shape(header.shape)
        packed = entropy.decode(packed, spec, shape, nbytes, tensor.tables)
    dtype = np.dtype(PAYLOAD_DTYPES[spec.dtype])
    array = packed.view(dtype).reshape(payload_shape(spec, header.shape))
    given = triton.InferInput(input_name(position), [*array.shape], np_to_triton_dtype(dtype.type))
    given.set_data_from_numpy(array)
    return given
