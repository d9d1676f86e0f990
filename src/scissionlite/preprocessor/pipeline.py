"""Prepare: from a plan to a bundle by Inserter, Trainer and Splitter (arXiv 2105.02019)."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch
from msgspec import structs
from torch import nn

from scissionlite import __version__
from scissionlite.bundle import Bundle
from scissionlite.errors import PrepareError
from scissionlite.graph.graph import Graph
from scissionlite.images import Preprocessing
from scissionlite.manifest import (
    FORMAT_VERSION,
    MAX_BATCH,
    THREE_TIERS_VERSION,
    Accuracy,
    Manifest,
    Precision,
    Role,
    SliceFile,
    Variant,
)
from scissionlite.preprocessor import splitter
from scissionlite.preprocessor.data import (
    Data,
    Photographs,
    loader_of,
    spread_inputs,
)
from scissionlite.preprocessor.floor import floor_of
from scissionlite.preprocessor.kept_encoder import keep_encoder
from scissionlite.preprocessor.opened_data import OpenedData, open_data
from scissionlite.preprocessor.quantized import Int8Slices, check_int8
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.preprocessor.scoring import score_uncut
from scissionlite.preprocessor.second_cut import check_second_cut
from scissionlite.preprocessor.tasks import CLASSIFICATION, Task
from scissionlite.preprocessor.variants import Split, modules_of, split_all
from scissionlite.runtimes.export import check_runtimes, export_slices, load_exported
from scissionlite.scissiontl.plans import Plan
from scissionlite.transfer_layer import TransferSpec

VERIFIED_SAMPLES = 4
"""Real inputs on which every runtime's slices must answer what the network answers."""


