"""The entropy coder "ans" against its oracle, and what it does with hostile payloads and tables."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ans_oracle
import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from ans_oracle import Map, Tables
from hypothesis import example, given
from kernel_targets import RUNNER, GuardedArray, runner
from specs import feature_map, quantization_for

import scissionlite as sl
from scissionlite.errors import CodecError, EntropyCodeError, EntropyTablesError
from scissionlite.transfer_layer.entropy_tables import tables_id
from scissionlite.transfer_layer.neighbours import classes_of

LENGTHS = st.integers(1, 70) | st.integers(400, 520)
"""Codes of a plane: few, or so many that four or five planes have about 2048 codes together, from
which on there are four states."""


@dataclass(frozen=True)
class Case:
    """Random tables, and codes of which some are not in the tables."""

    bits: int = 8
    images: int = 1
    channels: int = 3
    plane: int = 40
    layout: str = "nchw"
    seed: int = 0
    escaped: float = 0.05
    neighbours: bool = False
    """Whether tables depend on them; only with two channels or more."""

    @property
    def laid(self) -> Map:
        widths = [w for w in range(1, self.plane + 1) if self.plane % w == 0]
        width = random.Random(self.seed + 2).choice(widths)
        return Map(self.channels, self.plane, self.layout, width)

    @property
    def count(self) -> int:
        return self.images * self.channels * self.plane

    def tables(self) -> Tables:
        rng = random.Random(self.seed)
        made = [_table(rng, 2**self.bits) for _ in range(rng.randint(1, self.channels))]
        if not self.neighbours or self.channels == 1:
            return Tables(self.bits, [rng.randrange(len(made)) for _ in range(self.channels)], made)
        most = 2**self.bits + 4  # a little beyond the sums that there are
        bounds = [[rng.randint(-most, most) for _ in range(8)] for _ in range(self.channels)]
        named = [rng.randrange(len(made)) for _ in range(9 * self.channels)]
        return Tables(self.bits, named, made, bounds)

    def codes(self) -> list[int]:
        """The bits of each code."""
        rng = random.Random(self.seed + 1)
        tables, laid, symbols = self.tables(), self.laid, 2**self.bits
        codes = [0] * self.count
        for i, _ in ans_oracle.order(self.count, tables, laid):
            table = tables.frequencies[ans_oracle.table_at(i, codes, tables, laid)]
            seen = rng.choices(range(symbols), table)[0] - symbols // 2
            codes[i] = (rng.randrange(symbols) if rng.random() < self.escaped else seen) % symbols
        return codes


def _table(rng: random.Random, symbols: int) -> list[int]:
    """Random frequencies: of one code or of many, with much or with little left for the escape."""
    seen = rng.sample(range(symbols), rng.choice([1, 2, 5, symbols // 2, symbols]))
    escape = rng.choice([1, 1, 7, 2000])
    weights = [rng.random() ** 6 for _ in seen]
    left = ans_oracle.TOTAL - escape - len(seen)
    table = [0] * symbols
    for code, weight in zip(seen, weights, strict=True):
        table[code] = 1 + int(left * weight / sum(weights))
    table[seen[0]] += ans_oracle.TOTAL - escape - sum(table)
    return table


def packed(codes: list[int], bits: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    if bits == 8:
        return np.array(codes, np.uint8)
    pairs = np.array([*codes, *[0] * (len(codes) % 2)], np.uint8).reshape(-1, 2)
    return (pairs[:, 0] | pairs[:, 1] << 4).astype(np.uint8)


def targets() -> list[Any]:
    """Where the coder runs: in this process, and in the kernel runner, where there is one."""
    reason = "SCISSIONLITE_KERNEL_RUNNER is not set"
    return [
        pytest.param(False, id="module"),
        pytest.param(True, id="runner", marks=pytest.mark.skipif(not RUNNER, reason=reason)),
    ]


everywhere = pytest.mark.parametrize("there", targets())


def in_runner(name: bytes, case: Case, source: bytes, size: int, shift: int) -> bytes:
    """Call the runner (tests/kernel_runner.cpp)."""
    tables = sl.EntropyTables(case.tables().data, 0.0)
    ordered = np.roll(tables.frequencies[:, :-1], 2 ** (case.bits - 1), axis=1)
    rows = np.concatenate([ordered, tables.frequencies[:, -1:]], axis=1).astype("<u2")
    request = struct.pack("<4I", case.bits == 4, case.layout == "nhwc", tables.id, shift)
    request += struct.pack("<3Q", case.count, case.plane, len(tables.table_of_channel))
    request += bytes(tables.table_of_channel) + struct.pack("<Q", rows.size) + rows.tobytes()
    bounds = np.empty(0, "<i2") if tables.bounds is None else tables.bounds.astype("<i2")
    request += struct.pack("<Q", bounds.size) + bounds.tobytes()
    request += struct.pack("<Q", case.laid.width)
    request += struct.pack("<Q", len(source)) + source + struct.pack("<Q", size)
    return runner()._ask(name, request)


def encoded(case: Case, shift: int = 0, *, there: bool = False) -> bytes:
    """Encode with the core, between guard pages."""
    if there:
        given_ = packed(case.codes(), case.bits).tobytes()
        return in_runner(b"ans_encode", case, given_, 3 * case.count + 100, shift)
    tables = sl.EntropyTables(case.tables().data, 0.0)
    source = packed(case.codes(), case.bits)
    before = GuardedArray(source.size, np.uint8, shift)
    # Escapes may take more bytes than the codes themselves.
    after = GuardedArray(3 * case.count + 100, np.uint8, shift)
    before.array[...] = source
    nhwc, width = case.layout == "nhwc", case.laid.width
    start = tables.coder.encode(before.array, after.array, case.count, case.plane, nhwc, width)
    before.check_canaries()
    after.check_canaries()
    assert before.array.tobytes() == source.tobytes()
    return after.array[start:].tobytes()


STATUS = ("done", "other-tables", "truncated", "trailing", "altered")


def decoded(coded: bytes, case: Case, shift: int = 0, *, there: bool = False) -> bytes | str:
    """Decode with the core, between guard pages."""
    if there:
        size = packed([0] * case.count, case.bits).size
        answer = in_runner(b"ans_decode", case, coded, size, shift)
        return answer[1:] if answer[0] == 0 else STATUS[answer[0]]
    tables = sl.EntropyTables(case.tables().data, 0.0)
    before = GuardedArray(len(coded), np.uint8, shift)
    after = GuardedArray(packed([0] * case.count, case.bits).size, np.uint8, shift)
    before.array[...] = np.frombuffer(coded, np.uint8)
    nhwc, width = case.layout == "nhwc", case.laid.width
    status = tables.coder.decode(before.array, after.array, case.count, case.plane, nhwc, width)
    before.check_canaries()
    after.check_canaries()
    return after.array.tobytes() if status == "done" else status


cases = st.builds(
    Case,
    bits=st.sampled_from([8, 4]),
    images=st.integers(1, 2),
    channels=st.integers(1, 6),
    plane=LENGTHS,
    layout=st.sampled_from(["nchw", "nhwc"]),
    seed=st.integers(0, 2**20),
    escaped=st.sampled_from([0.0, 0.05, 1.0]),
    neighbours=st.booleans(),
)
TINY = Case(channels=1, plane=1)
FOUR_STATES = Case(channels=3, plane=683, seed=3)
NEIGHBOURS = Case(channels=5, plane=30, neighbours=True)
MANY_NEIGHBOURS = Case(channels=6, plane=350, neighbours=True, seed=5)
every_shift = st.integers(0, 3)


@everywhere
@given(case=cases, shift=every_shift)
@example(case=TINY, shift=0)
@example(case=FOUR_STATES, shift=1)
@example(case=Case(channels=1, plane=2047), shift=0)
@example(case=Case(channels=1, plane=2048, escaped=1.0), shift=0)
@example(case=NEIGHBOURS, shift=1)
@example(case=MANY_NEIGHBOURS, shift=0)
@example(case=replace(MANY_NEIGHBOURS, layout="nhwc", bits=4, plane=351), shift=2)
@example(case=replace(MANY_NEIGHBOURS, bits=4, plane=351, escaped=1.0), shift=0)
def test_the_core_writes_what_the_oracle_writes_and_reads_it_back(
    there: bool, case: Case, shift: int
) -> None:
    codes, tables = case.codes(), case.tables()
    expected = ans_oracle.encode(codes, tables, case.laid)
    assert encoded(case, shift, there=there) == expected
    assert ans_oracle.decode(expected, case.count, tables, case.laid) == codes
    assert decoded(expected, case, shift, there=there) == packed(codes, case.bits).tobytes()


def same_verdict(damaged: bytes, case: Case, *, there: bool = False) -> None:
    expected = ans_oracle.decode(damaged, case.count, case.tables(), case.laid)
    actual = decoded(damaged, case, there=there)
    if isinstance(expected, str):
        assert actual == expected
    else:
        assert actual == packed(expected, case.bits).tobytes()


@everywhere
@given(case=cases, damage=st.data())
def test_a_damaged_payload_is_refused_as_the_oracle_refuses_it(
    there: bool, case: Case, damage: st.DataObject
) -> None:
    coded = bytearray(encoded(case))
    kind = damage.draw(st.sampled_from(["cut", "longer", "flipped", "random"]))
    if kind == "cut":
        del coded[damage.draw(st.integers(0, len(coded) - 1)) :]
    elif kind == "longer":
        coded += damage.draw(st.binary(min_size=1, max_size=9))
    elif kind == "flipped":
        bit = damage.draw(st.integers(0, 8 * len(coded) - 1))
        coded[bit // 8] ^= 1 << bit % 8
    else:
        coded[2:] = damage.draw(st.binary(max_size=200))
    same_verdict(bytes(coded), case, there=there)


@pytest.mark.parametrize(
    "case", [TINY, Case(plane=30), Case(bits=4, plane=25, layout="nhwc"), NEIGHBOURS]
)
def test_every_truncation_is_refused(case: Case) -> None:
    coded = encoded(case)
    for length in range(len(coded)):
        assert decoded(coded[:length], case) in ("truncated", "trailing", "altered")
        same_verdict(coded[:length], case)


@pytest.mark.parametrize(
    "case", [Case(plane=60, escaped=0), FOUR_STATES, replace(MANY_NEIGHBOURS, escaped=0)]
)
def test_flipped_bits_are_noticed(case: Case) -> None:
    # A few give the code of another map: one of the last codes can become one as frequent.
    coded = encoded(case)
    bits = range(0, 8 * len(coded), 1 if len(coded) < 300 else 37)
    noticed = 0
    for bit in bits:
        damaged = bytearray(coded)
        damaged[bit // 8] ^= 1 << bit % 8
        noticed += isinstance(decoded(bytes(damaged), case), str)
    assert noticed >= 0.98 * len(bits)


def test_a_result_that_does_not_fit_is_not_written() -> None:
    case = Case(plane=100, escaped=1.0)
    tables = sl.EntropyTables(case.tables().data, 0.0)
    source = packed(case.codes(), case.bits)
    whole = len(encoded(case))
    for size in [*range(70), whole - 1, whole, whole + 64]:
        out = GuardedArray(size, np.uint8, 0)
        start = tables.coder.encode(source, out.array, case.count, case.plane)
        out.check_canaries()
        assert size - start in ((whole,) if size >= whole + 64 else (0, whole))
        if start < size:
            assert decoded(out.array[start:].tobytes(), case) == source.tobytes()


# --- tables

GOOD = Tables(4, [0, 1], [[0] * 3 + [5, 0, 4000] + [0] * 10, [1] * 16])


def test_tables_come_back_from_their_bytes() -> None:
    tables = sl.EntropyTables(GOOD.data, 1.5)
    assert (tables.dtype, tables.channels, tables.tables) == ("int4", 2, 2)
    assert tables.table_of_channel == (0, 1)
    assert tables.frequencies[:, :-1].tolist() == GOOD.frequencies
    assert tables.frequencies.sum(1).tolist() == [4096, 4096]
    assert tables.id == tables_id(GOOD.data)
    again = sl.EntropyTables.of("int4", (0, 1), tables.frequencies, 1.5)
    assert again == tables
    assert hash(again) == hash(tables)
    assert msgspec.json.decode(msgspec.json.encode(tables), type=sl.EntropyTables) == tables


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "unknown bits"),
        (b"\x05" + GOOD.data[1:], "unknown bits"),
        (GOOD.data[:4], "truncated"),
        (GOOD.data[:5], "truncated"),
        (GOOD.data[:-1], "truncated"),
        (GOOD.data + b"\0", "out of range|truncated"),
        (b"\x04\x00\x00" + GOOD.data[5:], "at least one channel"),
        (GOOD.data[:3] + b"\x00\x02" + GOOD.data[5:], "not there"),
        (b"\x04\x01\x00\x00\x02\x01\x01\x00", "out of range"),
        (b"\x04\x01\x00\x00\x00\x10" + b"\x01\x00" * 17, "out of range"),
        (b"\x04\x01\x00\x00\x02\x02\x00\x10", "at most 4095"),
        (b"\x04\x01\x00\x00\x02\x02\x00\x00", "at least 1"),
        (b"\x04\x01\x00\x00\x02\x03\xff\xff\xff\xff", "at most 4095"),
        (b"\x08\x01\x00\x00" + b"\x01\x01\x05\x00" * 257, "out of range"),
    ],
)
def test_damaged_tables_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(EntropyTablesError, match=message):
        sl.EntropyTables(data, 1.0)


BY_CLASS = Tables(4, [0] * 9 + [1] * 9, GOOD.frequencies, [[-4, -3, -2, -1, 1, 2, 3, 4]] * 2)


def test_tables_by_neighbours_come_back_from_their_bytes() -> None:
    tables = sl.EntropyTables(BY_CLASS.data, 1.5)
    assert (tables.dtype, tables.channels, tables.tables) == ("int4", 2, 2)
    assert tables.table_of_channel == (0,) * 9 + (1,) * 9
    assert tables.bounds is not None
    assert tables.bounds.tolist() == BY_CLASS.bounds
    again = sl.EntropyTables.of(
        "int4", tables.table_of_channel, tables.frequencies, 1.5, tables.bounds
    )
    assert again == tables
    for length in range(len(BY_CLASS.data)):
        if length == len(BY_CLASS.data) - len(GOOD.data[18:]):
            continue
        with pytest.raises(EntropyTablesError):
            sl.EntropyTables(BY_CLASS.data[:length], 1.5)


def test_tables_by_neighbours_need_channels_and_rows() -> None:
    one = Tables(4, [0] * 9, GOOD.frequencies, [[0] * 8])
    with pytest.raises(EntropyTablesError, match="two channels"):
        sl.EntropyTables(one.data, 1.5)
    coder = sl.EntropyTables(BY_CLASS.data, 1.5).coder
    source, room = np.zeros(6, np.uint8), np.empty(200, np.uint8)
    for width in (0, 4, 7, 2**63):
        with pytest.raises(ValueError, match="rows"):
            coder.encode(source, room, 12, 6, False, width)
        with pytest.raises(ValueError, match="rows"):
            coder.decode(room, source, 12, 6, False, width)


@given(data=st.binary(max_size=60))
def test_random_tables_are_refused_or_code(data: bytes) -> None:
    try:
        tables = sl.EntropyTables(b"\x04\x02\x00" + data, 1.0)
    except EntropyTablesError:
        return
    source = np.arange(6, dtype=np.uint8)
    room, back = np.empty(200, np.uint8), np.empty(6, np.uint8)
    start = tables.coder.encode(source, room, 12, 6)
    assert tables.coder.decode(room[start:], back, 12, 6) == "done"
    assert back.tobytes() == source.tobytes()


# --- the Transfer Layer with tables


def specs_with_tables() -> list[sl.TransferSpec]:
    return [
        sl.TransferSpec(entropy="ans", **fields)
        for fields in (
            {},
            {"levels": 24, "pool": 1},
            {"dtype": "int4", "pool": 1},
            {"dtype": "int4", "layout": "nhwc", "granularity": "channel"},
            {"layout": "nhwc", "pool": 4, "levels": 9},
        )
    ]


def fitted(
    spec: sl.TransferSpec, shape: tuple[int, ...]
) -> tuple[sl.Quantization | None, sl.EntropyTables]:
    plain = msgspec.structs.replace(spec, entropy=None)
    quantization = quantization_for(spec, shape[-3])
    maps = (feature_map(shape, seed, 1.0) for seed in range(6))
    return quantization, sl.fit_tables(sl.encode(x, plain, quantization) for x in maps)


@pytest.mark.parametrize("spec", specs_with_tables(), ids=lambda spec: spec.name)
@pytest.mark.parametrize("shape", [(1, 5, 13, 9), (3, 5, 13, 9)])
def test_a_feature_map_is_decoded_as_without_the_coder(
    spec: sl.TransferSpec, shape: tuple[int, ...]
) -> None:
    quantization, tables = fitted(spec, (1, *shape[1:]))
    assert tables.channels == 5
    x = feature_map(shape, 99, 1.0)
    plain = sl.encode(x, msgspec.structs.replace(spec, entropy=None), quantization)
    coded = sl.encode(x, spec, quantization, tables=tables)
    assert coded.entropy_coded
    assert coded.nbytes < plain.nbytes
    assert sl.decode(coded).tobytes() == sl.decode(plain).tobytes()
    for layout in ("nchw", "nhwc"):
        assert np.array_equal(sl.decode(coded, layout=layout), sl.decode(plain))
    out = np.zeros(spec.packed_nbytes(shape), np.uint8)
    assert bytes(sl.encode(x, spec, quantization, out, tables=tables).payload) == bytes(
        coded.payload
    )


def test_the_bits_that_the_tables_promise_are_those_that_the_coder_needs() -> None:
    spec = sl.TransferSpec(entropy="ans", levels=24, pool=1)
    shape = (1, 8, 40, 40)
    quantization, tables = fitted(spec, shape)
    maps = [feature_map(shape, seed, 1.0) for seed in range(6)]
    sent = [sl.encode(x, spec, quantization, tables=tables).nbytes for x in maps]
    assert np.mean(sent) == pytest.approx(tables.bits * 8 * 40 * 40 / 8, rel=0.01)


def test_channels_that_differ_have_tables_and_those_alike_share_one() -> None:
    rng = np.random.default_rng(0)
    wide = rng.normal(0, 30, (40, 20, 20))
    narrow = rng.normal(0, 1, (40, 20, 20))
    x = np.concatenate([wide, narrow])[None].astype(np.float32)
    unit = sl.Quantization(1.0, 0)
    tables = sl.fit_tables([sl.encode(x, sl.TransferSpec(pool=1), unit)])
    assert 2 <= tables.tables <= 16
    assert set(tables.table_of_channel[:40]).isdisjoint(tables.table_of_channel[40:])
    one = sl.fit_tables([sl.encode(x[0], sl.TransferSpec(pool=1), unit)])
    assert one.channels == 1
    assert tables.bits < one.bits - 0.3


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 2, 1, 3), (1, 2, 3, 1), (2, 2, 1, 1)])
def test_classes_are_counted_as_they_are_coded(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(-128, 128, shape).astype(np.int8)
    bounds = rng.integers(-200, 200, (shape[1], 8)).astype(np.int16)
    laid = Map(shape[1], shape[2] * shape[3], "nchw", shape[3])
    # The oracle's tables, each named by its channel and class.
    tables = Tables(8, list(range(9 * shape[1])), [], bounds.tolist())
    bits = (codes.reshape(-1).astype(int) % 256).tolist()
    expected = [ans_oracle.table_at(i, bits, tables, laid) % 9 for i in range(codes.size)]
    assert classes_of(codes, bounds).reshape(-1).tolist() == expected


def smooth(shape: tuple[int, ...], seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A map whose values are like their neighbours."""
    noise = np.random.default_rng(seed).normal(0, 4, shape)
    for axis in (-1, -2):
        noise = noise + 0.8 * np.roll(noise, 1, axis) + 0.6 * np.roll(noise, 2, axis)
    return noise.astype(np.float32)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_tables_depend_on_neighbours_where_that_pays(layout: str, dtype: str) -> None:
    spec = sl.TransferSpec(pool=1, dtype=dtype, layout=layout, entropy="ans")
    plain = msgspec.structs.replace(spec, entropy=None)
    unit = sl.Quantization(1.0 if dtype == "int8" else 4.0, 0)
    shape = (2, 5, 21, 23)
    tables = sl.fit_tables(sl.encode(smooth(shape, seed), plain, unit) for seed in range(6))
    assert tables.bounds is not None
    # Of the same codes in another order, without neighbours that say anything:
    rng = np.random.default_rng(7)
    mixed = [rng.permuted(smooth(shape, s).reshape(2, 5, -1), axis=2) for s in range(6)]
    alone = sl.fit_tables(sl.encode(x.reshape(shape), plain, unit) for x in mixed)
    assert alone.bounds is None
    assert tables.bits < 0.9 * alone.bits
    x = smooth(shape, 99)
    coded = [sl.encode(x, spec, unit, tables=each) for each in (tables, alone)]
    assert coded[0].nbytes < 0.92 * coded[1].nbytes
    assert coded[0].nbytes == pytest.approx(tables.bits * x.size / 8, rel=0.05)
    for each in coded:
        assert sl.decode(each).tobytes() == sl.decode(sl.encode(x, plain, unit)).tobytes()


