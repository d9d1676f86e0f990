"""Weights: from the checkpoint files that people have to the parameters of a network.

A file of torch.save or safetensors holds a state dict, or holds it in other things::

    {"conv.weight": ...}                             model.state_dict()
    {"module.conv.weight": ...}                      DataParallel, DistributedDataParallel
    {"_orig_mod.conv.weight": ...}                   torch.compile
    {"state_dict": {"model.conv.weight": ...}, ...}  Lightning, timm and most training scripts

Wherever it is: if its names and shapes are the network's, it is the state dict. If it is there
more than once, as with an average of the weights (EMA) beside them, the file is refused.

torch.load reads with ``weights_only=True``, so that unpickling runs no code.
"""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from scissionlite.errors import ModelError

_DEPTH = 4
"""How deep in dicts a state dict is looked for."""

_SHOWN = 3
"""Most names that a message lists."""

_OPTIONAL = ("num_batches_tracked",)
"""Last parts of names that a file may lack: torch before 0.4.1 wrote none."""

_MAKE_SCALAR: Any = np.float64(0).__reduce__()[0]
"""NumPy's function that makes a scalar; NumPy 1 and 2 have it in different modules."""

_HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    # timm's training script puts its arguments beside the weights, and many others a NumPy score.
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(each)) for each in ("float64", "float32", "int64")),
    (_MAKE_SCALAR, "numpy.core.multiarray.scalar"),
    (_MAKE_SCALAR, "numpy._core.multiarray.scalar"),
]
"""Types that torch.load may make beside tensors; making them runs no code of the file."""


def load_weights(network: nn.Module, path: str | Path, name: str) -> None:
    """Load a checkpoint's weights into a network.

    Parameters
    ----------
    network
        The network; changed in place.
    path
        File of ``torch.save`` or safetensors.
    name
        The network's name, for messages.

    Raises
    ------
    ModelError
        If the file cannot be read, holds no state dict of this network, or holds several.
    """
    path = Path(path)
    try:
        stored = _read(path)
        names = _Names(network)
        fitting = [found for found in _state_dicts(stored) if names.misfit(found.tensors) is None]
        if not fitting:
            raise _UnfitError(_misfit_text(stored, names))
        if len(fitting) > 1:
            places = " and ".join(found.place for found in fitting)
            raise _UnfitError(
                f"its weights are there {len(fitting)} times, at {places}: save the ones that you "
                "mean alone, with torch.save(checkpoint[...], file)"
            )
    except _UnfitError as error:
        raise ModelError(f"{path} does not hold the weights of {name}: {error}") from error
    # Names and shapes are checked; what is missing is in the file under another name.
    network.load_state_dict(fitting[0].tensors, strict=False)


class _UnfitError(Exception):
    """A file is not one of this network's weights; the text says why."""


class _Found(NamedTuple):
    """Tensors in a checkpoint: their place in it, and their names without a common prefix."""

    place: str
    tensors: dict[str, torch.Tensor]


class _Names:
    """The names and shapes of a network's state dict."""

    def __init__(self, network: nn.Module) -> None:
        self.tensors: dict[str, torch.Tensor] = {
            key: value for key, value in network.state_dict().items() if torch.is_tensor(value)
        }

    def misfit(self, given: Mapping[str, torch.Tensor]) -> str | None:
        """Say why given tensors are not the network's; None if they are."""
        missing = self._missing(given)
        unknown = [key for key in given if key not in self.tensors]
        if missing or unknown:
            parts = [_listed(missing, "missing"), _listed(unknown, "not of this network")]
            return "in its state dict " + " and ".join(filter(None, parts))
        for key, tensor in given.items():
            if tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided:
                return (
                    f"{key} holds no plain values: it was of the meta device, quantized or sparse"
                )
        other = [
            key
            for key in given
            if not is_lazy(self.tensors[key]) and given[key].shape != self.tensors[key].shape
        ]
        if not other:
            return None
        pairs = [(tuple(given[key].shape), tuple(self.tensors[key].shape)) for key in other]
        text = f"in its state dict {other[0]} has shape {pairs[0][0]}, and in the network "
        text += f"{pairs[0][1]}"
        if len(other) > 1:
            text += f" (and {len(other) - 1} more differ)"
        # Only the classifier differs: as many outputs as there are classes.
        if len({a[0] for a, _ in pairs if a}) == 1 and all(a[1:] == b[1:] for a, b in pairs):
            text += f": for {pairs[0][0][0]} classes give --num-classes {pairs[0][0][0]}"
            text += f" (num_classes={pairs[0][0][0]})"
        return text

    def _missing(self, given: Mapping[str, torch.Tensor]) -> list[str]:
        """The names that are not given, except those of a tensor that has a second, given name."""
        there = {_memory(self.tensors[key]) for key in given if key in self.tensors}
        return [
            key
            for key, tensor in self.tensors.items()
            if key not in given
            and key.rpartition(".")[2] not in _OPTIONAL
            and _memory(tensor) not in there
        ]


