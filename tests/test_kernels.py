"""Every kernel of csrc/kernels.inc against the NumPy oracle, byte for byte.

The kernels run in this process through the Python module, and, where SCISSIONLITE_KERNEL_RUNNER
names the command of a tests/kernel_runner.cpp (cross-compiled and under qemu, or built with
sanitizers), in that program too. SCISSIONLITE_REQUIRE_ISA=neon,avx2 makes it a failure if one of
those was not tested.
"""

from __future__ import annotations

import atexit
import ctypes
import mmap
import os
import shlex
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import oracle
import pytest
from hypothesis import example, given, settings

from scissionlite import _core
from scissionlite.errors import IsaError

Array = npt.NDArray[Any]

RUNNER = os.environ.get("SCISSIONLITE_KERNEL_RUNNER", "")
CANARY = 0xA5
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Case:
    """One call: sizes at full resolution; `shift` is how the arrays stand to the guard pages."""

    planes: int
    height: int
    width: int
    data: str = "normal"
    seed: int = 0
    scale: float = 1.0
    zero_point: int = 0
    shift: int = 0

    @property
    def half(self) -> tuple[int, int, int]:
        return self.planes, (self.height + 1) // 2, (self.width + 1) // 2

    @property
    def full(self) -> tuple[int, int, int]:
        return self.planes, self.height, self.width


def result_of(operation: str, case: Case) -> tuple[tuple[int, int, int], type[np.generic]]:
    shape = case.half if operation.startswith("maxpool") else case.full
    return shape, np.int8 if operation.endswith("_i8") else np.float32


# Quiet and signalling NaN, infinities, both zeros, denormals, the largest numbers.
SPECIAL_BITS = np.array(
    [
        *[0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFBFFFFF, 0x7F800000, 0xFF800000, 0x00000000],
        *[0x80000000, 0x00000001, 0x80000001, 0x007FFFFF, 0x7F7FFFFF, 0xFF7FFFFF, 0x3F800000],
    ],
    np.uint32,
)


def source_of(operation: str, case: Case) -> Array:
    rng = np.random.default_rng(case.seed)
    shape = case.full if operation.startswith("maxpool") else case.half
    if "_i8_" in operation:
        return rng.integers(-128, 128, shape, np.int8)
    if case.data == "special":
        return rng.choice(SPECIAL_BITS, shape).view(np.float32)
    if case.data == "bits":
        return rng.integers(0, 2**32, shape, np.uint32).view(np.float32)
    if case.data == "ties":
        with np.errstate(over="ignore", under="ignore"):
            halves = rng.integers(-600, 600, shape).astype(np.float32) * np.float32(0.5)
            return halves * np.float32(case.scale)
    with np.errstate(over="ignore", under="ignore"):
        return rng.normal(0, 100, shape).astype(np.float32) * np.float32(case.scale)


