"""Choosing: the fastest plan whose accuracy holds a floor, found by trying."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from scissionlite.bundle import Accuracy, Bundle
from scissionlite.errors import PrepareError
from scissionlite.graph.graph import Graph
from scissionlite.images import Preprocessing
from scissionlite.preprocessor import trainer
from scissionlite.preprocessor.data import Data, ImageFolder, open_data
from scissionlite.preprocessor.pipeline import prepare
from scissionlite.preprocessor.tasks import CLASSIFICATION, Task
from scissionlite.scissiontl.plans import Plan
from scissionlite.transfer_layer import TransferSpec


class Attempt(msgspec.Struct, frozen=True):
    """A plan that was tried: what it scored, whether that holds the floor, and how long it took.

    Attributes
    ----------
    plan
        What was prepared.
    accuracy
        As in its bundle.
    held
        Whether the score is at or above the floor.
    seconds
        That calibrating, training, exporting and measuring took.
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
    preprocessing: Preprocessing | None = None,
    task: Task = CLASSIFICATION,
    tries: int = 5,
    on_try: Callable[[Plan], None] = lambda plan: None,
    **options: Any,
) -> Choice:
    """Prepare the most promising plans in order of predicted latency; keep the first that holds.

    As plans come in order, the first whose score is no more than ``accuracy_drop`` below the uncut
    network's is the fastest of them. What cannot do better than what has failed is passed over: the
    same or a harsher Transfer Layer where a feature map of the same shape crosses. Once ``tries``
    of them were trained, only plans are left that need no training: a float32 split, images, or
    running locally, which always holds.

    Parameters
    ----------
    graph
        The captured network.
    plans
        Ranked, best first (:func:`scissionlite.plan`).
    accuracy_drop
        Most that the score may fall, 0 to 1.
    validate
        Data on which every plan is scored. What is chosen by them fits them a little better than
        other data: keep some back to report.
    out
        Folder of the bundle that is kept.
    preprocessing, task
        As :func:`scissionlite.prepare`.
    tries
        Most plans to train.
    on_try
        Called with every plan before it is prepared.
    options
        Further arguments of :func:`scissionlite.prepare`.

    Raises
    ------
    PrepareError
        If no plan holds the floor (the message tells what each scored), or as
        :func:`scissionlite.prepare`.
    """
    if not 0 <= accuracy_drop <= 1:
        raise PrepareError(f"accuracy_drop={accuracy_drop!r} must be 0 to 1")
    data = open_data(validate, preprocessing, kind=ImageFolder)
    uncut = trainer.evaluate(graph.module, data, task=task)
    attempts: list[Attempt] = []
    failed: list[tuple[list[tuple[int, ...]], TransferSpec]] = []
    folder = Path(out)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for plan in plans:
        trains = plan.spec is not None and not plan.spec.lossless
        shapes = _crossing(graph, plan)
        if trains and (len(failed) >= tries or _hopeless(shapes, plan, failed)):
            continue
        on_try(plan)
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-try-", dir=folder.parent) as tried:
            bundle = prepare(
                graph,
                plan,
                validate=data,
                out=Path(tried) / "bundle",
                preprocessing=preprocessing,
                task=task,
                uncut_score=uncut,
                checkpoint=folder.with_name(f".{folder.name}-try-{len(attempts)}.checkpoint"),
                **options,
            )
            accuracy = bundle.manifest.accuracy
            assert accuracy is not None  # as there are validation data
            held = accuracy.after >= accuracy.before - accuracy_drop
            attempts.append(Attempt(plan, accuracy, held, time.perf_counter() - started))
            if held:
                files = {entry.file: bundle.path / entry.file for entry in bundle.files}
                return Choice(Bundle.write(folder, bundle.manifest, files), tuple(attempts))
        if trains and plan.spec is not None:
            failed.append((shapes, plan.spec))
    told_scores = "; ".join(
        f"{a.plan.label} at {a.plan.place}: {a.accuracy.after:.2%}" for a in attempts
    )
    raise PrepareError(
        f"no plan holds {uncut - accuracy_drop:.2%} (the uncut network has {uncut:.2%}): "
        f"{told_scores or 'there are none'}. Allow a larger drop, train longer, or try more"
    )


def _crossing(graph: Graph, plan: Plan) -> list[tuple[int, ...]]:
    if plan.slicing_point is None:
        return []
    return [tensor.shape for tensor in graph.point(plan.slicing_point).crossing]


def _hopeless(
    shapes: list[tuple[int, ...]],
    plan: Plan,
    failed: Sequence[tuple[list[tuple[int, ...]], TransferSpec]],
) -> bool:
    assert plan.spec is not None  # asked of splits only
    return any(there == shapes and _harsher(plan.spec, spec) for there, spec in failed)


def _harsher(spec: TransferSpec, than: TransferSpec) -> bool:
    """Whether a Transfer Layer keeps no more of anything; entropy coding loses nothing."""
    return (
        spec.pool_kind == than.pool_kind
        and spec.pool >= than.pool
        and spec.reduction >= than.reduction
        and spec.codes <= than.codes
        and (spec.granularity, spec.scheme, spec.upsample)
        == (than.granularity, than.scheme, than.upsample)
    )
