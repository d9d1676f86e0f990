"""The values that the fields of a tensor message may have; each violation has its own error.

Python's integers do not overflow; every product is still compared with its cap before it is used
for a size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

from scissionlite.errors import (
    DeadlineFieldError,
    DeviceIdError,
    DimensionError,
    DimensionLimitError,
    EntropyFlagError,
    FrameCountError,
    GroupCountError,
    PayloadLengthError,
    PoolError,
    QuantizationFieldError,
    RankError,
    TensorCountError,
    TensorSizeError,
)
from scissionlite.images import ImageFormat
from scissionlite.offloader.wire.headers import (
    MAX_DEADLINE_MS,
    MAX_DIM,
    MAX_NDIM,
    MAX_POOL,
    MAX_TENSOR_BYTES,
    MAX_TENSORS,
    Buffer,
    Encoding,
    Header,
    TensorHeader,
    is_device_id,
    payload_bytes,
)
from scissionlite.transfer_layer.spec import CODE_RANGES

_IMAGES = frozenset(map(Encoding.named, get_args(ImageFormat)))
_ZERO_POINTS = {Encoding.named(dtype): bounds for dtype, bounds in CODE_RANGES.items()}


def check_prefix(header: Header) -> None:
    """Check the fields before the tensors' entries: device id and deadline."""
    if not is_device_id(header.device_id):
        raise DeviceIdError(f"not a device id: {header.device_id.hex()}")
    if header.deadline_ms > MAX_DEADLINE_MS:
        raise DeadlineFieldError(
            f"deadline of {header.deadline_ms} ms, at most {MAX_DEADLINE_MS} allowed"
        )


def check_tensors(tensors: Sequence[TensorHeader], payloads: Sequence[Buffer]) -> None:
    """Check the tensors' entries and the lengths of their payloads."""
    if len(payloads) != len(tensors):
        raise FrameCountError(f"{len(payloads)} payload frames for {len(tensors)} tensors")
    check_entries(tensors)
    for tensor, payload in zip(tensors, payloads, strict=True):
        length = memoryview(payload).nbytes
        if length != tensor.nbytes:
            raise PayloadLengthError(f"payload of {length} bytes, announced as {tensor.nbytes}")
        check_length(tensor)


def check_entries(tensors: Sequence[TensorHeader]) -> None:
    """Check the tensors' entries, but for the lengths of their payloads."""
    if not 1 <= len(tensors) <= MAX_TENSORS:
        raise TensorCountError(f"{len(tensors)} tensors, 1 to {MAX_TENSORS} allowed")
    packed = unpacked = 0
    for tensor in tensors:
        _check_tensor(tensor)
        packed += tensor.nbytes
        unpacked += 4 * math.prod(tensor.shape)
        if max(packed, unpacked) > MAX_TENSOR_BYTES:
            raise TensorSizeError(f"tensors of more than {MAX_TENSOR_BYTES} bytes")


def _check_tensor(tensor: TensorHeader) -> None:
    shape = tensor.shape
    if not 1 <= len(shape) <= MAX_NDIM:
        raise RankError(f"{len(shape)} dimensions, 1 to {MAX_NDIM} allowed")
    if min(shape) < 1:
        raise DimensionError(f"a dimension of shape {shape} is zero")
    if max(shape) > MAX_DIM:
        raise DimensionLimitError(f"a dimension of shape {shape} is over {MAX_DIM}")
    if not 1 <= tensor.pool <= MAX_POOL:
        raise PoolError(f"pool {tensor.pool}, 1 to {MAX_POOL} allowed")
    if tensor.pool > 1 and (tensor.encoding in _IMAGES or len(shape) < 3):
        raise PoolError(f"a {tensor.encoding.name} tensor of shape {shape} cannot be pooled")
    if tensor.encoding in _IMAGES:
        name = tensor.encoding.name
        if len(shape) != 3 or shape[2] not in (1, 3):
            raise DimensionError(
                f"an image ({name}) of shape {shape}: not height, width, 1 or 3 channels"
            )
        if tensor.entropy_coded:
            raise EntropyFlagError(f"an image ({name}) marked as entropy-coded")
    _check_quantization(tensor)


def _check_quantization(tensor: TensorHeader) -> None:
    groups = len(tensor.scales)
    allowed = {0}
    if tensor.encoding in _ZERO_POINTS:
        allowed = {1} if len(tensor.shape) < 3 else {1, tensor.shape[-3]}
    if groups not in allowed or len(tensor.zero_points) != groups:
        raise GroupCountError(
            f"{groups} scales and {len(tensor.zero_points)} zero points for a "
            f"{tensor.encoding.name} tensor of shape {tensor.shape}"
        )
    if groups == 0:
        return
    # There may be thousands: min(), max() and map() run through them without the interpreter.
    if not all(map(math.isfinite, tensor.scales)) or min(tensor.scales) <= 0:
        raise QuantizationFieldError("a scale is not finite or not above zero")
    low, high = _ZERO_POINTS[tensor.encoding]
    if min(tensor.zero_points) < low or max(tensor.zero_points) > high:
        raise QuantizationFieldError(
            f"a zero point of a {tensor.encoding.name} tensor is not within [{low}, {high}]"
        )


def check_length(tensor: TensorHeader) -> None:
    """Check the length of a payload that has the length which its entry says."""
    length = tensor.nbytes
    if tensor.encoding.compressed:
        if length < 1:
            raise PayloadLengthError(f"an empty {tensor.encoding.name}")
        return
    exact = payload_bytes(tensor.encoding, tensor.shape, tensor.pool)
    # What an entropy coder does not shrink is sent as it is.
    if not (1 <= length < exact if tensor.entropy_coded else length == exact):
        raise PayloadLengthError(
            f"payload of {length} bytes for a {tensor.encoding.name} tensor of shape "
            f"{tensor.shape}, pool {tensor.pool}: {exact} expected"
            + (", or rather fewer, as it is entropy-coded" if tensor.entropy_coded else "")
        )
