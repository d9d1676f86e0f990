"""The turns of a profile: every part in every round, the next input each time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

import scissionlite as sl
from scissionlite.scissiontl import codecs, timing
from scissionlite.scissiontl.codecs import REFERENCE, Codec
from scissionlite.scissiontl.profile import TransferProfile
from scissionlite.scissiontl.turns import Samples, take_turns


class Part:
    """Writes down its turns."""

    def __init__(self, name: str, log: list[tuple[str, int]]) -> None:
        self._name, self._log = name, log

    def turn(self, number: int) -> None:
        self._log.append((self._name, number))

    def forget(self) -> None:
        self._log.clear()


def test_each_part_has_a_turn_in_each_round() -> None:
    log: list[tuple[str, int]] = []
    reports: list[None] = []
    take_turns([Part("a", log), Part("b", log)], 3, 2, lambda: reports.append(None))
    assert log == [("a", 3), ("b", 3), ("a", 4), ("b", 4)]
    assert len(reports) == 2


def test_samples_keep_the_result_and_the_median() -> None:
    samples = Samples()
    assert samples.time(lambda: "answer") == "answer"
    samples.seconds = [3.0, 1.0, 2.0]
    assert samples.median == 2.0


def test_a_codec_goes_round_the_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coder that meets the same map every time learns its branches."""
    maps = [np.full((1, 2, 4, 4), value, np.float32) for value in (0.0, 1.0, 2.0)]
    codec = Codec(0, sl.TransferSpec(), [maps])
    seen: list[float] = []
    encode = sl.encode

    def spy(array: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(float(array.flat[0]))
        return encode(array, *arguments, **options)

    monkeypatch.setattr(codecs, "encode", spy)
    take_turns([codec], 0, 6)
    assert seen == [0.0, 1.0, 2.0, 0.0, 1.0, 2.0]


def test_a_slow_codec_rests_and_still_has_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = Codec(0, sl.TransferSpec(), [[np.zeros((1, 2, 4, 4), np.float32)]])
    monkeypatch.setattr(codecs, "SHARE", 1e-9)  # so that every turn takes too long
    counts = []
    for _ in range(2):
        codec.forget()
        take_turns([codec], 7, 8)  # whatever the number of the first round
        counts.append(len(codec._parts[0]._encoding.seconds))
    assert counts == [2, 2]


def test_codecs_have_what_they_take_longer_beside_a_slice() -> None:
    other = sl.TransferSpec(dtype="float16")
    transfers = [
        TransferProfile(block, spec, 1.0, 2.0, 10)
        for block in (0, 1, 2)
        for spec in (REFERENCE, other)
    ]
    slices = [
        SimpleNamespace(point=SimpleNamespace(index=block), packing=packing)
        for block, packing in enumerate([(1.5, 2.25), (1.25, 2.5), (4.0, 1.0)])
    ]
    found = timing.beside_slices(transfers, cast("Any", slices))
    assert {(t.encode, t.decode) for t in found} == {(1.5, 2.25)}
    assert timing.beside_slices(transfers, []) == transfers
