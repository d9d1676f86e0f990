"""Profiles written by hand, for the tests of planning: three blocks, two slicing points."""

from __future__ import annotations

from typing import Any

import scissionlite as sl
from scissionlite.graph.tensors import TensorInfo
from scissionlite.scissiontl.profile import (
    BlockProfile,
    Host,
    ImageProfile,
    OffloadProfile,
    SliceProfile,
    TransferProfile,
)

SPECS = (sl.TransferSpec.float32_split(), sl.TransferSpec.paper(), sl.TransferSpec())
SHAPE = (1, 16, 8, 8)
JPEG = ImageProfile(quality=75, encode=0.003, decode=0.004, nbytes=2000, source="by hand")


def written(
    name: str = "machine",
    latencies: tuple[float, ...] = (0.010, 0.020, 0.030),
    *,
    model: str = "net",
    offload: OffloadProfile | None = None,
    slices: tuple[SliceProfile, ...] = (),
    leakages: tuple[float | None, ...] = (0.9, 0.5, None),
    outputs: tuple[TensorInfo, ...] = (),
    **more: Any,
) -> sl.Profile:
    """A profile; every block has weights of 1000 bytes and 4096 bytes of feature maps."""
    blocks = tuple(
        BlockProfile(
            name=f"b{i}",
            after=f"b{i}",
            before=f"b{i + 1}",
            latency=latency,
            crossing=(TensorInfo(f"x{i}", SHAPE),) if i < len(latencies) - 1 else (),
            layers=(f"stage{i}.conv", f"stage{i}.norm"),
            weight_bytes=1000,
            peak_bytes=4096,
            leakage=leakages[i] if i < len(leakages) else None,
        )
        for i, latency in enumerate(latencies)
    )
    transfers = tuple(
        TransferProfile(i, spec, 0.001, 0.0005, spec.packed_nbytes(SHAPE))
        for i in range(len(latencies) - 1)
        for spec in SPECS
    )
    fields: dict[str, Any] = {
        "name": name,
        "model": model,
        "runtime": "torchscript",
        "host": Host("x86_64", "by hand", "scalar", 1),
        "inputs": (TensorInfo("input", (1, 3, 32, 32)),),
        "outputs": outputs,
        "blocks": blocks,
        "transfers": transfers,
        "slices": slices,
        "preprocess": 0.002,
        "network_latency": sum(latencies),
        "offload": offload or OffloadProfile(),
    }
    return sl.Profile(**(fields | more))
