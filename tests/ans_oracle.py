"""Oracle of the entropy coder: docs/numerics.md ("Entropy coding"), step by step, in plain Python.

Nothing here is shared with the C++ core or the package.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

TOTAL = 4096
LOW = 1 << 16


class Tables(NamedTuple):
    """The content of EntropyTables.data: bits of a code, table of each channel, frequencies."""

    bits: int
    table_of_channel: list[int]
    frequencies: list[list[int]]
    """For each table, of every code from the lowest on."""
    bounds: list[list[int]] | None = None
    """Eight of each channel; then there are nine tables of each channel in a row."""

    @property
    def channels(self) -> int:
        return len(self.table_of_channel) // (9 if self.bounds else 1)

    @property
    def data(self) -> bytes:
        out = bytes([self.bits + (128 if self.bounds else 0)]) + self.channels.to_bytes(2, "little")
        out += bytes(self.table_of_channel)
        for bound in (each for own in self.bounds or [] for each in own):
            out += bound.to_bytes(2, "little", signed=True)
        for table in self.frequencies:
            seen = [code for code, frequency in enumerate(table) if frequency]
            out += bytes([seen[0], seen[-1]])
            for frequency in table[seen[0] : seen[-1] + 1]:
                out += frequency.to_bytes(2, "little")
        return out

    def steps(self, number: int, code: int) -> list[tuple[int, int]]:
        """Frequency and start of each step of a code: one, or the escape's and the code's."""
        table = self.frequencies[number]
        # The order of slots is that of the codes' bits: 0 to the highest, the lowest to -1.
        half = len(table) // 2
        by_bits = table[half:] + table[:half]
        if by_bits[code]:
            return [(by_bits[code], sum(by_bits[:code]))]
        share = TOTAL >> self.bits
        return [(TOTAL - sum(table), sum(table)), (share, share * code)]


class Map(NamedTuple):
    """How the codes of feature maps lie in a payload."""

    channels: int
    plane: int
    layout: str
    width: int = 1

    def channel(self, i: int) -> int:
        if self.channels == 1:
            return 0
        return i % self.channels if self.layout == "nhwc" else i // self.plane % self.channels

    def at(self, image: int, channel: int, place: int) -> int:
        first = image * self.channels * self.plane
        if self.layout == "nhwc":
            return first + place * self.channels + channel
        return first + channel * self.plane + place


def order(count: int, tables: Tables, laid: Map) -> list[tuple[int, int]]:
    """Each code's index and state, in the order of decoding."""
    states = 4 if count >= 2048 else 1
    if not tables.bounds:
        return [(i, i % states) for i in range(count)]
    return [
        (laid.at(image, channel, place), channel % states)
        for image in range(count // laid.plane // laid.channels)
        for first in range(0, laid.channels, states)
        for place in range(laid.plane)
        for channel in range(first, min(first + states, laid.channels))
    ]


def table_at(i: int, codes: list[int], tables: Tables, laid: Map) -> int:
    """The number of a code's table; its neighbours are among the codes."""
    channel = laid.channel(i)
    if not tables.bounds:
        return tables.table_of_channel[channel]
    step = laid.channels if laid.layout == "nhwc" else 1
    place = i % (laid.channels * laid.plane) // laid.channels if step > 1 else i % laid.plane
    y, x = divmod(place, laid.width)
    half = 2**tables.bits // 2
    left, above = (
        (codes[i - back] + half) % (2 * half) - half if there else None
        for there, back in ((x > 0, step), (y > 0, step * laid.width))
    )
    near = [each for each in (left, above) if each is not None]
    reached = 4
    if near:
        total = near[0] + near[-1]  # the only one counts twice
        reached = sum(total >= bound for bound in tables.bounds[channel])
    return tables.table_of_channel[9 * channel + reached]


def encode(codes: list[int], tables: Tables, laid: Map) -> bytes:
    """Encode codes, each given by the bits of its two's complement, in the order of the payload."""
    states = [LOW] * (4 if len(codes) >= 2048 else 1)
    words: list[int] = []
    for i, k in reversed(order(len(codes), tables, laid)):
        number = table_at(i, codes, tables, laid)
        for frequency, start in reversed(tables.steps(number, codes[i])):
            state = states[k]
            if state >= frequency << 20:
                words.append(state & 0xFFFF)
                state >>= 16
            states[k] = state // frequency * TOTAL + start + state % frequency
    out = (zlib.crc32(tables.data) & 0xFFFF).to_bytes(2, "little")
    out += b"".join(state.to_bytes(4, "little") for state in states)
    return out + b"".join(word.to_bytes(2, "little") for word in reversed(words))


def decode(coded: bytes, count: int, tables: Tables, laid: Map) -> list[int] | str:
    """Decode so many codes; where that is refused, say why."""
    if len(coded) < 2:
        return "truncated"
    if int.from_bytes(coded[:2], "little") != zlib.crc32(tables.data) & 0xFFFF:
        return "other-tables"
    number = 4 if count >= 2048 else 1
    if len(coded) < 2 + 4 * number:
        return "truncated"
    if len(coded) % 2:
        return "trailing"
    states = [int.from_bytes(coded[2 + 4 * k : 6 + 4 * k], "little") for k in range(number)]
    if min(states) < LOW:
        return "altered"
    at = 2 + 4 * number
    codes = [0] * count
    for i, k in order(count, tables, laid):
        table = table_at(i, codes, tables, laid)
        code = escaped = None
        while code is None:
            slot = states[k] % TOTAL
            if escaped:
                share = TOTAL >> tables.bits
                code, frequency, start = slot // share, share, slot // share * share
            else:
                code, frequency, start = _symbol(tables, table, slot)
                escaped = code is None
            state = frequency * (states[k] // TOTAL) + slot - start
            if state < LOW:
                if at == len(coded):
                    return "truncated"
                state = state << 16 | int.from_bytes(coded[at : at + 2], "little")
                at += 2
            states[k] = state
        codes[i] = code
    if at < len(coded):
        return "trailing"
    return codes if states == [LOW] * number else "altered"


def _symbol(tables: Tables, number: int, slot: int) -> tuple[int | None, int, int]:
    """The code of a slot (None: the escape), its frequency and its start."""
    table = tables.frequencies[number]
    half = len(table) // 2
    start = 0
    for code, frequency in enumerate(table[half:] + table[:half]):
        if slot < start + frequency:
            return code, frequency, start
        start += frequency
    return None, TOTAL - start, start
