"""The edge's computation of a request, without the link."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scissionlite.bundle import Bundle
from scissionlite.errors import BundleError, first_line
from scissionlite.graph.tensors import TensorInfo
from scissionlite.images import image_decode, image_encode
from scissionlite.manifest import CrossingTensor, Role, Variant
from scissionlite.offloader.bundle_tensors import (
    Outputs,
    request_checker,
    request_tensors,
)
from scissionlite.offloader.edge.batching import best_batch
from scissionlite.offloader.edge.results import failed, pack_result
from scissionlite.offloader.edge.schedule import Done, Job
from scissionlite.offloader.slices import open_slice
from scissionlite.offloader.stopwatch import Stopwatch
from scissionlite.offloader.wire import TensorHeader
from scissionlite.runtimes import Slice
from scissionlite.transfer_layer import Packed, decode

logger = logging.getLogger(__name__)


class EdgeSide:
    """The codec and the edge slice: from a request's payloads to the answer.

    Parameters
    ----------
    bundle
        Of kind "split" (runs its edge slices) or "image" (runs the uncut network). Of one of
        three tiers the last slice is run; :class:`.engines.relay.RelaySide` runs the middle.
    threads
        For one run of the slice; None is the runtime's default.
    runtime
        Which of the bundle's runtimes runs it; None is the first that can here.
    batch
        Most samples that one run may have.
    processor
        "cpu", or "cuda": packed payloads are uploaded, decoded on the GPU, and answered there.

    Attributes
    ----------
    bundle : Bundle
        As given; of one of three tiers, that of the second hop.
    check : callable
        Checks the tensors of a request; :func:`.bundle_tensors.request_checker` made it.
    run : Slice
        The slice; with several variants, that of the first.
    batch : int
        Samples in one run beyond which it gains nothing, as measured; at most the argument.

    Raises
    ------
    OffloadError
        If the bundle has no work for an edge.
    """

    trouble = ""  # it always answers

    def __init__(
        self,
        bundle: Bundle,
        threads: int | None = None,
        runtime: str | None = None,
        batch: int = 1,
        processor: str = "cpu",
    ) -> None:
        if bundle.manifest.tiers == 3:
            bundle = bundle.second_hop
        manifest = bundle.manifest
        request_tensors(manifest)
        self.bundle = bundle
        self._manifest = manifest
        self.check = request_checker(manifest)
        self._slices: dict[Role, Slice] = {}
        self._decode_tensor: Callable[..., Any] = decode_tensor
        self._join: Callable[..., Any] = np.concatenate
        if processor != "cpu":
            from scissionlite.offloader.edge.gpu import GpuDecoder  # imports torch

            gpu = GpuDecoder(processor)
            self._decode_tensor = gpu.decode
            self._join = gpu.join if manifest.kind == "split" else np.concatenate
        inputs: Sequence[TensorInfo] = manifest.inputs
        if manifest.kind == "split":
            inputs = manifest.crossing
            for variant in manifest.every_variant:
                if variant.edge not in self._slices:
                    opened = open_slice(
                        bundle, variant.edge, variant.crossing, threads, runtime, processor
                    )
                    self._slices[variant.edge] = opened
        else:
            opened = open_slice(bundle, "network", inputs, threads, runtime, processor)
            self._slices["network"] = opened
            self._load_image_decoder()
        self.run = next(iter(self._slices.values()))
        self.batch = 1
        if (most := min(batch, manifest.max_batch)) > 1:
            try:
                self.batch = best_batch(self.run, inputs, most)
            except Exception as error:  # of the runtime, which has classes of its own
                raise BundleError(
                    f"{bundle.path}: its manifest promises batches of {manifest.max_batch}, but "
                    f"the edge slice fails with more than {inputs[0].shape[0]} "
                    f"({first_line(error)}): prepare it again, or serve it with batch=1 (--batch 1)"
                ) from error
            logger.info("%s: up to %d samples are run together", manifest.model, self.batch)

    @classmethod
    def open(
        cls,
        bundle: Bundle | str | Path,
        threads: int | None = None,
        runtime: str | None = None,
        batch: int = 1,
        processor: str = "cpu",
        *,
        trust: str | Path | None = None,
    ) -> EdgeSide:
        """Load a bundle and its slice, which takes seconds; any thread may.

        With ``trust``, a bundle given by its path must be signed as in :meth:`.bundle.Bundle.load`.
        Raises what it raises, and what making an EdgeSide raises.
        """
        if not isinstance(bundle, Bundle):
            bundle = Bundle.load(bundle, trust)
        return cls(bundle, threads, runtime, batch, processor)

    def answer(
        self,
        headers: tuple[TensorHeader, ...],
        payloads: Sequence[memoryview],
        watch: Stopwatch,
    ) -> Outputs:
        """Answer a checked request. Stages timed: ``decode``, ``run``."""
        with watch.stage("decode"):
            variant = self.check(headers).variant
            tensors = self._decode(variant, headers, payloads)
        with watch.stage("run"):
            return self._slices[_role(variant)](*tensors)

    def finish(self, jobs: Sequence[Job]) -> list[list[Done]]:
        """Answer jobs in as few runs as possible, and pack the results.

        Whatever a runtime raises is the reason of a Done. If several jobs fail together, each is
        run alone: the fault of one is not that of the others. Jobs of variants with different
        slices are not run together.

        Returns
        -------
        list of list of Done
            The jobs of each run of a slice. Where a run failed, they are one, without frames.
        """
        by_slice: dict[Role, list[Job]] = {}
        for job in jobs:
            role = _role(self.check(job.tensors).variant)
            by_slice.setdefault(role, []).append(job)
        return [run for each in by_slice.values() for run in self._finish_alike(each)]

    def _finish_alike(self, jobs: Sequence[Job]) -> list[list[Done]]:
        """Answer jobs that one slice answers, in one run unless it fails."""
        started = time.monotonic()
        watch = Stopwatch()
        try:
            outputs = self._answer_together(jobs, watch)
            frames = [pack_result(*each) for each in zip(jobs, outputs, strict=True)]
        except Exception as error:
            if len(jobs) > 1:
                return [run for job in jobs for run in self._finish_alike([job])]
            return [[failed(jobs[0], error, started)]]
        seconds = watch.seconds
        return [
            [
                Done(job, each, "", started - job.arrived, seconds["decode"], seconds["run"])
                for job, each in zip(jobs, frames, strict=True)
            ]
        ]

    def _answer_together(self, jobs: Sequence[Job], watch: Stopwatch) -> list[Outputs]:
        """Answer checked requests in one run. Stages timed: ``decode``, ``run``."""
        if len(jobs) == 1:
            return [self.answer(jobs[0].tensors, jobs[0].payloads, watch)]
        with watch.stage("decode"):
            variants = [self.check(job.tensors).variant for job in jobs]
            pairs = zip(variants, jobs, strict=True)
            decoded = [self._decode(each, job.tensors, job.payloads) for each, job in pairs]
            tensors = [self._join(several) for several in zip(*decoded, strict=True)]
        with watch.stage("run"):
            outputs = self._slices[_role(variants[0])](*tensors)
        ends = np.cumsum([job.samples for job in jobs]).tolist()
        parts = [np.split(output, ends[:-1]) for output in outputs]
        return list(zip(*parts, strict=True))

    def _decode(
        self,
        variant: Variant | None,
        headers: Sequence[TensorHeader],
        payloads: Sequence[memoryview],
    ) -> list[Any]:
        """Decode a request's payloads into the slice's inputs: arrays, or tensors on a GPU."""
        manifest = self._manifest
        if variant is None:
            assert manifest.preprocessing is not None
            assert manifest.image_format is not None
            shape = manifest.preprocessing.frame_shape
            frame = image_decode(payloads[0], manifest.image_format, shape)
            return [manifest.preprocessing.tensor(frame)]
        return [
            self._decode_tensor(tensor, header, payload)
            for tensor, header, payload in zip(variant.crossing, headers, payloads, strict=True)
        ]

    def close(self) -> None:
        """Do nothing: the slices are freed with this object."""

    def _load_image_decoder(self) -> None:
        """Decode an image now, so that the first request does not wait for the decoder's import."""
        preprocessing, image_format = self._manifest.preprocessing, self._manifest.image_format
        if preprocessing is not None and image_format is not None:
            shape = preprocessing.frame_shape
            quality = self._manifest.jpeg_quality
            encoded = image_encode(np.zeros(shape, np.uint8), image_format, quality)
            image_decode(encoded, image_format, shape)


def _role(variant: Variant | None) -> Role:
    """The role of the slice that answers a variant's requests; None sends images."""
    return "network" if variant is None else variant.edge


def decode_tensor(
    tensor: CrossingTensor, header: TensorHeader, payload: memoryview
) -> npt.NDArray[np.float32]:
    """Decode a payload of a checked request into one of the slice's inputs."""
    quantization, coded = tensor.quantization, header.entropy_coded
    packed = Packed(payload, tensor.transfer, header.shape, quantization, coded, tensor.tables)
    # Slices take their inputs as PyTorch's contiguous tensors are, in NCHW.
    return decode(packed, layout="nchw")
