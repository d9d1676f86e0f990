"""Whether entropy tables should depend on a code's neighbours: bytes of an ideal coder.

    python -m bench.contexts

cuts EfficientNet-Lite0 with its ImageNet weights after two blocks, packs the 100 photographs of
``../shared/data``, makes tables from 80 of them (mirrored and cropped at random) and counts the
bits of the other 20. A *class* is how the neighbours differ from the channel's most frequent code:
``size`` by the sum of both distances, ``signed`` by the sum of both differences, each in steps of
the channel's mean distance. Channels and classes are clustered as :func:`.fit_tables` does, to at
most 16 tables. ``built`` is what the coder makes with the tables of :func:`.fit_tables`, which are
at most 32 and depend on the signed classes where that pays. The columns are mean bytes a
photograph; zstd is at level 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

import scissionlite as sl
from bench.accuracy.networks import NETWORKS, load
from bench.accuracy.photographs import DATA, ImageNetPhotographs
from scissionlite.preprocessor.inserter import SlicedNetwork, insert
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.transfer_layer import TransferSpec
from scissionlite.transfer_layer import entropy as stage
from scissionlite.transfer_layer import table_fitting as fitting
from scissionlite.transfer_layer.layouts import codes_of

Codes = npt.NDArray[np.int8]
Classes = Callable[[npt.NDArray[np.int64], npt.NDArray[np.float64]], npt.NDArray[np.int64]]

CUTS = ("blocks.3", "blocks.2")
SPECS = (
    TransferSpec(pool_kind="learned", levels=24),
    TransferSpec(pool_kind="learned", levels=48),
    TransferSpec(levels=32),
    TransferSpec(pool=1, levels=32),
    TransferSpec(),
)


def before(d: npt.NDArray[np.int64], axis: int) -> npt.NDArray[np.int64]:
    """The neighbour before each code along an axis; zero where there is none."""
    return np.concatenate([np.zeros_like(d.take([0], axis)), np.delete(d, -1, axis)], axis)


def left(d: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The code to the left."""
    return before(d, -1)


def above(d: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The code above."""
    return before(d, -2)


MOST_CLASSES = 7
SIGNED = np.array([-1.8, -0.9, -0.3, 0.3, 0.9, 1.8])
CLASSES: dict[str, Classes] = {
    "no classes": lambda d, _: np.zeros_like(d),
    "size": lambda d, s: np.digitize((abs(left(d)) + abs(above(d))) / (2 * s), SIGNED[3:]),
    "above": lambda d, s: np.digitize(above(d) / s, SIGNED),
    "left": lambda d, s: np.digitize(left(d) / s, SIGNED),
    "signed": lambda d, s: np.digitize((left(d) + above(d)) / (2 * s), SIGNED),
}


def packed_codes(
    network: SlicedNetwork, data: ImageNetPhotographs, shape: tuple[int, ...]
) -> Codes:
    """The codes of all photographs, (photographs, channels, height, width)."""
    layer = network.layers[0]
    codes = []
    for i in range(len(data)):
        with torch.inference_mode():
            sent = layer.encoder(
                network.features(cast(torch.Tensor, data[i][0])[None])[0]
            ).contiguous()
        packed = sl.encode(sent.numpy(), layer.spec.packing, layer.quantization)
        payload = np.frombuffer(packed.payload, np.uint8)
        codes.append(codes_of(payload, "int8", shape).reshape(shape[1:]))
    return np.stack(codes)


def ideal_bytes(train: Codes, test: Codes, classes: Classes) -> float:
    """Mean bytes of a test photograph with the tables of the others."""
    rows = train.transpose(1, 0, 2, 3).reshape(train.shape[1], -1).astype(np.int64)
    modes = np.array([np.bincount(row + 128, minlength=256).argmax() - 128 for row in rows])
    differences = [x.astype(np.int64) - modes[None, :, None, None] for x in (train, test)]
    steps = np.maximum(1.0, abs(differences[0]).mean((0, 2, 3)))[None, :, None, None]
    counts = []
    for codes, difference in zip((train, test), differences, strict=True):
        row = MOST_CLASSES * np.arange(codes.shape[1])[None, :, None, None]
        row = row + classes(difference, steps)
        numbers = 256 * row + codes.astype(np.int64) + 128
        counted = np.bincount(numbers.reshape(-1), minlength=256 * MOST_CLASSES * codes.shape[1])
        counts.append(counted.reshape(-1, 256).astype(np.float64))
    seen = counts[0].sum(1) > 0
    cluster, _ = fitting._clusters(counts[0][seen], fitting.MOST_TABLES)
    bits = 0.0
    for k in np.unique(cluster):
        table = fitting._frequencies(counts[0][seen][cluster == k].sum(0))
        bits += float(fitting._bits(counts[1][seen][cluster == k].sum(0), table).sum())
    # A class that no channel had is coded as it is.
    return (bits + 8 * float(counts[1][~seen].sum())) / 8 / len(test)


def built_bytes(train: Codes, test: Codes) -> float:
    """Mean bytes of a test photograph as the coder codes it with tables of the others."""
    spec, shape = TransferSpec(pool=1), (1, *train.shape[1:])
    unit = sl.Quantization(1.0, 0)
    tables = sl.fit_tables(sl.encode(x[None].astype(np.float32), spec, unit) for x in train)
    payloads = [np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in test]
    coded = [stage.code(x, TransferSpec(pool=1, entropy="ans"), shape, tables) for x in payloads]
    return sum(payloads[0].nbytes if x is None else x.nbytes for x in coded) / len(coded)


def inputs(data: ImageNetPhotographs) -> Iterator[tuple[torch.Tensor]]:
    for start in range(0, len(data), 20):
        yield (
            torch.stack(
                [cast(torch.Tensor, data[i][0]) for i in range(start, min(start + 20, len(data)))]
            ),
        )


def main() -> None:
    torch.set_num_threads(1)
    entry = NETWORKS["imagenet"]
    example = torch.zeros(1, 3, *entry.preprocessing.size)
    graph = sl.capture(load("imagenet", Path("unused")), example, name=entry.model)
    folder = DATA / "imagenet-sample-100"
    test = list(range(0, 100, 5))
    train = sorted({*range(100)} - {*test})
    torch.manual_seed(0)
    varied = ImageNetPhotographs(folder, train, augment=True)
    print(
        f"{'after':10}{'Transfer Layer':36}{'zstd':>11}",
        *(f"{c:>11}" for c in (*CLASSES, "built")),
        sep="",
    )
    for cut in CUTS:
        for spec in SPECS:
            sliced = insert(graph, cut, spec, calibration=inputs(varied), recipe=Recipe(epochs=0))
            shape = spec.packed_shape(graph.point(cut).crossing[0].shape)
            seen = packed_codes(sliced.eval(), varied, shape)
            own = packed_codes(sliced, ImageNetPhotographs(folder, test), shape)
            plain = [each.reshape(-1).view(np.uint8) for each in own]
            sent = [stage.compress(each, "zstd", 1) or bytes(each) for each in plain]
            row = [sum(map(len, sent)) / len(sent)]
            row += [ideal_bytes(seen, own, classes) for classes in CLASSES.values()]
            row += [built_bytes(seen, own)]
            print(f"{cut:10}{spec.label:36}", *(f"{x:11.0f}" for x in row), sep="", flush=True)


if __name__ == "__main__":
    main()
