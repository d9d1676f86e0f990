"""Ways that were trained for the harness: their bundles, and what they change in a profile.

`bench.accuracy run --keep` trains and scores them, and keeps each bundle in the folder of the
networks' weights (`--trained`). What is measured is that bundle, with the bytes of its training.
Learned Transfer Layers and shallow encoders are offered only if they are among these.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

import scissionlite as sl
from bench.accuracy.run import BUNDLES
from bench.end_to_end.networks import FLOOR
from scissionlite.graph.tensors import INPUT_POINT
from scissionlite.runtimes import load_slice
from scissionlite.scissiontl.leakage import MIN_IMAGES, distance_correlation
from scissionlite.scissiontl.profile import EncoderProfile, TransferProfile

Way = tuple[str, sl.TransferSpec]
"""A slicing point and the Transfer Layer there."""


class Trained(NamedTuple):
    """A bundle that was trained and scored."""

    bundle: sl.Bundle
    point: str
    spec: sl.TransferSpec
    accuracy: float
    sent_bytes: int

    @property
    def way(self) -> Way:
        """Where it is cut, and how."""
        return self.point, self.spec


def trained_ways(folder: Path, network: str | None, profile: sl.Profile) -> list[Trained]:
    """The trained bundles of a network that keep its accuracy within half a point."""
    found = []
    for path in sorted((folder / BUNDLES / str(network)).glob("*/manifest.json")):
        bundle = sl.Bundle.load(path.parent)
        point, spec = bundle.manifest.slicing_point, bundle.manifest.transfer
        accuracy = bundle.manifest.accuracy
        if point is None or spec is None or accuracy is None:
            continue
        name = INPUT_POINT if point.index < 0 else profile.blocks[point.index].name
        if accuracy.after >= accuracy.before - FLOOR:
            found.append(Trained(bundle, name, spec, accuracy.after, round(accuracy.sent_bytes)))
    return found


def with_trained(
    profile: sl.Profile, trained: Sequence[Trained], inputs: npt.NDArray[np.float32]
) -> sl.Profile:
    """A profile with the trained ways' bytes, and their leakage for these inputs.

    Training changes no time. Where a profile lacks a Transfer Layer, its time is that of the same
    one without an entropy coder, and what the coder adds where it codes as many elements: 2x2 with
    a quarter of the channels are as many as 4x4 with all.
    """
    ways = {each.way for each in trained}
    encoders = [e for e in profile.encoders if (INPUT_POINT, e.spec) not in ways]
    transfers = [t for t in profile.transfers if (profile.blocks[t.block].name, t.spec) not in ways]
    for each in trained:
        if each.point == INPUT_POINT:
            alike = [e for e in profile.encoders if _as_coded(e.spec) == _as_coded(each.spec)]
            encoders += [_encoder(e, each, inputs) for e in alike[:1]]
        elif (transfer := _transfer(profile, each)) is not None:
            transfers.append(transfer)
    return msgspec.structs.replace(profile, encoders=tuple(encoders), transfers=tuple(transfers))


def _as_coded(spec: sl.TransferSpec) -> sl.TransferSpec:
    """A spec without the number of levels, which changes no time."""
    return msgspec.structs.replace(spec, levels=None)


def _encoder(
    profiled: EncoderProfile, trained: Trained, inputs: npt.NDArray[np.float32]
) -> EncoderProfile:
    return msgspec.structs.replace(
        profiled,
        spec=trained.spec,
        nbytes=trained.sent_bytes,
        drop=None,
        leakage=_leakage(trained.bundle, inputs),
    )


def _leakage(bundle: sl.Bundle, inputs: npt.NDArray[np.float32]) -> float | None:
    """Distance correlation of inputs and what the device slice makes of them."""
    if len(inputs) < MIN_IMAGES:
        return None
    path = bundle.slice_path("device", "torchscript")
    run = load_slice(path, "torchscript", threads=1)
    sent = np.concatenate([np.asarray(run(x[None])[0]) for x in inputs])
    return distance_correlation(inputs, sent)


def _transfer(profile: sl.Profile, trained: Trained) -> TransferProfile | None:
    """The trained way in a profile; None where the profile lacks what it is timed by."""
    block = [each.name for each in profile.blocks].index(trained.point)
    costs = {t.spec: t for t in profile.transfers if t.block == block}
    spec = trained.spec
    plain = costs.get(msgspec.structs.replace(spec, entropy=None, levels=None))
    as_many = sl.TransferSpec(pool=4)
    bare = costs.get(as_many)
    coded = costs.get(msgspec.structs.replace(as_many, entropy=spec.entropy))
    if plain is None or bare is None or coded is None or spec.pool**2 * spec.reduction != 16:
        return None
    return TransferProfile(
        block,
        spec,
        plain.encode + max(coded.encode - bare.encode, 0.0),
        plain.decode + max(coded.decode - bare.decode, 0.0),
        trained.sent_bytes,
    )
