"""Prints digests of what a device packs of photographs, with every entropy coding, as JSON.

    python packed_digests.py FEATURES BUNDLE CONNECT PHOTOGRAPH ...

Needs no torch. Two runtimes sum in different orders; the question is whether two processors pack
the same numbers into the same bytes. So the device slice's feature maps are written to the file
FEATURES if it is not there, else taken from it. "own" are digests of the packed bytes of this
machine's own feature maps. At last a Device sends all photographs to the daemon at CONNECT.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from pathlib import Path

import msgspec
import numpy as np

import scissionlite as sl
from scissionlite import _core
from scissionlite.offloader.slices import open_slice
from scissionlite.transfer_layer.table_fitting import fit_tables

SPECS = [
    *(sl.TransferSpec(pool=p, layout=layout) for p in (1, 2, 4) for layout in ("nchw", "nhwc")),
    *(sl.TransferSpec(dtype=dtype) for dtype in ("int4", "float16", "float32")),
    sl.TransferSpec(pool_kind="average", granularity="channel"),
    sl.TransferSpec(pool=4, dtype="int4", granularity="channel", scheme="symmetric"),
]
ENTROPIES = (None, "zstd", "ans")


def packed_bytes(array: np.ndarray, spec: sl.TransferSpec, entropy: str | None) -> bytes:
    """Payload of a feature map, with an entropy coding."""
    coded = msgspec.structs.replace(spec, entropy=entropy)
    tables = fit_tables([sl.encode(array, spec)]) if entropy == "ans" else None
    return bytes(sl.encode(array, coded, tables=tables).payload)


def digests(arrays: list[np.ndarray]) -> dict[str, str]:
    """Digest of the payloads of all feature maps, by the name of the packing."""
    found = {}
    for spec in SPECS:
        for entropy in ENTROPIES:
            if entropy == "ans" and spec.dtype not in ("int8", "int4"):
                continue
            digest = hashlib.sha256()
            for array in arrays:
                digest.update(packed_bytes(array, spec, entropy))
            key = f"{spec.label}, {entropy or 'plain'}"
            found[key] = digest.hexdigest()
    return found


def main() -> None:
    """Print what this machine packs, and what the daemon answers."""
    features_file, folder, connect = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    bundle = sl.Bundle.load(folder)
    preprocessing = bundle.manifest.preprocessing
    assert preprocessing is not None
    frames = [preprocessing.frame(each) for each in sys.argv[4:]]
    run = open_slice(bundle, "device", bundle.manifest.inputs, 1, "onnx")
    own = [run(preprocessing.tensor(frame))[0] for frame in frames]
    if not features_file.exists():
        np.savez(features_file, *own)
    with np.load(features_file) as stored:
        given = [stored[name] for name in stored.files]
    with sl.Device(bundle, connect=connect, deadline=60, runtime="onnx", threads=1) as device:
        answers = [device.submit(frame).result() for frame in frames]
    print(
        json.dumps(
            {
                "machine": platform.machine(),
                "isa": _core.isa(),
                "photographs": len(frames),
                "given": digests(given),
                "own": digests(own),
                "where": sorted({answer.where for answer in answers}),
                "answers": [int(answer.output.argmax()) for answer in answers],
            }
        )
    )


if __name__ == "__main__":
    main()
