"""``scissionlite prepare``: insert the Transfer Layer, retrain, split, write a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import typer

from scissionlite.bundle import Bundle
from scissionlite.cli.inspect import inspect
from scissionlite.cli.link_options import PAPER_LINK, LinkOption
from scissionlite.cli.model_options import (
    BitsOption,
    ClassesOption,
    MaxTensorsOption,
    MeanOption,
    ModelArgument,
    ModelRequest,
    ResizeOption,
    SizeOption,
    StdOption,
    WeightsOption,
)
from scissionlite.cli.output import (
    JsonOption,
    error_console,
    milliseconds,
    print_table,
    warnings_in_one_line,
)
from scissionlite.cli.plan import PowerOption, SlowdownOption
from scissionlite.cli.plan_choice import PlanRequest, parse_variants
from scissionlite.cli.prepare_options import (
    DEFAULT_RECIPE,
    NO_CHANGES,
    NO_CONSTRAINTS,
    AccuracyDropOption,
    AtOption,
    CheckpointOption,
    ClassesFileOption,
    CloudProfileOption,
    CodecOption,
    ConstraintsOptions,
    DevicePrecisionOption,
    DeviceProfileOption,
    EdgeProfileOption,
    EncoderOption,
    LearnedOption,
    LocalFallbackOption,
    MaxBatchOption,
    MetricOption,
    OutOption,
    RecipeOptions,
    RuntimeOption,
    ThenOption,
    TrainOption,
    TransferOptions,
    TriesOption,
    UnlabelledOption,
    ValidateOption,
    VariantOption,
)
from scissionlite.cli.struct_options import struct_options
from scissionlite.images import Preprocessing
from scissionlite.manifest import Precision
from scissionlite.preprocessor.classes import MetricName, class_folders, read_class_names
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.progress import duration
from scissionlite.scissiontl.plans import Plan
from scissionlite.transfer_layer import TransferSpec

if TYPE_CHECKING:
    from scissionlite.graph.graph import Graph
    from scissionlite.preprocessor.choosing import Choice, Outlook
    from scissionlite.preprocessor.tasks import Task


@struct_options
def prepare(
    model: ModelArgument,
    out: OutOption,
    size: SizeOption = None,
    resize: ResizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    bits: BitsOption = None,
    num_classes: ClassesOption = None,
    weights: WeightsOption = None,
    train: TrainOption = None,
    unlabelled: UnlabelledOption = None,
    validate: ValidateOption = None,
    classes: ClassesFileOption = None,
    metric: MetricOption = "accuracy",
    at: AtOption = None,
    codec: CodecOption = "int8",
    encoder: EncoderOption = None,
    then: ThenOption = None,
    transfer: TransferOptions = NO_CHANGES,
    variant: VariantOption = [],  # noqa: B006 - typer reads it and never changes it
    device_precision: DevicePrecisionOption = None,
    accuracy_drop: AccuracyDropOption = None,
    tries: TriesOption = 5,
    device_profile: DeviceProfileOption = None,
    edge_profile: EdgeProfileOption = None,
    cloud_profile: CloudProfileOption = None,
    learned: LearnedOption = False,
    link: LinkOption = PAPER_LINK,
    slowdown: SlowdownOption = 1.0,
    power: PowerOption = None,
    constraints: ConstraintsOptions = NO_CONSTRAINTS,
    runtime: RuntimeOption = ["torchscript"],  # noqa: B006 - typer reads it and never changes it
    recipe: RecipeOptions = DEFAULT_RECIPE,
    checkpoint: CheckpointOption = None,
    max_tensors: MaxTensorsOption = 1,
    max_batch: MaxBatchOption = 1,
    local_fallback: LocalFallbackOption = True,
    json: JsonOption = False,
) -> None:
    """Prepare a bundle for a plan: the slices, retrained with the Transfer Layer in between."""
    request = PlanRequest(
        at=at,
        codec=codec,
        encoder=encoder,
        then=then,
        changes=transfer,
        device_profile=device_profile,
        edge_profile=edge_profile,
        cloud_profile=cloud_profile,
        learned=learned,
        link=link,
        slowdown=slowdown,
        power=power,
        constraints=constraints,
        photographs=train or unlabelled,
    )
    _check_accuracy_drop(accuracy_drop, request, validate, checkpoint, variant, recipe)
    plan = request.plan() if accuracy_drop is None else None
    names = None if classes is None else read_class_names(classes)
    graph, settings = ModelRequest(
        model=model,
        num_classes=num_classes or _class_count(model, names, None if metric == "miou" else train),
        weights=weights,
        size=size,
        resize=resize,
        mean=mean,
        std=std,
        bits=bits,
    ).capture(max_tensors, progress=not json)
    settings.print()
    job = _Job(
        out=out,
        train=train,
        unlabelled=unlabelled,
        validate=validate,
        classes=names,
        metric=metric,
        preprocessing=settings.preprocessing,
        recipe=recipe,
        runtimes=tuple(runtime),
        local_fallback=local_fallback,
        max_batch=max_batch,
        device_precision=device_precision,
        progress=not json,
    )
    try:
        if plan is not None:
            kept = request.kept_encoder
            bundle = job.prepare(graph, plan, parse_variants(variant), kept, checkpoint)
        else:
            assert accuracy_drop is not None  # otherwise there is a plan
            bundle = job.choose(graph, request, accuracy_drop, tries)
    except KeyboardInterrupt:
        error_console.print("Interrupted: the same command goes on after the last whole epoch.")
        raise
    inspect(bundle.path, json=json)


# More than 12 attributes: each is one option.
class _Job(msgspec.Struct, frozen=True, kw_only=True):
    """The options that do not depend on the plan."""

    out: Path
    train: Path | None
    unlabelled: Path | None
    validate: Path | None
    classes: tuple[str, ...] | None
    metric: MetricName
    preprocessing: Preprocessing
    recipe: Recipe
    runtimes: tuple[str, ...]
    local_fallback: bool
    max_batch: int
    device_precision: Precision | None
    progress: bool

    def task(self) -> Task:
        """The task that the metric belongs to."""
        from scissionlite.preprocessor import tasks

        task = tasks.SEGMENTATION if self.metric == "miou" else tasks.CLASSIFICATION
        return task.by(self.metric)

    def prepare(
        self,
        graph: Graph,
        plan: Plan,
        variants: Sequence[TransferSpec | Plan],
        encoder: Path | None,
        checkpoint: Path | None,
    ) -> Bundle:
        """Prepare one plan, with variants."""
        from scissionlite.preprocessor import pipeline

        with warnings_in_one_line():
            return pipeline.prepare(
                graph,
                plan,
                train=self.train,
                unlabelled=self.unlabelled,
                validate=self.validate,
                classes=self.classes,
                out=self.out,
                preprocessing=self.preprocessing,
                task=self.task(),
                recipe=self.recipe,
                runtimes=self.runtimes,
                local_fallback=self.local_fallback,
                max_batch=self.max_batch,
                variants=variants,
                device_precision=self.device_precision,
                encoder=encoder,
                checkpoint=checkpoint,
                progress=self.progress,
            )

    def choose(
        self, graph: Graph, request: PlanRequest, accuracy_drop: float, tries: int
    ) -> Bundle:
        """Prepare the fastest plan that loses at most ``accuracy_drop`` points of accuracy."""
        from scissionlite.preprocessor import choosing

        assert self.validate is not None  # _check_accuracy_drop has seen to it
        choice = choosing.choose(
            graph,
            request.ranked_plans(graph, self.runtimes[0], self.preprocessing),
            accuracy_drop=accuracy_drop / 100,
            validate=self.validate,
            out=self.out,
            preprocessing=self.preprocessing,
            task=self.task(),
            tries=tries,
            on_try=_print_outlook if self.progress else lambda outlook: None,
            train=self.train,
            unlabelled=self.unlabelled,
            classes=self.classes,
            recipe=self.recipe,
            runtimes=self.runtimes,
            local_fallback=self.local_fallback,
            max_batch=self.max_batch,
            device_precision=self.device_precision,
            progress=self.progress,
        )
        if self.progress:
            _print_attempts(choice, request.link)
        return choice.bundle


def _class_count(model: str, names: tuple[str, ...] | None, train: Path | None) -> int | None:
    """The number of classes to make a network for; None where nothing says it."""
    if model.endswith(".pt2"):  # a file has the classes that it has
        return None
    if names is not None:
        return len(names)
    return None if train is None else len(class_folders(train).places)


def _check_accuracy_drop(
    accuracy_drop: float | None,
    request: PlanRequest,
    validate: Path | None,
    checkpoint: Path | None,
    variants: Sequence[str],
    recipe: Recipe,
) -> None:
    if accuracy_drop is None:
        return
    written_out = request.at is not None or request.encoder is not None
    if written_out or request.changes.options or validate is None:
        raise typer.BadParameter(
            "--accuracy-drop chooses slicing point and Transfer Layer itself, and needs --validate"
        )
    if variants:
        raise typer.BadParameter("--variant goes with one plan; --accuracy-drop tries several")
    if recipe.bytes_in_loss:
        raise typer.BadParameter(
            "--rate and --target-bytes go with one plan; --accuracy-drop tries several"
        )
    if checkpoint is not None:
        raise typer.BadParameter("--checkpoint is one training's; --accuracy-drop has several")


def _print_outlook(outlook: Outlook) -> None:
    plan = outlook.plan
    text = (
        f"Trying {plan.label} at {plan.place}, predicted {milliseconds(plan.predicted.latency)} ms"
    )
    if plan.predicted.drop is not None:
        text += f" and {plan.predicted.drop * 100:.1f} points lost before training"
    if outlook.seconds:
        text += (
            f"; at most about {duration(outlook.seconds)}, "
            f"all tries {duration(outlook.most_seconds)}"
        )
    error_console.print(text, markup=False, highlight=False)


def _print_attempts(choice: Choice, link: str) -> None:
    rows = [
        [
            str(number),
            attempt.plan.place,
            attempt.plan.label,
            milliseconds(attempt.plan.predicted.latency),
            "" if attempt.sent_bytes is None else f"{attempt.sent_bytes / 1e3:.2f}",
            f"{attempt.after * 100:.2f}",
            f"{(attempt.after - attempt.before) * 100:+.2f}",
            str(attempt.epochs),
            f"{attempt.seconds:.0f}",
            "held" if attempt.held else "stopped" if attempt.stopped else "",
        ]
        for number, attempt in enumerate(choice.attempts, 1)
    ]
    columns = ["try (#)", "slicing point", "what crosses", "predicted (ms)", "sent (kB)"]
    columns += [f"{choice.metric} (%)", "change (points)", "epochs (#)", "took (s)", ""]
    caption = "The last plan that held is kept: it is the fastest of them."
    print_table(f"Tried for {link}", columns, rows, caption=caption)
