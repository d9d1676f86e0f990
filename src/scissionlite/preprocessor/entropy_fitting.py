"""Entropy tables of a network's Transfer Layers, from the codes of its training inputs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from msgspec import structs

from scissionlite.errors import PrepareError
from scissionlite.preprocessor.inserter import SlicedNetwork
from scissionlite.transfer_layer import EntropyTables, Packed, encode, fit_tables

TABLE_INPUTS = 512
"""Most inputs that tables are made from."""


def entropy_tables(
    network: SlicedNetwork, batches: Iterable[tuple[torch.Tensor, ...]] | None
) -> list[EntropyTables | None]:
    """Make the tables of each Transfer Layer that needs them, as it is after training.

    Parameters
    ----------
    network
        The trained network.
    batches
        Batches of inputs; used until they hold ``TABLE_INPUTS`` inputs.

    Returns
    -------
    list of EntropyTables or None
        For each tensor that crosses; None where its Transfer Layer has no tables.

    Raises
    ------
    PrepareError
        If there are no inputs, and a Transfer Layer needs tables.
    """
    layers = network.layers
    needing = [i for i, layer in enumerate(layers) if layer.spec.entropy == "ans"]
    if not needing:
        return [None] * len(layers)
    packed: dict[int, list[Packed]] = {i: [] for i in needing}
    inputs = 0
    for batch in batches or ():
        with torch.no_grad():
            features = network.features(*batch)
            for i in needing:
                spec = structs.replace(layers[i].spec.packing, entropy=None)
                sent = layers[i].encoder(features[i].float()).contiguous().numpy()
                packed[i].append(encode(sent, spec, layers[i].quantization))
        inputs += len(batch[0])
        if inputs >= TABLE_INPUTS:
            break
    if not inputs:
        raise PrepareError(
            f"{layers[needing[0]].spec.label} needs training data to make its tables: give train= "
            "or unlabelled="
        )
    return [fit_tables(packed[i]) if i in packed else None for i in range(len(layers))]
