"""NumPy oracle of the kernels: docs/numerics.md, step by step, in the plainest array code.

Feature maps are logical (images, channels, height, width) arrays with whatever strides; payloads
are flat, in the order of the layout. Nothing here is shared with the C++ core.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]

QUIET_NAN = np.uint32(0x7FC00000).view(np.float32)
CODES = {"i8": (-128, 127), "i4": (-8, 7)}
FLOATS: dict[str, type[np.generic]] = {"f32": np.float32, "f16": np.float16}


def _one(value: float, kind: type[np.generic]) -> Array:
    return np.full(1, value, kind)


@dataclass(frozen=True)
class Call:
    """Parameters of one call of a kernel; scales and zero points are per tensor or per channel."""

    images: int
    channels: int
    height: int
    width: int
    window: int = 1
    pooling: str = "max"
    upsampling: str = "nearest"
    layout: str = "nchw"
    per_channel: bool = False
    scales: Float32 = field(default_factory=lambda: _one(1, np.float32))
    zero_points: Int32 = field(default_factory=lambda: _one(0, np.int32))

    @property
    def full(self) -> tuple[int, int, int, int]:
        return self.images, self.channels, self.height, self.width

    @property
    def pooled(self) -> tuple[int, int, int, int]:
        height, width = -(-self.height // self.window), -(-self.width // self.window)
        return self.images, self.channels, height, width


class Answer(NamedTuple):
    """The output of a kernel, flat and in the order of the layout, and the ranges."""

    output: Array
    lows: Float32 = np.empty(0, np.float32)
    highs: Float32 = np.empty(0, np.float32)


# --- layouts


def flat(values: Array, layout: str) -> Array:
    """Flatten a logical array to the order in memory."""
    return (values if layout == "nchw" else values.transpose(0, 2, 3, 1)).reshape(-1)


def logical(values: Array, shape: tuple[int, int, int, int], layout: str) -> Array:
    """View an array in the order in memory as a logical array."""
    images, channels, height, width = shape
    if layout == "nchw":
        return values.reshape(shape)
    return values.reshape(images, height, width, channels).transpose(0, 3, 1, 2)


# --- float types, NaN by its bits because NumPy and CPUs treat signalling ones differently


def widen(values: Float16) -> Float32:
    bits = values.view(np.uint16).astype(np.uint32)
    nan = (bits & 0x8000) << 16 | 0x7FC00000 | (bits & 0x03FF) << 13
    with np.errstate(invalid="ignore"):
        widened = values.astype(np.float32).view(np.uint32)
    return np.where(np.isnan(values), nan, widened).view(np.float32)


def narrow(values: Float32) -> Float16:
    bits = values.view(np.uint32)
    nan = ((bits >> 16) & 0x8000 | 0x7E00 | (bits >> 13) & 0x03FF).astype(np.uint16)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        narrowed = values.astype(np.float16).view(np.uint16)
    return np.where(np.isnan(values), nan, narrowed).view(np.float16)


def convert(values: Array, kind: type[np.generic]) -> Array:
    """Convert to another float type; between equal types the bits stay."""
    if values.dtype == kind:
        return values
    return widen(values) if kind is np.float32 else narrow(values)


# --- pooling


def pool(values: Float32, window: int, pooling: str) -> Float32:
    if window == 1:
        return values
    return maximum(values, window) if pooling == "max" else average(values, window)


def maximum(values: Float32, window: int) -> Float32:
    images, channels, height, width = values.shape
    acc = np.full((images, channels, -(-height // window), -(-width // window)), -np.inf, "f4")
    for column in range(window):
        for row in range(window):
            x = values[:, :, row::window, column::window]
            covered = acc[:, :, : x.shape[2], : x.shape[3]]
            with np.errstate(invalid="ignore"):
                np.copyto(covered, x, where=x > covered)
    return acc


def average(values: Float32, window: int) -> Float32:
    height, width = values.shape[2:]
    missing = [(0, 0), (0, 0), (0, -height % window), (0, -width % window)]
    padded = np.pad(values, missing, constant_values=np.float32(-0.0))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        rows = padded[:, :, ::window]
        for row in range(1, window):
            rows = rows + padded[:, :, row::window]
        columns = [rows[..., column::window] for column in range(window)]
        total = columns[0] + columns[1]
        if window == 4:
            total = total + (columns[2] + columns[3])
        mean: Float32 = total / _counts(height, width, window)
    return np.where(np.isnan(mean), QUIET_NAN, mean)


def _counts(height: int, width: int, window: int) -> Float32:
    """Count the elements that exist in each window."""
    rows = [min(window, height - first) for first in range(0, height, window)]
    columns = [min(window, width - first) for first in range(0, width, window)]
    return np.outer(rows, columns).astype(np.float32)


# --- quantization and packing


def quantize(values: Float32, scales: Float32, zero_points: Int32, codes: tuple[int, int]) -> Int32:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        inv_scale = np.float32(1) / scales.reshape(1, -1, 1, 1)
        t = values * inv_scale
        t = np.where(t > -512, t, np.float32(-512))
        t = np.where(t < 512, t, np.float32(512))
    q = np.rint(t).astype(np.int32) + zero_points.reshape(1, -1, 1, 1)
    clamped: Int32 = np.clip(q, *codes)
    return clamped


def dequantize(codes: Int32, scales: Float32, zero_points: Int32) -> Float32:
    differences = codes - zero_points.reshape(1, -1, 1, 1)
    with np.errstate(over="ignore", under="ignore"):
        result: Float32 = differences.astype(np.float32) * scales.reshape(1, -1, 1, 1)
    return result


def pack(codes: Int32, kind: str) -> Array:
    """Pack flat codes into bytes."""
    if kind == "i8":
        return codes.astype(np.int8).view(np.uint8)
    nibbles = np.append(codes, np.zeros(codes.size % 2, np.int32)) & 0xF
    return (nibbles[0::2] | nibbles[1::2] << 4).astype(np.uint8)


def unpack(payload: Array, kind: str, size: int) -> Int32:
    """Unpack bytes into flat codes."""
    if kind == "i8":
        return payload.view(np.int8).astype(np.int32)
    codes = payload.view(np.uint8).astype(np.int32)
    nibbles = np.stack([codes & 0xF, codes >> 4], axis=1).reshape(-1)[:size]
    return np.where(nibbles > 7, nibbles - 16, nibbles)


# --- upsampling


def upsample(values: Array, window: int, upsampling: str, height: int, width: int) -> Array:
    if window == 1:
        return values
    if upsampling == "nearest":
        return values.repeat(window, axis=2).repeat(window, axis=3)[:, :, :height, :width]
    stretched = _stretch(_stretch(values, 3, window, width), 2, window, height)
    return np.where(np.isnan(stretched), QUIET_NAN, stretched)


def _stretch(values: Float32, axis: int, window: int, size: int) -> Float32:
    """Interpolate along one axis to `size` values."""
    last = values.shape[axis] - 1
    k = np.arange(size) - window // 2
    left = k // window  # rounds to minus infinity
    weight = ((2 * (k % window) + 1) / (2 * window)).astype(np.float32)
    weight = weight.reshape(-1, *(1,) * (3 - axis))
    a = values.take(np.clip(left, 0, last), axis)
    b = values.take(np.clip(left + 1, 0, last), axis)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        h: Float32 = a * (1 - weight) + b * weight
    return h


# --- the operations


def encode(values: Array, kind: str, call: Call) -> Array:
    """Encode a logical feature map as a payload: flat, of its type, or uint8 for codes."""
    if kind in FLOATS and call.window == 1:
        return flat(convert(values, FLOATS[kind]), call.layout)
    pooled = pool(convert(values, np.float32), call.window, call.pooling)
    if kind in FLOATS:
        return flat(convert(pooled, FLOATS[kind]), call.layout)
    codes = quantize(pooled, call.scales, call.zero_points, CODES[kind])
    return pack(flat(codes, call.layout), kind)


def pool_range(values: Array, call: Call) -> tuple[Float32, Float32, Float32]:
    """Pool a logical feature map; return the logical pooled map, the lows and the highs."""
    pooled = pool(convert(values, np.float32), call.window, call.pooling)
    groups = pooled.transpose(1, 0, 2, 3).reshape(call.channels if call.per_channel else 1, -1)
    finite = np.isfinite(groups)
    # Adding +0.0 makes a zero of either sign +0.0, and changes nothing else.
    lows: Float32 = np.where(finite, groups, np.float32(np.inf)).min(axis=1) + np.float32(0)
    highs: Float32 = np.where(finite, groups, np.float32(-np.inf)).max(axis=1) + np.float32(0)
    return pooled, lows, highs


def decode(payload: Array, kind: str, out: str, call: Call) -> Array:
    """Decode a payload to the logical feature map, of float type `out`."""
    if kind in CODES:
        codes = unpack(payload, kind, math.prod(call.pooled))
        values = logical(codes, call.pooled, call.layout)
        values = dequantize(values, call.scales, call.zero_points)
    else:
        values = logical(payload.view(FLOATS[kind]), call.pooled, call.layout)
        if call.window > 1 and call.upsampling == "bilinear":
            values = convert(values, np.float32)
    upsampled = upsample(values, call.window, call.upsampling, call.height, call.width)
    return convert(upsampled, FLOATS[out])


def run(operation: str, source: Array, call: Call) -> Answer:
    """Answer any operation of csrc/kernel_list.h; `source` is flat, in the order of the layout."""
    name, given, result = operation.rsplit("_", 2)
    if name == "decode":
        return Answer(flat(decode(source, given, result, call), call.layout))
    values = logical(source.view(FLOATS[given]), call.full, call.layout)
    if name == "encode":
        return Answer(encode(values, result, call))
    if name == "pool_range":
        pooled, lows, highs = pool_range(values, call)
        return Answer(flat(pooled, call.layout), lows, highs)
    raise AssertionError(f"the oracle has no {operation}: add it with the kernel")
