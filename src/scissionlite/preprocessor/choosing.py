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
from scissionlite.manifest import Precision
from scissionlite.preprocessor.data import Data
from scissionlite.preprocessor.floor import BelowFloorError
from scissionlite.preprocessor.opened_data import open_data
from scissionlite.preprocessor.pipeline import prepare
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.preprocessor.scoring import score_uncut
from scissionlite.preprocessor.search import REMAINING, FloorSearch, front
from scissionlite.preprocessor.splitter import AccuracyWarning
from scissionlite.preprocessor.tasks import CLASSIFICATION, Task
from scissionlite.preprocessor.training_time import TryTimes
from scissionlite.scissiontl.plans import Plan
from scissionlite.transfer_layer import TransferSpec
from scissionlite.transfer_layer.spec import ENCODER_COEFFICIENTS


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """A plan that was tried, and its result.

    Attributes
    ----------
    plan
        The plan that was prepared.
    before, after
        Score of the uncut network, and of the prepared one; or that when training was stopped.
    sent_bytes
        Mean bytes of a request; None where training was stopped.
    held
        Whether the score is high enough.
    epochs
        Epochs of training; 0 where the calibrated network held, or needed no training.
    stopped
        Whether training was stopped, because the network could not reach the score any more.
    seconds
        Time for calibrating, training, exporting and measuring.
    """

    plan: Plan
    before: float
    after: float
    sent_bytes: float | None
    held: bool
    epochs: int
    stopped: bool
    seconds: float


class Choice(msgspec.Struct, frozen=True):
    """The bundle that was kept, its metric, and everything that was tried, in order."""

    bundle: Bundle
    metric: str
    attempts: tuple[Attempt, ...]


class Outlook(msgspec.Struct, frozen=True):
    """The time that a try is predicted to take.

    Attributes
    ----------
    plan
        The plan.
    seconds
        Time that the try is predicted to take, if it is trained to the end.
    most_seconds
        Time that this and all further tries are predicted to take at most.
    """

    plan: Plan
    seconds: float
    most_seconds: float


# Longer than 60 lines: half of them hand its options on to `prepare`.
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
    on_try: Callable[[Outlook], None] = lambda outlook: None,
) -> Choice:
    """Find the fastest plan that scores at most ``accuracy_drop`` less than the uncut network.

    Where the plans have a predicted drop (:attr:`.Prediction.drop`), plans are left out that are
    slower than another one and predicted to lose as much or more, and the search goes to the
    fastest that holds in a few steps (:mod:`.search`). Without it, plans are tried in order of
    latency, and the first that holds is the fastest. In either case a plan is left out if it cannot
    score better than one that has failed: it has the same or a harsher Transfer Layer where a
    feature map of the same shape crosses.

    A plan that holds when it is calibrated is not trained, and a training is stopped as soon as it
    cannot hold (:mod:`.floor`). Once ``tries`` plans were trained or have failed, only plans are
    tried that need no training or are predicted to need none.

    Parameters
    ----------
    graph
        The captured network.
    plans
        Ranked by latency, best first (:func:`scissionlite.plan`).
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
    recipe = recipe or Recipe()
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
        runtimes=runtimes,
        local_fallback=local_fallback,
        max_batch=max_batch,
        device_precision=device_precision,
        uncut_score=uncut_score,
        floor=uncut_score - accuracy_drop,
        progress=progress,
    )
    candidates = _candidates(graph, plans, device_precision)
    likely = accuracy_drop / (REMAINING if recipe.epochs else 1)
    search = FloorSearch([each.drop for each in candidates], likely)
    clock = _Clock(TryTimes.measured(graph, data.train, data.validate, recipe))
    attempts: list[Attempt] = []
    failed: list[LossyTransfer] = []
    bundle = None
    folder = Path(out)
    folder.parent.mkdir(parents=True, exist_ok=True)
    while (place := search.next()) is not None:
        plan, drop, lossy = msgspec.structs.astuple(candidates[place])
        spent = sum(attempt.epochs > 0 or not attempt.held for attempt in attempts)
        trains = spent < tries
        needs_training = lossy and (drop is None or drop > accuracy_drop)
        if (needs_training and not trains) or (lossy and any(map(lossy.as_harsh_as, failed))):
            search.tell(place, held=False)
            continue
        own = recipe if trains else msgspec.structs.replace(recipe, epochs=0)
        on_try(clock.outlook(plan, own, search.left, tries - spent))
        checkpoint = folder.with_name(f".{folder.name}-try-{len(attempts)}.checkpoint")
        prepare_it = partial(prepare_plan, plan, recipe=own, checkpoint=checkpoint)
        attempt, kept = _tried(plan, prepare_it, uncut_score, accuracy_drop, folder)
        bundle = kept or bundle
        attempts.append(attempt)
        clock.tell(attempt, own)
        search.tell(place, held=attempt.held)
        if lossy and not attempt.held:
            failed.append(lossy)
    if bundle is None:
        raise _nothing_holds(attempts, uncut_score, accuracy_drop)
    return Choice(bundle, task.metric, tuple(attempts))


def _tried(
    plan: Plan,
    prepare_it: Callable[..., Bundle],
    uncut_score: float,
    accuracy_drop: float,
    folder: Path,
) -> tuple[Attempt, Bundle | None]:
    """Prepare a plan beside a folder; where it holds, write the bundle there."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-try-", dir=folder.parent) as tried:
        try:
            with warnings.catch_warnings():
                # How far a score may fall is said by accuracy_drop.
                warnings.simplefilter("ignore", AccuracyWarning)
                bundle = prepare_it(out=Path(tried) / "bundle")
        except BelowFloorError as error:
            attempt = Attempt(
                plan=plan,
                before=uncut_score,
                after=error.score,
                sent_bytes=None,
                held=False,
                epochs=error.epoch,
                stopped=True,
                seconds=time.perf_counter() - started,
            )
            return attempt, None
        accuracy, training = bundle.manifest.accuracy, bundle.manifest.training
        assert accuracy is not None  # as there are validation data
        attempt = Attempt(
            plan=plan,
            before=accuracy.before,
            after=accuracy.after,
            sent_bytes=accuracy.sent_bytes,
            held=accuracy.after >= accuracy.before - accuracy_drop,
            epochs=0 if training is None else training.epochs,
            stopped=False,
            seconds=time.perf_counter() - started,
        )
        if not attempt.held:
            return attempt, None
        files = {entry.file: bundle.path / entry.file for entry in bundle.files}
        return attempt, Bundle.write(folder, bundle.manifest, files)


