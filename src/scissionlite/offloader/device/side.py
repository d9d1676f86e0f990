"""The device's computation of a request, without the link.

:class:`DeviceSide` makes a request's payloads, :class:`LocalSide` answers without an edge. A
DeviceSide and the edge's EdgeSide, one after the other in one process, give bit for bit what
device and edge give over the wire.
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from scissionlite.bundle import Bundle
from scissionlite.images import image_encode
from scissionlite.offloader.bundle_tensors import Outputs, request_tensors
from scissionlite.offloader.device.inputs import CheckedInputs, network_inputs
from scissionlite.offloader.slices import open_slice, warm_up_slice
from scissionlite.offloader.stopwatch import Stopwatch
from scissionlite.offloader.wire import Buffer, TensorHeader
from scissionlite.transfer_layer import encode


class DeviceSide:
    """The device slice and the codec: from inputs to a request's payloads.

    Parameters
    ----------
    bundle
        Of kind "split" (runs its device slice) or "image" (sends frames).
    threads
        For one run of the slice; None is the runtime's default.
    runtime
        Which of the bundle's runtimes runs it; None is the first that can here.

    Raises
    ------
    OffloadError
        If this kind of bundle sends nothing to an edge.
    """

    def __init__(
        self, bundle: Bundle, threads: int | None = None, runtime: str | None = None
    ) -> None:
        self._manifest = bundle.manifest
        request_tensors(bundle.manifest)
        self._slice = None
        if bundle.manifest.kind == "split":
            self._slice = open_slice(bundle, "device", bundle.manifest.inputs, threads, runtime)
        elif (preprocessing := bundle.manifest.preprocessing) is not None:
            self._encode_frame(np.zeros(preprocessing.frame_shape, np.uint8))  # loads the encoder

    def make_request(
        self, inputs: CheckedInputs, watch: Stopwatch
    ) -> tuple[tuple[TensorHeader, ...], list[Buffer]]:
        """Compute a request: its tensors' headers and their payloads, one each.

        Stages timed: ``preprocess``, ``device_slice``, ``encode``.
        """
        manifest = self._manifest
        payloads: list[Buffer]
        if self._slice is None:
            with watch.stage("encode"):
                payloads = [self._encode_frame(inputs[0].view(np.uint8))]
            return request_tensors(manifest, [len(payloads[0])]), payloads
        tensors = network_inputs(manifest, inputs, watch)
        with watch.stage("device_slice"):
            crossing = self._slice(*tensors)
        with watch.stage("encode"):
            packed = [
                encode(features, tensor.transfer, tensor.quantization)
                for features, tensor in zip(crossing, manifest.crossing, strict=True)
            ]
            payloads = [np.frombuffer(each.payload, np.uint8).data for each in packed]
        headers = request_tensors(
            manifest,
            list(map(len, payloads)),
            batch=tensors[0].shape[0],
            entropy_coded=[each.entropy_coded for each in packed],
        )
        return headers, payloads

    def _encode_frame(self, frame: npt.NDArray[np.uint8]) -> bytes:
        assert self._manifest.image_format is not None
        return image_encode(frame, self._manifest.image_format, self._manifest.jpeg_quality)


class LocalSide:
    """The uncut network: from inputs to the answer, without an edge.

    Parameters
    ----------
    bundle
        One with a network slice.
    threads
        For one run of the slice; None is the runtime's default.
    runtime
        Which of the bundle's runtimes runs it; None is the first that can here.
    slowdown
        As the stopwatch's of its answers; 1 emulates nothing.

    Attributes
    ----------
    seconds : float
        Time that the last answer took, stretched by its stopwatch.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int | None = None,
        runtime: str | None = None,
        slowdown: float = 1.0,
    ) -> None:
        self._manifest = bundle.manifest
        self._slice = open_slice(bundle, "network", bundle.manifest.inputs, threads, runtime)
        start = time.monotonic()
        warm_up_slice(self._slice, bundle.manifest.inputs, runs=1)
        self.seconds = slowdown * (time.monotonic() - start)

    def answer(self, inputs: CheckedInputs, watch: Stopwatch) -> Outputs:
        """Answer checked inputs. Stages timed: ``preprocess``, ``local_run``."""
        start = time.monotonic()
        tensors = network_inputs(self._manifest, inputs, watch)
        with watch.stage("local_run"):
            outputs = self._slice(*tensors)
        self.seconds = time.monotonic() - start
        return outputs
