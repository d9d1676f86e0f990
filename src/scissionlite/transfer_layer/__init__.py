"""The Transfer Layer (TL): pool and pack a feature map on the device, restore it on the edge.

A call, from top to bottom, all on the caller's thread::

    codec         encode(feature map) -> Packed, decode(Packed) -> feature map
    shaped_codec  a TransferSpec for one shape: checks, the kernel's call, the entropy coder
    _core         the compiled kernels (csrc/README.md): feature map <-> payload
    entropy       payload <-> entropy-coded payload, by zstd or by _core with EntropyTables

``spec`` describes a TL, ``quantization`` holds scales and zero points, ``layouts`` orders elements
in memory, ``table_fitting`` makes EntropyTables from packed maps. ``layers``, ``learned``
and ``image_encoder`` are the TL for training, ``calibration`` makes one ready; they need torch, so
import them explicitly.
"""

from scissionlite.transfer_layer.codec import Packed, decode, encode
from scissionlite.transfer_layer.entropy_tables import EntropyTables
from scissionlite.transfer_layer.quantization import Quantization
from scissionlite.transfer_layer.spec import TransferSpec
from scissionlite.transfer_layer.table_fitting import fit_tables

__all__ = [
    "EntropyTables",
    "Packed",
    "Quantization",
    "TransferSpec",
    "decode",
    "encode",
    "fit_tables",
]
