"""Weights: the checkpoint files that people have, and one clear line for every other file."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from scissionlite.errors import ModelError
from scissionlite.models import load_model

NAME = f"{__name__}:network"

State = dict[str, torch.Tensor]


def network(num_classes: int = 2) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, num_classes)
    )


class Tied(nn.Module):
    """Two names of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


FORMS: dict[str, Callable[[State], Any]] = {
    "a state dict": lambda state: state,
    "DataParallel": lambda state: prefixed("module.", state),
    "compiled": lambda state: prefixed("_orig_mod.", state),
    "compiled, then in DDP": lambda state: prefixed("module._orig_mod.", state),
    "DDP, then compiled": lambda state: prefixed("_orig_mod.module.", state),
    "a compiled part": lambda state: {k.replace("3.", "3._orig_mod."): v for k, v in state.items()},
    "state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "model": lambda state: {
        "model": OrderedDict(state), "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}
    },
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": 0.1},
    "only an average": lambda state: {"state_dict_ema": prefixed("module.", state)},
    "AveragedModel": lambda state: {"n_averaged": torch.tensor(3), **prefixed("module.", state)},
    "Lightning": lambda state: {
        "state_dict": {"criterion.weight": torch.ones(2), **prefixed("model.", state)},
        "pytorch-lightning_version": "2.5",
        "hyper_parameters": {"lr": 0.1},
    },
    "Lightning, net": lambda state: {"state_dict": prefixed("net.module.", state)},
    "timm": lambda state: {
        "state_dict": state, "args": argparse.Namespace(lr=0.1), "metric": np.float64(71.5)
    },
    "two networks": lambda state: {
        "generator": state, "discriminator": {"weight": torch.ones(1)}
    },
    "float16": lambda state: {
        k: v.half() if v.is_floating_point() else v for k, v in state.items()
    },
    "torch 0.4": lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_checkpoints_that_people_have(form: str, tmp_path: Path) -> None:
    trained = network().half().float()  # so that float16 holds its weights exactly
    trained[1].num_batches_tracked += 0 if form == "torch 0.4" else 7  # type: ignore[index]
    torch.save(FORMS[form](trained.state_dict()), tmp_path / "checkpoint.pth")
    loaded = load_model(NAME, weights=tmp_path / "checkpoint.pth").state_dict()
    for key, value in trained.state_dict().items():
        assert torch.equal(loaded[key], value)


@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
def test_safetensors_files(prefix: str, tmp_path: Path) -> None:
    trained = network().state_dict()
    for name in ("weights.safetensors", "weights.bin"):
        save_file(prefixed(prefix, trained), tmp_path / name)
        loaded = load_model(NAME, weights=tmp_path / name).state_dict()
        assert all(torch.equal(loaded[key], trained[key]) for key in trained)


def test_a_weight_with_two_names_is_in_a_safetensors_file_once(tmp_path: Path) -> None:
    trained = Tied()
    save_model(trained, str(tmp_path / "tied.safetensors"))
    loaded = load_model(f"{__name__}:Tied", weights=tmp_path / "tied.safetensors").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in trained.state_dict().items())


def test_old_files_of_torch_save(tmp_path: Path) -> None:
    trained = network().state_dict()
    torch.save(trained, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    loaded = load_model(NAME, weights=tmp_path / "old.pt").state_dict()
    assert all(torch.equal(loaded[key], trained[key]) for key in trained)


class Settings:
    """A class of the user's, in a checkpoint."""


def _save(make: Callable[[], Any]) -> Callable[[Path], None]:
    return lambda file: torch.save(make(), file)


def _half_of_a_file(file: Path) -> None:
    torch.save(network().state_dict(), file)
    file.write_bytes(file.read_bytes()[:-600])


def _half_of_safetensors(file: Path) -> None:
    save_file(network().state_dict(), file)
    file.write_bytes(file.read_bytes()[:-20])


def _torchscript(file: Path) -> None:
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.trace(network().eval(), torch.zeros(1, 3, 2, 2)), file)


def _numpy(file: Path) -> None:
    with file.open("wb") as stream:
        np.savez(stream, a=np.ones(3))


WRONG_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (Path.touch, "it is empty"),
    "text": (lambda file: file.write_bytes(b"nonsense"), "not a file of torch.save"),
    "cut off": (_half_of_a_file, "not a whole one"),
    "safetensors cut off": (_half_of_safetensors, "not a whole safetensors file"),
    "a folder": (Path.mkdir, "cannot be read"),
    "a module": (_save(network), "holds a pickled module"),
    "an object": (
        _save(lambda: {"state_dict": network().state_dict(), "settings": Settings()}),
        r"holds pickled objects \(.*Settings\)",
    ),
    "TorchScript": (_torchscript, "a TorchScript program"),
    "NumPy": (_numpy, "not a file of torch.save"),
    "a list": (_save(lambda: [1, 2]), "holds a list without tensors"),
    "no weights": (_save(lambda: {"epoch": 3}), "holds a dict without tensors"),
    "another network": (
        _save(lambda: nn.Linear(2, 2).state_dict()),
        r"0\.weight, 0\.bias, 1\.weight and 5 more are missing and weight, bias are not of this",
    ),
    "too much": (
        _save(lambda: {**network().state_dict(), "head.weight": torch.ones(1)}),
        r"state dict head\.weight is not of this network",
    ),
    "more classes": (
        _save(lambda: {"model": prefixed("module.", network(6).state_dict())}),
        r"3\.weight has shape \(6, 16\), and in the network \(2, 16\).* --num-classes 6",
    ),
    "both averaged and not": (
        _save(lambda: {"model": network().state_dict(), "model_ema": network().state_dict()}),
        r"there 2 times, at \['model'\] and \['model_ema'\]",
    ),
    "teacher and student": (
        _save(
            lambda: {
                **prefixed("teacher.", network().state_dict()),
                **prefixed("student.", network().state_dict()),
            }
        ),
        r"there 2 times, at \['student\.\*'\] and \['teacher\.\*'\]",
    ),
    "without values": (
        _save(lambda: network().to("meta").state_dict()), "holds no plain values"
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG_FILES)
def test_every_other_file_is_told_in_one_line(wrong: str, tmp_path: Path) -> None:
    write, said = WRONG_FILES[wrong]
    write(tmp_path / "file.pth")
    with pytest.raises(ModelError, match=said) as caught:
        load_model(NAME, weights=tmp_path / "file.pth")
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'file.pth'} ")
    assert "weights_only" not in text
    assert "\n" not in text