def _memory(tensor: torch.Tensor) -> tuple[int, torch.Size] | int:
    """The same for two names of one tensor; safetensors stores such a tensor once."""
    if is_lazy(tensor) or not tensor.numel():
        return id(tensor)
    return tensor.data_ptr(), tensor.shape


def _listed(keys: list[str], what: str) -> str:
    if not keys:
        return ""
    return f"{_shown(keys)} {'is' if len(keys) == 1 else 'are'} {what}"


def _misfit_text(stored: object, names: _Names) -> str:
    """Why nothing in a checkpoint fits, about the part that comes nearest."""
    found = list(_state_dicts(stored))
    if not found:
        return (
            f"it holds a {type(stored).__name__} without tensors, not a state dict: save "
            "torch.save(model.state_dict(), file)"
        )

    def alike(candidate: _Found) -> tuple[int, int]:
        common = candidate.tensors.keys() & names.tensors.keys()
        return len(common), -len(candidate.tensors)

    nearest = max(found, key=alike)
    text = names.misfit(nearest.tensors)
    assert text is not None  # none of them fits
    return text


def _state_dicts(stored: object, place: str = "", depth: int = 0) -> Iterator[_Found]:
    """Every dict of tensors in a checkpoint, and in each everything below a common prefix."""
    if not isinstance(stored, Mapping) or depth > _DEPTH:
        return
    # A compiled part has this in the middle of its names.
    tensors = {
        str(key).replace("_orig_mod.", ""): value
        for key, value in stored.items()
        if torch.is_tensor(value)
    }
    if tensors:
        yield _Found(place or "the top", tensors)
        yield from _below_prefixes(tensors, place)
    for key, value in stored.items():
        yield from _state_dicts(value, f"{place}[{key!r}]", depth + 1)


def _below_prefixes(tensors: Mapping[str, torch.Tensor], place: str) -> Iterator[_Found]:
    """The tensors below each prefix such as "module.", without it."""
    prefixes = {
        ".".join(parts[:count]) + "."
        for parts in (key.split(".") for key in tensors)
        for count in range(1, min(len(parts), _DEPTH))
    }
    for prefix in sorted(prefixes):
        below = {
            key.removeprefix(prefix): x for key, x in tensors.items() if key.startswith(prefix)
        }
        yield _Found(f"{place}[{prefix + '*'!r}]", below)


def _read(path: Path) -> Any:
    """Read a file of torch.save or safetensors."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise _UnfitError(f"it cannot be read ({error.strerror})") from error
    if not head:
        raise _UnfitError("it is empty")
    # A safetensors file begins with the length of its header, which is JSON.
    if head[8:] == b"{" or path.suffix == ".safetensors":
        return _read_safetensors(path)
    if zipfile.is_zipfile(path):
        _check_archive(path)
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _UnfitError(_unreadable(path)) from error


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise _UnfitError(
            "it needs safetensors, which is not installed: pip install 'scissionlite[torch]'"
        ) from error
    try:
        return load_file(path)
    except Exception as error:
        raise _UnfitError("it is not a whole safetensors file") from error


def _check_archive(path: Path) -> None:
    """Refuse the archives that hold a program beside the weights."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.partition("/")[2] or entry for entry in archive.namelist()}
    state_dict = "save its weights with torch.save(model.state_dict(), file)"
    if "constants.pkl" in entries:
        raise _UnfitError(f"it is a TorchScript program: {state_dict}")
    if any(
        each.endswith(("archive_format", "serialized_exported_program.json")) for each in entries
    ):
        raise _UnfitError(f"it is a program of torch.export: give it as the model, or {state_dict}")
    if "data.pkl" not in entries:
        raise _UnfitError("it is an archive of another program, not a file of torch.save")


def _unreadable(path: Path) -> str:
    """Why torch.load does not read a file."""
    try:
        objects = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:
        return "it is not a file of torch.save, or not a whole one"
    if not objects:
        return "it is not a whole file of torch.save"
    what = "a pickled module" if any("torch.nn." in each for each in objects) else "pickled objects"
    return (
        f"it holds {what} ({_shown(sorted(objects))}), and is not read, since unpickling runs "
        "code: where you trust it, save the weights alone with torch.save(model.state_dict(), file)"
    )


def _shown(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