def prepare(
    graph: Graph,
    plan: Plan,
    *,
    train: str | Path | Data | None = None,
    unlabelled: str | Path | Data | None = None,
    validate: str | Path | Data | None = None,
    classes: Sequence[str] | None = None,
    out: str | Path,
    preprocessing: Preprocessing | None = None,
    task: Task = CLASSIFICATION,
    recipe: Recipe | None = None,
    runtimes: Sequence[str] = ("torchscript",),
    local_fallback: bool = True,
    max_batch: int = 1,
    variants: Sequence[TransferSpec | Plan] = (),
    device_precision: Precision | None = None,
    encoder: str | Path | None = None,
    checkpoint: str | Path | None = None,
    uncut_score: float | None = None,
    floor: float | None = None,
    progress: bool = False,
) -> Bundle:
    """Carry out a plan: insert the Transfer Layer, retrain, split, and write the bundle.

    Parameters
    ----------
    graph
        The captured network, trained for its task already.
    plan
        The plan to prepare: one of those that :func:`scissionlite.plan` ranks, or your own.
    train
        Training data: a folder in ImageFolder layout, or any torch Dataset or DataLoader of pairs
        (float32 tensor without batch dimension, target). Where the Transfer Layer loses something,
        this or `unlabelled` is needed; a float32 split loses nothing and needs neither.
    unlabelled
        Training data without labels, instead of `train`: a folder of photographs in any layout, or
        a Dataset or DataLoader whose targets are ignored. The network learns from the uncut one.
    validate
        Data on which the score is measured before and after; not used in training.
    classes
        Names of the classes, in the order of the network's outputs. By default they are the names
        of the folders in `train`, or else in `validate`, sorted as torchvision's ImageFolder sorts
        them, and then there has to be a folder for each output. With `classes`, a folder may lack
        some of them.
    out
        Folder of the bundle. A bundle that is there already is replaced.
    preprocessing
        How images become inputs. It is needed with folders, written into the bundle, and applied on
        the device.
    task
        Loss and metric: ``CLASSIFICATION``, ``SEGMENTATION``, or your own (:class:`.tasks.Task`).
    recipe
        How to calibrate and retrain.
    runtimes
        The runtimes that slices are written for, best first: "torchscript", "onnx" and
        "aotinductor". A device or an edge takes the first that it can run. AOTInductor's slices run
        only on processors with the vector instructions of this one: give another runtime, too.
    local_fallback
        Put the uncut network into the bundle too, so that a device can answer alone.
    max_batch
        Most inputs that one request may hold; with 1 a request holds as many as the example.
    variants
        Other ways to split the network, which the bundle holds too: Transfer Layers at the plan's
        slicing point, or plans that cut there or later. The device changes between them as link
        and edge do (:mod:`.device.adaptation`). They share the device slice. One that loses no
        more than another with the same pooling shares its edge slice; any other is trained.
    device_precision
        Numbers in which the device computes, "float32" or "int8"; by default the plan's. In int8,
        its slices and the local fallback are quantized with ranges from the training data, and the
        edge slice is trained on the features that they really make. ONNX Runtime runs them,
        whatever `runtimes` are; the edge slice is written for those.
    encoder
        Bundle whose shallow encoder stays as it is, files, steps and tables: only what the edge
        runs is made and trained. The plan has the encoder's own Transfer Layer, at "input".
    checkpoint
        File from which an interrupted training goes on when the same plan is prepared again. By
        default it is beside `out`; it is removed at the end.
    uncut_score
        The uncut network's score on `validate`, if it was measured before.
    floor
        Least score on `validate`, 0 to 1. A calibrated network that reaches it is not trained, and
        a training stops as soon as it cannot reach it any more. By default neither is looked at.
    progress
        Show progress bars.

    Returns
    -------
    Bundle

    Warns
    -----
    AccuracyWarning
        If the score on `validate` falls by more than 5 points, or a classifier's to that of always
        answering the most frequent class.

    Raises
    ------
    PrepareError
        If the plan's second cut does not come behind the first, the variants cannot share a device
        slice or stand beside a second cut, the device's part cannot be made int8, a kept encoder
        does not fit, data is missing or
        empty, an image's header cannot be read, the classes of the data or the network's outputs
        differ, the Transfer Layer is not valid at the slicing point, training diverges, the
        checkpoint is of another training, or a runtime's slices do not answer the same as the
        trained network.
    BelowFloorError
        If training was stopped because the floor cannot be reached; a PrepareError.
    ImageError
        If an image is damaged, or its values have no plain meaning.
    RuntimeUnavailableError
        If a package that a runtime needs is not installed.
    BundleError
        If ``out`` exists and is not a bundle.
    PlanError
        If the device is to compute in int8 and the plan sends images.
    """
    plan = structs.replace(plan, device_precision=device_precision or plan.device_precision)
    _check_plan(graph, plan, max_batch)
    check_runtimes(runtimes)
    recipe = recipe or Recipe()
    check_int8(plan, recipe, has_data=train is not None or unlabelled is not None)
    data = open_data(
        graph,
        train=train,
        unlabelled=unlabelled,
        validate=validate,
        classes=classes,
        preprocessing=preprocessing,
        task=task,
        progress=progress,
    )
    _check_batch_size(graph, plan, data, recipe)
    kept = keep_encoder(encoder, graph, plan, recipe, preprocessing, runtimes, max_batch)
    if data.validate is not None and uncut_score is None:
        uncut_score = score_uncut(graph, data.validate, task)
    samples = data.validate or data.train
    real = [] if samples is None else spread_inputs(samples, VERIFIED_SAMPLES)
    with tempfile.TemporaryDirectory(prefix="scissionlite-") as scratch:
        folder = Path(scratch)
        int8 = _int8_slices(graph, plan, data, recipe, folder, max_batch)
        splits = split_all(
            graph,
            plan,
            variants,
            data,
            task,
            recipe,
            int8=int8,
            kept_encoder=kept,
            floor=floor_of(graph, floor, data.validate, task),
            checkpoint=Path(checkpoint or _checkpoint_beside(out)),
            progress=progress,
        )
        uncut = not splits or local_fallback
        written = int8 is not None or kept is not None
        modules = modules_of(graph, splits, uncut=uncut and int8 is None, device_written=written)
        slices = export_slices(modules, runtimes, folder, dynamic_batch=max_batch > 1)
        if kept is not None:
            slices["device"] = kept.copied(folder, runtimes)
        if int8 is not None:
            slices |= int8.finish([split.network for split in splits], uncut=uncut)
        inputs = list(splitter.promised_inputs(graph, real or [graph.example], max_batch))
        inferences = _verified(graph, splits, slices, int8, runtimes, folder, inputs)
        accuracies = [_accuracy(each, plan, data, task, uncut_score) for each in inferences]
        fallback = None
        if int8 is not None and splits and local_fallback:
            local = splitter.LocalInference(load_exported(slices, "network", "onnx", folder))
            fallback = _accuracy(local, plan, data, task, uncut_score)
        manifest = structs.replace(
            _manifest(graph, plan, splits, accuracies, slices, preprocessing=preprocessing),
            max_batch=max_batch,
            classes=data.classes,
            local_accuracy=fallback,
        )
        files = [each.file for written in slices.values() for each in written]
        return Bundle.write(out, manifest, {file: folder / file for file in files})


