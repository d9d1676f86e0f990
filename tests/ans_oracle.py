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

    @property
    def data(self) -> bytes:
        out = bytes([self.bits]) + len(self.table_of_channel).to_bytes(2, "little")
        out += bytes(self.table_of_channel)
        for table in self.frequencies:
            seen = [code for code, frequency in enumerate(table) if frequency]
            out += bytes([seen[0], seen[-1]])
            for frequency in table[seen[0] : seen[-1] + 1]:
                out += frequency.to_bytes(2, "little")
        return out

    def steps(self, channel: int, code: int) -> list[tuple[int, int]]:
        """Frequency and start of each step of a code: one, or the escape's and the code's."""
        table = self.frequencies[self.table_of_channel[channel]]
        # The order of slots is that of the codes' bits: 0 to the highest, the lowest to -1.
        half = len(table) // 2
        by_bits = table[half:] + table[:half]
        if by_bits[code]:
            return [(by_bits[code], sum(by_bits[:code]))]
        share = TOTAL >> self.bits
        return [(TOTAL - sum(table), sum(table)), (share, share * code)]


def channel_of(i: int, channels: int, plane: int, layout: str) -> int:
    if channels == 1:
        return 0
    return i % channels if layout == "nhwc" else i // plane % channels


def encode(codes: list[int], tables: Tables, plane: int, layout: str) -> bytes:
    """Encode codes, each given by the bits of its two's complement, in the order of the payload."""
    states = [LOW] * (4 if len(codes) >= 2048 else 1)
    words: list[int] = []
    for i in reversed(range(len(codes))):
        channel = channel_of(i, len(tables.table_of_channel), plane, layout)
        for frequency, start in reversed(tables.steps(channel, codes[i])):
            state = states[i % len(states)]
            if state >= frequency << 20:
                words.append(state & 0xFFFF)
                state >>= 16
            states[i % len(states)] = state // frequency * TOTAL + start + state % frequency
    out = (zlib.crc32(tables.data) & 0xFFFF).to_bytes(2, "little")
    out += b"".join(state.to_bytes(4, "little") for state in states)
    return out + b"".join(word.to_bytes(2, "little") for word in reversed(words))


def decode(coded: bytes, count: int, tables: Tables, plane: int, layout: str) -> list[int] | str:
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
    codes = []
    for i in range(count):
        channel = channel_of(i, len(tables.table_of_channel), plane, layout)
        code = escaped = None
        while code is None:
            slot = states[i % number] % TOTAL
            if escaped:
                share = TOTAL >> tables.bits
                code, frequency, start = slot // share, share, slot // share * share
            else:
                code, frequency, start = _symbol(tables, channel, slot)
                escaped = code is None
            state = frequency * (states[i % number] // TOTAL) + slot - start
            if state < LOW:
                if at == len(coded):
                    return "truncated"
                state = state << 16 | int.from_bytes(coded[at : at + 2], "little")
                at += 2
            states[i % number] = state
        codes.append(code)
    if at < len(coded):
        return "trailing"
    return codes if states == [LOW] * number else "altered"


def _symbol(tables: Tables, channel: int, slot: int) -> tuple[int | None, int, int]:
    """The code of a slot (None: the escape), its frequency and its start."""
    table = tables.frequencies[tables.table_of_channel[channel]]
    half = len(table) // 2
    start = 0
    for code, frequency in enumerate(table[half:] + table[:half]):
        if slot < start + frequency:
            return code, frequency, start
        start += frequency
    return None, TOTAL - start, start