def test_tables_of_one_channel_fit_tensors_of_any_shape() -> None:
    spec = sl.TransferSpec(pool=1, entropy="ans")
    tokens = feature_map((2, 7, 50))
    unit = sl.Quantization(0.5, 0)
    tables = sl.fit_tables([sl.encode(tokens, sl.TransferSpec(pool=1), unit)])
    for x in (tokens, tokens[0], tokens[0, 0], feature_map((1, 3, 9, 9))):
        coded = sl.encode(x, spec, unit, tables=tables)
        assert sl.decode(coded).shape == x.shape


X = feature_map((1, 4, 20, 20), 1, 1.0)
ANS = sl.TransferSpec(pool=1, entropy="ans")
UNIT = sl.Quantization(0.1, 0)
TABLES = sl.fit_tables([sl.encode(X, sl.TransferSpec(pool=1), UNIT)])
CODED = sl.encode(X, ANS, UNIT, tables=TABLES)


def changed(**fields: object) -> Callable[[], object]:
    return lambda: sl.decode(msgspec.structs.replace(CODED, **fields))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sl.encode(X, ANS, UNIT), EntropyTablesError, "needs tables"),
        (
            lambda: sl.encode(X, sl.TransferSpec(entropy="zstd"), UNIT, tables=TABLES),
            EntropyTablesError,
            "takes none",
        ),
        (lambda: sl.encode(X[:, :3], ANS, UNIT, tables=TABLES), EntropyTablesError, "4 channels"),
        (
            lambda: sl.encode(X, msgspec.structs.replace(ANS, dtype="int4"), UNIT, tables=TABLES),
            EntropyTablesError,
            "needs int4",
        ),
        (lambda: sl.TransferSpec(dtype="float16", entropy="ans"), CodecError, "take 'zstd'"),
        (lambda: sl.TransferSpec(entropy="ans", entropy_level=3), CodecError, "no level but 1"),
        (changed(tables=None), EntropyTablesError, "needs tables"),
        (changed(spec=sl.TransferSpec(pool=1)), CodecError, "is not"),
        (
            changed(tables=sl.EntropyTables(TABLES.data[:-2] + b"\x02\x00", 1.0)),
            EntropyTablesError,
            "other tables",
        ),
        (changed(payload=bytes(CODED.payload)[:-2]), EntropyCodeError, "ends before|altered"),
        (changed(payload=bytes(CODED.payload) + b"\0\0"), EntropyCodeError, "goes on"),
        (changed(payload=b""), EntropyCodeError, "ends before"),
        (changed(shape=(1, 4, 20, 21)), EntropyCodeError, "ends before|altered"),
        (lambda: sl.fit_tables([]), EntropyTablesError, "at least one"),
        (lambda: sl.fit_tables([CODED]), EntropyTablesError, "not entropy-coded"),
        (
            lambda: sl.fit_tables([sl.encode(X, sl.TransferSpec.paper())]),
            EntropyTablesError,
            "int8 or int4",
        ),
        (
            lambda: sl.fit_tables(
                [sl.encode(x, sl.TransferSpec(pool=1), UNIT) for x in (X, X[:, :2])]
            ),
            EntropyTablesError,
            "as many channels",
        ),
    ],
)
def test_what_does_not_fit_has_an_error_of_its_own(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_payload_that_does_not_shrink_is_sent_as_it_is() -> None:
    noise = np.random.default_rng(0).integers(-128, 128, X.shape).astype(np.float32)
    sent = sl.encode(noise, ANS, sl.Quantization(1.0, 0), tables=TABLES)
    assert not sent.entropy_coded
    assert sent.nbytes == X.size
    assert np.array_equal(sl.decode(sent), noise)
