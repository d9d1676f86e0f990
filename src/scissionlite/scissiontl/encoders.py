"""Shallow encoders in a profile: made for the profile's frames, timed in turns, and not trained.

An encoder stands at the image, before the network (:mod:`..transfer_layer.image_encoder`). Its time
does not depend on its training. Bytes, leakage and drop are those that training starts from.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import torch
from msgspec import structs
from torch import nn

from scissionlite.errors import CodecError
from scissionlite.graph.graph import Graph
from scissionlite.scissiontl.codecs import ENTROPY, Packing
from scissionlite.scissiontl.drops import MOST_IMAGES
from scissionlite.scissiontl.importance import importance
from scissionlite.scissiontl.leakage import MIN_IMAGES, distance_correlation
from scissionlite.scissiontl.profile import EncoderProfile
from scissionlite.scissiontl.timing import Runner
from scissionlite.scissiontl.turns import Samples, pause
from scissionlite.transfer_layer import TransferSpec
from scissionlite.transfer_layer.image_encoder import Importance, image_coder
from scissionlite.transfer_layer.layers import TransferLayer
from scissionlite.transfer_layer.spec import ENCODER_COEFFICIENTS

ENCODERS = tuple(
    structs.replace(TransferSpec.shallow_encoder(size), entropy=entropy)
    for size, entropy in itertools.product(ENCODER_COEFFICIENTS, ENTROPY)
)
"""The shallow encoders to plan with: every size with every entropy coder."""


class EncoderTurns:
    """One size of shallow encoder: its two halves, and each entropy coder between them.

    Parameters
    ----------
    runner
        Compiles the halves.
    spec
        The shallow encoder; its entropy coder does not matter.
    images
        Images as the network takes them, float32 ``(N, C, H, W)``. The encoder is made for the
        first ``MOST_IMAGES``, and these take turns. From ``MIN_IMAGES`` on all tell the leakage.
    matters
        What errors in coefficients matter to the network.
    preprocess
        Makes an image from its frame: the encoder runs behind it, in a request.

    Raises
    ------
    CodecError
        If the images are not finite.
    ProfileError
        If the runtime cannot compile a half.
    """

    def __init__(
        self,
        runner: Runner,
        spec: TransferSpec,
        images: torch.Tensor,
        matters: Importance,
        preprocess: Sequence[Callable[[], object]],
    ) -> None:
        own = images[:MOST_IMAGES]
        encoder, decoder, quantization = image_coder(spec, own, matters)
        self.layer = TransferLayer(spec, quantization, halves=(encoder, decoder)).eval()
        with torch.no_grad():
            maps = encoder(images)
            received = self.layer.edge(self.layer.send(images), ())
        halves: list[tuple[nn.Module, torch.Tensor]] = [(encoder, own), (decoder, received)]
        self._runs = [
            runner.compiled(f"{spec.label} at the input", half.eval(), (x[:1],))
            for half, x in halves
        ]
        self._images = [x[None].numpy() for x in own]
        self._received = [x[None].numpy() for x in received[: len(own)]]
        self._preprocess = preprocess
        self._leakage = (
            distance_correlation(images.numpy(), received.numpy())
            if len(images) >= MIN_IMAGES
            else None
        )
        sent = [x[None].numpy() for x in maps[: len(own)]]
        self._packings = {
            each: Packing(each.packing, sent, quantization)
            for each in ENCODERS
            if each.encoder == spec.encoder
        }
        self.forget()

    @property
    def specs(self) -> list[TransferSpec]:
        """The encoder with each entropy coder."""
        return list(self._packings)

    def forget(self) -> None:
        """Forget all samples."""
        self._samples = [Samples() for _ in self._runs]
        for packing in self._packings.values():
            packing.forget()

    def turn(self, number: int) -> None:
        """Time the device's part after a pause, and the edge's after another."""
        which = number % len(self._images)
        encoder, decoder = self._runs
        pause()
        self._preprocess[which % len(self._preprocess)]()
        self._samples[0].time(partial(encoder, self._images[which]))
        packed = [packing.encode(which) for packing in self._packings.values()]
        pause()
        for packing, each in zip(self._packings.values(), packed, strict=True):
            packing.decode(each)
        self._samples[1].time(partial(decoder, self._received[which]))

    @property
    def profiles(self) -> list[EncoderProfile]:
        """The medians, for each entropy coder."""
        encoder, decoder = (samples.median for samples in self._samples)
        costs = {spec: packing.profile for spec, packing in self._packings.items()}
        return [
            EncoderProfile(
                spec=spec,
                encoder=encoder,
                encode=cost.encode,
                nbytes=round(cost.nbytes),
                decode=cost.decode,
                decoder=decoder,
                leakage=self._leakage,
            )
            for spec, cost in costs.items()
        ]


def shallow_encoders(
    graph: Graph,
    runner: Runner,
    inputs: Sequence[tuple[torch.Tensor, ...]],
    preprocess: Sequence[Callable[[], object]],
) -> list[EncoderTurns]:
    """Make a shallow encoder of each size; none where the network's input is no image.

    Parameters
    ----------
    graph
        The captured network.
    runner
        Compiles the encoders.
    inputs
        The network's inputs of some frames; none where it takes no image.
    preprocess
        Of each frame, what makes it the network's input.

    Raises
    ------
    ProfileError
        If the runtime cannot compile one.
    """
    if not inputs or inputs[0][0].dtype != torch.float32:
        return []
    images = torch.cat([each for (each,) in inputs])
    found: list[torch.Tensor] = []

    def matters(filters: torch.Tensor) -> torch.Tensor:
        # All sizes choose from the same filters.
        if not found:
            found.append(importance(graph.module, images[:MOST_IMAGES], filters))
        return found[0]

    turns: list[EncoderTurns] = []
    for size in ENCODER_COEFFICIENTS:
        spec = TransferSpec.shallow_encoder(size)
        if not spec.valid_for(images.shape):
            continue
        try:
            turns.append(EncoderTurns(runner, spec, images, matters, preprocess))
        except CodecError:  # an input that is not finite: no coder can stand there
            return []
    return turns
