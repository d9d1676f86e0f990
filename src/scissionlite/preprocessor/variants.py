"""Variants: the ways to split a network that one bundle holds, each with its Transfer Layer.

All share the device slice, which is frozen. A slicing point behind the first one adds a slice that
the device runs after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from msgspec import structs
from torch import nn

from scissionlite.errors import PrepareError
from scissionlite.graph.graph import Graph, SlicingPoint
from scissionlite.graph.tensors import TensorInfo
from scissionlite.manifest import (
    MAX_VARIANTS,
    CrossingTensor,
    NextHop,
    Role,
    SlicingPointInfo,
    Variant,
)
from scissionlite.preprocessor import trainer
from scissionlite.preprocessor.data import input_batches, loader_of
from scissionlite.preprocessor.entropy_fitting import entropy_tables
from scissionlite.preprocessor.floor import Floor
from scissionlite.preprocessor.inserter import SlicedNetwork, insert
from scissionlite.preprocessor.kept_encoder import KeptEncoder
from scissionlite.preprocessor.opened_data import OpenedData
from scissionlite.preprocessor.quantized import Int8Slices
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.preprocessor.second_cut import arrived, cut_again
from scissionlite.preprocessor.tasks import Task
from scissionlite.preprocessor.teacher import Teacher
from scissionlite.scissiontl.plans import Plan
from scissionlite.transfer_layer import EntropyTables, TransferSpec
from scissionlite.transfer_layer.layers import TransferLayer

Modules = dict[Role, tuple[nn.Module, tuple[torch.Tensor, ...]]]
"""The modules to export, by their role, with examples of their inputs."""


@dataclass(frozen=True)
class Split:
    """A network with its Transfer Layer, retrained, and the manifest's description of it.

    With three tiers, the network's edge slice has the second Transfer Layer.
    """

    network: SlicedNetwork
    variant: Variant
    next_hop: NextHop | None = None


def split_all(
    graph: Graph,
    plan: Plan,
    variants: Sequence[TransferSpec | Plan],
    data: OpenedData,
    task: Task,
    recipe: Recipe,
    *,
    int8: Int8Slices | None,
    kept_encoder: KeptEncoder | None,
    floor: Floor | None,
    checkpoint: Path,
    progress: bool,
) -> list[Split]:
    """Insert the Transfer Layers of a plan and its variants, and retrain the network with each.

    Where there is a floor, a calibrated network that reaches it is not trained.

    Parameters and errors as :func:`.pipeline.prepare`. With ``int8`` the device's slices are
    written first, and the networks learn from their features.

    Returns
    -------
    list of Split
        That of the plan first. None where the plan does not split the network.
    """
    plans = _plans(graph, plan, variants, recipe)
    points = sorted({graph.point(str(each.slicing_point)).index for each in plans})
    splits: list[Split] = []
    if int8 is not None:
        int8.write_device_slices(points, [_device_role(i) for i in range(len(points))])
    for number, each in enumerate(plans):
        cut = graph.point(str(each.slicing_point))
        assert each.spec is not None  # Plan has checked it
        own = checkpoint.with_name(f"{checkpoint.name}-{number}") if number else checkpoint
        shared = next((s for s in splits if _same_end(recipe, cut, each.spec, s)), None)
        named = each.spec.name if cut.index == points[0] else f"{each.spec.name}@{cut.name}"
        edges = len({split.variant.edge for split in splits})
        variant = Variant(
            name=named,
            slicing_point=SlicingPointInfo(cut.index, cut.after, cut.before),
            crossing=(),
            transfer=each.spec,
            device=tuple(map(_device_role, range(points.index(cut.index) + 1))),
            edge=shared.variant.edge if shared else f"edge-{edges + 1}" if edges else "edge",
        )
        if data.train is None and not _lossless(each):
            raise PrepareError(
                f"{each.label} changes what crosses, so the network has to be retrained with it: "
                "give train= or unlabelled="
            )
        network = _inserted(graph, cut, each.spec, data, recipe, shared, int8, kept_encoder)
        lossless = _lossless(each) and int8 is None
        if each.second is not None:
            cut_again(graph, network, cut, each.second, lambda: _inputs(data, recipe), recipe)
        learns = shared is None and not lossless and data.train is not None and recipe.epochs > 0
        if learns and (floor is None or not floor.holds(network)):
            assert data.train is not None
            distil = not data.labelled or recipe.distillation > 0
            training = trainer.train(
                network,
                data.train,
                recipe,
                task=task,
                teacher=Teacher(graph, cut.name) if distil else None,
                labelled=data.labelled,
                floor=floor,
                checkpoint=own,
                progress=progress,
                description=f"retraining with {each.spec.label} after {cut.name}"
                + (" in int8" if int8 is not None else ""),
            )
            variant = structs.replace(variant, training=training)
        else:
            network.settle()
        if kept_encoder is None:
            tables = entropy_tables(network, _inputs(data, recipe))
        else:
            tables = [kept_encoder.crossing.tables]
        crossing = tuple(map(_crossing_tensor, cut.crossing, network.layers, tables))
        variant = structs.replace(variant, crossing=crossing)
        splits.append(Split(network, variant, _next_hop(graph, each, network, data, recipe)))
    return splits


def modules_of(
    graph: Graph, splits: Sequence[Split], *, uncut: bool, device_written: bool
) -> Modules:
    """The modules to export: each slice once, and the uncut network if asked.

    Device slices that are written already, in int8 or a kept encoder's, are not among them.
    """
    modules: Modules = {}
    if uncut:
        modules["network"] = (graph.module, graph.example)
    previous: Split | None = None
    for split in sorted(splits, key=lambda each: len(each.variant.device)):
        role = split.variant.device[-1]
        if device_written:
            pass
        elif previous is None:
            modules[role] = (split.network.deployed_device_slice(), graph.example)
        elif role not in modules:
            start, end = previous.variant.slicing_point.index, split.variant.slicing_point.index
            with torch.no_grad():
                features = previous.network.features(*graph.example)
            entering = tuple(x.clone() for x in features)
            modules[role] = (graph.between(start, end), entering)
        if split.variant.edge not in modules:
            with torch.no_grad():
                arriving = split.network.arriving(*graph.example)
            edge = split.network.deployed_edge_slice()
            modules[split.variant.edge] = (edge, tuple(x.clone() for x in arriving))
        if isinstance(network := split.network.edge_slice, SlicedNetwork):
            with torch.no_grad():
                received = split.network.transfer(split.network.features(*graph.example))
                arriving = network.arriving(*received)
            last = network.deployed_edge_slice()
            modules["cloud"] = (last, tuple(x.clone() for x in arriving))
        previous = split
    return modules


def _plans(
    graph: Graph, plan: Plan, variants: Sequence[TransferSpec | Plan], recipe: Recipe
) -> list[Plan]:
    """The plan and its variants as plans; none where nothing is split."""
    if plan.kind != "split":
        if variants:
            raise PrepareError(f"variants go with a plan that splits, and this is {plan.label}")
        return []
    plans = [plan]
    for each in variants:
        if isinstance(each, TransferSpec):
            each = Plan(kind="split", slicing_point=plan.slicing_point, spec=each)
        if each.kind != "split" or each.second is not None:
            raise PrepareError(f"a variant is a split in two tiers, not {each.label}")
        plans.append(each)
    if len(plans) == 1:
        return plans
    if plan.second is not None:
        raise PrepareError("variants go with two tiers, and the plan has three")
    if len(plans) > MAX_VARIANTS:
        raise PrepareError(f"{len(plans)} variants: a bundle holds at most {MAX_VARIANTS}")
    if recipe.train_device_slice:
        raise PrepareError(
            "variants share the device slice, so it keeps its weights: leave train_device_slice off"
        )
    first = graph.point(str(plan.slicing_point))
    seen: set[tuple[int, TransferSpec]] = set()
    for each in plans:
        assert each.spec is not None  # Plan has checked it
        cut = graph.point(str(each.slicing_point))
        if each.spec.learned:
            raise PrepareError(
                f"{each.spec.label} has a part in the device slice, which variants share: take "
                "Transfer Layers that are not learned"
            )
        if cut.index < first.index:
            raise PrepareError(
                f"variant {each.label} cuts at {cut.name}, before the plan's {first.name}: give "
                "the plan with the earliest slicing point as the plan, and the others as variants"
            )
        if (cut.index, each.spec) in seen:
            raise PrepareError(f"{each.label} at {cut.name} is given twice")
        for other in (spec for index, spec in seen if index == cut.index):
            if other.entropy and each.spec.entropy and _same_codes(each.spec, other):
                raise PrepareError(
                    f"{other.label} and {each.label} at {cut.name} send the same but for the "
                    "entropy coder, and a request does not tell them apart: take one of them"
                )
        seen.add((cut.index, each.spec))
    return plans


def _same_end(recipe: Recipe, cut: SlicingPoint, spec: TransferSpec, other: Split) -> bool:
    """Whether a Transfer Layer can have the edge slice of another split.

    It can where the slice was trained for one that loses as much or more, and pools alike. Without
    training, every slice after a slicing point is the same.
    """
    trained = other.variant.transfer
    if other.variant.slicing_point.index != cut.index:
        return False
    alike = (spec.pool, spec.pool_kind, spec.upsample) == (
        trained.pool,
        trained.pool_kind,
        trained.upsample,
    )
    return not recipe.epochs or (alike and spec.codes >= trained.codes)


def _same_codes(spec: TransferSpec, other: TransferSpec) -> bool:
    """Whether two Transfer Layers send the same, but for the entropy coder."""
    first, second = (structs.replace(x, entropy=None, entropy_level=1) for x in (spec, other))
    return first == second


def _inserted(
    graph: Graph,
    cut: SlicingPoint,
    spec: TransferSpec,
    data: OpenedData,
    recipe: Recipe,
    shared: Split | None,
    int8: Int8Slices | None,
    kept_encoder: KeptEncoder | None,
) -> SlicedNetwork:
    """The network with a calibrated Transfer Layer, and the edge slice of another if shared."""
    network = insert(
        graph,
        cut,
        spec,
        calibration=_inputs(data, recipe),
        recipe=recipe,
        int8_device_slice=None if int8 is None else int8.device_slice(cut.index),
        kept_encoder=kept_encoder,
    )
    if shared is not None:
        network.edge_slice = shared.network.edge_slice
        trained = shared.variant.transfer
        if _same_codes(spec, trained):
            # The same codes: the scales that were learned are right for them.
            specs = [layer.spec for layer in network.layers]
            scales = [tensor.quantization for tensor in shared.variant.crossing]
            network.transfer_layers = nn.ModuleList(map(TransferLayer, specs, scales))
    return network


def _lossless(plan: Plan) -> bool:
    """Whether what crosses arrives as it was, on both hops if there are two."""
    second = plan.second is None or plan.second.spec.lossless
    return second and plan.spec is not None and plan.spec.lossless


def _next_hop(
    graph: Graph, plan: Plan, network: SlicedNetwork, data: OpenedData, recipe: Recipe
) -> NextHop | None:
    """The manifest's description of the second hop of a trained network; None with two tiers."""
    edge = network.edge_slice
    if plan.second is None or not isinstance(edge, SlicedNetwork):
        return None
    cut = graph.point(plan.second.slicing_point)
    tables = entropy_tables(edge, arrived(network, _inputs(data, recipe)))
    return NextHop(
        slicing_point=SlicingPointInfo(cut.index, cut.after, cut.before),
        crossing=tuple(map(_crossing_tensor, cut.crossing, edge.layers, tables)),
        transfer=plan.second.spec,
    )


def _device_role(position: int) -> Role:
    return f"device-{position + 1}" if position else "device"


def _inputs(data: OpenedData, recipe: Recipe) -> Iterator[tuple[torch.Tensor, ...]] | None:
    """Batches of training inputs in an order that the seed fixes; None without such data."""
    if data.train is None:
        return None
    order = torch.Generator().manual_seed(recipe.seed)
    torch.manual_seed(recipe.seed)  # the user's own data may draw from it
    return iter(input_batches(loader_of(data.train, recipe.batch_size, generator=order)))


def _crossing_tensor(
    tensor: TensorInfo, layer: TransferLayer, tables: EntropyTables | None
) -> CrossingTensor:
    """The manifest's description of a tensor that crosses."""
    return CrossingTensor(
        tensor.name,
        layer.spec.crossing_shape(tensor.shape),
        tensor.dtype,
        transfer=layer.spec.packing,
        quantization=layer.quantization,
        feature_shape=tensor.shape if layer.spec.learned else None,
        tables=tables,
    )
