"""What runs slices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from scissionlite.errors import RuntimeUnavailableError
from scissionlite.runtimes import RUNTIMES, load_slice, runtime_module


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_exported_slice_answers_as_its_module(runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    exporter = runtime_module(runtime)
    path = tmp_path / f"slice{exporter.SUFFIX}"
    exporter.export(module, (torch.zeros(1, 3, 9, 7),), path)
    x = np.random.default_rng(0).normal(size=(1, 3, 9, 7)).astype(np.float32)
    kept = x.copy()
    (y,) = load_slice(path, runtime, threads=1)(x)
    with torch.inference_mode():
        np.testing.assert_allclose(y, module(torch.from_numpy(x)).numpy(), rtol=1e-4, atol=1e-5)
    assert y.flags.c_contiguous
    np.testing.assert_array_equal(x, kept)


class _Skip(nn.Module):
    """Two tensors in, three out: one of them just passed on, one input not used."""

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, unused: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        pooled = nn.functional.max_pool2d(x, 2)
        return pooled + y, y, pooled.flatten(1).sum(1, keepdim=True)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_slice_of_several_tensors_answers_as_its_module(
    runtime: str, batch: int, tmp_path: Path
) -> None:
    exporter = runtime_module(runtime)
    path = tmp_path / f"slice{exporter.SUFFIX}"
    shapes = [(2, 8, 8), (2, 4, 4), (5,)]
    example = tuple(torch.zeros(1, *shape) for shape in shapes)
    exporter.export(_Skip().eval(), example, path, dynamic_batch=True)
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(batch, *shape)).astype(np.float32) for shape in shapes]
    answers = load_slice(path, runtime, threads=1)(*inputs)
    with torch.inference_mode():
        expected = _Skip()(*map(torch.from_numpy, inputs))
    assert len(answers) == len(expected)
    for answer, wanted in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer, wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_unknown_runtimes_are_told_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeUnavailableError, match="unknown runtime 'tvm': this build knows onnx"
    ):
        load_slice(tmp_path, "tvm")


_COUNT_FAULTS = """
import resource, sys
import numpy as np
from pathlib import Path
from scissionlite.runtimes import load_slice, warm_up

shape = (1, 3, 128, 128)
loaded = load_slice(Path(sys.argv[1]), "torchscript", threads=1)
warm_up(loaded, [(shape, "float32")], runs=5)
x = np.zeros(shape, np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    loaded(x)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20)
"""


def test_an_inference_does_not_map_its_memory_again(tmp_path: Path) -> None:
    # Small maps, then large ones, then small ones again, as in an inverted residual.
    module = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU6(), nn.Conv2d(32, 96, 1), nn.ReLU6()),
        nn.Conv2d(96, 24, 1, 2),
    )
    path = tmp_path / "slice.pt"
    runtime_module("torchscript").export(module, (torch.zeros(1, 3, 128, 128),), path)
    done = subprocess.run(
        [sys.executable, "-c", _COUNT_FAULTS, str(path)],
        env={name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")},
        capture_output=True,
        text=True,
        check=True,
    )
    # Without keep_memory() it is more than 1,000 pages an inference.
    assert float(done.stdout) < 100
