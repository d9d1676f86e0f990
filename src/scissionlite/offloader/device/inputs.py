"""The values that a caller passes to :class:`.device.Device` and receives from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from scissionlite.graph.tensors import TensorInfo
from scissionlite.manifest import Manifest
from scissionlite.offloader.bundle_tensors import Outputs
from scissionlite.offloader.stopwatch import Stopwatch

Input: TypeAlias = npt.NDArray[Any] | Sequence[npt.NDArray[Any]] | Mapping[str, npt.NDArray[Any]]
"""The caller's input: one array, several in order, or several by name."""

CheckedInputs: TypeAlias = tuple[npt.NDArray[Any], ...]
"""The network's inputs in order, or one frame (uint8)."""

Output: TypeAlias = Any
"""The answer in the form in which the model itself returns it: an array, a tuple of arrays, or a
dict of them by name, dotted where it is nested. Any, so that callers need not narrow a union."""


def check_inputs(manifest: Manifest, x: object) -> CheckedInputs:
    """Check a caller's input.

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
        values = [x.get(name) for name in names] if set(x) == set(names) else []
    else:
        values = list(x) if isinstance(x, (tuple, list)) else [x]
    if not (_is_frame(manifest, values) or _are_inputs(manifest, values)):
        if isinstance(x, Mapping):
            description = f"a mapping of {', '.join(map(str, x))}"
        else:
            description = ", ".join(map(_describe, values))
        accepted = []
        if manifest.kind != "image":
            accepted.append(
                " with ".join(f"{t.name} {t.dtype} of shape {t.shape}" for t in manifest.inputs)
                + (f" (batch 1 to {manifest.max_batch})" if manifest.max_batch > 1 else "")
            )
        if manifest.preprocessing is not None:
            accepted.append(f"uint8 of shape {manifest.preprocessing.frame_shape}")
        raise ValueError(
            f"this bundle takes NumPy arrays: {' or '.join(accepted)}; "
            f"got {description or 'nothing'}"
        )
    # torch warns of arrays that it could not write to, though no slice writes to its input.
    return tuple(map(_contiguous, values))


def network_inputs(manifest: Manifest, inputs: CheckedInputs, watch: Stopwatch) -> CheckedInputs:
    """Turn a frame into the network's input; arrays that are inputs already are passed on."""
    if inputs[0].dtype != np.uint8:
        return inputs
    assert manifest.preprocessing is not None
    with watch.stage("preprocess"):
        return (manifest.preprocessing.tensor(inputs[0].view(np.uint8)),)


def as_output(manifest: Manifest, outputs: Outputs) -> Output:
    """Return the outputs in the form in which the model itself returns them."""
    if manifest.output_kind == "tensor":
        return outputs[0]
    if manifest.output_kind == "tuple":
        return outputs
    return {tensor.name: array for tensor, array in zip(manifest.outputs, outputs, strict=True)}


def _is_frame(manifest: Manifest, values: Sequence[object]) -> bool:
    return (
        manifest.preprocessing is not None
        and len(values) == 1
        and isinstance(values[0], np.ndarray)
        and values[0].dtype == np.uint8
        and values[0].shape == manifest.preprocessing.frame_shape
    )


def _are_inputs(manifest: Manifest, values: Sequence[object]) -> bool:
    if manifest.kind == "image" or len(values) != len(manifest.inputs):
        return False
    if all(map(_is_like, values, manifest.inputs)):
        return True
    batches = set()
    for array, tensor in zip(values, manifest.inputs, strict=True):
        if not isinstance(array, np.ndarray) or array.dtype.name != tensor.dtype:
            return False
        if array.ndim != len(tensor.shape) or array.shape[1:] != tensor.shape[1:]:
            return False
        batches.add(array.shape[:1])
        if array.shape != tensor.shape and manifest.max_batch == 1:
            return False
    return manifest.max_batch == 1 or (len(batches) == 1 and manifest.takes_batch(*batches.pop()))


def _contiguous(array: Any) -> npt.NDArray[Any]:
    dense: bool = array.flags.carray
    return array if dense else np.require(array, requirements=["C", "W"])


def _is_like(array: object, tensor: TensorInfo) -> bool:
    return (
        isinstance(array, np.ndarray)
        and array.shape == tensor.shape
        and array.dtype == tensor.dtype
    )


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype.name} of shape {value.shape}"
    return type(value).__name__
