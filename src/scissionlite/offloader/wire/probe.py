"""The probe: a tensor message of kind 3 that measures the link through the tensor port."""

from __future__ import annotations

from scissionlite.errors import ProbeSizeError, TensorMismatchError
from scissionlite.offloader.wire.control import MAX_PROBE_BYTES
from scissionlite.offloader.wire.headers import (
    BUNDLE_ID_BYTES,
    Encoding,
    Header,
    MessageKind,
    TensorHeader,
)


def probe_header(device_id: bytes, request_id: int, nbytes: int) -> Header:
    """Make the header of a probe: one int8 tensor of ``nbytes``, and no bundle."""
    tensor = TensorHeader(Encoding.INT8, (nbytes,), nbytes, 1, (1.0,), (0,))
    return Header(MessageKind.PROBE, device_id, request_id, 0, bytes(BUNDLE_ID_BYTES), (tensor,))


def check_probe(header: Header) -> int:
    """Return a probe's bytes.

    Raises
    ------
    ProbeSizeError
        If there are more of them than a probe may have.
    TensorMismatchError
        If the header is not exactly :func:`probe_header`'s.
    """
    nbytes = sum(tensor.nbytes for tensor in header.tensors)
    if nbytes > MAX_PROBE_BYTES:
        raise ProbeSizeError(f"probe of {nbytes} bytes, at most {MAX_PROBE_BYTES} allowed")
    if header != probe_header(header.device_id, header.request_id, nbytes):
        raise TensorMismatchError("a probe has one int8 tensor, no bundle and no deadline")
    return nbytes
