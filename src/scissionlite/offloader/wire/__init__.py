"""The formats on the wire. docs/wire-format.md is normative; nothing here opens a socket.

``headers``          Header and TensorHeader: the fields of a tensor message, and their caps
``header_bytes``     the same fields as bytes
``rules``            which values of the fields are allowed
``tensor_message``   ``pack`` and ``unpack``: header and payloads as frames, with their digest
``probe``            the tensor message that measures a link
``control``          control messages: msgpack maps, one struct per ``type``
``endpoints``        the tensor endpoint of a daemon and its control endpoint

``pack`` is called on the device's and the edge's I/O threads, and so is ``unpack``.
"""

from scissionlite.offloader.wire.header_bytes import MAGIC, VERSION, header_length, sender
from scissionlite.offloader.wire.headers import (
    BUNDLE_ID_BYTES,
    DEVICE_ID_BYTES,
    MAX_DEADLINE_MS,
    MAX_DIM,
    MAX_HEADER_BYTES,
    MAX_NDIM,
    MAX_POOL,
    MAX_TENSOR_BYTES,
    MAX_TENSORS,
    Buffer,
    Encoding,
    Header,
    MessageKind,
    TensorHeader,
    bundle_prefix,
    is_device_id,
    new_device_id,
    payload_bytes,
)
from scissionlite.offloader.wire.tensor_message import pack, unpack

__all__ = [
    "BUNDLE_ID_BYTES",
    "DEVICE_ID_BYTES",
    "MAGIC",
    "MAX_DEADLINE_MS",
    "MAX_DIM",
    "MAX_HEADER_BYTES",
    "MAX_NDIM",
    "MAX_POOL",
    "MAX_TENSORS",
    "MAX_TENSOR_BYTES",
    "VERSION",
    "Buffer",
    "Encoding",
    "Header",
    "MessageKind",
    "TensorHeader",
    "bundle_prefix",
    "header_length",
    "is_device_id",
    "new_device_id",
    "pack",
    "payload_bytes",
    "sender",
    "unpack",
]
