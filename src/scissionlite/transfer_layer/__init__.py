"""The Transfer Layer (TL): what pools, packs and unpacks the feature map at the slicing point.

``spec`` says which TL, ``codec`` runs it on NumPy arrays with the compiled core, with the scales of
``quantization`` and the coders of ``entropy``; ``layers`` (which needs torch, so import it
explicitly) is its form for training.
"""

from scissionlite.transfer_layer.codec import Packed, decode, encode
from scissionlite.transfer_layer.quantization import Quantization
from scissionlite.transfer_layer.spec import TransferSpec

__all__ = ["Packed", "Quantization", "TransferSpec", "decode", "encode"]
