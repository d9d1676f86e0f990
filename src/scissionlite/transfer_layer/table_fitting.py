"""Fit entropy tables: count the codes of calibration inputs, and let similar channels share.

Tables cost bytes in the bundle and places in a processor's cache. The channels are clustered by the
bits that they lose with a common table (Kullback-Leibler divergence, Lloyd's algorithm). Measured
with 80 photographs and four Transfer Layers of EfficientNet-Lite0, 16 tables code 80 channels in as
many bytes as 80 tables do; docs/training.md has the figures.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from scissionlite.errors import EntropyTablesError
from scissionlite.transfer_layer.entropy_tables import (
    CLASSES,
    MAX_CHANNELS,
    TOTAL,
    Bounds,
    EntropyTables,
)
from scissionlite.transfer_layer.layouts import as_map, codes_of
from scissionlite.transfer_layer.neighbours import bounds_from, classes_of
from scissionlite.transfer_layer.spec import CODE_RANGES, PAYLOAD_BITS

if TYPE_CHECKING:
    from scissionlite.transfer_layer.codec import Packed

Counts = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int8]

MOST_TABLES = 16
"""Most tables that are made where they do not depend on neighbours."""

MOST_NEIGHBOUR_TABLES = 32
"""Most tables that are made where they do."""

_WORTH = 0.01
"""Share of the bits that neighbours must save: decoding with them takes longer."""

_ROUNDS = 20  # of Lloyd's algorithm; it has mostly settled after ten
_UNSEEN = 0.02  # count of a code that was not seen, so that channels can be compared


def fit_tables(packed: Iterable[Packed]) -> EntropyTables:
    """Make the tables for some feature maps and others like them.

    Parameters
    ----------
    packed : iterable of Packed
        Feature maps of one int8 or int4 Transfer Layer, packed and not entropy-coded. Each channel
        has a table where they have at least four dimensions, (..., channels, height, width);
        otherwise there is one table for all. The tables depend on a code's neighbours where that
        saves at least 1% of the bytes of these maps.

    Returns
    -------
    EntropyTables

    Raises
    ------
    EntropyTablesError
        There are no feature maps, they are entropy-coded or not quantized, or their channels or
        dtypes differ.
    """
    maps: list[Codes] = []
    dtype = ""
    for each in packed:
        if not each.spec.quantized or each.entropy_coded:
            raise EntropyTablesError(
                f"tables are made from int8 or int4 codes, not entropy-coded, not {each.spec.label}"
            )
        own = _codes(each)
        if maps and (dtype != each.spec.dtype or own.shape[1] != maps[0].shape[1]):
            raise EntropyTablesError("tables are made from maps of one dtype and as many channels")
        maps.append(own)
        dtype = each.spec.dtype
    if not maps:
        raise EntropyTablesError("tables are made from at least one feature map")
    low, symbols = CODE_RANGES[dtype][0], 2 ** PAYLOAD_BITS[dtype]
    counts: Counts = np.zeros((maps[0].shape[1], symbols))
    for codes in maps:
        counts += _count(codes, low, symbols)
    cluster, cost = _clusters(counts, MOST_TABLES)
    if len(counts) == 1:
        return _tables(dtype, counts, cluster, None)
    bounds = bounds_from(counts, low)
    by_class: Counts = np.zeros((CLASSES * len(counts), symbols))
    for codes in maps:
        by_class += _count(codes, low, symbols, CLASSES, classes_of(codes, bounds))
    seen = by_class.sum(1) > 0
    cluster_of_seen, own_cost = _clusters(by_class[seen], MOST_NEIGHBOUR_TABLES)
    if own_cost >= (1 - _WORTH) * cost:
        return _tables(dtype, counts, cluster, None)
    return _tables(dtype, by_class, cluster_of_seen[_nearest_seen(seen)], bounds)


def _tables(
    dtype: str, counts: Counts, cluster: npt.NDArray[np.intp], bounds: Bounds | None
) -> EntropyTables:
    """The tables where each row of counts has a cluster."""
    _, cluster = np.unique(cluster, return_inverse=True)
    sums = np.stack([counts[cluster == k].sum(0) for k in range(cluster.max() + 1)])
    frequencies = np.stack([_frequencies(each) for each in sums])
    bits = sum(_bits(*each).sum() for each in zip(sums, frequencies, strict=True)) / counts.sum()
    return EntropyTables.of(dtype, cluster.tolist(), frequencies, round(float(bits), 4), bounds)


def _nearest_seen(seen: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """For each channel's classes, which of the seen ones (counted over all) is the nearest."""
    numbers = (np.cumsum(seen) - 1).reshape(-1, CLASSES)
    rows = seen.reshape(-1, CLASSES)
    classes = np.arange(CLASSES)
    away = np.where(rows[:, None, :], abs(classes[:, None] - classes), CLASSES).argmin(2)
    return np.take_along_axis(numbers, away, 1).reshape(-1)