class _Candidate(msgspec.Struct, frozen=True):
    """A plan to try, its predicted drop where it has one, and what loses something in it."""

    plan: Plan
    drop: float | None
    lossy: LossyTransfer | None


def _candidates(
    graph: Graph, plans: Sequence[Plan], device_precision: Precision | None
) -> list[_Candidate]:
    """The plans that can be the fastest that holds, in order of latency.

    Where the device is to compute in int8 in every plan, what was predicted for another precision
    is no prediction.
    """
    drops = [
        None
        if each.prediction is None
        or (device_precision or each.device_precision) != each.device_precision
        else each.prediction.drop
        for each in plans
    ]
    found = []
    for place in front(drops):
        plan = plans[place]
        int8 = (device_precision or plan.device_precision) == "int8"
        if int8 and plan.spec is not None and plan.spec.encoder is not None:
            continue  # an encoder computes in float32
        found.append(_Candidate(plan, drops[place], LossyTransfer.of(graph, plan, int8)))
    return found


class _Clock:
    """Predicts the time of tries, and corrects itself by those that ended.

    Parameters
    ----------
    times
        What was measured before; None where nothing can be trained.
    """

    def __init__(self, times: TryTimes | None) -> None:
        self._times = times
        self._predicted = self._real = 0.0

    def outlook(self, plan: Plan, recipe: Recipe, plans: int, tries: int) -> Outlook:
        """Predict the try of a plan, where at most so many plans and trainings are left."""
        if self._times is None:
            return Outlook(plan, 0.0, 0.0)
        seconds = self._times.seconds(plan, recipe)
        if self._predicted:
            seconds *= self._real / self._predicted
        return Outlook(plan, seconds, seconds * max(1, min(plans, tries)))

    def tell(self, attempt: Attempt, recipe: Recipe) -> None:
        """Take the time of a try that was trained to the end; others say nothing of it."""
        if self._times is not None and attempt.epochs and not attempt.stopped:
            self._predicted += self._times.seconds(attempt.plan, recipe)
            self._real += attempt.seconds


class LossyTransfer(msgspec.Struct, frozen=True):
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
    def of(cls, graph: Graph, plan: Plan, int8: bool) -> LossyTransfer | None:
        """The one of a plan; None if the plan needs no training."""
        if plan.spec is None or plan.slicing_point is None or (plan.spec.lossless and not int8):
            return None
        crossing = graph.point(plan.slicing_point).crossing
        return cls(plan.spec, tuple(tensor.shape for tensor in crossing), int8)

    def as_harsh_as(self, other: LossyTransfer) -> bool:
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
            and (spec.encoder is None) == (least.encoder is None)
            and ENCODER_COEFFICIENTS.get(spec.encoder or "", 0)
            <= ENCODER_COEFFICIENTS.get(least.encoder or "", 0)
            and spec.codes <= least.codes
            and (spec.granularity, spec.scheme, spec.upsample)
            == (least.granularity, least.scheme, least.upsample)
        )


def _nothing_holds(
    attempts: Sequence[Attempt], uncut_score: float, accuracy_drop: float
) -> PrepareError:
    scores = "; ".join(f"{a.plan.label} at {a.plan.place}: {a.after:.2%}" for a in attempts)
    return PrepareError(
        f"no plan holds {uncut_score - accuracy_drop:.2%} (the uncut network has "
        f"{uncut_score:.2%}): {scores or 'there are none'}. Allow a larger drop, train longer, or "
        "try more"
    )
