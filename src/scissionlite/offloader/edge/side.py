"""The edge's computation of a request, without the link."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np

from scissionlite.bundle import Bundle
from scissionlite.errors import OffloadError, ScissionLiteError
from scissionlite.images import image_decode, image_encode
from scissionlite.offloader import wire
from scissionlite.offloader.bundle_tensors import (
    Outputs,
    request_batch,
    request_tensors,
    result_tensors,
)
from scissionlite.offloader.edge.schedule import Done, Job
from scissionlite.offloader.slices import open_slice
from scissionlite.offloader.stopwatch import Stopwatch
from scissionlite.offloader.wire import TensorHeader
from scissionlite.transfer_layer import Packed, decode

logger = logging.getLogger(__name__)


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
        self._bundle_prefix = wire.bundle_prefix(bundle.id)
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

    def finish(self, job: Job) -> Done:
        """Answer a job, and pack the result; whatever a runtime raises is the reason of a Done."""
        waited = time.monotonic() - job.arrived
        watch, reason, samples = Stopwatch(), "", 0
        frames: list[wire.Buffer] = []
        try:
            outputs = self.answer(job.tensors, job.payloads, watch)
            frames, samples = self._pack(job, outputs), len(outputs[0])
        except ScissionLiteError as error:
            reason = str(error)
        except Exception as error:  # the next request may be fine
            logger.warning("a request failed: %r", error)
            reason = f"{type(error).__name__}: {error}"
        seconds = watch.seconds
        decode_seconds, run_seconds = seconds.get("decode", 0.0), seconds.get("run", 0.0)
        return Done(job, frames, samples, reason, waited, decode_seconds, run_seconds)

    def _pack(self, job: Job, outputs: Outputs) -> list[wire.Buffer]:
        """Make the frames of a result.

        Raises
        ------
        OffloadError
            If the slice did not answer as the manifest says.
        """
        tensors = result_tensors(self._manifest, request_batch(self._manifest, job.tensors))
        answered = [(array.dtype.name, array.shape) for array in outputs]
        if answered != [("float32", tensor.shape) for tensor in tensors]:
            raise OffloadError(
                "the slice answered "
                + ", ".join(f"{dtype} of shape {shape}" for dtype, shape in answered)
                + ", the manifest says float32 of shape "
                + ", ".join(str(tensor.shape) for tensor in tensors)
            )
        header = wire.Header(
            wire.MessageKind.RESULT, job.device_id, job.request_id, 0, self._bundle_prefix, tensors
        )
        return wire.pack(header, [np.ascontiguousarray(array).data for array in outputs])

    def _load_image_decoder(self) -> None:
        """Decode an image now, so that the first request does not wait for the decoder's import."""
        preprocessing, image_format = self._manifest.preprocessing, self._manifest.image_format
        if preprocessing is not None and image_format is not None:
            shape = preprocessing.frame_shape
            quality = self._manifest.jpeg_quality
            encoded = image_encode(np.zeros(shape, np.uint8), image_format, quality)
            image_decode(encoded, image_format, shape)
