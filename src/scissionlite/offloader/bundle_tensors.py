"""The tensors of a bundle's requests and results, as its manifest describes them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from scissionlite.errors import OffloadError, TensorMismatchError
from scissionlite.manifest import Manifest, Variant
from scissionlite.offloader.wire import Encoding, TensorHeader, header_length, payload_bytes

Outputs: TypeAlias = tuple[npt.NDArray[np.float32], ...]
"""The network's outputs in order."""

_KEPT = 64  # requests that a checker remembers


class CheckedRequest(msgspec.Struct, frozen=True):
    """A request by its tensors: its variant (None: an image), inputs, and its result's tensors."""

    variant: Variant | None
    samples: int
    result: tuple[TensorHeader, ...]


def request_checker(manifest: Manifest) -> Callable[[tuple[TensorHeader, ...]], CheckedRequest]:
    """Make a function that checks requests; a device's are alike, so it remembers the last ones.

    It raises what :func:`find_variant` does.
    """
    return functools.lru_cache(maxsize=_KEPT)(functools.partial(_checked, manifest))


def _checked(manifest: Manifest, tensors: tuple[TensorHeader, ...]) -> CheckedRequest:
    variant = find_variant(manifest, tensors)
    samples = tensors[0].shape[0] if manifest.kind == "split" else 1
    result = result_tensors(manifest, request_batch(manifest, tensors))
    return CheckedRequest(variant, samples, result)


def request_tensors(
    manifest: Manifest,
    nbytes: Sequence[int] | None = None,
    *,
    batch: int | None = None,
    entropy_coded: Sequence[bool] | None = None,
    variant: Variant | None = None,
) -> tuple[TensorHeader, ...]:
    """Describe the tensors of a request for this bundle.

    Parameters
    ----------
    manifest
        Of kind "split" or "image".
    nbytes
        Length of each payload in bytes; None is 0 for all.
    batch
        Inputs in the request; None is the example's batch.
    entropy_coded
        Whether each payload went through an entropy coder. True has an effect only where the
        tensor's Transfer Layer has one.
    variant
        One of the manifest's; None is the first.

    Raises
    ------
    OffloadError
        If this kind of bundle sends nothing.
    """
    if manifest.kind == "image" and manifest.preprocessing is not None:
        assert manifest.image_format is not None
        encoding = Encoding.named(manifest.image_format)
        length = nbytes[0] if nbytes else 0
        return (TensorHeader(encoding, manifest.preprocessing.frame_shape, length),)
    if manifest.kind != "split":
        raise OffloadError(f"a bundle of kind {manifest.kind!r} sends nothing to an edge")
    headers = []
    for i, tensor in enumerate(manifest.crossing if variant is None else variant.crossing):
        groups = tensor.quantization.groups if tensor.quantization is not None else ((), ())
        headers.append(
            TensorHeader(
                Encoding.named(tensor.transfer.dtype),
                tensor.shape if batch is None else tensor.of_batch(batch),
                nbytes[i] if nbytes else 0,
                tensor.transfer.pool,
                *groups,
                bool(entropy_coded and entropy_coded[i]) and tensor.transfer.entropy is not None,
            )
        )
    return tuple(headers)


def find_variant(manifest: Manifest, tensors: tuple[TensorHeader, ...]) -> Variant | None:
    """Return the variant that a request is of; None for an image.

    Where several fit, their requests are answered alike.

    Raises
    ------
    TensorMismatchError
        Unless a request has exactly the tensors of one of the manifest's variants.
    """
    if not manifest.variants:
        check_request(manifest, tensors)
        return next(iter(manifest.every_variant), None)
    errors: list[str] = []
    for variant in manifest.every_variant:
        try:
            check_request(manifest, tensors, variant)
        except TensorMismatchError as error:
            errors.append(f"{variant.name}: {error}")
        else:
            return variant
    raise TensorMismatchError(f"it fits none of the bundle's variants: {'; '.join(errors)}"[:1000])


def check_request(
    manifest: Manifest, tensors: tuple[TensorHeader, ...], variant: Variant | None = None
) -> None:
    """Raise TensorMismatchError unless a request has exactly the tensors of a variant."""
    count = len(request_tensors(manifest, variant=variant))
    if len(tensors) != count:
        raise TensorMismatchError(f"{len(tensors)} tensors, the bundle's manifest says {count}")
    allowed = request_tensors(
        manifest,
        [tensor.nbytes for tensor in tensors],
        batch=request_batch(manifest, tensors),
        entropy_coded=[tensor.entropy_coded for tensor in tensors],
        variant=variant,
    )
    for actual, expected in zip(tensors, allowed, strict=True):
        if actual != expected:
            raise TensorMismatchError(
                f"got {_describe(actual)}, the bundle's manifest says {_describe(expected)}"
            )


def request_batch(manifest: Manifest, tensors: Sequence[TensorHeader]) -> int | None:
    """Return a request's batch if the manifest allows it; None is the example's batch."""
    if manifest.kind == "split" and manifest.takes_batch(tensors[0].shape[0]):
        return tensors[0].shape[0] if manifest.max_batch > 1 else None
    return None


def max_payload(manifest: Manifest) -> int:
    """Return the most bytes that any one payload of a request can have."""
    most = 0
    for tensors in _largest_requests(manifest):
        for tensor in tensors:
            if tensor.encoding.compressed:
                # Noise at the best quality is larger than its pixels.
                most = max(most, 2 * math.prod(tensor.shape) + 4096)
            else:
                most = max(most, payload_bytes(tensor.encoding, tensor.shape, tensor.pool))
    return most


def largest_request(manifest: Manifest) -> int:
    """Return the most bytes that header and payloads of a request can have together."""
    largest = max_payload(manifest)
    return max(len(each) * largest + header_length(each) for each in _largest_requests(manifest))


def largest_result(manifest: Manifest) -> int:
    """Return the most bytes that header and payloads of a result can have together."""
    tensors = result_tensors(manifest, _largest_batch(manifest))
    return sum(tensor.nbytes for tensor in tensors) + header_length(tensors)


def result_tensors(manifest: Manifest, batch: int | None = None) -> tuple[TensorHeader, ...]:
    """Describe the tensors of a result for this bundle: its outputs, float32 and not packed."""
    shapes = [t.shape if batch is None else t.of_batch(batch) for t in manifest.outputs]
    return tuple(
        TensorHeader(Encoding.FLOAT32, shape, payload_bytes(Encoding.FLOAT32, shape, 1))
        for shape in shapes
    )


def _largest_requests(manifest: Manifest) -> list[tuple[TensorHeader, ...]]:
    """The tensors of each variant's requests with the largest batch."""
    batch = _largest_batch(manifest)
    variants = manifest.every_variant or (None,)
    return [request_tensors(manifest, batch=batch, variant=each) for each in variants]


def _largest_batch(manifest: Manifest) -> int | None:
    if manifest.kind != "split" or manifest.max_batch == 1:
        return None
    return max(manifest.max_batch, manifest.inputs[0].shape[0])


def _describe(tensor: TensorHeader) -> str:
    scales = f"{len(tensor.scales)} scales from {tensor.scales[:1]}, zero points from "
    coded = "entropy-coded " * tensor.entropy_coded
    return (
        f"{coded}{tensor.encoding.name} of shape {tensor.shape}, pool {tensor.pool}, "
        f"{scales}{tensor.zero_points[:1]}"
    )
