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

from scissionlite import __version__
from scissionlite.bundle import (
    MAX_BATCH,
    Bundle,
    CrossingTensor,
    Manifest,
    Role,
    SlicingPointInfo,
    Training,
)
from scissionlite.errors import PrepareError
from scissionlite.graph.graph import Graph
from scissionlite.images import Preprocessing
from scissionlite.preprocessor import splitter, trainer
from scissionlite.preprocessor.data import (
    Data,
    ImageFolder,
    Photographs,
    class_names,
    input_batches,
    loader_of,
    open_data,
    samples_of,
)
from scissionlite.preprocessor.distillation import Teacher
from scissionlite.preprocessor.inserter import SlicedNetwork, insert
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.preprocessor.tasks import CLASSIFICATION, Task
from scissionlite.runtimes.export import check_runtimes, export_slices, load_exported
from scissionlite.scissiontl.plans import Plan


def prepare(
    graph: Graph,
    plan: Plan,
    *,
    train: str | Path | Data | None = None,
    unlabelled: str | Path | Data | None = None,
    validate: str | Path | Data | None = None,
    out: str | Path,
    preprocessing: Preprocessing | None = None,
    task: Task = CLASSIFICATION,
    recipe: Recipe | None = None,
    runtimes: Sequence[str] = ("torchscript",),
    local_fallback: bool = True,
    max_batch: int = 1,
    checkpoint: str | Path | None = None,
    uncut_score: float | None = None,
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
        Training data: a folder in ImageFolder layout, or any torch Dataset or DataLoader of pairs
        (float32 tensor without batch dimension, target). It or `unlabelled` is needed wherever the
        Transfer Layer loses something; a float32 split is the network itself and needs neither.
    unlabelled
        Training data without labels, instead of `train`: a folder of photographs in any layout, or
        a Dataset or DataLoader whose targets are not looked at. The network learns from the uncut
        one.
    validate
        Data on which the score is measured before and after; not looked at in training.
    out
        Folder of the bundle. A bundle there is replaced.
    preprocessing
        How images become inputs; needed with folders, recorded in the bundle and applied on the
        device.
    task
        Loss and metric: ``CLASSIFICATION``, ``SEGMENTATION``, or your own (:class:`.tasks.Task`).
    recipe
        How to calibrate and retrain.
    runtimes
        What the slices are written for, best first: "torchscript", "onnx" and "aotinductor". A
        device or an edge takes the first that it can run. What AOTInductor compiles here runs only
        on processors that have this one's vector instructions: give a second runtime for others.
    local_fallback
        Put the uncut network in the bundle too, so that a device can answer alone.
    max_batch
        Most inputs that one request may hold; 1 leaves it at the example's batch.
    checkpoint
        File from which an interrupted training goes on when the same is prepared again; by default
        one beside `out` that is removed at the end.
    uncut_score
        The uncut network's score on `validate`, if it was measured before.
    progress
        Show progress bars.

    Returns
    -------
    Bundle

    Raises
    ------
    PrepareError
        If the plan has three tiers, data is missing or empty, classes differ, the Transfer Layer
        is not valid at the slicing point, training diverges, the checkpoint is of another training,
        or a runtime's slices answer something else than the trained network.
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
    check_runtimes(runtimes)
    if train is not None and unlabelled is not None:
        raise PrepareError("give train= or unlabelled=: with distillation=1 labels play no part")
    recipe = recipe or Recipe()
    training_data = None
    if train is not None:
        training_data = open_data(train, preprocessing, kind=ImageFolder)
    elif unlabelled is not None:
        training_data = open_data(unlabelled, preprocessing, kind=Photographs)
    validation = None if validate is None else open_data(validate, preprocessing, kind=ImageFolder)
    classes = class_names(training_data, validation)
    example = graph.example
    _check_batch(graph, plan, max_batch)
    fields: dict[str, Any] = {
        "kind": plan.kind,
        "model": graph.name,
        "inputs": graph.inputs,
        "outputs": graph.outputs,
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
    if validation is not None and uncut_score is None:
        uncut_score = trainer.evaluate(graph.module, validation, task=task)
    with tempfile.TemporaryDirectory(prefix="scissionlite-") as scratch:
        folder = Path(scratch)
        modules: dict[Role, tuple[nn.Module, tuple[torch.Tensor, ...]]] = {}
        inferences: Sequence[splitter.Inference]
        if plan.kind != "split" or local_fallback:
            modules["network"] = (graph.module, example)
        real = _real_input(validation or training_data, example)
        if plan.kind == "split":
            network, trained = _retrain(
                graph,
                plan,
                training_data,
                task,
                recipe,
                labelled=train is not None,
                checkpoint=Path(checkpoint or _beside(out)),
                progress=progress,
            )
            device, edge = network.deployed()
            with torch.no_grad():
                modules["device"] = (device, example)
                modules["edge"] = (edge, tuple(x.clone() for x in network.arriving(*example)))
            cut = graph.point(plan.slicing_point or "")
            fields |= {
                "slicing_point": SlicingPointInfo(cut.index, cut.after, cut.before),
                "crossing": tuple(
                    CrossingTensor(
                        t.name,
                        layer.spec.crossing_shape(t.shape),
                        t.dtype,
                        transfer=layer.spec.packing,
                        quantization=layer.quantization,
                        feature_shape=t.shape if layer.spec.learned else None,
                    )
                    for t, layer in zip(cut.crossing, network.layers, strict=True)
                ),
                "transfer": plan.spec,
                "training": trained,
            }
            slices = export_slices(modules, runtimes, folder, dynamic_batch=max_batch > 1)
            inferences = [splitter.Joined(network, slices, each, folder) for each in runtimes]
            for each, inference in zip(runtimes, inferences, strict=True):
                splitter.verify(network, inference, real, each)
        else:
            fields |= {"image_format": plan.image_format, "jpeg_quality": plan.jpeg_quality}
            slices = export_slices(modules, runtimes, folder, dynamic_batch=max_batch > 1)
            inferences = []
        if "network" in slices:
            uncut = [load_exported(slices, "network", each, folder) for each in runtimes]
            for each, whole in zip(runtimes, uncut, strict=True):
                splitter.verify(graph.module, whole, real, each)
            inferences = inferences or uncut
        if validation is not None and uncut_score is not None:
            first = inferences[0]
            if plan.kind == "image":
                first = _sent_images(first, validation, plan)
            fields["accuracy"] = splitter.measure(first, validation, task, before=uncut_score)
        manifest = Manifest(slices=slices, **fields)
        files = [each.file for written in slices.values() for each in written]
        return Bundle.write(out, manifest, {file: folder / file for file in files})


def _retrain(
    graph: Graph,
    plan: Plan,
    data: Data | None,
    task: Task,
    recipe: Recipe,
    *,
    labelled: bool,
    checkpoint: Path,
    progress: bool,
) -> tuple[SlicedNetwork, Training | None]:
    assert plan.spec is not None  # Plan has checked both
    assert plan.slicing_point is not None
    if data is None and not plan.spec.lossless:
        raise PrepareError(
            f"{plan.spec.label} changes what crosses, so the network has to be retrained with it: "
            "give train= or unlabelled="
        )
    calibration = None
    if data is not None:
        shuffled = torch.Generator().manual_seed(recipe.seed)
        torch.manual_seed(recipe.seed)  # the user's own data may draw from it
        calibration = input_batches(loader_of(data, recipe.batch_size, generator=shuffled))
    network = insert(graph, plan.slicing_point, plan.spec, calibration=calibration, recipe=recipe)
    if plan.spec.lossless or data is None or recipe.epochs == 0:
        network.settle()
        return network, None
    distil = not labelled or recipe.distillation > 0
    trained = trainer.train(
        network,
        data,
        recipe,
        task=task,
        teacher=Teacher(graph, plan.slicing_point) if distil else None,
        labelled=labelled,
        checkpoint=checkpoint,
        progress=progress,
        description=f"retraining with {plan.spec.label} after {plan.slicing_point}",
    )
    return network, trained


def _beside(out: str | Path) -> Path:
    """Where a training's checkpoint is, unless told otherwise."""
    folder = Path(out)
    return folder.with_name(f".{folder.name}.checkpoint")


def _real_input(data: Data | None, example: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """A real input to verify slices on, where there is data; otherwise the example."""
    inputs = None if data is None else next(samples_of(data), None)
    return example if inputs is None else inputs[0]


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


def _sent_images(
    inference: splitter.Inference, data: Data | None, plan: Plan
) -> splitter.Inference:
    """The uncut network behind images that are sent in the plan's format."""
    if data is None:
        return inference
    if not isinstance(data, Photographs) or plan.image_format is None:
        raise PrepareError("accuracy of sent images needs images: give validate= as a folder")
    return splitter.SentImages(inference, data, plan.image_format, plan.jpeg_quality)