def _int8_slices(
    graph: Graph, plan: Plan, data: OpenedData, recipe: Recipe, folder: Path, max_batch: int
) -> Int8Slices | None:
    """Prepare to write the device's slices in int8; None where they are in float32."""
    if plan.device_precision == "float32":
        return None
    assert data.train is not None  # check_int8 has seen to it
    return Int8Slices(graph, data.train, recipe, folder, dynamic_batch=max_batch > 1)


def _manifest(
    graph: Graph,
    plan: Plan,
    splits: Sequence[Split],
    accuracies: Sequence[Accuracy | None],
    slices: dict[Role, tuple[SliceFile, ...]],
    *,
    preprocessing: Preprocessing | None,
) -> Manifest:
    """The manifest, but for what does not depend on the plan."""
    made = _made(splits, accuracies)
    next_hop = splits[0].next_hop if splits else None
    return Manifest(
        version=FORMAT_VERSION if next_hop is None else THREE_TIERS_VERSION,
        kind=plan.kind,
        model=graph.name,
        inputs=graph.inputs,
        outputs=graph.outputs,
        output_kind=graph.output_kind,
        slices=slices,
        name=made[0].name if made else "",
        slicing_point=made[0].slicing_point if made else None,
        crossing=made[0].crossing if made else (),
        transfer=plan.spec,
        image_format=plan.image_format,
        jpeg_quality=plan.jpeg_quality,
        preprocessing=preprocessing,
        training=made[0].training if made else None,
        variants=tuple(made[1:]),
        next_hop=next_hop,
        accuracy=accuracies[0],
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=_versions(),
    )


def _check_plan(graph: Graph, plan: Plan, max_batch: int) -> None:
    """Check a plan's cuts, and that its tensors can have so many inputs at once."""
    check_second_cut(graph, plan)
    if not 1 <= max_batch <= MAX_BATCH:
        raise PrepareError(f"max_batch must be 1 to {MAX_BATCH}, got {max_batch}")
    if max_batch == 1:
        return
    tensors = [*graph.inputs, *graph.outputs]
    if plan.slicing_point is not None:
        tensors += graph.point(plan.slicing_point).crossing
    if plan.second is not None:
        tensors += graph.point(plan.second.slicing_point).crossing
    batch = graph.inputs[0].shape[0]
    if not graph.dynamic_batch or any(t.shape[:1] != (batch,) for t in tensors):
        raise PrepareError(
            f"max_batch={max_batch}, but {graph.name} does not run on other batch sizes than the "
            "example's, or not all of its tensors have the batch as their first dimension: wrap "
            "the model so that they do (nn.GRU has batch_first=True)"
        )


