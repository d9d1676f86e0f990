"""The kernels under test, and the two places where they run: this process, and the kernel runner.

The runner is a build of tests/kernel_runner.cpp, cross-compiled and under qemu, or with sanitizers;
SCISSIONLITE_KERNEL_RUNNER is its command. An ISA that a CPU cannot run is skipped, or, with
SCISSIONLITE_REQUIRE_ISA=neon,avx2, a failure (tests/test_kernels.py).
"""

from __future__ import annotations

import atexit
import ctypes
import math
import mmap
import os
import re
import shlex
import struct
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle import CODES, FLOATS, Answer, Array, Call, logical

from scissionlite import _core

RUNNER = os.environ.get("SCISSIONLITE_KERNEL_RUNNER", "")
CANARY = 0xA5
_LIBC = ctypes.CDLL(None, use_errno=True)

KERNEL_LIST = Path(__file__).parents[1] / "csrc" / "kernel_list.h"

PAYLOADS = {"i8": "int8", "i4": "int4", "f16": "float16", "f32": "float32"}

Run = Callable[[str, str, Array, Call, int], Answer]
"""Run(operation, isa, source, call, shift): as oracle.run, between guard pages."""


@cache
def listed_isas() -> dict[str, str]:
    """Architecture (x86_64, aarch64 or any) of every ISA of csrc/kernel_list.h, best first."""
    found = dict(re.findall(r"^  ISA\((\w+), (\w+), ", KERNEL_LIST.read_text(), re.MULTILINE))
    assert found, f"{KERNEL_LIST} names no ISA"
    return found


@cache
def listed_operations() -> list[str]:
    """Every operation with its types ("encode_f32_i8") of csrc/kernel_list.h."""
    listed = re.findall(
        r"^  KERNEL\((\w+), (\w+), (\w+), __VA_ARGS__\)", KERNEL_LIST.read_text(), re.MULTILINE
    )
    assert listed, f"{KERNEL_LIST} names no kernel"
    return ["_".join(each) for each in listed]


def isas_of(architecture: str) -> set[str]:
    """ISAs that a build for an architecture must have."""
    return {isa for isa, of in listed_isas().items() if of in (architecture, "any")}


def kinds(operation: str) -> tuple[str, str, str]:
    """Name without types, input type, output type."""
    name, given, result = operation.rsplit("_", 2)
    return name, given, result


def item_type(kind: str) -> type[np.generic]:
    """Element type of an array of a kind; int4 are bytes with two codes each."""
    return FLOATS.get(kind, np.uint8)


def source_size(operation: str, call: Call) -> int:
    """Elements of `item_type` that an operation reads."""
    name, given, _ = kinds(operation)
    return _size(given, call.pooled if name == "decode" else call.full)


def output_size(operation: str, call: Call) -> int:
    """Elements of `item_type` that an operation writes."""
    name, _, result = kinds(operation)
    return _size(result, call.full if name == "decode" else call.pooled)


def _size(kind: str, shape: tuple[int, ...]) -> int:
    size = math.prod(shape)
    return (size + 1) // 2 if kind == "i4" else size


