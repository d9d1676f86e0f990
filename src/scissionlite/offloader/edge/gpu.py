"""The decoder of an edge with a GPU: unpack, upsample and join there. Only this imports torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from scissionlite.manifest import CrossingTensor
from scissionlite.offloader.wire import TensorHeader
from scissionlite.transfer_layer.torch_decoder import TorchDecoder


class GpuDecoder:
    """Uploads packed payloads and decodes them on a processor of torch.

    Parameters
    ----------
    processor
        A device of torch, such as "cuda".
    """

    def __init__(self, processor: str) -> None:
        self._processor = processor
        self._decoders: dict[CrossingTensor, TorchDecoder] = {}

    def decode(
        self, tensor: CrossingTensor, header: TensorHeader, payload: memoryview
    ) -> torch.Tensor:
        """Decode the payload of a checked request's tensor."""
        decoder = self._decoders.get(tensor)
        if decoder is None:
            decoder = TorchDecoder(
                tensor.transfer, tensor.quantization, self._processor, tensor.tables
            )
            self._decoders[tensor] = decoder
        return decoder(payload, header.shape, header.entropy_coded)

    def join(self, several: Sequence[torch.Tensor]) -> torch.Tensor:
        """Join the same tensor of several requests along the batch."""
        return torch.cat(list(several))
