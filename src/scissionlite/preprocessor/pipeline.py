"""Prepare: from a plan to a bundle, through Inserter, Trainer and Splitter (arXiv 2105.02019)."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from scissionlite import __version__
from scissionlite.bundle import (
    MAX_BATCH,
    Accuracy,
    Bundle,
    CrossingTensor,
    Manifest,
    Role,
    SlicingPointInfo,
    TensorInfo,
    Training,
)
from scissionlite.errors import PrepareError
from scissionlite.graph import Graph
from scissionlite.images import Preprocessing
from scissionlite.preprocessor import splitter, trainer
from scissionlite.preprocessor.data import ImageFolder, Sample, as_inputs, class_names, open_data
from scissionlite.preprocessor.inserter import SlicedNetwork, insert
from scissionlite.scissiontl.planner import Plan


def prepare(
    graph: Graph,
    plan: Plan,
    *,
    train: str | Path | Dataset[Sample] | None = None,
    validate: str | Path | Dataset[Sample] | None = None,
    out: str | Path,
    preprocessing: Preprocessing | None = None,
    runtimes: Sequence[str] = ("torchscript",),
    epochs: int = 3,
    batch_size: int = 32,
    learning_rate: float = 5e-4,
    seed: int = 0,
    train_device_slice: bool = False,
    local_fallback: bool = True,
    max_batch: int = 1,
    progress: bool = False,
) -> Bundle:
    """Carry out a plan: insert the Transfer Layer, retrain, split, and write the bundle.

    Parameters
    ----------
    graph
        The captured network, trained for its task already.
    plan
        What to prepare: one of those that :func:`scissionlite.plan` ranks.
    train
        Training data: a folder in ImageFolder layout, or any torch Dataset of pairs (float32
        tensor without batch dimension, label). Needed wherever the Transfer Layer loses
        something (any pooling or int8); a float32 split is the network itself and needs none.
    validate
        Data on which accuracy is measured before and after; not looked at in training.
    out
        Folder of the bundle. A bundle there is replaced.
    preprocessing
        How images become inputs; needed with folders, recorded in the bundle and applied on the
        device.
    runtimes
        What the slices are written for, best first: "torchscript", "onnx" and "aotinductor". A
        device or an edge takes the first that it can run. What AOTInductor compiles here runs only
        on processors that have this one's vector instructions: give a second runtime for others.
    epochs, batch_size, learning_rate, seed
        Of the retraining; 0 epochs only calibrates.
    train_device_slice
        Let the device slice learn too. By default it keeps its weights, so that several slicing
        points can share one device network.
    local_fallback
        Put the uncut network in the bundle too, so that a device can answer alone.
    max_batch
        Most inputs that one request may hold; 1 leaves it at the example's batch.
    progress
        Show progress bars.

    Returns
    -------
    Bundle

    Raises
    ------
    PrepareError
        If the plan has three tiers, data is missing or empty, classes differ, the Transfer Layer
        is not valid at the slicing point, training diverges, or a runtime's slices answer
        something else than the trained network.
    RuntimeUnavailableError
        If what a runtime needs is not installed.
    BundleError
        If something else than a bundle is at ``out``.
    """
    if plan.second is not None:
        raise PrepareError(
            f"the plan has three tiers ({plan.place}), and the Offloader runs two: take one "
            "without a cloud, or give the cloud's profile as the edge's"
        )
    splitter.check_runtimes(runtimes)
    train_data = None if train is None else open_data(train, preprocessing, augment=True)
    validation = None if validate is None else open_data(validate, preprocessing, augment=False)
    classes = class_names(train_data, validation)
    example = graph.example
    _check_batch(graph, plan, max_batch)
    fields: dict[str, Any] = {
        "kind": plan.kind,
        "model": graph.name,
        "inputs": tuple(TensorInfo(t.name, t.shape, t.dtype) for t in graph.inputs),
        "outputs": tuple(TensorInfo(t.name, t.shape, t.dtype) for t in graph.outputs),
        "output_kind": graph.output_kind,
        "max_batch": max_batch,
        "preprocessing": preprocessing,
        "classes": classes,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "scissionlite": __version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    }
    before = None if validation is None else trainer.evaluate(graph.module, validation)
    with tempfile.TemporaryDirectory(prefix="scissionlite-") as scratch:
        folder = Path(scratch)
        modules: dict[Role, tuple[nn.Module, tuple[torch.Tensor, ...]]] = {}
        real = _real_input(validation or train_data, example)
        inferences: Sequence[splitter.Inference]
        if plan.kind != "split" or local_fallback:
            modules["network"] = (graph.module, example)
        if plan.kind == "split":
            network, trained = _retrain(
                graph,
                plan,
                train_data,
                epochs=epochs,
                batch_size=batch_size,
                learning_rate=learning_rate,
                seed=seed,
                train_device_slice=train_device_slice,
                progress=progress,
            )
            with torch.inference_mode():
                restored = network.transfer(network.device_slice(*example))
            modules["device"] = (network.device_slice, example)
            modules["edge"] = (network.edge_slice, tuple(x.clone() for x in restored))
            cut = graph.point(plan.slicing_point or "")
            fields |= {
                "slicing_point": SlicingPointInfo(cut.index, cut.after, cut.before),
                "crossing": tuple(
                    CrossingTensor(
                        t.name,
                        t.shape,
                        t.dtype,
                        transfer=layer.device.spec,
                        quantization=layer.device.quantization,
                    )
                    for t, layer in zip(cut.crossing, network.layers, strict=True)
                ),
                "transfer": plan.spec,
                "training": trained,
            }
            slices = splitter.export_slices(modules, runtimes, folder, dynamic_batch=max_batch > 1)
            inferences = [splitter.joined(network, slices, each, folder) for each in runtimes]
            for each, inference in zip(runtimes, inferences, strict=True):
                splitter.verify(network, inference, real, each)
        else:
            fields |= {"image_format": plan.image_format, "jpeg_quality": plan.jpeg_quality}
            slices = splitter.export_slices(modules, runtimes, folder, dynamic_batch=max_batch > 1)
            inferences = []
        if "network" in slices:
            uncut = [splitter.load_exported(slices, "network", each, folder) for each in runtimes]
            for each, inference in zip(runtimes, uncut, strict=True):
                splitter.verify(graph.module, inference, real, each)
            inferences = inferences or uncut
        if validation is not None and before is not None:
            if plan.kind == "image":
                after, samples = _image_accuracy(inferences[0], validation, plan)
            else:
                after, samples = splitter.accuracy(inferences[0], validation)
            fields["accuracy"] = Accuracy(before, after, samples)
        manifest = Manifest(slices=slices, **fields)
        files = [each.file for written in slices.values() for each in written]
        return Bundle.write(out, manifest, {file: folder / file for file in files})


def _retrain(
    graph: Graph,
    plan: Plan,
    data: Dataset[Sample] | None,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    train_device_slice: bool,
    progress: bool,
) -> tuple[SlicedNetwork, Training | None]:
    assert plan.spec is not None  # Plan has checked both
    assert plan.slicing_point is not None
    lossless = plan.spec.pool == 1 and plan.spec.dtype == "float32"
    if data is None and not lossless:
        raise PrepareError(
            f"{plan.spec.label} changes what crosses, so the network has to be retrained with it: "
            "give train="
        )
    calibration = None
    torch.manual_seed(seed)  # augmentation draws from it, so calibration does too
    if data is not None:
        shuffled = torch.Generator().manual_seed(seed)
        calibration = DataLoader(data, batch_size, shuffle=True, generator=shuffled)
    network = insert(
        graph,
        plan.slicing_point,
        plan.spec,
        calibration=calibration,
        train_device_slice=train_device_slice,
    )
    if lossless or data is None or epochs == 0:
        return network.eval(), None
    trained = trainer.train(
        network,
        data,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        progress=progress,
        description=f"retraining with {plan.spec.label}",
    )
    return network, trained


def _real_input(
    data: Dataset[Sample] | None, example: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """A real input to verify slices on, where there is data; otherwise the example."""
    return example if data is None else tuple(x[None] for x in as_inputs(data[0][0]))


def _check_batch(graph: Graph, plan: Plan, max_batch: int) -> None:
    if not 1 <= max_batch <= MAX_BATCH:
        raise PrepareError(f"max_batch must be 1 to {MAX_BATCH}, got {max_batch}")
    if max_batch == 1:
        return
    tensors = [*graph.inputs, *graph.outputs]
    if plan.slicing_point is not None:
        tensors += graph.point(plan.slicing_point).crossing
    batch = graph.inputs[0].shape[0]
    if not graph.dynamic_batch or any(t.shape[:1] != (batch,) for t in tensors):
        raise PrepareError(
            f"max_batch={max_batch}, but {graph.name} does not run on other batch sizes than the "
            "example's, or not all of its tensors have a batch dimension"
        )


def _image_accuracy(
    inference: splitter.Inference, data: Dataset[Sample], plan: Plan
) -> tuple[float, int]:
    if not isinstance(data, ImageFolder) or plan.image_format is None:
        raise PrepareError("accuracy of sent images needs images: give validate= as a folder")
    return splitter.image_accuracy(
        inference, data, data.preprocessing, plan.image_format, plan.jpeg_quality
    )
