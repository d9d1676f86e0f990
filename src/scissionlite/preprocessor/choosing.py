"""Choosing: try plans, and keep the fastest whose accuracy is high enough."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from scissionlite.bundle import Bundle
from scissionlite.errors import PrepareError
from scissionlite.graph.graph import Graph
from scissionlite.images import Preprocessing
from scissionlite.manifest import Accuracy, Precision
from scissionlite.preprocessor.data import Data
from scissionlite.preprocessor.opened_data import open_data
from scissionlite.preprocessor.pipeline import prepare, score_uncut
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.preprocessor.splitter import AccuracyWarning
from scissionlite.preprocessor.tasks import CLASSIFICATION, Task
from scissionlite.scissiontl.plans import Plan
from scissionlite.transfer_layer import TransferSpec


class Attempt(msgspec.Struct, frozen=True):
    """A plan that was tried, and its result.

    Attributes
    ----------
    plan
        The plan that was prepared.
    accuracy
        As in its bundle.
    held
        Whether the score is high enough.
    seconds
        Time for calibrating, training, exporting and measuring.
    """

    plan: Plan
    accuracy: Accuracy
    held: bool
    seconds: float


class Choice(msgspec.Struct, frozen=True):
    """The bundle that was kept, and everything that was tried, in order."""

    bundle: Bundle
    attempts: tuple[Attempt, ...]


def choose(
    graph: Graph,
    plans: Sequence[Plan],
    *,
    accuracy_drop: float,
    validate: str | Path | Data,
    out: str | Path,
    train: str | Path | Data | None = None,
    unlabelled: str | Path | Data | None = None,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    task: Task = CLASSIFICATION,
    recipe: Recipe | None = None,
    runtimes: Sequence[str] = ("torchscript",),
    local_fallback: bool = True,
    max_batch: int = 1,
    device_precision: Precision | None = None,
    progress: bool = False,
    tries: int = 5,
    on_try: Callable[[Plan], None] = lambda plan: None,
) -> Choice:
    """Prepare the most promising plans in order of predicted latency; keep the first that holds.

    As plans come in order, the first whose score is no more than ``accuracy_drop`` below the uncut
    network's is the fastest of them. A plan is left out if it cannot score better than one that has
    failed: it has the same or a harsher Transfer Layer where a feature map of the same shape
    crosses. Once ``tries`` plans were trained and failed, only plans are tried that need no
    training: a float32 split, images, or running locally, which always holds in float32.

    Parameters
    ----------
    graph
        The captured network.
    plans
        Ranked, best first (:func:`scissionlite.plan`).
    accuracy_drop
        Most that the score may fall, 0 to 1.
    validate
        Data on which every plan is scored. As the choice depends on them, its score on other data
        is a little lower: keep some back to report.
    out
        Folder of the bundle that is kept.
    train, unlabelled, classes, preprocessing, task, recipe
        As :func:`scissionlite.prepare`.
    runtimes, local_fallback, max_batch, device_precision, progress
        As :func:`scissionlite.prepare`.
    tries
        Most plans to train.
    on_try
        Called with each plan before it is prepared.

    Returns
    -------
    Choice

    Raises
    ------
    PrepareError
        If no plan holds (the message has all scores), or as :func:`scissionlite.prepare`.
    """
    if not 0 <= accuracy_drop <= 1:
        raise PrepareError(f"accuracy_drop={accuracy_drop!r} must be 0 to 1")
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
    assert data.validate is not None  # as it was given
    uncut_score = score_uncut(graph, data.validate, task)
    prepare_plan = partial(
        prepare,
        graph,
        train=data.train if data.labelled else None,
        unlabelled=None if data.labelled else data.train,
        validate=data.validate,
        classes=data.classes or None,
        preprocessing=preprocessing,
        task=task,
        recipe=recipe,
        runtimes=runtimes,
        local_fallback=local_fallback,
        max_batch=max_batch,
        device_precision=device_precision,
        uncut_score=uncut_score,
        progress=progress,
    )
    attempts: list[Attempt] = []
    failed: list[_LossyTransfer] = []
    folder = Path(out)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for plan in plans:
        int8 = (device_precision or plan.device_precision) == "int8"
        lossy = _LossyTransfer.of(graph, plan, int8)
        if lossy and (len(failed) >= tries or any(map(lossy.as_harsh_as, failed))):
            continue
        on_try(plan)
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-try-", dir=folder.parent) as tried:
            checkpoint = folder.with_name(f".{folder.name}-try-{len(attempts)}.checkpoint")
            with warnings.catch_warnings():
                # How far a score may fall is said by accuracy_drop.
                warnings.simplefilter("ignore", AccuracyWarning)
                bundle = prepare_plan(plan, out=Path(tried) / "bundle", checkpoint=checkpoint)
            attempts.append(_attempt(plan, bundle, accuracy_drop, time.perf_counter() - started))
            if attempts[-1].held:
                files = {entry.file: bundle.path / entry.file for entry in bundle.files}
                return Choice(Bundle.write(folder, bundle.manifest, files), tuple(attempts))
        if lossy:
            failed.append(lossy)
    raise _nothing_holds(attempts, uncut_score, accuracy_drop)


def _attempt(plan: Plan, bundle: Bundle, accuracy_drop: float, seconds: float) -> Attempt:
    accuracy = bundle.manifest.accuracy
    assert accuracy is not None  # as there are validation data
    held = accuracy.after >= accuracy.before - accuracy_drop
    return Attempt(plan, accuracy, held, seconds)


class _LossyTransfer(msgspec.Struct, frozen=True):
    """A Transfer Layer and a device slice that lose something together.

    Attributes
    ----------
    spec
        The Transfer Layer.
    shapes
        The shapes of the tensors that cross there.
    int8
        Whether the device slice is in int8.
    """

    spec: TransferSpec
    shapes: tuple[tuple[int, ...], ...]
    int8: bool

    @classmethod
    def of(cls, graph: Graph, plan: Plan, int8: bool) -> _LossyTransfer | None:
        """The one of a plan; None if the plan needs no training."""
        if plan.spec is None or plan.slicing_point is None or (plan.spec.lossless and not int8):
            return None
        crossing = graph.point(plan.slicing_point).crossing
        return cls(plan.spec, tuple(tensor.shape for tensor in crossing), int8)

    def as_harsh_as(self, other: _LossyTransfer) -> bool:
        """Whether this one loses all that another one does, or more.

        Entropy coding loses nothing, and is not compared.
        """
        spec, least = self.spec, other.spec
        return (
            self.shapes == other.shapes
            and self.int8 >= other.int8
            and spec.pool_kind == least.pool_kind
            and spec.pool >= least.pool
            and spec.reduction >= least.reduction
            and spec.codes <= least.codes
            and (spec.granularity, spec.scheme, spec.upsample)
            == (least.granularity, least.scheme, least.upsample)
        )


def _nothing_holds(
    attempts: Sequence[Attempt], uncut_score: float, accuracy_drop: float
) -> PrepareError:
    scores = "; ".join(
        f"{a.plan.label} at {a.plan.place}: {a.accuracy.after:.2%}" for a in attempts
    )
    return PrepareError(
        f"no plan holds {uncut_score - accuracy_drop:.2%} (the uncut network has "
        f"{uncut_score:.2%}): {scores or 'there are none'}. Allow a larger drop, train longer, or "
        "try more"
    )