class GuardedArray:
    """A flat array between two inaccessible pages: ending at the upper, or `shift` elements on."""

    def __init__(self, size: int, dtype: type[np.generic], shift: int) -> None:
        dtype_ = np.dtype(dtype)
        offset, nbytes = shift * dtype_.itemsize, size * dtype_.itemsize
        inner_size = -(-(offset + nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE
        pages = mmap.mmap(-1, inner_size + 2 * mmap.PAGESIZE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        for guard in (address, address + mmap.PAGESIZE + inner_size):
            # 0 is PROT_NONE.
            assert _LIBC.mprotect(ctypes.c_void_p(guard), mmap.PAGESIZE, 0) == 0
        self._inner = np.frombuffer(pages, np.uint8, inner_size, mmap.PAGESIZE)
        self._inner[:] = CANARY
        self._start = offset if shift else inner_size - nbytes
        self._stop = self._start + nbytes
        self.array: Array = self._inner[self._start : self._stop].view(dtype_)

    def check_canaries(self) -> None:
        assert (self._inner[: self._start] == CANARY).all(), "wrote before the array"
        assert (self._inner[self._stop :] == CANARY).all(), "wrote after the array"


def transfer_of(operation: str, isa: str | None, call: Call) -> _core.Transfer:
    name, given, result = kinds(operation)
    # The payload does not matter to pool_range.
    payload = {"encode": result, "decode": given}.get(name, "i8")
    return _core.Transfer(
        images=call.images,
        channels=call.channels,
        height=call.height,
        width=call.width,
        pool=call.window,
        pool_kind=call.pooling,
        upsample=call.upsampling,
        layout=call.layout,
        dtype=PAYLOADS[payload],
        isa=isa,
    )


def run_in_module(operation: str, isa: str, source: Array, call: Call, shift: int) -> Answer:
    name, given, result = kinds(operation)
    transfer = transfer_of(operation, isa, call)
    quantizer = None
    if {given, result} & CODES.keys():
        quantizer = _core.Quantizer(call.scales, call.zero_points)
    before = GuardedArray(source.size, source.dtype.type, shift)
    after = GuardedArray(output_size(operation, call), item_type(result), shift)
    before.array[...] = source
    lows = highs = np.empty(0, np.float32)
    if name == "decode":
        payload = before.array.view(np.uint8)
        transfer.decode(payload, logical(after.array, call.full, call.layout), quantizer)
    else:
        array = logical(before.array, call.full, call.layout)
        if name == "encode":
            transfer.encode(array, after.array.view(np.uint8), quantizer)
        else:
            lows, highs = transfer.pool_range(array, after.array, call.per_channel)
            if call.window == 1:
                again = transfer.pool_range(array, None, call.per_channel)
                assert [each.tobytes() for each in again] == [lows.tobytes(), highs.tobytes()]
    before.check_canaries()
    after.check_canaries()
    assert before.array.tobytes() == source.tobytes(), "wrote to its input"
    return Answer(after.array.copy(), lows, highs)


class Runner:
    """A client of tests/kernel_runner.cpp, which states the protocol."""

    STATUS = ("done", "unknown, or cannot run here", "wrote out of bounds", "wrote to its input")

    def __init__(self, command: str) -> None:
        self._process = subprocess.Popen(
            shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        # Not a fixture: the runner is asked for its list while pytest collects.
        atexit.register(self.close)

    def close(self) -> None:
        self._process.communicate(timeout=10)

    @cache  # noqa: B019  # there is one runner, and it lives as long as the tests
    def kernels(self) -> list[tuple[str, str, bool]]:
        """Operation, ISA and whether it can run there, for every kernel."""
        lines = [line.split() for line in self._ask(b"list").decode().splitlines()]
        return [(operation, isa, usable == "1") for operation, isa, usable in lines]

    def run(self, operation: str, isa: str, source: Array, call: Call, shift: int) -> Answer:
        name, given, result = kinds(operation)
        factors, zero_points = np.empty(0, np.float32), np.empty(0, np.int32)
        if {given, result} & CODES.keys():
            with np.errstate(under="ignore"):
                reciprocals = np.float32(1) / call.scales
            factors = call.scales if name == "decode" else reciprocals
            zero_points = call.zero_points
        dtype = np.dtype(item_type(result))
        size = output_size(operation, call)
        ranges = (call.channels if call.per_channel else 1) if name == "pool_range" else 0
        request = struct.pack(
            "<4Q6IQ",
            *call.full,
            call.window,
            ("max", "average").index(call.pooling),
            ("nearest", "bilinear").index(call.upsampling),
            ("nchw", "nhwc").index(call.layout),
            call.per_channel,
            shift,
            factors.size,
        )
        request += factors.tobytes() + zero_points.tobytes()
        request += struct.pack("<Q", source.nbytes) + source.tobytes()
        target = f"{operation}__{isa}".encode()
        answer = self._ask(target, request + struct.pack("<2Q", size * dtype.itemsize, ranges))
        bounds = np.frombuffer(answer, np.float32, 2 * ranges, size * dtype.itemsize)
        if name == "pool_range" and call.window == 1:
            # Without an output, too: a null pointer, and then the range alone.
            assert self._ask(target, request + struct.pack("<2Q", 0, ranges)) == bounds.tobytes()
        return Answer(np.frombuffer(answer, dtype, size), bounds[:ranges], bounds[ranges:])

    def _ask(self, name: bytes, request: bytes = b"") -> bytes:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(struct.pack("<I", len(name)) + name + request)
        stdin.flush()
        head = stdout.read(9)
        assert len(head) == 9, f"the runner died in {name!r}: {self._process.wait(10)}"
        status, length = struct.unpack("<BQ", head)
        assert status == 0, f"{name!r}: {self.STATUS[status]}"
        return stdout.read(length)


@cache
def runner() -> Runner:
    return Runner(RUNNER)


def _skip(reason: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.skip(reason=reason)]


def targets() -> list[Any]:
    """Parameters (run, operation, isa) for every kernel of the module and of the runner."""
    found = []
    usable = _core.available_isas()
    for operation, isa in _core.kernels():
        marks = [] if isa in usable else _skip(f"this CPU has no {isa}")
        name = f"module-{operation}__{isa}"
        found.append(pytest.param(run_in_module, operation, isa, id=name, marks=marks))
    if not RUNNER:
        marks = _skip("SCISSIONLITE_KERNEL_RUNNER is not set: no other machine's kernels here")
        return [*found, pytest.param(None, "", "", id="runner", marks=marks)]
    for operation, isa, can_run in runner().kernels():
        marks = [] if can_run else _skip(f"the runner's CPU has no {isa}")
        name = f"runner-{operation}__{isa}"
        found.append(pytest.param(runner().run, operation, isa, id=name, marks=marks))
    return found


def isas_that_run() -> set[str]:
    """ISAs that the tests run, here or in the runner."""
    there = {isa for _, isa, usable in runner().kernels() if usable} if RUNNER else set()
    return there | set(_core.available_isas())


def kernel_names() -> list[tuple[str, str]]:
    """(operation, isa) of every kernel, of the module and of the runner."""
    there = runner().kernels() if RUNNER else []
    return _core.kernels() + [(operation, isa) for operation, isa, _ in there]
