"""Many devices in several processes at one daemon; ``python -m bench.scale`` has 64 for 60 s."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from bench.scale import measure
from many_devices import SAME, Inputs

from scissionlite.bundle import Bundle
from scissionlite.offloader.device.side import DeviceSide
from scissionlite.offloader.edge.side import EdgeSide

DEVICES, PROCESSES = 16, 2


@pytest.mark.long
def test_every_device_gets_its_own_right_answers_and_none_is_lost(onnx_bundle: Bundle) -> None:
    sides = (DeviceSide(onnx_bundle, 1), EdgeSide(onnx_bundle, 1))
    answers = [
        answer for number in range(DEVICES) for answer in Inputs(onnx_bundle, sides, number).answers
    ]
    for one, other in itertools.combinations(answers, 2):
        assert np.abs(one - other).max() > 2 * SAME  # so that one of another device is wrong
    scale = measure(onnx_bundle, DEVICES, PROCESSES, 3.0)
    tally = scale.tally
    assert (tally.right, tally.wrong, tally.failed) == (tally.asked, 0, 0)
    assert tally.asked >= 10 * DEVICES
    assert scale.after - scale.before < 16 << 20