class GuardedArray:
    """An array between two inaccessible pages: ending at the upper, or `shift` after the lower."""

    def __init__(self, shape: tuple[int, ...], dtype: type[np.generic], shift: int) -> None:
        dtype_ = np.dtype(dtype)
        offset, size = shift * dtype_.itemsize, int(np.prod(shape)) * dtype_.itemsize
        inner_size = -(-(offset + size) // mmap.PAGESIZE) * mmap.PAGESIZE
        pages = mmap.mmap(-1, inner_size + 2 * mmap.PAGESIZE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        for guard in (address, address + mmap.PAGESIZE + inner_size):
            # 0 is PROT_NONE.
            assert _LIBC.mprotect(ctypes.c_void_p(guard), mmap.PAGESIZE, 0) == 0
        self._inner = np.frombuffer(pages, np.uint8, inner_size, mmap.PAGESIZE)
        self._inner[:] = CANARY
        self._start = offset if shift else inner_size - size
        self._stop = self._start + size
        self.array = self._inner[self._start : self._stop].view(dtype_).reshape(shape)

    def check_canaries(self) -> None:
        assert (self._inner[: self._start] == CANARY).all(), "wrote before the array"
        assert (self._inner[self._stop :] == CANARY).all(), "wrote after the array"


def run_in_module(operation: str, isa: str, source: Array, case: Case) -> Array:
    shape, dtype = result_of(operation, case)
    given_ = GuardedArray(source.shape, source.dtype.type, case.shift)
    out = GuardedArray(shape, dtype, case.shift)
    given_.array[...] = source
    kernel: Callable[..., None] = getattr(_core, operation)
    if "i8" in operation:
        kernel(given_.array, out.array, case.scale, case.zero_point, isa=isa)
    else:
        kernel(given_.array, out.array, isa=isa)
    given_.check_canaries()
    out.check_canaries()
    assert given_.array.tobytes() == source.tobytes(), "wrote to its input"
    return out.array.copy()


class Runner:
    """A client of tests/kernel_runner.cpp, which states the protocol."""

    def __init__(self, command: str) -> None:
        self._process = subprocess.Popen(
            shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        # Not a fixture: the runner is asked for its list while pytest collects.
        atexit.register(self.close)

    def close(self) -> None:
        self._process.communicate(timeout=10)

    def kernels(self) -> list[tuple[str, str]]:
        lines = self._ask(b"list").decode().split("\n")[:-1]
        return [(operation, isa) for operation, isa in (line.split() for line in lines)]

    def run(self, operation: str, isa: str, source: Array, case: Case) -> Array:
        shape, dtype = result_of(operation, case)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        sizes = struct.pack("<3Q", *case.full)
        quantization = struct.pack("<fi", case.scale, case.zero_point)
        sent = struct.pack("<IQ", case.shift, source.nbytes) + source.tobytes()
        request = sizes + quantization + sent + struct.pack("<Q", size)
        answer = self._ask(f"{operation}__{isa}".encode(), request)
        return np.frombuffer(answer, dtype).reshape(shape)

    def _ask(self, name: bytes, request: bytes = b"") -> bytes:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(struct.pack("<I", len(name)) + name + request)
        stdin.flush()
        head = stdout.read(9)
        assert len(head) == 9, f"the runner died in {name!r}: {self._process.wait(10)}"
        status, length = struct.unpack("<BQ", head)
        assert status == 0, f"the runner answers {status} (1: cannot run, 2: wrote out of bounds)"
        return stdout.read(length)


@cache
def runner() -> Runner:
    return Runner(RUNNER)


def _targets() -> list[Any]:
    targets = []
    for operation, isa in _core.kernels():
        absent = isa not in _core.available_isas()
        skip = [pytest.mark.skip(reason=f"this CPU has no {isa}")] if absent else []
        name = f"module-{operation}__{isa}"
        targets.append(pytest.param(run_in_module, operation, isa, id=name, marks=skip))
    if not RUNNER:
        reason = "SCISSIONLITE_KERNEL_RUNNER is not set: no other machine's kernels here"
        skipped = pytest.mark.skip(reason=reason)
        return [*targets, pytest.param(None, "", "", id="runner", marks=skipped)]
    # Under sanitizers or qemu every kernel of the runner has to run: no skips.
    for operation, isa in runner().kernels():
        name = f"runner-{operation}__{isa}"
        targets.append(pytest.param(runner().run, operation, isa, id=name))
    return targets


TARGETS = _targets()
every_kernel = pytest.mark.parametrize(("run", "operation", "isa"), TARGETS)
Run = Callable[[str, str, Array, Case], Array]


def check(run: Run, operation: str, isa: str, case: Case) -> None:
    source = source_of(operation, case)
    expected = oracle.run(operation, source, case.height, case.width, case.scale, case.zero_point)
    actual = run(operation, isa, source, case)
    assert actual.dtype == expected.dtype
    if actual.tobytes() != expected.tobytes():
        bits = f"u{actual.itemsize}"
        wrong = np.argwhere(actual.view(bits) != expected.view(bits))
        at = tuple(wrong[0])
        pytest.fail(f"{len(wrong)} differ, first {at}: {actual[at]!r} is not {expected[at]!r}")


# 32-bit scales: usual ones, and the smallest and the largest that the contract allows.
SCALES = st.one_of(
    st.floats(2.0**-10, 2.0**10, width=32),
    st.sampled_from([1.0, 0.1, 3.0e-39, 2.0**-126, 1e30, float(np.finfo(np.float32).max)]),
).map(lambda scale: float(np.float32(scale)))

CASES = st.builds(
    Case,
    planes=st.integers(1, 3),
    height=st.integers(1, 9),
    # Around one, two and four vectors of every ISA, and anything else.
    width=st.one_of(
        st.integers(1, 18), st.sampled_from([31, 32, 33, 34, 47, 63, 64, 65, 66, 127, 130])
    ),
    data=st.sampled_from(["normal", "ties", "special", "bits"]),
    seed=st.integers(0, 2**32 - 1),
    scale=SCALES,
    zero_point=st.one_of(st.sampled_from([-128, 0, 127]), st.integers(-128, 127)),
    shift=st.integers(0, 9),
)


@every_kernel
@settings(max_examples=300, deadline=None)
@given(case=CASES)
@example(case=Case(1, 1, 1, "special"))
@example(case=Case(2, 14, 14, "ties", scale=0.1, zero_point=-128))
def test_kernel_equals_the_oracle(run: Run, operation: str, isa: str, case: Case) -> None:
    check(run, operation, isa, case)


@every_kernel
@pytest.mark.parametrize("shift", [0, 1])
def test_every_width(run: Run, operation: str, isa: str, shift: int) -> None:
    for width in range(1, 100):
        for height in (1, 2, 3):
            data = "special" if width % 2 else "ties"
            check(run, operation, isa, Case(2, height, width, data, width, 0.5, 3, shift))


@every_kernel
def test_numerics_contract(run: Run, operation: str, isa: str) -> None:
    """docs/numerics.md in numbers written by hand, so that the oracle is tested as well."""
    inf, nan = np.inf, np.nan
    if operation.startswith("maxpool"):
        windows = [
            [nan, 1, -3, nan], [nan, nan, nan, nan], [1, inf, nan, 0], [-inf, -inf, -inf, -inf],
            [-0.0, 0.0, -1, -1], [0.0, -0.0, -1, -1], [0.5, -9, -9, -9], [1.5, -9, -9, -9],
            [2.5, -9, -9, -9], [-2.5, -9, -9, -9], [1e-40, -9, -9, -9], [3e38, 3e38, -9, -9],
        ]  # fmt: skip
        source = (
            np.array(windows, np.float32).reshape(-1, 2, 2).transpose(1, 0, 2).reshape(1, 2, -1)
        )
        source = np.ascontiguousarray(source)
        case = Case(1, 2, source.shape[2], scale=1.0, zero_point=1)
        if operation == "maxpool2x2_f32_f32":
            expected: Array = np.array(
                [1, -inf, inf, -inf, -0.0, 0.0, 0.5, 1.5, 2.5, -2.5, 1e-40, 3e38], np.float32
            )
        else:
            expected = np.array([2, -128, 127, -128, 1, 1, 1, 3, 3, -1, 1, 127], np.int8)
    elif operation == "upsample2x_f32_f32":
        source = np.array([[[nan, -0.0, inf]]], np.float32)
        case = Case(1, 1, 5)
        expected = np.array([nan, nan, -0.0, -0.0, inf], np.float32)
    else:
        source = np.array([[[-128, 127, 2]]], np.int8)
        case = Case(1, 1, 6, scale=2.0**121, zero_point=2)  # -130 * 2^121 overflows
        expected = np.array([-inf, -inf, 125 * 2.0**121, 125 * 2.0**121, 0.0, 0.0], np.float32)
    assert run(operation, isa, source, case).tobytes() == expected.tobytes()


def test_every_isa_is_complete() -> None:
    names = _core.kernels() + (runner().kernels() if RUNNER else [])
    operations = {operation for operation, _ in names}
    for isa in {isa for _, isa in names}:
        assert {operation for operation, other in names if other == isa} == operations


def test_required_isas_were_tested() -> None:
    tested = {isa for _, isa in runner().kernels()} if RUNNER else set()
    tested.update(_core.available_isas())
    required = {isa for isa in os.environ.get("SCISSIONLITE_REQUIRE_ISA", "").split(",") if isa}
    assert required <= tested, f"not tested: {sorted(required - tested)}"


GOOD = np.zeros((2, 5, 7), np.float32)
READ_ONLY = np.zeros((2, 3, 4), np.int8)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("source", "out", "error", "message"),
    [
        (GOOD.astype(np.float64), np.zeros((2, 3, 4), np.int8), TypeError, "float32, not float64"),
        (GOOD, np.zeros((2, 3, 4), np.uint8), TypeError, "int8, not uint8"),
        (GOOD.tolist(), np.zeros((2, 3, 4), np.int8), TypeError, "incompatible"),
        (GOOD[0], np.zeros((2, 3, 4), np.int8), ValueError, "3-D"),
        (GOOD[:0], np.zeros((0, 3, 4), np.int8), ValueError, "empty"),
        (GOOD[:, :, ::2], np.zeros((2, 3, 2), np.int8), ValueError, "contiguous"),
        (GOOD, np.zeros((2, 3, 3), np.int8), ValueError, "rounded up"),
        (GOOD, np.zeros((1, 3, 4), np.int8), ValueError, "rounded up"),
        (GOOD, READ_ONLY, ValueError, "writable"),
        (GOOD, GOOD.view(np.int8).reshape(-1)[:24].reshape(2, 3, 4), ValueError, "overlap"),
    ],
)
def test_binding_refuses(source: Any, out: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _core.maxpool2x2_quantize_f32_i8(source, out, 1.0, 0)


def test_binding_refuses_misaligned_input() -> None:
    raw = np.zeros(GOOD.nbytes + 1, np.uint8)
    misaligned = raw[1:].view(np.float32).reshape(GOOD.shape)
    with pytest.raises(ValueError, match="aligned"):
        _core.maxpool2x2_quantize_f32_i8(misaligned, np.zeros((2, 3, 4), np.int8), 1.0, 0)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), 1e39, 1e-39])
def test_binding_refuses_scale(scale: float) -> None:
    with pytest.raises(ValueError, match="scale"):
        _core.maxpool2x2_quantize_f32_i8(GOOD, np.zeros((2, 3, 4), np.int8), scale, 0)


@pytest.mark.parametrize("zero_point", [-129, 128])
def test_binding_refuses_zero_point(zero_point: int) -> None:
    with pytest.raises(ValueError, match="zero_point"):
        _core.dequantize_upsample2x_i8_f32(
            np.zeros((2, 3, 4), np.int8), GOOD.copy(), 1.0, zero_point
        )


@pytest.mark.parametrize(
    "isa", ["sse9", "neon" if "neon" not in _core.available_isas() else "avx2"]
)
def test_binding_refuses_isa(isa: str) -> None:
    with pytest.raises(IsaError, match=isa):
        _core.maxpool2x2_f32_f32(GOOD, np.zeros((2, 3, 4), np.float32), isa=isa)
