"""The shallow encoder of a bundle, kept for another network: only what the edge runs is trained.

So a device sends the same bytes to any number of networks (FrankenSplit: Furutanpey, Raith,
Dustdar, arXiv 2302.10681, has one encoder for several). Its device slices are copied file by file,
with steps and tables; a decoder is fitted to them, and the edge slice learns to work with it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from scissionlite.bundle import Bundle
from scissionlite.errors import PrepareError
from scissionlite.graph.graph import Graph
from scissionlite.images import Preprocessing
from scissionlite.manifest import CrossingTensor, SliceFile
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.runtimes import Slice, load_slice
from scissionlite.scissiontl.plans import Plan
from scissionlite.transfer_layer import TransferSpec
from scissionlite.transfer_layer.image_encoder import ImageDecoder
from scissionlite.transfer_layer.layers import TransferLayer


class KeptEncoder:
    """The encoder of a bundle.

    Parameters
    ----------
    path
        Folder of the bundle.

    Raises
    ------
    BundleError
        If it is no bundle.
    PrepareError
        If the bundle has no shallow encoder.
    """

    def __init__(self, path: str | Path) -> None:
        self.bundle = Bundle.load(path)
        transfer = self.bundle.manifest.transfer
        if transfer is None or transfer.encoder is None:
            raise PrepareError(
                f"{path} has no shallow encoder to keep: give a bundle that was prepared with one"
            )
        self.spec: TransferSpec = transfer

    @property
    def crossing(self) -> CrossingTensor:
        """The tensor that crosses; its steps and tables stay as they are."""
        return self.bundle.manifest.crossing[0]

    def layer(self, images: torch.Tensor) -> TransferLayer:
        """The Transfer Layer, with a decoder fitted to images as the network takes them."""
        runtime = self.bundle.runtimes("device")[0]
        loaded = load_slice(self.bundle.slice_path("device", runtime), runtime)
        encoder = _DeviceSlice(loaded)
        decoder = ImageDecoder(self.spec, images.shape)
        layer = TransferLayer(self.spec, self.crossing.quantization, halves=(encoder, decoder))
        with torch.no_grad():
            parts = [layer.edge(layer.send(part), ()) for part in images.split(16)]
            decoder.fit(images, torch.cat(parts))
        return layer

    def copied(self, folder: Path, runtimes: Sequence[str]) -> tuple[SliceFile, ...]:
        """Copy the device slices into a folder; they are checked against their digests."""
        files = {file.runtime: file for file in self.bundle.manifest.slices["device"]}
        for runtime in runtimes:
            path = self.bundle.slice_path("device", runtime)
            shutil.copyfile(path, folder / files[runtime].file)
        return tuple(files[runtime] for runtime in runtimes)


def keep_encoder(
    path: str | Path | None,
    graph: Graph,
    plan: Plan,
    recipe: Recipe,
    preprocessing: Preprocessing | None,
    runtimes: Sequence[str],
    max_batch: int,
) -> KeptEncoder | None:
    """Open the encoder of a bundle, and check that a network can stand behind it.

    The parameters are those of :func:`.pipeline.prepare`. None without a path.

    Raises
    ------
    BundleError
        If it is no bundle.
    PrepareError
        If it has no shallow encoder or another than the plan, the network takes other images, a
        runtime is missing, or bytes are to be learned.
    """
    if path is None:
        return None
    kept = KeptEncoder(path)
    manifest = kept.bundle.manifest
    if plan.spec != kept.spec:
        raise PrepareError(
            f"{path} has {kept.spec.label}, and the plan {plan.label}: a kept encoder's plan "
            "splits at the input with the encoder's own Transfer Layer"
        )
    if manifest.inputs[0].shape != graph.inputs[0].shape:
        raise PrepareError(
            f"{path} encodes images of shape {manifest.inputs[0].shape}, and {graph.name} takes "
            f"{graph.inputs[0].shape}"
        )
    if manifest.preprocessing != preprocessing:
        raise PrepareError(
            f"{path} prepares images by {manifest.preprocessing}, and not by {preprocessing}"
        )
    runs_on = kept.bundle.runtimes("device")
    if set(runtimes) - set(runs_on) or max_batch > manifest.max_batch:
        raise PrepareError(
            f"the encoder of {path} is for {', '.join(runs_on)} and at most {manifest.max_batch} "
            "inputs at once: it is kept as it is, so prepare for no other runtime and no more "
            "inputs"
        )
    if recipe.bytes_in_loss:
        raise PrepareError(
            "rate and target_bytes (--rate, --target-bytes) change nothing where the encoder is "
            "kept as it is"
        )
    return kept


class _DeviceSlice(nn.Module):
    """A deployed slice as a frozen module of a network, without gradients; it has no state."""

    def __init__(self, loaded: Slice) -> None:
        super().__init__()
        self._slice = loaded

    def __deepcopy__(self, memo: dict[int, object]) -> _DeviceSlice:
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the slice on one image after another, as it is deployed."""
        images = x.detach().cpu().contiguous().numpy()
        sent = [torch.from_numpy(self._slice(images[i : i + 1])[0]) for i in range(len(images))]
        return torch.cat(sent).to(x.device)
