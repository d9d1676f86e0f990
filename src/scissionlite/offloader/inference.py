"""The work of a request without its way over the network: what each side computes.

:class:`DeviceSide` makes a request's payload, :class:`EdgeSide` answers it, :class:`LocalSide`
answers without an edge. One after the other in one process, they give bit for bit what device
and edge give over the wire.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from scissionlite.bundle import Bundle, Manifest, Role
from scissionlite.errors import OffloadError, TensorMismatchError
from scissionlite.images import jpeg_decode, jpeg_encode
from scissionlite.offloader.wire import Buffer, Encoding, TensorHeader, payload_bytes
from scissionlite.runtimes import Slice, load_slice, warm_up
from scissionlite.transfer_layer import Packed, decode, encode

_ENCODINGS = {
    "float32": Encoding.FLOAT32,
    "float16": Encoding.FLOAT16,
    "int8": Encoding.INT8,
    "int4": Encoding.INT4,
}


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


def request_tensor(manifest: Manifest, nbytes: int, *, entropy_coded: bool = False) -> TensorHeader:
    """Say what a request for this bundle carries.

    Parameters
    ----------
    manifest
        Of kind "split" or "image".
    nbytes
        Length of the payload.
    entropy_coded
        Whether it went through an entropy coder. False is meant where the bundle has none.

    Raises
    ------
    OffloadError
        If nothing crosses.
    """
    if manifest.kind == "image" and manifest.preprocessing is not None:
        return TensorHeader(Encoding.JPEG, manifest.preprocessing.frame_shape, nbytes)
    if manifest.kind != "split" or manifest.crossing is None or manifest.transfer is None:
        raise OffloadError(f"a bundle of kind {manifest.kind!r} sends nothing to an edge")
    spec = manifest.transfer
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    if manifest.quantization is not None:
        scales, zero_points = manifest.quantization.groups
    return TensorHeader(
        _ENCODINGS[spec.dtype],
        manifest.crossing.shape,
        nbytes,
        spec.pool,
        scales,
        zero_points,
        entropy_coded and spec.entropy is not None,
    )


def check_request(manifest: Manifest, tensors: tuple[TensorHeader, ...]) -> None:
    """Raise TensorMismatchError unless a request carries just what the manifest says."""
    expected = request_tensor(manifest, tensors[0].nbytes, entropy_coded=tensors[0].entropy_coded)
    if tensors != (expected,):
        raise TensorMismatchError(
            f"got {_told(tensors[0])}{' and more' * (len(tensors) > 1)}, the bundle's manifest "
            f"says {_told(expected)}"
        )


def _told(tensor: TensorHeader) -> str:
    scales = f"{len(tensor.scales)} scales from {tensor.scales[:1]}, zero points from "
    coded = "entropy-coded " * tensor.entropy_coded
    return (
        f"{coded}{tensor.encoding.name} of shape {tensor.shape}, pool {tensor.pool}, "
        f"{scales}{tensor.zero_points[:1]}"
    )


def max_payload(manifest: Manifest) -> int:
    """Return the most bytes that a request's payload can have."""
    tensor = request_tensor(manifest, 0)
    if tensor.encoding is Encoding.JPEG:
        return 2 * math.prod(tensor.shape)  # noise at the best quality is larger than its pixels
    return payload_bytes(tensor.encoding, tensor.shape, tensor.pool)


def result_tensor(manifest: Manifest) -> TensorHeader:
    """Say what a result for this bundle carries: the output, float32 as it is."""
    shape = manifest.output.shape
    return TensorHeader(Encoding.FLOAT32, shape, payload_bytes(Encoding.FLOAT32, shape, 1))


