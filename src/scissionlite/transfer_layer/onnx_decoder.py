"""The edge's half of the Transfer Layer as ONNX operations, for servers that run ONNX files.

The values are those of :func:`.codec.decode` bit for bit where each operation rounds as it stands,
as in ONNX Runtime on CPUs: docs/numerics.md is the contract of both. Nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from scissionlite.transfer_layer.quantization import Quantization
from scissionlite.transfer_layer.spec import TransferSpec

LEAST_OPSET = 18
"""The operations need this version of ONNX's at least."""

PAYLOAD_DTYPES = {"float32": "float32", "float16": "float16", "int8": "int8", "int4": "uint8"}
"""NumPy's name of the type of a payload's elements; int4 are bytes of two codes."""


def payload_shape(spec: TransferSpec, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a payload without entropy code, batch first: its bytes are those of the codec.

    int8 and floats have the pooled map's shape in its layout. int4 has (batch, bytes); with an odd
    number of codes in a sample, where two samples share a byte, (bytes,).
    """
    batch, *sample = spec.packed_shape(tuple(shape))
    if spec.dtype == "int4":
        codes = math.prod(sample)
        return (batch, codes // 2) if codes % 2 == 0 else ((batch * codes + 1) // 2,)
    return (batch, *_in_memory(spec, sample))


class OnnxDecoder:
    """The nodes that turn a payload into a feature map.

    Parameters
    ----------
    spec
        The Transfer Layer that packed it; its entropy code must be undone before.
    quantization
        Scales and zero points for int8 and int4; None otherwise.
    shape
        Of the feature map, (batch, ..., channels, height, width).
    payload, output
        Names of the value that is read, and of the one that is made.

    Attributes
    ----------
    nodes : list of onnx.NodeProto
        In order.
    constants : list of onnx.TensorProto
        What they read besides.
    """

    def __init__(
        self,
        spec: TransferSpec,
        quantization: Quantization | None,
        shape: tuple[int, ...],
        payload: str,
        output: str,
    ) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._prefix = f"{payload}/"
        self._spec = spec
        self._pooled = spec.packed_shape(shape)
        value = self._restore(self._dequantize(self._in_order(payload), quantization), shape)
        self._add("Identity", value, output=output)

    def _in_order(self, value: str) -> str:
        """Codes of a payload as float32, (batch, ..., channels, height, width)."""
        spec, (_, *sample) = self._spec, self._pooled
        if spec.dtype == "int4":
            shape = np.array([-1, *_in_memory(spec, sample)])
            value = self._add("Reshape", self._nibbles(value), self._constant(shape))
        value = self._add("Cast", value, to=TensorProto.FLOAT)
        if spec.layout == "nhwc":
            last = len(sample)
            order = [*range(last - 2), last, last - 2, last - 1]
            value = self._add("Transpose", value, perm=order)
        return value

    def _nibbles(self, value: str) -> str:
        """Codes of bytes that hold two each, in a row."""
        fifteen, four = self._constant(np.uint8(15)), self._constant(np.uint8(4))
        low = self._add("BitwiseAnd", value, fifteen)
        high = self._add("BitShift", value, four, direction="RIGHT")
        last = self._constant(np.array([-1]))
        pair = [self._add("Unsqueeze", each, last) for each in (low, high)]
        codes = self._add("Reshape", self._add("Concat", *pair, axis=-1), last)
        batch, *sample = self._pooled
        if math.prod(sample) % 2:  # the payload may end in half a byte
            ends = [self._constant(np.array([n])) for n in (0, batch * math.prod(sample), 0)]
            codes = self._add("Slice", codes, *ends)
        codes = self._add("Cast", codes, to=TensorProto.FLOAT)
        is_negative = self._add("GreaterOrEqual", codes, self._constant(np.float32(8)))
        lowered = self._add("Sub", codes, self._constant(np.float32(16)))
        return self._add("Where", is_negative, lowered, codes)

    def _dequantize(self, value: str, quantization: Quantization | None) -> str:
        """(code - zero point) * scale: the difference is exact, the product is rounded once."""
        if quantization is None:
            return value
        scales, zero_points = (np.array(each, np.float32) for each in quantization.groups)
        shape = (-1, 1, 1)
        difference = self._add("Sub", value, self._constant(zero_points.reshape(shape)))
        return self._add("Mul", difference, self._constant(scales.reshape(shape)))

    def _restore(self, value: str, shape: tuple[int, ...]) -> str:
        """Bring a pooled map back to its height and width."""
        if self._spec.pool == 1:
            return value
        restore = self._interpolate if self._spec.upsample == "bilinear" else self._repeat
        for axis in (len(shape) - 1, len(shape) - 2):  # horizontally first
            value = restore(value, axis, shape)
        return value

    def _repeat(self, value: str, axis: int, shape: tuple[int, ...]) -> str:
        return self._gather(value, np.arange(shape[axis]) // self._spec.pool, axis)

    def _interpolate(self, value: str, axis: int, shape: tuple[int, ...]) -> str:
        pool, last = self._spec.pool, self._pooled[axis] - 1
        position = np.arange(shape[axis]) - pool // 2
        left = position // pool
        weight = ((2 * (position % pool) + 1) / (2 * pool)).astype(np.float32)
        weight = weight.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        a = self._gather(value, np.clip(left, 0, last), axis)
        b = self._gather(value, np.clip(left + 1, 0, last), axis)
        products = [
            self._add("Mul", each, self._constant(factor))
            for each, factor in ((a, np.float32(1) - weight), (b, weight))
        ]
        return self._add("Add", *products)

    def _gather(self, value: str, indices: npt.NDArray[np.int64], axis: int) -> str:
        return self._add("Gather", value, self._constant(indices.astype(np.int64)), axis=axis)

    def _add(self, kind: str, *inputs: str, output: str = "", **attributes: object) -> str:
        name = output or f"{self._prefix}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [*inputs], [name], **attributes))
        return name

    def _constant(self, value: npt.NDArray[np.generic] | np.generic) -> str:
        name = f"{self._prefix}c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def _in_memory(spec: TransferSpec, sample: Sequence[int]) -> list[int]:
    """The shape of a sample in the order in which it lies in memory."""
    if spec.layout == "nchw":
        return [*sample]
    *image, channels, height, width = sample
    return [*image, height, width, channels]
