"""The work of a request without its way over the network: what each side computes.

:class:`DeviceSide` makes a request's payloads, :class:`EdgeSide` answers it, :class:`LocalSide`
answers without an edge. One after the other in one process, they give bit for bit what device
and edge give over the wire. :mod:`.contents` says what a request and an answer hold.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from scissionlite.bundle import Bundle, Manifest, Role
from scissionlite.errors import RuntimeUnavailableError
from scissionlite.graph.tensors import TensorInfo
from scissionlite.images import image_decode, image_encode
from scissionlite.offloader.contents import Inputs, Outputs, request_tensors
from scissionlite.offloader.wire import Buffer, TensorHeader
from scissionlite.runtimes import Slice, load_slice, warm_up
from scissionlite.transfer_layer import Packed, decode, encode

logger = logging.getLogger(__name__)


class Stopwatch:
    """Times stages, and stretches them to emulate a slower machine.

    Parameters
    ----------
    slowdown
        Wait after each stage until it has taken this many times as long; 1 does not wait.
    """

    def __init__(self, slowdown: float = 1.0) -> None:
        self._slowdown = slowdown
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block, stretched, to the stage's."""
        start = time.monotonic()
        yield
        if self._slowdown > 1:
            # Not one long sleep: a processor that idles runs the next stage slower, and that would
            # be multiplied in turn. A sleep of zero keeps it awake and lets other threads run.
            until = start + self._slowdown * (time.monotonic() - start)
            while time.monotonic() < until:
                time.sleep(0)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start


class DeviceSide:
    """From inputs to payloads.

    Parameters
    ----------
    bundle
        Of kind "split" (runs its device slice) or "image" (sends frames).
    threads
        For one run of the slice; None is the runtime's default.
    runtime
        Which of the bundle's runtimes runs it; None is the first that can here.
    """

    def __init__(
        self, bundle: Bundle, threads: int | None = None, runtime: str | None = None
    ) -> None:
        self._manifest = bundle.manifest
        request_tensors(bundle.manifest)
        self._slice = None
        if bundle.manifest.kind == "split":
            self._slice = _load(bundle, "device", bundle.manifest.inputs, threads, runtime)

    def __call__(
        self, inputs: Inputs, watch: Stopwatch
    ) -> tuple[tuple[TensorHeader, ...], list[Buffer]]:
        """Compute the payloads of checked inputs, and the tensor headers that go with them.

        Stages timed: ``preprocess``, ``device_slice``, ``encode``.
        """
        manifest = self._manifest
        payloads: list[Buffer]
        if self._slice is None:
            assert manifest.image_format is not None
            with watch.stage("encode"):
                frame = inputs[0].view(np.uint8)
                payloads = [image_encode(frame, manifest.image_format, manifest.jpeg_quality)]
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


class EdgeSide:
    """From payloads to the answer.

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
            self._slice = _load(bundle, "edge", manifest.crossing, threads, runtime)
        else:
            self._slice = _load(bundle, "network", manifest.inputs, threads, runtime)

    def __call__(
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


class LocalSide:
    """From inputs to the answer, by the uncut network.

    Parameters
    ----------
    bundle
        One with a network slice.
    threads
        For one run of the slice; None is the runtime's default.
    runtime
        Which of the bundle's runtimes runs it; None is the first that can here.

    Attributes
    ----------
    seconds : float
        How long an answer last took, stretched as its stopwatch said.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int | None = None,
        runtime: str | None = None,
        slowdown: float = 1.0,
    ) -> None:
        self._manifest = bundle.manifest
        self._slice = _load(bundle, "network", bundle.manifest.inputs, threads, runtime)
        start = time.monotonic()
        _warm_up(self._slice, bundle.manifest.inputs, runs=1)
        self.seconds = slowdown * (time.monotonic() - start)

    def __call__(self, inputs: Inputs, watch: Stopwatch) -> Outputs:
        """Answer checked inputs. Stages timed: ``preprocess``, ``local_run``."""
        start = time.monotonic()
        tensors = network_inputs(self._manifest, inputs, watch)
        with watch.stage("local_run"):
            outputs = self._slice(*tensors)
        self.seconds = time.monotonic() - start
        return outputs


def network_inputs(manifest: Manifest, inputs: Inputs, watch: Stopwatch) -> Inputs:
    """Turn a frame into the network's input; arrays that are inputs already are passed on."""
    if inputs[0].dtype != np.uint8:
        return inputs
    assert manifest.preprocessing is not None
    with watch.stage("preprocess"):
        return (manifest.preprocessing.tensor(inputs[0].view(np.uint8)),)


def _load(
    bundle: Bundle,
    role: Role,
    inputs: Sequence[TensorInfo],
    threads: int | None,
    runtime: str | None,
) -> Slice:
    failures: list[str] = []
    for name in bundle.runtimes(role) if runtime is None else (runtime,):
        try:
            loaded = load_slice(bundle.slice_path(role, name), name, threads)
        except RuntimeUnavailableError as error:
            failures.append(str(error))
            continue
        logger.info("%s runs the %s slice%s", name, role, "".join(f"; {f}" for f in failures))
        _warm_up(loaded, inputs)
        return loaded
    raise RuntimeUnavailableError(f"the {role} slice cannot run here: {'; or '.join(failures)}")


def _warm_up(loaded: Slice, inputs: Sequence[TensorInfo], runs: int = 3) -> None:
    warm_up(loaded, [(tensor.shape, tensor.dtype) for tensor in inputs], runs)
