"""EntropyTables: what the entropy coder "ans" knows about the codes beforehand. No torch here.

They are made once, from the codes of calibration inputs, and stand in the bundle's manifest, so
that device and edge have the same. docs/numerics.md ("Entropy coding") is the contract. The
compiled core codes; its ``AnsTables`` is kept beside the values.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from scissionlite import _core
from scissionlite.errors import EntropyTablesError
from scissionlite.transfer_layer.quantization import call_core
from scissionlite.transfer_layer.spec import CODE_RANGES, PAYLOAD_BITS

TOTAL = 4096
"""Sum of the frequencies of a table."""

MAX_TABLES = 256
"""Most tables that the format takes; a channel names its table with a byte."""

MAX_CHANNELS = 2**16 - 1

CLASSES = 9
"""Classes of a code's neighbours in tables that depend on them."""

_NEIGHBOURS = 128
"""In the first byte: the tables depend on neighbours."""

Frequencies: TypeAlias = npt.NDArray[np.uint16]

Bounds: TypeAlias = npt.NDArray[np.int16]
"""Of each channel, shape (channels, CLASSES - 1). A code's class is how many of them the sum of the
codes to its left and above it reaches."""


class _Fields(NamedTuple):
    """The parts of ``EntropyTables.data``."""

    dtype: str
    channels: int
    table_of_channel: npt.NDArray[np.uint8]
    """Shape (channels,), or (channels * CLASSES,) with bounds: class after class of a channel."""
    frequencies: Frequencies
    """Shape (tables, codes + 1): of each code from the lowest on, and of the escape."""
    bounds: Bounds | None


class EntropyTables(msgspec.Struct, frozen=True, dict=True):
    """Static tables for the entropy coder of ``TransferSpec(entropy="ans")``.

    Each channel has a table of frequencies, or one for each class of a code's neighbours, the codes
    to its left and above it; those that are alike share one. Codes that no table
    has seen can be coded all the same, in about 20 bits. :func:`.table_fitting.fit` makes them.

    Parameters
    ----------
    data : bytes
        The tables, as docs/numerics.md ("Entropy coding") lays them out.
    bits : float
        Mean bits of a code of the inputs that the tables were made from, as these tables code it.

    Raises
    ------
    EntropyTablesError
        The bytes are no tables.
    """

    data: bytes
    bits: float

    def __post_init__(self) -> None:
        self._made()  # checks all

    @classmethod
    def of(
        cls,
        dtype: str,
        table_of_channel: Iterable[int],
        frequencies: Frequencies,
        bits: float,
        bounds: Bounds | None = None,
    ) -> EntropyTables:
        """Lay out tables.

        Parameters
        ----------
        dtype : str
            "int8" or "int4".
        table_of_channel : iterable of int
            For each channel the number of its table; with `bounds`, ``CLASSES`` numbers each.
        frequencies : ndarray of uint16, shape (tables, codes + 1)
            Of each code from the lowest on, and of the escape; each table sums to ``TOTAL``.
        bits : float
            As the attribute.
        bounds : ndarray of int16, shape (channels, CLASSES - 1), optional
            Where the sum of a code's neighbours begins another class.

        Raises
        ------
        EntropyTablesError
            They are no tables.
        """
        named = tuple(table_of_channel)
        channels = len(named) if bounds is None else len(bounds)
        if channels > MAX_CHANNELS or len(frequencies) > MAX_TABLES:
            raise EntropyTablesError(
                f"{channels} channels and {len(frequencies)} tables; at most {MAX_CHANNELS} "
                f"and {MAX_TABLES} allowed"
            )
        kind = PAYLOAD_BITS[dtype] + (0 if bounds is None else _NEIGHBOURS)
        parts = [bytes([kind]), channels.to_bytes(2, "little"), bytes(named)]
        if bounds is not None:
            parts.append(bounds.astype("<i2").tobytes())
        for table in frequencies:
            seen = np.flatnonzero(table[:-1])
            if not seen.size:
                raise EntropyTablesError("a table has seen no code")
            first, last = int(seen[0]), int(seen[-1])
            parts += [bytes([first, last]), table[first : last + 1].astype("<u2").tobytes()]
        return cls(b"".join(parts), bits)

    @property
    def dtype(self) -> str:
        """The dtype of the payloads: "int8" or "int4"."""
        return self._made()[0].dtype

    @property
    def channels(self) -> int:
        """Number of channels; tables of one channel fit tensors of any shape."""
        return self._made()[0].channels

    @property
    def tables(self) -> int:
        """Number of different tables."""
        return len(self._made()[0].frequencies)

    @property
    def frequencies(self) -> Frequencies:
        """As :meth:`of` takes them."""
        return self._made()[0].frequencies

    @property
    def table_of_channel(self) -> tuple[int, ...]:
        """As :meth:`of` takes them."""
        return tuple(self._made()[0].table_of_channel.tolist())

    @property
    def bounds(self) -> Bounds | None:
        """As :meth:`of` takes them; None where the tables do not depend on neighbours."""
        return self._made()[0].bounds

    @property
    def id(self) -> int:
        """The number from 0 to 65535 with which a payload names the tables."""
        return tables_id(self.data)

    @property
    def coder(self) -> _core.AnsTables:
        """The tables in the core's type."""
        return self._made()[1]

    def _made(self) -> tuple[_Fields, _core.AnsTables]:
        # Not a cached_property: as Quantization.quantizer.
        made: tuple[_Fields, _core.AnsTables] | None = self.__dict__.get("_tables")
        if made is None:
            fields = _parsed(self.data)
            made = self.__dict__["_tables"] = (fields, _core_tables(fields, self.id))
        return made


