"""The device's slices in int8: written before training, so that the edge slice learns from them.

A retrained edge slice can make up for the quantization before it only if it is trained on the
features that the quantized device slice really makes. So the slices that will be deployed are
written first, and stand in the network in training: calibration, feature cache, holdout and
verification all see their features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from scissionlite.bundle import file_sha256
from scissionlite.errors import PrepareError
from scissionlite.graph.analysis import flat
from scissionlite.graph.graph import Graph
from scissionlite.manifest import Role, SliceFile
from scissionlite.preprocessor import splitter
from scissionlite.preprocessor.data import Data, input_batches, loader_of
from scissionlite.preprocessor.inserter import SlicedNetwork
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.runtimes import Slice, onnx_int8, runtime_module
from scissionlite.scissiontl.plans import Plan

CALIBRATION_INPUTS = 256
"""Most inputs from which the ranges of the feature maps come."""

Arrays = tuple[npt.NDArray[Any], ...]


class Int8Slice(nn.Module):
    """An int8 slice as a frozen module of a network: ONNX Runtime runs it, on the CPU.

    Parameters
    ----------
    path
        The slice's file.
    batch
        Inputs of one run, as the file has them.
    literal
        Compute what the file says operation by operation, to compare with (:func:`.onnx.load`).
    """

    def __init__(self, path: Path, batch: int, *, literal: bool = False) -> None:
        super().__init__()
        self.path, self.batch, self.literal = path, batch, literal
        self._slice: Slice = runtime_module("onnx").load(
            path, torch.get_num_threads(), literal=literal
        )

    def __deepcopy__(self, memo: dict[int, object]) -> Int8Slice:
        return self  # it has no state

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Run the slice, a batch of the file's after another; without gradients."""
        arrays = tuple(x.detach().cpu().numpy() for x in inputs)
        count = len(arrays[0])
        starts = range(0, count, self.batch)
        runs = [self._run(tuple(x[i : i + self.batch] for x in arrays)) for i in starts]
        parts = [np.concatenate(tensor)[:count] for tensor in zip(*runs, strict=True)]
        answers = tuple(torch.from_numpy(part).to(inputs[0].device) for part in parts)
        return answers[0] if len(answers) == 1 else answers

    def _run(self, inputs: Arrays) -> tuple[npt.NDArray[np.float32], ...]:
        missing = self.batch - len(inputs[0])
        if missing:  # the last batch: repeat its last input, whose answers are left out
            inputs = tuple(np.concatenate([x, x[-1:].repeat(missing, 0)]) for x in inputs)
        return self._slice(*inputs)