def _codes(packed: Packed) -> Codes:
    """The codes of a map: (images, channels, height, width); (1, 1, 1, codes) without channels."""
    spec = packed.spec
    shape = spec.packed_shape(packed.shape)
    codes = codes_of(np.frombuffer(packed.payload, np.uint8), spec.dtype, shape)
    if len(shape) >= 4 and shape[-3] <= MAX_CHANNELS:
        return as_map(codes, shape, spec.layout).reshape(-1, *shape[-3:])
    return codes.reshape(1, 1, 1, -1)


def _count(
    codes: Codes,
    low: int,
    symbols: int,
    classes: int = 1,
    class_of: npt.NDArray[np.int64] | int = 0,
) -> Counts:
    """How often each channel has each code, from the lowest on; or each class of each channel."""
    rows = codes.shape[1] * classes
    numbers = classes * np.arange(codes.shape[1])[:, None, None] + class_of
    numbers = numbers * symbols + (codes.astype(np.int64) - low)
    counted = np.bincount(numbers.reshape(-1), minlength=symbols * rows)
    return counted.reshape(rows, symbols).astype(np.float64)


def _clusters(counts: Counts, most: int) -> tuple[npt.NDArray[np.intp], float]:
    """Give each row the number of its table: as many tables as save more than they cost.

    Returns the bits of all codes and tables as well.
    """
    best, least = np.zeros(len(counts), np.intp), np.inf
    # What an estimated frequency costs in a two-part code (J. Rissanen, "Modeling by shortest data
    # description", Automatica 14, 1978): more tables than that learn the noise.
    each = np.log2(counts.sum()) / 2
    seeds = _seeds(counts, most)
    tables = 1
    while tables <= len(seeds):
        centres, nearest = seeds[:tables], best
        for _ in range(_ROUNDS):
            costs = -(counts @ np.log2(centres).T)
            before, nearest = nearest, costs.argmin(1)
            if (before == nearest).all():
                break
            sums = np.stack([counts[nearest == k].sum(0) for k in range(tables)])
            centres = _distribution(sums)
        used = sum(np.count_nonzero(counts[nearest == k].sum(0)) for k in range(tables))
        # And each row names its table.
        cost = costs.min(1).sum() + each * used + len(counts) * np.log2(tables)
        if cost < least:
            best, least = nearest, cost
        tables *= 2
    return best, float(least)


def _seeds(counts: Counts, most: int) -> Counts:
    """Distributions to start from: each that of the channel which those before code worst.

    Half of each is that of all channels, since one channel alone may have too few codes.
    """
    everything = _distribution(counts.sum(0))
    mixed = (_distribution(counts) + everything) / 2
    own = -(counts * np.log2(mixed)).sum(1)
    seeds = [everything]
    cost = -(counts @ np.log2(everything))
    while len(seeds) < min(most, len(counts)):
        seeds.append(mixed[int(np.argmax(cost - own))])
        cost = np.minimum(cost, -(counts @ np.log2(seeds[-1])))
    return np.stack(seeds)


def _distribution(counts: Counts) -> Counts:
    smoothed = counts + _UNSEEN
    shares: Counts = smoothed / smoothed.sum(-1, keepdims=True)
    return shares


def _frequencies(counts: Counts) -> npt.NDArray[np.uint16]:
    """The table of some counts: every code seen has at least 1, the escape what is left.

    The escape's share is that of codes seen once, of which half are expected again: new codes come
    about as often (I. J. Good, "The population frequencies of species", Biometrika 40, 1953).
    """
    seen = counts > 0
    total = counts.sum()
    if not total:
        raise EntropyTablesError("a table needs at least one code")
    once = np.count_nonzero(counts == 1)
    escape = min(max(1, round(TOTAL * (once + 1) / 2 / (total + 1))), TOTAL // 8)
    table = np.append(
        np.where(seen, np.maximum(1, np.rint(counts / total * (TOTAL - escape))), 0), 0
    )
    # What rounding left over or took too much goes to the most frequent codes, which notice least.
    table[-1] = escape
    excess = int(table.sum()) - TOTAL
    while excess > 0:
        largest = int(table[:-1].argmax())
        taken = min(excess, max(1, int(table[largest]) // 16))
        table[largest] -= taken
        excess -= taken
    table[int(table[:-1].argmax())] -= excess
    return table.astype(np.uint16)


def _bits(counts: Counts, table: npt.NDArray[np.uint16]) -> Counts:
    """Bits of all codes with a table. A code that it lacks is the escape and the code itself."""
    escaped = TOTAL / float(table[-1]) * len(counts)
    with np.errstate(divide="ignore"):
        each = np.where(table[:-1] > 0, TOTAL / table[:-1], escaped)
    bits: Counts = counts * np.log2(each)
    return bits
