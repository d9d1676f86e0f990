"""What requests and answers of a bundle hold: inputs checked, tensors announced and expected."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from scissionlite.bundle import Manifest
from scissionlite.errors import OffloadError, TensorMismatchError
from scissionlite.offloader.wire import Encoding, TensorHeader, payload_bytes

Array: TypeAlias = npt.NDArray[np.float32]

Inputs: TypeAlias = tuple[npt.NDArray[Any], ...]
"""Checked: the network's inputs in order, or one frame (uint8)."""

Outputs: TypeAlias = tuple[Array, ...]
"""The network's outputs in order."""

Output: TypeAlias = Any
"""An answer as the model itself would give it: an array, a tuple of arrays, or a dict of them by
name, dotted where it is nested. Any, so that who knows his network need not narrow a union."""

_ENCODINGS = {
    "float32": Encoding.FLOAT32,
    "float16": Encoding.FLOAT16,
    "int8": Encoding.INT8,
    "int4": Encoding.INT4,
}
_IMAGE_ENCODINGS = {"uint8": Encoding.UINT8, "png": Encoding.PNG, "jpeg": Encoding.JPEG}


def request_tensors(
    manifest: Manifest,
    nbytes: Sequence[int] | None = None,
    *,
    batch: int | None = None,
    entropy_coded: Sequence[bool] | None = None,
) -> tuple[TensorHeader, ...]:
    """Say what a request for this bundle carries.

    Parameters
    ----------
    manifest
        Of kind "split" or "image".
    nbytes
        Length of each payload; 0 for all unless given.
    batch
        How many inputs the request holds; the example's batch unless given.
    entropy_coded
        Whether each payload went through an entropy coder. True is meant only where its Transfer
        Layer has one.

    Raises
    ------
    OffloadError
        If nothing crosses.
    """
    if manifest.kind == "image" and manifest.preprocessing is not None:
        assert manifest.image_format is not None
        encoding = _IMAGE_ENCODINGS[manifest.image_format]
        length = nbytes[0] if nbytes else 0
        return (TensorHeader(encoding, manifest.preprocessing.frame_shape, length),)
    if manifest.kind != "split":
        raise OffloadError(f"a bundle of kind {manifest.kind!r} sends nothing to an edge")
    headers = []
    for i, tensor in enumerate(manifest.crossing):
        groups = tensor.quantization.groups if tensor.quantization is not None else ((), ())
        headers.append(
            TensorHeader(
                _ENCODINGS[tensor.transfer.dtype],
                tensor.shape if batch is None else tensor.of_batch(batch),
                nbytes[i] if nbytes else 0,
                tensor.transfer.pool,
                *groups,
                bool(entropy_coded and entropy_coded[i]) and tensor.transfer.entropy is not None,
            )
        )
    return tuple(headers)


def check_request(manifest: Manifest, tensors: tuple[TensorHeader, ...]) -> None:
    """Raise TensorMismatchError unless a request carries just what the manifest says."""
    count = len(request_tensors(manifest))
    if len(tensors) != count:
        raise TensorMismatchError(f"{len(tensors)} tensors, the bundle's manifest says {count}")
    expected = request_tensors(
        manifest,
        [tensor.nbytes for tensor in tensors],
        batch=request_batch(manifest, tensors),
        entropy_coded=[tensor.entropy_coded for tensor in tensors],
    )
    for ours, theirs in zip(tensors, expected, strict=True):
        if ours != theirs:
            raise TensorMismatchError(
                f"got {_told(ours)}, the bundle's manifest says {_told(theirs)}"
            )


def request_batch(manifest: Manifest, tensors: Sequence[TensorHeader]) -> int | None:
    """How many inputs a request holds, if it may; None is the example's batch."""
    if manifest.kind == "split" and manifest.takes_batch(tensors[0].shape[0]):
        return tensors[0].shape[0] if manifest.max_batch > 1 else None
    return None


def max_payload(manifest: Manifest) -> int:
    """Return the most bytes that any one payload of a request can have."""
    most = 0
    for tensor in request_tensors(manifest, batch=_largest_batch(manifest)):
        if tensor.encoding in (Encoding.JPEG, Encoding.PNG):
            # Noise at the best quality is larger than its pixels.
            most = max(most, 2 * math.prod(tensor.shape) + 4096)
        else:
            most = max(most, payload_bytes(tensor.encoding, tensor.shape, tensor.pool))
    return most


