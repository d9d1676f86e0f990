"""Prepare: from a plan to a bundle, through Inserter, Trainer and Splitter (arXiv 2105.02019)."""

from __future__ import annotations

import platform
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from scissionlite import __version__
from scissionlite.bundle import (
    Accuracy,
    Bundle,
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
from scissionlite.preprocessor.data import ImageFolder, Sample, class_names, open_data
from scissionlite.preprocessor.inserter import SlicedNetwork, insert
from scissionlite.runtimes import load_slice
from scissionlite.scissiontl.planner import Plan


def prepare(
    graph: Graph,
    plan: Plan,
    *,
    train: str | Path | Dataset[Sample] | None = None,
    validate: str | Path | Dataset[Sample] | None = None,
    out: str | Path,
    preprocessing: Preprocessing | None = None,
    runtime: str = "torchscript",
    epochs: int = 3,
    batch_size: int = 32,
    learning_rate: float = 5e-4,
    seed: int = 0,
    train_device_slice: bool = False,
    local_fallback: bool = True,
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
    runtime
        What the slices are written for: "torchscript" or "onnx".
    epochs, batch_size, learning_rate, seed
        Of the retraining; 0 epochs only calibrates.
    train_device_slice
        Let the device slice learn too. By default it keeps its weights, so that several slicing
        points can share one device network.
    local_fallback
        Put the uncut network in the bundle too, so that a device can answer alone.
    progress
        Show progress bars.

    Returns
    -------
    Bundle

    Raises
    ------
    PrepareError
        If data is missing or empty, classes differ, the Transfer Layer is not valid at the
        slicing point, training diverges, or the exported slices answer something else than the
        trained network.
    BundleError
        If something else than a bundle is at ``out``.
    """
    train_data = None if train is None else open_data(train, preprocessing, augment=True)
    validation = None if validate is None else open_data(validate, preprocessing, augment=False)
    classes = class_names(train_data, validation)
    example = graph.example
    fields: dict[str, Any] = {
        "kind": plan.kind,
        "model": graph.name,
        "input": TensorInfo(tuple(example.shape), "float32"),
        "output": TensorInfo(graph.output_shape, "float32"),
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
        modules: dict[Role, tuple[nn.Module, torch.Tensor]] = {}
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
                crossing = network.device_slice(example)
                restored = network.transfer_layer(crossing)
            modules["device"] = (network.device_slice, example)
            modules["edge"] = (network.edge_slice, restored.clone())
            cut = graph.point(plan.slicing_point or "")
            fields |= {
                "slicing_point": SlicingPointInfo(cut.index, cut.after, cut.before),
                "crossing": TensorInfo(cut.shape, cut.dtype),
                "transfer": plan.spec,
                "quantization": network.transfer_layer.device.quantization,
                "training": trained,
            }
            slices = splitter.export_slices(modules, runtime, folder)
            inference = splitter.joined(network, slices, folder)
            splitter.verify(network, inference, _real_input(validation or train_data, example))
        else:
            fields["jpeg_quality"] = plan.jpeg_quality
            slices = splitter.export_slices(modules, runtime, folder)
            inference = load_slice(folder / slices["network"].file, runtime)
            splitter.verify(graph.module, inference, _real_input(validation or train_data, example))
        if validation is not None and before is not None:
            if plan.kind == "image":
                after, samples = _jpeg_accuracy(inference, validation, plan)
            else:
                after, samples = splitter.accuracy(inference, validation)
            fields["accuracy"] = Accuracy(before, after, samples)
        manifest = Manifest(slices=slices, **fields)
        return Bundle.write(out, manifest, {s.file: folder / s.file for s in slices.values()})


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


def _real_input(data: Dataset[Sample] | None, example: torch.Tensor) -> torch.Tensor:
    """A real input to verify slices on, where there is data; otherwise the example."""
    return example if data is None else data[0][0][None]


def _jpeg_accuracy(
    inference: splitter.Inference, data: Dataset[Sample], plan: Plan
) -> tuple[float, int]:
    if not isinstance(data, ImageFolder) or plan.jpeg_quality is None:
        raise PrepareError("accuracy through JPEG needs images: give validate= as an image folder")
    return splitter.image_accuracy(inference, data, data.preprocessing, plan.jpeg_quality)