class Int8Slices:
    """The int8 slices of a bundle, and the modules in the network that stand for them.

    Parameters
    ----------
    graph
        The captured network.
    data
        Training data, from which the ranges of feature maps come.
    recipe
        Its seed says which of them.
    folder
        Where the files are written.
    dynamic_batch
        Whether they must run on other batch sizes than the example's.
    """

    def __init__(
        self, graph: Graph, data: Data, recipe: Recipe, folder: Path, *, dynamic_batch: bool
    ) -> None:
        self._graph, self._folder, self._dynamic_batch = graph, folder, dynamic_batch
        self._calibration = _calibration_inputs(data, recipe, len(graph.example[0]))
        self._chains: dict[int, nn.Sequential] = {}
        self._examples: dict[Role, tuple[torch.Tensor, ...]] = {}

    def write_device_slices(self, points: Sequence[int], roles: Sequence[Role]) -> None:
        """Write the device's slices: each from one slicing point to the next, in order."""
        before: int | None = None
        for end, role in zip(points, roles, strict=True):
            if before is None:
                module: nn.Module = self._graph.split(end)[0]
            else:
                module = self._graph.between(before, end)
            own = self._write(role, module, before)
            earlier = [] if before is None else list(self._chains[before])
            self._chains[end] = _Chain(*earlier, own)
            before = end

    def device_slice(self, point: int) -> nn.Module:
        """The network's device slice for a cut: its int8 slices, one after another."""
        return self._chains[point]

    def finish(
        self, networks: Sequence[SlicedNetwork], *, uncut: bool
    ) -> dict[Role, tuple[SliceFile, ...]]:
        """Write what is left, verify all files, and describe them for the manifest.

        Parameters
        ----------
        networks
            The trained networks. Encoders of a learned Transfer Layer become part of the device
            slice, in float32: they are trained, and few of its multiplications are theirs.
        uncut
            Whether to write the uncut network, too.

        Raises
        ------
        PrepareError
            If ONNX Runtime does not compute what a file says.
        """
        if uncut:
            self._write("network", self._graph.module, None)
        for role, example in self._examples.items():
            actual = runtime_module("onnx").load(self._path(role))
            splitter.verify(self.literal(role), actual, example, "int8")
        for network in networks:
            if any(layer.spec.learned for layer in network.layers):
                self._append_encoders(network)
        return {
            role: (SliceFile(path.name, "onnx", file_sha256(path), path.stat().st_size, "int8"),)
            for role, path in ((role, self._path(role)) for role in self._examples)
        }

    def literal(self, role: Role) -> Int8Slice:
        """A slice that computes what its file says, to verify the runtime's own form with."""
        return Int8Slice(self._path(role), self._batch, literal=True)

    def _append_encoders(self, network: SlicedNetwork) -> None:
        features = tuple(flat(network.features(*self._graph.example)))
        path = self._folder / "encoders.onnx"
        exporter = runtime_module("onnx")
        exporter.export(network.encoders(), features, path, dynamic_batch=self._dynamic_batch)
        onnx_int8.append_float(self._path("device"), path)
        path.unlink()

    @property
    def _batch(self) -> int:
        return len(self._graph.example[0])

    def _path(self, role: Role) -> Path:
        return self._folder / f"{role}.onnx"

    def _write(self, role: Role, module: nn.Module, before: int | None) -> Int8Slice:
        example = next(self._entering(before))
        try:
            onnx_int8.export_int8(
                module,
                example,
                self._path(role),
                (tuple(x.numpy() for x in inputs) for inputs in self._entering(before)),
                dynamic_batch=self._dynamic_batch,
            )
        except PrepareError as error:
            raise PrepareError(
                f"the {role} slice of {self._graph.name} cannot be made int8: {error}"
            ) from error
        self._examples[role] = example
        return Int8Slice(self._path(role), self._batch)

    def _entering(self, before: int | None) -> Iterator[tuple[torch.Tensor, ...]]:
        """The calibration inputs, behind the slices before a slicing point."""
        for inputs in self._calibration:
            yield inputs if before is None else tuple(flat(self._chains[before](*inputs)))


class _Chain(nn.Sequential):
    """Modules with any number of inputs and outputs, one after another."""

    def forward(self, *inputs: torch.Tensor) -> Any:
        """Run them."""
        values: Any = inputs
        for module in self:
            values = module(*flat(values))
        return values


def check_int8(plan: Plan, recipe: Recipe, *, has_data: bool) -> None:
    """Check that a plan can be carried out with the device's part in int8.

    Raises
    ------
    PrepareError
        If the device slice is to learn, or there are no training data.
    RuntimeUnavailableError
        If a package that it needs is not installed.
    """
    if plan.device_precision == "float32":
        return
    if plan.spec is not None and plan.spec.encoder is not None:
        raise PrepareError(
            "a shallow encoder is a single convolution, which stays in float32: leave "
            "device_precision (--device-precision) out"
        )
    if recipe.train_device_slice:
        raise PrepareError(
            "an int8 device slice does not learn: leave train_device_slice off; the edge slice "
            "learns to work with it"
        )
    if not has_data:
        raise PrepareError(
            "an int8 device slice needs training data, for the ranges of its feature maps: give "
            "train= or unlabelled="
        )
    onnx_int8.check_quantize()


def _calibration_inputs(data: Data, recipe: Recipe, batch: int) -> list[tuple[torch.Tensor, ...]]:
    """Inputs in the batch size of the slices."""
    order = torch.Generator().manual_seed(recipe.seed)
    torch.manual_seed(recipe.seed)  # the user's own data may draw from it
    found: list[tuple[torch.Tensor, ...]] = []
    for inputs in input_batches(loader_of(data, recipe.batch_size, generator=order)):
        parts = zip(*(x.split(batch) for x in inputs), strict=True)
        found += [part for part in parts if len(part[0]) == batch]
        if len(found) * batch >= CALIBRATION_INPUTS:
            break
    if not found:
        raise PrepareError(f"the training data set has fewer than {batch} samples to calibrate on")
    return found
