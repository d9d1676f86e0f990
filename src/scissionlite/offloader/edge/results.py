"""The end of a job: its result's frames, or the reason why there are none."""

from __future__ import annotations

import logging

import numpy as np

from scissionlite.errors import OffloadError, ScissionLiteError
from scissionlite.offloader import wire
from scissionlite.offloader.bundle_tensors import Outputs
from scissionlite.offloader.edge.schedule import Done, Job

logger = logging.getLogger(__name__)

_FLOAT32 = np.dtype(np.float32)


def pack_result(job: Job, outputs: Outputs) -> list[wire.Buffer]:
    """Make the frames of a result.

    Raises
    ------
    OffloadError
        If the slice did not answer as the manifest says.
    """
    tensors = job.served.side.check(job.tensors).result
    answered = [(array.dtype, array.shape) for array in outputs]
    if answered != [(_FLOAT32, tensor.shape) for tensor in tensors]:
        raise OffloadError(
            "the slice answered "
            + ", ".join(f"{dtype} of shape {shape}" for dtype, shape in answered)
            + ", the manifest says float32 of shape "
            + ", ".join(str(tensor.shape) for tensor in tensors)
        )
    header = wire.Header(
        wire.MessageKind.RESULT, job.device_id, job.request_id, 0, job.served.prefix, tensors
    )
    return wire.pack(header, [np.ascontiguousarray(array).data.cast("B") for array in outputs])


def failed(job: Job, error: Exception, started: float) -> Done:
    """Say why a job failed, whose work began at a monotonic time; log what is not ours."""
    if isinstance(error, ScissionLiteError):
        reason = str(error)
    else:
        kind = type(error).__name__
        logger.warning("a request failed: %r", error, extra={"error": kind})
        reason = f"{kind}: {error}"
    return Done(job, [], reason, started - job.arrived, 0.0, 0.0)