def _check_batch_size(graph: Graph, plan: Plan, data: OpenedData, recipe: Recipe) -> None:
    """Check that a network with one batch size is trained with it."""
    if plan.kind != "split" or data.train is None or graph.dynamic_batch:
        return
    batch, trained = len(graph.example[0]), loader_of(data.train, recipe.batch_size).batch_size
    if trained != batch:
        raise PrepareError(
            f"{graph.name} runs only on batches of {batch}, as its example, and training takes "
            f"batches of {trained}: train with --batch-size {batch} (Recipe(batch_size={batch})), "
            "or let the network read its batch size from x.shape[0]"
        )


def _verified(
    graph: Graph,
    splits: Sequence[Split],
    slices: dict[Role, tuple[SliceFile, ...]],
    int8: Int8Slices | None,
    runtimes: Sequence[str],
    folder: Path,
    inputs: Sequence[tuple[torch.Tensor, ...]],
) -> list[splitter.Inference]:
    """Verify every runtime's slices on all the inputs.

    Returns
    -------
    list of Inference
        Of the first runtime: each split's, or that of the uncut network.
    """
    pairs: list[tuple[str, nn.Module, splitter.Inference]] = []
    for runtime in runtimes:
        for split in splits:
            joined = splitter.SplitInference(
                split.variant, slices, runtime, folder, next_hop=split.next_hop
            )
            pairs.append((runtime, split.network, joined))
    for runtime in runtimes if "network" in slices else ():
        network = load_exported(slices, "network", runtime, folder)
        uncut = graph.module if int8 is None else int8.literal("network")
        pairs.append((runtime, uncut, splitter.LocalInference(network)))
    for runtime, network, inference in pairs:
        for example in inputs:
            try:
                splitter.verify(network, inference, example, runtime, graph.outputs)
            except PrepareError as error:
                if len(example[0]) == len(graph.example[0]):
                    raise
                raise PrepareError(f"{error}. {_batch_remedy(graph)}") from error
    return [inference for _, _, inference in pairs[: max(len(splits), 1)]]


def _batch_remedy(graph: Graph) -> str:
    """Say what to do where slices fail on another batch size than the example's."""
    lines = "".join(f"\n  {line}" for line in graph.batch_size_lines)
    place = f"The model uses the batch size here:{lines}\n" if lines else ""
    return (
        f"{place}Prepare with max_batch=1, or without this runtime, or change the model so that "
        "each input of a batch is computed alike, whatever the batch size"
    )


def _accuracy(
    inference: splitter.Inference,
    plan: Plan,
    opened: OpenedData,
    task: Task,
    uncut_score: float | None,
) -> Accuracy | None:
    """Score the exported network; with an image plan on images sent in the plan's format."""
    data = opened.validate
    if data is None or uncut_score is None:
        return None
    if plan.image_format is not None:
        if not isinstance(data, Photographs):
            raise PrepareError("accuracy of sent images needs images: give validate= as a folder")
        inference = splitter.ImageInference(inference, data, plan.image_format, plan.jpeg_quality)
    return splitter.measure(inference, data, task, before=uncut_score)


def _made(splits: Sequence[Split], accuracies: Sequence[Accuracy | None]) -> tuple[Variant, ...]:
    """The variants with their accuracy."""
    pairs = zip(splits, accuracies, strict=False)  # there is one accuracy without splits, too
    return tuple(structs.replace(split.variant, accuracy=each) for split, each in pairs)


def _versions() -> dict[str, str]:
    """The versions of the software that makes the bundle."""
    return {
        "scissionlite": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def _checkpoint_beside(out: str | Path) -> Path:
    """Where the checkpoint of a bundle's training is by default."""
    folder = Path(out)
    return folder.with_name(f".{folder.name}.checkpoint")
