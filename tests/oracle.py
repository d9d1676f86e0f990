"""NumPy oracle of the kernels: docs/numerics.md, step by step, in the plainest array code."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int8 = npt.NDArray[np.int8]


def maxpool2x2(planes: Float32) -> Float32:
    """(P, H, W) to (P, ceil(H/2), ceil(W/2)); NaN is ignored, a window of only NaN gives -inf."""
    count, height, width = planes.shape
    acc = np.full((count, (height + 1) // 2, (width + 1) // 2), -np.inf, np.float32)
    for dy in (0, 1):
        for dx in (0, 1):
            x = planes[:, dy::2, dx::2]
            covered = acc[:, : x.shape[1], : x.shape[2]]
            with np.errstate(invalid="ignore"):
                np.copyto(covered, x, where=x > covered)
    return acc


def quantize(acc: Float32, scale: float, zero_point: int) -> Int8:
    with np.errstate(over="ignore", under="ignore"):
        inv_scale = np.float32(1) / np.float32(scale)
        t = acc * inv_scale
    lo, hi = np.float32(-128 - zero_point), np.float32(127 - zero_point)
    t = np.where(t < lo, lo, t)
    t = np.where(t > hi, hi, t)
    q: Int8 = (np.rint(t).astype(np.int32) + zero_point).astype(np.int8)
    return q


def dequantize(q: Int8, scale: float, zero_point: int) -> Float32:
    with np.errstate(over="ignore", under="ignore"):
        return (q.astype(np.int32) - zero_point).astype(np.float32) * np.float32(scale)


def upsample2x(planes: Float32, height: int, width: int) -> Float32:
    doubled = planes.repeat(2, axis=1).repeat(2, axis=2)
    return np.ascontiguousarray(doubled[:, :height, :width])


def run(
    operation: str,
    source: npt.NDArray[np.generic],
    height: int,
    width: int,
    scale: float,
    zero_point: int,
) -> npt.NDArray[np.generic]:
    """Answer any operation of csrc/kernels.inc; height and width are the full resolution's."""
    if operation == "maxpool2x2_quantize_f32_i8":
        return quantize(maxpool2x2(source.astype(np.float32, copy=False)), scale, zero_point)
    if operation == "dequantize_upsample2x_i8_f32":
        values = dequantize(source.astype(np.int8, copy=False), scale, zero_point)
        return upsample2x(values, height, width)
    if operation == "maxpool2x2_f32_f32":
        return maxpool2x2(source.astype(np.float32, copy=False))
    if operation == "upsample2x_f32_f32":
        return upsample2x(source.astype(np.float32, copy=False), height, width)
    raise AssertionError(f"the oracle has no {operation}: add it with the kernel")