def result_tensors(manifest: Manifest, batch: int | None = None) -> tuple[TensorHeader, ...]:
    """Say what a result for this bundle carries: the outputs, float32 as they are."""
    shapes = [t.shape if batch is None else t.of_batch(batch) for t in manifest.outputs]
    return tuple(
        TensorHeader(Encoding.FLOAT32, shape, payload_bytes(Encoding.FLOAT32, shape, 1))
        for shape in shapes
    )


def as_answered(manifest: Manifest, outputs: Outputs) -> Output:
    """The outputs in the form in which the model itself answers."""
    if manifest.output_kind == "tensor":
        return outputs[0]
    if manifest.output_kind == "tuple":
        return outputs
    return {tensor.name: array for tensor, array in zip(manifest.outputs, outputs, strict=True)}


def check_inputs(manifest: Manifest, x: object) -> Inputs:
    """Check what a caller wants answered.

    Parameters
    ----------
    manifest
        Of the bundle.
    x
        One array, a tuple or list of arrays, or a mapping of input names to arrays.

    Returns
    -------
    tuple of numpy.ndarray
        The same arrays in the network's order, or C-contiguous and writable copies of those that
        are not both.

    Raises
    ------
    ValueError
        If it is neither a frame (uint8, where the bundle has preprocessing) nor the network's
        inputs (except for kind "image").
    """
    names = [tensor.name for tensor in manifest.inputs]
    if isinstance(x, Mapping):
        given = [x.get(name) for name in names] if set(x) == set(names) else []
        told = f"a mapping of {', '.join(map(str, x))}"
    else:
        given = list(x) if isinstance(x, (tuple, list)) else [x]
        told = ", ".join(map(_describe, given))
    if not (_is_frame(manifest, given) or _are_inputs(manifest, given)):
        accepted = []
        if manifest.kind != "image":
            accepted.append(
                " with ".join(f"{t.name} {t.dtype} of shape {t.shape}" for t in manifest.inputs)
                + (f" (batch 1 to {manifest.max_batch})" if manifest.max_batch > 1 else "")
            )
        if manifest.preprocessing is not None:
            accepted.append(f"uint8 of shape {manifest.preprocessing.frame_shape}")
        raise ValueError(
            f"this bundle takes NumPy arrays: {' or '.join(accepted)}; got {told or 'nothing'}"
        )
    # torch warns of arrays that it could not write to, though no slice writes to its input.
    return tuple(np.require(array, requirements=["C", "W"]) for array in given)


def _is_frame(manifest: Manifest, given: Sequence[object]) -> bool:
    return (
        manifest.preprocessing is not None
        and len(given) == 1
        and isinstance(given[0], np.ndarray)
        and given[0].dtype == np.uint8
        and given[0].shape == manifest.preprocessing.frame_shape
    )


def _are_inputs(manifest: Manifest, given: Sequence[object]) -> bool:
    if manifest.kind == "image" or len(given) != len(manifest.inputs):
        return False
    batches = set()
    for array, tensor in zip(given, manifest.inputs, strict=True):
        if not isinstance(array, np.ndarray) or array.dtype.name != tensor.dtype:
            return False
        if array.ndim != len(tensor.shape) or array.shape[1:] != tensor.shape[1:]:
            return False
        batches.add(array.shape[:1])
        if array.shape != tensor.shape and manifest.max_batch == 1:
            return False
    return manifest.max_batch == 1 or (len(batches) == 1 and manifest.takes_batch(*batches.pop()))


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype.name} of shape {value.shape}"
    return type(value).__name__


def _largest_batch(manifest: Manifest) -> int | None:
    if manifest.kind != "split" or manifest.max_batch == 1:
        return None
    return max(manifest.max_batch, manifest.inputs[0].shape[0])


def _told(tensor: TensorHeader) -> str:
    scales = f"{len(tensor.scales)} scales from {tensor.scales[:1]}, zero points from "
    coded = "entropy-coded " * tensor.entropy_coded
    return (
        f"{coded}{tensor.encoding.name} of shape {tensor.shape}, pool {tensor.pool}, "
        f"{scales}{tensor.zero_points[:1]}"
    )
