"""Prepares the bundle of the mixed run: a small network, verified on photographs, ONNX first.

python mixed_bundle.py OUT PHOTOGRAPHS
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import scissionlite as sl

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from networks import small_network

sl.prepare(
    sl.capture(small_network().eval(), torch.zeros(1, 3, 64, 64), name="small"),
    sl.Plan(kind="split", slicing_point="1", spec=sl.TransferSpec(entropy="zstd")),
    unlabelled=sys.argv[2],
    preprocessing=sl.Preprocessing(size=(64, 64)),
    recipe=sl.Recipe(epochs=0),
    runtimes=("onnx", "torchscript"),
    out=sys.argv[1],
)
