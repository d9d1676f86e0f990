"""The edge's half of the Transfer Layer as torch operations, for an edge with a GPU.

The packed payload is uploaded, which is 4 times (int8) to 128 times (4x4 pooling, int4) fewer bytes
than the feature map, and unpacked, dequantized and upsampled there. The values are those of
:func:`.codec.decode` bit for bit, on every processor: docs/numerics.md is the contract of both.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from scissionlite.errors import CodecError
from scissionlite.transfer_layer import entropy
from scissionlite.transfer_layer.codec import Buffer
from scissionlite.transfer_layer.entropy_tables import EntropyTables
from scissionlite.transfer_layer.layers import EdgeTL, Scales
from scissionlite.transfer_layer.quantization import Quantization
from scissionlite.transfer_layer.spec import TransferSpec


class TorchDecoder:
    """Decodes payloads on a processor of torch.

    Parameters
    ----------
    spec
        The Transfer Layer that packed them.
    quantization
        Scales and zero points for int8 and int4; None otherwise.
    processor
        A device of torch, such as "cuda" or "cpu".
    tables
        Those of the entropy coder "ans"; None for others.

    Raises
    ------
    CodecError
        If the quantization is missing or superfluous.
    """

    def __init__(
        self,
        spec: TransferSpec,
        quantization: Quantization | None,
        processor: str,
        tables: EntropyTables | None = None,
    ) -> None:
        if spec.quantized != (quantization is not None):
            raise CodecError(f"quantization={quantization!r} does not go with {spec.label}")
        scales = None if quantization is None else Scales(quantization)
        self._spec = spec
        self._tables = tables
        self._processor = torch.device(processor)
        self._edge = EdgeTL(spec, scales).to(self._processor).eval()

    def __call__(
        self, payload: Buffer, shape: tuple[int, ...], entropy_coded: bool = False
    ) -> torch.Tensor:
        """Decode a payload.

        Parameters
        ----------
        payload
            As :attr:`.codec.Packed.payload`.
        shape
            Shape of the feature map, (..., channels, height, width).
        entropy_coded
            Whether the payload is entropy-coded; the coder runs on the CPU.

        Returns
        -------
        torch.Tensor
            float32 of that shape, contiguous, on the processor.

        Raises
        ------
        CodecError
            If the payload does not have exactly the length that shape and spec require, or is not
            a valid entropy code.
        """
        spec = self._spec
        packed = np.frombuffer(payload, np.uint8)
        nbytes = spec.packed_nbytes(shape)
        if entropy_coded:
            packed = entropy.decode(packed, spec, spec.packed_shape(shape), nbytes, self._tables)
        if packed.nbytes != nbytes:
            raise CodecError(
                f"payload of {packed.nbytes} bytes; {spec.label} of shape {shape} has exactly "
                f"{nbytes}"
            )
        with torch.inference_mode():
            # Copied: torch takes no memory that it could not write to.
            uploaded = torch.from_numpy(packed.copy()).to(self._processor)
            codes = self._in_shape(self._unpacked(uploaded), spec.packed_shape(shape))
            restored: torch.Tensor = self._edge(codes.to(torch.float32), tuple(shape[-2:]))
            return restored.contiguous()

    def _unpacked(self, packed: torch.Tensor) -> torch.Tensor:
        """Elements of a payload in its order, and one more for an odd number of int4."""
        if self._spec.dtype == "int4":
            nibbles = torch.stack([packed & 15, packed >> 4], -1).flatten().to(torch.int8)
            return (nibbles ^ 8) - 8
        return packed.view(getattr(torch, self._spec.dtype))

    def _in_shape(self, elements: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        elements = elements[: math.prod(shape)]
        if self._spec.layout == "nchw":
            return elements.reshape(shape)
        *images, channels, height, width = shape
        return elements.reshape(*images, height, width, channels).movedim(-1, -3)
