"""Tries an installed wheel: every ISA that this CPU has packs the same bytes, and decodes alike."""

from __future__ import annotations

import numpy as np

import scissionlite as sl
from scissionlite import _core

assert sl.Device
x = np.random.default_rng(0).normal(size=(1, 24, 29, 31)).astype(np.float32)
for layout in ("nchw", "nhwc"):
    for dtype in ("int8", "int4", "float16", "float32"):
        payloads, decoded = set(), set()
        for isa in _core.available_isas():
            transfer = _core.Transfer(
                images=1,
                channels=24,
                height=29,
                width=31,
                pool=2,
                pool_kind="max",
                upsample="nearest",
                layout=layout,
                dtype=dtype,
                isa=isa,
            )
            spec = sl.TransferSpec(dtype=dtype, layout=layout)
            quantizer = None
            if spec.quantized:
                quantizer = _core.Quantizer(np.float32([0.03]), np.int32([3]))
            strided = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
            source = x if layout == "nchw" else strided
            payload = np.empty(spec.packed_nbytes(x.shape), np.uint8)
            transfer.encode(source, payload, quantizer)
            answer = np.empty_like(source)
            transfer.decode(payload, answer, quantizer)
            payloads.add(payload.tobytes())
            decoded.add(answer.tobytes())
        assert len(payloads) == len(decoded) == 1, (layout, dtype)
print(f"scissionlite {sl.__version__}: {', '.join(_core.available_isas())} agree")
