"""A bundle as a model repository of NVIDIA Triton Inference Server.

Each variant of the bundle is a model: its ONNX edge slice with the decoding inside, so that its
inputs are packed payloads. ``config.pbtxt`` follows Triton's ``model_config.proto``, of which
tritonclient has the classes. Triton itself is not needed.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from google.protobuf import text_format
from onnx import helper
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import np_to_triton_dtype

from scissionlite.atomic_folder import atomic_folder
from scissionlite.bundle import Bundle
from scissionlite.errors import BundleError
from scissionlite.graph.tensors import TensorInfo
from scissionlite.manifest import CrossingTensor, Variant
from scissionlite.transfer_layer.onnx_decoder import (
    LEAST_OPSET,
    PAYLOAD_DTYPES,
    OnnxDecoder,
    payload_shape,
)

BUNDLE_PARAMETER = "scissionlite_bundle"
"""The parameter of a model's configuration that has the whole id of its bundle."""


def model_name(bundle: Bundle, variant: int = 0) -> str:
    """The name of a variant's model, by its position in ``every_variant``."""
    name = f"scissionlite-{bundle.id[:12]}"
    return f"{name}-{variant}" if len(bundle.manifest.every_variant) > 1 else name


def input_name(position: int) -> str:
    """The name of a model's input, by the position of the tensor that crosses."""
    return f"packed{position}"


def write_repository(bundle: Bundle, repository: Path) -> list[str]:
    """Write the models of a bundle into a repository, each in one step.

    Parameters
    ----------
    bundle
        Of kind "split", prepared for ONNX.
    repository
        The folder; it is made if it is not there. Other models in it are left as they are.

    Returns
    -------
    list of str
        The names of the models, one for each variant.

    Raises
    ------
    BundleError
        If the bundle has no ONNX edge slice, or it was altered.
    """
    if bundle.manifest.tiers == 3:
        bundle = bundle.second_hop  # a server is the last of three
    variants = bundle.manifest.every_variant
    if not variants:
        raise BundleError(
            f"{bundle.path} is a bundle of kind {bundle.manifest.kind!r}: only those of kind "
            "'split' have an edge slice that takes packed tensors"
        )
    models = [_with_decoders(bundle, variant) for variant in variants]
    names = [model_name(bundle, position) for position in range(len(variants))]
    for name, variant, model in zip(names, variants, models, strict=True):
        with atomic_folder(repository / name) as folder:
            (folder / "1").mkdir()
            onnx.save(model, str(folder / "1" / "model.onnx"))
            text = text_format.MessageToString(_config(bundle, variant, name, model))
            (folder / "config.pbtxt").write_text(text)
    return names


def largest_batch(bundle: Bundle, variant: Variant) -> int:
    """The most samples that Triton may join; 0 if the model takes the example's batch alone."""
    several = bundle.manifest.max_batch > 1
    return bundle.manifest.max_batch if several and not _shares_bytes(variant) else 0


def _shares_bytes(variant: Variant) -> bool:
    """Whether two samples share a byte of a payload: then batches cannot be joined or cut."""
    return any(
        each.transfer.dtype == "int4"
        and math.prod(each.transfer.packed_shape(each.shape)[1:]) % 2 == 1
        for each in variant.crossing
    )


def _with_decoders(bundle: Bundle, variant: Variant) -> onnx.ModelProto:
    """The edge slice of a variant, with the decoding of each of its inputs before it."""
    path = bundle.slice_path(variant.edge, "onnx")
    model = onnx.load(path)
    opset = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    if opset < LEAST_OPSET:
        raise BundleError(
            f"{path} has operations of ONNX's version {opset}, and decoding needs {LEAST_OPSET}: "
            "prepare the bundle again"
        )
    graph = model.graph
    nodes, inputs = [*graph.node], [*graph.input]
    del graph.node[:], graph.input[:]
    batch = "batch" if largest_batch(bundle, variant) else None
    for value in inputs:
        position = int(value.name[1:])  # x0, x1, ...; one that is not used is not in the file
        tensor = variant.crossing[position]
        name = input_name(position)
        decoder = OnnxDecoder(tensor.transfer, tensor.quantization, tensor.shape, name, value.name)
        graph.node.extend(decoder.nodes)
        graph.initializer.extend(decoder.constants)
        first, *rest = payload_shape(tensor.transfer, tensor.shape)
        kind = helper.np_dtype_to_tensor_dtype(_dtype(tensor))
        graph.input.append(helper.make_tensor_value_info(name, kind, [batch or first, *rest]))
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    return model


def _config(
    bundle: Bundle, variant: Variant, name: str, model: onnx.ModelProto
) -> model_config_pb2.ModelConfig:
    """The configuration of a model."""
    manifest, largest = bundle.manifest, largest_batch(bundle, variant)
    config = model_config_pb2.ModelConfig(name=name, backend="onnxruntime", max_batch_size=largest)
    for value in model.graph.input:
        tensor = variant.crossing[int(value.name.removeprefix(input_name(0)[:-1]))]
        shape = payload_shape(tensor.transfer, tensor.shape)
        config.input.add(
            name=value.name,
            data_type=f"TYPE_{np_to_triton_dtype(_dtype(tensor).type)}",
            dims=shape[1:] if largest else shape,
        )
    outputs: tuple[TensorInfo, ...] = manifest.outputs
    for value, output in zip(model.graph.output, outputs, strict=True):
        dims = output.shape[1:] if largest else output.shape
        config.output.add(name=value.name, data_type="TYPE_FP32", dims=dims)
    if largest:
        config.dynamic_batching.SetInParent()  # requests that wait are run together
    config.parameters[BUNDLE_PARAMETER].string_value = bundle.id
    config.parameters["scissionlite_variant"].string_value = variant.name
    return config


def _dtype(tensor: CrossingTensor) -> np.dtype[np.generic]:
    return np.dtype(PAYLOAD_DTYPES[tensor.transfer.dtype])
