"""The device's computation of a request, without the link.

:class:`DeviceSide` makes a request's payloads, :class:`LocalSide` answers without an edge. A
DeviceSide and the edge's EdgeSide, one after the other in one process, give bit for bit what
device and edge give over the wire.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from scissionlite.bundle import Bundle
from scissionlite.graph.tensors import TensorInfo
from scissionlite.images import image_encode
from scissionlite.manifest import Manifest, Role, Variant
from scissionlite.offloader.bundle_tensors import Outputs, request_tensors
from scissionlite.offloader.device.inputs import CheckedInputs, network_inputs
from scissionlite.offloader.slices import open_slice, warm_up_slice
from scissionlite.offloader.stopwatch import Stopwatch
from scissionlite.offloader.wire import Buffer, TensorHeader
from scissionlite.runtimes import Slice
from scissionlite.transfer_layer import encode

_KEPT = 64  # headers of requests that are remembered: most are like one before


class DeviceSide:
    """The device slices and the codecs: from inputs to a request's payloads.

    Parameters
    ----------
    bundle
        Of kind "split" (runs its device slices) or "image" (sends frames).
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
        self._variants = {each.name: each for each in bundle.manifest.every_variant}
        self._slices: dict[Role, Slice] = {}
        # Of each variant, the slices that it adds to those of a variant before it.
        for variant in sorted(self._variants.values(), key=lambda each: len(each.device)):
            if variant.device[-1] not in self._slices:
                inputs = self._inputs_of(variant.device)
                opened = open_slice(bundle, variant.device[-1], inputs, threads, runtime)
                self._slices[variant.device[-1]] = opened
        self._headers = functools.lru_cache(maxsize=_KEPT)(
            functools.partial(_request_headers, bundle.manifest, self._variants)
        )
        preprocessing = bundle.manifest.preprocessing
        if not self._variants and preprocessing is not None:
            self._encode_frame(np.zeros(preprocessing.frame_shape, np.uint8))  # loads the encoder

    def make_request(
        self, inputs: CheckedInputs, watch: Stopwatch, variant: str = ""
    ) -> tuple[tuple[TensorHeader, ...], list[Buffer]]:
        """Compute a request: its tensors' headers and their payloads, one each.

        ``variant`` is the name of one of the manifest's, by default of the first.


        Stages timed: ``preprocess``, ``device_slice``, ``encode``.
        """
        manifest = self._manifest
        payloads: list[Buffer]
        if not self._variants:
            with watch.stage("encode"):
                payloads = [self._encode_frame(inputs[0].view(np.uint8))]
            return request_tensors(manifest, [len(payloads[0])]), payloads
        tensors = network_inputs(manifest, inputs, watch)
        chosen = self._variants[variant or next(iter(self._variants))]
        with watch.stage("device_slice"):
            crossing = tensors
            for role in chosen.device:
                crossing = self._slices[role](*crossing)
        with watch.stage("encode"):
            packed = [
                encode(features, tensor.transfer, tensor.quantization, tables=tensor.tables)
                for features, tensor in zip(crossing, chosen.crossing, strict=True)
            ]
            payloads = [np.frombuffer(each.payload, np.uint8).data for each in packed]
        headers = self._headers(
            chosen.name,
            tensors[0].shape[0],
            tuple(map(len, payloads)),
            tuple(each.entropy_coded for each in packed),
        )
        return headers, payloads

    def _inputs_of(self, roles: tuple[Role, ...]) -> Sequence[TensorInfo]:
        """The inputs of the last of some slices that run one after the other."""
        for variant in self._variants.values():
            if variant.device == roles[:-1]:
                return variant.crossing
        return self._manifest.inputs

    def _encode_frame(self, frame: npt.NDArray[np.uint8]) -> bytes:
        assert self._manifest.image_format is not None
        return image_encode(frame, self._manifest.image_format, self._manifest.jpeg_quality)


def _request_headers(
    manifest: Manifest,
    variants: dict[str, Variant],
    name: str,
    batch: int,
    nbytes: tuple[int, ...],
    coded: tuple[bool, ...],
) -> tuple[TensorHeader, ...]:
    chosen = variants[name]
    return request_tensors(manifest, nbytes, batch=batch, entropy_coded=coded, variant=chosen)


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