class DeviceSide:
    """From input to payload.

    Parameters
    ----------
    bundle
        Of kind "split" (runs its device slice) or "image" (compresses frames).
    threads
        For one run of the slice; None is the runtime's default.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self._manifest = bundle.manifest
        request_tensor(bundle.manifest, 0)
        self._slice = None
        if bundle.manifest.kind == "split":
            self._slice = _load(bundle, "device", bundle.manifest.input.shape, threads)

    def __call__(
        self, x: npt.NDArray[np.uint8] | npt.NDArray[np.float32], watch: Stopwatch
    ) -> tuple[TensorHeader, Buffer]:
        """Compute the payload of a checked input, and the tensor header that goes with it.

        Stages timed: ``preprocess``, ``device_slice``, ``encode``.
        """
        manifest = self._manifest
        if self._slice is None:
            assert manifest.jpeg_quality is not None
            with watch.stage("encode"):
                payload: Buffer = jpeg_encode(x.view(np.uint8), manifest.jpeg_quality)
                coded = False
        else:
            assert manifest.transfer is not None
            tensor = network_input(manifest, x, watch)
            with watch.stage("device_slice"):
                features = self._slice(tensor)
            with watch.stage("encode"):
                packed = encode(features, manifest.transfer, manifest.quantization)
                payload = np.frombuffer(packed.payload, np.uint8).data
                coded = packed.entropy_coded
        return request_tensor(manifest, len(payload), entropy_coded=coded), payload


class EdgeSide:
    """From payload to answer.

    Parameters
    ----------
    bundle
        Of kind "split" (runs its edge slice) or "image" (runs the uncut network).
    threads
        For one run of the slice; None is the runtime's default.

    Raises
    ------
    OffloadError
        If the bundle has no work for an edge.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        manifest = bundle.manifest
        request_tensor(manifest, 0)
        self._manifest = manifest
        if manifest.crossing is not None and manifest.kind == "split":
            self._slice = _load(bundle, "edge", manifest.crossing.shape, threads)
        else:
            self._slice = _load(bundle, "network", manifest.input.shape, threads)

    def __call__(
        self, tensor_header: TensorHeader, payload: memoryview, watch: Stopwatch
    ) -> npt.NDArray[np.float32]:
        """Answer a checked request. Stages timed: ``decode``, ``run``."""
        manifest = self._manifest
        with watch.stage("decode"):
            if manifest.kind == "image":
                assert manifest.preprocessing is not None
                frame = jpeg_decode(payload, manifest.preprocessing.frame_shape)
                tensor = manifest.preprocessing.tensor(frame)
            else:
                assert manifest.transfer is not None
                assert manifest.crossing is not None
                packed = Packed(
                    payload,
                    manifest.transfer,
                    manifest.crossing.shape,
                    manifest.quantization,
                    tensor_header.entropy_coded,
                )
                # Slices take their input as PyTorch's contiguous tensors are, in NCHW.
                tensor = decode(packed, layout="nchw")
        with watch.stage("run"):
            return self._slice(tensor)


class LocalSide:
    """From input to answer, by the uncut network.

    Parameters
    ----------
    bundle
        One with a network slice.
    threads
        For one run of the slice; None is the runtime's default.

    Attributes
    ----------
    seconds : float
        How long an answer last took, stretched as its stopwatch said.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None, slowdown: float = 1.0) -> None:
        self._manifest = bundle.manifest
        self._slice = _load(bundle, "network", bundle.manifest.input.shape, threads)
        start = time.monotonic()
        warm_up(self._slice, bundle.manifest.input.shape, runs=1)
        self.seconds = slowdown * (time.monotonic() - start)

    def __call__(
        self, x: npt.NDArray[np.uint8] | npt.NDArray[np.float32], watch: Stopwatch
    ) -> npt.NDArray[np.float32]:
        """Answer a checked input. Stages timed: ``preprocess``, ``local_run``."""
        start = time.monotonic()
        tensor = network_input(self._manifest, x, watch)
        with watch.stage("local_run"):
            output = self._slice(tensor)
        self.seconds = time.monotonic() - start
        return output


def network_input(
    manifest: Manifest, x: npt.NDArray[np.uint8] | npt.NDArray[np.float32], watch: Stopwatch
) -> npt.NDArray[np.float32]:
    """Turn a frame into the network's input; an array that is one already is passed on."""
    if x.dtype == np.float32:
        return x.view(np.float32)
    assert manifest.preprocessing is not None
    with watch.stage("preprocess"):
        return manifest.preprocessing.tensor(x.view(np.uint8))


def check_input(manifest: Manifest, x: object) -> npt.NDArray[np.uint8] | npt.NDArray[np.float32]:
    """Check what a caller wants answered.

    Returns
    -------
    numpy.ndarray
        The same array, or a C-contiguous and writable copy if it is not both.

    Raises
    ------
    ValueError
        If it is neither a frame (uint8, where the bundle has preprocessing) nor the network's
        input (float32, except for kind "image").
    """
    accepted = []
    if manifest.kind != "image":
        accepted.append(("float32", manifest.input.shape))
    if manifest.preprocessing is not None:
        accepted.append(("uint8", manifest.preprocessing.frame_shape))
    found = (x.dtype.name, x.shape) if isinstance(x, np.ndarray) else (type(x).__name__, None)
    if found not in accepted:
        got = found[0] if found[1] is None else f"{found[0]} of shape {found[1]}"
        allowed = " or ".join(f"{dtype} of shape {shape}" for dtype, shape in accepted)
        raise ValueError(f"this bundle takes a NumPy array, {allowed}; got {got}")
    # torch warns of arrays that it could not write to, though no slice writes to its input.
    return np.require(x, requirements=["C", "W"])


def _load(bundle: Bundle, role: Role, shape: tuple[int, ...], threads: int | None) -> Slice:
    loaded = load_slice(bundle.slice_path(role), bundle.manifest.slices[role].runtime, threads)
    warm_up(loaded, shape)
    return loaded
