"""Inserter: puts the Transfer Layer into the network at a slicing point (arXiv 2105.02019)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import getitem

import torch
from torch import fx, nn

from scissionlite.errors import CodecError, PrepareError
from scissionlite.graph.analysis import flat, multiplications, placeholders
from scissionlite.graph.graph import Graph, SlicingPoint
from scissionlite.graph.tensors import INPUT_POINT
from scissionlite.preprocessor.kept_encoder import KeptEncoder
from scissionlite.preprocessor.rate import Rate
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.scissiontl.importance import IMPORTANCE_INPUTS, importance
from scissionlite.transfer_layer import TransferSpec
from scissionlite.transfer_layer.calibration import calibrated_layer
from scissionlite.transfer_layer.image_encoder import image_coder
from scissionlite.transfer_layer.layers import TransferLayer

CALIBRATION_INPUTS = 256
"""Most inputs that calibration uses."""

_CALIBRATION_BYTES = 1 << 29
"""Most bytes of features that calibration uses."""


class SlicedNetwork(nn.Module):
    """Device slice, Transfer Layers and edge slice, as one network that can be retrained.

    Attributes
    ----------
    device_slice, edge_slice : torch.nn.Module
        The two slices; copies, so the captured network keeps its weights. With three tiers the
        edge slice is such a network itself: its device slice is the middle.
    transfer_layers : torch.nn.ModuleList of TransferLayer
        The Transfer Layers between them, one per tensor that crosses.
    train_device_slice, train_edge_slice : bool
        Whether the slices learn. A frozen slice also keeps its batch statistics. So several slicing
        points can share one device network.
    quantized : bool
        Whether the device slice is an int8 one, which does not learn and does not compute what the
        uncut network does.
    """

    def __init__(
        self,
        device_slice: nn.Module,
        transfer_layers: Sequence[TransferLayer],
        edge_slice: nn.Module,
        *,
        train_device_slice: bool = False,
        train_edge_slice: bool = True,
        quantized: bool = False,
    ) -> None:
        super().__init__()
        self.device_slice = device_slice
        self.transfer_layers = nn.ModuleList(transfer_layers)
        self.edge_slice = edge_slice
        self.train_device_slice = train_device_slice
        self.train_edge_slice = train_edge_slice
        self.quantized = quantized
        self.rate: Rate | None = None
        # The device slice last: where it is frozen, so are the weights that both slices share.
        self.edge_slice.requires_grad_(train_edge_slice)
        self.device_slice.requires_grad_(train_device_slice)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Answer as device and edge will together: one tensor, or a tuple of several."""
        return self.answer(self.features(*inputs))

    def features(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Run the device slice: the features at the slicing point, before the Transfer Layers."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.train_device_slice):
            return flat(self.device_slice(*inputs))

    def answer(self, features: Sequence[torch.Tensor]) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Answer from the features at the slicing point."""
        answer: torch.Tensor | tuple[torch.Tensor, ...] = self.edge_slice(*self.transfer(features))
        return answer

    def transfer(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Run the Transfer Layers on features, in float32 under any autocast."""
        return self.receive(self.send(features), features)

    def send(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Run the device's halves: what crosses, in float32 under any autocast."""
        with torch.autocast(features[0].device.type, enabled=False):
            pairs = zip(self.layers, features, strict=True)
            return [layer.send(tensor.float()) for layer, tensor in pairs]

    def receive(
        self, sent: Sequence[torch.Tensor], features: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Run the edge's halves on what :meth:`send` has made of the features."""
        with torch.autocast(sent[0].device.type, enabled=False):
            triples = zip(self.layers, sent, features, strict=True)
            return [layer.receive(each, tensor) for layer, each, tensor in triples]

    @property
    def layers(self) -> list[TransferLayer]:
        """The Transfer Layers in order."""
        return list(self.transfer_layers)  # type: ignore[arg-type]  # ModuleList knows Modules only

    def deployed_device_slice(self) -> nn.Module:
        """The device slice for deployment, with the encoders of learned Transfer Layers."""
        return _with_encoders(self.device_slice, [each.encoder for each in self.layers]).eval()

    def deployed_edge_slice(self) -> nn.Module:
        """The edge slice for deployment, with the decoders of learned Transfer Layers.

        With three tiers it is the middle slice.
        """
        own = self.edge_slice
        if isinstance(own, SlicedNetwork):
            own = own.deployed_device_slice()
        return _with_decoders([each.decoder for each in self.layers], own).eval()

    def encoders(self) -> nn.Module:
        """The encoders of learned Transfer Layers alone, from the features at the slicing point."""
        return _side_by_side([each.encoder for each in self.layers]).eval()

    def arriving(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute the inputs of the deployed edge slice from inputs of the network."""
        pairs = zip(self.layers, self.features(*inputs), strict=True)
        sent = [(layer, layer.encoder(x)) for layer, x in pairs]
        return tuple(layer.edge(layer.device(x), tuple(x.shape[-2:])) for layer, x in sent)

    def settle(self) -> None:
        """Make constants of the learned scales, drop the rate, switch to evaluation mode."""
        for layer in self.layers:
            layer.settle()
        if isinstance(self.edge_slice, SlicedNetwork):
            self.edge_slice.settle()
        self.rate = None
        self.eval()

    def train(self, mode: bool = True) -> SlicedNetwork:
        """Switch to training mode, except for a slice that is frozen."""
        super().train(mode)
        if not self.train_device_slice:
            self.device_slice.eval()
        if not self.train_edge_slice:
            self.edge_slice.eval()
        return self


def _with_encoders(device_slice: nn.Module, encoders: Sequence[nn.Module]) -> nn.Module:
    """Put the encoders of learned Transfer Layers behind a device slice."""
    if all(isinstance(each, nn.Identity) for each in encoders):
        return device_slice
    # One placeholder per input, as torch.export has no names for "*inputs".
    chain = fx.Graph()
    entries = [chain.placeholder(f"x{i}") for i in range(_arguments(device_slice))]
    answer = chain.call_module("device_slice", tuple(entries))
    features = [answer]
    if len(encoders) > 1:
        features = [chain.call_function(getitem, (answer, i)) for i in range(len(encoders))]
    sent = [chain.call_module(f"encoders.{i}", (x,)) for i, x in enumerate(features)]
    chain.output(sent[0] if len(sent) == 1 else tuple(sent))
    parts = nn.Module()
    parts.device_slice, parts.encoders = device_slice, nn.ModuleList(encoders)
    return fx.GraphModule(parts, chain)


def _side_by_side(modules: Sequence[nn.Module]) -> nn.Module:
    """One module for several, each with an input and an output of its own."""
    chain = fx.Graph()
    entries = [chain.placeholder(f"x{i}") for i in range(len(modules))]
    answers = [chain.call_module(f"parts.{i}", (x,)) for i, x in enumerate(entries)]
    chain.output(answers[0] if len(answers) == 1 else tuple(answers))
    holder = nn.Module()
    holder.parts = nn.ModuleList(modules)
    return fx.GraphModule(holder, chain)


def _with_decoders(decoders: Sequence[nn.Module], edge_slice: nn.Module) -> nn.Module:
    """Put the decoders of learned Transfer Layers before an edge slice."""
    if all(isinstance(each, nn.Identity) for each in decoders):
        return edge_slice
    chain = fx.Graph()
    arrived = [chain.placeholder(f"x{i}") for i in range(len(decoders))]
    restored = [chain.call_module(f"decoders.{i}", (x,)) for i, x in enumerate(arrived)]
    chain.output(chain.call_module("edge_slice", tuple(restored)))
    parts = nn.Module()
    parts.edge_slice, parts.decoders = edge_slice, nn.ModuleList(decoders)
    return fx.GraphModule(parts, chain)


def _arguments(module: nn.Module) -> int:
    assert isinstance(module, fx.GraphModule)  # Graph.split gives nothing else
    return len(placeholders(module.graph))


def insert(
    graph: Graph,
    point: SlicingPoint | str | int,
    spec: TransferSpec,
    *,
    calibration: Iterable[tuple[torch.Tensor, ...]] | None = None,
    recipe: Recipe | None = None,
    int8_device_slice: nn.Module | None = None,
    kept_encoder: KeptEncoder | None = None,
) -> SlicedNetwork:
    """Insert a Transfer Layer.

    Parameters
    ----------
    graph
        The captured network.
    point
        Where to cut.
    spec
        The Transfer Layer. It is adapted to the shape of each tensor that crosses
        (:meth:`scissionlite.TransferSpec.adapted_to`).
    calibration
        Batches of inputs; needed for int8, int4 and learned Transfer Layers. Batches are used until
        they hold ``CALIBRATION_INPUTS`` inputs.
    recipe
        How scales are found, and what is going to learn.
    int8_device_slice
        The device slice in int8, to stand for the network's own. It does not learn.
    kept_encoder
        The shallow encoder of a bundle, which does not learn.

    Raises
    ------
    PrepareError
        If the spec is not valid for any tensor that crosses at this point, calibration data are
        needed and missing, or a learned Transfer Layer needs too many multiplications.
    """
    recipe = recipe or Recipe()
    cut = graph.point(point)
    # One copy for both, so that a weight used on either side of the cut stays one weight.
    device_slice, edge_slice = copy.deepcopy(graph.split(cut))
    layers = transfer_layers(
        cut,
        spec,
        int8_device_slice or device_slice,
        calibration,
        recipe,
        multiplications(device_slice, graph.example),
        lambda own, seen: _encoder_layer(own, seen, edge_slice, recipe, kept_encoder),
    )
    return SlicedNetwork(
        int8_device_slice or device_slice,
        layers,
        edge_slice,
        train_device_slice=recipe.train_device_slice,
        train_edge_slice=recipe.train_edge_slice,
        quantized=int8_device_slice is not None,
    )


def transfer_layers(
    cut: SlicingPoint,
    spec: TransferSpec,
    sender: Callable[..., object],
    calibration: Iterable[tuple[torch.Tensor, ...]] | None,
    recipe: Recipe,
    sender_multiplications: float,
    encoder_layer: Callable[[TransferSpec, torch.Tensor], TransferLayer] | None = None,
) -> list[TransferLayer]:
    """Make the calibrated Transfer Layers of a cut.

    Parameters
    ----------
    cut
        Where they stand.
    spec, recipe
        As :func:`insert` takes them.
    sender
        The slice before them.
    calibration
        Batches of the sender's inputs.
    sender_multiplications
        Of the sender for the example, of which learned ones may use a share.
    encoder_layer
        Makes a shallow encoder from its spec and images.

    Raises
    ------
    PrepareError
        As :func:`insert`.
    """
    shapes = [tensor.shape for tensor in cut.crossing]
    if not any(map(spec.valid_for, shapes)):
        raise PrepareError(
            f"{spec.label} cannot stand {cut}: what crosses has shape "
            f"{', '.join(map(str, shapes))}, and pooling needs (batch, channels, height, width) "
            "with height and width of 2 or more, scales for each channel and nhwc three "
            "dimensions, fewer channels as many as they are divided by"
        )
    if (cut.name == INPUT_POINT and cut.index < 0) != (spec.encoder is not None):
        raise PrepareError(
            f"{spec.label} cannot stand {cut}: a shallow encoder stands at the slicing point "
            f"{INPUT_POINT!r}, and nothing else does (TransferSpec.shallow_encoder(), --encoder)"
        )
    layers = []
    specs = [spec.adapted_to(shape) for shape in shapes]
    features: list[torch.Tensor] | list[None] = [None] * len(specs)
    if spec.quantized or spec.learned:
        if calibration is None:
            raise PrepareError(
                f"{spec.label} needs training data to calibrate its scale: give train= or "
                "unlabelled="
            )
        features = _features(sender, calibration, len(specs))
    # Several learned Transfer Layers share the multiplications that the device may spend.
    learned = sum(each.learned for each in specs)
    budget = recipe.encoder_share * sender_multiplications
    for own, shape, seen in zip(specs, shapes, features, strict=True):
        try:
            if own.encoder is not None:
                assert seen is not None
                assert encoder_layer is not None  # it stands at the input, as a first cut
                layers.append(encoder_layer(own, seen))
            else:
                layers.append(
                    calibrated_layer(
                        own,
                        shape,
                        seen,
                        method=recipe.calibration,
                        learn_scales=recipe.learn_scales,
                        most_multiplications=budget / max(1, learned),
                    )
                )
        except CodecError as error:
            raise PrepareError(f"{spec.label} cannot stand {cut}: {error}") from error
    return layers


def _encoder_layer(
    spec: TransferSpec,
    images: torch.Tensor,
    network: nn.Module,
    recipe: Recipe,
    kept: KeptEncoder | None,
) -> TransferLayer:
    if kept is not None:
        return kept.layer(images)
    encoder, decoder, quantization = image_coder(
        spec, images, partial(importance, network, images[:IMPORTANCE_INPUTS])
    )
    return TransferLayer(
        spec, quantization, learn_scales=recipe.learn_scales, halves=(encoder, decoder)
    )


def _features(
    device_slice: Callable[..., object], batches: Iterable[tuple[torch.Tensor, ...]], tensors: int
) -> list[torch.Tensor]:
    """Run the device slice on batches of inputs: the features of each tensor, batch first."""
    seen: list[list[torch.Tensor]] = [[] for _ in range(tensors)]
    inputs = nbytes = 0
    with torch.no_grad():
        for batch in batches:
            for kept, tensor in zip(seen, flat(device_slice(*batch)), strict=True):
                kept.append(tensor)
                nbytes += tensor.nbytes
            inputs += len(batch[0])
            if inputs >= CALIBRATION_INPUTS or nbytes >= _CALIBRATION_BYTES:
                break
    if not inputs:
        raise PrepareError("the training data set is empty")
    return [torch.cat(kept) for kept in seen]
