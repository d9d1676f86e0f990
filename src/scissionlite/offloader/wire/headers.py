"""The fields of a tensor message, and the caps on them."""

from __future__ import annotations

import enum
import math
import os

import msgspec

from scissionlite.graph.tensors import MAX_TENSORS as MAX_TENSORS
from scissionlite.transfer_layer.spec import PAYLOAD_BITS, pooled_shape

MAX_DEADLINE_MS = 3_600_000
MAX_NDIM = 8
MAX_DIM = 1 << 24
MAX_POOL = 16
MAX_TENSOR_BYTES = 1 << 28
"""Cap on all tensors of a message together, both as packed and as float32."""

MAX_HEADER_BYTES = 1 << 20
DEVICE_ID_BYTES = 16
BUNDLE_ID_BYTES = 16

Buffer = bytes | bytearray | memoryview


class MessageKind(enum.IntEnum):
    """Request and probe travel to the edge, a result to the device."""

    REQUEST = 1
    RESULT = 2
    PROBE = 3


class Encoding(enum.IntEnum):
    """The format of a payload.

    The names, in lower case, are those of ``TransferSpec.dtype`` and of
    :data:`scissionlite.images.ImageFormat`.
    """

    FLOAT32 = 1
    INT8 = 2
    JPEG = 3
    FLOAT16 = 4
    INT4 = 5
    PNG = 6
    UINT8 = 7

    __hash__ = int.__hash__  # Enum's own is Python code, and tensors are looked up by their fields

    @classmethod
    def named(cls, name: str) -> Encoding:
        """Return the encoding of a ``TransferSpec.dtype`` or of an image format."""
        return cls[name.upper()]

    @property
    def compressed(self) -> bool:
        """Whether the length of a payload depends on its values: JPEG and PNG."""
        return self not in _BITS


_BITS = {Encoding.named(dtype): bits for dtype, bits in PAYLOAD_BITS.items()}
_BITS[Encoding.UINT8] = 8  # an image's samples


class TensorHeader(msgspec.Struct, frozen=True):
    """The header's entry for one tensor.

    Attributes
    ----------
    encoding : Encoding
        The format of the payload.
    shape : tuple of int
        The original shape, before pooling.
    nbytes : int
        Length of the payload frame, in bytes.
    pool : int
        Side of the pooling window over the last two dimensions; 1 is none.
    scales, zero_points : tuple of float, tuple of int
        ``value = scale * (q - zero_point)`` for INT8 and INT4: one of each for the tensor, or one
        per channel; empty otherwise.
    entropy_coded : bool
        Whether the payload is compressed, as one zstd frame.
    """

    encoding: Encoding
    shape: tuple[int, ...]
    nbytes: int
    pool: int = 1
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    entropy_coded: bool = False


class Header(msgspec.Struct, frozen=True):
    """A tensor message without its payloads.

    Attributes
    ----------
    kind : MessageKind
        Request or probe (device to edge), or result (edge to device).
    device_id : bytes
        16 bytes, the first not zero: also the device's identity on the control socket.
    request_id : int
        Chosen by the device, unique among its requests.
    deadline_ms : int
        Milliseconds that were left when the message was sent; 0 in a result.
    bundle_id : bytes
        First 16 bytes of the bundle's SHA-256.
    tensors : tuple of TensorHeader
        One per payload frame.
    """

    kind: MessageKind
    device_id: bytes
    request_id: int
    deadline_ms: int
    bundle_id: bytes
    tensors: tuple[TensorHeader, ...]


def new_device_id() -> bytes:
    """Choose a device id at random."""
    return b"\x01" + os.urandom(DEVICE_ID_BYTES - 1)


def is_device_id(identity: bytes) -> bool:
    """Whether bytes can be a device id: ZeroMQ reserves identities that begin with a zero byte."""
    return len(identity) == DEVICE_ID_BYTES and identity[0] != 0


def bundle_prefix(bundle_id: str) -> bytes:
    """Shorten a bundle's hexadecimal id to the 16 bytes that a header carries."""
    return bytes.fromhex(bundle_id)[:BUNDLE_ID_BYTES]


def payload_bytes(encoding: Encoding, shape: tuple[int, ...], pool: int) -> int:
    """Exact bytes of a payload that is not compressed; partial windows count as whole ones."""
    pooled = shape if pool == 1 else pooled_shape(shape, pool)
    return -(-math.prod(pooled) * _BITS[encoding] // 8)