def tables_id(data: bytes) -> int:
    """Return the number of the tables: the lower half of the CRC-32 of their bytes."""
    return zlib.crc32(data) & 0xFFFF


def _parsed(data: bytes) -> _Fields:
    """Take the bytes apart; whether the numbers make sense is checked by the core."""
    kind = data[0] if data else 0
    dtype = {bits: dtype for dtype, bits in PAYLOAD_BITS.items() if dtype in CODE_RANGES}.get(
        kind % _NEIGHBOURS
    )
    channels = int.from_bytes(data[1:3], "little")
    bounds: Bounds | None = None
    named = channels
    at = 3 + named
    if kind >= _NEIGHBOURS:
        named = channels * CLASSES
        end = 3 + named + 2 * channels * (CLASSES - 1)
        if len(data) > end:
            laid = np.frombuffer(data, "<i2", channels * (CLASSES - 1), 3 + named)
            bounds = laid.astype(np.int16).reshape(channels, -1)
        at = end
    if dtype is None or len(data) <= at:
        raise EntropyTablesError("entropy tables: unknown bits of a code, or truncated")
    codes = 2 ** PAYLOAD_BITS[dtype]
    tables: list[Frequencies] = []
    while at < len(data):
        first, last = data[at], data[at + 1] if at + 1 < len(data) else 0
        end = at + 2 + 2 * (last - first + 1)
        if not first <= last < codes or end > len(data) or len(tables) == MAX_TABLES:
            raise EntropyTablesError("entropy tables: a table is out of range, or truncated")
        table = np.zeros(codes + 1, np.int64)
        table[first : last + 1] = np.frombuffer(data, "<u2", last - first + 1, at + 2)
        table[-1] = TOTAL - table.sum()
        if not (table[-1] > 0 and table[first] > 0 and table[last] > 0):
            raise EntropyTablesError(
                f"entropy tables: the frequencies of a table must be at most {TOTAL - 1} together, "
                "and the first and the last at least 1"
            )
        tables.append(table.astype(np.uint16))
        at = end
    table_of_channel = np.frombuffer(data, np.uint8, named, 3)
    return _Fields(dtype, channels, table_of_channel, np.stack(tables), bounds)


def _core_tables(fields: _Fields, id_: int) -> _core.AnsTables:
    # The core numbers a code by the bits of its two's complement.
    low = CODE_RANGES[fields.dtype][0]
    ordered = np.concatenate(
        [np.roll(fields.frequencies[:, :-1], low, axis=1), fields.frequencies[:, -1:]], axis=1
    )
    try:
        return call_core(
            _core.AnsTables,
            fields.dtype,
            id_,
            fields.table_of_channel,
            np.ascontiguousarray(ordered),
            fields.bounds,
        )
    except ValueError as error:
        raise EntropyTablesError(f"entropy tables: {error}") from error
