"""The second cut of a plan with three tiers: the edge slice becomes a network of two slices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import fx

from scissionlite.errors import PrepareError
from scissionlite.graph.analysis import multiplications
from scissionlite.graph.graph import Graph, SlicingPoint
from scissionlite.preprocessor.inserter import SlicedNetwork, transfer_layers
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.scissiontl.plans import Plan, SecondCut

Inputs = Iterable[tuple[torch.Tensor, ...]]


def check_second_cut(graph: Graph, plan: Plan) -> None:
    """Check that the second cut of a plan, if it has one, comes behind the first.

    Raises
    ------
    PrepareError
        If it does not, or if what crosses does not have the batch as its first dimension.
    """
    if plan.second is None:
        return
    if plan.spec is not None and plan.spec.encoder is not None:
        raise PrepareError("a shallow encoder goes with two tiers, and the plan has three")
    first, second = graph.point(str(plan.slicing_point)), graph.point(plan.second.slicing_point)
    if second.index <= first.index:
        raise PrepareError(
            f"the second cut, at {second.name}, must come behind the first, at {first.name}"
        )
    batch = graph.inputs[0].shape[:1]
    if any(tensor.shape[:1] != batch for tensor in (*first.crossing, *second.crossing)):
        raise PrepareError(
            f"three tiers need the batch as the first dimension of all that crosses at "
            f"{first.name} and {second.name}: take other slicing points"
        )


def cut_again(
    graph: Graph,
    network: SlicedNetwork,
    first: SlicingPoint,
    second: SecondCut,
    make_inputs: Callable[[], Inputs | None],
    recipe: Recipe,
) -> SlicedNetwork:
    """Cut a network's edge slice in two, with a Transfer Layer between them; changes the network.

    Parameters
    ----------
    graph
        The captured network.
    network
        That with its first Transfer Layer, not trained yet.
    first, second
        The two cuts.
    make_inputs
        Gives batches of the network's inputs, to calibrate with; or None.
    recipe
        How scales are found, and what is going to learn.

    Returns
    -------
    SlicedNetwork
        The new edge slice: middle slice, Transfer Layer and last slice. It shares the weights of
        the one before.

    Raises
    ------
    PrepareError
        As :func:`.inserter.insert`.
    """
    end = graph.point(second.slicing_point)
    whole = network.edge_slice
    middle = fx.GraphModule(whole, graph.between(first, end).graph)
    last = fx.GraphModule(whole, graph.split(end)[1].graph)
    with torch.no_grad():
        arriving = tuple(network.transfer(network.features(*graph.example)))
    layers = transfer_layers(
        end,
        second.spec,
        middle,
        arrived(network, make_inputs()),
        recipe,
        multiplications(middle, arriving),
    )
    learns = recipe.train_edge_slice
    network.edge_slice = SlicedNetwork(
        middle, layers, last, train_device_slice=learns, train_edge_slice=learns
    )
    # A weight that the device slice uses, too, is frozen where that is.
    network.device_slice.requires_grad_(network.train_device_slice)
    return network.edge_slice


def arrived(
    network: SlicedNetwork, batches: Inputs | None
) -> Iterator[tuple[torch.Tensor, ...]] | None:
    """Compute the edge's inputs from batches of the network's inputs; None for None."""
    if batches is None:
        return None
    return (_transferred(network, inputs) for inputs in batches)


def _transferred(
    network: SlicedNetwork, inputs: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return tuple(network.transfer(network.features(*inputs)))
