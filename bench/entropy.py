"""Which entropy stage pays on activations of real photographs: zstd, a bitmap of ours, or none.

    python bench/entropy.py STEEL/test WEIGHTS

reads the steel photographs of ``../shared/data`` and the network of docs/tutorial.md, step 1. The
bitmap is the cheapest scheme for maps of mostly one value. It has one bit per code, which says
whether the code is the most frequent one; then the other codes follow. It is no part of
ScissionLite. Here it is counted as if it took no time at all, which no implementation can beat. The
cost of a payload, in seconds, is

    compressing x SLOWDOWN + bytes / bandwidth + decompressing

where the device is SLOWDOWN times slower than this machine, as in docs/tutorial.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

import scissionlite as sl
from scissionlite.models import load_model
from scissionlite.preprocessor.data import ImageFolder
from scissionlite.transfer_layer import entropy

PHOTOGRAPHS = 50
SLOWDOWN = 5.3
LINKS = (0.25e6, 1e6, 4e6, 20e6, 58.8e6, 100e6, 300e6, 1e9)  # bit/s
SPECS = (
    sl.TransferSpec(),
    sl.TransferSpec(dtype="int4"),
    sl.TransferSpec(pool=4),
    sl.TransferSpec(pool=1),
)
POINTS = ("bn1", "blocks.0", "blocks.1.0.bn1", "blocks.1", "blocks.2.0.bn1", "blocks.2", "blocks.3")


def bitmap_bytes(codes: npt.NDArray[np.uint8], bits: int) -> float:
    """Bytes of the bitmap and of the codes that follow it."""
    values = codes if bits == 8 else np.concatenate([codes & 15, codes >> 4])
    rest = values.size - np.bincount(values).max()
    return float(-(-values.size // 8) + -(-rest * bits // 8))


def fastest(run: Callable[[], object]) -> float:
    """Time of the fastest of some calls, in seconds."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def main(photographs: Path, weights: Path) -> None:
    torch.set_num_threads(1)
    preprocessing = sl.Preprocessing(size=(128, 128))
    network = load_model("scissionlite.models:efficientnet_lite0_imagenet", num_classes=6)
    network.load_state_dict(torch.load(weights, weights_only=True))
    graph = sl.capture(network.eval(), torch.zeros(1, 3, 128, 128))
    folder = ImageFolder(photographs, preprocessing)
    chosen = range(0, len(folder), len(folder) // PHOTOGRAPHS)
    inputs = [torch.from_numpy(preprocessing.tensor(folder.frame(i))) for i in chosen]
    names = {point.after for point in graph.slicing_points}
    print(f"{len(inputs)} photographs; kB and us a photograph; winner by Mbit/s")
    header = " ".join(f"{bandwidth / 1e6:>7g}" for bandwidth in LINKS)
    print(f"{'after':18}{'Transfer Layer':14}{'plain':>7}{'zstd':>7}{'bitmap':>7}", end="")
    print(f"{'zstd us':>8} {header}")
    for name in POINTS:
        if name not in names:
            raise SystemExit(f"no slicing point after {name}; there are {sorted(names)}")
        device_slice, _ = graph.split(graph.point(name))
        with torch.inference_mode():
            maps = [device_slice(x).contiguous().numpy() for x in inputs]
        low, high = min(float(m.min()) for m in maps), max(float(m.max()) for m in maps)
        for spec in SPECS:
            compare(name, spec, maps, sl.Quantization.from_range(low, high, spec.dtype))


def compare(
    name: str,
    spec: sl.TransferSpec,
    maps: list[npt.NDArray[np.float32]],
    quantization: sl.Quantization,
) -> None:
    plain, coded, bitmap, packing, unpacking = [], [], [], [], []
    for x in maps:
        payload = np.frombuffer(sl.encode(x, spec, quantization).payload, np.uint8)
        frame = entropy.compress(payload, "zstd", 1)
        plain.append(payload.nbytes)
        bitmap.append(min(payload.nbytes, bitmap_bytes(payload, 4 if spec.dtype == "int4" else 8)))
        packing.append(fastest(partial(entropy.compress, payload, "zstd", 1)))
        if frame is None:
            coded.append(payload.nbytes)
            unpacking.append(0.0)
        else:
            view = np.frombuffer(frame, np.uint8)
            coded.append(view.nbytes)
            unpacking.append(fastest(partial(entropy.decompress, view, "zstd", payload.nbytes)))
    cost = {
        "plain": (float(np.mean(plain)), 0.0),
        "zstd": (float(np.mean(coded)), float(np.mean(packing) * SLOWDOWN + np.mean(unpacking))),
        "bitmap": (float(np.mean(bitmap)), 0.0),
    }
    winners = []
    for bandwidth in LINKS:
        total = {each: 8 * nbytes / bandwidth + s for each, (nbytes, s) in cost.items()}
        winners.append(min(total, key=lambda each: total[each]))
    sizes = "".join(f"{nbytes / 1e3:7.2f}" for nbytes, _ in cost.values())
    print(f"{name:18}{spec.label:14}{sizes}{np.mean(packing) * 1e6:8.0f} ", end="")
    print(" ".join(f"{winner:>7}" for winner in winners))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(f"usage: {sys.argv[0]} STEEL/test WEIGHTS")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
