"""The edge's computation of a request, without the link."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scissionlite.bundle import Bundle
from scissionlite.images import image_decode, image_encode
from scissionlite.offloader.bundle_tensors import Outputs, request_tensors
from scissionlite.offloader.slices import open_slice
from scissionlite.offloader.stopwatch import Stopwatch
from scissionlite.offloader.wire import TensorHeader
from scissionlite.transfer_layer import Packed, decode


class EdgeSide:
    """The codec and the edge slice: from a request's payloads to the answer.

    Parameters
    ----------
    bundle
        Of kind "split" (runs its edge slice) or "image" (runs the uncut network).
    threads
        For one run of the slice; None is the runtime's default.
    runtime
        Which of the bundle's runtimes runs it; None is the first that can here.

    Raises
    ------
    OffloadError
        If the bundle has no work for an edge.
    """

    def __init__(
        self, bundle: Bundle, threads: int | None = None, runtime: str | None = None
    ) -> None:
        manifest = bundle.manifest
        request_tensors(manifest)
        self._manifest = manifest
        if manifest.kind == "split":
            self._slice = open_slice(bundle, "edge", manifest.crossing, threads, runtime)
        else:
            self._slice = open_slice(bundle, "network", manifest.inputs, threads, runtime)
            self._load_image_decoder()

    def answer(
        self,
        headers: Sequence[TensorHeader],
        payloads: Sequence[memoryview],
        watch: Stopwatch,
    ) -> Outputs:
        """Answer a checked request. Stages timed: ``decode``, ``run``."""
        manifest = self._manifest
        with watch.stage("decode"):
            if manifest.kind == "image":
                assert manifest.preprocessing is not None
                assert manifest.image_format is not None
                shape = manifest.preprocessing.frame_shape
                frame = image_decode(payloads[0], manifest.image_format, shape)
                tensors = [manifest.preprocessing.tensor(frame)]
            else:
                # Slices take their inputs as PyTorch's contiguous tensors are, in NCHW.
                tensors = [
                    decode(
                        Packed(
                            payload,
                            tensor.transfer,
                            header.shape,
                            tensor.quantization,
                            header.entropy_coded,
                        ),
                        layout="nchw",
                    )
                    for header, payload, tensor in zip(
                        headers, payloads, manifest.crossing, strict=True
                    )
                ]
        with watch.stage("run"):
            return self._slice(*tensors)

    def _load_image_decoder(self) -> None:
        """Decode an image now, so that the first request does not wait for the decoder's import."""
        preprocessing, image_format = self._manifest.preprocessing, self._manifest.image_format
        if preprocessing is not None and image_format is not None:
            shape = preprocessing.frame_shape
            quality = self._manifest.jpeg_quality
            encoded = image_encode(np.zeros(shape, np.uint8), image_format, quality)
            image_decode(encoded, image_format, shape)
